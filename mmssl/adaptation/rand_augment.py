"""RandAugment in the workers, on uint8 views, from the sample's own generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment

from mmssl.data.media import Media
from mmssl.data.views import Sample, ViewsAround

TENTHS = 11
"""Strengths from 0 to 10, as the papers count them."""


@dataclass(frozen=True)
class RandAugmented(ViewsAround):
    """Views followed by torchvision's RandAugment (Cubuk et al. 2020, arXiv:1909.13719); the frames of a clip share
    every draw.

    `magnitude` counts tenths of the strongest operation, as MAE's m9 and VideoMAE's m7 do; their scatter of it
    (mstd0.5) is not in torchvision and left out.
    """

    operations: int
    magnitude: int
    fill: tuple[float, ...]
    """Colour in [0,1] of what turns and shifts uncover."""

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        augment = RandAugment(
            self.operations,
            self.magnitude,
            TENTHS,
            interpolation=InterpolationMode.BILINEAR,
            fill=[255 * value for value in self.fill],
        )
        samples = self.views(media, rng)
        # torchvision draws from torch's global generator, which belongs to dropout where there are no workers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            return [
                replace(sample, views={name: augment(view) for name, view in sample.views.items()})
                for sample in samples
            ]

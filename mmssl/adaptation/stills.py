"""Videos for encoders of images: single frames of them, in training and in testing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmssl.data.media import Media
from mmssl.data.views import ImageCentre, Sample, Views, ViewsAround


@dataclass(frozen=True)
class Stills(ViewsAround):
    """Clips of one frame, uint8 [1,3,size,size], as the pictures [3,size,size] that they are."""

    size: int
    """Of the pictures."""

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        return [
            replace(sample, views={name: clip[0] for name, clip in sample.views.items()}, lengths={})
            for sample in self.views(media, rng)
        ]

    def centre(self) -> Views:
        return ImageCentre(self.size)

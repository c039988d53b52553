"""Segments of one clip of unit energy, as COLA cuts them (Saeed et al. 2021; official code, cola/contrastive.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.audio import read_audio
from mmssl.data.audio_views import AudioViews
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.views import Sample, Views

LEAST_ENERGY = 1e-9


@dataclass(frozen=True)
class ClipSegments(Views):
    """Random segments, each float32 [samples] at `rate`, of a recording that is divided by its L2 norm as a whole; they
    may overlap. A recording shorter than a segment has equal silence before and after it.

    A recording longer than `clip` seconds gives a random part of that length, which is then the clip (our choice: the
    level of one second would depend on hours of other sound, and all of it would have to be read).

    `unit` says what has unit norm: 'clip', as the official code has it for clips of one length. Where lengths differ,
    segments of longer recordings are then quieter, and can be matched by their level, without listening. 'segment' (our
    addition) multiplies a clip so that its segments have unit energy on average, whatever its length.
    """

    rate: int
    samples: int
    clip: float = 30.0
    unit: Literal["clip", "segment"] = "clip"
    names: tuple[str, ...] = ("a", "b")
    per_file: int = 1

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        wave = self._clip(media, rng)
        if len(wave) == 0:
            raise UnreadableMedia(f"{media.name}: holds no sound")
        wave = wave * wave.square().sum().clamp_min(LEAST_ENERGY).rsqrt()
        if self.unit == "segment":
            wave = wave * math.sqrt(max(len(wave) / self.samples, 1.0))
        missing = max(self.samples - len(wave), 0)
        wave = F.pad(wave, (missing // 2, missing - missing // 2))
        made = []
        for _ in range(self.per_file):
            starts = [int(rng.integers(len(wave) - self.samples + 1)) for _ in self.names]
            views = {name: wave[at : at + self.samples] for name, at in zip(self.names, starts, strict=True)}
            made.append(Sample(views, {"start": torch.tensor(starts) / self.rate}))
        return made

    def _clip(self, media: Media, rng: np.random.Generator) -> Tensor:
        record, wanted = media.record, math.ceil(self.clip * self.rate)
        if record.frames is None or record.rate is None:  # nobody verified this file, so its length is not known
            wave = read_audio(media, self.rate)
            start = int(rng.integers(max(len(wave) - wanted, 0) + 1))
            return wave[start : start + wanted]
        free = max(math.ceil(record.frames * self.rate / record.rate) - wanted, 0)
        return read_audio(media, self.rate, start=int(rng.integers(free + 1)) / self.rate, seconds=self.clip)

    def centre(self) -> Views:
        return AudioViews(self.rate, self.samples).centre()

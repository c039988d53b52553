"""Worker-side sampling of sound: segments of one recording, of which only the segments are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.data.audio import read_audio
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.views import Sample, Views


def apart_starts(rng: np.random.Generator, total: int, samples: int, count: int) -> list[int]:
    """Where `count` segments of `samples` begin in a recording of `total`, in random order and without overlap.

    All such places are equally likely. Where the segments do not all fit they lie evenly from its beginning to its end,
    which overlaps least.
    """
    free = total - count * samples
    if free >= 0:
        starts = np.sort(rng.integers(free + 1, size=count)) + samples * np.arange(count)
    else:
        starts = np.linspace(0, max(total - samples, 0), count).astype(np.int64)
    return rng.permutation(starts).tolist()


@dataclass(frozen=True)
class AudioViews(Views):
    """Random segments of one recording, one a name, each float32 [samples] at `rate`; only the segments are read.

    A recording shorter than a segment is followed by zeros ('pad': `Sample.lengths` tells how many samples are real) or
    repeated ('loop').
    """

    rate: int
    samples: int
    names: tuple[str, ...] = ("view",)
    per_file: int = 1
    short: Literal["pad", "loop"] = "pad"
    needed: int = 1
    """Samples of a segment that must be the recording's own; a recording that has fewer is skipped."""
    apart: bool = False
    """The segments of a sample share no instant, as far as the recording is long enough: see `apart_starts`."""

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        if self.apart:
            return self._cut(media, lambda total: apart_starts(rng, total, self.samples, len(self.names)))
        return self._cut(media, lambda total: [int(rng.integers(max(total - self.samples, 0) + 1)) for _ in self.names])

    def centre(self) -> Views:
        return AudioCentre(self.rate, self.samples, short=self.short)

    def _cut(self, media: Media, place: Callable[[int], list[int]]) -> list[Sample]:
        """`place` gives where the segments begin in a recording of so many samples."""
        record = media.record
        whole = None
        if record.frames is None or record.rate is None:  # nobody verified this file, so its length is not known
            whole = read_audio(media, self.rate)
            total = len(whole)
        else:
            total = math.ceil(record.frames * self.rate / record.rate)
        if total < self.needed:
            have, need = total / self.rate, self.needed / self.rate
            raise UnreadableMedia(f"{media.name}: too short: {have:.3g} s, and {need:.3g} s are needed")
        cut = []
        for _ in range(self.per_file):
            starts = place(total)
            waves = [self._segment(media, whole, start) for start in starts]
            views = dict(zip(self.names, (self._fill(wave) for wave in waves), strict=True))
            real = [self.samples if self.short == "loop" else len(wave) for wave in waves]
            seconds = torch.tensor([start / self.rate for start in starts])
            cut.append(Sample(views, {"start": seconds}, dict(zip(self.names, real, strict=True))))
        return cut

    def _segment(self, media: Media, whole: Tensor | None, start: int) -> Tensor:
        if whole is not None:
            wave = whole[start : start + self.samples]
        else:
            wave = read_audio(media, self.rate, start=start / self.rate, seconds=self.samples / self.rate)
        if len(wave) == 0:
            raise UnreadableMedia(f"{media.name}: no sound at second {start / self.rate:.3f}")
        return wave

    def _fill(self, wave: Tensor) -> Tensor:
        if self.short == "loop":
            return wave.repeat(-(-self.samples // len(wave)))[: self.samples]
        return torch.nn.functional.pad(wave, (0, self.samples - len(wave)))


@dataclass(frozen=True)
class AudioCentre(AudioViews):
    """The segment in the middle of the recording."""

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        return self._cut(media, lambda total: [max(total - self.samples, 0) // 2 for _ in self.names])

    def centre(self) -> Views:
        return self

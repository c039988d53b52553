"""Views of footage over time: the same instants in two cameras, and windows of consecutive frames of one file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmssl.data.cameras import CameraMedia, CameraSource, read_at
from mmssl.data.crops import crop_and_resize, random_resized_box
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.sources import Source
from mmssl.data.video import open_video
from mmssl.data.views import ImageCentre, Sample, Views


def _decode_side(size: int, scale: tuple[float, float], ratio: tuple[float, float]) -> int:
    """The smallest short side at which no random resized crop has to be enlarged."""
    return math.ceil(size / math.sqrt(scale[0] * min(ratio[0], 1 / ratio[1])))


@dataclass(frozen=True)
class CameraViews(Views):
    """The same random instants of one sequence in two random cameras, uint8 [n,3,size,size] each.

    Instants are drawn evenly from a random window and sorted; each camera shows them by its own rate and offset, with
    one crop (and flip) for all of them. Target 'time' float32 [n]: seconds of the sequence's clock.
    """

    kind: ClassVar[str | None] = "video"
    size: int
    instants: int = 9
    window: float = 20.0
    """Seconds from which the instants of a sample are drawn; all that both cameras show where that is shorter."""
    names: tuple[str, ...] = ("a", "b")
    per_file: int = 1
    """Samples cut from one decode, each with its own window and cameras."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that a crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    interpolation: str = "bilinear"

    def arrange(self, source: Source, max_bad_share: float) -> Source:
        return CameraSource(source, max_bad_share)

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        assert isinstance(media, CameraMedia)
        start, end = media.span
        length = min(self.window, end - start)
        drawn = []
        for _ in range(self.per_file):
            pair = rng.choice(len(media.cameras), 2, replace=False)
            begin = start + (end - start - length) * rng.random()
            drawn.append((pair, np.sort(begin + length * rng.random(self.instants))))
        side = _decode_side(self.size, self.scale, self.ratio)
        shown: dict[tuple[int, int], Tensor] = {}  # (sample, camera) -> frames; one decode a camera
        for number, camera in enumerate(media.cameras):
            users = [sample for sample, (pair, _) in enumerate(drawn) if number in pair]
            if users:
                frames = read_at(camera, np.concatenate([drawn[sample][1] for sample in users]), side)
                shown |= {(user, number): part for user, part in zip(users, frames.split(self.instants), strict=True)}
        samples = []
        for sample, (pair, times) in enumerate(drawn):
            views = {
                name: self._crop(shown[sample, int(number)], rng) for name, number in zip(self.names, pair, strict=True)
            }
            samples.append(Sample(views, {"time": torch.from_numpy(times).float()}))
        return samples

    def _crop(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        box = random_resized_box(frames.shape[-2], frames.shape[-1], rng, self.scale, self.ratio)
        flip = self.flip and rng.random() < 0.5
        return crop_and_resize(frames, box, self.size, self.interpolation, flip)

    def centre(self) -> Views:
        return ImageCentre(self.size, self.interpolation)


@dataclass(frozen=True)
class WindowViews(Views):
    """A random window of consecutive frames of one video, one view uint8 [n,3,size,size] with one crop; target 'time'
    float32 [n], seconds of the file."""

    kind: ClassVar[str | None] = "video"
    size: int
    frames: int = 32
    interval: float = 0.1
    """Seconds from one frame to the next."""
    names: tuple[str, ...] = ("window",)
    per_file: int = 1
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    interpolation: str = "bilinear"

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        video = open_video(media, _decode_side(self.size, self.scale, self.ratio))
        steps = np.floor(np.arange(self.frames) * self.interval * video.rate + 1e-6).astype(np.int64)
        if len(np.unique(steps)) < self.frames:
            raise UnreadableMedia(
                f"{media.name}: its {video.rate:g} frames/s are fewer than one each {self.interval:g} s"
            )
        if steps[-1] >= video.frames:
            raise UnreadableMedia(
                f"{media.name}: too short: {video.frames / video.rate:.2f} s, and a window spans "
                f"{steps[-1] / video.rate:.2f} s"
            )
        starts = [int(rng.integers(video.frames - steps[-1])) for _ in range(self.per_file)]
        union, place = np.unique(np.concatenate([start + steps for start in starts]), return_inverse=True)
        decoded = video.read(union.tolist())
        samples = []
        for start, where in zip(starts, place.reshape(self.per_file, -1), strict=True):
            frames = decoded[torch.from_numpy(where)]
            box = random_resized_box(frames.shape[-2], frames.shape[-1], rng, self.scale, self.ratio)
            flip = self.flip and rng.random() < 0.5
            view = crop_and_resize(frames, box, self.size, self.interpolation, flip)
            times = torch.from_numpy((start + steps) / video.rate).float()
            samples.append(Sample({self.names[0]: view}, {"time": times}))
        return samples

    def centre(self) -> Views:
        return ImageCentre(self.size, self.interpolation)

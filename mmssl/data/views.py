"""Worker-side sampling: one decoded file in, raw views at crop size out.

Everything random and geometric happens here, on uint8, so that what crosses from worker to trainer is as small as it
can be; colour is left to the device (`device_views.py`). All draws come from the generator that is handed in, in a
fixed order, so a sample depends on nothing else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.data.crops import MULTISCALE, centre_crop, crop_and_resize, multiscale_box, random_resized_box
from mmssl.data.images import decode_image
from mmssl.data.media import Media, Record, UnreadableMedia, motion_step
from mmssl.data.plan import Cut
from mmssl.data.video import open_video

if TYPE_CHECKING:
    from mmssl.data.sources import Source


@dataclass(frozen=True)
class Sample:
    """One training sample as it leaves the decoder, before batching."""

    views: dict[str, Tensor]
    """By name: uint8 [3,size,size], uint8 [T,3,size,size] or float32 [S]."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """By name: 'start' float32 [views], the second of the file at which each clip or segment begins."""
    lengths: dict[str, int] = field(default_factory=dict)
    """By view name: real frames or samples, counted from the first; what follows is padding."""


class Views(ABC):
    """Cuts training samples from one file.

    Attributes:
        names: view names, in order.
        per_file: samples cut from one decode.
    """

    names: tuple[str, ...]
    per_file: int
    kind: ClassVar[str | None] = None
    """Files that it reads (image, video, audio), where that need not be what the encoder takes: an image encoder is
    trained on frames of videos too."""

    @abstractmethod
    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        """`per_file` samples of this file. Raises UnreadableMedia when it cannot be decoded, or is too short to be
        used."""

    @abstractmethod
    def centre(self) -> Views:
        """The deterministic evaluation version: one sample a file with one view, named 'view'."""

    def cut_to(self, cut: Cut) -> Views:
        """These views for the samples of one micro-batch, where the plan decides how long those are."""
        raise TypeError(f"{type(self).__name__} cuts samples of one size")

    def fits(self, record: Record) -> bool:
        """Whether a file can be cut, by what the index knows of it: replacements are chosen among these."""
        return True

    def arrange(self, source: Source, max_bad_share: float) -> Source:
        """The rows that these views cut: the files of `source`, or what several of them make together. Raises UserError
        where more than `max_bad_share` of those cannot be used."""
        return source


@dataclass(frozen=True)
class ViewsAround(Views):
    """Views that change what other views cut; what they do not change is that of the others."""

    views: Views

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.views.names

    @property
    def per_file(self) -> int:  # type: ignore[override]
        return self.views.per_file

    @property
    def kind(self) -> str | None:  # type: ignore[override]
        return self.views.kind

    def centre(self) -> Views:
        return self.views.centre()

    def fits(self, record: Record) -> bool:
        return self.views.fits(record)

    def arrange(self, source: Source, max_bad_share: float) -> Source:
        return self.views.arrange(source, max_bad_share)


# ------------------------------------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class ImageViews(Views):
    """Independent random resized crops of one picture, one a name, each uint8 [3,size,size]."""

    size: int
    names: tuple[str, ...] = ("view",)
    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the picture's area that a crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    interpolation: str = "bicubic"
    per_file: int = 1

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        image = decode_image(media)
        return [Sample({name: self._crop(image, rng) for name in self.names}) for _ in range(self.per_file)]

    def _crop(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        box = random_resized_box(image.shape[-2], image.shape[-1], rng, self.scale, self.ratio)
        flip = self.flip and rng.random() < 0.5
        return crop_and_resize(image, box, self.size, self.interpolation, flip)

    def centre(self) -> Views:
        return ImageCentre(self.size, self.interpolation)


@dataclass(frozen=True)
class ImageCentre(Views):
    """Short side to `size`, centre square. Of a video, its middle frame: what an image encoder sees of it."""

    size: int
    interpolation: str = "bicubic"
    names: tuple[str, ...] = ("view",)
    per_file: int = 1

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        if media.record.kind == "video":
            video = open_video(media)
            image = video.read([(video.frames - 1) // 2])[0]
        else:
            image = decode_image(media)
        return [Sample({"view": centre_crop(image, self.size, self.interpolation)})]

    def centre(self) -> Views:
        return self


# ------------------------------------------------------------------------------------------------------------- video

Short = Literal["repeat_last", "loop", "skip"]
Crop = Literal["multiscale", "random_resized"]


def clip_span(frames: int, stride: float) -> int:
    """File frames from the first to the last frame of a clip, both counted."""
    return int((frames - 1) * stride + 1e-6) + 1


def clip_indices(start: int, frames: int, stride: float) -> np.ndarray:
    """int64 [frames]: file frames of a clip, from `start`, `stride` file frames apart (need not be whole: time-based
    sampling shows the frame that is on screen at that instant). May pass the end of the file: see `within_file`."""
    return start + np.floor(np.arange(frames) * stride + 1e-6).astype(np.int64)


def within_file(indices: np.ndarray, total: int, short: Short) -> np.ndarray:
    """Bring indices past the end of a file of `total` frames back into it: the last frame again, or from the beginning.

    Raises:
        UnreadableMedia: there are such indices and `short` is 'skip'.
    """
    if indices[-1] < total:
        return indices
    if short == "skip":
        raise UnreadableMedia(f"too short: {total} frames, and a clip spans {indices[-1] - indices[0] + 1}")
    return np.minimum(indices, total - 1) if short == "repeat_last" else indices % total


def draw_start(rng: np.random.Generator, starts: int, span: int, media: Media, motion: bool) -> int:
    """A file frame in [0, starts) at which a clip of `span` file frames begins.

    `motion`: with a probability that is proportional to the motion between the frames of the clip; all starts are
    equally likely where nothing moves in the whole video, or where no motion is known (rows of a Hub data set).
    """
    values = media.record.motion if motion else None
    if not values or starts < 2:
        return int(rng.integers(starts))
    step = motion_step(media.record.rate)
    frame = (np.arange(starts + span - 1) / step).astype(np.int64)
    moved = np.asarray(values)[np.minimum(frame, len(values) - 1)]
    until = np.cumsum(moved)
    weights = np.cumsum(until[span - 1 :] - until[:starts])  # motion into all frames of the clip but its first
    if not weights[-1] > 0:
        return int(rng.integers(starts))
    return min(int(np.searchsorted(weights, rng.random() * weights[-1], side="right")), starts - 1)


@dataclass(frozen=True)
class VideoViews(Views):
    """Random clips of one video, uint8 [T,3,size,size], all cut from a single decode.

    Each of `per_file` samples has one clip a name, at its own time with its own crop and flip; frames of a clip share
    them. Several samples a decode are repeated sampling (Hoffer et al. 2020; VideoMAE's num_sample), two names are the
    two clips of a contrastive pair.
    """

    kind = "video"
    size: int
    frames: int = 16
    stride: int = 4
    """File frames from one clip frame to the next."""
    interval: float | None = None
    """Seconds from one clip frame to the next; replaces `stride` and makes clips equally long whatever the frame
    rate."""
    names: tuple[str, ...] = ("clip",)
    per_file: int = 1
    crop: Crop = "multiscale"
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the area, for random_resized (MAE-ST's value)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    short: Short = "repeat_last"
    """What to do with a file shorter than a clip."""
    needed: int = 1
    """Frames of a clip that must be the file's own; a file that has fewer is skipped."""
    interpolation: str = "bilinear"
    motion: bool = False
    """Prefer clips in which much moves: see `draw_start`."""

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        video = open_video(media, short_side=self._decode_side())
        stride = self.stride if self.interval is None else self.interval * video.rate
        span = clip_span(self.frames, stride)
        possible = max(video.frames - span, 0) + 1
        count = self.per_file * len(self.names)
        starts = [draw_start(rng, possible, span, media, self.motion) for _ in range(count)]
        wanted = [clip_indices(start, self.frames, stride) for start in starts]
        least = clip_span(self.needed, stride)
        if video.frames < least:
            raise UnreadableMedia(f"too short: {video.frames} frames, and {least} are needed")
        inside = [within_file(indices, video.frames, self.short) for indices in wanted]
        union = np.unique(np.concatenate(inside))
        decoded = video.read(union.tolist())
        samples = []
        for first in range(0, len(starts), len(self.names)):
            here = range(first, first + len(self.names))
            clips = [self._crop(decoded, np.searchsorted(union, inside[n]), rng) for n in here]
            real = [self.frames if self.short == "loop" else int((wanted[n] < video.frames).sum()) for n in here]
            samples.append(
                Sample(
                    dict(zip(self.names, clips, strict=True)),
                    {"start": torch.tensor([starts[n] / video.rate for n in here])},
                    dict(zip(self.names, real, strict=True)),
                )
            )
        return samples

    def _decode_side(self) -> int:
        """The smallest short side at which no crop has to be enlarged; decoding no larger saves memory and resizing."""
        if self.crop == "multiscale":
            return math.ceil(self.size / MULTISCALE[-1])
        # The narrowest crop is sqrt(area share x aspect) of the geometric mean side, and the short side is at most
        # that.
        return math.ceil(self.size / math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1])))

    def _crop(self, decoded: Tensor, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        height, width = decoded.shape[-2:]
        if self.crop == "multiscale":
            box = multiscale_box(height, width, rng, self.size)
        else:
            box = random_resized_box(height, width, rng, self.scale, self.ratio)
        flip = self.flip and rng.random() < 0.5
        top, left, h, w = box
        # Cut before gathering: a view first, so that only the pixels of the crop are copied.
        clip = decoded[..., top : top + h, left : left + w][torch.from_numpy(indices)]
        return crop_and_resize(clip, (0, 0, h, w), self.size, self.interpolation, flip)

    def centre(self) -> Views:
        short: Short = "repeat_last" if self.short == "skip" else self.short
        return VideoCentre(self.size, self.frames, self.stride, self.interval, short, self.interpolation)


@dataclass(frozen=True)
class VideoCentre(Views):
    """The clip in the middle of the video, short side to `size`, centre square. Full-size decoding, so that a Hugging
    Face processor that is given the same frames makes the same pixels. Nothing is skipped: evaluation answers for
    every file."""

    size: int
    frames: int = 16
    stride: int = 4
    interval: float | None = None
    short: Short = "repeat_last"
    interpolation: str = "bilinear"
    names: tuple[str, ...] = ("view",)
    per_file: int = 1

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        video = open_video(media)
        stride = self.stride if self.interval is None else self.interval * video.rate
        start = max(video.frames - clip_span(self.frames, stride), 0) // 2
        wanted = clip_indices(start, self.frames, stride)
        inside = within_file(wanted, video.frames, self.short)
        union = np.unique(inside)
        view = centre_crop(video.read(union.tolist()), self.size, self.interpolation)
        view = view[torch.from_numpy(np.searchsorted(union, inside))]
        real = self.frames if self.short == "loop" else int((wanted < video.frames).sum())
        return [Sample({"view": view}, {"start": torch.tensor([start / video.rate])}, {"view": real})]

    def centre(self) -> Views:
        return self

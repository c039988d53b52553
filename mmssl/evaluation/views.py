"""What an encoder is shown in an evaluation: nothing random, the same for every encoder of one spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmssl.adapters.specs import ImageSpec, Spec, VideoSpec, WaveformSpec
from mmssl.data.audio_views import AudioCentre, AudioViews
from mmssl.data.listing import list_media
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.video import open_video
from mmssl.data.views import ImageViews, Sample, VideoViews, Views, centre_crop, clip_indices, clip_span, within_file
from mmssl.errors import UserError


def evaluation_views(spec: Spec, clips: int = 1) -> Views:
    """The centre of an image, the middle clip of a video, the middle segment of a recording, at the encoder's own size.

    Args:
        clips: evenly spaced clips or segments a file, in place of the middle one.

    Raises:
        UserError: several clips of an image.
    """
    if clips < 1 or (clips > 1 and isinstance(spec, ImageSpec)):
        raise UserError(f"--clips {clips}: give 1 for images, and 1 or more for videos and recordings.")
    if isinstance(spec, ImageSpec):
        return ImageViews(size=spec.size).centre()
    if isinstance(spec, VideoSpec):
        if clips == 1:
            return VideoViews(size=spec.size, frames=spec.frames, stride=spec.stride).centre()
        return SpacedClips(spec.size, spec.frames, spec.stride, per_file=clips)
    if isinstance(spec, WaveformSpec):
        kind = RealCentre if clips == 1 else RealSegments
        return kind(spec.rate, spec.samples, per_file=clips, needed=spec.window)
    if clips == 1:
        return AudioViews(rate=spec.rate, samples=spec.samples).centre()
    return SpacedSegments(spec.rate, spec.samples, per_file=clips)


def kind_for(data: str | Path, spec: Spec) -> str:
    """The kind of media to open for an encoder: what it takes, but videos for an image encoder (it sees the middle
    frame of each) where the folder `data` holds videos and not one image."""
    folder = Path(data).expanduser()
    if isinstance(spec, ImageSpec) and folder.is_dir():
        kinds = {record.kind for record in list_media(folder).records}
        return "video" if "video" in kinds and "image" not in kinds else "image"
    return spec.modality


def spaced(free: float, count: int) -> np.ndarray:
    """`count` starts in [0, free] in the middle of equal parts: float64 [count]."""
    return free * (np.arange(count) + 0.5) / count


@dataclass(frozen=True)
class SpacedClips(Views):
    """Clips at evenly spaced times of a video, from one decode, short side to `size`, centre square."""

    size: int
    frames: int
    stride: int
    per_file: int
    names: tuple[str, ...] = ("view",)

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        video = open_video(media)
        free = max(video.frames - clip_span(self.frames, self.stride), 0)
        wanted = [clip_indices(int(start), self.frames, self.stride) for start in spaced(free, self.per_file)]
        wanted = [within_file(indices, video.frames, "repeat_last") for indices in wanted]
        union = np.unique(np.concatenate(wanted))
        view = centre_crop(video.read(union.tolist()), self.size, "bilinear")
        return [Sample({"view": view[torch.from_numpy(np.searchsorted(union, indices))]}) for indices in wanted]

    def centre(self) -> Views:
        return self


@dataclass(frozen=True)
class SpacedSegments(AudioViews):
    """Segments at evenly spaced times of a recording, followed by zeros where the recording ends."""

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        turn = iter(range(self.per_file))
        return self._cut(media, lambda total: [int(spaced(max(total - self.samples, 0), self.per_file)[next(turn)])])

    def centre(self) -> Views:
        return self


class Real(AudioViews):
    """Nothing follows where a recording ends: each view is as long as it is, for encoders that take any length."""

    def _fill(self, wave: Tensor) -> Tensor:
        return wave


class RealCentre(Real, AudioCentre):
    """The segment in the middle of a recording, or all of a shorter one."""


class RealSegments(Real, SpacedSegments):
    """Segments at evenly spaced times of a recording; of a shorter one all of it, several times."""


SPEEDS = (1, 2, 4)
SPEED_CLASSES = ("1x", "2x", "4x")


def speed_span(frames: int, stride: int) -> int:
    """Frames of the file under the fastest clip."""
    return clip_span(frames, stride * SPEEDS[-1])


def fitting_stride(lengths: np.ndarray, wanted: int, span: Callable[[int], int]) -> int:
    """`wanted`, or the largest stride below it at which `span(stride)` fits into four fifths of the files.

    One stride for all files (frame counts `lengths` [N]), since strides of their own would make the classes overlap.
    0 if even stride 1 does not fit.
    """
    for stride in range(wanted, 0, -1):
        if np.mean(lengths >= span(stride)) >= 0.8:
            return stride
    return 0


@dataclass(frozen=True)
class SpeedViews(Views):
    """Clips at 1x, 2x and 4x stride of the same moments of a video; the target 'class' is the place in `SPEEDS`.

    The three clips of a moment share their middle, so that where in the file a clip lies tells nothing of its speed.
    Moments are drawn one from each of `moments` equal parts of the file.
    """

    size: int
    frames: int
    stride: int
    moments: int = 4
    names: tuple[str, ...] = ("view",)

    @property
    def per_file(self) -> int:  # type: ignore[override]
        return self.moments * len(SPEEDS)

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        video = open_video(media, short_side=self.size)
        span = speed_span(self.frames, self.stride)
        if video.frames < span:
            raise UnreadableMedia(f"{media.name}: has {video.frames} frames and the 4x clip needs {span}")
        free = video.frames - span
        middles = span // 2 + free * (np.arange(self.moments) + rng.random(self.moments)) / self.moments
        wanted, classes = [], []
        for middle in middles:
            for number, speed in enumerate(SPEEDS):
                stride = self.stride * speed
                wanted.append(clip_indices(int(middle) - clip_span(self.frames, stride) // 2, self.frames, stride))
                classes.append(number)
        union = np.unique(np.concatenate(wanted))
        view = centre_crop(video.read(union.tolist()), self.size, "bilinear")
        return [
            Sample({"view": view[torch.from_numpy(np.searchsorted(union, indices))]}, {"class": torch.tensor(number)})
            for indices, number in zip(wanted, classes, strict=True)
        ]

    def centre(self) -> Views:
        return self


ARROW_CLASSES = ("forward", "reversed")


@dataclass(frozen=True)
class ArrowViews(Views):
    """Every clip twice, as it was filmed and backwards (arrow of time: Pickup et al. 2014; Wei et al. 2018); the target
    'class' is 0 forward, 1 reversed.

    Both hold the very same frames around the same centre, so that no frame and no set of frames tells them apart, and
    half of the examples are of each class. Moments are drawn one from each of `moments` equal parts of the file.
    """

    size: int
    frames: int
    stride: int
    moments: int = 4
    names: tuple[str, ...] = ("view",)

    @property
    def per_file(self) -> int:  # type: ignore[override]
        return self.moments * len(ARROW_CLASSES)

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        video = open_video(media, short_side=self.size)
        span = clip_span(self.frames, self.stride)
        if video.frames < span:
            raise UnreadableMedia(f"{media.name}: has {video.frames} frames and a clip needs {span}")
        starts = (video.frames - span) * (np.arange(self.moments) + rng.random(self.moments)) / self.moments
        wanted = [clip_indices(int(start), self.frames, self.stride) for start in starts]
        union = np.unique(np.concatenate(wanted))
        view = centre_crop(video.read(union.tolist()), self.size, "bilinear")
        samples = []
        for indices in wanted:
            clip = view[torch.from_numpy(np.searchsorted(union, indices))]
            samples += [
                Sample({"view": clip if number == 0 else clip.flip(0)}, {"class": torch.tensor(number)})
                for number in range(len(ARROW_CLASSES))
            ]
        return samples

    def centre(self) -> Views:
        return self

"""Crops of recordings in whole frames of a speech encoder, with the labels of exactly these frames cut alongside.

A convolutional feature extractor with a window of 400 samples and a hop of 320 makes (S - 400) // 320 + 1 frames of S
samples (HuBERT, wav2vec 2.0, WavLM: 20 ms at 16 kHz). A crop of k frames that begins at frame s is samples [320 s,
320 (s + k) + 80): its frames see the same 400 samples each as frames s to s + k of the whole recording, so labels made
of the whole recording belong to them without any shift, and no sample goes unread. Cropping anywhere else and rounding
the label, as published code does, is wrong by up to half a frame (fairseq) or by 0.74 frames on average (torchaudio).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mmssl.data.audio import read_audio
from mmssl.data.audio_views import AudioCentre
from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.data.plan import Cut
from mmssl.data.views import Sample, Views
from mmssl.errors import UserError

NO_LABEL = -1
"""Unit of a frame that is padding."""


class Labels(Protocol):
    """Labels of whole recordings; picklable, since loader workers get a copy."""

    @property
    def rate_in(self) -> int:
        """Hz of the audio that was labelled."""

    @property
    def hop(self) -> int:
        """Samples from one label to the next."""

    @property
    def window(self) -> int:
        """Samples under one label: label n is of samples [n hop, n hop + window)."""

    def of(self, id: str) -> np.ndarray:
        """int [labels] of the recording `id` from its first sample on. Raises KeyError where it has none."""

    def __contains__(self, id: str) -> bool:
        """Whether the recording has labels."""


def frames_of(samples: int, hop: int = 320, window: int = 400) -> int:
    """Frames that an encoder makes of `samples` samples."""
    return max((samples - window) // hop + 1, 0)


def samples_of(frames: int, hop: int = 320, window: int = 400) -> int:
    """The fewest samples that give `frames` frames."""
    return (frames - 1) * hop + window


@dataclass(frozen=True)
class AudioCrops(Views):
    """A random crop of whole frames: view 'view' float32 [S] at `rate`, targets['units'] int64 [frames] where there are
    units, targets['start'] float32 [1], seconds.

    The length of a crop is that of its batch (`Draw.cut`, from a `BucketPlan`), else `max_seconds`. A recording that is
    shorter is skipped, or followed by zeros with units -1 ('pad': `Sample.lengths` then tells how many samples are
    real, of every crop). A BucketPlan never asks more of a recording than it has, unless it pads itself.

    Raises:
        UserError: the units are of audio at another rate or of other windows, or their hop does not divide this one.
    """

    kind = "audio"
    rate: int = 16000
    units: Labels | None = None
    min_seconds: float = 2.0
    """Recordings below are not used (fairseq's min_sample_size of HuBERT)."""
    max_seconds: float = 15.625
    """Longest crop (fairseq's max_sample_size of HuBERT, 250,000 samples)."""
    short: Literal["skip", "pad"] = "skip"
    hop: int = 320
    window: int = 400
    cut: Cut | None = None
    """Frames to cut, and the part of a long recording to cut them from."""
    names: tuple[str, ...] = ("view",)
    per_file: int = 1

    def __post_init__(self) -> None:
        if self.max_frames < 1 or self.min_seconds > self.max_seconds:
            raise UserError(
                f"Crops of {self.min_seconds:g} to {self.max_seconds:g} s cannot be cut: give --max-seconds of at "
                f"least {max(self.min_seconds, self.window / self.rate):g}."
            )
        units = self.units
        if units is not None and (units.rate_in != self.rate or self.hop % units.hop or units.window != self.window):
            raise UserError(
                f"The units are of audio at {units.rate_in} Hz, one every {units.hop} samples for {units.window}, and "
                f"the recipe reads {self.rate} Hz with a frame every {self.hop} samples of {self.window}: make units "
                "for these."
            )

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        whole = None
        total = self.total(media.record)
        if total is None:  # nobody verified this file, so its length is not known
            whole = read_audio(media, self.rate)
            total = len(whole)
        if total < self.needed:
            have, need = total / self.rate, self.needed / self.rate
            raise UnreadableMedia(f"{media.name}: too short: {have:.3g} s, and {need:.3g} s are needed")
        available, wanted = frames_of(total, self.hop, self.window), self.frames
        part, parts = (0, 1) if self.cut is None else (self.cut.part, self.cut.parts)
        low, high = part * available // parts, (part + 1) * available // parts
        first = low + int(rng.integers(max(high - low - wanted, 0) + 1))
        real = min(wanted, available - first)
        wave = self._read(media, whole, first, real if self.short == "skip" else wanted)
        length = len(wave)
        samples = samples_of(wanted, self.hop, self.window)
        targets = {"start": torch.tensor([first * self.hop / self.rate])}
        if self.units is not None:
            targets["units"] = self._labels(media, total, first, real)
        view = torch.nn.functional.pad(wave, (0, samples - length))
        return [Sample({"view": view}, targets, {"view": length} if self.short == "pad" else {})]

    @cached_property
    def max_frames(self) -> int:
        return frames_of(round(self.max_seconds * self.rate), self.hop, self.window)

    @property
    def frames(self) -> int:
        """Frames of a crop."""
        return self.max_frames if self.cut is None else self.cut.frames

    @property
    def needed(self) -> int:
        """Samples that a recording must have."""
        least = max(math.ceil(self.min_seconds * self.rate), self.window)
        return least if self.short == "pad" else max(least, samples_of(self.frames, self.hop, self.window))

    def total(self, record: Record) -> int | None:
        """Samples of a recording at `rate`, before it is read; None where it was not verified."""
        if record.frames is None or record.rate is None:
            return None
        return math.ceil(record.frames * self.rate / record.rate)

    def fits(self, record: Record) -> bool:
        total = self.total(record)
        return total is None or total >= self.needed

    def cut_to(self, cut: Cut) -> Views:
        return replace(self, cut=cut)

    def centre(self) -> Views:
        return AudioCentre(self.rate, samples_of(self.max_frames, self.hop, self.window))

    def _read(self, media: Media, whole: Tensor | None, first: int, frames: int) -> Tensor:
        """The samples of `frames` frames from frame `first`, as far as the recording goes."""
        start, samples = first * self.hop, samples_of(frames, self.hop, self.window)
        if whole is not None:
            return whole[start : start + samples]
        wave = read_audio(media, self.rate, start=start / self.rate, seconds=samples / self.rate)
        if len(wave) == 0 or (self.short == "skip" and len(wave) < samples):
            raise UnreadableMedia(f"{media.name}: ends {len(wave)} samples after second {start / self.rate:.3f}")
        return wave

    def _labels(self, media: Media, total: int, first: int, real: int) -> Tensor:
        """int64 [frames]: of frames `first` to `first + real`, and NO_LABEL for padding."""
        assert self.units is not None
        try:
            known = self.units.of(media.record.id)
        except KeyError:
            raise UnreadableMedia(f"{media.name}: has no units") from None
        expected = frames_of(total, self.units.hop, self.window)
        if len(known) != expected:
            raise UserError(
                f"{media.name} has {len(known)} units and should have {expected} ({total} samples, one every "
                f"{self.units.hop}): the units are of other audio, so make them again from this data."
            )
        step = self.hop // self.units.hop
        labels = np.full(self.frames, NO_LABEL, np.int64)
        labels[:real] = known[first * step :: step][:real]
        return torch.from_numpy(labels)

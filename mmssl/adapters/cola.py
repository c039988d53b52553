"""Waveforms [B,S] -> COLA's log-mel magnitudes (Saeed et al. 2021, arXiv:2010.10915; official code, cola/data.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.adapters.base import Front
from mmssl.adapters.specs import AudioSpec
from mmssl.errors import UserError

LOWEST_HZ, HIGHEST_HZ = 60.0, 7800.0
FLOOR, CEILING = 1e-5, 1e8
LEAST_ENERGY = 1e-9
"""Of the L2 normalisation: silence stays silence."""


class LogMagnitude(Front):
    """Waveforms float32 [B,S] -> (log-mel - mean) / (2 std), fp32 [B,1,1,F,T], T at most spec.frames.

    As COLA's official code: 25 ms windows each 10 ms without padding at the edges, periodic Hann, the MAGNITUDE of a
    1024-point Fourier transform (the power of two at or above two windows at other rates, our choice), HTK mel bands
    between 60 and 7800 Hz, triangular in mel and not normalised, clipped to [1e-5, 1e8], natural logarithm. One second
    at 16 kHz gives 98 frames. Always fp32.

    Every view is divided by its L2 norm first, as COLA's probe treats its windows. Pre-training divides the whole clip
    before segments are cut from it: such views are read inside `taken_as_given`.

    What follows the end of a recording is silence, as in the official code, so `lengths` tells nothing new. A view of
    more than spec.frames is cut.

    Args:
        fill: give a view of fewer frames silence up to spec.frames, for encoders of a fixed number of patches.

    Raises:
        UserError: a rate so low that the bands do not lie below half of it, or bands of no bin.
    """

    spec: AudioSpec
    window: Tensor
    mel: Tensor

    def __init__(self, spec: AudioSpec, fill: bool = False) -> None:
        super().__init__()
        if spec.rate < 2 * HIGHEST_HZ:
            raise UserError(
                f"COLA's bands reach to {HIGHEST_HZ:.0f} Hz, which recordings at {spec.rate} Hz do not hold: set "
                f"--input.rate to {2 * HIGHEST_HZ:.0f} or more (the paper has 16000)."
            )
        self.spec = spec
        self.channels = 1
        self.fill, self.unit = fill, True
        self.length, self.shift = round(0.025 * spec.rate), round(0.010 * spec.rate)
        self.fft = 1 << (2 * self.length - 1).bit_length()
        banks = mel_bands(spec.mels, self.fft // 2 + 1, spec.rate)
        if not banks.any(0).all():
            raise UserError(
                f"--input.mels {spec.mels} makes bands so narrow that no frequency of the spectrum lies in some of "
                "them: give fewer (the paper has 64)."
            )
        self.register_buffer("window", torch.hann_window(self.length, periodic=True), persistent=False)
        self.register_buffer("mel", torch.from_numpy(banks).float(), persistent=False)

    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        with torch.autocast(view.device.type, enabled=False):
            wave = view.float()
            if self.unit:
                wave = wave * wave.square().sum(1, keepdim=True).clamp_min(LEAST_ENERGY).rsqrt()
            mel = self.log_mel(wave)
        missing = self.spec.frames - mel.shape[1] if self.fill else 0
        return F.pad(mel, (0, 0, 0, missing), value=math.log(FLOOR)).transpose(1, 2)[:, None, None]

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Natural log-mel magnitudes [B,T,F] of waveforms [B,S] as they are, at most spec.frames of them.

        Raises:
            UserError: the waveform is shorter than one window.
        """
        if waveform.shape[-1] < self.length:
            raise UserError(
                f"A recording of {waveform.shape[-1]} samples is shorter than one 25 ms window ({self.length} samples "
                f"at {self.spec.rate} Hz): leave out recordings shorter than 25 ms."
            )
        needed = self.length + (self.spec.frames - 1) * self.shift
        frames = waveform[:, :needed].unfold(1, self.length, self.shift) * self.window
        return (torch.fft.rfft(frames, n=self.fft).abs() @ self.mel).clamp(FLOOR, CEILING).log()

    def normalise(self, raw: Tensor, channel: int) -> Tensor:
        return (raw - self.spec.mean) / (2 * self.spec.std)

    def denormalise(self, pixels: Tensor) -> Tensor:
        return pixels.float() * (2 * self.spec.std) + self.spec.mean

    @contextmanager
    def taken_as_given(self) -> Iterator[None]:
        """Inside, views are taken at the level they come at: they were normalised together with their clip."""
        unit, self.unit = self.unit, False
        try:
            yield
        finally:
            self.unit = unit


def mel_bands(mels: int, bins: int, rate: int) -> np.ndarray:
    """Weights float64 [bins,mels] of TensorFlow's linear_to_mel_weight_matrix: HTK mels, lines straight in mel (not in
    Hz, as librosa's and torchaudio's are), the bin at 0 Hz in no band."""

    def to_mel(hertz: np.ndarray | float) -> np.ndarray:
        return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0))

    place = to_mel(np.linspace(0, rate / 2, bins))[:, None]
    edges = np.linspace(to_mel(LOWEST_HZ), to_mel(HIGHEST_HZ), mels + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bands = np.minimum((place - lower) / (centre - lower), (upper - place) / (upper - centre)).clip(min=0)
    bands[0] = 0
    return bands

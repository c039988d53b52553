"""Waveforms [B,S] -> torchaudio's log-mel values, the front end of models outside kaldi's and COLA's families."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from mmssl.adapters.base import Front
from mmssl.adapters.specs import AudioSpec
from mmssl.errors import UserError

FLOOR = 1e-10


class LogMelPower(Front):
    """Waveforms float32 [B,S] -> (log-mel - mean) / (2 std), fp32 [B,1,1,F,T], T at most spec.frames.

    `torchaudio.transforms.MelSpectrogram` with 25 ms windows (periodic Hann, transform of the same length) each 10 ms,
    no padding at the edges, power, bands from 0 Hz to half the rate on Slaney's mel scale with Slaney's normalisation,
    which are librosa's bands and Whisper's; then the natural logarithm of what is at least 1e-10. Always fp32. A longer
    view is cut to spec.frames.

    Args:
        fill: give a view of fewer frames silence up to spec.frames, for encoders of a fixed number of patches.

    Raises:
        UserError: bands so narrow that some hold no frequency of the spectrum; a view shorter than one window.
    """

    spec: AudioSpec

    def __init__(self, spec: AudioSpec, fill: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.channels = 1
        self.fill = fill
        self.length, self.shift = round(0.025 * spec.rate), round(0.010 * spec.rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about empty bands: the sentence below names the remedy
            self.mel = MelSpectrogram(
                spec.rate,
                n_fft=self.length,
                hop_length=self.shift,
                n_mels=spec.mels,
                center=False,
                norm="slaney",
                mel_scale="slaney",
            )
        if not self.mel.mel_scale.fb.any(0).all():
            raise UserError(
                f"--input.mels {spec.mels} makes bands so narrow that no frequency of a spectrum of "
                f"{self.length // 2 + 1} lies in some of them: give fewer (80 at 16000 Hz is usual)."
            )
        for name in ("spectrogram.window", "mel_scale.fb"):  # made from the settings: nothing to save
            module, _, buffer = name.rpartition(".")
            self.mel.get_submodule(module)._non_persistent_buffers_set.add(buffer)

    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        if view.shape[-1] < self.length:
            raise UserError(
                f"A recording of {view.shape[-1]} samples is shorter than one 25 ms window ({self.length} samples "
                f"at {self.spec.rate} Hz): leave out recordings shorter than 25 ms."
            )
        with torch.autocast(view.device.type, enabled=False):
            needed = self.length + (self.spec.frames - 1) * self.shift
            power = self.mel(view[:, :needed].float())
            missing = self.spec.frames - power.shape[2] if self.fill else 0
            return F.pad(power, (0, missing)).clamp_min(FLOOR).log()[:, None, None]

    def normalise(self, raw: Tensor, channel: int) -> Tensor:
        return (raw - self.spec.mean) / (2 * self.spec.std)

    def denormalise(self, pixels: Tensor) -> Tensor:
        return pixels.float() * (2 * self.spec.std) + self.spec.mean

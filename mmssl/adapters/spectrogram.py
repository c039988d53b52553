"""Waveforms [B,S] -> kaldi log-mel values -> tokens of square patches (Gong et al. 2021, AST)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks

from mmssl.adapters.base import Adapter, Front
from mmssl.adapters.cola import LogMagnitude
from mmssl.adapters.mel import LogMelPower
from mmssl.adapters.specs import AudioSpec
from mmssl.errors import UserError

PREEMPHASIS = 0.97
LOWEST_HZ = 20.0


class LogMel(Front):
    """Waveforms float32 [B,S] in [-1,1] -> (log-mel - mean) / (2 std), fp32 [B,1,1,F,T] with T = spec.frames.

    Kaldi's fbank (25 ms windows each 10 ms, snipped edges, DC removed, pre-emphasis 0.97, Hann window, power spectrum,
    no dither, no energy), batched; equal to torchaudio.compliance.kaldi.fbank and, with the padding, to transformers'
    ASTFeatureExtractor. A shorter recording is filled with zeros AFTER the logarithm and before normalisation, a longer
    one is cut to spec.frames, both as ASTFeatureExtractor does. Always fp32: the power spectrum spans more than bf16 or
    fp16 can hold.
    """

    spec: AudioSpec
    window: Tensor
    mel: Tensor

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        self.spec = spec
        self.channels = 1
        # Truncated, not rounded, as kaldi does at rates such as 11025 Hz.
        self.length = int(spec.rate * 25.0 * 0.001)
        self.shift = int(spec.rate * 10.0 * 0.001)
        self.fft = 1 << (self.length - 1).bit_length()
        banks, _ = get_mel_banks(spec.mels, self.fft, float(spec.rate), LOWEST_HZ, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("window", torch.hann_window(self.length, periodic=False), persistent=False)
        self.register_buffer("mel", F.pad(banks, (0, 1)).T.contiguous(), persistent=False)

    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        with torch.autocast(view.device.type, enabled=False):
            mel = self.fbank(view.float())
        if lengths is not None:
            frames = torch.div(lengths - self.length, self.shift, rounding_mode="floor") + 1  # snipped edges
            padding = torch.arange(mel.shape[1], device=mel.device) >= frames.unsqueeze(1)
            mel = mel.masked_fill(padding.unsqueeze(2), 0.0)
        return F.pad(mel, (0, 0, 0, self.spec.frames - mel.shape[1])).transpose(1, 2)[:, None, None]

    def normalise(self, raw: Tensor, channel: int) -> Tensor:
        return (raw - self.spec.mean) / (2 * self.spec.std)

    def fbank(self, waveform: Tensor) -> Tensor:
        """Log-mel values [B,T,F] of waveforms [B,S], at most spec.frames of them.

        Raises:
            UserError: the waveform is shorter than one window.
        """
        if waveform.shape[-1] < self.length:
            raise UserError(
                f"A recording of {waveform.shape[-1]} samples is shorter than one 25 ms window ({self.length} samples "
                f"at {self.spec.rate} Hz): leave out recordings shorter than 25 ms."
            )
        frames = waveform[:, : self.length + (self.spec.frames - 1) * self.shift].unfold(1, self.length, self.shift)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        frames = (frames - PREEMPHASIS * before) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=self.fft))
        power = spectrum.square().sum(-1)
        return (power @ self.mel).clamp_min(torch.finfo(torch.float32).eps).log()

    def denormalise(self, pixels: Tensor) -> Tensor:
        return pixels.float() * (2 * self.spec.std) + self.spec.mean


def log_mel_front(spec: AudioSpec, fill: bool) -> Front:
    """The front that `spec` names; `fill`: for encoders of a fixed number of patches (kaldi's always fills)."""
    if spec.front == "kaldi":
        return LogMel(spec)
    return LogMagnitude(spec, fill) if spec.front == "cola" else LogMelPower(spec, fill)


class SpectrogramPatches(Adapter):
    """Waveforms float32 [B,S] -> tokens on the grid (1, mel patches, time patches)."""

    def __init__(self, spec: AudioSpec, width: int) -> None:
        super().__init__()
        self.front = log_mel_front(spec, fill=True)
        self.patch, self.stride = (1, spec.patch, spec.patch), (1, spec.stride, spec.stride)
        self.projection = nn.Conv2d(1, width, spec.patch, spec.stride)

    @property
    def grid(self) -> tuple[int, int, int]:
        spec = self.spec
        return 1, (spec.mels - spec.patch) // spec.stride + 1, (spec.frames - spec.patch) // spec.stride + 1

    @property
    def spec(self) -> AudioSpec:
        assert isinstance(self.front.spec, AudioSpec)
        return self.front.spec

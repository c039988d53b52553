"""Waveforms [B,S] -> frames by strided convolutions: the feature extractor of wav2vec 2.0 (Baevski et al. 2020,
arXiv:2006.11477), which HuBERT and WavLM share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.base import Adapter, Front
from mmssl.adapters.specs import AudioSpec, WaveformSpec
from mmssl.adapters.spectrogram import LogMel
from mmssl.errors import UserError
from mmssl.types import Tokens

NORMALISE_EPS = 1e-7
"""Of Wav2Vec2FeatureExtractor; a recording of silence stays silence."""
PICTURE_MELS = 80


class Waveform(Front):
    """Waveforms float32 [B,S] -> fp32 [B,1,1,1,S], with `spec.normalise` at zero mean and unit variance each.

    Mean and variance are those of a recording's real samples, and zeros follow them, as Wav2Vec2FeatureExtractor has
    it. They need the whole recording, so `raw` makes them and `normalise`, which may get any cut, only casts.
    """

    spec: WaveformSpec

    def __init__(self, spec: WaveformSpec) -> None:
        super().__init__()
        self.spec = spec
        self.channels = 1

    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.waveform(view, lengths)[:, None, None, None]

    def waveform(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the first convolution sees: fp32 [B,S]."""
        view = view.float()
        if not self.spec.normalise:
            return view
        if lengths is None:
            variance, mean = torch.var_mean(view, dim=1, correction=0, keepdim=True)
            return (view - mean) * (variance + NORMALISE_EPS).rsqrt()
        real = _real(lengths, view.shape[1])
        count = lengths.unsqueeze(1)
        mean = (view * real).sum(1, keepdim=True) / count
        centred = (view - mean) * real
        variance = centred.square().sum(1, keepdim=True) / count
        return centred * (variance + NORMALISE_EPS).rsqrt()

    def normalise(self, raw: Tensor, channel: int) -> Tensor:
        return raw.float()

    def denormalise(self, pixels: Tensor) -> Tensor:
        """Log-mel values [B,1,1,F,T] of waveforms [B,1,1,1,S]: what pictures show of sound."""
        frames = pixels.shape[-1]  # more than there are
        mel = LogMel(AudioSpec(rate=self.spec.rate, mels=PICTURE_MELS, frames=frames)).to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            return mel.fbank(pixels[:, 0, 0, 0].float()).transpose(1, 2)[:, None, None]


class ConvLayer(nn.Module):
    """Convolution, norm, GELU: [B,C,T] -> [B,C',T'].

    Args:
        norm: 'group', over time and one channel a group; 'layer', over the channels of a frame; None.
    """

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int, *, bias: bool, norm: str | None) -> None:
        super().__init__()
        self.conv = nn.Conv1d(*channels, kernel, stride, bias=bias)
        self.layer_norm: nn.GroupNorm | nn.LayerNorm | None = None
        if norm == "group":
            self.layer_norm = nn.GroupNorm(channels[1], channels[1])
        elif norm == "layer":
            self.layer_norm = nn.LayerNorm(channels[1])

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """`real` bool [B,T'] tells the frames that hold no padding, where the norm is over time and there is some."""
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.LayerNorm):
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            x = self.layer_norm(x) if real is None else norm_over_real(x, real, self.layer_norm)
        return F.gelu(x)


def norm_over_real(x: Tensor, real: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm of one channel a group, [B,C,T], over the real frames [B,T] alone; padding is normalised alike."""
    with torch.autocast(x.device.type, enabled=False):
        x, weight = x.float(), real.unsqueeze(1).float()
        count = weight.sum(2, keepdim=True)
        centred = x - (x * weight).sum(2, keepdim=True) / count
        variance = (centred.square() * weight).sum(2, keepdim=True) / count
        scaled = centred * (variance + norm.eps).rsqrt()
        return (scaled * norm.weight.float()[:, None] + norm.bias.float()[:, None]).to(norm.weight.dtype)


class FeatureExtractor(nn.Module):
    """The stack of convolutions, waveform [B,S] -> features [B,N,C] with N = spec.frames_of(S)."""

    def __init__(self, spec: WaveformSpec) -> None:
        super().__init__()
        self.spec = spec
        sizes = zip((1, *spec.channels), spec.channels, spec.kernels, spec.strides, strict=False)
        self.conv_layers = nn.ModuleList(
            ConvLayer(
                (before, after),
                kernel,
                stride,
                bias=spec.bias,
                norm="layer" if spec.norm == "layer" else "group" if number == 0 else None,
            )
            for number, (before, after, kernel, stride) in enumerate(sizes)
        )

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        x, real = waveform.unsqueeze(1), None
        if lengths is not None and self.spec.norm == "group":
            kernel, stride = self.spec.kernels[0], self.spec.strides[0]
            real = _real((lengths - kernel) // stride + 1, (waveform.shape[1] - kernel) // stride + 1)
        for layer in self.conv_layers:
            x, real = layer(x, real), None
        return x.transpose(1, 2)


class FeatureProjection(nn.Module):
    """Norm, linear layer and dropout: features [B,N,C] -> tokens [B,N,D]."""

    def __init__(self, channels: int, width: int, *, norm: bool, eps: float, dropout: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels, eps=eps) if norm else nn.Identity()
        self.projection = nn.Linear(channels, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.projection(self.layer_norm(x)))


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `scale`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


class WaveformFrames(Adapter):
    """Waveforms float32 [B,S] -> tokens on the grid (1, 1, frames), and the convolutions' output as `Tokens.features`.

    A frame is what a patch is elsewhere: `spec.window` samples (25 ms), `spec.hop` (20 ms) apart. With `lengths`,
    frames that see padding are marked in `Tokens.padding`, and the real ones come out as from the recording alone, for
    both norms. transformers' HubertModel with feat_extract_norm="group" does not: its norm over time counts padding.

    Args:
        width: D of the tokens.
        gradient: factor on the gradient of the convolutions (HuBERT BASE: 0.1).
        norm: whether features are normalised before the projection; every released HuBERT and WavLM does.
        dropout: after the projection.
    """

    front: Waveform

    def __init__(
        self,
        spec: WaveformSpec,
        width: int,
        *,
        gradient: float = 1.0,
        norm: bool = True,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.front = Waveform(spec)
        self.patch, self.stride = (1, 1, spec.window), (1, 1, spec.hop)
        self.gradient = gradient
        self.feature_extractor = FeatureExtractor(spec)
        self.feature_projection = FeatureProjection(spec.channels[-1], width, norm=norm, eps=eps, dropout=dropout)

    @property
    def spec(self) -> WaveformSpec:
        return self.front.spec

    @property
    def width(self) -> int:
        return self.feature_projection.projection.out_features

    @property
    def grid(self) -> tuple[int, int, int]:
        return 1, 1, self.spec.frames_of(self.spec.samples)

    def forward(self, view: Tensor, keep: Tensor | None = None, lengths: Tensor | None = None) -> Tokens:
        """Tokens of waveforms.

        Args:
            keep: not for waveforms: what comes after adds positions by a convolution over neighbouring frames.
            lengths: int64 [B], real samples of each padded waveform.

        Raises:
            UserError: the waveforms are shorter than one frame, or `keep` is given.
        """
        spec = self.spec
        if keep is not None:
            raise UserError(
                "A speech encoder takes the positions of frames from their neighbours, so none can be left out: choose "
                "an objective that masks frames in place (HuBERT, WavLM), or a ViT over spectrograms."
            )
        if view.shape[1] < spec.window:
            raise UserError(
                f"A recording of {view.shape[1]} samples is shorter than one frame of the encoder ({spec.window} "
                f"samples at {spec.rate} Hz): leave out recordings shorter than {spec.window / spec.rate:.3g} s."
            )
        waveform = self.front.waveform(view, lengths)
        # Parameters may be bf16 (FSDP) while waveforms are always fp32.
        features = self.feature_extractor(waveform.to(self.feature_projection.projection.weight.dtype), lengths)
        if self.gradient != 1.0:
            features = ScaleGradient.apply(features, self.gradient)
        N = features.shape[1]
        padding = None if lengths is None else ~_real(spec.frames_of(lengths), N)
        return Tokens(x=self.feature_projection(features), grid=(1, 1, N), padding=padding, features=features)


def _real(lengths: Tensor, total: int) -> Tensor:
    """bool [B,total], True for the first `lengths` [B] places, of which there is always one."""
    return torch.arange(total, device=lengths.device) < lengths.clamp(min=1).unsqueeze(1)

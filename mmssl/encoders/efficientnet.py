"""EfficientNet (Tan and Le 2019, arXiv:1905.11946) as transformers' EfficientNetModel, trained as Keras trains it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmssl.adapters.base import Front
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.vit import drop_path
from mmssl.errors import UserError
from mmssl.types import Encoded

MOMENTUM = 0.01
"""Of every batch norm, in torch's convention: Keras' 0.99, which transformers' class takes over as it is."""
TRUNCATED = 0.87962566103423978
"""Standard deviation of a unit normal truncated at 2: Keras divides by it."""


@dataclass(frozen=True)
class EfficientNetSettings:
    width: float = 1.0
    """Width coefficient: B0 to B7 have 1.0, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0."""
    depth: float = 1.0
    """Depth coefficient: B0 to B7 have 1.0, 1.1, 1.2, 1.4, 1.8, 2.2, 2.6, 3.1."""
    drop_connect: float = 0.2
    """Share of samples that skip the last block in training; it grows linearly from 0 at the first."""
    pooling: Literal["mean", "max"] = "max"
    """Over the last map."""


class EfficientNet(Encoder):
    """Images [B,3,H,W] or spectrograms of waveforms [B,S] through transformers' EfficientNetModel, which pads strided
    convolutions below and to the right as Keras does where the size is even or unknown (COLA builds it for spectrograms
    of any length). Rows are mel bands here and columns time; the official code has them the other way round, which is
    the same network with its square kernels turned over.

    What training changes of the class: batch norms move by 0.01, as Keras' do, and the dropout before a residual sum
    drops whole samples (drop-connect) instead of values. Weights start as Keras' (truncated normal, variance 2 over the
    fan out of one filter).

    Raises:
        UserError: a front for clips.
    """

    def __init__(self, front: Front, settings: EfficientNetSettings | None = None) -> None:
        from transformers import EfficientNetConfig, EfficientNetModel

        super().__init__()
        settings = settings or EfficientNetSettings()
        if isinstance(front.spec, VideoSpec):
            raise UserError("EfficientNet has 2-D convolutions and takes images or audio: choose a ViT for clips.")
        self.front, self.spec, self.settings = front, front.spec, settings
        self.pooling = settings.pooling
        self.net: Any = EfficientNetModel(EfficientNetConfig(**config_of(self)))
        self.width = self.net.config.hidden_dim
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Conv2d):
                kernel = module.weight
                fan_out = kernel.shape[0] // module.groups * kernel[0, 0].numel()
                std = math.sqrt(2 / fan_out) / TRUNCATED
                nn.init.trunc_normal_(kernel, std=std, a=-2 * std, b=2 * std)
        block: Any
        for block in self.net.encoder.blocks:
            block.projection.dropout = DropConnect(block.projection.dropout.p)

    def forward(self, view: Tensor, *, lengths: Tensor | None = None, hidden: bool = False) -> Encoded:
        pixels = self.front(view, lengths).squeeze(2).to(self.net.embeddings.convolution.weight.dtype)
        found = self.net(channels_last(pixels), output_hidden_states=hidden, return_dict=True)
        last = found.last_hidden_state
        pooled = last.amax((2, 3)) if self.pooling == "max" else last.mean((2, 3))
        return Encoded(pooled=pooled, feature_map=last, hidden=found.hidden_states if hidden else None)


def channels_last(x: Tensor) -> Tensor:
    """The same values [B,C,H,W], pixel by pixel in memory, which makes depthwise convolutions faster. Of one channel
    every order is contiguous, and only the strides tell convolutions which one is meant."""
    _, channels, rows, columns = x.shape
    strides = (channels * rows * columns, 1, columns * channels, channels)
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)


class DropConnect(nn.Module):
    """In training, zeros a share of the samples and scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.rate) if self.training and self.rate else x


def config_of(encoder: EfficientNet) -> dict[str, Any]:
    """Settings of transformers' class."""
    settings, spec = encoder.settings, encoder.spec
    width = max(8, int(1280 * settings.width + 4) // 8 * 8)  # the class does not derive it from the coefficient
    return {
        "width_coefficient": settings.width,
        "depth_coefficient": settings.depth,
        "hidden_dim": width if width >= 0.9 * 1280 * settings.width else width + 8,
        "num_channels": encoder.front.channels,
        "image_size": spec.size if isinstance(spec, ImageSpec) else 224,
        "pooling_type": settings.pooling,
        "batch_norm_momentum": MOMENTUM,
        "drop_connect_rate": settings.drop_connect,
    }

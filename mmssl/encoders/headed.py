"""An encoder together with its head, for methods whose result is an embedding: both are written and read as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.specs import ImageSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.errors import UserError
from mmssl.types import Encoded


@dataclass(frozen=True)
class HeadSettings:
    """Of a head; a new kind is a class here and its name in `build_head`."""

    kind: Literal["auto", "spatial_softmax", "pooled"] = "auto"
    """'spatial_softmax' reads where things are on the feature map of a convolutional net, or on the grid of a ViT's
    tokens; 'pooled' reads the pooled features of any encoder; 'auto' is the first for convolutional nets, else the
    second."""
    out: int = 32
    """Width of the embedding."""
    hidden: int = 2048
    """Width of the fully connected layer before it."""
    channels: int = 512
    """Of the two 3x3 convolutions before the spatial softmax."""
    normalise: bool = True
    """Embeddings of length one."""


def spatial_softmax(maps: Tensor) -> Tensor:
    """Where each channel of maps [B,C,H,W] is active: the expected (x, y) under a softmax over its H*W places, in
    [-1,1] from the first column (row) to the last: [B,2C], all x before all y (Finn et al. 2016, arXiv:1509.06113)."""
    height, width = maps.shape[-2:]
    share = maps.float().flatten(2).softmax(2).unflatten(2, (height, width))  # [B,C,H,W]
    x = (share.sum(2) * torch.linspace(-1, 1, width, device=maps.device)).sum(2)
    y = (share.sum(3) * torch.linspace(-1, 1, height, device=maps.device)).sum(2)
    return torch.cat([x, y], 1)


class Head(nn.Module, ABC):
    """What an encoder found -> one embedding a sample."""

    def __init__(self, settings: HeadSettings, fan_in: int) -> None:
        super().__init__()
        self.settings = settings
        self.fc = nn.Sequential(
            nn.Linear(fan_in, settings.hidden), nn.ReLU(inplace=True), nn.Linear(settings.hidden, settings.out)
        )

    @abstractmethod
    def read(self, encoded: Encoded) -> Tensor:
        """[B,fan_in]."""

    def forward(self, encoded: Encoded) -> Tensor:
        """fp32 [B,out]."""
        dtype = next(self.fc.parameters()).dtype  # bf16 under FSDP, while the spatial softmax is fp32
        embedding: Tensor = self.fc(self.read(encoded).to(dtype)).float()
        return F.normalize(embedding, dim=1) if self.settings.normalise else embedding


class SpatialSoftmaxHead(Head):
    """Two 3x3 convolutions with batch norm and ReLU, spatial softmax, one hidden layer: the embedding network of TCN
    (Sermanet et al. 2018; official code, model.py). The softmax has temperature 1, our choice."""

    def __init__(self, width: int, settings: HeadSettings) -> None:
        channels = settings.channels
        super().__init__(settings, 2 * channels)
        self.maps = nn.Sequential(
            nn.Conv2d(width, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def read(self, encoded: Encoded) -> Tensor:
        maps = encoded.feature_map
        if maps is None:
            assert encoded.tokens is not None
            assert encoded.grid is not None
            maps = encoded.tokens.transpose(1, 2).unflatten(2, encoded.grid[1:])  # [B,D,H,W]
        return spatial_softmax(self.maps(maps))


class PooledHead(Head):
    """One hidden layer on the pooled features."""

    def __init__(self, width: int, settings: HeadSettings) -> None:
        super().__init__(settings, width)

    def read(self, encoded: Encoded) -> Tensor:
        return encoded.pooled


def build_head(trunk: Encoder, settings: HeadSettings) -> Head:
    """A new head for `trunk`; its `settings.kind` is never 'auto'.

    Raises:
        UserError: a spatial softmax on clips or sounds, or on a map of one place.
    """
    kind = settings.kind
    if kind == "auto":
        kind = "spatial_softmax" if isinstance(trunk, ConvEncoder) else "pooled"
    if kind == "spatial_softmax":
        spec = trunk.spec
        if not isinstance(spec, ImageSpec):
            raise UserError(f"A spatial softmax reads maps of images, and this encoder takes {spec.modality}.")
        cell = trunk.output_stride if isinstance(trunk, ConvEncoder) else spec.patch
        if spec.size <= cell:
            raise UserError(
                f"The map of pictures of {spec.size} pixels is a single place, of which a spatial softmax says nothing:"
                " raise --input.size, lower --encoder.output-stride, or choose --head.kind pooled."
            )
    settings = replace(settings, kind=kind)
    return SpatialSoftmaxHead(trunk.width, settings) if kind == "spatial_softmax" else PooledHead(trunk.width, settings)


class HeadedEncoder(Encoder):
    """A trunk and its head as one encoder: `pooled` is the embedding [B,out]."""

    pooling = "head"

    def __init__(self, trunk: Encoder, head: Head) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.spec, self.width = trunk.spec, head.settings.out

    def forward(self, view: Tensor, *, lengths: Tensor | None = None, hidden: bool = False) -> Encoded:
        encoded = self.trunk(view, lengths=lengths, hidden=hidden)
        return Encoded(pooled=self.head(encoded), hidden=encoded.hidden)

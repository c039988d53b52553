"""One embedding a place of every frame, for pointing and for carrying labels along (Vondrick et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.vit import ViT
from mmssl.errors import UserError
from mmssl.types import Encoded


@dataclass(frozen=True)
class DenseSettings:
    out: int = 64
    """Width of the embedding of a place."""
    hidden: int = 256
    """Width of the convolutions in between."""
    layers: int = 5
    """3-D convolutions between trunk and embedding; 0 for a linear map alone, each frame by itself (for a ViT)."""


class DenseHead(nn.Module):
    """Maps of a trunk [B,C,T,H,W] -> embeddings [B,out,T,H,W].

    Each layer looks around in its frame (1x3x3, dilated by 1, 2, 4, 8, ...), then at the frames before and after it
    (3x1x1), both with batch norm and ReLU; row and column in [-1,1] are two more channels of its input, so that an
    embedding can tell where it is. The paper says that five layers of 3-D convolution follow the trunk; kernels,
    dilation and where the coordinates come in are recalled from it and read as public re-implementations read it.
    """

    def __init__(self, channels: int, settings: DenseSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for number in range(settings.layers):
            width = channels + 2 if number == 0 else settings.hidden
            d = 2**number
            layers += [
                nn.Conv3d(width, settings.hidden, (1, 3, 3), padding=(0, d, d), dilation=(1, d, d), bias=False),
                nn.BatchNorm3d(settings.hidden),
                nn.ReLU(),
                nn.Conv3d(settings.hidden, settings.hidden, (3, 1, 1), padding=(1, 0, 0), bias=False),
                nn.BatchNorm3d(settings.hidden),
                nn.ReLU(),
            ]
            width = settings.hidden
        self.layers = nn.Sequential(*layers)
        self.project = nn.Conv3d(width, settings.out, 1)

    def forward(self, maps: Tensor) -> Tensor:
        if len(self.layers):
            maps = torch.cat([maps, coordinates(maps)], dim=1)
        embedded: Tensor = self.project(self.layers(maps))
        return embedded


class DenseEncoder(Encoder):
    """A trunk over single frames, then a head over the clip: clips [B,T,3,H,W] of any T, H and W (a ViT wants whole
    patches) -> `Encoded.feature_map` [B,out,T,h,w], one map a frame; `pooled` is its mean.

    Args:
        trunk: an encoder of images, a ResNet (its last map) or a ViT (its tokens on their grid).
        spec: of the clip; its picture is the trunk's.

    Raises:
        UserError: a trunk that takes no images, or settings that no head can have.
    """

    pooling = "mean"
    spec: VideoSpec

    def __init__(self, trunk: Encoder, spec: VideoSpec, settings: DenseSettings) -> None:
        super().__init__()
        if not isinstance(trunk, ConvEncoder | ViT) or not isinstance(trunk.spec, ImageSpec):
            raise UserError(
                f"The trunk of a DenseEncoder is a ResNet or a ViT that takes images, and this {type(trunk).__name__} "
                f"takes {trunk.spec.modality}."
            )
        if settings.layers < 0 or min(settings.out, settings.hidden) < 1:
            raise UserError(f"A head of {settings} cannot be: give widths of 1 or more, and 0 layers or more.")
        self.trunk = trunk
        self.spec = spec
        self.settings = settings
        self.width = settings.out
        self.stride = trunk.output_stride if isinstance(trunk, ConvEncoder) else trunk.spec.patch
        """Pixels from one place to the next."""
        self.head = DenseHead(trunk.width, settings)

    def forward(self, view: Tensor, *, lengths: Tensor | None = None, hidden: bool = False) -> Encoded:
        """`hidden` gives the trunk's states as maps [B,C,T,h,w], and the embedding as the last one."""
        states = [
            maps.unflatten(0, view.shape[:2]).transpose(1, 2) for maps in self.states(view.flatten(0, 1), hidden=hidden)
        ]
        embedded = self.head(states[-1])
        return Encoded(
            pooled=embedded.mean((2, 3, 4)), feature_map=embedded, hidden=(*states, embedded) if hidden else None
        )

    def still(self, frames: Tensor) -> Tensor:
        """Embeddings [B,out,h,w] of single frames [B,3,H,W]: the middle map of clips of spec.frames in which nothing
        moves, for which the trunk runs once."""
        maps = self.states(frames)[-1].unsqueeze(2).expand(-1, -1, self.spec.frames, -1, -1)
        middle: Tensor = self.head(maps)[:, :, self.spec.frames // 2]
        return middle

    def states(self, frames: Tensor, *, hidden: bool = False) -> list[Tensor]:
        """Maps [B,C,h,w] of frames [B,3,H,W]: the trunk's last one, or those of all its states up to it."""
        encoded = self.trunk(frames, hidden=hidden)
        if encoded.feature_map is not None:
            return list(encoded.hidden or [encoded.feature_map])
        assert encoded.tokens is not None
        assert encoded.grid is not None
        grid, cells = encoded.grid[1:], encoded.tokens.shape[1]
        states = [*(encoded.hidden or [])[:-1], encoded.tokens]  # the last block's, after the final norm
        return [tokens[:, -cells:].transpose(1, 2).unflatten(2, grid) for tokens in states]


def build_dense(
    spec: VideoSpec, trunk: EncoderSettings, settings: DenseSettings, init: str | None = None
) -> DenseEncoder:
    """A new DenseEncoder, or the checkpoint `init`, which then wins over the settings.

    Raises:
        UserError: `init` is another kind of encoder, or settings contradict each other.
    """
    if init is not None:
        encoder = Encoder.from_pretrained(init)
        if not isinstance(encoder, DenseEncoder):
            raise UserError(
                f"--init {init} is a {type(encoder).__name__}, and this recipe trains one embedding a place of every "
                "frame: name a checkpoint of such a recipe."
            )
        return encoder
    picture = ImageSpec(size=spec.size, patch=spec.patch, mean=spec.mean, std=spec.std, colour=spec.colour)
    return DenseEncoder(build_encoder(picture, trunk), spec, settings)


def coordinates(maps: Tensor) -> Tensor:
    """Row and column of every place of maps [B,C,T,H,W], from -1 to 1: [B,2,T,H,W]."""
    B, _, T, H, W = maps.shape
    row, column = (torch.linspace(-1, 1, size, device=maps.device, dtype=maps.dtype) for size in (H, W))
    place = torch.stack(torch.meshgrid(row, column, indexing="ij"))
    return place[None, :, None].expand(B, -1, T, -1, -1)

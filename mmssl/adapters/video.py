"""Clips [B,T,3,H,W] -> tokens of tubelets, patches some frames deep (Tong et al. 2022, VideoMAE, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.adapters.base import Adapter, Pixels
from mmssl.adapters.specs import VideoSpec


class VideoPixels(Pixels):
    """uint8 0..255 or float [0,1] clips [B,T,3,H,W] -> normalised fp32 [B,3,T,H,W]."""

    def __init__(self, spec: VideoSpec) -> None:
        super().__init__(spec.mean, spec.std, spec.colour)
        self.spec = spec

    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.shades(view).transpose(1, 2)


class VideoTubelets(Adapter):
    """Clips uint8 0..255 or float [0,1] [B,T,3,H,W] -> tokens on the grid (T/tubelet, H/patch, W/patch)."""

    def __init__(self, spec: VideoSpec, width: int) -> None:
        super().__init__()
        self.front = VideoPixels(spec)
        self.patch = self.stride = (spec.tubelet, spec.patch, spec.patch)
        self.projection = nn.Conv3d(self.front.channels, width, self.patch, self.patch)

    @property
    def grid(self) -> tuple[int, int, int]:
        side = self.spec.size // self.spec.patch
        return self.spec.frames // self.spec.tubelet, side, side

    @property
    def spec(self) -> VideoSpec:
        assert isinstance(self.front.spec, VideoSpec)
        return self.front.spec

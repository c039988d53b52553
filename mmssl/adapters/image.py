"""Pictures [B,3,H,W] -> tokens of square patches (Dosovitskiy et al. 2021, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.adapters.base import Adapter, Pixels
from mmssl.adapters.specs import ImageSpec


class ImagePixels(Pixels):
    """uint8 0..255 or float [0,1] images [B,3,H,W] -> normalised fp32 [B,3,1,H,W]."""

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__(spec.mean, spec.std, spec.colour)
        self.spec = spec

    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.shades(view).unsqueeze(2)


class ImagePatches(Adapter):
    """Images uint8 0..255 or float [0,1] [B,3,H,W] -> tokens on the grid (1, H/patch, W/patch)."""

    def __init__(self, spec: ImageSpec, width: int) -> None:
        super().__init__()
        self.front = ImagePixels(spec)
        self.patch = self.stride = (1, spec.patch, spec.patch)
        self.projection = nn.Conv2d(self.front.channels, width, spec.patch, spec.patch)

    @property
    def grid(self) -> tuple[int, int, int]:
        side = self.spec.size // self.spec.patch
        return 1, side, side

    @property
    def spec(self) -> ImageSpec:
        assert isinstance(self.front.spec, ImageSpec)
        return self.front.spec

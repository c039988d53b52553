"""Clips as one picture of many channels, for encoders that know no time (Fernando et al. 2017, arXiv:1611.06646)."""

from __future__ import annotations

from torch import Tensor, nn

from mmssl.adapters.base import Adapter, Pixels
from mmssl.adapters.specs import VideoSpec
from mmssl.errors import UserError


class StackedFrames(Pixels):
    """uint8 0..255 or float [0,1] clips [B,T,3,H,W] -> fp32 [B,C,1,H,W], as `spec.stack` says.

    'frames': all frames side by side, normalised, C = 3T. 'differences': each frame less the one before, over std,
    C = 3(T-1). 'sum': the sum of their absolute values, C = 3; absolute is our choice, as a sum of signed differences
    is the last frame less the first, whatever lies between.

    Raises:
        UserError: a spec that stacks nothing, or a single frame.
    """

    def __init__(self, spec: VideoSpec) -> None:
        if spec.stack not in ("frames", "differences", "sum"):
            raise UserError(f"There is no stack '{spec.stack}': choose 'frames', 'differences' or 'sum'.")
        if spec.frames < 2:
            raise UserError(f"A stack '{spec.stack}' of {spec.frames} frame shows no motion: give 2 or more frames.")
        pictures = {"frames": spec.frames, "differences": spec.frames - 1, "sum": 1}[spec.stack]
        mean = spec.mean if spec.stack == "frames" else (0.0,) * len(spec.mean)
        super().__init__(mean * pictures, spec.std * pictures)
        self.spec: VideoSpec = spec

    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        if view.shape[1] != self.spec.frames:
            raise UserError(f"A clip of {view.shape[1]} frames came where {self.spec.frames} are stacked: match them.")
        if self.spec.stack == "frames":
            return view.flatten(1, 2).unsqueeze(2)
        pixels = view.float() if view.is_floating_point() else view.float().div_(255)
        steps = pixels[:, 1:] - pixels[:, :-1]
        stacked = steps.flatten(1, 2) if self.spec.stack == "differences" else steps.abs().sum(1)
        return stacked.unsqueeze(2)

    def denormalise(self, pixels: Tensor) -> Tensor:
        """[B,3,P,H,W] in [0,1], one picture after another; no difference is grey."""
        values = pixels.float() * self.std.view(-1, 1, 1, 1) + self.mean.view(-1, 1, 1, 1)
        values = values if self.spec.stack == "frames" else (values + 1) / 2
        return values.squeeze(2).unflatten(1, (-1, len(self.spec.mean))).transpose(1, 2).clamp(0, 1)


class StackedPatches(Adapter):
    """Clips [B,T,3,H,W] -> tokens of square patches through all channels of their stack, grid (1, H/patch, W/patch)."""

    def __init__(self, spec: VideoSpec, width: int) -> None:
        super().__init__()
        self.front = StackedFrames(spec)
        self.patch = self.stride = (1, spec.patch, spec.patch)
        self.projection = nn.Conv2d(self.front.channels, width, spec.patch, spec.patch)

    @property
    def grid(self) -> tuple[int, int, int]:
        side = self.spec.size // self.spec.patch
        return 1, side, side

    @property
    def spec(self) -> VideoSpec:
        assert isinstance(self.front.spec, VideoSpec)
        return self.front.spec

"""What every adapter is: raw media -> normalised pixels -> patches -> tokens, without positions."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmssl.adapters.colour import lab_to_rgb, lightness
from mmssl.adapters.specs import Colour, Spec
from mmssl.errors import UserError
from mmssl.types import Tokens


class Front(nn.Module, ABC):
    """Raw media -> what the first layer of an encoder sees. Convolutional nets take it whole, adapters cut it up.

    Attributes:
        spec: what the view is (size, rate, mean and std).
        channels: C of the pixels.
    """

    spec: Spec
    channels: int

    @abstractmethod
    def raw(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        """A view of raw media as [B,C,T,H,W] of its own type, not normalised (spectrogram: log-mel values [B,1,1,F,T]).

        Args:
            lengths: int64 [B], real samples of each padded waveform; clips show their last frame again and need none.
        """

    @abstractmethod
    def normalise(self, raw: Tensor, channel: int) -> Tensor:
        """Any cut of raw media -> fp32 as the first layer sees it; `channel` is the dimension of its channels."""

    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised fp32 pixels [B,C,T,H,W] of a view of raw media (spectrogram: [B,1,1,F,T])."""
        return self.normalise(self.raw(view, lengths), 1)

    @abstractmethod
    def denormalise(self, pixels: Tensor) -> Tensor:
        """Pixels [B,C,T,H,W] as pictures show them: [0,1] for images and clips, log-mel values for spectrograms."""


class Adapter(nn.Module, ABC):
    """A view of raw media in, tokens without positions out.

    The projection has the shape and the name of a convolution, so that it maps one to one onto Hugging Face files, but
    patches go through one matrix product.

    Attributes:
        front: raw media -> pixels.
        patch, stride: (t,h,w) of a patch, and the distance of two patches.
        projection: convolution [D,C,(t),h,w].
    """

    front: Front
    patch: tuple[int, int, int]
    stride: tuple[int, int, int]
    projection: nn.Conv2d | nn.Conv3d

    @property
    def spec(self) -> Spec:
        return self.front.spec

    @property
    def width(self) -> int:
        return self.projection.out_channels

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int, int]:
        """(T,H,W) tokens of the nominal view."""

    @property
    def values(self) -> int:
        """K*C, the values of one patch."""
        t, h, w = self.patch
        return t * h * w * self.front.channels

    def pixels(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised fp32 pixels [B,C,T,H,W] of a view of raw media."""
        return self.front(view, lengths)

    def denormalise(self, pixels: Tensor) -> Tensor:
        return self.front.denormalise(pixels)

    def patches(self, pixels: Tensor) -> Tensor:
        """Patches [B,N,K,C] of pixels [B,C,T,H,W] in token order; inside a patch (t,h,w) row-major, channels last."""
        return rearrange(self._windows(pixels), "b T H W c t h w -> b (T H W) (t h w) c")

    def unpatches(self, patches: Tensor, grid: tuple[int, int, int] | None = None) -> Tensor:
        """Pixels [B,C,T,H,W] from patches [B,N,K,C] of `grid` (the nominal one if None); the inverse of `patches`."""
        if self.stride != self.patch:
            raise UserError(
                f"Patches of {self.patch} at a distance of {self.stride} overlap and cannot be put back together: "
                "set stride equal to patch."
            )
        (T, H, W), (t, h, w) = grid or self.grid, self.patch
        pattern = "b (T H W) (t h w) c -> b c (T t) (H h) (W w)"
        return rearrange(patches, pattern, T=T, H=H, W=W, t=t, h=h, w=w)

    def forward(self, view: Tensor, keep: Tensor | None = None, lengths: Tensor | None = None) -> Tokens:
        """Tokens of a view of raw media.

        Args:
            lengths: int64 [B], see `Front.raw`.
            keep: int64 [B,V]; if given, only these patches are projected, in this order, and x is [B,V,D]: where nine
                tenths of a clip are masked, nine tenths need no projection.

        Raises:
            UserError: the view is not a whole number of patches.
        """
        rows, grid = self._rows(view, keep, lengths)
        weight = self.projection.weight
        # Parameters may be bf16 (FSDP) while pixels are always fp32.
        x = F.linear(rows.flatten(2).to(weight.dtype), weight.flatten(1), self.projection.bias)
        return Tokens(x=x, grid=grid)

    def targets(self, view: Tensor, keep: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised fp32 patches [B,M,K,C] at the indices keep [B,M]: those of `patches(pixels(view))`."""
        return self._rows(view, keep, lengths)[0].transpose(2, 3)

    def _rows(self, view: Tensor, keep: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, tuple[int, int, int]]:
        """Normalised fp32 patches [B,N or V,C,K] and the grid. Picked, then normalised: uint8 is cheap to copy."""
        windows = self._windows(self.front.raw(view, lengths))
        B, T, H, W, C = windows.shape[:5]
        rows = windows.reshape(B, T * H * W, C, -1)
        if keep is not None:
            rows = rows[torch.arange(B, device=keep.device).unsqueeze(1), keep]
        return self.front.normalise(rows, 2), (T, H, W)

    def _windows(self, pixels: Tensor) -> Tensor:
        """A view of pixels [B,C,T,H,W] as [B,T,H,W,C,t,h,w] (grid first), without copying."""
        for name, size, patch, stride in zip(
            ("frames", "rows", "columns"), pixels.shape[2:], self.patch, self.stride, strict=True
        ):
            if size < patch or (stride == patch and size % patch):
                raise UserError(
                    f"A view of {' x '.join(map(str, pixels.shape[2:]))} (frames x rows x columns) has {size} {name}, "
                    f"which is not a multiple of the patch ({patch}): change the size of the view or of the patch."
                )
        (t, h, w), (st, sh, sw) = self.patch, self.stride
        windows = pixels.unfold(2, t, st).unfold(3, h, sh).unfold(4, w, sw)
        return windows.permute(0, 2, 3, 4, 1, 5, 6, 7)


class Pixels(Front):
    """uint8 0..255 or float [0,1] pictures -> (x - mean) / std, of their colours or of their lightness."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], colour: Colour = "rgb") -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0) <= 0:
            raise UserError(f"mean {mean} and std {std} need one value a channel each, and std must be above zero.")
        if colour not in ("rgb", "lightness"):
            raise UserError(f"There is no colour '{colour}': choose 'rgb' or 'lightness'.")
        self.channels = len(mean)
        self.colour = colour
        # One-dimensional, or `encoder.to(memory_format=torch.channels_last)` trips over them.
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def shades(self, view: Tensor) -> Tensor:
        """The channels that the encoder is shown: RGB as it is, or L / 100 (0..1) in each of them."""
        return view if self.colour == "rgb" else lightness(view).expand(*view.shape[:-3], self.channels, -1, -1)

    def normalise(self, raw: Tensor, channel: int) -> Tensor:
        scale, shift = 1 / self.std, -self.mean / self.std
        if raw.dtype == torch.uint8:
            scale = scale / 255
        shape = (-1, *[1] * (raw.ndim - channel - 1))
        kind = torch.promote_types(scale.dtype, torch.float32)  # fp32 at least, whatever the encoder was cast to
        pixels = raw.to(kind, copy=True)
        return pixels.mul_(scale.view(shape)).add_(shift.view(shape))  # in place: a fused broadcast is slower on CPU

    def denormalise(self, pixels: Tensor) -> Tensor:
        shades = (pixels.float() * self.std.view(-1, 1, 1, 1) + self.mean.view(-1, 1, 1, 1)).clamp(0, 1)
        if self.colour == "rgb":
            return shades
        L = 100 * shades.mean(1)
        return lab_to_rgb(torch.stack([L, torch.zeros_like(L), torch.zeros_like(L)], dim=-3)).transpose(1, 2)

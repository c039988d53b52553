"""CIE L*a*b* (1976, 2 degree observer) of sRGB pictures and back, on any device, in fp32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
"""Linear RGB to XYZ under D65 (IEC 61966-2-1:1999)."""
WHITE = tuple(sum(row) for row in TO_XYZ)
"""XYZ of RGB white, so that every grey has a = b = 0."""
EDGE = 6 / 29
"""CIE 15: below its cube the cube root gives way to a straight line."""


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """L (0..100), a and b (about -110..110) [...,3,H,W] of uint8 0..255 or float [0,1] pictures [...,3,H,W]."""
    xyz = _mix(_linear(rgb), TO_XYZ) / _column(WHITE, rgb)
    x, y, z = _bend(xyz).unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lightness(rgb: Tensor) -> Tensor:
    """L / 100 of pictures [...,3,H,W] as [...,1,H,W]: equal to that of `rgb_to_lab`, without the rest."""
    luminance = _mix(_linear(rgb), TO_XYZ[1:2]) / WHITE[1]
    return (116 * _bend(luminance) - 16) / 100


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Pictures float [0,1] [...,3,H,W] of L, a, b; what sRGB cannot show is clamped."""
    L, a, b = lab.unbind(-3)
    y = (L + 16) / 116
    bent = torch.stack([y + a / 500, y, y - b / 200], dim=-3)
    xyz = torch.where(bent > EDGE, bent**3, 3 * EDGE**2 * (bent - 4 / 29)) * _column(WHITE, lab)
    inverse = torch.linalg.inv(torch.tensor(TO_XYZ, dtype=torch.float64))
    linear = _mix(xyz, tuple(tuple(row) for row in inverse.tolist())).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def _linear(rgb: Tensor) -> Tensor:
    if rgb.dtype == torch.uint8:
        rgb = rgb.float() / 255
    rgb = rgb.to(torch.promote_types(rgb.dtype, torch.float32))
    return torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def _bend(xyz: Tensor) -> Tensor:
    # The cube root of what the line takes over is never looked at, but must be a number.
    return torch.where(xyz > EDGE**3, xyz.clamp(min=EDGE**3) ** (1 / 3), xyz / (3 * EDGE**2) + 4 / 29)


def _mix(x: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Channels mixed by sums, not by a matrix product: that would run in bf16 or TF32 where those are on."""
    channels = x.unbind(-3)
    rows = [sum(weight * channel for weight, channel in zip(row, channels, strict=True)) for row in matrix]
    return torch.stack(rows, dim=-3)  # type: ignore[arg-type]


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor(values, dtype=dtype, device=like.device).view(-1, 1, 1)

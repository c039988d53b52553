"""Position embeddings: the two fixed sin-cos tables of the masked autoencoders, the separable learned one, and
interpolation to other grids; 3-D rotary positions, which turn queries and keys instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import UserError

Grid = tuple[int, int, int]


def sincos_1d(count: int, width: int) -> Tensor:
    """Sine and cosine interleaved over the flat token number (Vaswani et al. 2017, section 3.5), as VideoMAE has them.

    Returns:
        fp32 [count, width]; computed in fp64.
    """
    _require(width, 2)
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(count, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).float()


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """MAE's fixed table over a grid (He et al. 2022, appendix A.1): [sin column | cos column | sin row | cos row].

    Columns come first, as in the released checkpoints.

    Returns:
        fp32 [height*width, dim], row-major; computed in fp64.
    """
    _require(dim, 4)
    rate = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    across, down = column.reshape(-1, 1) * rate, row.reshape(-1, 1) * rate
    return torch.cat([across.sin(), across.cos(), down.sin(), down.cos()], dim=1).float()


def join_separable(space: Tensor, time: Tensor) -> Tensor:
    """The table [1,T*H*W,D] of a clip's grid from one over its cells [1,H*W,D] and one over time [1,T,D]: their sum
    (MAE-ST, Feichtenhofer et al. 2022, arXiv:2205.09113)."""
    return (time.unsqueeze(2) + space.unsqueeze(1)).flatten(1, 2)


def split_separable(table: Tensor, times: int, atol: float = 1e-5) -> tuple[Tensor, Tensor] | None:
    """Space [1,H*W,D] and time [1,T,D] whose sum is `table` [1,T*H*W,D]; None where no such two exist.

    The two are known up to a constant that one of them gains and the other loses: the mean over time is 0 here.
    """
    cells = table.unflatten(1, (times, -1))
    space = cells.mean(1)
    time = (cells - space.unsqueeze(1)).mean(2)
    return (space, time) if torch.allclose(join_separable(space, time), table, rtol=0, atol=atol) else None


def interpolate(pos: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """Position embeddings [1,N,D] of `grid` for the grid `wanted`: bicubic over rows and columns, linear over time."""
    if grid == wanted:
        return pos
    (T, H, W), width = grid, pos.shape[2]
    table = pos.float().reshape(T, H, W, width).permute(0, 3, 1, 2)
    if wanted[1:] != (H, W):
        table = F.interpolate(table, size=wanted[1:], mode="bicubic", align_corners=False)
    if wanted[0] != T:
        lines = table.permute(2, 3, 1, 0).flatten(0, 1)
        lines = F.interpolate(lines, size=wanted[0], mode="linear", align_corners=False)
        table = lines.reshape(*wanted[1:], width, wanted[0]).permute(3, 2, 0, 1)
    return table.permute(0, 2, 3, 1).reshape(1, -1, width).to(pos.dtype)


def rope_3d(grid: Grid, channels: int, device: torch.device | None = None) -> Tensor:
    """Cosines and sines of V-JEPA 2's rotary positions (Assran et al. 2025, arXiv:2506.09985), as its released weights
    want them (transformers' VJEPA2Model).

    Three equal parts of the channels of a head turn by frame, row and column; what does not divide by six stays as it
    is. Channel i of a part of n has the rate 10000^(-2j/n) with j = i modulo n/2. So the two channels of a pair, (0,1),
    (2,3) and so on, have different rates and are not rotated in the strict sense.

    Args:
        channels: E of one head.

    Returns:
        fp32 [1,N,2,E], computed in fp64: cosines, then sines.
    """
    part = 2 * (channels // 3 // 2)
    if part == 0:
        raise UserError(f"3-D rotary positions need at least 6 channels a head, not {channels}: take fewer heads.")
    rate = (10000.0 ** (-2 * torch.arange(part // 2, dtype=torch.float64) / part)).repeat(2)
    places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in grid))  # [N,3]
    angle = F.pad((places.unsqueeze(2) * rate).flatten(1), (0, channels - 3 * part))
    return torch.stack([angle.cos(), angle.sin()], dim=1)[None].float().to(device)


def turn(x: Tensor, rope: Tensor) -> Tensor:
    """Queries or keys x [B,heads,N,E] turned by rope [1 or B,N,2,E], pair by pair: (a, b) -> (a cos - b sin, b cos + a
    sin), in fp32."""
    cos, sin = rope.unsqueeze(1).unbind(3)
    a, b = x.unflatten(3, (-1, 2)).unbind(4)
    return (x * cos + torch.stack([-b, a], dim=4).flatten(3) * sin).to(x.dtype)


def _require(width: int, multiple: int) -> None:
    if width % multiple:
        raise UserError(
            f"Sin-cos positions need a width that is a multiple of {multiple}, not {width}: change the width."
        )

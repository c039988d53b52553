"""Position embeddings: the two fixed sin-cos tables of the masked autoencoders, the separable learned one, and
interpolation to other grids."""

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
    (Feichtenhofer et al. 2022, MAE-ST, section 3.1)."""
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


def _require(width: int, multiple: int) -> None:
    if width % multiple:
        raise UserError(
            f"Sin-cos positions need a width that is a multiple of {multiple}, not {width}: change the width."
        )

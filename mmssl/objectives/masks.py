"""Masks over token grids: pure functions of uniform draws, with the same counts for every sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmssl.errors import UserError

Grid = tuple[int, int, int]
"""(T,H,W), flattened row-major."""


@dataclass(frozen=True)
class Mask:
    """A partition of the N tokens of each sample, as indices for gathering."""

    visible: Tensor
    """int64 [B,V]."""
    masked: Tensor
    """int64 [B,M], M = N - V."""

    def boolean(self) -> Tensor:
        """bool [B,N], True = masked."""
        batch, tokens = len(self.masked), self.visible.shape[1] + self.masked.shape[1]
        mask = torch.zeros(batch, tokens, dtype=torch.bool, device=self.masked.device)
        return mask.scatter(1, self.masked, True)


class MaskMaker(ABC):
    """Draws masks for a grid."""

    @abstractmethod
    def noise(self, grid: Grid) -> int:
        """k, the uniform draws that one sample needs."""

    @abstractmethod
    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        """The masks of B samples from `noise`, float [B,k] in [0,1). Raises UserError where the grid does not fit."""


@dataclass(frozen=True)
class RandomMask(MaskMaker):
    """Keep int(N * (1 - ratio)) tokens anywhere (MAE, He et al. 2021, section 3)."""

    ratio: float

    def noise(self, grid: Grid) -> int:
        return grid[0] * grid[1] * grid[2]

    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        tokens = grid[0] * grid[1] * grid[2]
        kept = _proper(int(tokens * (1 - self.ratio)), tokens, self.ratio)
        order = _order(noise)
        return Mask(visible=order[:, :kept], masked=order[:, kept:])


@dataclass(frozen=True)
class TubeMask(MaskMaker):
    """Mask the same int(ratio * H*W) cells at every time (VideoMAE, Tong et al. 2022, section 3.3)."""

    ratio: float

    def noise(self, grid: Grid) -> int:
        return grid[1] * grid[2]

    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        times, cells = grid[0], grid[1] * grid[2]
        hidden = _proper(int(self.ratio * cells), cells, self.ratio)
        order = _order(noise)  # [B,H*W]
        starts = torch.arange(times, device=noise.device).view(1, times, 1) * cells

        def tubes(chosen: Tensor) -> Tensor:  # [B,n] -> [B,T*n]
            return (starts + chosen.unsqueeze(1)).flatten(1)

        return Mask(visible=tubes(order[:, hidden:]), masked=tubes(order[:, :hidden]))


@dataclass(frozen=True)
class CoarseMask(MaskMaker):
    """Cut the grid into U units of `unit` = (t,h,w) tokens and mask ceil(ratio * U) of them (SimMIM, Xie et al. 2022:
    units of 32 pixels, that is (1,2,2) patches of 16)."""

    ratio: float
    unit: Grid

    def noise(self, grid: Grid) -> int:
        return math.prod(self._units(grid))

    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        units = self._units(grid)
        total = math.prod(units)
        hidden = _proper(math.ceil(total * self.ratio), total, self.ratio)
        mask = torch.zeros_like(noise, dtype=torch.bool).scatter(1, _order(noise)[:, :hidden], True).view(-1, *units)
        for dim, size in enumerate(self.unit, start=1):
            mask = mask.repeat_interleave(size, dim)
        return _partition(mask.flatten(1), (total - hidden) * math.prod(self.unit))

    def _units(self, grid: Grid) -> list[int]:
        if any(unit < 1 or size % unit for size, unit in zip(grid, self.unit, strict=True)):
            raise UserError(
                f"Mask units of {self.unit} tokens do not divide the grid {grid}: choose a unit that does, or another "
                f"size or patch."
            )
        return [size // unit for size, unit in zip(grid, self.unit, strict=True)]


@dataclass(frozen=True)
class TimeFrequencyMask(MaskMaker):
    """Mask whole time columns and whole frequency rows of a spectrogram's grid (1, F, T): a token stays visible where
    both its row and its column are kept, int(F * (1 - frequency_ratio)) rows and int(T * (1 - time_ratio)) columns
    (Audio-MAE, Huang et al. 2022, section 3, "time+frequency")."""

    time_ratio: float
    frequency_ratio: float

    def noise(self, grid: Grid) -> int:
        return grid[1] + grid[2]

    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        planes, rows, columns = grid
        if planes != 1:
            raise UserError(
                f"TimeFrequencyMask masks spectrograms (one plane), and the grid is {grid}: use TubeMask or RandomMask."
            )
        kept_rows = _kept(rows, self.frequency_ratio)
        kept_columns = _kept(columns, self.time_ratio)
        if kept_rows * kept_columns == rows * columns:
            raise UserError(
                f"TimeFrequencyMask({self.time_ratio}, {self.frequency_ratio}) masks nothing of {rows} x {columns} "
                f"patches: raise a ratio."
            )
        row_order, column_order = _order(noise[:, :rows]), _order(noise[:, rows:])
        row_hidden = torch.ones_like(row_order, dtype=torch.bool).scatter(1, row_order[:, :kept_rows], False)
        column_hidden = torch.ones_like(column_order, dtype=torch.bool).scatter(
            1, column_order[:, :kept_columns], False
        )
        hidden = (row_hidden.unsqueeze(2) | column_hidden.unsqueeze(1)).flatten(1)
        return _partition(hidden, kept_rows * kept_columns)


@dataclass(frozen=True)
class RunningCellMask(MaskMaker):
    """Which tokens the decoder skips: in each 2 x 2 cell, `ratio` of the tokens, the choice moving on by one at every
    time (VideoMAE V2, Wang et al. 2023, section 3.2). One draw picks the phase. `visible` are the tokens to decode,
    some of which the encoder saw: the loss gives those weight 0."""

    ratio: float = 0.5

    def noise(self, grid: Grid) -> int:
        return 1

    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        times, rows, columns = grid
        skipped = int(4 * self.ratio)
        if not 0 < skipped < 4:
            raise UserError(f"RunningCellMask takes a ratio of 0.25, 0.5 or 0.75, not {self.ratio}.")
        if rows % 2 or columns % 2:
            raise UserError(
                f"RunningCellMask needs an even number of rows and columns, and the grid is {grid}: change size or "
                f"patch."
            )
        device = noise.device
        corner = 2 * (torch.arange(rows, device=device).view(-1, 1) % 2) + torch.arange(columns, device=device) % 2
        phase = (noise[:, 0] * 4).long().clamp(max=3)
        turn = (torch.arange(times, device=device) + phase.unsqueeze(1)).view(-1, times, 1, 1)
        return _partition((((corner + turn) % 4) < skipped).flatten(1), times * rows * columns * (4 - skipped) // 4)


@dataclass(frozen=True)
class MultiBlockMask(MaskMaker):
    """Mask the cells under `blocks` rectangles at every time, each of `scale` of the frame (V-JEPA, Bardes et al. 2024,
    and V-JEPA 2: 8 blocks of 0.15 and 2 of 0.7, height / width from 0.75 to 1.5).

    The blocks overlap, so how many cells they leave differs from sample to sample. The released code then cuts visible
    and masked tokens of all samples to the smallest count in the batch, which depends on the batch and so on the number
    of processes. Here round(visible * H*W) cells stay visible in every sample, whatever the batch: of `DRAWS` layouts
    the one that leaves nearest to so many is taken, and the few cells in excess (with 16 x 16 cells 3 on average, or 1
    with two blocks) are hidden or shown at random. The blocks of a sample have one shape; in the released code, all
    samples of a batch do.
    """

    blocks: int
    scale: float
    visible: float
    """Share of the cells; 0.38 and 0.19 are what blocks of the two kinds leave on average (our measurement)."""
    aspect: tuple[float, float] = (0.75, 1.5)
    DRAWS: ClassVar[int] = 8

    def noise(self, grid: Grid) -> int:
        return self.DRAWS * (1 + 2 * self.blocks) + grid[1] * grid[2]

    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        times, rows, columns = grid
        cells = rows * columns
        kept = _proper(round(self.visible * cells), cells, 1 - self.visible)
        hidden = self._layouts(noise[:, :-cells].unflatten(1, (self.DRAWS, -1)), rows, columns)  # [B,L,H*W]
        excess = ((~hidden).sum(2) - kept).abs()
        best = excess.argmin(1)[:, None, None].expand(-1, 1, cells)
        chance = hidden.gather(1, best)[:, 0] + noise[:, -cells:]  # hidden cells come last, each part in random order
        order = torch.argsort(chance, dim=1, stable=True)  # [B,H*W]
        starts = torch.arange(times, device=noise.device).view(1, times, 1) * cells
        visible, masked = ((starts + part.unsqueeze(1)).flatten(1) for part in (order[:, :kept], order[:, kept:]))
        return Mask(visible=visible, masked=masked)

    def _layouts(self, draws: Tensor, rows: int, columns: int) -> Tensor:
        """bool [B,L,H*W], True = under a block, from draws [B,L,1+2*blocks]: aspect, then where each block lies."""
        area, (low, high) = int(self.scale * rows * columns), self.aspect
        if area < 1:
            raise UserError(f"Blocks of {self.scale} of {rows} x {columns} cells have no cell: raise the scale.")
        aspect = low + draws[..., :1] * (high - low)
        down, across = draws[..., 1:].chunk(2, dim=2)

        def inside(length: Tensor, places: Tensor, size: int) -> Tensor:  # [B,L,1], [B,L,n] -> bool [B,L,n,size]
            length = length.round().clamp(1, size)
            start = torch.minimum((places * (size - length + 1)).floor(), size - length).unsqueeze(3)
            here = torch.arange(size, device=draws.device)
            return (here >= start) & (here < start + length.unsqueeze(3))

        in_rows = inside((area * aspect).sqrt(), down, rows)
        in_columns = inside((area / aspect).sqrt(), across, columns)
        return (in_rows.unsqueeze(4) & in_columns.unsqueeze(3)).any(2).flatten(2)


def _order(noise: Tensor) -> Tensor:
    """Ranks of the draws; stable, so that equal draws give the same order on every device."""
    return torch.argsort(noise, dim=1, stable=True)


def _partition(hidden: Tensor, visible: int) -> Mask:
    """Split by a bool mask [B,N] that leaves exactly `visible` tokens of every sample, in ascending order."""
    order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
    return Mask(visible=order[:, :visible], masked=order[:, visible:])


def _kept(total: int, ratio: float) -> int:
    kept = int(total * (1 - ratio))
    if not 0 < kept <= total:
        raise UserError(
            f"A mask ratio of {ratio} leaves {kept} of {total} rows or columns: choose one in [0, 1) that leaves at "
            f"least one."
        )
    return kept


def _proper(part: int, total: int, ratio: float) -> int:
    if not 0 < part < total:
        raise UserError(
            f"A mask ratio of {ratio} splits {total} tokens into {part} and {total - part}: choose one that leaves "
            f"some of both."
        )
    return part

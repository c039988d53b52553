"""Block-wise masks as BEiT draws them, with the same count in every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.objectives.masks import Grid, Mask, MaskMaker


@dataclass(frozen=True)
class BlockMask(MaskMaker):
    """Rectangles one after the other until round(ratio * H*W) cells are masked, at every time of the grid (Bao et al.
    2022, BEiT, arXiv:2106.08254, algorithm 1, for pictures; that a block reaches through a whole clip is our choice).

    A block has between `smallest` cells and as many as are still missing, and a height / width between `aspect` and its
    inverse; both are uniform, the second on a logarithmic scale, as the official code has it. The paper stops once the
    share is passed, the code before, so that counts differ from sample to sample; here what the last block has in
    excess is left out, its lowest or highest rows first. Blocks are drawn `DRAWS` times; what is then still missing
    (nothing, in 20,000 masks of 14 x 14 cells at the defaults) is masked cell by cell at random.
    """

    ratio: float = 0.4
    smallest: int = 16
    """Cells of a block; all that are masked, where those are fewer."""
    aspect: float = 0.3
    DRAWS: ClassVar[int] = 24

    def noise(self, grid: Grid) -> int:
        return 4 * self.DRAWS + 1 + grid[1] * grid[2]

    def __call__(self, noise: Tensor, grid: Grid) -> Mask:
        times, rows, columns = grid
        cells = rows * columns
        count = round(self.ratio * cells)
        if not 0 < count < cells or not 0 < self.aspect <= 1 or self.smallest < 1:
            raise UserError(
                f"Blocks of {self.smallest} cells or more and an aspect from {self.aspect} cannot mask {self.ratio} of "
                f"{rows} x {columns} tokens, which are {count}: choose a ratio that leaves some of both, an aspect "
                "above 0 and up to 1, and a smallest block of 1 or more."
            )
        arrival = self._arrival(noise, rows, columns, count)  # [B,H*W], from 0
        place = torch.arange(cells, device=noise.device) / cells
        place = torch.where(noise[:, 4 * self.DRAWS, None] < 0.5, place, place.flip(0))
        order = torch.argsort(arrival + torch.where(arrival < self.DRAWS, place, noise[:, -cells:]), dim=1, stable=True)
        starts = torch.arange(times, device=noise.device).view(1, times, 1) * cells
        masked, visible = ((starts + part.unsqueeze(1)).flatten(1) for part in (order[:, :count], order[:, count:]))
        return Mask(visible=visible, masked=masked)

    def _arrival(self, noise: Tensor, rows: int, columns: int, count: int) -> Tensor:
        """Float [B,H*W]: number of the first block over each cell, `DRAWS` where there is none."""
        smallest = min(self.smallest, count)
        arrival = noise.new_full((len(noise), rows, columns), float(self.DRAWS))
        for number, draw in enumerate(noise[:, : 4 * self.DRAWS].split(4, dim=1)):
            size, shape, down, across = draw.split(1, dim=1)  # [B,1]
            missing = count - (arrival < self.DRAWS).sum((1, 2)).unsqueeze(1)
            area = smallest + size * (missing - smallest).clamp_min(0)
            aspect = torch.exp((2 * shape - 1) * -math.log(self.aspect))
            block = _inside((area * aspect).sqrt(), down, rows).unsqueeze(2)
            block = block & _inside((area / aspect).sqrt(), across, columns).unsqueeze(1)
            arrival = torch.where(block & (arrival == self.DRAWS), float(number), arrival)
        return arrival.flatten(1)


def _inside(length: Tensor, place: Tensor, size: int) -> Tensor:
    """bool [B,size]: cells of a line that an interval covers, of a length [B,1] and at a place in [0,1) of those that
    it can have."""
    length = length.round().clamp(1, size)
    start = torch.minimum((place * (size - length + 1)).floor(), size - length)
    here = torch.arange(size, device=length.device)
    return (here >= start) & (here < start + length)

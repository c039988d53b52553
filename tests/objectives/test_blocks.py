"""Block-wise masks: cell by cell what algorithm 1 of BEiT gives in plain Python on the same draws; exact counts;
blocks, not grains; the same at every time; and what cannot be drawn is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmssl.errors import UserError
from mmssl.objectives.blocks import BlockMask
from mmssl.objectives.masks import RandomMask


def draws(mask: BlockMask | RandomMask, grid: tuple[int, int, int], batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, mask.noise(grid), generator=torch.Generator().manual_seed(seed))


def algorithm_1(noise: np.ndarray, rows: int, columns: int, count: int, smallest: int = 16) -> np.ndarray:
    """Cell after cell, until `count` are masked."""
    mask = np.zeros((rows, columns), bool)
    for size, shape, down, across in noise[: 4 * BlockMask.DRAWS].reshape(-1, 4):
        missing = count - mask.sum()
        area = smallest + size * max(missing - smallest, 0)
        aspect = math.exp(math.log(0.3) + shape * (math.log(1 / 0.3) - math.log(0.3)))
        height = min(max(round(math.sqrt(area * aspect)), 1), rows)
        width = min(max(round(math.sqrt(area / aspect)), 1), columns)
        top, left = int(down * (rows - height + 1)), int(across * (columns - width + 1))
        block = [(row, column) for row in range(top, top + height) for column in range(left, left + width)]
        for cell in block if noise[4 * BlockMask.DRAWS] < 0.5 else reversed(block):
            if mask.sum() < count:
                mask[cell] = True
    return mask


def test_it_is_algorithm_1() -> None:
    mask = BlockMask()
    noise = draws(mask, (1, 14, 14), 50)
    found = mask(noise, (1, 14, 14)).boolean().view(-1, 14, 14).numpy()
    expected = np.stack([algorithm_1(row.astype(np.float64), 14, 14, 78) for row in noise.numpy()])
    # A float32 product may round a side to the other of two lengths, in a mask or two.
    assert (found == expected).all((1, 2)).mean() >= 0.96


@pytest.mark.parametrize("grid", [(1, 14, 14), (1, 8, 64), (8, 14, 14), (1, 4, 4)])
def test_counts_are_exact_and_times_equal(grid: tuple[int, int, int]) -> None:
    times, rows, columns = grid
    mask = BlockMask()
    made = mask(draws(mask, grid, 40), grid)
    found = made.boolean().view(-1, times, rows * columns)
    assert (found.sum(2) == round(0.4 * rows * columns)).all()
    assert (found == found[:, :1]).all()
    assert torch.equal(torch.cat([made.visible, made.masked], 1).sort(1).values[0], torch.arange(math.prod(grid)))


def test_masks_are_blocks_and_lie_everywhere() -> None:
    """Borders between masked and visible neighbours: far fewer than cells drawn one by one have."""
    grid = (1, 14, 14)
    blocks, grains = BlockMask(), RandomMask(0.398)
    borders = []
    for mask in (blocks, grains):
        cells = mask(draws(mask, grid, 1000), grid).boolean().view(-1, 14, 14)
        across = (cells[:, :, 1:] != cells[:, :, :-1]).sum((1, 2)) + (cells[:, 1:] != cells[:, :-1]).sum((1, 2))
        borders.append(across.float().mean().item())
        often = cells.float().mean(0)
        assert often.min() > 0.01, "corners seldom, but they are"
        assert often[:7].mean().item() == pytest.approx(often[7:].mean().item(), abs=0.03)
        assert often[:, :7].mean().item() == pytest.approx(often[:, 7:].mean().item(), abs=0.03)
    assert borders[0] < 0.35 * borders[1]


def test_hardly_any_mask_is_completed_by_grains() -> None:
    mask = BlockMask()
    arrival = mask._arrival(draws(mask, (1, 14, 14), 20_000), 14, 14, 78)
    assert ((arrival < mask.DRAWS).sum(1) >= 78).all()
    few = BlockMask(smallest=1)
    assert few(draws(few, (1, 14, 14), 100), (1, 14, 14)).masked.shape == (100, 78), "exact even so"


@pytest.mark.parametrize(
    ("mask", "said"),
    [(BlockMask(1.0), "leaves some"), (BlockMask(0.4, 0), "1 or more"), (BlockMask(aspect=0.0), "aspect above 0")],
)
def test_refusals(mask: BlockMask, said: str) -> None:
    with pytest.raises(UserError, match=said):
        mask(draws(mask, (1, 14, 14), 1), (1, 14, 14))

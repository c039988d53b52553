"""Masks: exact counts for every sample, a partition of the tokens, the structure that each paper states, and nothing
but the draws behind them. Counts are those of the papers (MAE: 49 of 196 visible; VideoMAE: 160 of 1568)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.errors import UserError
from mmssl.objectives.masks import CoarseMask, Grid, MaskMaker, RandomMask, RunningCellMask, TimeFrequencyMask, TubeMask

CASES: list[tuple[MaskMaker, Grid, int]] = [
    (RandomMask(0.75), (1, 14, 14), 49),
    (RandomMask(0.8), (1, 8, 64), 102),  # int(512 * 0.2): Audio-MAE
    (RandomMask(0.9), (8, 14, 14), 156),  # int(1568 * (1 - 0.9)): MAE-ST
    (TubeMask(0.9), (8, 14, 14), 160),  # int(0.9 * 196) = 176 masked at each of 8 times
    (TubeMask(0.75), (8, 14, 14), 392),
    (TimeFrequencyMask(0.5, 0.3), (1, 8, 64), 5 * 32),
    (CoarseMask(0.6, (1, 2, 2)), (1, 14, 14), 196 - 4 * 30),  # ceil(0.6 * 49) units of 32 pixels: SimMIM
    (CoarseMask(0.75, (8, 2, 2)), (8, 14, 14), 32 * (49 - 37)),
    (RunningCellMask(0.5), (8, 14, 14), 784),
    (RunningCellMask(0.25), (3, 4, 6), 54),
]


def draws(mask: MaskMaker, grid: Grid, batch: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, mask.noise(grid), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("mask", "grid", "visible"), CASES)
def test_every_sample_is_partitioned_with_the_stated_counts(mask: MaskMaker, grid: Grid, visible: int) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    made = mask(draws(mask, grid), grid)
    assert made.visible.shape == (16, visible)
    assert made.masked.shape == (16, tokens - visible)
    assert made.visible.dtype == made.masked.dtype == torch.int64
    both = torch.cat([made.visible, made.masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(tokens).expand(16, -1))
    boolean = made.boolean()
    assert boolean.gather(1, made.masked).all()
    assert not boolean.gather(1, made.visible).any()


@pytest.mark.parametrize(("mask", "grid", "visible"), CASES)
def test_masks_depend_on_the_draws_of_their_own_sample_only(mask: MaskMaker, grid: Grid, visible: int) -> None:
    noise = draws(mask, grid)
    whole, part = mask(noise, grid), mask(noise[5:7], grid)
    assert torch.equal(whole.visible[5:7], part.visible)
    assert torch.equal(whole.masked[5:7], part.masked)
    different = {tuple(row) for row in whole.boolean().tolist()}
    assert len(different) == (16 if not isinstance(mask, RunningCellMask) else 4)


def test_random_mask_hides_every_token_equally_often() -> None:
    share = RandomMask(0.75)(draws(RandomMask(0.75), (1, 4, 4), batch=4000), (1, 4, 4)).boolean().float().mean(0)
    assert (share - 0.75).abs().max() < 0.035  # five standard deviations of a mean over 4000


def test_tube_mask_is_constant_over_time() -> None:
    mask = TubeMask(0.9)(draws(TubeMask(0.9), (8, 14, 14)), (8, 14, 14)).boolean().view(16, 8, 196)
    assert (mask == mask[:, :1]).all()
    assert (mask[:, 0].sum(1) == 176).all()


def test_time_frequency_mask_hides_whole_rows_and_columns() -> None:
    maker = TimeFrequencyMask(0.5, 0.3)
    seen = ~maker(draws(maker, (1, 8, 64)), (1, 8, 64)).boolean().view(16, 8, 64)
    rows, columns = seen.any(2), seen.any(1)
    assert (rows.sum(1) == 5).all()
    assert (columns.sum(1) == 32).all()
    assert torch.equal(seen, rows[:, :, None] & columns[:, None, :])


def test_coarse_mask_hides_whole_units() -> None:
    maker = CoarseMask(0.6, (2, 4, 2))
    mask = maker(draws(maker, (4, 8, 12)), (4, 8, 12)).boolean().view(16, 2, 2, 2, 4, 6, 2)
    units = mask.permute(0, 1, 3, 5, 2, 4, 6).reshape(16, 24, 16)
    assert (units.all(2) == units.any(2)).all()
    assert (units.all(2).sum(1) == 15).all()  # ceil(0.6 * 24)


def running_cells_by_hand(times: int, rows: int, columns: int, phase: int) -> np.ndarray:
    """VideoMAE V2: a ring of four places, two masked, laid row by row into each 2 x 2 cell and turned every time."""
    ring = [True, True, False, False]
    mask = np.zeros((times, rows, columns), bool)
    for t in range(times):
        turned = ring[(phase + t) % 4 :] + ring[: (phase + t) % 4]
        cell = np.array(turned).reshape(2, 2)
        mask[t] = np.tile(cell, (rows // 2, columns // 2))
    return mask.reshape(-1)


def test_running_cells_are_the_four_phases_of_one_pattern() -> None:
    maker, grid = RunningCellMask(0.5), (5, 4, 6)
    made = maker(torch.tensor([[0.0], [0.25], [0.5], [0.9999999]]), grid).boolean().numpy()
    for phase in range(4):
        np.testing.assert_array_equal(made[phase], running_cells_by_hand(*grid, phase))
    covered = ~made.reshape(4, 5, 24)
    assert (covered[:, :4].sum(1) == 2).all(), "over four times every place is decoded twice"


def test_equal_draws_still_give_exact_counts() -> None:
    made = RandomMask(0.75)(torch.zeros(2, 16), (1, 4, 4))
    assert made.visible.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("mask", "grid"),
    [
        (RandomMask(1.0), (1, 4, 4)),
        (RandomMask(0.0), (1, 4, 4)),
        (TubeMask(0.01), (2, 4, 4)),
        (TimeFrequencyMask(0.5, 0.5), (2, 4, 4)),
        (TimeFrequencyMask(0.0, 0.0), (1, 4, 4)),
        (TimeFrequencyMask(1.0, 0.5), (1, 4, 4)),
        (CoarseMask(0.6, (1, 3, 3)), (1, 8, 8)),
        (CoarseMask(0.6, (1, 0, 2)), (1, 8, 8)),
        (CoarseMask(0.6, (1, 8, 8)), (1, 8, 8)),
        (RunningCellMask(0.1), (1, 4, 4)),
        (RunningCellMask(0.5), (1, 3, 4)),
    ],
)
def test_impossible_masks_are_refused_with_the_remedy(mask: MaskMaker, grid: Grid) -> None:
    with pytest.raises(UserError, match=r"choose|takes a ratio|needs an even|use TubeMask|raise a ratio"):
        mask(draws(mask, grid), grid)

"""Multi-block masks against a re-computation in plain Python: the hidden cells are those under the rectangles of the
best of eight layouts, at every time, but for the few that make the count exact; counts do not depend on the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmssl.errors import UserError
from mmssl.objectives.masks import Grid, MultiBlockMask

SMALL, LARGE = MultiBlockMask(8, 0.15, 0.38), MultiBlockMask(2, 0.7, 0.19)
CASES: list[tuple[MultiBlockMask, Grid, int]] = [
    (SMALL, (8, 16, 16), 97),  # round(0.38 * 256)
    (LARGE, (8, 16, 16), 49),
    (SMALL, (8, 14, 14), 74),
    (LARGE, (2, 4, 4), 3),
    (MultiBlockMask(4, 0.2, 0.5), (1, 6, 10), 30),
]


def draws(mask: MultiBlockMask, grid: Grid, batch: int = 16) -> torch.Tensor:
    return torch.rand(batch, mask.noise(grid), generator=torch.Generator().manual_seed(0))


def layouts_by_hand(mask: MultiBlockMask, noise: np.ndarray, rows: int, columns: int) -> list[np.ndarray]:
    """One bool [rows,columns] a layout, True = under a block."""
    found, n = [], mask.blocks
    for layout in range(8):
        own = noise[layout * (1 + 2 * n) : (layout + 1) * (1 + 2 * n)]
        area = int(mask.scale * rows * columns)
        aspect = mask.aspect[0] + own[0] * (mask.aspect[1] - mask.aspect[0])
        height = min(round(math.sqrt(area * aspect)), rows)
        width = min(round(math.sqrt(area / aspect)), columns)
        hidden = np.zeros((rows, columns), bool)
        for block in range(n):
            top = math.floor(own[1 + block] * (rows - height + 1))
            left = math.floor(own[1 + n + block] * (columns - width + 1))
            hidden[top : top + height, left : left + width] = True
        found.append(hidden)
    return found


@pytest.mark.parametrize(("mask", "grid", "kept"), CASES)
def test_blocks_and_counts(mask: MultiBlockMask, grid: Grid, kept: int) -> None:
    times, rows, columns = grid
    noise = draws(mask, grid)
    made = mask(noise, grid)
    assert made.visible.shape == (16, times * kept)
    assert made.masked.shape == (16, times * (rows * columns - kept))
    both = torch.cat([made.visible, made.masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(times * rows * columns).expand(16, -1))
    hidden = made.boolean().view(16, times, rows, columns).numpy()
    assert (hidden == hidden[:, :1]).all(), "blocks last the whole clip"
    for sample in range(16):
        layouts = layouts_by_hand(mask, noise[sample].double().numpy(), rows, columns)
        excess = [abs(int((~layout).sum()) - kept) for layout in layouts]
        # All that differs from the best layout is what makes the count exact.
        assert (hidden[sample, 0] != layouts[int(np.argmin(excess))]).sum() == min(excess)


def test_a_mask_depends_on_its_own_draws_only_and_differs_between_samples() -> None:
    noise = draws(SMALL, (8, 16, 16))
    whole, part = SMALL(noise, (8, 16, 16)), SMALL(noise[5:7], (8, 16, 16))
    assert torch.equal(whole.visible[5:7], part.visible)
    assert torch.equal(whole.masked[5:7], part.masked)
    assert len({tuple(row) for row in whole.boolean().tolist()}) == 16


def test_the_fixed_share_is_the_mean_of_what_blocks_leave() -> None:
    """Else most samples would be far from blocks: here few cells are changed."""
    for mask in (SMALL, LARGE):
        noise = draws(mask, (8, 16, 16), batch=300).numpy()
        free = [(~layout).mean() for own in noise for layout in layouts_by_hand(mask, own, 16, 16)]
        assert abs(float(np.mean(free)) - mask.visible) < 0.01
        best = [
            min(abs((~x).sum() - round(mask.visible * 256)) for x in layouts_by_hand(mask, o, 16, 16)) for o in noise
        ]
        assert np.mean(best) < 4


def test_extreme_draws_stay_inside() -> None:
    mask, grid = SMALL, (2, 5, 7)
    for value in (0.0, 1 - 2**-24):
        made = mask(torch.full((2, mask.noise(grid)), value), grid)
        assert made.visible.shape == (2, 2 * 13)


@pytest.mark.parametrize("mask", [MultiBlockMask(8, 0.01, 0.4), MultiBlockMask(8, 0.2, 0.0), MultiBlockMask(2, 0.5, 1)])
def test_impossible_masks_are_refused(mask: MultiBlockMask) -> None:
    with pytest.raises(UserError):
        mask(draws(mask, (2, 4, 4)), (2, 4, 4))

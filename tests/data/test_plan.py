"""Claims: an epoch is a permutation of the rows, fixed by the seed; processes see slices of the global batch; a step
number is all that resuming needs; sizes that cannot work are refused in a sentence with the number that would."""

import numpy as np
import pytest

from mmssl.data.plan import Draw, Plan
from mmssl.errors import UserError

ROWS = np.arange(100, 123)


def epoch(plan: Plan, number: int) -> list[int]:
    steps = range(number * plan.steps_per_epoch, (number + 1) * plan.steps_per_epoch)
    return [draw.row for step in steps for draw in plan.draws(step)]


def test_an_epoch_reads_every_row_at_most_once_and_drops_the_remainder():
    plan = Plan(ROWS, batch_size=5, seed=0)
    assert plan.steps_per_epoch == 4
    rows = epoch(plan, 0)
    assert len(rows) == 20 == len(set(rows))
    assert set(rows) <= set(ROWS.tolist())
    everything = {row for number in range(30) for row in epoch(plan, number)}
    assert everything == set(ROWS.tolist())  # other rows are dropped each time


def test_order_depends_on_seed_and_epoch_only():
    one, same, other = Plan(ROWS, 5, seed=3), Plan(ROWS, 5, seed=3), Plan(ROWS, 5, seed=4)
    backwards = [same.draws(step) for step in reversed(range(12))][::-1]
    assert [one.draws(step) for step in range(12)] == backwards
    assert epoch(one, 0) != epoch(one, 1)
    assert epoch(one, 0) != epoch(other, 0)
    assert {draw.epoch for draw in one.draws(11)} == {2}


def test_every_row_is_equally_likely_at_every_place():
    # chi-square over places x rows of many epochs; the 99.9 % quantile of 4 x 4 degrees of freedom is 39.3
    plan, epochs = Plan(np.arange(5), 5, seed=1), 2000
    counts = np.zeros((5, 5))
    for step in range(epochs):
        for place, draw in enumerate(plan.draws(step)):
            counts[place, draw.row] += 1
    assert ((counts - epochs / 5) ** 2 / (epochs / 5)).sum() < 39.3


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_take_contiguous_slices_of_the_global_batch(world):
    plan = Plan(ROWS, batch_size=12, seed=0, per_file=2)
    for step in range(5):
        parts = [plan.draws(step, rank, world) for rank in range(world)]
        assert {len(part) for part in parts} == {6 // world}
        assert [draw for part in parts for draw in part] == plan.draws(step)


def test_several_samples_a_file_need_fewer_files():
    plan = Plan(ROWS, batch_size=12, seed=0, per_file=4)
    assert plan.steps_per_epoch == 23 // 3
    assert len(plan.draws(0)) == 3
    assert all(isinstance(draw, Draw) for draw in plan.draws(0))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"batch_size": 24}, ["24", "23", "--batch-size"]),
        ({"batch_size": 50, "per_file": 2}, ["25", "46"]),
        ({"batch_size": 9, "per_file": 2}, ["9", "multiple of 2"]),
        ({"batch_size": 5, "seed": -1}, ["-1", "--seed"]),
        ({"batch_size": 5, "rows": np.arange(0)}, ["no usable file", "mmssl index"]),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(arguments, names):
    with pytest.raises(UserError) as error:
        Plan(**{"rows": ROWS, "seed": 0, **arguments})
    assert all(name in str(error.value) for name in names)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="multiple of 6"):
        Plan(ROWS, batch_size=8, seed=0, per_file=2).draws(0, world=3)

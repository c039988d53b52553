"""Claims: no file is on both sides of a split, the data's own splits win, and what cannot be evaluated is said."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.data.media import Record
from mmssl.errors import UserError
from mmssl.evaluation.labels import file_labels, footage_labels, held_out
from mmssl.evaluation.views import ArrowViews, SpeedViews, fitting_stride, speed_span
from tests.evaluation.standins import FolderSource


def source(*records: Record):
    return FolderSource(Path("nowhere"), list(records))


def files(label: str | None, count: int, split: str | None = None, frames: int | None = None, start: int = 0):
    return [
        Record(id=f"{label}/{split}/{i}", kind="image", label=label, split=split, frames=frames)
        for i in range(start, start + count)
    ]


def test_without_a_test_split_a_fifth_of_every_class_is_held_out():
    task = file_labels(source(*files("a", 50), *files("b", 10), *files("c", 1)), seed=0)
    assert task.counts["test"] == {"a": 10, "b": 2}
    assert task.counts["train"] == {"a": 40, "b": 8, "c": 1}
    assert not set(task.train) & set(task.test)
    assert "hash" in task.split
    assert any("never tested: c" in note for note in task.notes)


def test_a_seed_gives_one_split_and_new_files_move_none_of_the_old_ones_to_training_wholesale():
    names = [f"n{i}" for i in range(100)]
    strata = np.zeros(100)
    a, b, c = (held_out(names, strata, share=0.2, seed=seed) for seed in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()
    more = held_out([*names, *[f"m{i}" for i in range(10)]], np.zeros(110), share=0.2, seed=0)[:100]
    assert (a & more).sum() >= 0.8 * a.sum()


def test_own_splits_win_and_one_sided_classes_are_named():
    task = file_labels(
        source(*files("a", 5, "train"), *files("b", 5, "train"), *files("a", 2, "test"), *files("z", 2, "test")), seed=0
    )
    assert task.train.tolist() == list(range(10))
    assert task.test.tolist() == list(range(10, 14))
    assert any("never tested: b" in note for note in task.notes)
    assert any("always wrong: z" in note for note in task.notes)
    assert task.classes == ("a", "b", "z")


def test_a_validation_split_is_neither_trained_on_nor_tested_beside_a_test_split():
    task = file_labels(
        source(*files("a", 4, "train"), *files("b", 4, "train"), *files("a", 2, "validation"), *files("b", 2, "test")),
        0,
    )
    assert Counter([*task.train.tolist(), *task.test.tolist()]) == Counter([*range(8), 10, 11])


def test_unlabelled_files_are_left_out_and_counted():
    task = file_labels(source(*files("a", 5), *files("b", 5), *files(None, 7)), seed=0)
    assert max(*task.train, *task.test) < 10
    assert any("7 of 17 files carry no label" in note for note in task.notes)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (files(None, 9), "one folder a class.*metadata.csv"),
        (files("a", 9), "two or more classes"),
        ([*files("a", 9, "test"), *files("b", 9, "test")], "0 training and 18 test"),
    ],
)
def test_data_that_no_probe_can_use(records, words):
    with pytest.raises(UserError, match=words):
        file_labels(source(*records), seed=0)


def test_speed_uses_one_stride_that_most_files_are_long_enough_for():
    assert speed_span(frames=8, stride=2) == 7 * 8 + 1
    assert fitting_stride(np.array([57] * 8 + [10] * 2), 4, lambda stride: speed_span(8, stride)) == 2
    assert fitting_stride(np.array([57] * 7 + [10] * 3), 4, lambda stride: speed_span(8, stride)) == 0
    spec = VideoSpec(size=32, frames=8, stride=4, patch=16)
    task, views = footage_labels(source(*files(None, 18, frames=60), *files("x", 2, frames=20)), spec, "speed", seed=0)
    assert isinstance(views, SpeedViews)
    assert isinstance(views, SpeedViews)
    assert views.stride == 2
    assert task.classes == ("1x", "2x", "4x")
    assert len(task.train) + len(task.test) == 18
    assert any("2 of 20 files are too short" in note for note in task.notes)


def test_speed_is_refused_for_pictures_and_for_short_videos():
    with pytest.raises(UserError, match="takes image"):
        footage_labels(source(*files(None, 9, frames=1)), ImageSpec(), "speed", seed=0)
    with pytest.raises(UserError, match=r"at least 61 frames.*0 of 9"):
        footage_labels(source(*files(None, 9, frames=50)), VideoSpec(), "speed", seed=0)


def test_arrow_needs_one_clip_of_the_encoder_only():
    spec = VideoSpec(size=32, frames=8, stride=4, patch=16)
    task, views = footage_labels(source(*files(None, 18, frames=29), *files("x", 2, frames=28)), spec, "arrow", seed=0)
    assert isinstance(views, ArrowViews)
    assert isinstance(views, ArrowViews)
    assert views.stride == 4
    assert task.classes == ("forward", "reversed")
    assert len(task.train) + len(task.test) == 18
    with pytest.raises(UserError, match=r"--labels arrow .* at least 8 frames, .* fits, and 0 of 9"):
        footage_labels(source(*files(None, 9, frames=7)), spec, "arrow", seed=0)

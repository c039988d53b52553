"""Claims: batches are the same for any number of workers, processes, micro-batches and restarts; starting the loader
leaves the generator of dropout alone.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from mmssl.data.audio_views import AudioViews
from mmssl.data.loader import MediaDataset, make_loader
from mmssl.data.plan import Draw, Plan
from mmssl.data.sources import Source, open_source
from mmssl.data.views import ImageViews
from mmssl.errors import UserError
from mmssl.types import Batch
from tests.data.loading import NOISE, assert_equal, dataset, plan, tensors
from tests.media import make_audio, make_image_tree


def test_a_batch_is_typed_labelled_and_in_plan_order(source: Source) -> None:
    order = plan(source)
    batches = list(make_loader(dataset(source), order, start_step=0, stop_step=6))
    assert len(batches) == 6
    for step, batch in enumerate(batches):
        assert batch.index.tolist() == [draw.row for draw in order.draws(step)]
        views = {name: (view.dtype, tuple(view.shape)) for name, view in batch.views.items()}
        assert views == dict.fromkeys(("a", "b"), (torch.uint8, (4, 3, 16, 16)))
        classes = [["cat", "dog"].index(source.label(row) or "") for row in batch.index.tolist()]
        assert batch.targets["class"].dtype == torch.int64
        assert batch.targets["class"].tolist() == classes
        shapes = {name: tuple(noise.shape) for name, noise in batch.noise.items()}
        assert shapes == {"mask": (4, 5), "photometric/a": (4, 13)}
        assert all(
            noise.dtype == torch.float32 and 0 <= noise.min() < noise.max() < 1 for noise in batch.noise.values()
        )
        assert batch.skipped == ()


def test_noise_does_not_depend_on_the_order_it_is_listed_in(source: Source) -> None:
    one, other = (
        MediaDataset(source, ImageViews(16), 3, dict(items)) for items in (NOISE.items(), reversed(NOISE.items()))
    )
    draw = Draw(0, int(source.rows("train")[0]))
    for name in NOISE:
        assert torch.equal(one[draw].noise[0][name], other[draw].noise[0][name])


def test_samples_differ_by_seed_epoch_and_row(source: Source) -> None:
    rows = source.rows("train")
    draws = {(seed, epoch, int(row)) for seed in (0, 1) for epoch in (0, 1) for row in rows[:3]}
    noise = {
        dataset(source, seed=seed)[Draw(epoch, row)].noise[0]["mask"].numpy().tobytes() for seed, epoch, row in draws
    }
    assert len(noise) == len(draws)


def test_files_without_labels_are_class_minus_one(tmp_path: Path) -> None:
    make_image_tree(tmp_path / "data", classes=("cat",), each=2, size=24)
    mixed = open_source(tmp_path / "data", "image", out=tmp_path, workers=1, cache=tmp_path / "cache")

    class Half(type(mixed)):  # type: ignore[misc]
        def label(self, row: int) -> str | None:
            return None if row % 2 else "cat"

    mixed.__class__ = Half
    batch = dataset(mixed).batch([Draw(0, row) for row in range(3)])
    assert batch.targets["class"].tolist() == [0, -1, 0]


def test_lengths_of_padded_views_reach_the_batch(tmp_path: Path) -> None:
    for name, seconds in (("short", 0.1), ("long", 0.5)):
        make_audio(tmp_path / "data" / f"{name}.wav", seconds)
    sounds = open_source(tmp_path / "data", "audio", out=tmp_path, workers=1, cache=tmp_path / "cache")
    (batch,) = make_loader(
        MediaDataset(sounds, AudioViews(16000, 4000, names=("a", "b")), 0),
        Plan(sounds.rows(), 2, seed=0),
        start_step=0,
        stop_step=1,
    )
    expected = [{"short.wav": 1600, "long.wav": 4000}[sounds.id(row)] for row in batch.index.tolist()]
    assert batch.lengths["a"].tolist() == expected == batch.lengths["b"].tolist()
    assert batch.views["a"].shape == (2, 4000)
    assert "class" not in batch.targets


# ---------------------------------------------------------------- equivalence


@pytest.mark.parametrize("per_file", [1, 2])
def test_workers_processes_micro_batches_and_restarts_change_nothing(source: Source, per_file: int) -> None:
    """Seven steps of eight samples, over an epoch's end."""
    data = dataset(source, ImageViews(16, names=("a", "b"), per_file=per_file))
    order = plan(source, 8, per_file)
    alone = list(make_loader(data, order, start_step=0, stop_step=7))
    assert_equal(alone, list(make_loader(data, order, start_step=0, stop_step=7, workers=2)))
    assert_equal(alone, list(make_loader(data, order, start_step=0, stop_step=7, accumulate=2)))
    ranks = [make_loader(data, order, start_step=0, stop_step=7, rank=rank, world=2, workers=rank) for rank in range(2)]
    assert_equal(alone, [batch for step in zip(*ranks, strict=True) for batch in step])
    again = make_loader(data, order, start_step=3, stop_step=7, workers=1)
    assert_equal(alone[3:], list(again))


def test_micro_batches_of_a_step_lie_in_order_within_a_process(source: Source) -> None:
    order = plan(source, 8)
    batches = list(make_loader(dataset(source), order, start_step=1, stop_step=2, rank=1, world=2, accumulate=2))
    assert [batch.index.tolist() for batch in batches] == [
        [draw.row for draw in order.draws(1)[4:6]],
        [draw.row for draw in order.draws(1)[6:8]],
    ]


def test_the_generator_of_dropout_is_left_alone(source: Source) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = make_loader(dataset(source), plan(source), start_step=0, stop_step=2, workers=workers)
        assert len(list(loader)) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_leaving_early_ends_the_workers(source: Source) -> None:
    before = set(multiprocessing.active_children())
    loader = make_loader(dataset(source), plan(source), start_step=0, stop_step=4, workers=2)
    next(loader)
    assert len(set(multiprocessing.active_children()) - before) == 2
    loader.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= before


def test_what_does_not_divide_is_refused_at_once(source: Source) -> None:
    with pytest.raises(UserError, match="multiple of 6"):
        make_loader(dataset(source), plan(source, 4), start_step=0, stop_step=1, world=2, accumulate=3)
    with pytest.raises(ValueError, match="2 samples a file"):
        make_loader(dataset(source, ImageViews(8, per_file=2)), plan(source, 4), start_step=0, stop_step=1)


def test_a_batch_can_be_pinned(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's pinning thread calls Batch.pin_memory; every tensor must go through it, and nothing else change."""
    (batch,) = make_loader(dataset(source), plan(source), start_step=0, stop_step=1)
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    from torch.utils.data._utils.pin_memory import pin_memory

    other = pin_memory(batch)
    assert isinstance(other, Batch)
    assert_equal([batch], [other])
    assert len(pinned) == len(tensors(batch))

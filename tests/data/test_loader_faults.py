"""Claims: unreadable files are replaced from the plan's rows, reported, and bounded; a worker that dies or hangs ends
in one sentence that names the file and what to do, soon.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.data import loader as loader_module
from mmssl.data.loader import TRIES, MediaDataset, make_loader
from mmssl.data.media import Media
from mmssl.data.plan import Draw, Plan
from mmssl.data.sources import Source, open_source
from mmssl.data.views import ImageViews, Sample, Views
from mmssl.errors import UserError
from mmssl.types import Batch
from tests.data.loading import assert_equal, dataset, plan
from tests.media import make_image_tree


@dataclass(frozen=True)
class Faulty(Views):
    """Pictures, with something wrong on reading the files of some ids."""

    bad: frozenset[str]
    fault: str
    names: tuple[str, ...] = ("a", "b")
    per_file: int = 1

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        if media.name in self.bad:
            if self.fault == "raise":
                raise OSError(f"{media.name}: device lost")
            if self.fault == "hang":  # in native code, holding the interpreter's lock, as decord does
                re.match("(a+)+$", "a" * 60 + "b")
            if self.fault == "bug":
                raise TypeError("views are wrong")
            if self.fault == "memory":
                raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")
            os.kill(os.getpid(), getattr(signal, self.fault))
        return ImageViews(16, names=self.names)(media, rng)

    def centre(self) -> Views:
        return self


def ids(source: Source, rows: Any) -> frozenset[str]:
    return frozenset(source.id(int(row)) for row in rows)


def test_an_unreadable_file_is_replaced_from_the_plans_rows_and_reported(source: Source) -> None:
    train = source.rows("train")
    bad = train[:6]
    views = Faulty(ids(source, bad), "raise")
    runs = [
        list(make_loader(dataset(source, views), plan(source), start_step=0, stop_step=8, workers=workers))
        for workers in (0, 1)
    ]
    assert_equal(*runs)
    skipped = [skip for batch in runs[0] for skip in batch.skipped]
    assert skipped == [skip for batch in runs[1] for skip in batch.skipped]
    used = torch.cat([batch.index for batch in runs[0]]).tolist()
    assert set(used) <= set(train.tolist()) - set(bad.tolist())
    assert {row for row, _ in skipped} == set(bad.tolist())
    assert len(skipped) >= 12  # two epochs of six
    assert skipped[0][1] == f"{source.id(skipped[0][0])}: device lost"
    for batch in runs[0]:  # content and label belong to the row that was read
        labels = [source.label(row) for row in batch.index.tolist()]
        assert batch.targets["class"].tolist() == [["cat", "dog"].index(label or "") for label in labels]


def test_a_file_truncated_after_indexing_is_replaced(tmp_path: Path) -> None:
    make_image_tree(tmp_path / "data", each=4, size=24)
    files = open_source(tmp_path / "data", "image", out=tmp_path, workers=1, cache=tmp_path / "cache")
    victim = int(files.rows("train")[2])
    path = tmp_path / "data" / files.id(victim)
    path.write_bytes(path.read_bytes()[:100])
    order = Plan(files.rows("train"), 8, seed=0)
    (batch,) = make_loader(dataset(files), order, start_step=0, stop_step=1)
    ((row, reason),) = batch.skipped
    assert row == victim
    assert files.id(victim) in reason
    assert victim not in batch.index.tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_one_readable_file_ends_in_a_sentence(source: Source, workers: int) -> None:
    views = Faulty(ids(source, source.rows()), "raise")
    loader = make_loader(dataset(source, views), plan(source), start_step=0, stop_step=1, workers=workers)
    with pytest.raises(UserError) as error:
        next(loader)
    first = source.id(plan(source).draws(0)[0].row)
    assert f"{TRIES} file(s)" in str(error.value)
    assert f"{first} ({first}: device lost)" in str(error.value)
    assert "mmssl index" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_rows_nothing_is_replaced(source: Source) -> None:
    row = int(source.rows("train")[0])
    with pytest.raises(UserError, match=r"1 file\(s\)"):
        dataset(source, Faulty(ids(source, [row]), "raise"))[Draw(0, row)]


def test_a_mistake_in_views_is_no_bad_file(source: Source) -> None:
    views = Faulty(ids(source, source.rows()), "bug")
    with pytest.raises(TypeError, match="views are wrong"):
        next(make_loader(dataset(source, views), plan(source), start_step=0, stop_step=1, workers=1))


@pytest.mark.parametrize(
    ("fault", "remedy"), [("SIGKILL", "fewer --workers"), ("SIGBUS", "/dev/shm"), ("SIGSEGV", "out of the data")]
)
def test_a_dying_worker_ends_in_one_sentence(source: Source, fault: str, remedy: str) -> None:
    victim = plan(source).draws(2)[1].row
    views = Faulty(ids(source, [victim]), fault)
    loader = make_loader(dataset(source, views), plan(source), start_step=0, stop_step=4, workers=2)
    sentence, seconds = failure(loader)
    assert source.id(victim) in sentence
    assert fault in sentence
    assert remedy in sentence
    assert seconds < 60


def test_a_hanging_decoder_ends_in_one_sentence(source: Source) -> None:
    victim = plan(source).draws(1)[0].row
    views = Faulty(ids(source, [victim]), "hang")
    loader = make_loader(dataset(source, views), plan(source), start_step=0, stop_step=4, workers=1, timeout=3.0)
    before = set(multiprocessing.active_children())
    sentence, seconds = failure(loader)
    assert source.id(victim) in sentence
    assert "mmssl index" in sentence
    assert "--file-seconds (3)" in sentence
    assert seconds < 60
    assert set(multiprocessing.active_children()) <= before


def test_a_hang_before_a_finished_batch_is_fetched_ends_too(source: Source) -> None:
    """The memory of a finished batch comes from its worker, which does not answer while its decoder hangs."""
    victim = plan(source).draws(2)[0].row
    views = Faulty(ids(source, [victim]), "hang")
    loader = make_loader(
        dataset(source, views), plan(source), start_step=0, stop_step=4, workers=1, prefetch=4, timeout=2.0
    )
    sentence, seconds = failure(loader, step=1.0)  # the worker reads ahead, and hangs with finished batches on the way
    assert source.id(victim) in sentence
    assert seconds < 30


def test_a_worker_killed_with_batches_on_the_way_ends_in_one_sentence(source: Source) -> None:
    """As when memory runs out at any time: what it handed over and nobody fetched yet goes with it."""
    before = set(multiprocessing.active_children())
    loader = make_loader(dataset(source), plan(source), start_step=0, stop_step=4, workers=1, prefetch=4)
    next(loader)
    time.sleep(1.0)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    sentence, seconds = failure(loader)
    assert "SIGKILL while handing over a batch" in sentence
    assert "fewer --workers" in sentence
    assert seconds < 30


@dataclass
class Unsendable(MediaDataset):
    """Its batches cannot be pickled, so they are lost on the way, as when the system refuses memory for them."""

    def batch(self, draws: list[Draw]) -> Batch:
        lost: Any = ((0, lambda: None),)
        return replace(super().batch(draws), skipped=lost)


def test_a_batch_lost_on_the_way_ends_in_one_sentence(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "STALL", 1.0)
    data = Unsendable(source, ImageViews(16), 3)
    sentence, seconds = failure(make_loader(data, plan(source), start_step=0, stop_step=4, workers=1))
    assert "no batch for 1 s" in sentence
    assert "/dev/shm" in sentence
    assert seconds < 60


def test_refused_shared_memory_ends_in_one_sentence(source: Source) -> None:
    """PyTorch's own words for a full /dev/shm, raised in the worker."""
    views = Faulty(ids(source, source.rows()), "memory")
    sentence, _ = failure(make_loader(dataset(source, views), plan(source), start_step=0, stop_step=1, workers=1))
    assert "No space left on device (28)" in sentence
    assert "--shm-size" in sentence


def failure(loader: Iterator[Batch], step: float = 0.0) -> tuple[str, float]:
    """The sentence that the loader ends with, and seconds from the last batch to it; a step takes `step` seconds."""
    since = time.monotonic()

    def drain() -> None:
        nonlocal since
        for _ in loader:
            time.sleep(step)
            since = time.monotonic()

    with pytest.raises(UserError) as error:
        drain()
    assert "\n" not in str(error.value)
    return str(error.value), time.monotonic() - since


@dataclass(frozen=True)
class Slow(ImageViews):
    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        time.sleep(0.9)
        return super().__call__(media, rng)


def test_a_slow_batch_is_no_hang(source: Source) -> None:
    """The limit is for one file: eight of 0.9 s take longer than it together, and than one look at the workers."""
    slow = dataset(source, Slow(16, names=("a", "b")))
    batches = list(make_loader(slow, plan(source, 8), start_step=0, stop_step=1, workers=1, timeout=6.5))
    fast = replace(slow, views=ImageViews(16, names=("a", "b")))
    assert_equal(batches, list(make_loader(fast, plan(source, 8), start_step=0, stop_step=1)))

"""Plan, files and views become `Batch`es: in the order of the plan, whatever the number of workers.

Everything random about a sample comes from one generator seeded by (seed, epoch, row), so a batch is the same for any
number of workers or processes and after any restart. A file that cannot be read is replaced and reported; a decoder
that hangs or kills its worker ends in one sentence that names the file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from mmssl.data.guard import POLL, SHARED_MEMORY, Guard, end_with_parent, return_memory
from mmssl.data.media import UnreadableMedia
from mmssl.data.plan import Draw, Plan
from mmssl.data.sources import Source
from mmssl.data.views import Sample, Views
from mmssl.errors import UserError
from mmssl.types import Batch

TRIES = 10
"""Rows tried for one draw before the data is called broken."""
CANDIDATES = 100
"""Rows looked up in the index for one that is long enough to replace another."""
STALL = 120.0
"""Seconds without a batch and without a worker that reads, after which one is taken for lost; starting takes less."""


class Loaded(NamedTuple):
    """What one draw gave."""

    row: int
    """The row that was read: the planned one, or its replacement."""
    samples: list[Sample]
    noise: list[dict[str, Tensor]]
    """One dictionary a sample: name -> float32 [k]."""
    skipped: list[tuple[int, str]]


@dataclass
class MediaDataset:
    """Reads draws: rows of a source through views, with the noise that objective and device views asked for.

    Args:
        noise: draws a sample by name; they arrive in `Batch.noise[name]`.
        rows: where replacements of unreadable files are drawn from. `make_loader` fills in the rows of its plan, so
            that none comes from another split; with None nothing is replaced.
    """

    source: Source
    views: Views
    seed: int
    noise: dict[str, int] = field(default_factory=dict)
    rows: np.ndarray | None = None
    reading: np.ndarray | None = None
    """int64 [3] in a worker: its pid, the row that it reads (-1: none), and since when (monotonic ns)."""

    def __getitem__(self, draw: Draw) -> Loaded:
        """The samples of one file, then their noise, all from the generator of this draw.

        Raises:
            UserError: `TRIES` rows one after another cannot be read.
        """
        seeds = [self.seed, draw.epoch, draw.row]
        if draw.cut is not None and draw.cut.part:
            seeds.append(draw.cut.part)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seeds)))
        views = self.views if draw.cut is None else self.views.cut_to(draw.cut)
        row, skipped = draw.row, list[tuple[int, str]]()
        while True:
            try:
                samples = self._read(views, row, rng)
                return Loaded(row, samples, [self._noise(rng) for _ in samples], skipped)
            except (UnreadableMedia, OSError, ValueError) as error:
                skipped.append((row, str(error)))
            if self.rows is None or len(skipped) == TRIES:
                first, reason = skipped[0]
                raise UserError(
                    f"{len(skipped)} file(s) in a row could not be read, the first being {self.source.id(first)} "
                    f"({reason}): run `mmssl index` on the data to list the bad files, and mend or remove them."
                )
            if draw.cut is not None:
                views = self.views.cut_to(draw.cut._replace(part=0, parts=1))  # anywhere in another recording
            row = self._other(self.rows, views, rng)

    def _other(self, rows: np.ndarray, views: Views, rng: np.random.Generator) -> int:
        """A row that these views can cut, as far as the index knows."""
        for _ in range(CANDIDATES):
            row = int(rows[rng.integers(len(rows))])
            if views.fits(self.source.media(row).record):
                break
        return row

    def _read(self, views: Views, row: int, rng: np.random.Generator) -> list[Sample]:
        if self.reading is None:
            return views(self.source.media(row), rng)
        self.reading[1:] = row, time.monotonic_ns()
        try:
            return views(self.source.media(row), rng)
        finally:
            self.reading[1] = -1

    def _noise(self, rng: np.random.Generator) -> dict[str, Tensor]:
        # By sorted name: the draws must not depend on the order in which a recipe lists its parts.
        return {name: torch.from_numpy(rng.random(self.noise[name], dtype=np.float32)) for name in sorted(self.noise)}

    def batch(self, draws: list[Draw]) -> Batch:
        """The samples of `draws`, in order; those of one file lie side by side."""
        loaded = [self[draw] for draw in draws]
        samples = [sample for item in loaded for sample in item.samples]
        rows = [item.row for item in loaded for _ in item.samples]
        # default_collate, because in a worker it stacks straight into the memory that the trainer will map.
        targets = default_collate([sample.targets for sample in samples])
        if self._classes:
            targets["class"] = torch.tensor([self._classes.get(self.source.label(row) or "", -1) for row in rows])
        return Batch(
            views=default_collate([sample.views for sample in samples]),
            index=torch.tensor(rows),
            noise=default_collate([noise for item in loaded for noise in item.noise]),
            targets=targets,
            lengths=default_collate([sample.lengths for sample in samples]),
            skipped=tuple(skip for item in loaded for skip in item.skipped),
        )

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.source.labels())}


def make_loader(
    dataset: MediaDataset,
    plan: Plan,
    *,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    pin_memory: bool = False,
    timeout: float = 120.0,
) -> Iterator[Batch]:
    """The micro-batches of steps [start_step, stop_step) of the plan for process `rank` of `world`, `accumulate` a
    step.

    One iterator serves the whole run: workers live from the first step to the last and read ahead across epochs.

    Args:
        workers: processes that read; 0 reads in this process, where nothing can guard against a hanging decoder.
        prefetch: micro-batches that each worker reads ahead.
        timeout: seconds that a worker may take for one file.

    Raises:
        UserError: now, if the batch does not divide over processes and micro-batches; while iterating, if the data is
            broken, a file takes longer than `timeout`, or a worker dies.
    """
    if dataset.views.per_file != plan.per_file:
        raise ValueError(f"the views cut {dataset.views.per_file} samples a file and the plan counts {plan.per_file}")
    plan.micro_batches(start_step, rank, world, accumulate)  # refuses now what does not divide
    dataset = replace(dataset, rows=plan.rows)
    order = _Order(plan, start_step, stop_step, rank, world, accumulate)
    return _batches(dataset, order, workers, prefetch, pin_memory, timeout)


@dataclass
class _Order:
    """Draws of one micro-batch after another."""

    plan: Plan
    start: int
    stop: int
    rank: int
    world: int
    accumulate: int

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.start, self.stop):
            yield from self.plan.micro_batches(step, self.rank, self.world, self.accumulate)


@dataclass
class _MicroBatches(Dataset):
    """Micro-batches as the items of a data set, so that they are collated in the worker."""

    dataset: MediaDataset
    reading: Tensor
    """int64 [workers,3] in shared memory: pid, row being read (-1: none), and since when (monotonic ns)."""

    def __getitem__(self, draws: list[Draw]) -> Batch | str:
        try:
            return self.dataset.batch(draws)
        except UserError as error:
            return str(error)  # an exception would arrive with the worker's traceback in its message
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            return f"A loader worker could not hand over a batch ({str(error).splitlines()[0]}): {SHARED_MEMORY}."

    def start_worker(self, number: int) -> None:
        end_with_parent()
        return_memory()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler in Python would never run inside a hanging decoder
        torch.set_num_threads(1)
        self.dataset.reading = self.reading[number].numpy()
        self.dataset.reading[:] = os.getpid(), -1, 0


def _start_worker(number: int) -> None:
    dataset: Any = get_worker_info().dataset  # type: ignore[union-attr]
    dataset.start_worker(number)


def _same(item: Any) -> Any:
    return item


def _batches(
    dataset: MediaDataset, order: _Order, workers: int, prefetch: int, pin_memory: bool, timeout: float
) -> Iterator[Batch]:
    reading = torch.full((max(workers, 1), 3), -1, dtype=torch.int64).share_memory_()
    # Processes come from a fork server: decoders, CUDA and process groups hold threads in the trainer, which a fork
    # would leave locked. It imports this module once for all workers.
    context = multiprocessing.get_context("forkserver") if workers else None
    if context is not None:
        context.set_forkserver_preload([__name__])
    others = set(multiprocessing.active_children())
    loader = DataLoader(
        _MicroBatches(dataset, reading),
        batch_size=None,
        sampler=order,
        collate_fn=_same,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        timeout=POLL if workers else 0,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        # Its own, or starting the loader would take a draw from the generator of dropout and a resumed run would
        # differ.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    guard = Guard(processes, reading, dataset.source, timeout)
    if processes:
        guard.start()
    try:
        yield from _guarded(batches, guard)
    finally:
        guard.ended.set()


def _guarded(batches: Iterator[Batch | str], guard: Guard) -> Iterator[Batch]:
    """The batches; what happens to the workers becomes one sentence."""
    since = time.monotonic()
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            slow = str(error).startswith("DataLoader timed out")
            # A batch that a worker took with it into death is missed some moments before the death is known.
            sentence = guard.trouble(0.0 if slow or not guard.processes else POLL)
            if sentence is None and time.monotonic() - since > STALL and (guard.reading[:, 1] < 0).all():
                sentence = f"The loader workers have handed over no batch for {STALL:.0f} s: {SHARED_MEMORY}."
            if sentence is not None:
                guard.kill()
                for process in guard.processes:
                    process.join(POLL)
                raise UserError(sentence) from None
            if not slow:
                raise
            continue  # only slow; asking again is safe, nothing was taken from the queue
        if isinstance(item, str):
            raise UserError(item)
        yield item
        since = time.monotonic()

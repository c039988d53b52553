"""Evaluation samples of a data source, in the order of its rows, for features and for the monitor."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from mmssl.data.guard import end_with_parent
from mmssl.data.media import UnreadableMedia
from mmssl.errors import UserError

if TYPE_CHECKING:
    from mmssl.data.sources import Source
    from mmssl.data.views import Views

BAD_SHARE = 0.1
"""Above this share of unreadable files an evaluation stops: its figures would be about another data set."""

Item = TypeVar("Item")
Read = tuple[int, list[tuple[Tensor, int]] | str, list[int]]
"""(row, its views with their real lengths or why they cannot be read, the class that each view gives or -1)."""


@dataclass(frozen=True)
class Files(Dataset):
    """Some rows of a source through deterministic views, as a map-style data set for worker processes."""

    source: Source
    views: Views
    rows: np.ndarray
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Read:
        row = int(self.rows[position])
        try:
            # Seeded by the row alone, so that a file gives the same samples in every evaluation.
            samples = self.views(self.source.media(row), np.random.default_rng((self.seed, row)))
        except (UnreadableMedia, OSError, ValueError) as error:
            return row, str(error), []
        views = [(view, sample.lengths.get(name, -1)) for sample in samples for name, view in sample.views.items()]
        return row, views, [int(sample.targets.get("class", -1)) for sample in samples]


@dataclass(frozen=True)
class Chunk:
    """Samples of a few files on the CPU."""

    views: Tensor | None
    """Raw media [B,...], waveforms of several lengths followed by zeros; None when no file could be read."""
    lengths: Tensor | None
    """int64 [B]: real samples or frames of each view; None where views are never padded."""
    rows: np.ndarray
    """int64 [B]."""
    classes: np.ndarray
    """int64 [B]: the class that the view gives, -1 for none."""
    skipped: tuple[tuple[int, str], ...]
    """(row, reason) of files that cannot be read."""

    @staticmethod
    def collate(files: list[Read]) -> Chunk:
        views: list[Tensor] = []
        lengths: list[int] = []
        rows: list[int] = []
        classes: list[int] = []
        skipped = []
        for row, found, given in files:
            if isinstance(found, str):
                skipped.append((row, found))
                continue
            views += [view for view, _ in found]
            lengths += [length for _, length in found]
            classes += given
            rows += [row] * len(found)
        # Of waveforms as long as they are: zeros behind each up to the longest of the chunk.
        stacked = pad_sequence(views, batch_first=True) if views else None
        real = torch.tensor(lengths) if lengths and lengths[0] >= 0 else None
        return Chunk(stacked, real, np.array(rows, np.int64), np.array(classes, np.int64), tuple(skipped))


def read_views(files: Files, *, batch_size: int, workers: int, title: str | None = None) -> Iterator[Chunk]:
    """All samples of the files, about `batch_size` at a time; with a `title`, progress is shown on stderr.

    Raises:
        UserError: when a worker process dies.
    """
    many = max(1, batch_size // files.views.per_file)
    # From a fork server, as the training loader: a fork would inherit the locks of torch's and the decoders' threads.
    context = multiprocessing.get_context("forkserver") if workers else None
    if context is not None:
        context.set_forkserver_preload(["mmssl.data.loader", "mmssl.evaluation.views", __name__])
    loader = DataLoader(
        files,
        many,
        collate_fn=Chunk.collate,
        num_workers=workers,
        multiprocessing_context=context,
        worker_init_fn=end_with_parent,
    )
    try:
        yield from loader if title is None else show(loader, title, len(loader))
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"A process that decodes files died ({str(error).splitlines()[0]}): give --workers 0 to see the file that"
            " does it, or fewer workers if memory ran out."
        ) from error


def read_nearly_all(
    files: Files, skipped: list[tuple[int, str]], *, batch_size: int, workers: int, title: str
) -> Iterator[Chunk]:
    """As `read_views`, but only chunks with views; files that cannot be read go into `skipped`, as (row, reason).

    Raises:
        UserError: when they are too many.
    """
    for chunk in read_views(files, batch_size=batch_size, workers=workers, title=title):
        skipped += chunk.skipped
        if len(skipped) > max(1, BAD_SHARE * len(files)) or len(skipped) == len(files):
            raise UserError(
                f"{len(skipped)} of {len(files)} files could not be read, more than {BAD_SHARE:.0%}; the first:"
                f" {skipped[0][1]}. Run `mmssl index` on the folder to list them, and mend or remove them."
            )
        if chunk.views is not None:
            yield chunk


def show(items: Iterable[Item], title: str, total: int, interval: float = 30.0) -> Iterator[Item]:
    """Pass items through, with a bar on a terminal, else one line each `interval` seconds."""
    if sys.stderr.isatty():
        yield from track(items, title, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > interval:
            last = time.monotonic()
            print(f"{title}: {done}/{total} batches", file=sys.stderr, flush=True)

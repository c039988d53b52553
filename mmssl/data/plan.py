"""Which row goes into which global batch: the one place where the order of training is decided."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmssl.errors import UserError


class Cut(NamedTuple):
    """What the plan decides about a crop of a recording."""

    frames: int
    """Length, that of the whole micro-batch."""
    part: int = 0
    """Which of `parts` equal parts of a long recording the crop lies in."""
    parts: int = 1


class Draw(NamedTuple):
    """One reading of one row; with the run's seed it fixes every random choice made while the row is read."""

    epoch: int
    row: int
    cut: Cut | None = None
    """None: the views know how much they cut."""


class Plan:
    """Global batches in an order that depends only on (rows, seed): one permutation an epoch, the remainder dropped.

    Process r of `world` takes contiguous slice r of the global batch, so that `world` processes together see what one
    would, in the same order. Resuming is a step number: nothing has to be replayed.

    Args:
        rows: int [n], rows of the index to train on.
        batch_size: samples of one optimiser step, over all processes and micro-batches.
        per_file: samples cut from one decoded file; a global batch holds batch_size / per_file files.

    Raises:
        UserError: no rows, a negative seed, a batch larger than the data, or one that `per_file` does not divide.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, seed: int, per_file: int = 1) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.batch_size, self.seed, self.per_file = batch_size, seed, per_file
        if seed < 0:
            raise UserError(f"The seed {seed} is negative: give one from 0 on (--seed 0).")
        if len(self.rows) == 0:
            raise UserError("There is no usable file to train on: look at the problems that `mmssl index` lists.")
        if batch_size < 1 or batch_size % per_file:
            raise UserError(
                f"A batch of {batch_size} samples cannot be made of files that give {per_file} samples each: "
                f"set --batch-size to a multiple of {per_file}."
            )
        self.files_per_step = batch_size // per_file
        if self.files_per_step > len(self.rows):
            raise UserError(
                f"A batch of {batch_size} samples needs {self.files_per_step} files and the data has {len(self.rows)}: "
                f"set --batch-size to at most {len(self.rows) * per_file}, or add files."
            )
        self._order: tuple[int, np.ndarray] = (-1, self.rows)

    shapes = 1
    """Different shapes that a micro-batch can have."""

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows) // self.files_per_step

    def draws(self, step: int, rank: int = 0, world: int = 1) -> list[Draw]:
        """The files that process `rank` of `world` reads in optimiser step `step` (from 0), in order.

        Raises:
            UserError: `world` does not divide the files of a step.
        """
        if self.files_per_step % world:
            raise UserError(
                f"A batch of {self.batch_size} samples ({self.files_per_step} files) does not divide over {world} "
                f"processes: set --batch-size to a multiple of {self.per_file * world}."
            )
        epoch, within = divmod(step, self.steps_per_epoch)
        share = self.files_per_step // world
        first = within * self.files_per_step + rank * share
        return [Draw(epoch, int(row)) for row in self._epoch(epoch)[first : first + share]]

    def micro_batches(self, step: int, rank: int = 0, world: int = 1, accumulate: int = 1) -> list[list[Draw]]:
        """What `draws` gives, in `accumulate` equal parts.

        Raises:
            UserError: the files of a step do not divide over processes and micro-batches.
        """
        parts = world * accumulate
        if self.files_per_step % parts:
            raise UserError(
                f"A batch of {self.batch_size} samples ({self.files_per_step} files) does not divide over {world} "
                f"processes and {accumulate} micro-batches: set --batch-size to a multiple of {self.per_file * parts}."
            )
        draws, size = self.draws(step, rank, world), self.files_per_step // parts
        return [draws[first : first + size] for first in range(0, len(draws), size)]

    def first(self, files: int) -> list[Draw]:
        """Up to `files` draws of the first step that fit into one batch."""
        return self.draws(0)[:files]

    def notes(self) -> list[str]:
        """What a user should know of the batches, in sentences."""
        return []

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            # The spawn key keeps this stream apart from those of samples, SeedSequence([seed, epoch, row]):
            # without it the stream of an epoch would equal that of its row 0.
            seeds = np.random.SeedSequence([self.seed, epoch], spawn_key=(0,))
            self._order = (epoch, np.random.Generator(np.random.PCG64(seeds)).permutation(self.rows))
        return self._order[1]

"""Batches of recordings of nearly the same length, limited by seconds of audio: what HuBERT and WavLM are trained on.

Lengths come from the index, so the whole order of training is known before anything is read. Recordings are put into
buckets by length. Every micro-batch comes from one bucket and has that bucket's shape, (recordings, samples), so a run
sees as many shapes as there are buckets, all processes have equal work in every step, and no batch passes the limit.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mmssl.data.crops_audio import AudioCrops, frames_of, samples_of
from mmssl.data.edges import bucket_edges, split_common
from mmssl.data.plan import Cut, Draw, Plan
from mmssl.data.sources import LocalSource, Source
from mmssl.errors import UserError

ORDER, OFFSETS, RECORDINGS = 1, 2, 3
"""Spawn keys of three random streams (0 is that of Plan)."""


class Bucket(NamedTuple):
    """Crops of one length; a recording longer than the longest crop gives several."""

    frames: int
    """Of every crop."""
    files: int
    """Recordings of a micro-batch, over all processes."""
    row: np.ndarray
    """int64 [m]"""
    part: np.ndarray
    """int64 [m]: which part of the recording,"""
    parts: np.ndarray
    """int64 [m]: of how many."""


class BucketPlan(Plan):
    """Micro-batches by length, in an order that depends only on (rows, lengths, seed) and the settings below.

    Each bucket is an endless stream of permutations of its crops, cut into micro-batches of a fixed number: nothing is
    dropped or filled up, and each (epoch, row, part) is drawn once. Every pass over the data shuffles the micro-batches
    of all buckets. One step takes `accumulate` micro-batches, and each is shared out over the processes: process r of
    `world` takes share r, and shares differ by one recording at most.

    Args:
        rows: int [n], rows of the index.
        samples: int [n], length of each recording at the rate of `views`.
        views: tell the shortest and the longest crop, hop and window, and whether the recordings of a bucket are
            cropped to its shortest (short='skip', as HuBERT) or padded to its longest (short='pad').
        batch_seconds: seconds of audio of one optimiser step at most, over all processes and micro-batches, padding
            included.
        buckets: lengths at most; each bucket holds the recordings of one micro-batch at least.

    Raises:
        UserError: a negative seed, no recording that is long enough, or a `batch_seconds` that is too small for one
            recording a micro-batch, or larger than the data.
    """

    def __init__(
        self,
        rows: np.ndarray,
        samples: np.ndarray,
        views: AudioCrops,
        *,
        seed: int,
        batch_seconds: float,
        accumulate: int = 1,
        buckets: int = 16,
    ) -> None:
        rows, samples = np.asarray(rows, np.int64), np.asarray(samples, np.int64)
        self.views, self.seed, self.accumulate, self.per_file = views, seed, accumulate, 1
        self.batch_seconds = batch_seconds
        if seed < 0:
            raise UserError(f"The seed {seed} is negative: give one from 0 on (--seed 0).")
        enough = samples >= max(views.min_seconds * views.rate, views.window)
        if not enough.any():
            raise UserError(
                f"No usable recording is at least {views.min_seconds:g} s long: lower --min-seconds, or look at the "
                "problems that `mmssl index` lists."
            )
        self.rows = rows[enough]
        self._heard = int(samples[enough].sum())
        self._short = (int((~enough).sum()), len(rows))
        self._unlabelled = (0, len(rows))
        self.buckets = self._fill(np.array([self._frames(count) for count in samples[enough].tolist()]), buckets)
        sizes = [(len(bucket.row), bucket.files) for bucket in self.buckets]
        self._crops, self._files = (np.array(column, np.int64) for column in zip(*sizes, strict=True))
        # Where each bucket's first micro-batch ends would else be the same for all: late in the first pass.
        self._offsets = self._random(OFFSETS).integers(self._files)
        self._passes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._permutations: dict[int, dict[int, np.ndarray]] = {number: {} for number in range(len(self.buckets))}

    @classmethod
    def of(cls, source: Source, rows: np.ndarray, views: AudioCrops, **settings: float) -> BucketPlan:
        """The plan for rows of an indexed folder; where the views cut units, for those that have some.

        Raises:
            UserError: rows of the Hub, whose lengths are not known, or units of none of the recordings.
        """
        if not isinstance(source, LocalSource):
            raise UserError(
                "Batches by seconds of audio need the length of every recording, and rows of a Hub data set have none: "
                "save the recordings as files in a folder."
            )
        units, of = views.units, len(rows)
        if units is not None:
            labelled = np.array([source.id(row) in units for row in rows.tolist()], bool)
            if of and not labelled.any():
                raise UserError(
                    f"None of the {of} recordings has units ({source.id(int(rows[0]))}, ...): make units of the data "
                    "that you train on, and name their folder by --units."
                )
            rows = rows[labelled]
        table = source.index.table.select(["frames", "rate"]).take(rows)
        frames, rate = (table[name].to_numpy().astype(np.float64) for name in ("frames", "rate"))
        plan = cls(rows, np.ceil(frames * views.rate / rate), views, **settings)  # type: ignore[arg-type]
        plan._unlabelled = (of - len(rows), of)
        return plan

    @property
    def steps_per_epoch(self) -> float:  # type: ignore[override]
        """Optimiser steps of one pass over all crops; need not be whole."""
        return float((self._crops / self._files).sum() / self.accumulate)

    @property
    def files_per_step(self) -> float:  # type: ignore[override]
        """On average."""
        return float(self._crops.sum()) / self.steps_per_epoch

    def micro_batches(
        self, step: int, rank: int = 0, world: int = 1, accumulate: int | None = None
    ) -> list[list[Draw]]:
        """The micro-batches of process `rank`; with more of them than the plan was made for, parts of its own.

        Raises:
            UserError: a micro-batch has fewer recordings than it is shared out to.
        """
        each = self._check(world, accumulate)
        found = []
        for number in range(step * self.accumulate, (step + 1) * self.accumulate):
            draws = self._micro_batch(number)
            cuts = [len(draws) * share // (world * each) for share in range(rank * each, (rank + 1) * each + 1)]
            found += [draws[first:last] for first, last in pairwise(cuts)]
        return found

    def draws(self, step: int, rank: int = 0, world: int = 1) -> list[Draw]:
        return [draw for draws in self.micro_batches(step, rank, world) for draw in draws]

    def first(self, files: int) -> list[Draw]:
        return self._micro_batch(0)[:files]

    @property
    def shapes(self) -> int:  # type: ignore[override]
        """Of lengths, and of shares that differ by one recording."""
        return 2 * len(self.buckets)

    def seconds(self, step: int) -> float:
        """Seconds of audio of a step over all processes, padding included."""
        numbers = range(step * self.accumulate, (step + 1) * self.accumulate)
        sizes = [self._seconds(self.buckets[self._place(number)[0]]) for number in numbers]
        return sum(sizes)

    def notes(self) -> list[str]:
        """What a user should know of the buckets, in sentences."""
        short, of = self._short
        views = self.views
        shapes = [bucket.frames for bucket in self.buckets]
        length = [samples_of(frames, views.hop, views.window) for frames in shapes]
        planned = sum(len(bucket.row) * size for bucket, size in zip(self.buckets, length, strict=True))
        share = planned / self._heard
        told = "of the audio is heard a pass" if views.short == "skip" else "of the audio is computed a pass (padding)"
        notes = [
            f"{len(shapes)} bucket(s) of {min(length) / views.rate:.2f} to {max(length) / views.rate:.2f} s: "
            f"{share:.1%} {told}."
        ]
        if short:
            notes.append(f"{short} of {of} recordings are shorter than --min-seconds {views.min_seconds:g}: left out.")
        missing, of = self._unlabelled
        if missing:
            notes.append(f"{missing} of {of} recordings have no units (see skipped.jsonl beside the units): left out.")
        return notes

    # ----------------------------------------------------------------------------------------------------- the buckets

    def _frames(self, samples: int) -> int:
        return frames_of(samples, self.views.hop, self.views.window)

    def _seconds(self, bucket: Bucket) -> float:
        return bucket.files * samples_of(bucket.frames, self.views.hop, self.views.window) / self.views.rate

    def _fit(self, frames: np.ndarray) -> np.ndarray:
        """How many crops of `frames` frames the limit allows in a micro-batch, to four binary digits: less than 1/8 is
        given away, and larger batches divide evenly over 2, 4, 8, ... processes."""
        samples = (frames - 1) * self.views.hop + self.views.window
        count = (self.batch_seconds * self.views.rate / self.accumulate / samples).astype(np.int64)
        digits = np.maximum(np.floor(np.log2(np.maximum(count, 1))).astype(np.int64) - 3, 0)
        return count >> digits << digits

    def _fill(self, frames: np.ndarray, most: int) -> list[Bucket]:
        """Crops of all recordings, sorted into buckets."""
        longest = self.views.max_frames
        parts = np.maximum(frames // longest, 1)
        recording = np.repeat(np.arange(len(frames)), parts)
        part = np.arange(len(recording)) - np.repeat(np.cumsum(parts) - parts, parts)
        frames = np.minimum(frames, longest)[recording]
        order = np.argsort(frames, kind="stable")
        lengths, counts = split_common(
            *np.unique(frames, return_counts=True), self._fit(frames.min(keepdims=True))[0], most
        )
        if self._fit(lengths[-1:])[0] < 1:
            raise UserError(
                f"--batch-seconds {self.batch_seconds:g} over {self.accumulate} micro-batch(es) is less than one crop: "
                f"raise it, or lower --max-seconds ({self.views.max_seconds:g})."
            )
        pad = self.views.short == "pad"
        edges = bucket_edges(lengths, counts, self._fit(lengths), most, pad)
        if edges is None:
            raise UserError(
                f"--batch-seconds {self.batch_seconds:g} over {self.accumulate} micro-batch(es) is more than the data "
                f"has ({self._heard / self.views.rate:.3g} s in {len(frames)} crops): lower it, or add recordings."
            )
        found, before = [], np.concatenate([[0], np.cumsum(counts)])
        for first, last in pairwise(edges):
            size = lengths[last - 1] if pad else lengths[first]
            inside = order[before[first] : before[last]]
            own = recording[inside]
            files = int(self._fit(np.array([size]))[0])
            found.append(Bucket(int(size), files, self.rows[own], part[inside], parts[own]))
        return found

    # ------------------------------------------------------------------------------------------------------- the order

    def _check(self, world: int, accumulate: int | None) -> int:
        """Shares of one micro-batch that each process takes, one after the other."""
        each, left = divmod(self.accumulate if accumulate is None else accumulate, self.accumulate)
        if left or each < 1:
            raise ValueError(f"the plan is made for {self.accumulate} micro-batches a step, not {accumulate}")
        least = int(self._files.min())
        if least < world * each:
            raise UserError(
                f"--batch-seconds {self.batch_seconds:g} gives micro-batches of {least} recording(s), too few for "
                f"{world * each} processes: raise it, or lower --max-seconds ({self.views.max_seconds:g})."
            )
        return each

    def _micro_batch(self, number: int) -> list[Draw]:
        """Micro-batch `number` of the run."""
        which, turn = self._place(number)
        bucket = self.buckets[which]
        places = np.arange(turn * bucket.files, (turn + 1) * bucket.files)
        epochs, within = np.divmod(places, len(bucket.row))
        draws = []
        for epoch, place in zip(epochs.tolist(), within.tolist(), strict=True):
            crop = self._permutation(which, epoch)[place]
            cut = Cut(bucket.frames, int(bucket.part[crop]), int(bucket.parts[crop]))
            draws.append(Draw(epoch, int(bucket.row[crop]), cut))
        return draws

    def _place(self, number: int) -> tuple[int, int]:
        """Bucket of micro-batch `number`, and how many of that bucket came before."""
        low, high = 0, 1
        while self._before(high).sum() <= number:
            low, high = high, 2 * high
        while high - low > 1:  # the pass in which the number lies
            middle = (low + high) // 2
            low, high = (low, middle) if self._before(middle).sum() > number else (middle, high)
        if low not in self._passes:
            before = self._before(low)
            counts = self._before(low + 1) - before
            order = self._random(ORDER, low).permutation(np.repeat(np.arange(len(counts)), counts))
            turns = np.zeros(len(order), np.int64)
            for which in range(len(counts)):
                turns[order == which] = before[which] + np.arange(counts[which])
            self._passes = {**dict(list(self._passes.items())[-1:]), low: (order, turns)}  # the loader reads ahead
        order, turns = self._passes[low]
        place = number - int(self._before(low).sum())
        return int(order[place]), int(turns[place])

    def _before(self, epoch: int) -> np.ndarray:
        """int64 [buckets]: micro-batches of each bucket in the passes before `epoch`."""
        return (epoch * self._crops + self._offsets) // self._files

    def _permutation(self, which: int, epoch: int) -> np.ndarray:
        known = self._permutations[which]
        if epoch not in known:
            if len(known) > 1:  # a micro-batch may reach from one epoch into the next
                del known[min(known)]
            known[epoch] = self._random(RECORDINGS, epoch, which).permutation(len(self.buckets[which].row))
        return known[epoch]

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))

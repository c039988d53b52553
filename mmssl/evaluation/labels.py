"""What a probe predicts, from which files, and which files hold its test."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmssl.errors import UserError

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """A classification made of labelled files."""

    classes: tuple[str, ...]
    train: np.ndarray
    """int64: rows of the training files."""
    test: np.ndarray
    """int64: rows of the test files; none of them is in `train`."""
    labels: dict[int, int]
    """row -> class, for labels of whole files; empty where the footage gives the label itself."""
    split: str
    """How the two sides came about, in words."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know: classes on one side only, files left out."""


def held_out(ids: Sequence[Hashable], strata: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """bool [N], True = held out: a share of the different ids of every stratum, in the order of a seeded hash.

    The hash makes the choice of one file independent of what else is in the folder. An id counts to the stratum of its first
    example and is held out with all its examples. A stratum of one id stays whole on the other side.
    """
    first: dict[Hashable, Any] = {}
    for name, stratum in zip(ids, strata, strict=True):
        first.setdefault(name, stratum)
    members: dict[Any, list[Hashable]] = {}
    for name, stratum in first.items():
        members.setdefault(stratum, []).append(name)
    chosen: set[Hashable] = set()
    for names in members.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        chosen.update(names[: min(math.ceil(share * len(names)), len(names) - 1)])
    return np.array([name in chosen for name in ids], dtype=bool)


def split_rows(source: Any, rows: np.ndarray, strata: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Train and test rows: the data's own test (or validation) split where it has one, else a fifth of the files by hash of id."""
    for name in ("test", "validation", "val", "valid"):
        own = source.rows(name)
        if len(own):
            side = np.isin(rows, own)
            others = np.unique(np.concatenate([source.rows(n) for n in ("test", "validation", "val", "valid")]))
            return rows[~np.isin(rows, others)], rows[side], f"the data's own splits, tested on {name!r}"
    side = held_out([source.id(int(row)) for row in rows], strata, share=TEST_SHARE, seed=seed)
    how = f"the data names no test split: {TEST_SHARE:.0%} of the files of every class, by hash of their id with seed {seed}"
    return rows[~side], rows[side], how


def file_labels(source: Any, seed: int) -> Task:
    """The labels that the data carries (class folders, metadata).

    Raises:
        UserError: when no file, or no file on one side, carries a label, or there is only one class.
    """
    rows = source.rows(None)
    names = {int(row): source.label(int(row)) for row in rows}
    labelled = np.array([row for row in rows if names[int(row)] is not None], dtype=np.int64)
    if not len(labelled):
        raise UserError(
            f"None of the {len(rows)} files carries a label: put them into one folder a class, add a metadata.csv with the column"
            " 'label', or (for video) ask for a label that the footage gives itself with --labels speed."
        )
    strata = np.array([names[int(row)] for row in labelled])
    train, test, split = split_rows(source, labelled, strata, seed)
    in_train, in_test = ({names[int(row)] for row in side} for side in (train, test))
    classes = tuple(sorted(in_train | in_test))
    if not len(train) or not len(test) or len(classes) < 2:
        raise UserError(
            f"A probe needs two or more classes with files on both sides, and the data has {len(classes)} class(es) with"
            f" {len(train)} training and {len(test)} test files ({split}): add labelled files or name the missing split."
        )
    notes = []
    if len(labelled) < len(rows):
        notes.append(f"{len(rows) - len(labelled)} of {len(rows)} files carry no label and are left out")
    if lacking := sorted(in_train - in_test):
        notes.append(f"only in the training files, never tested: {', '.join(map(str, lacking))}")
    if lacking := sorted(in_test - in_train):
        notes.append(f"only in the test files, always wrong: {', '.join(map(str, lacking))}")
    number = {name: index for index, name in enumerate(classes)}
    labels = {int(row): number[names[int(row)]] for row in (*train, *test)}
    return Task(tuple(map(str, classes)), train, test, labels, split, tuple(notes))


SPEEDS = (1, 2, 4)


def speed_stride(lengths: np.ndarray, frames: int, wanted: int) -> int:
    """Stride of the 1x clip: `wanted`, or the largest below it at which a 4x clip fits into four fifths of the files (frame counts [N]).

    One stride for all files, since a file with its own would make the classes overlap. 0 if even stride 1 does not fit.
    """
    for stride in range(wanted, 0, -1):
        if np.mean(lengths >= speed_span(frames, stride)) >= 0.8:
            return stride
    return 0


def speed_span(frames: int, stride: int) -> int:
    """Frames of the file under the fastest clip."""
    return (frames - 1) * stride * SPEEDS[-1] + 1


def describe_counts(task: Task) -> dict[str, dict[str, int]]:
    """Files by class on each side (empty for labels that the footage gives)."""
    return {
        side: {task.classes[c]: n for c, n in sorted(Counter(task.labels[int(r)] for r in rows).items())}
        for side, rows in (("train", task.train), ("test", task.test))
        if task.labels
    }

"""What a probe predicts, from which files, and which files hold its test."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmssl.adapters.specs import Spec, VideoSpec
from mmssl.data.views import clip_span
from mmssl.errors import UserError
from mmssl.evaluation.views import (
    ARROW_CLASSES,
    SPEED_CLASSES,
    ArrowViews,
    SpeedViews,
    fitting_stride,
    speed_span,
)

if TYPE_CHECKING:
    from mmssl.data.sources import Source
    from mmssl.data.views import Views

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """A classification made of labelled files."""

    classes: tuple[str, ...]
    train: np.ndarray
    """int64: rows of the training files."""
    test: np.ndarray
    """int64: rows of the test files; none of them is in `train`."""
    counts: dict[str, dict[str, int]]
    """'train' and 'test': class -> files; empty where the footage gives the label itself."""
    split: str
    """How the two sides came about, in words."""
    notes: tuple[str, ...] = ()
    """What a reader of the figures has to know: classes on one side only, files left out."""


def held_out(ids: Sequence[Hashable], strata: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """bool [N], True = held out: a share of the different ids of every stratum, in the order of a seeded hash.

    An id counts to the stratum of its first example and is held out with all its examples. The only id of a stratum
    stays.
    Hashing makes the order of the ids independent of what else is in the folder.
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


def split_rows(source: Source, rows: np.ndarray, strata: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Train rows, test rows and how: the data's own test (or validation) split, else a fifth of the files by hash."""
    for name in ("test", "validation"):
        side = np.isin(rows, source.rows(name))
        if side.any():
            others = np.isin(rows, np.concatenate([source.rows("test"), source.rows("validation")]))
            return rows[~others], rows[side], f"the data's own splits, tested on {name!r}"
    side = held_out([source.id(int(row)) for row in rows], strata, share=TEST_SHARE, seed=seed)
    how = (
        f"no test split in the data: {TEST_SHARE:.0%} of the files of every class, by hash of their id with seed {seed}"
    )
    return rows[~side], rows[side], how


def file_labels(source: Source, seed: int) -> Task:
    """The labels that the data carries (class folders, metadata).

    Raises:
        UserError: when no file, or no file on one side, carries a label, or there is only one class.
    """
    rows = source.rows(None)
    given = ((int(row), source.label(int(row))) for row in rows)
    names = {row: label for row, label in given if label is not None}
    labelled = np.array(list(names), dtype=np.int64)
    if not len(labelled):
        raise UserError(
            f"None of the {len(rows)} files carries a label: put them into one folder a class, add a metadata.csv with"
            " the column 'label', or (for video) ask for a label that the footage gives itself with --labels speed or"
            " arrow."
        )
    strata = np.array([names[int(row)] for row in labelled])
    train, test, split = split_rows(source, labelled, strata, seed)
    in_train, in_test = ({names[int(row)] for row in side} for side in (train, test))
    classes = tuple(sorted(in_train | in_test))
    if not len(train) or not len(test) or len(classes) < 2:
        raise UserError(
            f"A probe needs two or more classes with files on both sides, and the data has {len(classes)} class(es),"
            f" {len(train)} training and {len(test)} test files ({split}): add labelled files or the missing split."
        )
    notes = []
    if len(labelled) < len(rows):
        notes.append(f"{len(rows) - len(labelled)} of {len(rows)} files carry no label and are left out")
    if lacking := sorted(in_train - in_test):
        notes.append(f"only in the training files, never tested: {', '.join(lacking)}")
    if lacking := sorted(in_test - in_train):
        notes.append(f"only in the test files, always wrong: {', '.join(lacking)}")
    sides = {"train": train, "test": test}
    counts = {name: dict(sorted(Counter(names[int(row)] for row in side).items())) for name, side in sides.items()}
    return Task(classes, train, test, counts, split, tuple(notes))


def footage_labels(source: Source, spec: Spec, labels: str, seed: int) -> tuple[Task, Views]:
    """Labels that videos give themselves; the test clips come from files of their own.

    'speed': every file gives clips at 1x, 2x and 4x, to be told apart. 'arrow': clips forward and backwards. Files
    known to be shorter than that needs are left out.

    Raises:
        UserError: for images and audio, and when too few files are long enough.
    """
    if not isinstance(spec, VideoSpec):
        raise UserError(f"--labels {labels} is about videos, and this encoder takes {spec.modality}: leave it out.")
    frames, what = spec.frames, " at 4x," if labels == "speed" else ","

    def span(stride: int) -> int:
        return speed_span(frames, stride) if labels == "speed" else clip_span(frames, stride)

    rows = source.rows(None)
    lengths = np.array([_frames(source, int(row)) for row in rows])
    stride = fitting_stride(lengths, spec.stride, span) if len(rows) else 0
    rows_long = rows[lengths >= span(max(stride, 1))]
    if not stride or len(rows_long) < 5:
        raise UserError(
            f"--labels {labels} needs five or more files of at least {span(1)} frames, so that a clip"
            f" of {frames} frames fits{what} and {len(rows_long)} of {len(rows)} have them: use longer videos."
        )
    train, test, split = split_rows(source, rows_long, np.zeros(len(rows_long), dtype=int), seed)
    if not len(train) or not len(test):
        raise UserError(f"All {len(rows_long)} long enough files are on one side ({split}): add files to the other.")
    pace = "at 1x a clip" if labels == "speed" else "a clip"
    notes = [f"{pace} takes every frame number {stride} steps apart (the encoder's own stride: {spec.stride})"]
    if len(rows_long) < len(rows):
        notes.append(
            f"{len(rows) - len(rows_long)} of {len(rows)} files are too short for a {'4x ' * (labels == 'speed')}clip"
            " and are left out"
        )
    classes, views = (SPEED_CLASSES, SpeedViews) if labels == "speed" else (ARROW_CLASSES, ArrowViews)
    return Task(classes, train, test, {}, split, tuple(notes)), views(spec.size, frames, stride)


def _frames(source: Source, row: int) -> float:
    """Frames of a file; infinite where nobody counted them (Hub rows), so that the file is tried."""
    frames = source.media(row).record.frames
    return float("inf") if frames is None else frames

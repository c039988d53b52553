"""State labels of sequences (joint angles, distances, ...), and how well they can be read off frozen features."""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmssl.errors import UserError
from mmssl.evaluation.features import standardisation
from mmssl.evaluation.labels import held_out

NAMES = ("labels.csv", "labels.npz")
PENALTIES = tuple(10.0**power for power in range(-4, 5))
"""Ridge penalties to choose from; see `ridge`."""


@dataclass(frozen=True)
class States:
    file: Path
    names: tuple[str, ...]
    """L labels."""
    table: dict[str, tuple[np.ndarray, np.ndarray]]
    """By sequence: seconds [N] in rising order, and values [N,L], float64."""

    def at(self, sequence: str, times: np.ndarray) -> np.ndarray:
        """Labels [n,L] of the labelled moment nearest to each of `times` [n]."""
        seconds, values = self.table[sequence]
        after = np.searchsorted(seconds, times).clip(1, max(1, len(seconds) - 1))
        if len(seconds) == 1:
            return np.repeat(values, len(times), 0)
        return values[np.where(times - seconds[after - 1] < seconds[after] - times, after - 1, after)]


def read_states(root: Path, sequences: list[str]) -> States | None:
    """The labels that lie in the folder of the videos; None where there are none.

    labels.csv has columns sequence, time (seconds of the sequence's clock) and one a label; labels.npz has arrays of
    the same names and equal length.

    Raises:
        UserError: a file that cannot be understood, or that names sequences which are not there.
    """
    file = next((root / name for name in NAMES if (root / name).is_file()), None)
    if file is None:
        return None
    try:
        columns = _csv(file) if file.suffix == ".csv" else _npz(file)
        names = tuple(name for name in columns if name not in ("sequence", "time"))
        owner = np.asarray(columns["sequence"], dtype=str)
        seconds = np.asarray(columns["time"], dtype=np.float64)
        values = np.stack([np.asarray(columns[name], dtype=np.float64) for name in names], 1)
        if len(owner) != len(values) or len(seconds) != len(values) or not np.isfinite(values).all():
            raise ValueError("columns of different length, or numbers that are not finite")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{file} cannot be read as labels ({reason}): it needs columns sequence, time and one of numbers a label."
        ) from error
    absent = sorted(set(owner.tolist()) - set(sequences))
    if absent:
        raise UserError(
            f"{file} labels {len(absent)} sequences that are not in {root} (first: {absent[0]}; the first there is "
            f"{sequences[0]}): mend the names, or add their videos."
        )
    table = {}
    for name in np.unique(owner).tolist():
        rows = np.flatnonzero(owner == name)
        rows = rows[np.argsort(seconds[rows], kind="stable")]
        table[name] = seconds[rows], values[rows]
    return States(file, names, table)


def _csv(file: Path) -> dict[str, list[str]]:
    with file.open(encoding="utf-8-sig", newline="") as opened:
        rows = list(csv.DictReader(opened))
    if not rows:
        raise ValueError("no rows")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _npz(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


Side = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features [N,D], labels [N,L], and the sequence of each example, int [N]."""


def regress(train: Side, test: Side, *, seed: int) -> np.ndarray:
    """R2 [L] on the test examples of ridge on standardised features, float64; its penalty is chosen for each label on a
    fifth of the training sequences (one at least), then all of them are fitted."""
    x, y, groups = train
    held = held_out(groups.tolist(), np.zeros(len(groups), np.int64), share=0.2, seed=seed)
    tried = ridge(x[~held], y[~held], x[held], np.array(PENALTIES))
    best = np.stack([r2(y[held], answer) for answer in tried]).argmax(0)  # [L]
    answers = ridge(x, y, test[0], np.array(PENALTIES))
    return r2(test[1], answers[best, :, np.arange(y.shape[1])].T)


def ridge(x: np.ndarray, y: np.ndarray, queries: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Answers [P,Q,L] for queries [Q,D] of P ridge regressions of y [N,L] on standardised x [N,D]: each minimises
    |y - Xw - b|^2 / N + penalty |w|^2, solved through one eigendecomposition of the smaller Gram matrix."""
    mean, scale = (np.asarray(part, np.float64) for part in standardisation(torch.from_numpy(x)))
    a, q = (x - mean) / scale, (queries - mean) / scale
    centre = y.mean(0)
    n = len(a)
    if a.shape[1] <= n:
        values, vectors = np.linalg.eigh(a.T @ a / n)
        left, right = q @ vectors, vectors.T @ (a.T @ (y - centre) / n)  # [Q,D], [D,L]
    else:  # w = X^T (X X^T + n penalty)^-1 y
        values, vectors = np.linalg.eigh(a @ a.T / n)
        left, right = (q @ a.T / n) @ vectors, vectors.T @ (y - centre)
    return np.stack([left / (values.clip(0) + penalty) @ right + centre for penalty in penalties])


def r2(truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Share of the variance explained, a label: truth and answer [N,L] -> [L]. 0 is what the mean of `truth` gives."""
    spread = ((truth - truth.mean(0)) ** 2).sum(0)
    return 1 - ((truth - answer) ** 2).sum(0) / np.maximum(spread, 1e-12)

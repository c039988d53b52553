"""How good units are: how many codes are in use and, where labels are known, how much they tell of them."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from mmssl.data.sources import Source
from mmssl.errors import UserError
from mmssl.targets.features import Timing
from mmssl.targets.units import Units, hash_file

COLUMNS = ("id", "start", "end", "label")


def use_of(counts: np.ndarray) -> dict[str, float]:
    """Of how often each code was given, counts [codes]: codes in `use`, `dead` ones, and `perplexity`, exp of the
    entropy: how many equally frequent codes would be as hard to guess."""
    share = counts[counts > 0] / counts.sum()
    return {
        "use": int((counts > 0).sum()),
        "dead": int((counts == 0).sum()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }


def agreement(table: np.ndarray) -> dict[str, float]:
    """Figures of HuBERT (Hsu et al. 2021) for labels that joined units: table [codes,classes] of how often.

    `purity`: share of labels that are the most frequent one of their code; grows with the number of codes alone.
    `cluster_purity`: share of codes that are the most frequent one of their label; falls with it.
    `pnmi`: mutual information of label and code over the entropy of the label, 0 to 1: the share of the uncertainty
    about the label that the code takes away. 0 where there is but one label.
    """
    joint = table / table.sum()
    code, label = joint.sum(1), joint.sum(0)
    expected = np.outer(code, label)
    there = joint > 0
    information = (joint[there] * np.log(joint[there] / expected[there])).sum()
    entropy = -(label[label > 0] * np.log(label[label > 0])).sum()
    return {
        "purity": float(joint.max(1).sum()),
        "cluster_purity": float(joint.max(0).sum()),
        "pnmi": float(information / entropy) if entropy > 0 else 0.0,
        "classes": int((label > 0).sum()),
        "labelled": int(table.sum()),
    }


def measure(units: Units, source: Source, segments: Segments | None, timing: Timing | None) -> dict[str, Any]:
    """Figures of all units: `codes` (`use_of`), and `agreement` with the labels of files (`classes`) and of frames
    (`frames`), None where there are none. Only one recording is held at a time.

    Raises:
        UserError: no recording has labels of frames, though some were given.
    """
    names = {name: number for number, name in enumerate(source.labels())}
    counts = np.zeros(units.codes, np.int64)
    classes = np.zeros((units.codes, len(names)), np.int64)
    frames = np.zeros((units.codes, len(segments.names) if segments else 0), np.int64)
    for row in source.rows(None).tolist():
        id = source.id(row)
        if id not in units:
            continue
        codes = units.of(id)
        own = np.bincount(codes, minlength=units.codes)
        counts += own
        label = source.label(row)
        if label is not None:
            classes[:, names[label]] += own
        if segments is not None and timing is not None:
            labels = segments.at(id, timing, len(codes))
            np.add.at(frames, (codes[labels >= 0], labels[labels >= 0]), 1)
    if segments is not None and not frames.sum():
        raise UserError(
            "The labels of frames belong to none of the units: their column id must hold the ids of the data "
            f"({source.id(0)}, ...), and their times must lie within the recordings."
        )
    return {
        "codes": use_of(counts),
        "classes": agreement(classes) if classes.sum() else None,
        "frames": agreement(frames) if segments is not None else None,
    }


class Segments:
    """Labels of stretches of time: a CSV or parquet table with columns id, start, end (seconds) and label.

    Raises:
        UserError: the file is missing, damaged, empty, or lacks a column.
    """

    def __init__(self, file: Path) -> None:
        rows = _rows(file)
        if not rows:
            raise UserError(
                f"{file} holds no labels of frames: give a CSV or parquet file with the columns {', '.join(COLUMNS)}, "
                "times in seconds, and a row for each stretch of time."
            )
        self.names = sorted({label for _, _, _, label in rows})
        number = {name: place for place, name in enumerate(self.names)}
        found: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
        for id, start, end, label in rows:
            found[id].append((start, end, number[label]))
        self.file, self.sha256 = file, hash_file(file)
        self._of = {
            id: tuple(np.array(column) for column in zip(*sorted(parts), strict=True)) for id, parts in found.items()
        }

    def at(self, id: str, timing: Timing, count: int) -> np.ndarray:
        """int64 [count]: number of the label in the middle of each window of a recording, -1 where there is none."""
        return self.at_seconds(id, (np.arange(count) * timing.hop + timing.window / 2) / timing.rate)

    def at_seconds(self, id: str, time: np.ndarray) -> np.ndarray:
        """int64, as many as times: number of the label at each second of a recording, -1 where there is none."""
        known = self._of.get(id)
        if known is None:
            return np.full(len(time), -1)
        start, end, label = known
        place = np.searchsorted(start, time, side="right") - 1
        inside = (place >= 0) & (time < end[np.maximum(place, 0)])
        return np.where(inside, label[np.maximum(place, 0)], -1)


def _rows(file: Path) -> list[tuple[str, float, float, str]]:
    try:
        if file.suffix == ".parquet":
            table = pa.parquet.read_table(file, columns=list(COLUMNS)).to_pylist()
        else:
            with file.open(encoding="utf-8", newline="") as opened:
                table = list(csv.DictReader(opened))
        return [(str(row["id"]), float(row["start"]), float(row["end"]), str(row["label"])) for row in table]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{file} cannot be read as labels of frames ({type(error).__name__}: {error}): give a CSV or parquet file "
            f"with the columns {', '.join(COLUMNS)}, times in seconds."
        ) from error

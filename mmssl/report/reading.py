"""Reads what a run left in its folder, also while it goes on: missing parts stay empty, a cut line is passed over."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True)
class Metrics:
    step: np.ndarray
    """float64 [n], ascending, each step once."""
    columns: dict[str, np.ndarray]
    """By name: float64 [n], NaN where a line does not have it."""
    last: dict[str, Any]
    """The line of the highest step as it stands in the file."""
    unreadable: int
    """Lines that are no JSON object with a step (a killed run leaves one)."""

    def values(self, name: str) -> np.ndarray:
        """The finite values of a column, in the order of steps."""
        column = self.columns.get(name, np.empty(0))
        return column[np.isfinite(column)]


def read_metrics(file: Path) -> Metrics:
    """Columns of a metrics.jsonl. A run that went back to a checkpoint logs steps again: the later line counts."""
    columns: dict[str, array[float]] = {}
    steps, unreadable = array("d"), 0
    last: dict[str, Any] = {}
    for line in file.open("rb") if file.is_file() else ():
        try:
            entry = json.loads(line)
            step = float(entry["step"])
        except (ValueError, TypeError, KeyError):
            unreadable += bool(line.strip())
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and name != "step":
                column = columns.setdefault(name, array("d"))
                column.extend([math.nan] * (len(steps) - len(column)))
                column.append(value)
        steps.append(step)
        if step >= last.get("step", -1):
            last = entry
    for column in columns.values():
        column.extend([math.nan] * (len(steps) - len(column)))
    order = np.asarray(steps)
    unique, from_end = np.unique(order[::-1], return_index=True)
    kept = len(order) - 1 - from_end
    return Metrics(unique, {name: np.asarray(column)[kept] for name, column in columns.items()}, last, unreadable)


@dataclass(frozen=True)
class Result:
    """One figure of one evaluation beside the same figure of the untrained encoder and of chance; shares in [0,1]."""

    evaluation: str
    measure: str
    trained: float
    trained_interval: Interval | None
    untrained: float | None
    untrained_interval: Interval | None
    chance: float | None
    gain_interval: Interval | None
    """95 % interval of trained minus untrained on the same test samples."""

    @property
    def verdict(self) -> str:
        """Whether training helped, in words; only what the intervals carry."""
        if self.untrained is None:
            return "no untrained figure to compare with"
        if self.gain_interval is not None:
            low, high = self.gain_interval
        elif self.trained_interval is not None and self.untrained_interval is not None:
            low = self.trained_interval[0] - self.untrained_interval[1]
            high = self.trained_interval[1] - self.untrained_interval[0]
        else:
            return "higher, no interval given" if self.trained > self.untrained else "not higher than untrained"
        if low > 0:
            return "better than untrained"
        return "worse than untrained" if high < 0 else "no measurable difference"


MEASURES = {"top1": "top-1", "balanced": "balanced accuracy"}


def read_results(out: Path) -> tuple[list[Result], dict[str, dict[str, Any]]]:
    """Every evaluation file in OUT (a JSON object with the key 'trained'): its figures, and the files by name."""
    results, files = [], {}
    for file in sorted([*out.glob("*.json"), *out.glob("evaluation/*.json")]):
        content = read_json(file)
        if isinstance(content, dict) and "trained" in content:
            name = str(content.get("evaluation") or content.get("method") or file.stem)
            files[file.name] = content
            results += _results(name, content)
    return results, files


def _results(name: str, content: dict[str, Any]) -> list[Result]:
    trained, untrained = content["trained"], content.get("untrained")
    if isinstance(trained, int | float):
        trained, untrained = {"top1": trained}, {"top1": untrained}
    if not isinstance(trained, dict):
        return []
    untrained = untrained if isinstance(untrained, dict) else {}
    gain = content.get("difference") if isinstance(content.get("difference"), dict) else {}
    found = []
    for measure in [key for key in MEASURES if key in trained]:
        value = _number(trained[measure])
        if value is not None:
            found.append(
                Result(
                    name,
                    MEASURES[measure],
                    value,
                    _interval(trained, measure),
                    _number(untrained.get(measure)),
                    _interval(untrained, measure),
                    _chance(content.get("chance"), measure),
                    _interval(gain or {}, measure),
                )
            )
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(figures: dict[str, Any], measure: str) -> Interval | None:
    pair = figures.get(f"{measure}_interval")
    return (float(pair[0]), float(pair[1])) if isinstance(pair, list | tuple) and len(pair) == 2 else None


def _chance(chance: Any, measure: str) -> float | None:
    if isinstance(chance, dict):
        # Guessing one class always gives the majority's share; balanced over classes that is one in so many.
        chance = chance.get(measure, chance.get("majority" if measure == "top1" else "uniform"))
    return _number(chance)


@dataclass(frozen=True)
class Skipped:
    files: list[tuple[str, str]]
    """(file, reason), each file once, in the order met."""
    reasons: list[tuple[str, int]]
    """(reason, how many files), the most frequent first."""


def read_skipped(file: Path) -> Skipped:
    found: dict[str, str] = {}
    for line in file.open("rb") if file.is_file() else ():
        try:
            entry = json.loads(line)
            found.setdefault(str(entry["file"]), str(entry.get("reason", "")))
        except (ValueError, TypeError, KeyError):
            continue
    return Skipped(list(found.items()), Counter(found.values()).most_common())


def read_json(file: Path) -> Any:
    """The content of a JSON file; None when it is missing or cut off."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, JSON text) rows."""
    if isinstance(value, dict) and value:
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]

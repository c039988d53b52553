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
    """Mean over the untrained encoders (seeds) compared with."""
    untrained_interval: Interval | None
    """From the lowest to the highest end of their intervals."""
    chance: float | None
    gain_interval: Interval | None
    """95 % interval of trained minus untrained on the same test samples, over all untrained encoders."""
    less_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Whether training helped, in words; only what the interval carries."""
        if self.gain_interval is None:
            return "not compared"
        low, high = self.gain_interval
        if self.less_is_better:
            low, high = -high, -low
        if low > 0:
            return "better than untrained"
        return "worse than untrained" if high < 0 else "no measurable difference"


@dataclass(frozen=True)
class Evaluation:
    """One file of `mmssl evaluate`."""

    file: str
    results: list[Result]
    classes: list[dict[str, Any]]
    """name, n, recall and precision of each class, of the trained encoder."""
    details: list[tuple[str, str]]


MEASURES = {
    "top1": ("top-1", "majority"),
    "balanced": ("balanced accuracy", "uniform_balanced"),
    **{f"recall_at_{k}": (f"R@{k}", f"recall_at_{k}") for k in (1, 5, 10)},
    "abx_error": ("ABX error", "abx_error"),
    "wer": ("WER", "wer"),
    "cer": ("CER", "cer"),
}
"""Key in the file -> its name, and what chance gives of it: one class always, one in so many classes, a blind draw, one
transcript always."""
ERRORS = ("abx_error", "wer", "cer")


TABULATED = ("trained", "untrained", "further_untrained", "difference", "chance", "versions")
"""Keys of the file whose content the results table shows, or that are named elsewhere."""


def read_evaluations(out: Path) -> list[Evaluation]:
    """Every evaluation file in OUT: a JSON object with the key 'trained'."""
    found = []
    for file in sorted(out.glob("*.json")):
        content = read_json(file)
        if isinstance(content, dict) and isinstance(content.get("trained"), dict):
            trained = content["trained"]
            shown = {"chosen": {key: value for key, value in trained.items() if not key.startswith(tuple(MEASURES))}}
            shown |= {key: value for key, value in content.items() if key not in TABULATED}
            classes = trained.get("per_class", [])
            found.append(Evaluation(file.name, _results(file.stem, content), classes, flatten(_without_tables(shown))))
    return found


def _results(name: str, content: dict[str, Any]) -> list[Result]:
    trained, chance = content["trained"], content.get("chance") or {}
    twins = list(content.get("further_untrained") or [])
    if content.get("untrained"):
        twins.insert(0, {**content["untrained"], "difference": content.get("difference")})
    name = str(content.get("evaluation", name))
    found = []
    for key, (measure, guess) in MEASURES.items():
        value = _number(trained.get(key))
        if value is not None:
            others = [float(twin[key]) for twin in twins if _number(twin.get(key)) is not None]
            gains = [_interval(twin.get("difference") or {}, key) for twin in twins]
            found.append(
                Result(
                    evaluation=name,
                    measure=measure,
                    trained=value,
                    trained_interval=_interval(trained, key),
                    untrained=sum(others) / len(others) if others else None,
                    untrained_interval=_hull([_interval(twin, key) for twin in twins]),
                    chance=_number(chance.get(guess)),
                    gain_interval=_hull(gains),
                    less_is_better=key in ERRORS,
                )
            )
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(figures: dict[str, Any], key: str) -> Interval | None:
    pair = figures.get(f"{key}_interval")
    return (float(pair[0]), float(pair[1])) if isinstance(pair, list) and len(pair) == 2 else None


def _hull(intervals: list[Interval | None]) -> Interval | None:
    known = [pair for pair in intervals if pair is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _without_tables(content: Any) -> Any:
    """Without long lists (files, trials, classes): they stay in the file, the page shows figures and settings."""
    if isinstance(content, dict):
        return {key: _without_tables(value) for key, value in content.items() if not _long(value)}
    return content


def _long(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) > 20
    return isinstance(value, list) and (len(value) > 12 or any(isinstance(item, dict | list) for item in value))


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

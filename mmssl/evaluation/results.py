"""What the JSON files of all evaluations have in common, so that the table and the report read one form."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mmssl
from mmssl.data.sources import Source
from mmssl.data.views import Views
from mmssl.errors import UserError
from mmssl.evaluation.labels import Task
from mmssl.files import write_json, writing


def check_file(out: Path) -> None:
    """Raise UserError where --out cannot be a JSON file."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a JSON file, such as {out / 'result.json'}.")


def write_result(out: Path, result: dict[str, Any]) -> None:
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)


def encode(labels: Sequence[str | None], classes: tuple[str, ...]) -> np.ndarray:
    """Names -> int64 [N]."""
    number: dict[str | None, int] = {name: index for index, name in enumerate(classes)}
    return np.array([number[label] for label in labels], dtype=np.int64)


def settings_of(settings: Any) -> dict[str, Any]:
    """A settings dataclass as JSON holds it."""
    plain = dataclasses.asdict(settings)
    return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def data_of(
    path: str,
    labels: str,
    source: Source,
    task: Task,
    views: Views,
    *,
    examples: tuple[int, int],
    skipped: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The data of an evaluation: classes, split and counts (`examples`: of training and test), what was left out."""
    return {
        "path": path,
        "fingerprint": source.fingerprint,
        "labels": labels,
        "classes": list(task.classes),
        "split": task.split,
        "files": {"train": len(task.train), "test": len(task.test)},
        "files_by_class": task.counts,
        "examples": {"train": examples[0], "test": examples[1]},
        "views": repr(views),
        "notes": list(task.notes),
        "skipped": [{"id": name, "reason": reason} for name, reason in skipped],
    }


def versions() -> dict[str, str]:
    return {
        "mmssl": mmssl.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }

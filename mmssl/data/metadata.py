"""Labels and splits that stand in files: metadata.csv of Hugging Face's folder convention, WebDataset's .json."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from mmssl.errors import UserError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
LABELS = ("label", "labels", "class", "category")


def read_metadata(path: Path) -> dict[str, tuple[str | None, str | None]]:
    """{file_name: (label, split)}; empty when the file has no `file_name` column, since then it speaks of other things.
    Raises UserError naming the file when it cannot be parsed."""
    try:
        rows = _rows(path)
    except (pa.ArrowException, csv.Error, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it or take it out of the folder.") from error
    found: dict[str, tuple[str | None, str | None]] = {}
    for row in rows:
        columns = {name.lower(): value for name, value in row.items()}
        if columns.get("file_name"):
            found[str(columns["file_name"])] = (_label(columns), _text(columns.get("split")))
    return found


def label_of_json(text: str) -> str | None:
    """The label in a WebDataset sample's .json; None when there is none or it is no JSON object."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return _label(content) if isinstance(content, dict) else None


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is not a JSON object")
        return rows
    if path.suffix.lower() == ".parquet":
        names = pa.parquet.read_schema(path).names
        wanted = [name for name in names if name.lower() in ("file_name", "split", *LABELS)]
        table: list[dict[str, Any]] = pa.parquet.read_table(path, columns=wanted).to_pylist()
        return table
    # Everything as text: a label column of 0001, 0002 is names, not numbers.
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _label(columns: dict[str, Any]) -> str | None:
    for name in LABELS:
        if (text := _text(columns.get(name))) is not None:
            return text
    return None


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)

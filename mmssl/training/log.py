"""OUT/metrics.jsonl and OUT/skipped.jsonl: one JSON object a line, whole lines, nothing doubled after a restart."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from mmssl.files import writing

Value = float | int | str | None


class JsonLines:
    """Appends objects that have a `step`; `cut` removes those of steps that will be done again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, step: int) -> None:
        """Keep lines of steps up to `step`; drops a line that a killed run left half written."""
        if not self.path.exists():
            return
        with writing(self.path):
            kept = []
            with self.path.open("rb") as file:
                for line in file:
                    try:
                        if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                            kept.append(line)
                    except (ValueError, KeyError, TypeError):
                        continue
            part = self.path.with_name(f".{self.path.name}.part")
            part.write_bytes(b"".join(kept))
            os.replace(part, self.path)

    def append(self, entry: Mapping[str, Value]) -> None:
        """Write one line; floats in full precision, what is not finite as null (JSON has no word for it)."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in entry.items()
        }
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean, ensure_ascii=False) + "\n")

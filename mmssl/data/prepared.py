"""Which files of a prepared copy are finished, and from what they were made."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from mmssl.errors import UserError
from mmssl.files import writing

STATE = ".prepared.jsonl"


class Prepared:
    """The file OUT/.prepared.jsonl: a line as each file is finished; a torn last line is one that was not.

    Raises UserError where another process has it open.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / STATE
        self.done: dict[str, dict[str, Any]] = {}
        """By path relative to OUT: `key`, and by id what was wrong (`problems`) or amiss (`notes`)."""
        with writing(self._path):
            self._file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise UserError(f"Another mmssl prepare writes to {out}: let it finish, or stop it.") from error
        self._file.seek(0)
        lines = self._file.read().split("\n")
        for line in lines[:-1]:
            entry = json.loads(line)
            self.done[entry["path"]] = entry
        if lines[-1]:
            self._file.truncate(self._file.tell() - len(lines[-1].encode()))

    def add(self, path: str, key: str, problems: dict[str, str], notes: dict[str, str]) -> None:
        entry = {"path": path, "key": key, "problems": problems, "notes": notes}
        self.done[path] = entry
        with writing(self._path):
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

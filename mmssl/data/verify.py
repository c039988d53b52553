"""Verify files in child processes that are killed when they pass their time limit, and remember the verdicts."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Generator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmssl.data.children import Job, run_jobs
from mmssl.data.media import Record
from mmssl.errors import UserError

VERSIONS = {"image": 1, "video": 2, "audio": 2}
"""Of the verdicts, by kind: raised when probe.py says more or judges differently, so that the cache is not believed any
more and these files are verified again."""
SECONDS_A_MIB = 2.0
"""Time limit a file grows by its size, so that long films pass: about 50 min for 1.5 GB."""
COMMIT_SECONDS = 1.0
FACTS = (
    *("width", "height", "frames", "rate", "channels", "duration", "backend"),
    *("motion", "silence", "clipping", "problem"),
)


def cache_folder() -> Path:
    """MMSSL_CACHE, else ~/.cache/mmssl."""
    return Path(os.environ.get("MMSSL_CACHE") or Path.home() / ".cache" / "mmssl").expanduser()


class Verdicts:
    """Facts by file, kept over runs: SQLite, which bears several runs at once and a kill at any moment.

    A file is the same while path, member, size and modification time are. A time-out counts for limits up to its own.
    Raises UserError where the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "verified.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(file, timeout=60)
            self._database.execute("create table if not exists verdicts (file text primary key, facts text)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{file}, where verified files are remembered, cannot be used ({error}): remove it if it is damaged, "
                "or name another folder in the environment variable MMSSL_CACHE."
            ) from error
        self._committed = time.monotonic()

    def get(self, root: Path, record: Record, limit: float) -> dict[str, Any] | None:
        found = self._database.execute("select facts from verdicts where file = ?", (_key(root, record),)).fetchone()
        if found is None:
            return None
        facts: dict[str, Any] = json.loads(found[0])
        return facts if facts.pop("limit", limit) >= limit else None

    def put(self, root: Path, record: Record, facts: dict[str, Any]) -> None:
        self._database.execute("insert or replace into verdicts values (?, ?)", (_key(root, record), json.dumps(facts)))
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        self._database.commit()
        self._committed = time.monotonic()

    def close(self) -> None:
        self.commit()
        self._database.close()


def _key(root: Path, record: Record) -> str:
    path = os.path.abspath(root / record.path)
    parts = (VERSIONS[record.kind], path, record.member, record.offset, record.size, record.mtime_ns, record.kind)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def time_limit(record: Record, timeout: float) -> float:
    """Seconds that one file may take."""
    return timeout + SECONDS_A_MIB * record.size / 2**20


def verify(
    root: Path, jobs: Iterable[tuple[int, Record]], *, workers: int, timeout: float
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Yield (number, facts) of each job as it ends, in any order. Facts hold FACTS that could be found, `limit` where
    the time ran out, and `keep` = False where the verdict may be another one next time (crash, missing permission).
    Where PyAV was through with a file and decord hangs or crashes, the facts are PyAV's. Closing the generator, or an
    exception such as Ctrl-C, kills the children."""
    told = (
        Job(number, {"record": asdict(record), "root": str(root)}, time_limit(record, timeout))
        for number, record in jobs
    )
    return run_jobs("mmssl.data.probe", told, workers=workers)

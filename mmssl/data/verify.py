"""Verify files in child processes that are killed when they pass their time limit, and remember the verdicts."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import signal
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mmssl
from mmssl.data.media import Record
from mmssl.errors import UserError

VERSIONS = {"image": 1, "video": 2, "audio": 1}
"""Of the verdicts, by kind: raised when probe.py says more or judges differently, so that the cache is not believed any
more and these files are verified again."""
SECONDS_A_MIB = 2.0
"""Time limit a file grows by its size, so that long films pass: about 50 min for 1.5 GB."""
DECORD_SECONDS = 5.0
"""decord gets this long, and three times what PyAV took for the whole file. Where it hangs, PyAV reads the file."""
START_SECONDS = 60.0
"""For a child to start, which is not the file's fault."""
COMMIT_SECONDS = 1.0
FACTS = ("width", "height", "frames", "rate", "channels", "duration", "backend", "motion", "problem")


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
    Closing the generator, or an exception such as Ctrl-C, kills the children."""
    waiting = deque(jobs)
    children: list[_Child] = []
    selector = selectors.DefaultSelector()
    try:
        while waiting or any(child.record is not None for child in children):
            while waiting and len(children) < workers:
                children.append(_Child(root, selector))
            for child in children:
                if waiting and child.record is None:
                    child.begin(*waiting.popleft(), timeout)
            busy = [child for child in children if child.record is not None]
            soonest = min(child.deadline for child in busy)
            ready = [key.data for key, _ in selector.select(max(0.0, soonest - time.monotonic()))]
            for child in busy:
                facts = child.receive() if child in ready else None
                if facts is None and time.monotonic() >= child.deadline:
                    facts = child.timed_out()
                if facts is not None:
                    yield child.number, facts
                    child.record = None
                if child.dead:
                    child.kill()
                    children.remove(child)
    finally:
        for child in children:
            child.kill()
        selector.close()


@dataclass(eq=False)
class _Child:
    """One `python -m mmssl.data.probe`, verifying one file at a time."""

    root: Path
    selector: selectors.BaseSelector
    record: Record | None = None
    """Of the file in work; None when idle."""
    number: int = -1
    deadline: float = 0.0
    dead: bool = False
    limit: float = 0.0
    _ready: bool = False
    _began: float = 0.0
    _facts: dict[str, Any] = field(default_factory=dict)
    _buffer: bytes = b""

    def __post_init__(self) -> None:
        home = str(Path(mmssl.__file__).parents[1])
        paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmssl.data.probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then kills the children
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.selector.register(self._stdout, selectors.EVENT_READ, self)

    def begin(self, number: int, record: Record, timeout: float) -> None:
        self.number, self.record, self._facts = number, record, {}
        self.limit = time_limit(record, timeout)
        self._start_clock()
        job = {"record": asdict(record), "root": str(self.root), "limit": self.limit}
        with suppress(BrokenPipeError):  # it died while idle; receive() sees the end of its output
            self._stdin.write(json.dumps(job).encode() + b"\n")
            self._stdin.flush()

    def _start_clock(self) -> None:
        self._began = time.monotonic()
        self.deadline = self._began + self.limit + (0.0 if self._ready else START_SECONDS)

    def receive(self) -> dict[str, Any] | None:
        """Read what the child said; the facts when the file is done or the child is dead, else None."""
        chunk = os.read(self._stdout.fileno(), 1 << 16)
        if not chunk:
            return self._crashed()
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if answer.pop("ready", False):
                self._ready = True
                self._start_clock()
                continue
            if answer.pop("done", False):
                return self._facts
            self._facts |= answer
            # What follows the first answer is decord's turn.
            self.deadline = time.monotonic() + DECORD_SECONDS + 3 * (time.monotonic() - self._began)
        return None

    def _crashed(self) -> dict[str, Any]:
        self.dead = True
        if self._facts:  # PyAV was through with it, so decord crashed
            return self._facts
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return {"problem": f"the decoder crashed ({how})", "keep": False}

    def timed_out(self) -> dict[str, Any]:
        self.dead = True
        if self._facts:
            return self._facts
        return {"problem": f"timed out after {self.limit:.3g} s", "limit": self.limit}

    def kill(self) -> None:
        self.selector.unregister(self._stdout)
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # a job that was never read is still in the buffer
            self._stdin.close()
        self._stdout.close()

"""Target making in pieces: what is done lies in OUT/.work, one file a chunk of rows, so that any number of processes
share the chunks and one that was killed goes on where it was.

Processes need no process group: number and count come from RANK and WORLD_SIZE, as torchrun and `accelerate launch` set
them (or a job array does), and they wait for each other's files. Chunks depend on neither.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmssl.data.sources import Source
from mmssl.errors import UserError
from mmssl.files import sync_path, write_json, writing
from mmssl.targets.features import Timing
from mmssl.targets.reading import Part, counts_of, parts_of
from mmssl.targets.units import ABOUT

FOLDER, PLAN = ".work", "plan.json"
CHUNK_SECONDS = 3600.0
"""Sound in a chunk."""
CHUNK_FILES = 1000
"""Files in a chunk at most."""
POLL = 0.2
PATIENCE = 60.0
"""Seconds between two lines that say what a process waits for."""


@dataclass(frozen=True)
class Chunk:
    """Rows that are finished together, and their parts, those of like length side by side."""

    number: int
    rows: tuple[int, ...]
    parts: tuple[Part, ...]


def chunks_of(source: Source, rows: np.ndarray, timing: Timing | None) -> list[Chunk]:
    """The rows in order, cut at `CHUNK_SECONDS` or `CHUNK_FILES`."""
    chunks: list[Chunk] = []
    taken: list[int] = []
    parts: list[Part] = []
    seconds = 0.0

    def close() -> None:
        ordered = sorted(parts, key=lambda part: (-(part.size or 0), part.row, part.number))
        chunks.append(Chunk(len(chunks), tuple(taken), tuple(ordered)))

    for row, count in zip(rows.tolist(), counts_of(source, rows, timing), strict=True):
        length = 0.0 if count is None or timing is None else count * timing.hop / timing.rate
        if taken and (len(taken) == CHUNK_FILES or seconds + length > CHUNK_SECONDS):
            close()
            taken, parts, seconds = [], [], 0.0
        taken.append(row)
        parts += parts_of(row, count, timing)
        seconds += length
    if taken:
        close()
    return chunks


class Work:
    """OUT/.work of one process of several.

    Raises:
        UserError: OUT cannot be written, or another command is at work in it.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / FOLDER
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / f"{self.rank}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another command makes units in {out}: wait for it, or choose another --out.") from None
        if not self.main:
            self.wait(lambda: (self.folder / PLAN).exists() or self.finished, "the main process to begin")

    @property
    def finished(self) -> bool:
        return (self.out / ABOUT).exists()

    def begin(self, key: dict[str, Any]) -> bool:
        """Go on, or begin; False where there is nothing left to do.

        Args:
            key: all that the result depends on.

        Raises:
            UserError: what lies there was begun with another one.
        """
        plan, key = self.folder / PLAN, json.loads(json.dumps(key))
        if self.main and not plan.exists():
            write_json(plan, key)
        try:
            begun = json.loads(plan.read_text(encoding="utf-8"))
        except FileNotFoundError:  # the others have just finished without this process
            return False
        if begun != key:
            other = ", ".join(sorted(name for name in {**begun, **key} if begun.get(name) != key.get(name)))
            raise UserError(
                f"The work in {self.out} was begun with another {other}: give the same settings and data, choose "
                f"another --out, or remove {self.folder}."
            )
        return True

    @property
    def main(self) -> bool:
        return self.rank == 0

    def file(self, stage: str, chunk: Chunk) -> Path:
        return self.folder / f"{stage}-{chunk.number:06d}.safetensors"

    def mine(self, stage: str, chunks: Sequence[Chunk]) -> list[Chunk]:
        """The chunks that this process has to make and that are not there yet."""
        own = chunks[self.rank :: self.world]
        return [chunk for chunk in own if not self.file(stage, chunk).exists()]

    def put(self, stage: str, chunk: Chunk, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Write what was made of a chunk, whole or not at all."""
        file = self.file(stage, chunk)
        part = file.with_name(f".{file.name}.part")
        with writing(file):
            try:
                save_file(arrays, part, metadata={"facts": json.dumps(facts)})
                sync_path(part)
                os.replace(part, file)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def get(self, stage: str, chunk: Chunk, *names: str) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Raises UserError where the file is damaged."""
        file = self.file(stage, chunk)
        try:
            with safe_open(file, framework="np") as opened:
                facts = json.loads((opened.metadata() or {})["facts"])
                return [opened.get_tensor(name) for name in names], facts
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{file} cannot be read ({error}): remove it, and give the same command again.") from error

    def wait_for(self, stage: str, chunks: Sequence[Chunk]) -> None:
        """Until all processes have made their chunks of a stage."""
        waiting = [self.file(stage, chunk) for chunk in chunks]

        def done() -> bool:
            while waiting and waiting[-1].exists():
                waiting.pop()
            return not waiting

        self.wait(done, f"other processes to finish their share of '{stage}'")

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Until `done`. Alone, there is nothing to wait for."""
        last = time.monotonic()
        while not done():
            if self.world == 1:
                raise UserError(f"{self.folder} was changed from outside: give the same command again.")
            time.sleep(POLL)
            if time.monotonic() - last > PATIENCE:
                last = time.monotonic()
                print(f"process {self.rank}: waiting for {what}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Let another command work here."""
        self._lock.close()
        if self.finished:
            with suppress(OSError):  # a process that came late may have made it anew
                (self.folder / f"{self.rank}.lock").unlink()
                self.folder.rmdir()

    def remove(self) -> None:
        """All of it, now that the units stand."""
        shutil.rmtree(self.folder, ignore_errors=True)

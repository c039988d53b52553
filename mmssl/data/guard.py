"""What can happen to loader workers, in one sentence each: they die, or hang at a file."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess

from torch import Tensor

from mmssl.data.sources import Source

POLL = 2.0
"""Seconds from one look at the workers to the next."""
M_MMAP_THRESHOLD = -3
"""The name that malloc.h gives this number."""
SHARED_MEMORY = "shared memory ran out, so enlarge /dev/shm (docker run --shm-size) or use fewer --workers"


class Guard(threading.Thread):
    """Kills a worker that has been at one file for longer than `timeout` seconds.

    A thread, because the trainer itself may hang too: it fetches the memory of a finished batch from the worker that
    made it, and one whose decoder hangs with the interpreter's lock held never answers.

    Args:
        reading: int64 [workers,3]: pid, row being read (-1: none), and since when.
    """

    def __init__(self, processes: list[BaseProcess], reading: Tensor, source: Source, timeout: float) -> None:
        super().__init__(daemon=True, name="loader guard")
        self.processes, self.reading, self.source, self.timeout = processes, reading, source, timeout
        self.verdict: str | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        pause = min(POLL, self.timeout / 4)
        # Counted in looks, not by the clock: a job that was suspended for an hour has no hanging worker.
        looks: dict[tuple[int, ...], int] = {}
        while not self.ended.wait(pause):
            now = [tuple(entry) for entry in self.reading.tolist() if entry[1] >= 0]
            looks = {entry: looks.get(entry, 0) + 1 for entry in now}
            for (pid, row, _), count in looks.items():
                if count * pause > self.timeout:
                    self.verdict = (
                        f"A loader worker has been reading {self.source.id(row)} for {count * pause:.0f} s: run "
                        "`mmssl index` on the data, which finds files that hang their decoder, or raise "
                        f"--file-seconds ({self.timeout:g}) where the storage is slow."
                    )
                    self.kill(pid)
                    return

    def kill(self, pid: int | None = None) -> None:
        """End one worker, or all of them."""
        for process in self.processes:
            if pid in (None, process.pid):
                process.kill()  # a hanging one would not heed a gentler request

    def trouble(self, seconds: float = 0.0) -> str | None:
        """Which worker died or hung, as a sentence; None if nothing shows within `seconds`."""
        until = time.monotonic() + seconds
        while True:
            sentence = self.verdict or self._death()
            if sentence is not None or time.monotonic() >= until:
                return sentence
            time.sleep(0.05)

    def _death(self) -> str | None:
        at = {pid: row for pid, row, _ in self.reading.tolist()}
        for process in self.processes:
            if not process.is_alive():
                row = at.get(process.pid or 0, -1)
                place = f"reading {self.source.id(row)}" if row >= 0 else "handing over a batch"
                return f"A loader worker {_cause(process.exitcode)} while {place}: {_remedy(process.exitcode)}."
        return None


def end_with_parent(worker: int = 0) -> None:
    """Let this worker end when the process that started it is gone, however it went. A worker from a fork server is the
    server's child, and both would wait for ever for a trainer that was killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end with parent").start()


def return_memory() -> None:
    """Let this worker give blocks from 128 KiB upwards back to the system at once. glibc hardly reuses what aligned
    blocks leave (its bug 14581), and frames and tensors are such: a worker that read small clips through PyAV grew by
    36 MiB in every thousand."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; a threshold that is set no longer grows with the blocks that are freed
        libc.mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _remedy(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "most often memory ran out, so use fewer --workers or a smaller --batch-size"
    if exitcode == -signal.SIGBUS:
        return SHARED_MEMORY
    return "take that file out of the data, or look for the cause with --workers 0"

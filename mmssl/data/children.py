"""Jobs in child processes that are killed when they pass their time limit: a decoder can crash, or hang with the
interpreter's lock held, so that no other remedy helps."""

from __future__ import annotations

import json
import math
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmssl

START_SECONDS = 60.0
"""For a child to start, which is not the job's fault."""
GRACE_SECONDS = 5.0
"""A child that has answered may go on (a second opinion) for this long and three times what it took so far."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Job:
    number: int
    content: dict[str, Any]
    """What the child is told, as JSON, with `limit` added."""
    limit: float
    """Seconds until its first answer."""


def run_jobs(module: str, jobs: Iterable[Job], *, workers: int) -> Generator[tuple[int, Answer], None, None]:
    """Yield (number, answer) of each job as it ends, in any order.

    `python -m module` calls `serve`. What it tells about a job is merged into one answer. A job about which nothing was
    told when its child ran out of time or died has `problem`, with `limit` for the one and `keep` = False (it may end
    otherwise next time) for the other. Closing the generator, or an exception such as Ctrl-C, kills the children.
    """
    waiting = deque(jobs)
    children: list[Child] = []
    selector = selectors.DefaultSelector()
    try:
        while waiting or any(child.job is not None for child in children):
            while waiting and len(children) < workers:
                children.append(Child(module, selector))
            for child in children:
                if waiting and child.job is None:
                    child.begin(waiting.popleft())
            busy = [child for child in children if child.job is not None]
            soonest = min(child.deadline for child in busy)
            ready = [key.data for key, _ in selector.select(max(0.0, soonest - time.monotonic()))]
            for child in busy:
                assert child.job is not None
                answer = child.receive() if child in ready else None
                if answer is None and time.monotonic() >= child.deadline:
                    answer = child.timed_out()
                if answer is not None:
                    yield child.job.number, answer
                    child.job = None
                if child.dead:
                    child.kill()
                    children.remove(child)
    finally:
        for child in children:
            child.kill()
        selector.close()


@dataclass(eq=False)
class Child:
    """One `python -m module`, at one job at a time."""

    module: str
    selector: selectors.BaseSelector
    job: Job | None = None
    """In work; None when idle."""
    deadline: float = 0.0
    dead: bool = False
    _ready: bool = False
    _began: float = 0.0
    _answer: Answer = field(default_factory=dict)
    _buffer: bytes = b""

    def __post_init__(self) -> None:
        home = str(Path(mmssl.__file__).parents[1])
        paths = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then kills the children
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.selector.register(self._stdout, selectors.EVENT_READ, self)

    def begin(self, job: Job) -> None:
        self.job, self._answer = job, {}
        self._start_clock()
        with suppress(BrokenPipeError):  # it died while idle; receive() sees the end of its output
            self._stdin.write(json.dumps(job.content | {"limit": job.limit}).encode() + b"\n")
            self._stdin.flush()

    def _start_clock(self) -> None:
        assert self.job is not None
        self._began = time.monotonic()
        self.deadline = self._began + self.job.limit + (0.0 if self._ready else START_SECONDS)

    def receive(self) -> Answer | None:
        """Read what the child said; the answer when the job is done or the child is dead, else None."""
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
                return self._answer
            self._answer |= answer
            self.deadline = time.monotonic() + GRACE_SECONDS + 3 * (time.monotonic() - self._began)
        return None

    def _crashed(self) -> Answer:
        self.dead = True
        if self._answer:
            return self._answer
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return {"problem": f"the decoder crashed ({how})", "keep": False}

    def timed_out(self) -> Answer:
        assert self.job is not None
        self.dead = True
        if self._answer:
            return self._answer
        return {"problem": f"timed out after {self.job.limit:.3g} s", "limit": self.job.limit}

    def kill(self) -> None:
        self.selector.unregister(self._stdout)
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # a job that was never read is still in the buffer
            self._stdin.close()
        self._stdout.close()


def serve(act: Callable[[dict[str, Any], Callable[[Answer], None]], None]) -> None:
    """The child's side: `act(content, tell)` for each job, until the parent closes stdin. JSON lines both ways."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native libraries print
    os.dup2(1, 2)
    warnings.simplefilter("ignore")

    def tell(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")

    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # the parent is gone, or has no more jobs: nobody waits for the one in work

    threading.Thread(target=listen, daemon=True).start()
    tell({"ready": True})
    while True:
        job = json.loads(jobs.get())
        # One that hangs with the interpreter's lock held does not listen; SIGALRM's default action ends it as well.
        signal.alarm(math.ceil(job["limit"]) + 10)
        act(job, tell)
        tell({"done": True})
        signal.alarm(0)

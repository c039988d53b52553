"""What a run shows while it goes on: a live line on a terminal, plain lines at an interval elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Display:
    """Loss, samples/s, time left and the share of time spent waiting for data.

    Args:
        total: steps of the run. done: steps that earlier starts made.
        every: seconds between two plain lines where stderr is no terminal.
        shown: only the main process shows anything.
    """

    def __init__(self, *, total: int, done: int, every: float, shown: bool) -> None:
        self.total, self.start, self.every = total, done, every
        self.began = self.last = time.monotonic()
        self.console = Console(stderr=True)
        self.shown = shown
        self.live: Progress | None = None
        if shown and self.console.is_terminal:
            self.live = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(None),
                TextColumn("{task.description}"),
                console=self.console,
            )
            self.task = self.live.add_task("starting", total=total, completed=done)

    def __enter__(self) -> Display:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def advance(self, step: int) -> None:
        if self.live is not None:
            self.live.update(self.task, completed=step)

    def update(self, step: int, loss: float, samples_per_s: float, data_wait: float) -> None:
        """Show the figures of a logged step."""
        if not self.shown:
            return
        now = time.monotonic()
        left = (now - self.began) / max(step - self.start, 1) * (self.total - step)
        text = (
            f"loss {loss:.4f}  {samples_per_s:.4g} samples/s  {duration(left)} left  {data_wait:.0%} waiting for data"
        )
        if self.live is not None:
            self.live.update(self.task, completed=step, description=text)
        elif now - self.last >= self.every or step == self.total:
            self.last = now
            print(f"step {step}/{self.total}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """One line above the display."""
        if self.shown:
            self.console.print(text, soft_wrap=True, markup=False, highlight=False)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}" if hours else f"{minutes}:{seconds:02d}"

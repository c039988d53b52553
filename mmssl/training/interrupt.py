"""Ctrl-C and SIGTERM end a run after the step it is in, on all processes at the same step."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

LAG = 2
"""Steps between asking the other processes and reading their answer, so that the device is never waited for."""


class Interrupt:
    """Catches the first Ctrl-C or SIGTERM; the second one ends the process at once, as usual."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked = False
        self.answers: deque[Tensor] = deque()
        self.before: dict[int, Any] = {}
        self.pid = os.getpid()

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self.ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before.clear()

    def ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:  # a forked loader worker inherited this handler: its parent will end it
            return
        self.asked = True
        self.restore()
        if self.accelerator.is_main_process:
            print("\nStopping after this step and saving (once more to stop at once) ...", file=sys.stderr, flush=True)

    def stop(self) -> bool:
        """Whether the run ends after this step; the same on every process. Called once a step."""
        if self.accelerator.num_processes == 1:
            return self.asked
        flag = torch.tensor(float(self.asked), device=self.accelerator.device)
        dist.all_reduce(flag)
        self.answers.append(flag)
        return len(self.answers) > LAG and bool(self.answers.popleft() > 0)

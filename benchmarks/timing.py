"""Timing side by side: the contenders take turns in one process, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch


@dataclass(frozen=True)
class Timing:
    name: str
    median: float
    """Seconds a call."""
    low: float
    high: float
    """Smallest and largest of the rounds."""
    peak_mib: float | None = None
    """Growth of the peak resident size over two calls, in a process of its own."""


def alternate(contenders: dict[str, Callable[[], object]], rounds: int = 7, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every call, after `warm_up` untimed calls each; the order turns round each round."""
    names = list(contenders)
    for name in names:
        for _ in range(warm_up):
            contenders[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _measure_peak(make: Callable[[], Callable[[], object]], calls: int, sender: Connection) -> None:
    call = make()
    before = _peak()
    for _ in range(calls):
        call()
    sender.send(_peak() - before)


def _peak() -> float:
    """Peak resident size in MiB; getrusage would give the parent's, which Linux keeps across exec."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak_memory(make: Callable[[], Callable[[], object]], calls: int = 2) -> float:
    """MiB that calls of `make()` add to the peak resident size, in a fresh process; `make` must be picklable."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit the thread pools of timed calls, and hang
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(make, calls, sender))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def compare(makers: dict[str, Callable[[], Callable[[], object]]], rounds: int = 7) -> list[Timing]:
    """Time the calls that the makers return, alternating, and measure the memory of each in its own process."""
    peaks = {name: peak_memory(make) for name, make in makers.items()}
    return timings(alternate({name: make() for name, make in makers.items()}, rounds), peaks)


def timings(seconds: dict[str, list[float]], peaks: dict[str, float] | None = None) -> list[Timing]:
    return [
        Timing(name, statistics.median(taken), min(taken), max(taken), (peaks or {}).get(name))
        for name, taken in seconds.items()
    ]


def table(rows: list[Timing], unit: str = "step", baseline: int = -1, *, rate: tuple[str, float] | None = None) -> str:
    """A Markdown table; the ratio is the baseline's median over the row's: above 1 is faster than the baseline.

    `rate`: the name of one more column, and how much of it a call gets through, to be given a second.
    """
    reference = rows[baseline].median
    lines = [f"| contender | ms a {unit} (median) | range | ratio | peak memory, MiB |", "|---|---:|---:|---:|---:|"]
    if rate is not None:
        lines = [f"{lines[0]} {rate[0]} |", f"{lines[1]}---:|"]
    for row in rows:
        memory = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        lines.append(
            f"| {row.name} | {1e3 * row.median:.1f} | {1e3 * row.low:.1f} to {1e3 * row.high:.1f} "
            f"| {reference / row.median:.2f} | {memory} |" + ("" if rate is None else f" {rate[1] / row.median:.1f} |")
        )
    return "\n".join(lines)


def machine() -> str:
    """One line naming the processor, cores, memory and versions that the numbers belong to."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}; {versions}"

"""`mmssl index`: build an index with a progress display, and say what was found."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmssl.data.index import Index
from mmssl.data.index import Progress as Report

PLAIN_SECONDS = 10.0
"""Between two lines where no terminal is attached."""
SHOWN = 20
MUCH_SILENCE, MUCH_CLIPPING = 0.9, 0.001
"""Shares from which on a recording is named."""
WORST = 5


def build_index(
    data: Path,
    kind: str | None = None,
    *,
    out: Path | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    cache: Path | None = None,
    console: Console | None = None,
) -> Index:
    """Verify the media of `data`, print a summary, and write the table to `out` (parquet) if given.

    Ctrl-C leaves what is verified in the cache, says so, and is raised again. Raises UserError as Index.build does.
    """
    console = console or Console()
    done = total = 0
    try:
        with show_progress(console) as show:

            def report(now: int, all_: int, bad: int) -> None:
                nonlocal done, total
                done, total = now, all_
                show(now, all_, bad)

            index = Index.build(data, kind, workers=workers, timeout=timeout, progress=report, cache=cache)
    except KeyboardInterrupt:
        console.print(f"Stopped: {done} of {total} files are verified and kept; the same command goes on from there.")
        raise
    if out is not None:
        index.save(out)
    _summarise(index, console)
    return index


@contextmanager
def show_progress(console: Console, doing: str = "verifying", done_so: str = "verified") -> Iterator[Report]:
    """A bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        last, said, latest = 0.0, "", ""

        def say() -> None:
            nonlocal said
            if latest != said:
                print(latest, file=sys.stderr, flush=True)
                said = latest

        def line(done: int, total: int, bad: int) -> None:
            nonlocal last, latest
            latest = f"{done_so} {done} of {total} files, {bad} with a problem"
            if time.monotonic() - last > PLAIN_SECONDS:
                last = time.monotonic()
                say()

        try:
            yield line
        finally:
            say()
        return
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[bad]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=None, bad="")

        def move(done: int, total: int, bad: int) -> None:
            bar.update(task, completed=done, total=total, bad=f"{bad} with a problem" if bad else "")

        yield move


def _summarise(index: Index, console: Console) -> None:
    problems = index.problems()
    for kind, count in sorted(Counter(index.column("kind")).items()):
        rows = zip(index.column("kind"), index.column("duration"), index.column("problem"), strict=True)
        chosen = [seconds for own, seconds, problem in rows if own == kind and problem is None]
        hours = sum(seconds or 0.0 for seconds in chosen) / 3600
        console.print(f"{count} {kind} files, {len(chosen)} usable" + (f", {hours:.2f} hours" if hours else ""))
    _summarise_sound(index, console)
    for split, count in sorted(Counter(name for name in index.column("split") if name).items()):
        console.print(f"  split {split}: {count}")
    labels = {label for label in index.column("label") if label is not None}
    if labels:
        console.print(f"  {len(labels)} labels")
    if index.ignored:
        ignored = ", ".join(f"{count} {extension}" for extension, count in sorted(index.ignored.items()))
        console.print(f"ignored: {ignored}")
    for name, problem in problems[:SHOWN]:
        console.print(f"  {name}: {problem}", markup=False)
    if len(problems) > SHOWN:
        console.print(f"  and {len(problems) - SHOWN} more with a problem")


def _summarise_sound(index: Index, console: Console) -> None:
    """Silence and clipping, weighted by duration, and the recordings that have most of them."""
    usable = index.table.filter(pc.and_(index.table["problem"].is_null(), index.table["silence"].is_valid()))
    if len(usable) == 0:
        return
    columns = {name: usable[name].to_numpy() for name in ("duration", "silence", "clipping", "id")}
    seconds = columns["duration"]
    for name, much, what in (
        ("silence", MUCH_SILENCE, "of the sound is silent (20 ms frames below -60 dB)"),
        ("clipping", MUCH_CLIPPING, "of the samples are clipped"),
    ):
        shares = columns[name]
        above = np.flatnonzero(shares >= much)
        line = f"  {(shares * seconds).sum() / max(seconds.sum(), 1e-9):.3%} {what}"
        if len(above):
            worst = above[np.argsort(-shares[above], kind="stable")][:WORST]
            named = ", ".join(f"{columns['id'][row]} ({shares[row]:.1%})" for row in worst)
            line += f"; {len(above)} recording(s) with {much:.1%} or more: {named}" + (
                ", ..." if len(above) > WORST else ""
            )
        console.print(line, markup=False)

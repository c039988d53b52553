"""From recordings of mixed length to batches limited by seconds: with buckets of lengths, and in plain random order.

The recordings are the samples, strung together to 1 to 16 s at 16 kHz. All go through the training loader, in this
process. Without buckets, recordings follow each other at random as many as the limit holds, all at the length of the
longest (padded) or of the shortest (cropped) of their batch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
from timing import alternate, timings

from mmssl.data.audio import read_audio
from mmssl.data.buckets import BucketPlan
from mmssl.data.crops_audio import AudioCrops, frames_of, samples_of
from mmssl.data.loader import MediaDataset, make_loader
from mmssl.data.plan import Cut, Draw, Plan
from mmssl.data.sources import LocalSource, open_source
from mmssl.training.seconds import SettingsBySeconds

SAMPLES = Path("datasets/samples/audio/train")
RATE, RECORDINGS, BATCH_SECONDS = 16000, 400, 87.5
"""The limit is that of one of HuBERT BASE's 32 processes."""
Short = Literal["crop", "pad"]


def make_recordings(folder: Path) -> None:
    """`RECORDINGS` files of 1 to 16 s, all lengths alike often."""
    source, rng = open_source(str(SAMPLES), "audio"), np.random.default_rng(0)
    rows = source.rows()
    speech = np.concatenate([read_audio(source.media(int(row)), RATE).numpy() for row in rows])
    for number in range(RECORDINGS):
        samples = int(rng.uniform(1.0, 16.0) * RATE)
        first = int(rng.integers(len(speech) - samples))
        soundfile.write(folder / f"{number}.wav", speech[first : first + samples], RATE, subtype="PCM_16")


class RandomOrder(Plan):
    """One pass over the recordings that are long enough, in random batches of equal limit."""

    def __init__(self, source: LocalSource, views: AudioCrops, short: Short) -> None:
        super().__init__(source.rows(), 1, 0)
        extreme, order = max if short == "pad" else min, self._epoch(0).tolist()
        self.batches: list[list[Draw]] = []
        rows: list[int] = []
        length = 0
        for row in order:
            total = views.total(source.media(row).record)
            assert total is not None
            if total < views.min_seconds * RATE:
                continue
            frames = min(frames_of(total), views.max_frames)
            longer = extreme(length, frames) if rows else frames
            if (len(rows) + 1) * samples_of(longer) > BATCH_SECONDS * RATE:
                self._close(rows, length)
                rows, longer = [], frames
            rows, length = [*rows, row], longer
        self._close(rows, length)

    def _close(self, rows: list[int], frames: int) -> None:
        self.batches.append([Draw(0, row, Cut(frames)) for row in rows])

    def micro_batches(self, step: int, rank: int = 0, world: int = 1, accumulate: int = 1) -> list[list[Draw]]:
        return [self.batches[step]]


@dataclass
class Heard:
    """What the batches of one pass held, in seconds."""

    useful: float = 0.0
    """Of recordings,"""
    whole: float = 0.0
    """of which the whole of the same recordings has so much."""
    computed: float = 0.0
    """Padding included."""
    shapes: int = 0


def reader(source: LocalSource, settings: SettingsBySeconds, *, bucketed: bool, heard: Heard) -> Callable[[], object]:
    """A call reads one pass over the data, and notes in `heard` what it held."""
    views = settings.views()
    plan: Plan
    if bucketed:
        made = settings.plan(views)(source, source.rows())
        assert isinstance(made, BucketPlan)
        plan, steps = made, round(made.steps_per_epoch)
    else:
        plan = RandomOrder(source, views, settings.short)
        steps = len(plan.batches)
    lengths = torch.tensor([views.total(source.media(row).record) for row in range(len(source))])
    dataset = MediaDataset(source, views, seed=0)

    def read() -> None:
        useful, whole, computed, shapes = 0, 0, 0, set()
        for batch in make_loader(dataset, plan, start_step=0, stop_step=steps):
            view = batch.views["view"]
            assert view.numel() <= BATCH_SECONDS * RATE, "no batch passes the limit"
            useful += int(batch.lengths["view"].sum()) if batch.lengths else view.numel()
            whole += int(lengths[batch.index].sum())
            computed += view.numel()
            shapes.add(tuple(view.shape))
        heard.useful, heard.whole, heard.computed = useful / RATE, whole / RATE, computed / RATE
        heard.shapes = len(shapes)

    return read


def run(rounds: int = 3) -> str:
    """The table as Markdown."""
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        make_recordings(Path(folder))
        source = open_source(folder, "audio")
        assert isinstance(source, LocalSource)
        found, calls = {}, {}
        shorts: tuple[Short, ...] = ("crop", "pad")
        for short in shorts:
            settings = SettingsBySeconds(data=folder, out=Path("."), batch_seconds=BATCH_SECONDS, short=short)
            for bucketed in (True, False):
                name = f"{f'{settings.buckets} buckets' if bucketed else 'random order'}, {short}"
                found[name] = Heard()
                calls[name] = reader(source, settings, bucketed=bucketed, heard=found[name])
        rows = timings(alternate(calls, rounds))
    lines = [
        "| batches | recorded s/s (median) | range | padding | heard of the recordings | shapes |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        heard = found[row.name]
        lines.append(
            f"| {row.name} | {heard.useful / row.median:.0f} "
            f"| {heard.useful / row.high:.0f} to {heard.useful / row.low:.0f} "
            f"| {1 - heard.useful / heard.computed:.1%} | {heard.useful / heard.whole:.1%} | {heard.shapes} |"
        )
    title = f"### Loader, {RECORDINGS} recordings of 1 to 16 s, batches of {BATCH_SECONDS} s at most, one thread"
    return f"{title}\n\n" + "\n".join(lines)


if __name__ == "__main__":
    print(run())

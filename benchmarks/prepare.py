"""Clips/s before and after `mmssl prepare`, and whether memory stays flat over 2,000 clips.

The video is a mosaic of real clips of the samples, 1280 x 720, 10 s at 30 frames/s, h264 with a key frame every 250
frames. Clips are 16 frames, stride 4, multi-scale crops at 224. Memory is measured in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console
from timing import alternate, table, timings

from mmssl.data.guard import return_memory
from mmssl.data.index import Index
from mmssl.data.media import Media, Record
from mmssl.data.prepare import PrepareSettings, run_prepare
from mmssl.data.sources import Source, open_source
from mmssl.data.views import VideoViews

SIZE, FRAMES, STRIDE = 224, 16, 4
SAMPLES = Path("datasets/samples/video/train")
ROWS, COLUMNS, SECONDS = 9, 16, 10
CALLS, EARLY = 2000, 200


def make_video(path: Path) -> None:
    """Encode the mosaic; each clip of 10 frames is played there and back."""
    clips = []
    for clip in sorted(SAMPLES.rglob("*.mp4"))[:: 633 // (ROWS * COLUMNS)][: ROWS * COLUMNS]:
        with av.open(str(clip)) as source:
            clips.append(np.stack([frame.to_ndarray(format="gray") for frame in source.decode(video=0)]))
    grid = np.stack(clips).reshape(ROWS, COLUMNS, *clips[0].shape)
    mosaic = grid.transpose(2, 0, 3, 1, 4).reshape(len(clips[0]), ROWS * 80, COLUMNS * 80)
    there_and_back = [*range(len(mosaic)), *range(len(mosaic) - 2, 0, -1)]
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=30, options={"g": "250", "keyint_min": "250", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = COLUMNS * 80, ROWS * 80, "yuv420p"
        for number in range(SECONDS * 30):
            picture = mosaic[there_and_back[number % len(there_and_back)]]
            target.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray")))
        target.mux(stream.encode())


def clip_of(source: Source) -> Callable[[], object]:
    views = VideoViews(SIZE, FRAMES, STRIDE)
    rng = np.random.default_rng(0)
    return lambda: views(source.media(0), rng)


def resident() -> float:
    """MiB of this process in memory now."""
    with open("/proc/self/statm") as line:
        return int(line.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _grow(folder: str, backend: str | None, sender: Connection) -> None:
    torch.set_num_threads(1)
    return_memory()  # as workers do
    index = Index.build(Path(folder), "video")
    rows = [row for row in index.rows() if backend is None or index.record(row).backend == backend]
    media = [Media(index.record(row), index.root) for row in rows]
    if backend is None:
        media = [Media(Record(id=one.name, kind="video", path=one.record.path), one.root) for one in media]
    views, rng = VideoViews(64, 8, 1), np.random.default_rng(0)
    sizes = {}
    for call in range(1, CALLS + 1):
        views(media[call % len(media)], rng)
        if call in (EARLY, CALLS):
            sizes[call] = resident()
    sender.send((sizes[EARLY], sizes[CALLS]))


def memory(folder: Path, backend: str | None) -> tuple[float, float]:
    """MiB resident after 200 and after 2,000 clips from the files of `folder`; backend None: all by PyAV."""
    context = multiprocessing.get_context("spawn")  # nothing of this process may count
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_grow, args=(str(folder), backend, sender))
    process.start()
    sizes: tuple[float, float] = receiver.recv()
    process.join()
    return sizes


def run(rounds: int = 7) -> str:
    """Two tables as Markdown."""
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        data.mkdir()
        make_video(data / "clip.mp4")
        began = time.perf_counter()
        with open(os.devnull, "w") as nowhere:
            run_prepare(PrepareSettings(data, out, workers=1), console=Console(file=nowhere))
        took = time.perf_counter() - began
        sizes = [path.stat().st_size / 1e6 for path in (data / "clip.mp4", out / "clip.mp4")]
        sources = {"prepared: 456 x 256, key frame every 16": out, "as it is: 1280 x 720, key frame every 250": data}
        calls = {name: clip_of(open_source(str(path), "video")) for name, path in sources.items()}
        clips = table(timings(alternate(calls, rounds)), "clip")
    lines = ["| 2,000 clips read by | MiB after 200 | MiB after 2,000 | growth, MiB |", "|---|---:|---:|---:|"]
    for name, backend in (("decord", "decord"), ("PyAV", None)):
        early, late = memory(SAMPLES, backend)
        lines.append(f"| {name} | {early:.0f} | {late:.0f} | {late - early:+.1f} |")
    return (
        "### `mmssl prepare`, one thread\n\n"
        f"A video of {SECONDS} s: {sizes[0]:.1f} MB became {sizes[1]:.1f} MB in {took:.1f} s, verified.\n\n"
        + clips
        + "\n\n### Memory over 2,000 clips of small files\n\n"
        + "\n".join(lines)
    )


if __name__ == "__main__":
    print(run())

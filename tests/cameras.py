"""A dot that moves on a closed-form way, filmed by two cameras of other rates, beginnings, colours and directions."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import av
import numpy as np


def place(seconds: float, seed: int) -> tuple[float, float]:
    """Of the dot, x and y in [0,1]."""
    a, b, c = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    return 0.5 + 0.45 * np.sin(1.1 * seconds + a), 0.5 + 0.3 * np.sin(1.7 * seconds + b) + 0.15 * np.sin(
        0.6 * seconds + c
    )


def film(path: Path, *, seed: int, rate: int, frames: int, begin: float = 0.0, mirrored: bool = False) -> Path:
    """One camera's file; its frame n shows second `begin` + n / rate of the scene."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:48, 0:64]
    container: Any
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 8
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1"}
        for number in range(frames):
            across, down = place(begin + number / rate, seed)
            across = 1 - across if mirrored else across
            dot = np.exp(-((x - 63 * across) ** 2 + (y - 47 * down) ** 2) / 30)[..., None]
            ground, colour = ((30, 60, 110), (250, 220, 90)) if mirrored else ((120, 90, 60), (60, 240, 200))
            picture = np.array(ground) * (1 - dot) + np.array(colour) * dot
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return path


RATES, OFFSETS, SECONDS = (20, 12), (0.0, 0.5), 4.0


def make_cameras(root: Path, sequences: int = 6, splits: bool = False) -> Path:
    """`dotN_cam1.mp4` (20 frames/s) and `dotN_cam2.mp4` (12 frames/s, begins half a second later), cameras.csv with the
    offsets, and labels.csv with the place of the dot."""
    told, labels = [], []
    for number in range(sequences):
        folder = "" if not splits else "train/" if number < sequences - 2 else "test/"
        name = f"{folder}dot{number}"
        for camera, (rate, offset) in enumerate(zip(RATES, OFFSETS, strict=True), 1):
            file = f"{name}_cam{camera}.mp4"
            film(root / file, seed=number, rate=rate, frames=int(SECONDS * rate), begin=offset, mirrored=camera == 2)
            told.append([name, f"cam{camera}", file, offset])
        labels += [[name, t / 20, *place(t / 20, number)] for t in range(100)]
    for file, header, rows in (
        ("cameras.csv", ["sequence", "camera", "file", "offset"], told),
        ("labels.csv", ["sequence", "time", "x", "y"], labels),
    ):
        with (root / file).open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(header)
            writer.writerows(rows)
    return root

"""A scene that two cameras of other rates, beginnings and directions film: a dot that moves on a closed-form way, or
real footage, the clips of fish of datasets/samples."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

SAMPLES = Path(__file__).resolve().parents[1] / "datasets/samples"


def place(seconds: float, seed: int) -> tuple[float, float]:
    """Of the dot, x and y in [0,1]."""
    a, b, c = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    return 0.5 + 0.45 * np.sin(1.1 * seconds + a), 0.5 + 0.3 * np.sin(1.7 * seconds + b) + 0.15 * np.sin(
        0.6 * seconds + c
    )


def dot(seconds: float, seed: int, mirrored: bool) -> np.ndarray:
    """uint8 [48,64,3]: what a camera shows of the dot; a mirrored one sees other colours, too."""
    y, x = np.mgrid[0:48, 0:64]
    across, down = place(seconds, seed)
    across = 1 - across if mirrored else across
    spot = np.exp(-((x - 63 * across) ** 2 + (y - 47 * down) ** 2) / 30)[..., None]
    ground, colour = ((30, 60, 110), (250, 220, 90)) if mirrored else ((120, 90, 60), (60, 240, 200))
    return (np.array(ground) * (1 - spot) + np.array(colour) * spot).astype(np.uint8)


def fish(seconds: float, seed: int, mirrored: bool) -> np.ndarray:
    """uint8 [48,64,3]: real frames, cut out of one place or, mirrored, another one."""
    frame = footage(seconds, seed)
    return frame[24:72, :15:-1] if mirrored else frame[8:56, :64]


def darkest(seconds: float, seed: int) -> tuple[float, float]:
    """Centre of what is dark, that is of the fish, x and y in [0,1]."""
    dark = (255.0 - footage(seconds, seed).mean(2)) ** 4
    y, x = np.mgrid[0:80, 0:80] / 79
    return float((x * dark).sum() / dark.sum()), float((y * dark).sum() / dark.sum())


def footage(seconds: float, seed: int) -> np.ndarray:
    """uint8 [80,80,3]: one clip of ten frames, 28 a second, after the other."""
    number = int(seconds * 28)
    return clip(13 * seed + number // 10)[number % 10]


@cache
def clip(number: int) -> np.ndarray:
    """uint8 [10,80,80,3]."""
    files = sorted((SAMPLES / "video/train").rglob("*.mp4"))
    with av.open(str(files[number])) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def film(
    path: Path,
    *,
    seed: int,
    rate: int,
    frames: int,
    begin: float = 0.0,
    mirrored: bool = False,
    scene: Callable[[float, int, bool], np.ndarray] = dot,
) -> Path:
    """One camera's file; its frame n shows second `begin` + n / rate of the scene."""
    path.parent.mkdir(parents=True, exist_ok=True)
    container: Any
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 8
        stream.options = {"crf": "12", "preset": "veryfast", "threads": "1"}
        for number in range(frames):
            picture = np.ascontiguousarray(scene(begin + number / rate, seed, mirrored))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


RATES, OFFSETS, SECONDS = (20, 12), (0.0, 0.5), 4.0


def make_cameras(root: Path, sequences: int = 6, splits: bool = False, real: bool = False) -> Path:
    """`dotN_cam1.mp4` (20 frames/s) and `dotN_cam2.mp4` (12 frames/s, begins half a second later), cameras.csv with the
    offsets, and labels.csv with the place of the dot; `real`: of fish in its stead."""
    scene, where = (fish, darkest) if real else (dot, place)
    told, labels = [], []
    for number in range(sequences):
        folder = "" if not splits else "train/" if number < sequences - 2 else "test/"
        name = f"{folder}dot{number}"
        for camera, (rate, offset) in enumerate(zip(RATES, OFFSETS, strict=True), 1):
            file = f"{name}_cam{camera}.mp4"
            shown: dict[str, Any] = {"frames": int(SECONDS * rate), "begin": offset, "mirrored": camera == 2}
            film(root / file, seed=number, rate=rate, scene=scene, **shown)
            told.append([name, f"cam{camera}", file, offset])
        labels += [[name, t / 20, *where(t / 20, number)] for t in range(100)]
    for file, header, rows in (
        ("cameras.csv", ["sequence", "camera", "file", "offset"], told),
        ("labels.csv", ["sequence", "time", "x", "y"], labels),
    ):
        with (root / file).open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(header)
            writer.writerows(rows)
    return root

"""Pictures of a run: what the objective saw and predicted, as small files with their captions beside them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from mmssl.types import Picture

SMALLEST = 96
"""Pixels: smaller cells are enlarged by a whole factor, nearest neighbour, so that patch borders stay crisp."""
GAP = 4
SAMPLE_GAP = 12
FRAME_MS = 160
STRIP_FRAMES = 8
MOVING, STRIP = 160, 112
"""Pixels: larger frames are shrunk, since encoding an animation of full frames takes seconds of the run."""
MAX_ROWS = 8
COLOURS = matplotlib.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
"""uint8 [256,3]."""


@dataclass(frozen=True)
class Sidecar:
    """What stands beside a picture file, under the same name with the ending .json."""

    step: int
    name: str
    kind: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    """First and past-the-last pixel line of each sample in `still`."""
    layout: Literal["across", "down"]
    """'across': one row a sample, one column a stage. 'down': wide cells, the stages of a sample below each other."""
    still: str
    animation: str | None
    """File name of the animated WebP of a clip; its layout is always 'across'."""


def save_pictures(out: Path, step: int, pictures: dict[str, Picture]) -> list[Path]:
    """Write OUT/pictures/step-000200-<name>.png, for clips an animated .webp as well, and a .json with the captions.

    Clips become an animation (all cells play together) and a strip of frames; spectrograms become heat maps, low
    frequencies at the bottom, one colour scale a row, NaN grey.

    Returns the picture files written. Raises ValueError for a picture without rows or of an unknown kind.
    """
    folder = Path(out) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, picture in pictures.items():
        stem = f"step-{step:06d}-{re.sub(r'[^A-Za-z0-9_]+', '_', name)}"
        rows = [_cells(picture.kind, row) for row in picture.rows[:MAX_ROWS]]
        if not rows or not rows[0]:
            raise ValueError(f"picture '{name}' has no rows")
        still, animation = folder / f"{stem}.png", None
        if picture.kind == "clip":
            animation = folder / f"{stem}.webp"
            _save_animation(rows, animation)
            rows = [[_strip(cell) for cell in row] for row in rows]
        layout: Literal["across", "down"] = "down" if rows[0][0].shape[1] >= 2 * rows[0][0].shape[0] else "across"
        samples = [grid([row] if layout == "across" else [[cell] for cell in row]) for row in rows]
        ends = np.cumsum([len(sample) + SAMPLE_GAP for sample in samples]).tolist()
        extents = tuple(
            (end - SAMPLE_GAP - len(sample), end - SAMPLE_GAP) for end, sample in zip(ends, samples, strict=True)
        )
        _save(grid([[sample] for sample in samples], SAMPLE_GAP), still)
        moving = None if animation is None else animation.name
        sidecar = Sidecar(step, name, picture.kind, picture.columns, extents, layout, still.name, moving)
        _write(folder / f"{stem}.json", json.dumps(asdict(sidecar), indent=1).encode())
        written += [still] if animation is None else [still, animation]
    return written


def _cells(kind: str, row: Sequence[Tensor]) -> list[np.ndarray]:
    """A row's cells as uint8 [h,w,3], or [T,h,w,3] of clips, enlarged to SMALLEST."""
    values = [cell.detach().cpu().numpy() for cell in row]
    if kind == "spectrogram":
        low, high = colour_range(values)
        return [enlarge(heat_map(cell, low, high)) for cell in values]
    if kind not in ("image", "clip"):
        raise ValueError(f"unknown kind of picture: '{kind}'")
    return [enlarge(np.moveaxis(cell, -3, -1)) for cell in values]


def colour_range(spectrograms: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 1st and 99th percentile over all of them, so that one loud click does not make the rest black."""
    values = np.concatenate([spectrogram[np.isfinite(spectrogram)].ravel() for spectrogram in spectrograms])
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, [1, 99])
    return float(low), float(max(high, low + 1e-6))


def heat_map(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Spectrogram float [F,T] -> uint8 [F,T,3], the lowest frequency in the last line."""
    unit = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
    colours = COLOURS[np.round(unit * 255).astype(np.uint8)]
    colours[~np.isfinite(values)] = 128
    return colours[::-1]


def enlarge(pixels: np.ndarray, smallest: int = SMALLEST) -> np.ndarray:
    """Repeat the pixels of [...,h,w,3] by the smallest whole factor that makes both sides at least `smallest`."""
    factor = math.ceil(smallest / min(pixels.shape[-3:-1]))
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2) if factor > 1 else pixels


def grid(rows: Sequence[Sequence[np.ndarray]], gap: int = GAP) -> np.ndarray:
    """Cells uint8 [h,w,3 or 4] -> one image [.,.,4]; smaller cells are centred, gaps are transparent (dark pages)."""
    height = [max(cell.shape[0] for cell in row) for row in rows]
    width = [max(row[column].shape[1] for row in rows) for column in range(len(rows[0]))]
    canvas = np.zeros((sum(height) + gap * (len(height) - 1), sum(width) + gap * (len(width) - 1), 4), np.uint8)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            y = sum(height[:i]) + gap * i + (height[i] - cell.shape[0]) // 2
            x = sum(width[:j]) + gap * j + (width[j] - cell.shape[1]) // 2
            place = canvas[y : y + cell.shape[0], x : x + cell.shape[1]]
            place[..., 3] = 255
            place[..., : cell.shape[2]] = cell
    return canvas


def _shrink(clip: np.ndarray, largest: int) -> np.ndarray:
    """uint8 [T,h,w,3] with both sides at most `largest`, averaging."""
    share = largest / max(clip.shape[1:3])
    if share >= 1:
        return clip
    size = (round(clip.shape[2] * share), round(clip.shape[1] * share))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in clip])


def _strip(clip: np.ndarray) -> np.ndarray:
    """uint8 [T,h,w,3] -> up to STRIP_FRAMES evenly spaced frames side by side, [h,n*w,3]."""
    chosen = np.linspace(0, len(clip) - 1, min(len(clip), STRIP_FRAMES)).round().astype(int)
    return np.concatenate(list(_shrink(clip[chosen], STRIP)), axis=1)


def _save_animation(rows: list[list[np.ndarray]], file: Path) -> None:
    rows = [[_shrink(clip, MOVING) for clip in row] for row in rows]
    length = max(len(clip) for row in rows for clip in row)
    frames = [
        Image.fromarray(grid([[clip[min(t, len(clip) - 1)] for clip in row] for row in rows])) for t in range(length)
    ]
    part = file.with_suffix(".part")
    frames[0].save(part, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME_MS, quality=80, method=2)
    os.replace(part, file)


def _save(pixels: np.ndarray, file: Path) -> None:
    part = file.with_suffix(".part")
    Image.fromarray(pixels).save(part, "PNG")
    os.replace(part, file)


def _write(file: Path, content: bytes) -> None:
    # Renamed into place: a report made while the run goes on must never read half a file.
    part = file.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, file)

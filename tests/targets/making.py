"""What the tests of making units share: recordings of real speech, and settings of k-means that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.targets import work
from mmssl.targets.make import run_kmeans
from mmssl.targets.settings import KmeansSettings
from mmssl.targets.units import Units

SAMPLES = Path(__file__).resolve().parents[2] / "datasets/samples/audio"
QUICK: dict[str, Any] = {"clusters": 12, "frames": 3000, "batch_size": 500, "n_init": 2, "max_iter": 3, "workers": 0}


def speech(count: int, skip: int = 0) -> list[Path]:
    files = sorted(SAMPLES.rglob("*.ogg"))
    return files[skip :: len(files) // (count + skip)][:count]


def small_chunks() -> None:
    """27 recordings in 6 chunks."""
    work.CHUNK_FILES = 5


def kmeans(data: Path, out: Path, **more: Any) -> Units:
    return run_kmeans(KmeansSettings(data=str(data), out=out, **{**QUICK, **more}))


def content(units: Units) -> tuple[str, str, int]:
    return units.about["sha256"], units.about["codebook"], units.about["recordings"]

"""Small real media on disk, and the narrow part of a Source that evaluation uses, over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from mmssl.data.media import Media, Record


def write_stripes(root: Path, per_class: int = 12, size: int = 40, seed: int = 0) -> Path:
    """Pictures of two classes, stripes that lie and stripes that stand, with noise: root/class/name.png."""
    rng = np.random.default_rng(seed)
    for label, axis in (("lying", 0), ("standing", 1)):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            wave = np.sin(np.arange(size) * rng.uniform(0.6, 1.2) + rng.uniform(0, 6))
            stripes = np.broadcast_to(np.expand_dims(wave, 1 - axis), (size, size))
            colour = rng.uniform(40, 100, 3)
            pixels = 128 + stripes[..., None] * colour + rng.normal(0, 15, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / label / f"{number:03d}.png")
    return root


@dataclass
class FolderSource:
    """Files of a list in order; what `mmssl.data.sources.Source` offers, without an index."""

    root: Path
    records: list[Record]

    @property
    def fingerprint(self) -> str:
        return repr(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, split: str | None) -> np.ndarray:
        return np.array([i for i, r in enumerate(self.records) if split in (None, r.split)], dtype=np.int64)

    def label(self, row: int) -> str | None:
        return self.records[row].label

    def id(self, row: int) -> str:
        return self.records[row].id

    def media(self, row: int) -> Media:
        return Media(self.records[row], root=self.root)


def write_moving_squares(root: Path, files: int, frames: int, seed: int = 0) -> Path:
    """Videos of a bright square that moves at its own speed over noise: root/name.mp4."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(files):
        ground, place, step = rng.integers(0, 80, (64, 64, 3)), rng.uniform(0, 50, 2), rng.uniform(0.3, 1.0, 2)
        with av.open(str(root / f"{number:02d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for time in range(frames):
                top, left = ((place + step * time) % 50).astype(int)
                picture = ground.astype(np.uint8).copy()
                picture[top : top + 12, left : left + 12] = 230
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return root


def write_tones(root: Path, per_class: int = 10, seed: int = 0) -> Path:
    """Recordings of two pitches in noise: root/class/name.wav, 1 s at 16 kHz."""
    rng = np.random.default_rng(seed)
    for label, pitch in (("high", 3000.0), ("low", 400.0)):
        (root / label).mkdir(parents=True)
        for number in range(per_class):
            phase = 2 * np.pi * pitch * rng.uniform(0.9, 1.1) * np.arange(16000) / 16000
            soundfile.write(root / label / f"{number}.wav", 0.3 * np.sin(phase) + rng.normal(0, 0.01, 16000), 16000)
    return root

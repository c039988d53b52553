"""Small real media on disk, and the narrow part of a Source that evaluation uses, over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
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

"""Units on disk: the codes of whole recordings (or of the evaluation view of a picture), found by the id of the sample.

UNITS/ holds
    units.json            what the features are, hop and rate, hashes, counts, quality; written last, so where it stands
                          all the others are whole
    codebook.safetensors  the centroids that the codes are numbers of
    units.npy             int16 or int32 [all labels], recording after recording
    offsets.npy           uint64 [recordings,3]: hash of the id, first label, number of labels; sorted
    index.parquet         the table of the media (not of Hub data sets)
    skipped.jsonl         recordings that could not be read, with the reason
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.errors import UserError
from mmssl.files import sync_path, write_json, writing
from mmssl.targets.codebook import Codebook

FORMAT = 1
ABOUT, CODEBOOK, LABELS, OFFSETS, SKIPPED = (
    "units.json",
    "codebook.safetensors",
    "units.npy",
    "offsets.npy",
    "skipped.jsonl",
)


@dataclass(frozen=True)
class Units:
    """The units of one source. Picklable; each process maps the files when it first reads from them."""

    folder: Path
    about: dict[str, Any] = field(repr=False)
    """Content of units.json."""

    @staticmethod
    def open(folder: str | Path) -> Units:
        """Raises UserError where there are none, target making has not ended, or files do not belong together."""
        folder = Path(folder)
        about = read_about(folder)
        units = Units(folder, about)
        if Codebook.load(folder / CODEBOOK).sha256 != about["codebook"]:
            raise UserError(
                f"{folder / CODEBOOK} is not the codebook that the units in {folder} were made with: put that back, "
                "or make the units again."
            )
        if units._labels.shape != (about["labels"],) or units._offsets.shape != (about["recordings"], 3):
            raise UserError(f"{folder} holds {LABELS} of another length than {ABOUT} says: make the units again.")
        return units

    @property
    def codes(self) -> int:
        """Number of codes; labels lie in [0, codes)."""
        return int(self.about["codes"])

    @property
    def hop(self) -> int:
        """Samples of sound, at `rate_in`, from one label to the next."""
        return self._timing("hop")

    @property
    def window(self) -> int:
        """Samples under one label: label n is of samples [n hop, n hop + window)."""
        return self._timing("window")

    @property
    def rate_in(self) -> int:
        """Hz of the sound that `hop` and `window` count."""
        return self._timing("rate")

    def of(self, id: str) -> np.ndarray:
        """Labels of the whole recording, int16 or int32 [N]; none (N = 0) of one that is shorter than a window.

        Raises KeyError where this recording has no units: it is of another source, or could not be read.
        """
        place = self._place(id)
        if place is None:
            raise KeyError(
                f"{self.folder} holds no units of {id}: make units of the data that you train on, and look into "
                f"{self.folder / SKIPPED} for what could not be read"
            )
        first, count = int(self._offsets[place, 1]), int(self._offsets[place, 2])
        return self._labels[first : first + count]

    def at_seconds(self, id: str, time: np.ndarray) -> np.ndarray:
        """int64, as many as times: the label whose samples lie nearest around each second of the recording, -1 where
        there is none. Raises KeyError as `of` does."""
        known = self.of(id)
        place = np.round((time * self.rate_in - self.window / 2) / self.hop).astype(np.int64)
        there = (place >= 0) & (place < len(known))
        labels = np.full(len(place), -1, np.int64)
        labels[there] = known[place[there]]
        return labels

    @property
    def sha256(self) -> str:
        """Of all labels."""
        return str(self.about["sha256"])

    def __contains__(self, id: str) -> bool:
        return self._place(id) is not None

    def verify(self) -> None:
        """Compare all labels with their hash. Raises UserError where they differ."""
        if hash_file(self.folder / LABELS) != self.sha256:
            raise UserError(
                f"{self.folder / LABELS} has other content than was written: remove the folder and make the units "
                "again, or restore the file from a copy."
            )

    def _place(self, id: str) -> int | None:
        keys, key = self._offsets[:, 0], _key(id)
        place = int(np.searchsorted(keys, key))
        return place if place < len(keys) and keys[place] == key else None

    def _timing(self, name: str) -> int:
        value = self.about[name]
        if value is None:
            raise UserError(f"The units in {self.folder} are of pictures of fixed size, not of whole recordings.")
        return int(value)

    @cached_property
    def _labels(self) -> np.ndarray:
        return _map(self.folder / LABELS)

    @cached_property
    def _offsets(self) -> np.ndarray:
        return _map(self.folder / OFFSETS)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "about": self.about}


def read_about(folder: Path) -> dict[str, Any]:
    """Content of units.json. Raises UserError where it is missing, damaged, or of another version."""
    file = folder / ABOUT
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name one that `mmssl targets kmeans --out` has written.")
    if not file.is_file():
        raise UserError(
            f"{folder} holds no {ABOUT}: it is no folder of units, or making them was stopped, and goes on with the "
            "same command."
        )
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        version = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}): make the units again.") from error
    if version != FORMAT:
        raise UserError(f"{file} is of version {version}, and this is version {FORMAT}: make the units again.")
    return dict(about)


def write_units(
    folder: Path, ids: Sequence[str], counts: np.ndarray, parts: Iterable[np.ndarray], about: dict[str, Any]
) -> Units:
    """Write units.npy, offsets.npy and, last, units.json, each whole or not at all, beside the codebook.

    Args:
        ids: of the recordings, each once.
        counts: int [recordings], labels of each; at least one label in all.
        parts: arrays that hold all labels, recording after recording.
        about: what units.json shall hold besides what is counted here; `codes` sets the type of the labels.

    Raises:
        UserError: a file cannot be written.
    """
    total = int(counts.sum())
    kind = np.int16 if about["codes"] <= np.iinfo(np.int16).max + 1 else np.int32
    with _replacing(folder / LABELS) as part:
        labels = np.lib.format.open_memmap(part, "w+", kind, (total,))
        done = 0
        for piece in parts:
            labels[done : done + len(piece)] = piece
            done += len(piece)
        if done != total:
            raise ValueError(f"{done} labels came and {total} were announced")
        labels.flush()
    keys = np.array([_key(id) for id in ids], np.uint64)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    offsets = np.stack([keys, starts.astype(np.uint64), counts.astype(np.uint64)], 1)[keys.argsort()]
    if len(np.unique(keys)) < len(keys):
        raise ValueError("two ids are equal, or have the same hash of 64 bits")
    with _replacing(folder / OFFSETS) as part:
        np.save(part, offsets)
    facts = {"format": FORMAT, "labels": total, "recordings": len(ids), "sha256": hash_file(folder / LABELS)}
    write_json(folder / ABOUT, facts | about)
    return Units.open(folder)


def hash_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A part file that takes the place of `file` when all went well."""
    part = file.with_name(f".{file.stem}.part{file.suffix}")
    with writing(file):
        try:
            yield part
            sync_path(part)
            os.replace(part, file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _key(id: str) -> np.uint64:
    """64 bits of the id: a table of a million recordings takes 24 MB that all workers share, and no dictionary."""
    return np.uint64(int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little"))


def _map(file: Path) -> np.ndarray:
    try:
        mapped: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} cannot be read ({error}): make the units again.") from error
    return mapped

"""Synchronised cameras: which files film the same scene, and on which clock.

Files belong together by name: what stands before the last `_camX` or `/camX` of a file's name (without extension) is
the sequence, `camX` the camera, as in `pour_cam1.mp4` and `pour_cam2.mp4`, or `pour/cam1.mp4` and `pour/cam2.mp4`. A
`cameras.csv` in the folder itself says it for files of other names, and when cameras were started at other moments:

    sequence,camera,file,offset
    pour,left,GOPR0012.MP4,0
    pour,right,GOPR0313.MP4,1.52

`offset` is the second, on the clock of the sequence, at which the file begins (0 if empty). A camera with a file of
frame rate r that begins at o shows at second t of that clock its frame nearest to (t - o) r; the average rate counts
where it varies.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.media import Media
from mmssl.data.sources import SHOWN, Source
from mmssl.data.video import open_video
from mmssl.errors import UserError

NAME = re.compile(r"(?P<sequence>.+)[_/](?P<camera>cam[0-9A-Za-z-]*)", re.IGNORECASE)
TABLE = "cameras.csv"
COLUMNS = {"sequence", "camera", "file"}


@dataclass(frozen=True, slots=True)
class Camera:
    """One camera of a sequence."""

    name: str
    media: Media
    offset: float
    """Second of the sequence's clock at which the file begins."""

    @property
    def last(self) -> float:
        """Second of the sequence's clock that the last frame shows."""
        record = self.media.record
        assert record.frames is not None
        assert record.rate is not None
        return self.offset + (record.frames - 1) / record.rate

    def frames_at(self, times: np.ndarray) -> np.ndarray:
        """Seconds of the sequence's clock [n] -> the nearest frames of the file, int64 [n]."""
        record = self.media.record
        assert record.frames is not None
        nearest = np.rint((times - self.offset) * (record.rate or 0.0)).astype(np.int64)
        return nearest.clip(0, record.frames - 1)


@dataclass(frozen=True, slots=True)
class CameraMedia(Media):
    """All cameras of one sequence; as plain media it is the file of the first one."""

    cameras: tuple[Camera, ...] = ()

    @property
    def span(self) -> tuple[float, float]:
        """First and last second that all cameras show."""
        return max(camera.offset for camera in self.cameras), min(camera.last for camera in self.cameras)


@dataclass(frozen=True, slots=True)
class Sequence:
    id: str
    cameras: tuple[tuple[str, int, float], ...]
    """(name, row of the files' source, offset), by name."""
    problem: str | None = None


class CameraSource(Source):
    """Sequences of synchronised cameras as rows, over a source of their files. Ids are the sequences' names.

    A sequence that cannot be used (fewer than two sound cameras, or none of their time in common) is a problem like a
    broken file. Cameras of different length are used where they overlap; `notes` says so.

    Raises:
        UserError: no sequence can be used, more than `max_bad_share` of them cannot, or cameras.csv is wrong.
    """

    kind = "video"

    def __init__(self, files: Source, max_bad_share: float = 0.05) -> None:
        self.files = files
        usable = set(files.rows(None).tolist())
        broken = dict(files.problems())
        places: dict[str, dict[str, tuple[int, float]]] = {}
        ids = {files.id(row): row for row in range(len(files))}
        for name, (sequence, camera, offset) in _belonging(ids, _root(files)).items():
            cameras = places.setdefault(sequence, {})
            if camera in cameras:
                other = files.id(cameras[camera][0])
                raise UserError(
                    f"Camera {camera} of sequence {sequence} has two files, {other} and {name}: rename one of them, or "
                    f"tell them apart in {TABLE}."
                )
            cameras[camera] = ids[name], offset
        self._sequences = []
        for sequence, cameras in sorted(places.items()):
            sound = tuple((name, *cameras[name]) for name in sorted(cameras) if cameras[name][0] in usable)
            lost = [files.id(row) for row, _ in cameras.values() if row not in usable]
            self._sequences.append(Sequence(sequence, sound, _problem(files, sound, lost, broken)))
        self._check(max_bad_share)

    def _check(self, max_bad_share: float) -> None:
        where = _root(self.files) or "the data"
        if not self._sequences:
            raise UserError(
                f"{where} holds {len(self.files)} videos, and none is named as one of several cameras: name them "
                f"SEQUENCE_cam1.mp4 and SEQUENCE_cam2.mp4, or list them in {TABLE} (sequence,camera,file,offset)."
            )
        bad = [(one.id, one.problem) for one in self._sequences if one.problem is not None]
        if len(bad) == len(self._sequences) or len(bad) > max_bad_share * len(self._sequences):
            some = "; ".join(f"{name}: {problem}" for name, problem in bad[:SHOWN])
            more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise UserError(
                f"{len(bad)} of {len(self._sequences)} sequences in {where} cannot be used ({some}{more}). Add the "
                f"missing files, mend {TABLE}, or raise --max-bad-share ({max_bad_share:g})."
            )

    def __len__(self) -> int:
        return len(self._sequences)

    def rows(self, split: str | None = None) -> np.ndarray:
        chosen = None if split is None else set(self.files.rows(split).tolist())
        found = [
            row
            for row, one in enumerate(self._sequences)
            if one.problem is None and (chosen is None or one.cameras[0][1] in chosen)
        ]
        return np.array(found, dtype=np.int64)

    def media(self, row: int) -> CameraMedia:
        cameras = tuple(
            Camera(name, self.files.media(file), offset) for name, file, offset in self._sequences[row].cameras
        )
        first = cameras[0].media
        return CameraMedia(first.record, first.root, first.data, cameras)

    def label(self, row: int) -> str | None:
        cameras = self._sequences[row].cameras
        label = self.files.label(cameras[0][1]) if cameras else None
        return None if label == PurePosixPath(self.id(row)).name else label  # a folder of its own is no class

    def id(self, row: int) -> str:
        return self._sequences[row].id

    def labels(self) -> list[str]:
        return sorted({label for row in range(len(self)) if (label := self.label(row)) is not None})

    def problems(self) -> list[tuple[str, str]]:
        sequences = [(one.id, one.problem) for one in self._sequences if one.problem is not None]
        return [*self.files.problems(), *sequences]

    def notes(self) -> list[str]:
        uneven = []
        for row in self.rows(None).tolist():
            media = self.media(row)
            start, end = media.span
            frame = max(1.0 / (camera.media.record.rate or 1.0) for camera in media.cameras)
            if any(start - one.offset > frame or one.last - end > frame for one in media.cameras):
                told = ", ".join(f"{one.name} {one.offset:.2f} to {one.last:.2f} s" for one in media.cameras)
                uneven.append(f"{self.id(row)}: {told}, used from {start:.2f} to {end:.2f} s")
        if not uneven:
            return []
        return [
            f"{len(uneven)} of {len(self)} sequences have cameras that film different times; only what all of them "
            f"film is used (first, {uneven[0]})."
        ]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.files.fingerprint} {self._sequences}".encode()).hexdigest()


def _root(files: Source) -> Path | None:
    index = getattr(files, "index", None)
    return None if index is None else index.root


def _belonging(ids: dict[str, int], root: Path | None) -> dict[str, tuple[str, str, float]]:
    """{id of a file: (sequence, camera, offset)}: by cameras.csv, else by name; files that are neither are left out."""
    found = {}
    for name in ids:
        if match := NAME.fullmatch(str(PurePosixPath(name).with_suffix(""))):
            found[name] = match["sequence"], match["camera"], 0.0
    table = None if root is None else root / TABLE
    if table is None or not table.is_file():
        return found
    return found | _read_table(table, ids)


def _read_table(table: Path, ids: dict[str, int]) -> dict[str, tuple[str, str, float]]:
    found: dict[str, tuple[str, str, float]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{table} cannot be read ({error}): write it as sequence,camera,file,offset.") from error
    for line, row in enumerate(rows, 2):
        if not row.keys() >= COLUMNS or not all(row[name] for name in COLUMNS):
            raise UserError(f"{table}, line {line}, lacks sequence, camera or file: its columns are these and offset.")
        if row["file"] not in ids:
            raise UserError(
                f"{table}, line {line}, names the file {row['file']}, which is not in {table.parent}: mend the name, "
                "or take the line out."
            )
        try:
            offset = float(row.get("offset") or 0.0)
        except ValueError:
            offset = math.nan
        if not math.isfinite(offset):
            raise UserError(f"{table}, line {line}, has the offset '{row['offset']}': give seconds, such as 1.52.")
        found[row["file"]] = row["sequence"], row["camera"], offset
    return found


def _problem(files: Source, cameras: tuple[tuple[str, int, float], ...], lost: list[str], broken: dict) -> str | None:
    """Why a sequence cannot be used."""
    if len(cameras) < 2:
        reason = "".join(f"; {name} cannot be used: {broken.get(name, 'unknown')}" for name in lost)
        names = ", ".join(name for name, _, _ in cameras) or "none"
        return f"needs two cameras and has {len(cameras)} ({names}{reason})"
    known = [Camera(name, files.media(row), offset) for name, row, offset in cameras]
    if any(not one.media.record.frames or not one.media.record.rate for one in known):
        return "its length or frame rate is not known"
    last, first = max(known, key=lambda one: one.offset), min(known, key=lambda one: one.last)
    if first.last > last.offset:
        return None
    return (
        f"its cameras never film at the same time ({first.name} ends at {first.last:.2f} s and {last.name} begins at "
        f"{last.offset:.2f} s of the sequence)"
    )


def read_at(camera: Camera, times: np.ndarray, short_side: int | None = None) -> Tensor:
    """uint8 [n,3,H,W]: what a camera shows at seconds `times` [n] of the sequence's clock; one decode."""
    frames = camera.frames_at(times)
    union, place = np.unique(frames, return_inverse=True)
    return open_video(camera.media, short_side).read(union.tolist())[torch.from_numpy(place)]

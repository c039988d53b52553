"""One piece of media: what the index knows about it, and how its bytes are reached."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MOTION_A_SECOND = 4
"""Values of `Record.motion` a second of video, so that an hour takes 58 kB."""


class UnreadableMedia(Exception):
    """A file that cannot be decoded. The loader replaces it by another one and reports the reason."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the index. What only verification can know is None until then (rows of a Hub data set stay so)."""

    id: str
    """Unique and readable: path relative to the root, plus '/' and the member for tars."""
    kind: str
    """image, video or audio."""
    path: str = ""
    """Relative to the root."""
    member: str | None = None
    """Name inside the tar `path`; None for a plain file."""
    offset: int | None = None
    """Where the member's bytes begin in the tar."""
    size: int = 0
    """Bytes of the file or member."""
    mtime_ns: int = 0
    label: str | None = None
    split: str | None = None
    width: int | None = None
    """As displayed, after rotation by metadata."""
    height: int | None = None
    frames: int | None = None
    """True decoded count: frames of a video, samples a channel of audio, 1 for an image."""
    rate: float | None = None
    """Frames/s, or Hz."""
    channels: int | None = None
    duration: float | None = None
    """Seconds."""
    backend: str | None = None
    """Library that reads this file right: pillow, decord, pyav, soundfile."""
    motion: tuple[float, ...] | None = None
    """Of a video: mean absolute difference from frame to frame, in grey levels, of small grey frames whose mean
    brightness was taken away. Value n is the mean over the frames from n `motion_step(rate)` on."""
    silence: float | None = None
    """Of a sound: share of its 20 ms frames that lie 60 dB or more below full scale."""
    clipping: float | None = None
    """Of a sound: share of its samples that are at full scale, side by side."""
    problem: str | None = None
    """Why the file cannot be used, in plain words; None when it is sound."""


def motion_step(rate: float | None) -> float:
    """Frames that one value of `Record.motion` stands for: a quarter of a second, but one frame at least."""
    return max(1.0, (rate or 0.0) / MOTION_A_SECOND)


@dataclass(frozen=True, slots=True)
class Media:
    """A picklable handle: a plain file, a member of a tar, or bytes that came from a Hub data set."""

    record: Record
    root: Path | None = None
    data: bytes | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.record.id

    @property
    def path(self) -> Path | None:
        """The plain file, or None where only bytes exist (tar member, Hub row)."""
        if self.root is None or self.record.member is not None:
            return None
        return self.root / self.record.path

    def read(self) -> bytes:
        """All bytes of the file, the member, or the row."""
        if self.data is not None:
            return self.data
        if self.root is None:
            raise UnreadableMedia(f"{self.name}: the row holds neither bytes nor a path")
        with open(self.root / self.record.path, "rb") as file:
            if self.record.member is None:
                return file.read()
            file.seek(self.record.offset or 0)
            return file.read(self.record.size)

    def open(self) -> BinaryIO:
        """A seekable binary file, to be closed by the caller."""
        if self.path is not None:
            return open(self.path, "rb")
        return io.BytesIO(self.read())

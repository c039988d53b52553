"""Write one video anew so that clips are cheap to read: small, a key frame every few frames, constant rate, mp4.

Runs as a child process of `prepare`, since a decoder can crash or hang; torch is not imported.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from mmssl.data.children import Answer, serve
from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.data.probe import Damage, refuse_empty, verdict, video_frames, video_stream
from mmssl.data.sound_track import LONGEST_GAP, SoundTrack
from mmssl.data.video_writer import COLOURS, VideoWriter, even_size
from mmssl.errors import UserError
from mmssl.files import sync_path, writing

OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Failures that only writing has: they stop everything, and are no fault of the video."""

Timed = Iterator[tuple[float, Any]]
"""(seconds since the first frame, frame)"""


@dataclass(frozen=True)
class Encoding:
    """How videos are written."""

    short_side: int = 256
    """Pixels; a video that is smaller is not enlarged."""
    key_frames: int = 16
    """Frames from one key frame to the next: no more are decoded in vain before a clip."""
    rate: float | None = None
    """Frames/s; None: the average of the source."""
    sound: bool = True
    """Keep the first sound track, as aac; else it is dropped."""
    crf: int = 20
    """Quality of x264, 0 to 51: lower is better and larger; 6 less doubles the size."""


def transcode(media: Media, target: Path, encoding: Encoding) -> Answer:
    """Write `media` to `target`, upright, its first frame at 0 s; returns facts about it.

    Each frame of `target` shows what the source shows at that time, give or take half a frame. Sound is as long as the
    picture at most. Raises UnreadableMedia and what the decoder raises; a video that ends in damage is refused.
    """
    source: Any
    refuse_empty(media)
    with media.open() as file:
        with av.open(file, metadata_errors="ignore") as source:
            average = _average_rate(source, video_stream(source))
        file.seek(0)
        with av.open(file, metadata_errors="ignore") as source:
            return _transcode(media, source, average, target, encoding)


def _transcode(media: Media, source: Any, average: Fraction, target: Path, encoding: Encoding) -> Answer:
    damage = Damage()
    stream = video_stream(source)
    frames = video_frames(source, stream, damage)
    first = next(frames, None)
    if first is None:
        raise UnreadableMedia(f"no frame can be decoded (the header promises {stream.frames})")
    rate = average if encoding.rate is None else Fraction(encoding.rate).limit_denominator(1001)
    turns = round(first.rotation / 90) % 4
    sides = (first.height, first.width) if turns % 2 else (first.width, first.height)
    size = even_size(*sides, encoding.short_side)
    shown, picture = first, _picture(first, size, turns)
    with ExitStack() as opened:
        writer = opened.enter_context(
            VideoWriter(target, *size, rate, key_frames=encoding.key_frames, crf=encoding.crf)
        )
        writer.looks_like(picture, _pixel_aspect(stream, turns))
        sound = opened.enter_context(closing(SoundTrack(media, writer, first.time or 0.0))) if encoding.sound else None
        for frame in steady(in_time(chain((first,), frames), float(1 / average)), float(rate), float(average)):
            if frame is not shown:
                shown, picture = frame, _picture(frame, size, turns)
            writer.write(picture)
            if sound is not None:
                sound.write_until(writer.frames / rate)
    if (problem := damage.verdict("frame")) is not None:
        raise UnreadableMedia(problem)
    return {"frames": writer.frames, "note": sound.note if sound is not None else None}


def _average_rate(container: Any, stream: Any) -> Fraction:
    """Frames/s: the header's where the time stamps bear it out to 1 %, else theirs."""
    header = stream.average_rate or stream.guessed_rate
    shown: list[int] = []
    broken, before = False, None
    with suppress(av.error.FFmpegError):  # damage is judged when the frames are decoded
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size and stamp is not None and not packet.is_discard:
                shown.append(stamp)
            if packet.dts is not None:
                broken |= before is not None and packet.dts < before
                before = packet.dts
    shown.sort()
    steps = [late - early for early, late in pairwise(shown)]
    steps = [step for step in steps if step * stream.time_base <= LONGEST_GAP]
    if broken or not sum(steps):
        return header or Fraction(25)  # of a single frame, any
    measured = len(steps) / (sum(steps) * stream.time_base)
    if header and abs(measured / header - 1) < 0.01:
        return Fraction(header)
    return Fraction(measured).limit_denominator(1001)


def in_time(frames: Iterable[Any], step: float) -> Timed:
    """Each frame with its time from the first one on; `step` after the one before where time stamps are missing or
    broken."""
    start, last = 0.0, -step
    for frame in frames:
        if last < 0:
            start, now = frame.time or 0.0, 0.0
        else:
            now = last + step if frame.time is None else frame.time - start
            if not last - step <= now <= last + LONGEST_GAP:
                start += now - (last + step)
                now = last + step
        last = max(now, last)
        yield last, frame


def steady(timed: Timed, rate: float, source_rate: float) -> Iterator[Any]:
    """The frame of each tick of `rate`: the last one that began by then, half a frame of the faster rate granted, so
    that rounded time stamps neither drop nor repeat a frame. The last frame is shown for as long as the average one."""
    grace = 0.5 / max(rate, source_rate)
    number, last, held = 0, 0.0, None
    for now, frame in timed:
        while number / rate + grace < now:
            yield held
            number += 1
        last, held = now, frame
    while number < max(1, round((last + 1 / source_rate) * rate)):
        yield held
        number += 1


def _picture(frame: Any, size: tuple[int, int], turns: int) -> Any:
    """Scaled and upright, 8 bit 4:2:0."""
    width, height = size if turns % 2 == 0 else size[::-1]
    picture = frame.reformat(width, height, "yuv420p", interpolation="BICUBIC", threads=1)
    if turns == 0:
        return picture
    planes = picture.to_ndarray().ravel()
    luma = planes[: width * height].reshape(height, width)
    chroma = planes[width * height :].reshape(2, height // 2, width // 2)
    turned = [np.rot90(plane, turns).ravel() for plane in (luma, *chroma)]
    upright = av.VideoFrame.from_ndarray(np.concatenate(turned).reshape(size[1] * 3 // 2, size[0]), format="yuv420p")
    for name in COLOURS:
        setattr(upright, name, getattr(picture, name))
    return upright


def _pixel_aspect(stream: Any, turns: int) -> Fraction | None:
    aspect: Fraction | None = stream.sample_aspect_ratio
    return 1 / aspect if aspect and turns % 2 else aspect


def _act(job: dict[str, Any], tell: Callable[[Answer], None]) -> None:
    """Tell what became of one file; what stands at `target` is replaced by something whole only."""
    media, target = Media(Record(**job["record"]), Path(job["root"])), Path(job["target"])
    # By process: one whose parent was killed may still be at the same file when the next run begins.
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with writing(target):
            part.parent.mkdir(parents=True, exist_ok=True)
            part.open("wb").close()
        answer = transcode(media, part, Encoding(**job["encoding"]))
        with writing(target):
            sync_path(part)
            os.replace(part, target)
        tell(answer)
    except UserError as error:
        tell({"stop": str(error)})
    except Exception as error:  # every library raises its own classes
        tell(_stop(error, target) or verdict(media, error))
    finally:
        part.unlink(missing_ok=True)


def _stop(error: Exception, target: Path) -> Answer | None:
    """Why nothing more can be written, if that is what `error` says."""
    if getattr(error, "errno", None) not in OF_THE_TARGET:
        return None
    try:
        with writing(target):
            raise OSError(error.errno, "") from error  # type: ignore[attr-defined]
    except UserError as sentence:
        return {"stop": str(sentence)}


def main() -> None:
    av.logging.set_level(av.logging.ERROR)  # kept with the exception that follows
    serve(_act)


if __name__ == "__main__":
    main()

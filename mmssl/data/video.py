"""Read frames of a video by number: decord first, PyAV where the index says that decord gets this file wrong."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from mmssl.data.media import Media, UnreadableMedia

Result = TypeVar("Result")


class VideoReader(Protocol):
    """Frames are numbered 0..frames-1 in the order of display. Not picklable: open it in the process that reads."""

    frames: int
    rate: float
    """Frames/s; the average where the rate varies."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """uint8 [n,3,H,W] RGB, in the order asked. ValueError beyond the verified range; UnreadableMedia on damage."""
        ...


def open_video(media: Media, short_side: int | None = None) -> VideoReader:
    """Open with the backend that the index names; rows that nobody verified (Hub) are read by PyAV.

    `short_side`: frames whose short side is longer are scaled down to it while they are decoded, which is cheaper than
    any later resize. Raises UnreadableMedia naming file and backend.
    """
    decord = media.record.backend == "decord" and media.record.frames is not None
    reader: type[DecordReader] | type[PyAVReader] = DecordReader if decord else PyAVReader
    return _named(media, reader.backend, lambda: reader(media, short_side))


class DecordReader:
    backend = "decord"

    def __init__(self, media: Media, short_side: int | None = None) -> None:
        import decord  # here, so that image and audio work where decord has no wheel

        record = media.record
        self._media = media
        self.frames = record.frames or 0
        self.rate = record.rate or 0.0
        size = _scaled(record.width, record.height, short_side)
        width, height = size if size is not None and not _misread_by_decord(size[0]) else (-1, -1)
        # One thread: the loader's workers are the parallelism. fault_tol=1 makes decord raise where it would silently
        # repeat the frame before a damaged one.
        self._video = decord.VideoReader(
            str(media.path) if media.path is not None else media.open(),
            num_threads=1,
            width=width,
            height=height,
            fault_tol=1,
        )

    def read(self, indices: Sequence[int]) -> Tensor:
        def decode(wanted: list[int]) -> np.ndarray:
            frames: np.ndarray = self._video.get_batch(wanted).asnumpy()
            return frames

        return _read(self, self._media, indices, decode)


def _misread_by_decord(width: int) -> bool:
    """decord takes a row of its scaler, padded to a multiple of 32 pixels, for more channels where the width divides it
    (16, 24, 48 and 72 pixels), and then fails: such frames are decoded at full size."""
    padded = -(-width // 32) * 32
    return padded != width and 3 * padded % width == 0


class PyAVReader:
    """Seeks to the key frame before and decodes up to the asked time stamps, so varying rates and edit lists are exact.

    Where time stamps are missing or disagree with the verified count, frames are counted from the start instead.
    """

    backend = "pyav"

    def __init__(self, media: Media, short_side: int | None = None) -> None:
        self._media = media
        self._short_side = short_side
        self._scaler = VideoReformatter()
        with self._open() as container:
            stream = _video_stream(container, media.name)
            self._stamps, self._keys = _time_stamps(container, stream)
            average = float(stream.average_rate or 0.0)
        if media.record.frames is None:
            self.frames = len(self._stamps) or self._count()
            self.rate = average
        else:
            self.frames = media.record.frames
            self.rate = media.record.rate or average
        if len(self._stamps) != self.frames:
            self._stamps, self._keys = [], []

    def read(self, indices: Sequence[int]) -> Tensor:
        return _read(self, self._media, indices, self._decode)

    def _decode(self, wanted: list[int]) -> np.ndarray:
        if self._stamps:
            found = self._by_stamp(wanted)
            if len(found) == len(wanted):
                return np.stack([found[index] for index in wanted])
        return self._by_count(wanted)

    def _by_stamp(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Frames by index; short where a seek landed wrong, which the caller mends by counting."""
        found: dict[int, np.ndarray] = {}
        stamps = {self._stamps[index]: index for index in wanted}
        with self._open() as container:
            stream = _video_stream(container, self._media.name)
            ahead: int | None = None
            frames: Iterator[Any] = iter(())
            for index in wanted:
                stamp = self._stamps[index]
                if index in found:
                    continue
                key = self._keys[max(bisect.bisect_right(self._keys, stamp) - 1, 0)]
                if ahead is None or key > ahead:  # a key frame lies between: skip what is before it
                    container.seek(key, stream=stream, backward=True)
                    frames = container.decode(stream)
                    first = True
                for frame in frames:
                    if frame.pts is None or (first and frame.pts > stamp):
                        return {}
                    first, ahead = False, frame.pts
                    if frame.pts in stamps and stamps[frame.pts] not in found:
                        found[stamps[frame.pts]] = self._pixels(frame)
                    if frame.pts >= stamp:
                        break
        return found

    def _by_count(self, wanted: list[int]) -> np.ndarray:
        found = []
        asked = set(wanted)
        with self._open() as container:
            for number, frame in enumerate(container.decode(_video_stream(container, self._media.name))):
                if number in asked:
                    found.append(self._pixels(frame))
                if number == wanted[-1]:
                    return np.stack(found)
        raise UnreadableMedia(f"{self._media.name}: PyAV finds no frame {wanted[-1]}; the file changed, index it again")

    def _count(self) -> int:
        with self._open() as container:
            return sum(1 for _ in container.decode(_video_stream(container, self._media.name)))

    def _pixels(self, frame: Any) -> np.ndarray:
        """uint8 [H,W,3], scaled, turned upright by the rotation in the metadata."""
        quarter_turns = round(frame.rotation / 90) % 4
        size = _scaled(frame.width, frame.height, self._short_side)
        width, height = size or (frame.width, frame.height)
        # Bilinear is what decord's filter does; of swscale's filters it comes closest to it. A scaler of its own a
        # frame, with threads of its own, takes several times as long as small frames take to decode.
        scaled = self._scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR", threads=1)
        pixels = scaled.to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels

    def _open(self) -> Any:
        # A BytesIO is shared by nobody, so closing the container is enough for both kinds of source.
        source = str(self._media.path) if self._media.path is not None else self._media.open()
        return av.open(source, metadata_errors="ignore")


def _read(
    reader: VideoReader, media: Media, indices: Sequence[int], decode: Callable[[list[int]], np.ndarray]
) -> Tensor:
    """Sort and de-duplicate, since decoders pay for every step back; give the frames in the order asked."""
    if len(indices) == 0:
        raise ValueError(f"{media.name}: no frames were asked for")
    numbers = np.asarray(indices, dtype=np.int64)
    if numbers.min() < 0 or numbers.max() >= reader.frames:
        raise ValueError(
            f"{media.name}: frame {numbers.min()}..{numbers.max()} asked of {reader.frames} verified frames"
        )
    wanted, order = np.unique(numbers, return_inverse=True)
    backend: str = type(reader).backend  # type: ignore[attr-defined]
    frames = torch.from_numpy(_named(media, backend, lambda: decode(wanted.tolist())))
    if len(wanted) != len(numbers) or not np.array_equal(order, np.arange(len(order))):
        frames = frames[torch.from_numpy(order)]
    return frames.permute(0, 3, 1, 2)


def _named(media: Media, backend: str, act: Callable[[], Result]) -> Result:
    """Decoders raise exceptions of many classes, none of which names the file."""
    try:
        return act()
    except UnreadableMedia:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreadableMedia(f"{media.name}: {backend} cannot decode it ({reason})") from error


def _video_stream(container: Any, name: str) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            stream.codec_context.thread_count = 1
            return stream
    raise UnreadableMedia(f"{name}: not a video: no video stream")


def _time_stamps(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Sorted presentation times of all shown frames and of the key frames, read from packets without decoding them.
    Empty lists where a packet has no time or two have the same."""
    stamps: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.pts is None:
            return [], []
        if packet.is_keyframe:
            keys.append(packet.pts)
        if not packet.is_discard:  # an edit list hides frames that others are predicted from
            stamps.append(packet.pts)
    if len(set(stamps)) != len(stamps) or not keys:
        return [], []
    return sorted(stamps), sorted(keys)


def _scaled(width: int | None, height: int | None, short_side: int | None) -> tuple[int, int] | None:
    """(width, height) with the asked short side, or None where the frame is small enough as it is."""
    if short_side is None or width is None or height is None or min(width, height) <= short_side:
        return None
    scale = short_side / min(width, height)
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))

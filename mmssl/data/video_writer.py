"""Write a video file that is cheap to read at random places. torch is not imported: a child process uses it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS_A_CHANNEL = 64_000
"""Of sound, a second."""
COLOURS = ("color_range", "colorspace", "color_primaries", "color_trc")


class VideoWriter:
    """h264 in an mp4 whose header comes first: closed groups of `key_frames` frames, 8 bit 4:2:0, one thread.

    The bit stream depends on the frames alone. Use it as a context; the file is complete after it.
    """

    def __init__(
        self, path: Path, width: int, height: int, rate: Fraction, *, key_frames: int = 16, crf: int = 20
    ) -> None:
        flags = {"movflags": "+faststart", "fflags": "+bitexact"}
        self._container: Any = av.open(str(path), "w", format="mp4", options=flags)
        self.video: Any = self._container.add_stream("libx264", rate=rate)
        self.video.width, self.video.height, self.video.pix_fmt = width, height, "yuv420p"
        self.video.codec_context.time_base = 1 / rate
        self.video.codec_context.thread_count = 1
        # With its macroblock tree, x264 writes other bytes from run to run.
        x264 = f"threads=1:no-mbtree=1:keyint={key_frames}:min-keyint={key_frames}:scenecut=0:open-gop=0"
        self.video.options = {"crf": str(crf), "preset": "veryfast", "flags": "+bitexact", "x264-params": x264}
        self._rate = rate
        self.frames = 0

    def looks_like(self, picture: Any, pixel_aspect: Fraction | None) -> None:
        """Note the meaning of the colours of PyAV's frames, and the shape of a pixel; call it before the first one."""
        for name in COLOURS:
            setattr(self.video.codec_context, name, getattr(picture, name))
        if pixel_aspect:
            self.video.codec_context.sample_aspect_ratio = pixel_aspect

    def add_sound(self, rate: int, layout: str) -> Any:
        """An aac stream; call it before the first frame."""
        stream = self._container.add_stream("aac", rate=rate, layout=layout)
        stream.codec_context.bit_rate = BITS_A_CHANNEL * len(stream.layout.channels)
        return stream

    def write(self, picture: np.ndarray | av.VideoFrame) -> None:
        """The next frame: uint8 [H,W,3], or PyAV's."""
        frame: Any = picture
        if isinstance(picture, np.ndarray):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = self.frames, 1 / self._rate
        frame.pict_type = av.video.frame.PictureType.NONE  # else x264 takes over the source's key frames
        self.frames += 1
        self.mux(self.video, frame)

    def mux(self, stream: Any, frame: Any) -> None:
        self._container.mux(stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                for stream in self._container.streams:
                    self.mux(stream, None)
        finally:
            self._container.close()


def even_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with this short side or the own smaller one, both even as 4:2:0 asks, never enlarged."""
    scale = min(1.0, short_side / min(width, height))
    evened = (max(2, min(2 * round(side * scale / 2), side // 2 * 2)) for side in (width, height))
    return next(evened), next(evened)

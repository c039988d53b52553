"""Pictures of a tracked video: colours, outlines, strips and films."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmssl.files import writing

STRIP_FRAMES = 6
STRIP_WIDTH = 240
CAPTION = 18
RATE = 24
"""Frames a second of the films, as DAVIS plays."""


@cache
def colours(count: int) -> np.ndarray:
    """uint8 [count,3]: the palette of PASCAL VOC and DAVIS; 0 is black."""
    palette = np.zeros((count, 3), np.uint8)
    for number in range(count):
        for bit in range(8):
            for channel in range(3):
                palette[number, channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return palette


def outline(numbers: np.ndarray) -> np.ndarray:
    """bool [H,W]: pixels of a mask [H,W] one of whose four neighbours is of another object."""
    edge = np.zeros(numbers.shape, bool)
    down, across = numbers[1:] != numbers[:-1], numbers[:, 1:] != numbers[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge & (numbers > 0)


def dot(picture: np.ndarray, point: np.ndarray, radius: int, colour: np.ndarray) -> None:
    """Paint a filled circle into uint8 [H,W,3]; nothing for NaN."""
    if not np.isnan(point).any():
        y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
        picture[(x - point[0]) ** 2 + (y - point[1]) ** 2 <= radius**2] = colour


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """uint8 [h,240,3]."""
    height = max(1, round(picture.shape[0] * STRIP_WIDTH / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((STRIP_WIDTH, height), Image.Resampling.BICUBIC))


def save_strip(file: Path, rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Rows of captioned pictures [h,w,3], time from left to right."""
    cell = rows[0][1][0].shape
    gap = 4
    width = len(rows[0][1]) * (cell[1] + gap) + gap
    canvas = Image.new("RGB", (width, len(rows) * (cell[0] + CAPTION + gap)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for number, (caption, cells) in enumerate(rows):
        top = number * (cell[0] + CAPTION + gap)
        pen.text((gap, top + 1), caption, "black", font)
        for column, picture in enumerate(cells):
            canvas.paste(Image.fromarray(picture), (gap + column * (cell[1] + gap), top + CAPTION))
    with writing(file):
        canvas.save(file)


def save_mask(file: Path, mask: np.ndarray) -> None:
    """A palette PNG of object numbers uint8 [H,W]."""
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(colours(256).tobytes())
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)


class Film:
    """Writes frames uint8 [H,W,3] one by one into an mp4 file: H.264 where PyAV has an encoder for it, else MPEG-4."""

    def __init__(self, file: Path, height: int, width: int) -> None:
        self.file = file
        self.even = height + height % 2, width + width % 2  # the formats store colour at half the resolution
        with writing(file):
            self.container = av.open(str(file), "w", options={"movflags": "+faststart"})
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = self.container.add_stream(codec, rate=RATE)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = self.even
        stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            stream.bit_rate = 4_000_000
        self.stream = stream

    def add(self, picture: np.ndarray) -> None:
        extra = [(0, self.even[0] - picture.shape[0]), (0, self.even[1] - picture.shape[1]), (0, 0)]
        frame = av.VideoFrame.from_ndarray(np.pad(picture, extra, "edge"), format="rgb24")
        with writing(self.file):
            self.container.mux(self.stream.encode(frame))

    def __enter__(self) -> Film:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Close the file; what an exception left half done is removed."""
        with writing(self.file):
            if kind is None:
                self.container.mux(self.stream.encode(None))
            self.container.close()
        if kind is not None:
            self.file.unlink(missing_ok=True)

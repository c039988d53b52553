"""Small real media files for tests, good and broken in every way that users meet; encoded on the spot.

Every video frame carries its number as black and white blocks, so that a test can tell which frame a decoder gave.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image
from torch import Tensor

BLOCK = 16
BITS = 10


# ---------------------------------------------------------------- images


def pixels(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 [H,W,3]: smooth colour with a bright rectangle, different for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    planes = [127 + 100 * np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.uniform(-2, 2, (3, 3))]
    image = np.stack(planes, axis=-1).astype(np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    image[top : top + height // 4, left : left + width // 4] = rng.integers(0, 256, 3)
    return image


def make_image(path: Path, height: int = 48, width: int = 64, seed: int = 0, **save: Any) -> Path:
    """An image in the format of the extension; `save` goes to Pillow (exif=..., quality=...)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(height, width, seed)).save(path, **save)
    return path


def make_image_tree(root: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 6, size: int = 48) -> Path:
    """root/{train,test}/CLASS/N.png: `each` images a class in train, half as many in test."""
    seed = 0
    for split, count in (("train", each), ("test", max(1, each // 2))):
        for name in classes:
            for number in range(count):
                seed += 1
                make_image(root / split / name / f"{number}.png", size, size + 16, seed)
    return root


# ---------------------------------------------------------------- videos


def numbered_frame(number: int, height: int = 96, width: int = 160, seed: int = 0) -> np.ndarray:
    """uint8 [H,W,3]: a moving pattern with `number` in binary as BITS blocks in the upper left corner."""
    y, x = np.mgrid[0:height, 0:width]
    phase = number * 0.25 + seed
    image = np.stack(
        [127 + 90 * np.sin(x / 9 + phase + k) * np.cos(y / 11 - 0.7 * phase + k) for k in range(3)], axis=-1
    )
    image = image.astype(np.uint8)
    for bit in range(BITS):
        top, left = bit // 5 * BLOCK, bit % 5 * BLOCK
        image[top : top + BLOCK, left : left + BLOCK] = 255 if number >> bit & 1 else 0
    return image


def frame_numbers(frames: Tensor | np.ndarray, block: float = BLOCK) -> list[int]:
    """The numbers that frames [n,3,H,W] carry; `block`: side of a block, if they were scaled."""
    numbers = []
    for frame in np.asarray(frames):
        number = 0
        for bit in range(BITS):
            y, x = int((bit // 5 + 0.5) * block), int((bit % 5 + 0.5) * block)
            number |= int(frame[:, y, x].mean() > 127) << bit
        numbers.append(number)
    return numbers


def make_video(
    path: Path,
    frames: int = 30,
    *,
    height: int = 96,
    width: int = 160,
    rate: int = 30,
    gop: int = 12,
    codec: str = "libx264",
    times: Iterable[float] | None = None,
    sound: bool = False,
    faststart: bool = True,
    seed: int = 0,
) -> Path:
    """A video of numbered frames, in the container of the extension.

    Args:
        gop: frames from one key frame to the next.
        times: seconds of each frame, for a varying frame rate; the default is `rate`.
        sound: with a 440 Hz sound track as long as the video.
        faststart: header before the data (mp4), so that a truncated file still opens.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart"} if faststart and path.suffix in (".mp4", ".mov", ".m4v") else {}
    container: Any
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = gop
        if codec == "libx264":
            stream.options = {"preset": "veryfast", "crf": "18", "sc_threshold": "0", "threads": "1"}
        else:
            stream.bit_rate = 2_000_000
        clock = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        stream.codec_context.time_base = clock
        stamps = [round(t * 1000) for t in times] if times is not None else range(frames)
        voice = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        if voice is not None:
            _encode_sound(container, voice, tone(440.0, frames / rate, 44100), 44100)
        for number, stamp in zip(range(frames), stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, height, width, seed), format="rgb24")
            frame.pts, frame.time_base = stamp, clock
            container.mux(stream.encode(frame))
        if frames == 0:
            container.start_encoding()  # the header of a video without frames
        container.mux(stream.encode(None))
    return path


def varying_times(frames: int, seed: int = 0) -> list[float]:
    """Seconds of frames whose distances vary from 10 to 150 ms."""
    steps = np.random.default_rng(seed).integers(10, 150, frames) / 1000
    return list(np.cumsum(steps) - steps[0])


def edit_list_video(path: Path, frames: int = 90, hidden: int = 29) -> Path:
    """An mp4 cut without re-encoding, as `ffmpeg -ss ... -c copy` does: `hidden` frames are stored and not shown. The
    first shown frame is number `hidden`."""
    whole = make_video(path.with_name(f"whole-{path.name}"), frames, gop=30)
    source: Any
    target: Any
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = round(hidden / (stream.average_rate * stream.time_base))
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            target.mux(packet)
    whole.unlink()
    return path


def rotate_mp4(path: Path) -> Path:
    """Mark an mp4 as filmed by a phone held upright: to be turned by 90 degrees clockwise for display."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version and flags 4, times and ids 20, reserved 8, layer.. 8
    fixed = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    content[at : at + 36] = np.array(fixed, ">i4").tobytes()
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------- sound


def tone(hertz: float, seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """float32 [S]: a tone with some noise, so that no two parts of it are equal."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.4 * np.sin(2 * np.pi * hertz * time) + 0.05 * noise).astype(np.float32)


def make_audio(
    path: Path, seconds: float = 1.0, *, rate: int = 16000, channels: int = 1, hertz: float = 440.0, seed: int = 0
) -> Path:
    """A sound file in the format of the extension: by soundfile, and by PyAV where soundfile does not know it (m4a)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = np.stack([tone(hertz * (k + 1), seconds, rate, seed + k) for k in range(channels)], axis=1)
    if path.suffix[1:].upper() in soundfile.available_formats() or path.suffix in (".aif", ".opus"):
        kind = {".aif": "AIFF", ".opus": "OGG"}.get(path.suffix)
        soundfile.write(path, sound, rate, format=kind, subtype="OPUS" if path.suffix == ".opus" else None)
        return path
    container: Any
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono" if channels == 1 else "stereo")
        _encode_sound(container, stream, sound, rate)
    return path


def _encode_sound(container: Any, stream: Any, sound: np.ndarray, rate: int) -> None:
    sound = sound.reshape(len(sound), -1).T
    layout = "mono" if len(sound) == 1 else "stereo"
    for start in range(0, sound.shape[1], 1024):
        part = np.ascontiguousarray(sound[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


# ---------------------------------------------------------------- tars, and damage


def make_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """An uncompressed tar of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def truncate(path: Path, share: float = 0.6) -> Path:
    """Keep the first `share` of the bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def corrupt(path: Path, start: float = 0.5, stop: float = 0.6, seed: int = 0) -> Path:
    """Overwrite the bytes from share `start` to share `stop` by noise."""
    content = bytearray(path.read_bytes())
    first, last = int(len(content) * start), int(len(content) * stop)
    content[first:last] = np.random.default_rng(seed).bytes(last - first)
    path.write_bytes(content)
    return path


def broken_videos(folder: Path) -> dict[str, Path]:
    """One of each video that cannot be used, by what is wrong with it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "truncated": truncate(make_video(folder / "truncated.mp4", 90)),
        "moov-less": truncate(make_video(folder / "moovless.mp4", 60, faststart=False), 0.8),
        "corrupt": corrupt(make_video(folder / "corrupt.mp4", 90)),
        "audio-only": make_audio(folder / "sound-only.mp4"),
        "wrong extension": folder / "picture.mp4",
        "zero-length": folder / "zero.mp4",
        "junk": folder / "junk.mp4",
        "no frames": make_video(folder / "none.mp4", 0),
    }
    make_image(folder / "picture.png").rename(made["wrong extension"])
    made["zero-length"].write_bytes(b"")
    made["junk"].write_bytes(np.random.default_rng(0).bytes(5000))
    return made


def odd_videos(folder: Path) -> dict[str, tuple[Path, list[int]]]:
    """Videos that are sound and trip decoders: {what: (file, the numbers its frames carry)}."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "edit list": (edit_list_video(folder / "edit-list.mp4", 90, 29), list(range(29, 90))),
        "transport stream, long GOP": (make_video(folder / "long-gop.ts", 300, gop=250), list(range(300))),
        "varying rate": (make_video(folder / "vfr.mkv", 60, times=varying_times(60)), list(range(60))),
        "one frame": (make_video(folder / "one.mp4", 1), [0]),
        "avi": (make_video(folder / "plain.avi", 40, codec="mpeg4"), list(range(40))),
        "webm": (make_video(folder / "plain.webm", 40, codec="libvpx-vp9"), list(range(40))),
        "with sound": (make_video(folder / "sound.mp4", 40, sound=True), list(range(40))),
    }

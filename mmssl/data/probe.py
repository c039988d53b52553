"""Decode one file to its end and say what is in it, in a child process that may be killed.

A decoder can crash or hang with the interpreter's lock held, so nothing here runs in the process of the user.
torch is not imported, which keeps the start of a child below half a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from mmssl.data.children import serve
from mmssl.data.levels import Levels, frame_samples
from mmssl.data.media import Media, Record, UnreadableMedia, motion_step

Facts = dict[str, Any]
"""Columns of the index that verification fills in."""

SIGNATURES = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF....WEBP", "a WebP image"),
    (b"RIFF....WAVE", "a WAV sound"),
    (b"RIFF....AVI ", "an AVI video"),
    (b"fLaC", "a FLAC sound"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 sound"),
    (b"....ftyp", "an MP4 file"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "HTML or XML text"),
    (b"{", "JSON text"),
)
"""How common files begin ('.' is any byte), to say what a file with the wrong extension is."""
FORMATS = {"image": "image", "video": "video", "audio": "sound"}
SAME_FRAME = 8.0
"""Mean difference in grey levels up to which two decoders' frames count as the same one: colour conversion differs by
about 1, a neighbouring frame of a moving picture by more."""
MOTION_SIDE = 32
"""Pixels: motion is measured on grey frames of this size."""
SOUND_BLOCK = 1 << 14
"""Samples read at once; damage is located to this."""
GIVE_UP = 50
"""Damaged packets in a row after which the rest of a stream is given up."""


def probe(media: Media, tell: Callable[[Facts], None]) -> None:
    """Verify one file and `tell` the facts. A video tells twice: what is true when PyAV has decoded it, and then
    whether decord agrees; whoever kills the second step still has the first."""
    kind = media.record.kind
    try:
        refuse_empty(media)
        if kind == "image":
            tell(probe_image(media))
        elif kind == "audio":
            tell(probe_audio(media))
        else:
            facts, samples = probe_video(media)
            tell(facts)
            if samples:
                tell({"backend": "decord" if decord_agrees(media, samples) else "pyav"})
    except Exception as error:  # every library raises its own classes
        tell(verdict(media, error))


def refuse_empty(media: Media) -> None:
    if (media.path.stat().st_size if media.path is not None else media.record.size) == 0:
        raise UnreadableMedia("empty file")


def verdict(media: Media, error: Exception) -> Facts:
    """Why the file cannot be used, from what reading it raised."""
    if isinstance(error, PermissionError | FileNotFoundError):
        return {"problem": f"cannot be opened: {error.strerror}", "keep": False}
    if isinstance(error, UnreadableMedia):
        return {"problem": what_it_is(media) or str(error)}
    return {"problem": what_it_is(media) or f"cannot be decoded as {FORMATS[media.record.kind]}: {reason(error)}"}


def probe_image(media: Media) -> Facts:
    from PIL import Image, ImageOps

    with media.open() as file, Image.open(file) as image:
        image.load()  # all pixels, so that truncation shows
        width, height = ImageOps.exif_transpose(image).size
        channels = len(image.getbands())
    return _facts(width=width, height=height, frames=1, channels=channels, backend="pillow")


def probe_audio(media: Media) -> Facts:
    import soundfile

    try:
        with media.open() as stream, soundfile.SoundFile(stream) as file:
            promised, rate, channels = file.frames, file.samplerate, file.channels
            cut = _shorter_than_its_header(file.extra_info)
            frames, stopped, levels = 0, None, Levels(rate, file.subtype)
            try:
                while len(block := file.read(SOUND_BLOCK, dtype="float32", always_2d=True)):
                    frames += len(block)
                    levels.add(block)
            except soundfile.LibsndfileError as error:
                stopped = reason(error)
    except soundfile.LibsndfileError:
        return _probe_sound_track(media)
    facts = _facts(frames=frames, rate=float(rate), channels=channels, duration=frames / rate, backend="soundfile")
    facts |= levels.shares()
    if stopped:
        facts["problem"] = f"truncated or damaged after sample {frames} ({stopped.rstrip('.')})"
    elif cut or frames < promised:
        facts["problem"] = f"truncated after sample {frames}"
    elif frames == 0:
        facts["problem"] = "no samples"
    elif levels.not_finite:
        facts["problem"] = f"{levels.not_finite} samples are no numbers (NaN or infinite)"
    return facts


def _shorter_than_its_header(log: str) -> bool:
    """Whether libsndfile's log of a wav or aiff says that its data chunk ends early. Programs that write to a pipe put
    the largest numbers there, which means that the length is not known."""
    found = re.search(r"^(?:data|SSND) : (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    return found is not None and int(found[2]) < int(found[1]) < 0x7FFFF000


def _probe_sound_track(media: Media) -> Facts:
    """Sound in a container: mp4, mkv, m4a, ... through PyAV."""
    import av

    frames, rate, channels = 0, 0, 0
    container: Any
    with media.open() as stream, av.open(stream, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise UnreadableMedia("no sound: no audio stream")
        damage, levels = Damage(), None
        for frame in decode_on(container, container.streams.audio[0], damage):
            frames += frame.samples
            rate, channels = frame.sample_rate, frame.layout.nb_channels
            damage.decoded = frames
            levels = levels or Levels(rate)
            levels.add(frame_samples(frame))
    if levels is None:
        return {"problem": "the audio stream holds no samples that decode"}
    facts = _facts(frames=frames, rate=float(rate), channels=channels, duration=frames / rate, backend="pyav")
    return facts | levels.shares() | {"problem": damage.verdict("sample")}


def probe_video(media: Media) -> tuple[Facts, dict[int, np.ndarray]]:
    """Count, size, rate and motion of the frames that decode, and a few of them (first, one at a power of two, last) to
    compare decord with: {index: uint8 [H,W,3]}; none where decord need not be asked, since it mixes up the sides of a
    rotated video that it scales, and a damaged one is not read at all."""
    import av

    container: Any
    last = None
    times: list[float] = []
    samples: dict[int, Any] = {}
    with media.open() as stream, av.open(stream, metadata_errors="ignore") as container:
        video = video_stream(container)
        average = float(video.average_rate or 0)
        promised = video.frames
        damage, motion = Damage(), _Motion()
        for count, frame in enumerate(video_frames(container, video, damage)):
            if count & (count - 1) == 0:  # 0, 1, 2, 4, ...: ends as the first frame and one far from both ends
                samples = {index: kept for index, kept in samples.items() if index == 0} | {count: frame}
            if frame.time is not None:
                times.append(frame.time)
            motion.add(frame)
            last = frame
    count = damage.decoded
    if last is None:
        return {"problem": f"no frame can be decoded (the header promises {promised})"}, {}
    samples[count - 1] = last
    quarter_turns = round(last.rotation / 90) % 4
    height, width = (last.height, last.width) if quarter_turns % 2 == 0 else (last.width, last.height)
    rate = _rate(times, average)
    facts = _facts(width=width, height=height, frames=count, rate=rate, channels=3, backend="pyav")
    facts["duration"] = count / rate if rate else None
    facts["motion"] = motion.values(rate)
    facts["problem"] = damage.verdict("frame")
    if quarter_turns or facts["problem"] is not None:
        return facts, {}
    return facts, {index: frame.to_ndarray(format="rgb24") for index, frame in samples.items()}


def video_stream(container: Any) -> Any:
    """The first video stream that is no cover picture. Raises UnreadableMedia saying what the file is instead."""
    import av

    if container.format.name.endswith("_pipe") or container.format.name in ("image2", "tty"):
        raise UnreadableMedia(f"not a video: its content is {container.format.long_name}")
    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        raise UnreadableMedia("not a video: no video stream" + (", only sound" if container.streams.audio else ""))
    return videos[0]


def video_frames(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    """All frames that are shown and can be decoded; what is wrong with them is noted in `damage`."""
    for count, frame in enumerate(decode_on(container, stream, damage)):
        if frame.is_corrupt:
            damage.corrupt(count)
        damage.decoded = count + 1
        yield frame


def decord_agrees(media: Media, samples: dict[int, np.ndarray]) -> bool:
    """Whether decord counts and shows the same frames. It may hang here, holding the interpreter's lock."""
    import decord

    try:
        video = decord.VideoReader(
            str(media.path) if media.path is not None else media.open(), num_threads=1, fault_tol=1
        )
        if len(video) != max(samples) + 1:
            return False
        for index in sorted(samples, reverse=True):  # the last first, which asks for a long seek
            frame = video.get_batch([index]).asnumpy()[0]
            if frame.shape != samples[index].shape:
                return False
            if np.abs(frame.astype(np.int16) - samples[index]).mean() > SAME_FRAME:
                return False
    except Exception:
        return False
    return True


class Damage:
    """What went wrong while a stream was decoded on beyond its damage."""

    def __init__(self) -> None:
        self.decoded = 0
        self.first: int | None = None
        self.good_since = False

    def error(self) -> None:
        if self.first is None:
            self.first = self.decoded

    def corrupt(self, index: int) -> None:
        if self.first is None:
            self.first = index
        self.good_since = True

    def verdict(self, unit: str) -> str | None:
        if self.first is None:
            return None
        if self.good_since:
            return f"damaged after {unit} {self.first}"
        return f"truncated after {unit} {self.decoded}"


class _Motion:
    """How much moves from each frame of a video to the next: `Record.motion`."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()  # one a frame would start threads a frame
        self._before: np.ndarray | None = None
        self._steps: list[float] = []

    def add(self, frame: Any) -> None:
        small = self._scaler.reformat(frame, MOTION_SIDE, MOTION_SIDE, "gray", interpolation="AREA", threads=1)
        grey = small.to_ndarray().astype(np.float32)
        grey -= grey.mean()  # a light that flickers is no motion
        self._steps.append(0.0 if self._before is None else float(np.abs(grey - self._before).mean()))
        self._before = grey

    def values(self, rate: float) -> list[float]:
        value = (np.arange(1, len(self._steps)) / motion_step(rate)).astype(np.int64)
        count = int((len(self._steps) - 1) / motion_step(rate)) + 1
        moved = np.bincount(value, self._steps[1:], count) / np.maximum(np.bincount(value, minlength=count), 1)
        return [round(step, 3) for step in moved.tolist()]


def decode_on(container: Any, stream: Any, damage: Damage) -> Any:
    """All frames that can be decoded; errors are noted and stepped over."""
    import av

    stream.codec_context.thread_count = 1
    packets = container.demux(stream)
    in_a_row = 0
    while in_a_row < GIVE_UP:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            damage.error()
            in_a_row += 1
            packets = container.demux(stream)
            continue
        try:
            yield from packet.decode()
            if damage.first is not None and packet.size:
                damage.good_since = True
            in_a_row = 0
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            damage.error()
            in_a_row += 1


def _rate(times: list[float], average: float) -> float:
    """Frames/s: the header's where the time stamps bear it out to 1 %, else theirs."""
    if len(times) > 1 and times[-1] > times[0]:
        measured = (len(times) - 1) / (times[-1] - times[0])
        return average if average and abs(measured / average - 1) < 0.01 else measured
    return average


def _facts(**columns: Any) -> Facts:
    return {"width": None, "height": None, "duration": None, "rate": None, "problem": None} | columns


def what_it_is(media: Media) -> str | None:
    """`wrong extension: ...` where the first bytes are those of another kind of file than its extension says."""
    with media.open() as file:
        head = file.read(16)
    kind, extension = media.record.kind, (media.record.member or media.record.path).rpartition(".")[2].lower()
    for pattern, what in SIGNATURES:
        if len(head) >= len(pattern) and all(p in (ord("."), byte) for p, byte in zip(pattern, head, strict=False)):
            same = FORMATS[kind] in what or (kind != "image" and what.endswith("file"))
            return None if same else f"wrong extension: named .{extension}, but it is {what}"
    return None


def reason(error: Exception) -> str:
    """One line without the file's name, which stands beside it; FFmpeg's own log says more than its error codes."""
    import av

    if isinstance(error, av.error.FFmpegError):
        logged = f" ({str(error.log[-1]).strip()})" if error.log else ""
        return f"{error.strerror}{logged}"
    text = str(error).strip().splitlines()
    return re.sub(r" ?'?<_io\S+ object at 0x\w+>'?", "", text[0]) if text else type(error).__name__


def main() -> None:
    import av

    av.logging.set_level(av.logging.ERROR)  # kept with the exception that follows
    serve(lambda job, tell: probe(Media(Record(**job["record"]), Path(job["root"])), tell))


if __name__ == "__main__":
    main()

"""Claims: every kind of broken file gets its verdict in plain words within the time limit, and every kind of odd but
sound file is read whole, each frame once; a decoder that hangs or crashes costs its file and nothing else; a file that
goes bad after it was indexed raises an error that names it.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mmssl.data import children
from mmssl.data.audio import read_audio
from mmssl.data.images import decode_image
from mmssl.data.index import Index
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.video import PyAVReader, open_video
from tests.media import (
    broken_videos,
    corrupt,
    frame_numbers,
    make_audio,
    make_image,
    make_video,
    odd_videos,
    truncate,
)

LIMIT = 30.0


def verdicts(root: Path, kind: str, cache: Path, timeout: float = LIMIT) -> dict[str, Media]:
    index = Index.build(root, kind, workers=2, timeout=timeout, cache=cache)
    return {index.record(row).id: Media(index.record(row), index.root) for row in range(len(index))}


# ---------------------------------------------------------------- videos


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Media]:
    root = tmp_path_factory.mktemp("broken")
    made = broken_videos(root)
    began = time.monotonic()
    media = verdicts(root, "video", tmp_path_factory.mktemp("cache"))
    assert time.monotonic() - began < LIMIT * len(made) / 2
    return {what: media[path.name] for what, path in made.items()}


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        ("truncated", r"truncated after frame \d+"),
        ("moov-less", r"cannot be decoded as video: .*moov atom not found.*"),
        ("corrupt", r"damaged after frame \d+"),
        ("audio-only", "not a video: no video stream, only sound"),
        ("wrong extension", r"wrong extension: named \.mp4, but it is a PNG image"),
        ("zero-length", "empty file"),
        ("junk", "cannot be decoded as video: .*"),
        ("no frames", "not a video: no video stream|no frame can be decoded.*"),
    ],
)
def test_verdict_on_a_broken_video(broken: dict[str, Media], what: str, verdict: str) -> None:
    problem = broken[what].record.problem
    assert problem is not None
    assert re.fullmatch(verdict, problem), problem


def test_damage_is_located(broken: dict[str, Media]) -> None:
    """60 % of the bytes of 90 frames, the middle tenth overwritten."""
    found = {what: broken[what].record.problem or "" for what in ("truncated", "corrupt")}
    at = {what: int(problem.rpartition(" ")[2]) for what, problem in found.items()}
    assert 35 <= at["truncated"] <= 65
    assert 25 <= at["corrupt"] <= 65


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Media, list[int]]]:
    root = tmp_path_factory.mktemp("odd")
    made = odd_videos(root)
    media = verdicts(root, "video", tmp_path_factory.mktemp("cache"))
    return {what: (media[path.name], numbers) for what, (path, numbers) in made.items()}


def test_odd_videos_are_read_whole_and_no_frame_twice(odd: dict[str, tuple[Media, list[int]]]) -> None:
    for what, (media, numbers) in odd.items():
        assert media.record.problem is None, what
        reader = open_video(media)
        assert reader.frames == len(numbers), what
        assert frame_numbers(reader.read(range(reader.frames))) == numbers, what


def test_decord_gets_some_of_them_wrong(odd: dict[str, tuple[Media, list[int]]]) -> None:
    """Else the check of decord would prove nothing: by itself it repeats frames of a video with an edit list."""
    import decord

    media, numbers = odd["edit list"]
    assert media.record.backend == "pyav"
    raw = decord.VideoReader(str(media.path), num_threads=1)
    frames = raw.get_batch(range(len(raw))).asnumpy().transpose(0, 3, 1, 2)
    assert frame_numbers(frames) != numbers
    assert odd["transport stream, long GOP"][0].record.backend == "pyav"
    assert odd["with sound"][0].record.backend == "decord"


def test_varying_rate_and_one_frame(odd: dict[str, tuple[Media, list[int]]]) -> None:
    media, numbers = odd["varying rate"]
    assert media.record.rate is not None
    assert media.record.duration == pytest.approx(len(numbers) / media.record.rate)
    assert 10 < media.record.rate < 16  # 10 to 150 ms a frame
    single = odd["one frame"][0].record
    assert (single.frames, single.duration) == (1, pytest.approx(1 / 30))


def test_a_video_that_goes_bad_after_indexing_is_named(tmp_path: Path) -> None:
    make_video(tmp_path / "d" / "a.mp4", 60)
    media = verdicts(tmp_path / "d", "video", tmp_path / "cache")["a.mp4"]
    truncate(tmp_path / "d" / "a.mp4")
    with pytest.raises(UnreadableMedia, match=r"a\.mp4: decord cannot decode it"):
        open_video(media).read([0, 59])
    with pytest.raises(UnreadableMedia, match=r"a\.mp4: "):
        PyAVReader(media).read([0, 59])
    (tmp_path / "d" / "a.mp4").unlink()
    for reader in (open_video, PyAVReader):
        with pytest.raises(Exception, match=r"a\.mp4"):
            reader(media)


# ---------------------------------------------------------------- sound


def test_verdicts_on_sound(tmp_path: Path) -> None:
    d = tmp_path / "d"
    make_audio(d / "stereo.wav", 1.0, rate=44100, channels=2)
    make_audio(d / "phone.wav", 1.0, rate=8000)
    truncate(make_audio(d / "cut.wav", 3.0))
    truncate(make_audio(d / "cut.flac", 3.0))
    truncate(make_audio(d / "cut.mp3", 3.0, rate=44100))
    truncate(make_audio(d / "cut.m4a", 3.0))
    corrupt(make_audio(d / "bad.flac", 3.0))
    (d / "empty.wav").write_bytes(b"")
    soundfile.write(d / "silent.wav", np.zeros(0, np.float32), 16000)
    (d / "text.ogg").write_text("no sound")
    make_image(d / "x.png").rename(d / "picture.wav")
    make_video(d / "mute.mp4", 5)
    make_video(d / "talk.mp4", 30, sound=True)
    make_audio(d / "x.wav", 0.5).rename(d / "really-a-wav.flac")
    found = verdicts(d, "audio", tmp_path / "cache")
    problems = {name: media.record.problem for name, media in found.items()}
    sound = {name for name, problem in problems.items() if problem is None}
    assert sound == {"stereo.wav", "phone.wav", "talk.mp4", "really-a-wav.flac"}
    for name, verdict in {
        "cut.wav": r"truncated after sample 28[78]\d\d",
        "cut.flac": r"truncated or damaged after sample \d+ .*",
        "cut.mp3": r"truncated after sample \d+",
        "cut.m4a": r"cannot be decoded as sound: .*moov atom not found.*",
        "bad.flac": r"truncated or damaged after sample \d+ .*",
        "empty.wav": "empty file",
        "silent.wav": "no samples",
        "text.ogg": "cannot be decoded as sound: .*",
        "picture.wav": r"wrong extension: named \.wav, but it is a PNG image",
        "mute.mp4": "no sound: no audio stream",
    }.items():
        assert re.fullmatch(verdict, problems[name] or ""), (name, problems[name])
    assert (found["stereo.wav"].record.rate, found["stereo.wav"].record.channels) == (44100.0, 2)
    for name, seconds in (("stereo.wav", 1.0), ("phone.wav", 1.0), ("talk.mp4", 1.0)):
        heard = read_audio(found[name], 16000)
        assert abs(len(heard) / 16000 - seconds) < 0.1
        assert heard.std() > 0.1
    with pytest.raises(UnreadableMedia, match=r"cut\.flac: the sound cannot be decoded"):
        read_audio(found["cut.flac"], 16000)


def test_lengths_unknown_to_a_pipe_are_no_truncation(tmp_path: Path) -> None:
    """A wav written to a pipe has 0xFFFFFFFF for its lengths."""
    path = make_audio(tmp_path / "d" / "a.wav", 0.5)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    media = verdicts(tmp_path / "d", "audio", tmp_path / "cache")["a.wav"]
    assert (media.record.problem, media.record.frames) == (None, 8000)


# ---------------------------------------------------------------- images


def test_verdicts_on_images(tmp_path: Path) -> None:
    d = tmp_path / "d"
    for extension in ("jpg", "png", "gif", "webp", "tif"):
        truncate(make_image(d / f"cut.{extension}", 200, 200))
        make_image(d / f"good.{extension}", 200, 200)
    (d / "empty.jpg").write_bytes(b"")
    (d / "page.jpg").write_text("<html>404</html>")
    make_video(d / "x.mp4", 2).rename(d / "film.jpg")
    make_image(d / "x.png").rename(d / "really-a-png.jpg")
    os.mkfifo(d / "pipe.png")
    found = verdicts(d, "image", tmp_path / "cache")
    problems = {name: media.record.problem for name, media in found.items()}
    good = {name for name, problem in problems.items() if problem is None}
    assert good == {*(f"good.{extension}" for extension in ("jpg", "png", "gif", "webp", "tif")), "really-a-png.jpg"}
    assert problems["empty.jpg"] == "empty file"
    assert problems["page.jpg"] == "wrong extension: named .jpg, but it is HTML or XML text"
    assert problems["film.jpg"] == "wrong extension: named .jpg, but it is an MP4 file"
    assert problems["pipe.png"] == "not a regular file"
    for name in ("cut.jpg", "cut.png", "cut.tif"):
        assert "truncated" in (problems[name] or "")
    for name in problems.keys() - good - {"pipe.png"}:
        with pytest.raises(UnreadableMedia, match=re.escape(name)):
            decode_image(found[name])


# ---------------------------------------------------------------- hangs and crashes


def test_a_file_that_takes_too_long_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that verifies is stopped (as a hang is seen from outside), killed at the limit, and replaced."""
    for number in range(4):
        make_image(tmp_path / "d" / f"{number}.png")
    real = children.Child.begin

    def begin(child: Any, job: Any) -> None:
        real(child, job)
        if job.content["record"]["id"] == "1.png" and job.limit < 3:
            os.kill(child._process.pid, signal.SIGSTOP)
            child._ready = True
            child._start_clock()

    monkeypatch.setattr(children.Child, "begin", begin)
    began = time.monotonic()
    found = verdicts(tmp_path / "d", "image", tmp_path / "cache", timeout=2)
    assert 2 <= time.monotonic() - began < 15
    assert [media.record.problem for media in found.values()] == [
        None,
        "timed out after 2.01 s",
        None,
        None,
    ]  # 2 s a MiB
    assert verdicts(tmp_path / "d", "image", tmp_path / "cache", 2)["1.png"].record.problem is not None  # known
    assert verdicts(tmp_path / "d", "image", tmp_path / "cache", 20)["1.png"].record.problem is None  # tried again


def test_a_crash_of_the_decoder_costs_only_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        make_image(tmp_path / "d" / f"{number}.png")
    real = children.Child.begin

    def begin(child: Any, job: Any) -> None:
        if job.content["record"]["id"] == "1.png":
            os.kill(child._process.pid, signal.SIGSEGV)
            child._process.wait()
        real(child, job)

    with monkeypatch.context() as patched:
        patched.setattr(children.Child, "begin", begin)
        found = verdicts(tmp_path / "d", "image", tmp_path / "cache")
    problems = [media.record.problem for media in found.values()]
    assert problems == [None, "the decoder crashed (signal SIGSEGV)", None, None]
    again = verdicts(tmp_path / "d", "image", tmp_path / "cache")  # a crash is not remembered
    assert [media.record.problem for media in again.values()] == [None] * 4


def test_a_hang_in_decord_leaves_the_file_to_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is stopped after PyAV's verdict on a file that decord reads well: the verdict stands, with PyAV."""
    make_video(tmp_path / "d" / "a.mp4", 40)
    monkeypatch.setattr(children, "GRACE_SECONDS", 1.0)
    real = children.Child._start_clock
    stopped = threading.Event()

    def stop_when_pyav_is_through(child: Any) -> None:
        real(child)
        if child._ready and child.job is not None:
            # Let PyAV finish; what it said waits in the pipe and is read although the child is stopped.
            code = f"/proc/{child._process.pid}/maps"
            deadline = time.monotonic() + 20
            while "libdecord" not in Path(code).read_text() and time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(child._process.pid, signal.SIGSTOP)
            stopped.set()

    monkeypatch.setattr(children.Child, "_start_clock", stop_when_pyav_is_through)
    media = verdicts(tmp_path / "d", "video", tmp_path / "cache")["a.mp4"]
    assert stopped.is_set()
    assert (media.record.frames, media.record.backend, media.record.problem) == (40, "pyav", None)

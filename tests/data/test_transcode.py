"""One video written anew: every frame of the result is the frame that the source shows at that time (recognised by the
number in it, and compared by PSNR with the source as PyAV decodes it), for ordinary and for odd sources; sizes, key
frames, rate and header are as promised; sound stays in step with the picture, and never outlasts it."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.data.transcode import Encoding, in_time, steady, transcode
from mmssl.data.video_writer import even_size
from tests.media import (
    BLOCK,
    broken_videos,
    edit_list_video,
    frame_numbers,
    make_tar,
    make_video,
    numbered_frame,
    rotate_mp4,
    tone,
    varying_times,
)


def media_of(path: Path) -> Media:
    return Media(Record(id=path.name, kind="video", path=path.name, size=path.stat().st_size), path.parent)


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    """(seconds from the first frame, uint8 [H,W,3] upright) of each shown frame, as PyAV decodes it from the start."""
    container: Any
    with av.open(str(path)) as container:
        shown = [(frame.time, frame.rotation, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [(time - shown[0][0], np.rot90(pixels, round(rotation / 90) % 4)) for time, rotation, pixels in shown]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def encode(path: Path, frames: int, codec: str, pix_fmt: str, height: int = 96, width: int = 160) -> Path:
    """Numbered frames in pixel formats that make_video does not write."""
    container: Any
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.bit_rate = 8_000_000
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, height, width), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sources(folder: Path) -> dict[str, Path]:
    joined = folder / "joined.ts"  # two recordings in one stream: time starts again in the middle
    joined.write_bytes(b"".join(make_video(folder / f"{n}.ts", 30, seed=n).read_bytes() for n in (1, 2)))
    return {
        "ordinary": make_video(folder / "plain.mp4", 40),
        "a name that lies": make_video(folder / "plain.avi", 40, codec="mpeg4").rename(folder / "plain.mpg"),
        "varying rate": make_video(folder / "vfr.mkv", 60, times=varying_times(60)),
        "rounded times": make_video(folder / "rounded.mkv", 60, times=[n / 29.97 for n in range(60)]),
        "starts late": make_video(folder / "late.mkv", 30, times=[5 + n / 30 for n in range(30)]),
        "edit list": edit_list_video(folder / "edit.mp4", 90, 29),
        "transport stream, long GOP": make_video(folder / "long.ts", 280, gop=250),
        "recording broken off": joined,
        "one frame": make_video(folder / "one.mp4", 1),
        "rotated": rotate_mp4(make_video(folder / "rotated.mp4", 20)),
        "odd sides": encode(folder / "odd.mkv", 20, "ffv1", "yuv444p", 97, 161),
        "full range": encode(folder / "full.avi", 20, "mjpeg", "yuvj420p"),
        "rgb": encode(folder / "rgb.mkv", 20, "ffv1", "bgr0"),
        "ten bits": encode(folder / "ten.mkv", 20, "ffv1", "yuv420p10le"),
    }


def test_frames_are_what_the_source_shows_at_the_same_time(tmp_path: Path) -> None:
    for what, path in sources(tmp_path).items():
        target = tmp_path / "out.mp4"
        transcode(media_of(path), target, Encoding(crf=12))
        before, after = frames_of(path), frames_of(target)
        if what == "recording broken off":  # the second part follows at once
            before = [(number / 30, pixels) for number, (_, pixels) in enumerate(before)]
        times = np.array([time for time, _ in before])
        period = (times[-1] + np.diff(times).mean()) / len(times) if len(times) > 1 else 1 / 30
        assert len(after) == len(before), what  # so also with a varying rate: the rate is the average
        height, width = after[0][1].shape[:2]
        for time, pixels in after:
            # What has begun by half a frame later; time stamps in the files are rounded to a millisecond.
            shown = {np.searchsorted(times, time + period / 2 + slack, "right") - 1 for slack in (-2e-3, 2e-3)}
            likeness = max(psnr(pixels, resized(before[number][1], height, width)) for number in shown)
            assert likeness > (27 if what == "odd sides" else 30), (what, time, likeness)


def test_every_frame_of_a_constant_rate_is_kept_once(tmp_path: Path) -> None:
    for what, path in sources(tmp_path).items():
        if what in ("varying rate", "rotated", "recording broken off"):
            continue
        transcode(media_of(path), tmp_path / "out.mp4", Encoding())
        numbers = [frame_numbers(p.transpose(2, 0, 1)[None])[0] for _, p in frames_of(tmp_path / "out.mp4")]
        first = 29 if what == "edit list" else 0
        assert numbers == list(range(first, first + len(frames_of(path)))), what


@pytest.mark.parametrize(("rate", "wanted"), [(10.0, range(0, 30, 3)), (60.0, [n // 2 for n in range(60)])])
def test_an_asked_rate_drops_and_repeats(tmp_path: Path, rate: float, wanted: Any) -> None:
    path = make_video(tmp_path / "a.mp4", 30)
    transcode(media_of(path), tmp_path / "out.mp4", Encoding(rate=rate))
    after = frames_of(tmp_path / "out.mp4")
    assert frame_numbers(np.stack([pixels.transpose(2, 0, 1) for _, pixels in after])) == list(wanted)
    np.testing.assert_allclose([time for time, _ in after], np.arange(len(after)) / rate, atol=1e-4)


def test_a_varying_rate_becomes_constant_and_nothing_is_shown_early_or_late(tmp_path: Path) -> None:
    times = varying_times(60)
    transcode(media_of(make_video(tmp_path / "a.mkv", 60, times=times)), tmp_path / "out.mp4", Encoding())
    after = frames_of(tmp_path / "out.mp4")
    steps = np.diff([time for time, _ in after])
    assert np.ptp(steps) < 1e-3
    average = (times[-1] - times[0]) / 59
    assert steps.mean() == pytest.approx(average, rel=0.01)
    for time, pixels in after:
        number = frame_numbers(pixels.transpose(2, 0, 1)[None])[0]
        until = times[number + 1] if number < 59 else np.inf
        assert times[number] - average / 2 - 1e-3 <= time < until - average / 2 + 1e-3


def test_size_key_frames_and_header(tmp_path: Path) -> None:
    path = make_video(tmp_path / "large.mkv", 50, height=400, width=710, gop=250)
    transcode(media_of(path), tmp_path / "out.mp4", Encoding())
    container: Any
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        frames = list(container.decode(stream))
        assert [n for n, frame in enumerate(frames) if frame.key_frame] == [0, 16, 32, 48]
        assert {(frame.height, frame.width) for frame in frames} == {(256, 454)}
        assert frames[0].pts == 0
    pixels = np.stack([frame.to_ndarray(format="rgb24").transpose(2, 0, 1) for frame in frames])
    assert frame_numbers(pixels, block=BLOCK * 256 / 400) == list(range(50))
    source = frames_of(path)
    assert all(psnr(p.transpose(1, 2, 0), resized(source[n][1], 256, 454)) > 30 for n, p in enumerate(pixels))
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    transcode(media_of(path), tmp_path / "again.mp4", Encoding())
    assert (tmp_path / "again.mp4").read_bytes() == content


def test_sizes_are_even_and_never_larger() -> None:
    assert even_size(1280, 720, 256) == (456, 256)  # 455.1
    assert even_size(720, 1280, 256) == (256, 456)
    assert even_size(161, 97, 256) == (160, 96)
    assert even_size(320, 240, 240) == (320, 240)
    assert even_size(3000, 3, 256) == (3000, 2)
    assert even_size(1, 1, 256) == (2, 2)  # the only enlargement: 4:2:0 has no smaller picture


def test_pixel_shape_is_kept_and_turned(tmp_path: Path) -> None:
    container: Any
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        container.mux(stream.encode(None))
    for turn, wanted in ((False, Fraction(4, 3)), (True, Fraction(3, 4))):
        transcode(media_of(rotate_mp4(path) if turn else path), tmp_path / "out.mp4", Encoding())
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert container.streams.video[0].sample_aspect_ratio == wanted


def test_members_of_tars_are_read(tmp_path: Path) -> None:
    content = make_video(tmp_path / "a.mp4", 10, sound=True).read_bytes()
    tar = make_tar(tmp_path / "a.tar", {"x.mp4": content})
    at = tar.read_bytes().index(content)
    record = Record(id="a.tar/x.mp4", kind="video", path="a.tar", member="x.mp4", offset=at, size=len(content))
    assert transcode(Media(record, tmp_path), tmp_path / "out.mp4", Encoding())["frames"] == 10


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    for what, path in broken_videos(tmp_path / "bad").items():
        with pytest.raises((UnreadableMedia, av.error.FFmpegError, OSError)):
            transcode(media_of(path), tmp_path / f"{what}.mp4", Encoding())


# ---------------------------------------------------------------- time, without any file


class Frame:
    def __init__(self, time: float | None) -> None:
        self.time = time


def test_time_goes_on_where_stamps_are_missing_or_broken() -> None:
    def times(*stamps: float | None) -> list[float]:
        return [round(now, 6) for now, _ in in_time(map(Frame, stamps), 0.5)]

    assert times(3.0, 3.5, 4.0) == [0, 0.5, 1.0]
    assert times(None, None, None) == [0, 0.5, 1.0]
    assert times(0.0, None, 1.0) == [0, 0.5, 1.0]
    assert times(0.0, 4.0) == [0, 4.0]  # a long still picture
    assert times(0.0, 0.5, 9999.0, 9999.5) == [0, 0.5, 1.0, 1.5]
    assert times(8.0, 8.5, 0.0, 0.5) == [0, 0.5, 1.0, 1.5]
    assert times(0.0, 0.5, 0.4, 1.0) == [0, 0.5, 0.5, 1.0]  # a slip, no break


def test_steady_frames_by_hand() -> None:
    def shown(times: list[float], rate: float, average: float) -> list[int]:
        return list(steady(iter([(time, number) for number, time in enumerate(times)]), rate, average))

    assert shown([0, 1, 2, 3], 1, 1) == [0, 1, 2, 3]
    assert shown([0, 1, 2, 3], 2, 1) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shown([0, 1, 2, 3], 0.5, 1) == [0, 2]
    assert shown([0, 1.4, 1.6, 3], 1, 1) == [0, 1, 2, 3]
    assert shown([0, 3], 1, 1) == [0, 0, 0, 1]  # held for as long as it is shown
    assert shown([0], 1, 1) == [0]
    assert shown([0], 0.1, 25) == [0]  # at least one


# ---------------------------------------------------------------- sound


def with_sound(path: Path, sound: np.ndarray, rate: int, start: float, frames: int, picture_start: float) -> Path:
    """A video whose sound begins at `start` s and whose picture begins at `picture_start` s."""
    container: Any
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        voice = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for at in range(0, len(sound), 1000):
            part = np.ascontiguousarray((sound[None, at : at + 1000] * 32767).astype(np.int16))
            block = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = rate, round(start * rate) + at, Fraction(1, rate)
            container.mux(voice.encode(block))
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = round(1000 * picture_start) + 40 * number, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def heard(path: Path) -> tuple[np.ndarray, int]:
    """float [S] and Hz: what a player would play from the first frame on."""
    container: Any
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        rate = frames[0].sample_rate
        sound = np.concatenate([frame.to_ndarray().mean(0) for frame in frames])
        start = round(frames[0].time * rate)
    return (np.pad(sound, (start, 0)) if start >= 0 else sound[-start:]), rate


@pytest.mark.parametrize(
    ("start", "picture_start", "rate"), [(0.0, 0.0, 44100), (0.0, 0.4, 48000), (0.3, 0.0, 16000), (1.0, 1.2, 44056)]
)
def test_sound_stays_in_step_and_ends_with_the_picture(
    tmp_path: Path, start: float, picture_start: float, rate: int
) -> None:
    """A click, 0.7 s of the sound after the picture's first frame plus the offset, is heard at the same time."""
    sound = np.zeros(4 * rate, np.float32)
    click = picture_start - start + 0.7
    at = round(click * rate)
    sound[at : at + rate // 100] = tone(1000, 0.02, rate)[: rate // 100]
    path = with_sound(tmp_path / "a.mkv", sound, rate, start, 50, picture_start)
    assert transcode(media_of(path), tmp_path / "out.mp4", Encoding())["note"] is None
    played, own = heard(tmp_path / "out.mp4")
    assert np.abs(played).max() > 0.1
    assert np.flatnonzero(np.abs(played) > np.abs(played).max() / 2)[0] / own == pytest.approx(0.7, abs=0.01)
    assert len(played) / own == pytest.approx(2.0, abs=0.05)  # 50 frames; the source's sound goes on
    assert len(frames_of(tmp_path / "out.mp4")) == 50


def test_sound_is_dropped_on_demand_and_its_damage_costs_only_itself(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 30, sound=True)
    transcode(media_of(path), tmp_path / "out.mp4", Encoding(sound=False))
    container: Any
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio
    transcode(media_of(path), tmp_path / "out.mp4", Encoding())
    played, rate = heard(tmp_path / "out.mp4")
    spectrum = np.abs(np.fft.rfft(played[:rate]))
    assert np.argmax(spectrum) * rate / rate == pytest.approx(440, abs=2)
    # The packets of the sound alone are overwritten.
    content = bytearray(path.read_bytes())
    with av.open(io.BytesIO(bytes(content))) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    for position, size in places:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    answer = transcode(media_of(path), tmp_path / "out.mp4", Encoding())
    assert answer == {"frames": 30, "note": "kept without its sound, which cannot be decoded"}

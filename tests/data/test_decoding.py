"""Claims: images come out upright, opaque and 8-bit whatever is stored; PyAV and decord give the same frames, in the
order asked, at full size and scaled down, with the number that each frame carries in its pixels; resampling equals
torchaudio; a segment of sound equals the same part of the whole file in every container; bytes in a tar decode like the
plain file.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from PIL import Image

from mmssl.data import video
from mmssl.data.audio import read_audio, resample
from mmssl.data.images import decode_image
from mmssl.data.index import Index
from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.data.sources import open_source
from mmssl.data.video import DecordReader, PyAVReader, open_video
from tests.media import (
    BLOCK,
    frame_numbers,
    make_audio,
    make_image,
    make_tar,
    make_video,
    numbered_frame,
    odd_videos,
    pixels,
    rotate_mp4,
    tone,
)


def plain(path: Path, kind: str) -> Media:
    return Media(Record(id=path.name, kind=kind, path=path.name), path.parent)


def indexed(root: Path, kind: str | None, cache: Path) -> dict[str, Media]:
    index = Index.build(root, kind, workers=2, cache=cache)
    return {index.record(row).id: Media(index.record(row), index.root) for row in range(len(index))}


# ---------------------------------------------------------------- images


def test_png_gives_its_pixels(tmp_path: Path) -> None:
    image = decode_image(plain(make_image(tmp_path / "a.png", 37, 53, seed=3), "image"))
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0), pixels(37, 53, seed=3))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: np.rot90(x, 2)),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_exif_orientation(tmp_path: Path, orientation: int, turn: Callable[[np.ndarray], np.ndarray]) -> None:
    """The eight values of the EXIF 2.3 tag 274, as its table defines them."""
    exif = Image.Exif()
    exif[274] = orientation
    image = decode_image(plain(make_image(tmp_path / "a.png", exif=exif), "image"))
    assert np.array_equal(image.permute(1, 2, 0), turn(pixels()))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.dstack([pixels(), np.full((48, 64), 255, np.uint8)])
    rgba[:24, :, 3] = 0
    rgba[24:30, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = decode_image(plain(tmp_path / "a.png", "image")).permute(1, 2, 0).numpy()
    assert (image[:24] == 255).all()
    blended = pixels()[24:30] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(image[24:30] - blended).max() <= 1
    assert np.array_equal(image[30:], pixels()[30:])


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    palette = Image.fromarray(np.repeat([[0, 1]], 4, axis=0).astype(np.uint8), mode="L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "a.png", transparency=0)
    image = decode_image(plain(tmp_path / "a.png", "image"))
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 0, 1].tolist() == [200, 100, 50]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert decode_image(plain(tmp_path / "a.png", "image"))[0].tolist() == [[0, 1, 128, 255]]
    Image.fromarray(grey.astype(np.float32) / 65535).save(tmp_path / "a.tif")
    assert decode_image(plain(tmp_path / "a.tif", "image"))[0].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_come_out_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    stored = Image.fromarray(pixels()).convert(mode)
    stored.save(tmp_path / "a.tif")
    image = decode_image(plain(tmp_path / "a.tif", "image"))
    assert np.array_equal(image.permute(1, 2, 0), np.asarray(stored.convert("RGB")))


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not an image")
    with pytest.raises(UnreadableMedia, match=r"a\.jpg: Pillow cannot decode it"):
        decode_image(plain(tmp_path / "a.jpg", "image"))
    with pytest.raises(UnreadableMedia, match=r"gone\.jpg"):
        decode_image(plain(tmp_path / "gone.jpg", "image"))


# ---------------------------------------------------------------- videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Media, list[int]]]:
    """{what: (verified media, the numbers its frames carry)}."""
    root = tmp_path_factory.mktemp("videos")
    made = odd_videos(root)
    made["long GOP"] = (make_video(root / "long.mp4", 120, gop=250), list(range(120)))
    made["short GOP"] = (make_video(root / "short.mp4", 120, gop=12), list(range(120)))
    media = indexed(root, "video", tmp_path_factory.mktemp("cache"))
    return {what: (media[path.name], numbers) for what, (path, numbers) in made.items()}


ALL = (
    "edit list",
    "transport stream, long GOP",
    "varying rate",
    "one frame",
    "avi",
    "webm",
    "with sound",
    "long GOP",
    "short GOP",
)


@pytest.mark.parametrize("what", ALL)
def test_every_reader_gives_the_frames_asked(videos: dict[str, tuple[Media, list[int]]], what: str) -> None:
    media, numbers = videos[what]
    assert media.record.problem is None
    assert media.record.frames == len(numbers)
    asked = np.random.default_rng(0).integers(0, len(numbers), 12).tolist()  # unsorted, some twice
    asked += [len(numbers) - 1, 0]
    for reader in (open_video(media), PyAVReader(media)):
        frames = reader.read(asked)
        assert frames.dtype == torch.uint8
        assert frames.shape == (len(asked), 3, media.record.height, media.record.width)
        assert frame_numbers(frames) == [numbers[index] for index in asked]


@pytest.mark.parametrize("what", [what for what in ALL if what not in ("edit list", "transport stream, long GOP")])
@pytest.mark.parametrize("short_side", [None, 64])
def test_pyav_and_decord_agree(videos: dict[str, tuple[Media, list[int]]], what: str, short_side: int | None) -> None:
    media, numbers = videos[what]
    assert media.record.backend == "decord"
    asked = sorted({0, len(numbers) // 3, len(numbers) // 2, len(numbers) - 1})
    ours, theirs = (kind(media, short_side).read(asked) for kind in (PyAVReader, DecordReader))
    assert ours.shape == theirs.shape
    assert min(ours.shape[-2:]) == (short_side or 96)
    difference = (ours.int() - theirs.int()).abs().float()
    # At full size the pixels are equal; scaled, two versions of swscale treat the half-size colour planes differently.
    assert difference.mean() <= (0.0 if short_side is None else 2.0)
    assert difference.max() <= (0 if short_side is None else 40)


def test_decoding_at_reduced_size_keeps_the_picture(videos: dict[str, tuple[Media, list[int]]]) -> None:
    media, _ = videos["short GOP"]
    whole = open_video(media).read([5, 50])
    small = open_video(media, short_side=48).read([5, 50])
    assert small.shape == (2, 3, 48, 80)
    assert frame_numbers(small, BLOCK / 2) == [5, 50]
    expected = torch.nn.functional.interpolate(whole.float(), (48, 80), mode="bicubic", antialias=True)
    assert (small - expected).abs().mean() < 4
    assert open_video(media, short_side=500).read([0]).shape == (1, 3, 96, 160)  # never enlarged


def test_frames_equal_what_was_encoded(videos: dict[str, tuple[Media, list[int]]]) -> None:
    """Right colours, not only the right number: H.264 at high quality is within some grey levels."""
    frame = open_video(videos["short GOP"][0]).read([7])[0].permute(1, 2, 0).numpy()
    assert np.abs(frame.astype(int) - numbered_frame(7)).mean() < 4


def test_beyond_the_verified_range_is_an_error(videos: dict[str, tuple[Media, list[int]]]) -> None:
    media, numbers = videos["short GOP"]
    for reader in (open_video(media), PyAVReader(media)):
        for wrong in ([len(numbers)], [-1], []):
            with pytest.raises(ValueError, match=r"short\.mp4"):
                reader.read(wrong)


def test_pyav_seeks_instead_of_decoding_all(
    videos: dict[str, tuple[Media, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames 100 and 101 of a video with a key frame every 12: no frame of the first 90 is converted or counted."""
    media, _ = videos["short GOP"]
    monkeypatch.setattr(PyAVReader, "_by_count", lambda *_: pytest.fail("fell back to counting from the start"))
    assert frame_numbers(PyAVReader(media).read([100, 3, 101])) == [100, 3, 101]


def test_files_without_time_stamps_are_counted(
    videos: dict[str, tuple[Media, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "_time_stamps", lambda *_: ([], []))
    media, _ = videos["short GOP"]
    assert frame_numbers(PyAVReader(media).read([50, 3])) == [50, 3]
    unverified = replace(media, record=Record(id="a", kind="video", path=media.record.path))
    reader = open_video(unverified)
    assert isinstance(reader, PyAVReader)
    assert reader.frames == 120


def test_phone_videos_are_turned_upright(tmp_path: Path) -> None:
    rotate_mp4(make_video(tmp_path / "v" / "phone.mp4", 10))
    media = indexed(tmp_path / "v", "video", tmp_path / "cache")["phone.mp4"]
    assert (media.record.height, media.record.width) == (160, 96)
    expected = np.rot90(numbered_frame(4), -1)
    for short_side, size in ((None, (160, 96)), (48, (80, 48))):
        frame = open_video(media, short_side).read([4])[0]
        assert frame.shape == (3, *size)
        if short_side is None:
            assert np.abs(frame.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 4


def test_a_damaged_file_is_named_with_the_backend(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"junk" * 100)
    with pytest.raises(UnreadableMedia, match=r"a\.mp4: pyav cannot decode it"):
        open_video(plain(tmp_path / "a.mp4", "video"))
    verified = Record(id="a.mp4", kind="video", path="a.mp4", frames=5, width=8, height=8, rate=5.0, backend="decord")
    with pytest.raises(UnreadableMedia, match=r"a\.mp4: decord cannot decode it"):
        open_video(Media(verified, tmp_path))


# ---------------------------------------------------------------- sound


@pytest.mark.parametrize(("source", "target"), [(44100, 16000), (8000, 16000), (48000, 16000), (16000, 22050)])
@pytest.mark.parametrize("samples", [1, 100, 30011])
def test_resampling_equals_torchaudio(source: int, target: int, samples: int) -> None:
    sound = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, samples))
    expected = torchaudio.functional.resample(sound, source, target)
    ours = resample(sound.float(), source, target)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-6


def test_rates_without_a_common_divisor_need_no_giant_kernel() -> None:
    """torchaudio's kernel for 11127 -> 16000 Hz would be 16000 x 11141 floats; a pure tone must still come out."""
    time = torch.arange(11127, dtype=torch.float64) / 11127
    out = resample(torch.sin(2 * torch.pi * 1000 * time).float(), 11127, 16000)
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(16000, dtype=torch.float64) / 16000)
    assert len(out) == 16000
    assert (out - expected)[200:-200].abs().max() < 5e-3


@pytest.mark.parametrize(
    ("name", "source", "channels"),
    [("a.wav", 44100, 2), ("a.wav", 8000, 1), ("a.flac", 22050, 1), ("a.ogg", 44100, 2), ("a.mp3", 44100, 2)],
)
def test_a_segment_is_the_same_part_of_the_whole(tmp_path: Path, name: str, source: int, channels: int) -> None:
    media = plain(make_audio(tmp_path / name, 4.0, rate=source, channels=channels), "audio")
    whole = read_audio(media, 16000)
    assert whole.dtype == torch.float32
    assert abs(len(whole) - 4 * 16000) < 16000 * 0.1  # codecs pad
    for start, seconds in ((0.0, 1.0), (0.5, 0.25), (1.23457, 1.0), (3.0, 0.5)):
        part = read_audio(media, 16000, start, seconds)
        begin = round(start * 16000)
        assert len(part) == round(seconds * 16000)
        assert (part - whole[begin : begin + len(part)]).abs().max() < 1e-4
    assert torch.equal(read_audio(media, 16000, 2.0), whole[32000:])
    assert len(read_audio(media, 16000, 3.9, 1.0)) < 2500  # shorter at the end, not padded
    assert len(read_audio(media, 16000, 99.0, 1.0)) == 0


def test_stereo_becomes_the_mean(tmp_path: Path) -> None:
    media = plain(make_audio(tmp_path / "a.wav", 1.0, rate=16000, channels=2), "audio")
    expected = (tone(440, 1.0, 16000, 0) + tone(880, 1.0, 16000, 1)) / 2
    assert (read_audio(media, 16000) - torch.from_numpy(expected)).abs().max() < 1e-4  # 16-bit file


@pytest.mark.parametrize("name", ["a.m4a", "a.mp4", "a.mkv", "a.aac"])
def test_sound_in_containers(tmp_path: Path, name: str) -> None:
    """Near a seek, beyond 10 s, and before it: the same samples as decoding the whole track."""
    if name in ("a.mp4", "a.mkv"):
        path = make_video(tmp_path / name, 420, rate=30, sound=True, height=48, width=80, gop=30)
    else:
        path = make_audio(tmp_path / name, 14.0, rate=44100)
    media = plain(path, "audio")
    whole = read_audio(media, 44100)
    assert abs(len(whole) / 44100 - 14) < 0.1
    offset = _delay(whole.numpy(), tone(440.0, 14.0, 44100))
    clean = torch.from_numpy(tone(440.0, 14.0, 44100))
    overlap = whole[20000 + offset : 120000 + offset]
    assert (overlap - clean[20000:120000]).abs().mean() < 0.05  # it is that sound
    for start in (2.5, 11.0, 12.34):
        part = read_audio(media, 44100, start, 1.0)
        shifts = range(-50, 51) if name in ("a.mkv", "a.aac") else (0,)  # stamps of 1 ms there
        begin = round(start * 44100)
        errors = [(part[100:-100] - whole[begin + s + 100 : begin + s + 44000]).abs().max().item() for s in shifts]
        assert min(errors) < 1e-4


def _delay(found: np.ndarray, clean: np.ndarray) -> int:
    size = min(len(found), len(clean))
    spectrum = np.fft.rfft(found[:size]) * np.conj(np.fft.rfft(clean[:size]))
    peak = int(np.argmax(np.fft.irfft(spectrum)))
    return peak if peak < size // 2 else peak - size


def test_a_video_without_sound_says_so(tmp_path: Path) -> None:
    media = plain(make_video(tmp_path / "a.mp4", 5), "audio")
    with pytest.raises(UnreadableMedia, match=r"a\.mp4: no sound: no audio stream"):
        read_audio(media, 16000)


# ---------------------------------------------------------------- tars and handles


def test_tar_members_decode_like_the_plain_files(tmp_path: Path) -> None:
    plain_root, tars = tmp_path / "plain", tmp_path / "tars"
    files = [
        make_image(plain_root / "a.png"),
        make_video(plain_root / "b.mp4", 30),
        make_audio(plain_root / "c.wav", 0.5, rate=44100),
    ]
    make_tar(tars / "shard.tar", {path.name: path.read_bytes() for path in files})
    alone = indexed(plain_root, None, tmp_path / "cache")
    packed = indexed(tars, None, tmp_path / "cache")
    assert [media.record.problem for media in packed.values()] == [None] * 3
    for path in files:
        one, other = alone[path.name], packed[f"shard.tar/{path.name}"]
        assert other.path is None
        assert other.read() == path.read_bytes() == one.read()
        assert other.record.frames == one.record.frames
        assert other.record.backend == one.record.backend
        other = pickle.loads(pickle.dumps(other))
        if path.suffix == ".png":
            assert torch.equal(decode_image(one), decode_image(other))
        elif path.suffix == ".wav":
            assert torch.equal(read_audio(one, 16000, 0.1, 0.2), read_audio(other, 16000, 0.1, 0.2))
        else:
            assert torch.equal(open_video(one).read([3, 20]), open_video(other).read([3, 20]))
            assert torch.equal(PyAVReader(one).read([3, 20]), PyAVReader(other).read([3, 20]))


def test_widths_that_decord_misreads_are_decoded_all_the_same(tmp_path: Path) -> None:
    """decord 0.6 fails when frames are scaled to 16, 24, 48 or 72 pixels of width: upright videos must not be lost."""
    make_video(tmp_path / "upright.mp4", frames=6, height=160, width=96)
    media = open_source(str(tmp_path), "video").media(0)
    assert media.record.backend == "decord"
    for short_side in (24, 47, 48, 72, 95):
        frames = open_video(media, short_side).read([0, 5])
        assert frames.shape[:2] == (2, 3)
        assert min(frames.shape[-2:]) >= short_side

"""Claims: the evaluation views are pixel for pixel what Hugging Face's processors make; clips hold the frames they
claim, several from one decode; segments of sound are parts of the whole recording; what is too short is treated as
asked; the generator alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, VideoMAEImageProcessor

from mmssl.data import views as views_module
from mmssl.data.audio import read_audio
from mmssl.data.audio_views import AudioViews, apart_starts
from mmssl.data.crops import crop_and_resize, multiscale_box, random_resized_box
from mmssl.data.images import decode_image
from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.data.video import open_video
from mmssl.data.views import Crop, ImageViews, Short, VideoViews, Views, clip_indices, clip_span, within_file
from tests.media import frame_numbers, make_audio, make_image, make_video

WHOLE_FRAME: dict[str, Any] = {"crop": "random_resized", "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
"""Of a square video, every frame as it is, so that its number can be read."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def image(path: Path, height: int, width: int) -> Media:
    make_image(path, height, width)
    return Media(Record(path.name, "image", path.name), path.parent)


def video(path: Path, frames: int, height: int = 96, width: int = 96, rate: int = 30) -> Media:
    make_video(path, frames, height=height, width=width, rate=rate)
    record = Record(path.name, "video", path.name, width=width, height=height, frames=frames, rate=rate, backend="pyav")
    return Media(record, path.parent)


def sound(path: Path, seconds: float, rate: int = 16000, verified: bool = True) -> Media:
    make_audio(path, seconds, rate=rate)
    record = Record(path.name, "audio", path.name)
    if verified:
        record = replace(record, frames=round(seconds * rate), rate=rate, duration=seconds, backend="soundfile")
    return Media(record, path.parent)


# ---------------------------------------------------------------- images


def test_image_views_are_independent_crops_of_one_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = image(tmp_path / "a.png", 60, 90)
    decodes: list[Media] = []

    def decode(media: Media) -> torch.Tensor:
        decodes.append(media)
        return decode_image(media)

    monkeypatch.setattr(views_module, "decode_image", decode)
    samples = ImageViews(32, names=("a", "b"), per_file=3)(media, rng())
    assert len(decodes) == 1
    crops = [view for sample in samples for view in sample.views.values()]
    assert [tuple(sample.views) for sample in samples] == [("a", "b")] * 3
    assert all(crop.shape == (3, 32, 32) and crop.dtype == torch.uint8 and crop.is_contiguous() for crop in crops)
    assert len({crop.numpy().tobytes() for crop in crops}) == 6


def test_half_of_the_crops_are_flipped(tmp_path: Path) -> None:
    media = image(tmp_path / "a.png", 32, 32)
    pixels, generator = decode_image(media), rng()
    still = ImageViews(32, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    crops = [still(media, generator)[0].views["view"] for _ in range(400)]
    flipped = sum(torch.equal(crop, pixels.flip(-1)) for crop in crops)
    assert flipped + sum(torch.equal(crop, pixels) for crop in crops) == 400
    assert 150 < flipped < 250  # 5 sigma
    assert all(torch.equal(replace(still, flip=False)(media, rng(n))[0].views["view"], pixels) for n in range(20))


@pytest.mark.parametrize(("height", "width"), [(75, 100), (100, 75), (61, 64), (64, 67), (20, 30)])
def test_image_centre_is_the_hugging_face_processor(tmp_path: Path, height: int, width: int) -> None:
    media = image(tmp_path / "a.png", height, width)
    (sample,) = ImageViews(64, names=("a", "b"), per_file=4).centre()(media, rng())
    processor = CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, do_rescale=False, do_normalize=False
    )
    theirs = processor(Image.open(tmp_path / "a.png"), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(sample.views["view"], theirs.to(torch.uint8))


# ---------------------------------------------------------------- video


def test_clip_indices_are_the_frames_on_screen() -> None:
    assert clip_indices(5, 4, 3).tolist() == [5, 8, 11, 14]
    assert clip_span(4, 3) == 10
    for rate in (24.0, 29.97, 30.0, 12.5):
        for interval in (0.05, 0.1, 1 / 3):
            found = clip_indices(7, 16, interval * rate)
            expected = [7 + int(np.floor(round(k * interval * rate, 6))) for k in range(16)]
            assert found.tolist() == expected
            assert clip_span(16, interval * rate) == found[-1] - found[0] + 1


def test_indices_past_the_end_are_treated_as_asked() -> None:
    past = clip_indices(0, 6, 2)
    assert within_file(past, 11, "skip").tolist() == past.tolist()
    assert within_file(past, 5, "repeat_last").tolist() == [0, 2, 4, 4, 4, 4]
    assert within_file(past, 5, "loop").tolist() == [0, 2, 4, 1, 3, 0]
    with pytest.raises(UnreadableMedia, match="too short: 5 frames, and a clip spans 11"):
        within_file(past, 5, "skip")


@pytest.mark.parametrize("per_file", [1, 4])
def test_clips_hold_the_frames_they_claim_from_one_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_file: int
) -> None:
    media = video(tmp_path / "a.mp4", 60)
    reads: list[list[int]] = []

    def spy(*arguments: Any, **options: Any):
        reader = open_video(*arguments, **options)
        read = reader.read

        def counted(indices: Sequence[int]) -> torch.Tensor:
            reads.append(list(indices))
            return read(indices)

        monkeypatch.setattr(reader, "read", counted)
        return reader

    monkeypatch.setattr(views_module, "open_video", spy)
    cut = VideoViews(96, frames=5, stride=3, names=("a", "b"), per_file=per_file, **WHOLE_FRAME)
    starts = set()
    for seed in range(4):
        reads.clear()
        samples = cut(media, rng(seed))
        assert len(samples) == per_file
        shown: set[int] = set()
        for sample in samples:
            assert sample.lengths == {"a": 5, "b": 5}
            for clip, start in zip(sample.views.values(), sample.targets["start"], strict=True):
                first = round(start.item() * 30)
                assert clip.shape == (5, 3, 96, 96)
                assert frame_numbers(clip) == [first, first + 3, first + 6, first + 9, first + 12]
                shown |= set(frame_numbers(clip))
                starts.add(first)
        assert reads == [sorted(shown)]  # once, in order, nothing else
    assert len(starts) > 2 * per_file


def test_every_start_is_possible(tmp_path: Path) -> None:
    media = video(tmp_path / "a.mp4", 16)
    cut = VideoViews(96, frames=5, stride=3, per_file=200, **WHOLE_FRAME)
    starts = {round(sample.targets["start"].item() * 30) for sample in cut(media, rng())}
    assert starts == {0, 1, 2, 3}


def test_time_based_clips_are_equally_long_at_any_rate(tmp_path: Path) -> None:
    for rate in (15, 30):
        media = video(tmp_path / f"{rate}.mp4", 2 * rate, rate=rate)
        (sample,) = VideoViews(96, frames=4, interval=0.2, **WHOLE_FRAME)(media, rng())
        numbers = frame_numbers(sample.views["clip"])
        assert np.diff(numbers).tolist() == [rate // 5] * 3
        assert numbers[0] == round(sample.targets["start"].item() * rate)


@pytest.mark.parametrize(
    ("short", "numbers", "real"), [("repeat_last", [0, 4, 8, 9, 9], 3), ("loop", [0, 4, 8, 2, 6], 5)]
)
def test_a_short_video_is_filled_as_asked_and_says_so(
    tmp_path: Path, short: Short, numbers: list[int], real: int
) -> None:
    media = video(tmp_path / "a.mp4", 10)
    views = VideoViews(96, frames=5, stride=4, short=short, **WHOLE_FRAME)
    for version, name in ((views, "clip"), (views.centre(), "view")):
        (sample,) = version(media, rng())
        assert frame_numbers(sample.views[name]) == numbers
        assert sample.lengths == {name: real}
        assert sample.targets["start"].tolist() == [0]


def test_skipping_short_videos_is_for_training_only(tmp_path: Path) -> None:
    media = video(tmp_path / "a.mp4", 10)
    views = VideoViews(96, frames=5, stride=4, short="skip", **WHOLE_FRAME)
    with pytest.raises(UnreadableMedia, match="too short"):
        views(media, rng())
    assert frame_numbers(views.centre()(media, rng())[0].views["view"]) == [0, 4, 8, 9, 9]


def test_a_one_frame_video_is_a_clip(tmp_path: Path) -> None:
    media = video(tmp_path / "a.mp4", 1)
    crops: list[Crop] = ["multiscale", "random_resized"]
    for crop in crops:
        (sample,) = VideoViews(48, frames=4, crop=crop)(media, rng())
        clip = sample.views["clip"]
        assert (clip == clip[:1]).all()
        assert sample.lengths == {"clip": 1}


@pytest.mark.parametrize("crop", ["multiscale", "random_resized"])
def test_frames_of_a_clip_share_one_crop_and_clips_do_not(tmp_path: Path, crop: Crop) -> None:
    media = video(tmp_path / "a.mp4", 1, height=96, width=160)  # one frame: clips differ by their crop alone
    samples = VideoViews(32, frames=4, crop=crop, per_file=8, flip=True, scale=(0.2, 0.6))(media, rng())
    clips = [sample.views["clip"] for sample in samples]
    assert all((clip == clip[:1]).all() for clip in clips)
    assert len({clip.numpy().tobytes() for clip in clips}) > 6


@pytest.mark.parametrize("crop", ["multiscale", "random_resized"])
def test_decoding_small_never_enlarges_and_shows_the_same(
    tmp_path: Path, crop: Crop, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = video(tmp_path / "a.mp4", 4, height=288, width=480)
    asked: list[int | None] = []

    def spy(media: Media, short_side: int | None = None):
        asked.append(short_side)
        return open_video(media, short_side)

    monkeypatch.setattr(views_module, "open_video", spy)
    cut = VideoViews(32, frames=4, stride=1, crop=crop, scale=(0.25, 1.0))
    cut(media, rng())
    (side,) = asked
    assert side is not None
    assert side < 96
    full, small = open_video(media).read([0]), open_video(media, short_side=side).read([0])
    height, width = small.shape[-2:]
    for seed in range(100):
        if crop == "multiscale":
            box = multiscale_box(height, width, rng(seed), 32)
        else:
            box = random_resized_box(height, width, rng(seed), cut.scale, cut.ratio)
        assert min(box[2:]) >= 32 - 1  # rounding
        top, left, h, w = (round(edge * 288 / side) for edge in box)
        large = crop_and_resize(full, (top, left, min(h, 288 - top), min(w, 480 - left)), 32, "bilinear", False)
        difference = crop_and_resize(small, box, 32, "bilinear", False).float() - large.float()
        assert difference.abs().mean() < 12


@pytest.mark.parametrize(("height", "width"), [(96, 160), (160, 96), (64, 70)])
def test_video_centre_is_the_hugging_face_processor(tmp_path: Path, height: int, width: int) -> None:
    media = video(tmp_path / "a.mp4", 31, height=height, width=width)
    (sample,) = VideoViews(64, frames=4, stride=5, names=("a", "b"), per_file=2).centre()(media, rng())
    frames = open_video(media).read([7, 12, 17, 22])  # 16 of 31 frames, the middle of 15 free places
    assert sample.targets["start"].item() == pytest.approx(7 / 30)
    processor = VideoMAEImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, do_rescale=False, do_normalize=False
    )
    theirs = processor(list(frames.numpy()), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(sample.views["view"], theirs.to(torch.uint8))


# ---------------------------------------------------------------- audio


@pytest.mark.parametrize(("rate", "verified"), [(16000, True), (16000, False), (44100, True), (8000, True)])
def test_segments_are_parts_of_the_whole_recording(tmp_path: Path, rate: int, verified: bool) -> None:
    media = sound(tmp_path / "a.wav", 2.0, rate, verified)
    whole = read_audio(media, 16000)
    starts = []
    for sample in AudioViews(16000, 4000, names=("a", "b"), per_file=20)(media, rng()):
        assert sample.lengths == {"a": 4000, "b": 4000}
        for wave, second in zip(sample.views.values(), sample.targets["start"], strict=True):
            start = round(second.item() * 16000)
            torch.testing.assert_close(wave, whole[start : start + 4000], atol=1e-5, rtol=0)
            starts.append(start)
    assert len(set(starts)) > 35
    assert max(starts) <= 28000
    assert max(starts) > 24000
    assert min(starts) < 4000


def test_segments_apart_share_no_instant_wherever_the_recording_is_long_enough(tmp_path: Path) -> None:
    """Every way to place them comes up, either may be first, and too short a recording has the two at its ends."""
    cut = AudioViews(16000, 4000, names=("a", "b"), per_file=200, apart=True)
    for seconds, least in ((0.6, 4000), (0.5, 4000), (0.4, 2400), (0.2, 0)):
        media = sound(tmp_path / f"{seconds}.wav", seconds)
        starts = torch.stack([sample.targets["start"] for sample in cut(media, rng())]) * 16000  # [200,2]
        gaps = (starts[:, 0] - starts[:, 1]).abs().round()
        assert gaps.min() >= least
        assert starts.max() <= max(seconds * 16000 - 4000, 0)
        assert 60 < (starts[:, 0] < starts[:, 1]).sum() < 140 or least == 0
        if seconds == 0.6:
            assert len(gaps.unique()) > 100
            assert gaps.max() > 5400
            assert 400 < starts.min(1).values.mean() < 700, "a third of the 1,600 samples that are free"
    apart = apart_starts(rng(), 10_000, 2000, 3)
    assert min(np.diff(sorted(apart))) >= 2000


def test_verified_or_not_a_recording_gives_the_same_segments(tmp_path: Path) -> None:
    one, other = (sound(tmp_path / "a.wav", 1.7, 22050, verified) for verified in (True, False))
    cut = AudioViews(16000, 8000, per_file=3)
    for a, b in zip(cut(one, rng()), cut(other, rng()), strict=True):
        torch.testing.assert_close(a.views["view"], b.views["view"], atol=1e-5, rtol=0)
        assert torch.equal(a.targets["start"], b.targets["start"])


@pytest.mark.parametrize("verified", [True, False])
def test_a_short_recording_is_filled_as_asked_and_says_so(tmp_path: Path, verified: bool) -> None:
    media = sound(tmp_path / "a.wav", 0.1, 16000, verified)
    whole = read_audio(media, 16000)
    for views in (AudioViews(16000, 4000), AudioViews(16000, 4000).centre()):
        (sample,) = views(media, rng())
        assert torch.equal(sample.views["view"][:1600], whole)
        assert (sample.views["view"][1600:] == 0).all()
        assert sample.views["view"].shape == (4000,)
        assert sample.lengths == {"view": 1600}
    (sample,) = AudioViews(16000, 4000, short="loop")(media, rng())
    assert torch.equal(sample.views["view"], torch.cat([whole, whole, whole[:800]]))
    assert sample.lengths == {"view": 4000}


def test_audio_centre_is_the_middle(tmp_path: Path) -> None:
    media = sound(tmp_path / "a.wav", 1.0)
    (sample,) = AudioViews(16000, 4000, names=("a", "b"), per_file=2, short="loop").centre()(media, rng())
    torch.testing.assert_close(sample.views["view"], read_audio(media, 16000)[6000:10000])
    assert list(sample.views) == ["view"]


# ---------------------------------------------------------------- all


def test_the_generator_alone_decides_and_centres_need_none(tmp_path: Path) -> None:
    cases: list[tuple[Media, Views]] = [
        (image(tmp_path / "a.png", 60, 90), ImageViews(32, names=("a", "b"))),
        (video(tmp_path / "a.mp4", 30, 96, 160), VideoViews(32, frames=4, names=("a", "b"), flip=True)),
        (video(tmp_path / "b.mp4", 30, 96, 160), VideoViews(32, frames=4, crop="random_resized", per_file=2)),
        (sound(tmp_path / "a.wav", 1.0), AudioViews(16000, 4000)),
    ]
    for media, views in cases:

        def content(version: Views, seed: int, media: Media = media) -> bytes:
            samples = version(media, rng(seed))
            assert len(samples) == version.per_file
            assert all(tuple(sample.views) == version.names for sample in samples)
            return b"".join(view.numpy().tobytes() for sample in samples for view in sample.views.values())

        assert content(views, 5) == content(views, 5)
        assert content(views, 5) != content(views, 6)
        centre = views.centre()
        assert centre.names == ("view",)
        assert content(centre, 5) == content(centre, 6)
        assert centre.centre() == centre

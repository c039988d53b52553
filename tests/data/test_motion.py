"""Claims: the index holds how much moves in each quarter of a second, equal to an independent computation on frames; a
flickering light is no motion; older caches and tables stay usable; clips begin where much moves, in proportion; an
image encoder sees the middle frame of a video.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.data import verify
from mmssl.data.crops import centre_crop
from mmssl.data.index import Index
from mmssl.data.media import Media, Record
from mmssl.data.video import open_video
from mmssl.data.views import ImageViews, VideoViews, draw_start
from mmssl.evaluation.views import kind_for
from tests.media import make_image, make_video

HEIGHT, WIDTH, RATE = 64, 96, 24


def write(path: Path, frames: list[np.ndarray]) -> Path:
    """Frames uint8 [H,W,3] without loss, so that a test knows what the decoder sees."""
    container: Any
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE, options={"level": "3"})
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def square(at: int, light: int = 0) -> np.ndarray:
    """A white square, its left edge at column `at`, on grey ground; `light` brightens all of it."""
    frame = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    frame[16:48, at : at + 24] = 180
    return frame + np.uint8(light)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("videos")
    moves = [square(0) for _ in range(30)] + [square(2 * n) for n in range(30)]
    write(root / "moves.mkv", moves)
    write(root / "flickers.mkv", [square(20, 40 * (n % 3 == 0)) for n in range(30)])
    write(root / "one.mkv", [square(0)])
    return Index.build(root, "video", workers=1, cache=root / "cache")


def record(index: Index, name: str) -> Record:
    found = index.record([index.record(row).id for row in index.rows()].index(name))
    assert found.id == name
    return found


def test_motion_is_the_mean_difference_of_small_grey_frames(index: Index) -> None:
    found = record(index, "moves.mkv")
    assert found.motion is not None
    media = Media(found, index.root)
    rgb = open_video(media).read(list(range(60))).numpy().astype(np.float64)
    luma = np.einsum("nchw,c->nhw", rgb, [0.299, 0.587, 0.114]) * 219 / 255 + 16  # grey levels as video has them
    small = luma.reshape(60, 32, HEIGHT // 32, 32, WIDTH // 32).mean((2, 4))
    small -= small.mean((1, 2), keepdims=True)
    steps = np.abs(np.diff(small, axis=0)).mean((1, 2))
    # Six frames a quarter of a second; the first has nothing before it.
    expected = [steps[:5].mean(), *(steps[first - 1 : first + 5].mean() for first in range(6, 60, 6))]
    assert len(found.motion) == 10
    full = max(1.0, found.motion[-1] / expected[-1])  # whether the library keeps the full range is its own choice
    assert full < 1.2
    np.testing.assert_allclose(found.motion, np.array(expected) * full, atol=0.15)
    assert found.motion[:5] == (0.0,) * 5
    assert min(found.motion[5:]) > 1


def test_a_flickering_light_and_a_single_frame_do_not_move(index: Index) -> None:
    assert record(index, "flickers.mkv").motion == (0.0,) * 5
    assert record(index, "one.mkv").motion == (0.0,)


def test_tables_without_motion_load_and_cached_verdicts_without_it_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "data" / "a.mp4", 12)
    make_image(tmp_path / "data" / "b.png")
    old = dict(verify.VERSIONS, video=1)
    with monkeypatch.context() as patch:
        patch.setattr(verify, "VERSIONS", old)
        patch.setattr(verify, "FACTS", tuple(fact for fact in verify.FACTS if fact != "motion"))
        Index.build(tmp_path / "data", workers=1, cache=tmp_path / "cache")
    verified: list[str] = []
    again = Index.build(
        tmp_path / "data", workers=1, cache=tmp_path / "cache", progress=lambda done, total, bad: verified.append("x")
    )
    assert len(verified) == 2, "the image is still known, the video is verified again"
    video = record(again, "a.mp4")
    assert video.motion is not None
    again.save(tmp_path / "new.parquet")
    assert record(Index.load(tmp_path / "new.parquet"), "a.mp4").motion == pytest.approx(video.motion)
    table = pq.read_table(tmp_path / "new.parquet")
    pq.write_table(table.drop_columns(["motion"]), tmp_path / "old.parquet")
    loaded = record(Index.load(tmp_path / "old.parquet"), "a.mp4")
    assert loaded == replace(video, motion=None)


def test_clips_begin_in_proportion_to_the_motion_in_them() -> None:
    values = (0.0, 1.0, 4.0, 0.0, 2.0)
    media = Media(Record("a", "video", frames=30, rate=24.0, motion=values))
    span, starts = 8, 23
    weights = np.array([sum(values[frame // 6] for frame in range(start + 1, start + span)) for start in range(starts)])
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_start(rng, starts, span, media, True) for _ in range(20_000)], minlength=starts)
    expected = 20_000 * weights / weights.sum()
    assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected + 1e-9))
    assert counts[weights == 0].sum() == 0


@pytest.mark.parametrize("motion", [None, (0.0, 0.0)])
def test_without_motion_all_starts_are_equal(motion: tuple[float, ...] | None) -> None:
    media = Media(Record("a", "video", frames=12, rate=24.0, motion=motion))
    weighted, plain = (
        [draw_start(rng, 5, 8, media, asked) for _ in range(50)]
        for rng, asked in ((np.random.default_rng(1), True), (np.random.default_rng(1), False))
    )
    assert weighted == plain
    assert set(plain) == set(range(5))


def test_views_take_their_clips_where_it_moves(index: Index) -> None:
    views = VideoViews(size=32, frames=4, stride=2, motion=True)
    rng = np.random.default_rng(0)
    media = Media(record(index, "moves.mkv"), index.root)
    starts = [float(views(media, rng)[0].targets["start"]) * RATE for _ in range(40)]
    assert min(starts) >= 30 - 6, "nothing moves before frame 30, and a clip spans 7 frames"


def test_an_image_encoder_sees_the_middle_frame_of_a_video(index: Index, tmp_path: Path) -> None:
    media = Media(record(index, "moves.mkv"), index.root)
    (sample,) = ImageViews(32).centre()(media, np.random.default_rng(0))
    assert torch.equal(sample.views["view"], centre_crop(open_video(media).read([29])[0], 32, "bicubic"))
    assert kind_for(index.root, ImageSpec()) == "video"
    assert kind_for(index.root, VideoSpec()) == "video"
    make_image(tmp_path / "a.png")
    make_video(tmp_path / "a.mp4", 3)
    assert kind_for(tmp_path, ImageSpec()) == "image"
    assert kind_for("owner/name", ImageSpec()) == "image"

"""Synchronised cameras: which files belong together, that two cameras of other rates and offsets show the same moments
(each frame tells its own number), and that whatever does not fit ends in one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.data import cameras
from mmssl.data.camera_views import CameraViews, WindowViews
from mmssl.data.cameras import CameraSource
from mmssl.data.media import UnreadableMedia
from mmssl.data.sources import open_source
from mmssl.data.video import open_video
from mmssl.errors import UserError
from tests.media import frame_numbers, make_video, truncate

WHOLE = {"scale": (1.0, 1.0), "ratio": (160 / 96, 160 / 96)}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def opened(root: Path, max_bad_share: float = 0.05) -> CameraSource:
    return CameraSource(open_source(root, "video", max_bad_share=1.0), max_bad_share)


def table(root: Path, *lines: str) -> None:
    (root / "cameras.csv").write_text("\n".join(["sequence,camera,file,offset", *lines]) + "\n")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_files_belong_together_by_name(tmp_path: Path) -> None:
    for name in ("train/pour_cam1", "train/pour_cam2", "train/lift/cam1", "train/lift/camB", "test/my_cam_x_cam1",
                 "test/my_cam_x_cam2", "train/alone"):  # fmt: skip
        make_video(tmp_path / f"{name}.mp4", 4)
    source = opened(tmp_path)
    assert [source.id(row) for row in range(len(source))] == ["test/my_cam_x", "train/lift", "train/pour"]
    assert [source.id(row) for row in source.rows("train")] == ["train/lift", "train/pour"]
    assert [camera.name for camera in source.media(1).cameras] == ["cam1", "camB"]
    assert source.media(2).name == "train/pour_cam1.mp4"
    assert source.labels() == []  # a folder of one sequence is no class


def test_the_table_names_other_files_and_offsets(tmp_path: Path) -> None:
    make_video(tmp_path / "GOPR1.mp4", 60, rate=30)
    make_video(tmp_path / "x/GOPR2.mp4", 30, rate=20)
    table(tmp_path, "pour,left,GOPR1.mp4,", "pour,right,x/GOPR2.mp4,0.5")
    source = opened(tmp_path)
    left, right = source.media(0).cameras
    assert (left.name, left.offset, right.name, right.offset) == ("left", 0.0, "right", 0.5)
    assert source.media(0).span == (0.5, pytest.approx(0.5 + 29 / 20))
    np.testing.assert_array_equal(left.frames_at(np.array([0.5, 1.0])), [15, 30])
    np.testing.assert_array_equal(right.frames_at(np.array([0.5, 1.0, 0.526, 0.524])), [0, 10, 1, 0])


def test_both_cameras_show_the_same_instants(tmp_path: Path) -> None:
    """Frame n of a file shows second n / rate + offset: the numbers in the frames give the times back, within half a
    frame."""
    make_video(tmp_path / "s_cam1.mp4", 90, rate=30)
    make_video(tmp_path / "s_cam2.mp4", 40, rate=16)
    table(tmp_path, "s,cam1,s_cam1.mp4,0.25", "s,cam2,s_cam2.mp4,1")
    media = opened(tmp_path).media(0)
    views = CameraViews(96, instants=6, window=1.0, per_file=3, **WHOLE)  # type: ignore[arg-type]
    rates, offsets, seen = {"cam1": 30.0, "cam2": 16.0}, {"cam1": 0.25, "cam2": 1.0}, set()
    for seed in range(6):
        for sample in views(media, rng(seed)):
            times = sample.targets["time"].numpy()
            assert times.dtype == np.float32
            assert (np.diff(times) >= 0).all()
            assert np.ptp(times) <= 1.0
            assert times[0] >= 1.0
            assert times[-1] <= min(0.25 + 89 / 30, 1 + 39 / 16)
            order = []
            for name in ("a", "b"):
                assert sample.views[name].shape == (6, 3, 96, 96)
                wide = torch.nn.functional.interpolate(sample.views[name].float(), (96, 160))
                numbers = np.array(frame_numbers(wide))
                fits = [c for c in rates if np.allclose(numbers / rates[c] + offsets[c], times, atol=0.51 / rates[c])]
                assert len(fits) == 1
                order += fits
            assert set(order) == {"cam1", "cam2"}
            seen.add(order[0])
    assert seen == {"cam1", "cam2"}, "either camera is the first view at times"


def test_each_camera_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        make_video(tmp_path / f"s_cam{number}.mp4", 30)
    media = opened(tmp_path).media(0)
    names = []

    def counted(media, short_side=None):  # type: ignore[no-untyped-def]
        names.append(media.name)
        return open_video(media, short_side)

    monkeypatch.setattr(cameras, "open_video", counted)
    samples = CameraViews(32, instants=4, per_file=5)(media, rng())
    assert len(samples) == 5
    assert len(names) == len(set(names)) <= 3
    again = CameraViews(32, instants=4, per_file=5)(media, rng())
    for one, other in zip(samples, again, strict=True):
        assert all(torch.equal(one.views[name], other.views[name]) for name in ("a", "b"))


def test_a_source_of_cameras_travels_to_workers_and_has_a_fingerprint(tmp_path: Path) -> None:
    for number in (1, 2):
        make_video(tmp_path / f"s_cam{number}.mp4", 30)
    source = opened(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.media(0) == source.media(0)
    assert copy.fingerprint == source.fingerprint
    table(tmp_path, "s,cam1,s_cam1.mp4,0.1", "s,cam2,s_cam2.mp4,0")
    assert opened(tmp_path).fingerprint != source.fingerprint


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_a_missing_camera_costs_its_sequence_and_no_other(tmp_path: Path) -> None:
    for name in ("a_cam1", "a_cam2", "b_cam1", "b_cam2", "c_cam2"):
        make_video(tmp_path / f"{name}.mp4", 30)
    truncate(tmp_path / "b_cam1.mp4", 0.5)
    source = opened(tmp_path, max_bad_share=0.7)
    assert [source.id(row) for row in source.rows()] == ["a"]
    problems = dict(source.problems())
    assert problems["c"] == "needs two cameras and has 1 (cam2)"
    assert problems["b"].startswith("needs two cameras and has 1 (cam2; b_cam1.mp4 cannot be used: ")
    with pytest.raises(UserError, match=r"2 of 3 sequences .* cannot be used .*c: needs two cameras and has 1"):
        opened(tmp_path)


def test_cameras_of_different_length_are_used_where_they_overlap_and_it_is_said(tmp_path: Path) -> None:
    make_video(tmp_path / "s_cam1.mp4", 60, rate=20)
    make_video(tmp_path / "s_cam2.mp4", 20, rate=20)
    make_video(tmp_path / "t_cam1.mp4", 20, rate=20)
    make_video(tmp_path / "t_cam2.mp4", 20, rate=20)
    source = opened(tmp_path)
    (note,) = source.notes()
    assert note == (
        "1 of 2 sequences have cameras that film different times; only what all of them film is used (first, s: cam1 "
        "0.00 to 2.95 s, cam2 0.00 to 0.95 s, used from 0.00 to 0.95 s)."
    )
    (sample,) = CameraViews(32, instants=20)(source.media(0), rng())
    assert sample.targets["time"].max() <= 0.95


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("s,cam2,s_cam2.mp4,5", "never film at the same time .cam1 ends at 0.97 s and cam2 begins at 5.00 s"),
        ("s,cam2,gone.mp4,0", "line 3, names the file gone.mp4, which is not in"),
        ("s,cam2,s_cam2.mp4,soon", "line 3, has the offset 'soon'"),
        ("s,,s_cam2.mp4,0", "line 3, lacks sequence, camera or file"),
        ("s,cam1,s_cam2.mp4,0", "Camera cam1 of sequence s has two files, s_cam1.mp4 and s_cam2.mp4"),
    ],
)
def test_a_wrong_table_ends_in_a_sentence(line: str, sentence: str, tmp_path: Path) -> None:
    for number in (1, 2):
        make_video(tmp_path / f"s_cam{number}.mp4", 30)
    table(tmp_path, "s,cam1,s_cam1.mp4,0", line)
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path)


def test_plain_videos_are_no_cameras(tmp_path: Path) -> None:
    make_video(tmp_path / "one.mp4", 10)
    with pytest.raises(UserError, match="holds 1 videos, and none is named as one of several cameras: name them"):
        opened(tmp_path)


# -------------------------------------------------------------------------------------------------------- single camera


def test_windows_are_consecutive_and_know_their_times(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 60, rate=20)
    media = open_source(tmp_path, "video").media(0)
    starts = set()
    for seed in range(8):
        for sample in WindowViews(96, frames=7, interval=0.1, per_file=2, **WHOLE)(media, rng(seed)):  # type: ignore[arg-type]
            wide = torch.nn.functional.interpolate(sample.views["window"].float(), (96, 160))
            numbers = np.array(frame_numbers(wide))
            np.testing.assert_array_equal(np.diff(numbers), 2)
            np.testing.assert_allclose(sample.targets["time"], numbers / 20, atol=1e-6)
            starts.add(int(numbers[0]))
    assert len(starts) > 8


def test_a_video_shorter_than_the_window_is_skipped_with_the_reason(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mp4", 10, rate=20)
    media = open_source(tmp_path, "video").media(0)
    with pytest.raises(UnreadableMedia, match=r"too short: 0.50 s, and a window spans 0.90 s"):
        WindowViews(32, frames=10, interval=0.1)(media, rng())
    with pytest.raises(UnreadableMedia, match=r"20 frames/s are fewer than one each 0.02 s"):
        WindowViews(32, frames=4, interval=0.02)(media, rng())

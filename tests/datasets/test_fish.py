"""The fish clips of datasets/samples/video. The tracker that names their direction: on drawn films whose directions are
known. The clips themselves: both decoders read them, and a second way to see the motion agrees with their folders."""

import math
import runpy
from collections import Counter
from functools import cache
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from mmssl.data.listing import list_media

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
SAMPLES = DATASETS / "samples/video"
TOWARDS = {  # (down, right), written out here: an independent word on which way is which
    "n": (-1, 0),
    "ne": (-1, 1),
    "e": (0, 1),
    "se": (1, 1),
    "s": (1, 0),
    "sw": (1, -1),
    "w": (0, -1),
    "nw": (-1, -1),
}
script = runpy.run_path(str(DATASETS / "make_samples.py"))


def film(path: list[tuple[float, float]], radius: float = 12, flicker: float = 20) -> np.ndarray:
    """A dark disc on an uneven ground, lit by bands that run down the rows; (frames, 300, 320)."""
    rows, columns = np.mgrid[:300, :320]
    ground = 160 + 20 * np.sin(columns / 50)
    frames = []
    for number, (y, x) in enumerate(path):
        bands = flicker * np.sin(rows / 40 + 0.8 * number)
        disc = 70 * (np.hypot(rows - y, columns - x) < radius)
        frames.append(ground + bands - disc)
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def straight(towards: tuple[float, float], pixels: float = 4, frames: int = 40) -> list[tuple[float, float]]:
    step = np.array(towards) / math.hypot(*towards) * pixels
    return [tuple(np.array([150, 160]) + step * (i - frames / 2)) for i in range(frames)]


@pytest.mark.parametrize("name", TOWARDS)
def test_the_direction_of_a_drawn_fish_is_found(name):
    drawn = film(straight(TOWARDS[name]))
    found = list(script["fish_clips"](drawn))
    assert len(found) == 7  # starts 0, 5, ... 30; nowhere is it within 40 pixels of an edge
    for number, (direction, file, clip) in enumerate(found):
        assert direction == name
        start, x, y = map(int, file.split("-")[1:])
        assert start == 5 * number
        middle = straight(TOWARDS[name])[start + 5]
        assert math.dist((y, x), middle) < 3
        np.testing.assert_array_equal(clip, drawn[start : start + 10, y - 40 : y + 40, x - 40 : x + 40])


def test_what_does_not_swim_gives_no_clip():
    fish_clips = script["fish_clips"]
    assert not list(fish_clips(film(straight((0, 1), pixels=0.5))))  # 4.5 pixels in a clip
    assert not list(fish_clips(film(straight((0, 1)), radius=3)))  # a speck
    assert not list(fish_clips(film([(y, 30) for y, _ in straight((1, 0))])))  # a crop would leave the frame


def test_a_fish_that_jumps_is_another_fish():
    near, far = (100.0, 100.0), (150.0, 100.0)
    assert script["link"]([[near]] * 3 + [[far]] * 2) == [[(0, near), (1, near), (2, near)], [(3, far), (4, far)]]
    # Gone for one frame: the track ends there, so that no clip has a hole.
    assert [len(track) for track in script["link"]([[near], [], [near]])] == [1, 1]


def test_two_fish_do_not_share_a_blob():
    left, right = [(50.0, 50.0 + 4 * i) for i in range(10)], [(58.0, 90.0 - 4 * i) for i in range(10)]
    tracks = script["link"]([list(pair) for pair in zip(left, right, strict=True)])
    assert [[point for _, point in track] for track in tracks] == [left, right]


@cache
def clips() -> list[tuple[str, np.ndarray]]:
    """(folder, (10, 80, 80) grey) of every test clip."""
    out = []
    for path in sorted((SAMPLES / "test").rglob("*.mp4")):
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        out.append((path.parent.name, np.stack(frames)))
    return out


def test_the_folder_reads_as_a_labelled_set():
    listing = list_media(SAMPLES)
    assert listing.ignored == {".txt": 1}  # the licence
    counts = Counter((record.split, record.label) for record in listing.records)
    assert counts.keys() == {(split, name) for split in ("train", "test") for name in TOWARDS}
    assert all(30 <= count <= script["CLIPS_PER_CLASS"][split] for (split, _), count in counts.items())
    assert "GNU GENERAL PUBLIC LICENSE" in (SAMPLES / "LICENSE-GPL-3.0.txt").read_text()
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 3.2e6


def test_both_decoders_see_the_same_clip():
    assert all(clip.shape == (10, 80, 80) for _, clip in clips())
    paths = sorted((SAMPLES / "test").rglob("*.mp4"))[::40]
    for path, (_, clip) in zip(paths, clips()[::40], strict=True):
        reader = decord.VideoReader(str(path))
        assert len(reader) == 10
        assert list(reader.get_key_indices()) == [0]
        pixels = reader.get_batch(range(10)).asnumpy().astype(float)
        assert np.abs(pixels - clip[..., None]).max() <= 3  # the decoders round YUV differently


def test_the_folders_tell_which_way_the_dark_middle_moves():
    """Without any tracker: the centroid of what is dark near the middle, two frames before and after the middle one."""
    rows, columns = np.mgrid[-39.5:40, -39.5:40]
    window = np.exp(-(rows**2 + columns**2) / (2 * 15**2))
    agreement = []
    for folder, clip in clips():
        dark = np.clip(np.median(clip) - 15.0 - clip, 0, None) * window
        mass = dark.sum((1, 2)) + 1e-6
        centre = np.stack([(dark * rows).sum((1, 2)) / mass, (dark * columns).sum((1, 2)) / mass], axis=-1)
        moved, towards = centre[7] - centre[3], np.array(TOWARDS[folder])
        agreement.append(moved @ towards / (np.linalg.norm(moved) * np.linalg.norm(towards) + 1e-6))
    cosines = np.array(agreement)
    assert (cosines > 0).mean() > 0.95
    assert (cosines > math.cos(math.pi / 4)).mean() > 0.85

"""The scripts that cut clips out of films inside packages, on drawn films whose content is known: natural_clips splits
by time without overlap and loses no frame but those of the gap; pedestrians names the direction in which somebody walks
and never mixes the two halves of the film; fish writes what the tracker of the samples finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest

from mmssl.data.listing import list_media
from tests.media import frame_numbers, make_video

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DATASETS))

    def load_script(name: str, **constants: object) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{name}", DATASETS / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(__import__("sys").modules, f"script_{name}", module)  # dataclasses look there
        spec.loader.exec_module(module)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        return module

    return load_script


def pixels(path: Path) -> np.ndarray:
    container: Any
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def refusal(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        script.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


def write_film(path: Path, film: np.ndarray, rate: int) -> None:
    """uint8 [frames,H,W] grey, almost without loss."""
    container: Any
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *film.shape[1:], "gray"
        for picture in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="gray")))
        container.mux(stream.encode(None))


# ---------------------------------------------------------------- natural clips


def test_natural_clips_split_by_time(tmp_path, load, capsys):
    script = load("natural_clips")
    films = (script.Film("walk", "demo.mp4", "p", 120), script.Film("gone", "gone.mp4", "q", 9))
    script = load("natural_clips", FILMS=films, FRAMES=30)
    make_video(tmp_path / "in/package/demo.mp4", 120, rate=20)
    script.main(["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "walk: train 3, test 1 pieces" in said
    assert "gone: left out, no gone.mp4" in said
    numbers: dict[str | None, list[int]] = {"train": [], "test": []}
    for record in list_media(tmp_path / "out").records:
        assert record.label == "walk"
        found = frame_numbers(pixels(tmp_path / "out" / record.path).transpose(0, 3, 1, 2))
        assert f"{found[0]:05d}" in record.path
        numbers[record.split] += found
    # 70 % of 120 frames; half a second is 10 frames.
    assert numbers == {"train": list(range(84)), "test": list(range(94, 120))}


def test_natural_clips_leave_out_titles(load):
    script = load("natural_clips", FRAMES=25)
    film = script.Film("film", "f.mp4", "p", 1000, start=10.0, stop=30.0)
    pieces = script.plan(film, 1000, 10.0)
    assert pieces[0][1][0] == 100
    assert pieces[-1][1][-1] == 299
    train, test = ([n for split, piece in pieces if split == name for n in piece] for name in ("train", "test"))
    assert train == list(range(100, 240))
    assert test == list(range(245, 300))


def test_natural_clips_say_what_is_wrong(tmp_path, load, capsys):
    script = load("natural_clips")
    arguments = ("--source", tmp_path / "in", "--out", tmp_path / "out")
    assert "is not a folder" in refusal(script, capsys, *arguments)
    (tmp_path / "in").mkdir()
    assert "holds none of vtest.avi, test_A.avi" in refusal(script, capsys, *arguments)
    make_video(tmp_path / "in/bikes.mp4", 30)
    assert "has 30 frames, not 250" in refusal(script, capsys, *arguments)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- pedestrians


def people(frames: int = 60, step: float = 6.0) -> np.ndarray:
    """One walks right at row 90, one left at row 200, one stands at row 300; a lamp post stays."""
    film = np.full((frames, 400, 640), 150, np.uint8)
    film[:, :, 500:505] = 40
    for number in range(frames):
        for top, x in ((90, 80 + step * number), (200, 560 - step * number), (300, 250 + 12 * (number % 2))):
            film[number, top - 30 : top + 30, int(x) - 12 : int(x) + 12] = 40
    return film


def test_pedestrians_are_cut_out_by_direction_and_time(tmp_path, load, capsys):
    script = load("pedestrians", FRAMES=60, SPLIT=38)
    write_film(tmp_path / "in/deb/vtest.avi", people(), 10)
    script.main(["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    records = list_media(tmp_path / "out").records
    assert {(record.split, record.label) for record in records} == {
        (split, label) for split in ("train", "test") for label in ("left", "right")
    }
    for record in records:
        start, x, y = map(int, Path(record.path).stem.split("-")[1:])
        assert (start + 9 < 38) if record.split == "train" else (start >= 38)
        assert abs(y - (90 if record.label == "right" else 200)) < 6
        # The clip is the film there, and the dark mass goes the way that its folder says.
        clip = pixels(tmp_path / "out" / record.path).mean(-1)
        assert np.abs(clip - people()[start : start + 10, y - 48 : y + 48, x - 48 : x + 48]).mean() < 4
        columns = [np.average(np.arange(96), weights=(picture < 95).sum(0) + 1e-9) for picture in clip]
        assert (columns[-1] > columns[0]) == (record.label == "right")
    assert "majority 0.5" in capsys.readouterr().out
    arguments = ("--source", tmp_path / "in", "--out", tmp_path / "new")
    assert "has 60 frames, not 795" in refusal(load("pedestrians"), capsys, *arguments)


# ---------------------------------------------------------------- fish


def test_fish_writes_every_clip_of_the_tracker(tmp_path, load, capsys):
    rows, columns = np.mgrid[:300, :320]
    film = np.stack([160 - 70 * (np.hypot(rows - 150, columns - 80 - 4 * n) < 12) for n in range(40)]).astype(np.uint8)
    script = load("fish", FILMS={"train": ("test_A.avi", 40), "test": ("test_B.avi", 40)})
    for name in ("test_A.avi", "test_B.avi"):
        write_film(tmp_path / "in/idtrackerai/data" / name, film, 28)
    arguments = ("--source", tmp_path / "in", "--out", tmp_path / "out")
    assert "which must go with the clips" in refusal(script, capsys, *arguments)
    licence = tmp_path / "in/idtrackerai-6.0.14.dist-info/licenses/LICENSE"
    licence.parent.mkdir(parents=True)
    licence.write_text("GPL")
    script.main([str(argument) for argument in arguments])
    names = {(record.split, record.label) for record in list_media(tmp_path / "out").records}
    assert names == {("train", "e"), ("test", "e")}
    assert len(list((tmp_path / "out/train/e").iterdir())) == 7
    assert (tmp_path / "out/LICENSE-GPL-3.0.txt").read_text() == "GPL"
    assert "7 clips of test_A.avi, 1.000 of them e" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["natural_clips", "pedestrians", "fish"])
def test_the_card_stands_at_the_head_and_says_how_to_get_the_films(load, name):
    text = load(name).__doc__
    assert all(f"\n    {part}" in text for part in ("Content", "Source", "Licence", "Splits", "Disk"))
    assert "download" in text.partition("FOLDER holds")[2]
    assert "REPLACE" not in text

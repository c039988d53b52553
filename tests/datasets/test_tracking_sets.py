"""datasets/davis2017.py and datasets/jhmdb.py, run on tiny copies of the official layouts; the evaluation reads it."""

import importlib.util
import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mmssl.evaluation.tracking.command import open_tracks
from tests.evaluation.tracking.tracked import write_davis, write_list

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", DATASETS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def davis(monkeypatch) -> ModuleType:
    script = load("davis2017")
    assert script.SPLITS == {"train": (60, 4209), "val": (30, 1999)}
    monkeypatch.setattr(script, "SPLITS", {"train": (2, 12), "val": (1, 6)})
    return script


def refusal(script: ModuleType, source: Path, out: Path, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        script.main(["--source", str(source), "--out", str(out)])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    assert not out.exists() or out.name == "full"
    assert not list(out.parent.glob(".*.part"))
    return message


def write_source(root: Path) -> Path:
    write_davis(root / "DAVIS", ("bear", "boat", "cat"))
    write_list(root / "DAVIS", "2017/train", ("bear", "boat"))
    write_list(root / "DAVIS", "2017/val", ("cat",))
    return root


@pytest.mark.parametrize("packed", [True, False])
def test_davis_is_verified_and_read(tmp_path, davis, packed, capsys):
    source = write_source(tmp_path / "in")
    (source / "DAVIS/README.md").write_text("x")
    if packed:
        archive = tmp_path / "DAVIS-2017-trainval-480p.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in source.rglob("*"):
                file.write(path, path.relative_to(source))
    davis.main(["--source", str(archive if packed else source), "--out", str(tmp_path / "out")])
    assert "val: 1 videos, 6 frames with masks" in capsys.readouterr().out
    assert not (tmp_path / "out/README.md").exists()
    (track,) = open_tracks(tmp_path / "out")
    assert (track.name, track.names, len(track.frames)) == ("cat", ("1", "2"), 6)
    for path in (source / "DAVIS/Annotations").rglob("*.png"):
        assert (tmp_path / "out" / path.relative_to(source / "DAVIS")).read_bytes() == path.read_bytes()
    assert len(open_tracks(tmp_path / "out", "train")) == 2


def test_davis_says_what_is_missing(tmp_path, davis, capsys):
    source, out = write_source(tmp_path / "in"), tmp_path / "out"
    assert "is not there" in refusal(davis, tmp_path / "none", out, capsys)
    (tmp_path / "x.zip").write_bytes(b"PK no")
    assert "x.zip cannot be unpacked" in refusal(davis, tmp_path / "x.zip", out, capsys)
    mask = source / "DAVIS/Annotations/480p/cat/00003.png"
    content = mask.read_bytes()
    mask.unlink()
    assert "The video cat" in refusal(davis, source, out, capsys)
    assert "00003" in refusal(davis, source, out, capsys)
    mask.write_bytes(content)
    for number in (4, 5):
        (source / f"DAVIS/JPEGImages/480p/bear/{number:05d}.jpg").unlink()
        (source / f"DAVIS/Annotations/480p/bear/{number:05d}.png").unlink()
    assert "train split" in refusal(davis, source, out, capsys)
    assert "has 10 frames, not 12" in refusal(davis, source, out, capsys)
    (source / "DAVIS/JPEGImages/480p/bear").rename(tmp_path / "bear")
    assert "lacks 1 of the 2 videos of train (bear)" in refusal(davis, source, out, capsys)
    (source / "DAVIS/ImageSets/2017/val.txt").unlink()
    (tmp_path / "bear").rename(source / "DAVIS/JPEGImages/480p/bear")
    davis.SPLITS = {"val": (1, 6)}
    assert "lacks ImageSets/2017/val.txt" in refusal(davis, source, out, capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "is not empty" in refusal(davis, source, tmp_path / "full", capsys)


def test_a_zip_file_cannot_write_elsewhere(tmp_path, davis, capsys):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("DAVIS/JPEGImages/480p/../../../../stray.jpg", b"x")
    assert "leads out of its folder" in refusal(davis, tmp_path / "x.zip", tmp_path / "out", capsys)
    assert not list(tmp_path.rglob("stray.jpg"))


@pytest.fixture
def jhmdb(monkeypatch) -> ModuleType:
    script = load("jhmdb")
    assert script.CLIPS == 928 == sum(script.SPLIT_1.values())
    assert len(set(script.JOINTS)) == 15
    monkeypatch.setattr(script, "CLIPS", 3)
    monkeypatch.setattr(script, "SPLIT_1", {"train": 2, "test": 1})
    return script


def write_jhmdb(root: Path) -> np.ndarray:
    """Three clips in two classes; returns pos_img of clip_c, which lacks the annotation of its last frame."""
    rng = np.random.default_rng(0)
    places = np.zeros(0)
    for action, clip, part in (("run", "clip_a", 1), ("run", "clip_b", 1), ("jump", "clip_c", 2)):
        folder = root / f"Rename_Images/{action}/{clip}"
        folder.mkdir(parents=True)
        for number in range(1, 5):
            Image.new("RGB", (64, 48), (number, 0, 0)).save(folder / f"{number:05d}.png")
        places = rng.uniform(1, 48, (2, 15, 3 if clip == "clip_c" else 4))
        mat = root / f"joint_positions/{action}/{clip}/joint_positions.mat"
        mat.parent.mkdir(parents=True)
        savemat(mat, {"pos_img": places, "scale": np.ones(4)})
        file = root / f"splits/{action}_test_split1.txt"
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as lines:
            lines.write(f"{clip}.avi {part}\n")
    return places


def test_jhmdb_becomes_key_points(tmp_path, jhmdb, capsys):
    places = write_jhmdb(tmp_path / "in")
    jhmdb.main(["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "2 train and 1 test clips, 12 frames" in capsys.readouterr().out
    (track,) = open_tracks(tmp_path / "out", "test")
    assert (track.name, track.names) == ("clip_c", jhmdb.JOINTS)
    for number in range(3):  # from 1 to 0, and [xy, joint, frame] to [frame, joint, xy]
        found = track.truth(number)
        assert found is not None
        np.testing.assert_allclose(found, places[:, :, number].T - 1, atol=1e-3)
    last = track.truth(3)
    assert last is not None
    assert np.isnan(last).all()
    assert track.frame(2)[0, 0].tolist() == [3, 0, 0]
    assert json.loads((tmp_path / "out/Keypoints/clip_a.json").read_text())["joints"][0] == "neck"


def test_jhmdb_says_what_is_missing(tmp_path, jhmdb, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    assert "is not a folder" in refusal(jhmdb, source, out, capsys)
    write_jhmdb(source)
    (source / "splits").rename(tmp_path / "splits")
    assert "has no folder splits" in refusal(jhmdb, source, out, capsys)
    (tmp_path / "splits").rename(source / "splits")
    mat = source / "joint_positions/jump/clip_c/joint_positions.mat"
    whole = mat.read_bytes()
    mat.write_bytes(b"no")
    assert "joint_positions.mat cannot be read" in refusal(jhmdb, source, out, capsys)
    savemat(mat, {"pos_img": np.zeros((2, 14, 3))})
    assert "not 2 x 15 x frames" in refusal(jhmdb, source, out, capsys)
    savemat(mat, {"pos_img": np.zeros((2, 15, 9))})
    assert "has joints of 9 frames" in refusal(jhmdb, source, out, capsys)
    mat.write_bytes(whole)
    (source / "Rename_Images/run/clip_b").rename(tmp_path / "clip_b")
    assert "has 2 of the 3 clips" in refusal(jhmdb, source, out, capsys)
    assert "missing: clip_b" in refusal(jhmdb, source, out, capsys)
    (source / "splits/run_test_split1.txt").write_text("clip_a.avi 1\nclip_b.avi 2\n")
    assert "{'train': 1, 'test': 2}" in refusal(jhmdb, source, out, capsys)
    (source / "splits/run_test_split1.txt").write_text("clip_a.avi\n")
    assert "has the line 'clip_a.avi'" in refusal(jhmdb, source, out, capsys)


@pytest.mark.parametrize("name", ["davis2017", "jhmdb"])
def test_the_card_has_every_part(name):
    card = load(name).__doc__ or ""
    assert all(word in card for word in ("Content", "Source", "Licence", "Splits", "Disk"))

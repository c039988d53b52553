"""The scripts that organise UCF101, HMDB51, Kinetics-400 and Something-Something v2, on tiny trees of the same layout:
every video of the official lists is linked under its split and class as mmssl lists them, nothing is copied, wrong
counts and missing videos end in one sentence, and where missing videos are normal they are counted."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from mmssl.data.listing import list_media

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Scripts as modules, with the folder on the path as when they are run, and with tiny counts."""
    monkeypatch.syspath_prepend(str(DATASETS))

    def load_script(name: str, **constants: object) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{name}", DATASETS / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        return module

    return load_script


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def listed(out: Path) -> set[tuple[str | None, str | None, str]]:
    """(split, label, bytes of the file) as mmssl sees them."""
    return {
        (record.split, record.label, (out / record.path).read_text()) for record in list_media(out, "video").records
    }


def refusal(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        script.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


# ---------------------------------------------------------------- UCF101


def ucf(source: Path, spelling: str = "HandStand") -> None:
    """Two classes with two groups of two clips; the lists of split 2 put group 1 into test."""
    lists: dict[str, list[str]] = {"trainlist02.txt": [], "testlist02.txt": []}
    for number, (label, stem) in enumerate((("Archery", "Archery"), ("HandstandPushups", f"{spelling}Pushups")), 1):
        for group in (1, 2):
            for clip in (1, 2):
                name = f"v_{stem}_g{group:02d}_c{clip:02d}.avi"
                touch(source / "UCF-101" / label / name)
                official = name.replace(spelling, "HandStand")
                if group == 1:
                    lists["testlist02.txt"].append(f"{label}/{official}")
                else:
                    lists["trainlist02.txt"].append(f"{label}/{official} {number}")
    for name, lines in lists.items():
        (source / "ucfTrainTestlist").mkdir(exist_ok=True)
        (source / "ucfTrainTestlist" / name).write_text("\r\n".join(lines) + "\r\n")


@pytest.mark.parametrize("spelling", ["HandStand", "Handstand"])
def test_ucf101_finds_the_handstand_pushups_however_they_are_spelt(tmp_path, load, capsys, spelling):
    ucf(tmp_path / "in", spelling)
    script = load("ucf101", COUNTS={2: (4, 4)}, CLASSES=2)
    script.main(["--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--split", "2"])
    found = listed(tmp_path / "out")
    assert len(found) == 8
    assert Counter((split, label) for split, label, _ in found) == {
        (split, label): 2 for split in ("train", "test") for label in ("Archery", "HandstandPushups")
    }
    assert {"g01" in text for split, _, text in found if split == "test"} == {True}
    assert all(path.is_symlink() for path in (tmp_path / "out").rglob("*.avi"))
    assert "4 videos, 2 classes" in capsys.readouterr().out


def test_ucf101_says_what_is_wrong(tmp_path, load, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    script = load("ucf101", COUNTS={1: (4, 4), 2: (4, 4)}, CLASSES=2)
    arguments = ("--source", source, "--out", out, "--split", 2)
    assert "is not a folder" in refusal(script, capsys, *arguments)
    ucf(source)
    assert "holds no trainlist01.txt" in refusal(script, capsys, "--source", source, "--out", out)
    (source / "UCF-101/Archery/v_Archery_g01_c02.avi").unlink()
    message = refusal(script, capsys, *arguments)
    assert "1 of 8 videos are missing (test/Archery/v_Archery_g01_c02.avi)" in message
    assert not out.exists()
    script.main([*map(str, arguments), "--allow-missing"])
    assert len(listed(out)) == 7
    assert "3 videos, 2 classes, 1 missing (25.0%)" in capsys.readouterr().out
    assert (out / "missing.txt").read_text() == "test/Archery/v_Archery_g01_c02.avi\n"
    assert "already there" in refusal(script, capsys, *arguments, "--allow-missing")
    short = source / "ucfTrainTestlist/trainlist02.txt"
    short.write_text(short.read_text().partition("\n")[2])
    assert "list 3 train videos, not 4" in refusal(script, capsys, *arguments[:3], tmp_path / "new", "--split", 2)


# ---------------------------------------------------------------- HMDB51


def test_hmdb51_takes_marks_and_leaves_what_is_in_no_part(tmp_path, load, capsys):
    source = tmp_path / "in"
    for label in ("brush_hair", "wave"):
        lines = []
        for number, mark in enumerate((1, 1, 2, 0)):
            name = f"same#name [{number}].avi"  # names of one class recur in another
            touch(source / "videos" / label / name)
            (source / "videos" / label / name).write_text(f"{label} {mark}")
            lines.append(f"{name} {mark} ")
        (source / "lists").mkdir(exist_ok=True)
        (source / "lists" / f"{label}_test_split1.txt").write_text("\n".join(lines) + "\n")
    script = load("hmdb51", CLASSES=2, TRAIN=2, TEST=1)
    script.main(["--source", str(source), "--out", str(tmp_path / "out")])
    assert listed(tmp_path / "out") == {
        (split, label, f"{label} {mark}")
        for split, mark in (("train", 1), ("test", 2))
        for label in ("brush_hair", "wave")
    }
    assert "train: 4 videos, 2 classes" in capsys.readouterr().out
    arguments = ("--source", source, "--out", tmp_path / "new")
    assert "0 lists *_test_split3.txt, not 2" in refusal(script, capsys, *arguments, "--split", 3)
    (source / "lists/wave_test_split1.txt").write_text("x.avi 7\n")
    assert "Line 1 of" in refusal(script, capsys, *arguments)


# ---------------------------------------------------------------- Kinetics-400


def test_kinetics_counts_what_is_missing_and_goes_on(tmp_path, load, capsys):
    source = tmp_path / "in"
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    rows = {
        "train.csv": [
            ("a b, c", "-0x_y", 0),
            ("a b, c", "gone", 5),
            ("abseiling", "by-id", 7),
            ("abseiling", "null", 9),
        ],
        "val.csv": [("a b, c", "v1", 1), ("abseiling", "v2", 2)],
    }
    (source / "annotations").mkdir(parents=True)
    for name, entries in rows.items():
        lines = [f'"{label}",{video},{start},{start + 10},{name[:-4]},0' for label, video, start in entries]
        (source / "annotations" / name).write_text(header + "\n".join(lines) + "\n")
    touch(
        source / "train/-0x_y_000000_000010.mp4",
        source / "train/abseiling/by-id.mkv",
        source / "val/v1_000001_000011.mp4",
        source / "val/v2_000002_000012.mp4",
    )
    (source / "train/null_000009_000019.mp4").touch()  # a download that failed
    script = load("kinetics400", CLASSES=2)
    script.main(["--source", str(source), "--out", str(tmp_path / "out")])
    assert listed(tmp_path / "out") == {
        ("train", "a b, c", "-0x_y_000000_000010.mp4"),
        ("train", "abseiling", "by-id.mkv"),
        ("validation", "a b, c", "v1_000001_000011.mp4"),
        ("validation", "abseiling", "v2_000002_000012.mp4"),
    }
    said = capsys.readouterr().out
    assert "train: 2 videos, 2 classes, 2 missing (50.0%)" in said
    assert "val: 2 videos, 2 classes\n" in said
    missing = (tmp_path / "out/missing.txt").read_text().splitlines()
    assert missing == ["train/a b, c/gone_000005_000015", "train/abseiling/null_000009_000019"]
    arguments = ("--source", source, "--out", tmp_path / "new")
    (source / "annotations/val.csv").write_text("v1 0\nv2 1\n")
    assert "lacks the columns label, youtube_id" in refusal(script, capsys, *arguments)
    script = load("kinetics400")
    assert "names 2 classes, not 400" in refusal(script, capsys, *arguments)


# ---------------------------------------------------------------- Something-Something v2


def test_something_something_goes_by_templates(tmp_path, load, capsys):
    source = tmp_path / "in"
    up, paper = "Moving something up", "Something falling like a feather or paper"
    lists = {
        "labels": {up: "0", paper: "1"},
        "train": [
            {"id": "1", "label": "moving a pen up", "template": "Moving [something] up", "placeholders": ["a pen"]},
            {"id": "2", "label": "leaf", "template": "[Something] falling like a feather or paper"},
        ],
        "validation": [{"id": "30", "label": "moving a cup up", "template": "Moving [something] up"}],
    }
    (source / "labels").mkdir(parents=True)
    for name, content in lists.items():
        (source / "labels" / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    touch(*(source / "20bn-something-something-v2" / f"{number}.webm" for number in (1, 2, 30, 99)))
    script = load("something_something_v2", COUNTS={"train": 2, "val": 1}, CLASSES=2)
    script.main(["--source", str(source), "--out", str(tmp_path / "out")])
    assert listed(tmp_path / "out") == {
        ("train", up, "1.webm"),
        ("train", paper, "2.webm"),
        ("validation", up, "30.webm"),
    }
    arguments = ("--source", source, "--out", tmp_path / "new")
    wrong = [{"id": "30", "template": "Eating [something]"}]
    (source / "labels/something-something-v2-validation.json").write_text(json.dumps(wrong))
    assert "Clip 30 in" in refusal(script, capsys, *arguments)
    script = load("something_something_v2", CLASSES=2)
    assert "list 2 train videos, not 168,913" in refusal(script, capsys, *arguments)


@pytest.mark.parametrize("name", ["ucf101", "hmdb51", "kinetics400", "something_something_v2"])
def test_the_card_stands_at_the_head(load, name):
    text = load(name).__doc__
    assert all(f"\n    {part}" in text for part in ("Content", "Source", "Licence", "Splits", "Disk"))

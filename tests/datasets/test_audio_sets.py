"""The scripts that organise sets of sound, on tiny trees of the same layout: every recording of the official lists is
linked under its split and label as mmssl lists them, with what else is known of it in metadata.csv; wrong counts,
missing recordings and damaged lists end in one sentence; sides share no speaker, line, syllable, level or kit."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from mmssl.data.listing import list_media

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
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
        path.write_bytes("/".join(path.parts[-3:]).encode())  # different content everywhere


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def listed(out: Path) -> dict[str, tuple[str | None, str | None]]:
    """{content of the file: (split, label)} as mmssl sees them."""
    records = list_media(out, "audio").records
    assert all(record.problem is None for record in records)
    return {(out / record.path).read_text(): (record.split, record.label) for record in records}


def metadata(out: Path) -> dict[str, dict[str, str]]:
    """By content of the file."""
    with open(out / "metadata.csv", encoding="utf-8", newline="") as file:
        return {(out / row["file_name"]).read_text(): row for row in csv.DictReader(file)}


def run(script: ModuleType, source: Path, out: Path, *more: str) -> Path:
    script.main(["--source", str(source), "--out", str(out), *more])
    return out


def refusal(script: ModuleType, capsys: pytest.CaptureFixture[str], source: Path, out: Path, *more: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(script, source, out, *more)
    assert stop.value.code == 2
    assert not out.exists()
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


def test_librispeech(tmp_path, load, capsys):
    script = load("librispeech", COUNTS={"train-clean-100": 3, "dev-clean": 1, "test-other": 1})
    root = tmp_path / "in/LibriSpeech"
    for part, speaker, chapter, count in (
        ("train-clean-100", 19, 198, 2),
        ("train-clean-100", 26, 495, 1),
        ("dev-clean", 84, 121, 1),
    ):
        folder = root / part / f"{speaker}/{chapter}"
        names = [f"{speaker}-{chapter}-{number:04d}" for number in range(count)]
        touch(*(folder / f"{name}.flac" for name in names))
        write(folder / f"{speaker}-{chapter}.trans.txt", "".join(f"{name} WORDS OF {name}\n" for name in names))
    out = run(script, tmp_path / "in", tmp_path / "out")
    assert "test-other: left out, it is not there" in capsys.readouterr().out
    assert listed(out) == {
        "19/198/19-198-0000.flac": ("train", "19"),
        "19/198/19-198-0001.flac": ("train", "19"),
        "26/495/26-495-0000.flac": ("train", "26"),
        "84/121/84-121-0000.flac": ("validation", "84"),
    }
    known = metadata(out)["19/198/19-198-0001.flac"]
    assert (known["text"], known["chapter"], known["part"]) == ("WORDS OF 19-198-0001", "198", "train-clean-100")
    only = run(script, tmp_path / "in", tmp_path / "dev", "--parts", "dev-clean")
    assert len(listed(only)) == 1
    assert "unpack test-other.tar.gz" in refusal(
        script, capsys, tmp_path / "in", tmp_path / "x", "--parts", "test-other"
    )
    (root / "train-clean-100/19/198/19-198-0000.flac").unlink()
    assert "1 of 4 recordings are missing" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")
    write(root / "dev-clean/84/121/84-121.trans.txt", "")
    assert "of 0 utterances, not 1" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")
    write(root / "dev-clean/84/121/84-121.trans.txt", "84-121-0000\n")
    assert "Line 1 of" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_libri_light(tmp_path, load, capsys):
    script = load("libri_light")
    for part, speaker, book in (("small", "100", "sea_64kb"), ("small", "101", "sea_64kb"), ("medium", "100", "tale")):
        folder = tmp_path / "in" / part / speaker / book
        touch(folder / "01_64kb.flac")
        write(folder / "01_64kb.json", json.dumps({"speaker": speaker, "snr": 7.123, "voice_activity": []}))
    out = run(script, tmp_path / "in", tmp_path / "out")
    assert set(listed(out).values()) == {("train", "100"), ("train", "101")}
    assert len(listed(out)) == 3
    assert metadata(out)["100/tale/01_64kb.flac"]["snr"] == "7.12"
    assert len(listed(run(script, tmp_path / "in", tmp_path / "small", "--parts", "small"))) == 2
    (tmp_path / "in/medium/100/tale/01_64kb.flac").unlink()
    less = run(script, tmp_path / "in", tmp_path / "less")
    assert (less / "missing.txt").read_text() == "train/100/medium-tale-01_64kb.flac\n"
    write(tmp_path / "in/medium/100/tale/01_64kb.json", "{}")
    assert "01_64kb.json cannot be read" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_audioset(tmp_path, load, capsys):
    script = load("audioset")
    source = tmp_path / "in"
    write(source / "class_labels_indices.csv", 'index,mid,display_name\n0,/m/a,Speech\n1,/m/b,"Bark, dog"\n')
    head = (
        "# Segments csv\n# num_ytids=2, num_segs={}, num_unique_labels=2\n# YTID, start_seconds, end_seconds, labels\n"
    )
    segment = '{}, {}.000, {}.000, "{}"\n'
    balanced = segment.format("--0123456-A", 30, 40, "/m/a,/m/b") + segment.format("YYYYYYYYYYY", 0, 10, "/m/b")
    write(source / "balanced_train_segments.csv", head.format(2) + balanced)
    write(source / "eval_segments.csv", head.format(2) + segment.format("--0123456-A", 70, 80, "/m/a") * 2)
    touch(source / "a/--0123456-A_30000_40000.flac", source / "a/YYYYYYYYYYYY.wav")
    (source / "a/--0123456-A_70.wav").write_bytes(b"")
    out = run(script, source, tmp_path / "out", "--train", "balanced")
    assert set(listed(out).values()) == {("train", None)}
    known = metadata(out)
    assert known["in/a/--0123456-A_30000_40000.flac"]["events"] == "Speech;Bark, dog"
    assert known["in/a/YYYYYYYYYYYY.wav"]["events"] == "Bark, dog"  # a Y before an id that begins with one
    assert (out / "missing.txt").read_text().splitlines() == ["test/--0123456-A"] * 2
    assert "no unbalanced_train_segments.csv" in refusal(script, capsys, source, tmp_path / "x")
    write(source / "eval_segments.csv", head.format(3) + segment.format("--0123456-A", 70, 80, "/m/a"))
    assert "has 1 segments and its head says 3" in refusal(
        script, capsys, source, tmp_path / "x", "--train", "balanced"
    )
    write(source / "eval_segments.csv", segment.format("--0123456-A", 70, 80, "/m/c"))
    assert "label /m/c" in refusal(script, capsys, source, tmp_path / "x", "--train", "balanced")


def test_esc50(tmp_path, load, capsys):
    script = load("esc50", CLASSES=2, EACH=5)
    source = tmp_path / "in/ESC-50-master"
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for target, label in enumerate(("dog", "rain")):
        for fold in range(1, 6):
            rows.append(f"{fold}-1{target}-A-{target}.wav,{fold},{target},{label},False,1{target},A")
            touch(source / "audio" / rows[-1].split(",")[0])
    write(source / "meta/esc50.csv", "\n".join(rows) + "\n")
    for fold in (1, 4):
        out = run(script, tmp_path / "in", tmp_path / f"out{fold}", "--fold", str(fold))
        test = {name for name, (split, _) in listed(out).items() if split == "test"}
        assert test == {f"ESC-50-master/audio/{fold}-10-A-0.wav", f"ESC-50-master/audio/{fold}-11-A-1.wav"}
        assert set(listed(out).values()) == {(split, label) for split in ("train", "test") for label in ("dog", "rain")}
    assert metadata(out)["ESC-50-master/audio/2-11-A-1.wav"]["original"] == "11"
    write(source / "meta/esc50.csv", "\n".join(rows[:-1]) + "\n")
    assert "does not list 5 clips of each of 2" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_speech_commands(tmp_path, load, capsys):
    script = load("speech_commands", COUNTS={5: ("version 9", {"train": 3, "validation": 1, "test": 1})})
    source = tmp_path / "in"
    names = [
        "go/aa_nohash_0.wav",
        "go/bb_nohash_0.wav",
        "no/aa_nohash_0.wav",
        "no/cc_nohash_1.wav",
        "no/dd_nohash_0.wav",
    ]
    touch(*(source / name for name in names), source / "_background_noise_/pink_noise.wav")
    write(source / "validation_list.txt", "no/cc_nohash_1.wav\n")
    write(source / "testing_list.txt", "no/dd_nohash_0.wav\n")
    out = run(script, source, tmp_path / "out")
    assert listed(out) == {
        "in/go/aa_nohash_0.wav": ("train", "go"),
        "in/go/bb_nohash_0.wav": ("train", "go"),
        "in/no/aa_nohash_0.wav": ("train", "no"),
        "in/no/cc_nohash_1.wav": ("validation", "no"),
        "in/no/dd_nohash_0.wav": ("test", "no"),
    }
    assert metadata(out)["in/no/dd_nohash_0.wav"]["speaker"] == "dd"
    write(source / "testing_list.txt", "no/aa_nohash_0.wav\n")
    assert "Speaker aa is on two sides" in refusal(script, capsys, source, tmp_path / "x", "--allow-missing")
    (source / "go/bb_nohash_0.wav").unlink()
    assert "has 4 words, not 5 (version 9)" in refusal(script, capsys, source, tmp_path / "x")
    (source / "testing_list.txt").unlink()
    assert "holds no testing_list.txt" in refusal(script, capsys, source, tmp_path / "x")


def test_voxceleb(tmp_path, load, capsys):
    sides = {"1": ("train", 2), "2": ("validation", 1), "3": ("test", 1)}
    script = load("voxceleb", SPLITS=sides, PEOPLE=2)
    names = ["1 id1/aa/00001.wav", "1 id2/aa/00001.wav", "2 id1/bb/00001.wav", "3 id1/cc/00001.wav"]
    write(tmp_path / "in/iden_split.txt", "\n".join(names) + "\n")
    touch(*(tmp_path / "in/wav" / name[2:] for name in names))
    out = run(script, tmp_path / "in", tmp_path / "out")
    assert listed(out) == {name[2:]: (sides[name[0]][0], name[2:5]) for name in names}
    assert metadata(out)["id1/cc/00001.wav"]["video"] == "cc"
    (tmp_path / "in/wav/id1/cc/00001.wav").unlink()
    assert "test/id1/cc/00001.wav" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")
    write(tmp_path / "in/iden_split.txt", "\n".join(names[:3]) + "\n")
    assert "list 0 test recordings, not 1" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_spoken_digits(tmp_path, load, capsys):
    script = load("spoken_digits", EACH=6)
    names = [f"{digit}_{speaker}_{n}.wav" for digit in range(10) for speaker in script.SPEAKERS for n in range(6)]
    touch(*(tmp_path / "in/recordings" / name for name in names))
    official = listed(run(script, tmp_path / "in", tmp_path / "out"))
    assert {name for name, (split, _) in official.items() if split == "train"} == {
        f"in/recordings/{name}" for name in names if name.endswith("_5.wav")
    }
    for speaker in ("theo", "lucas"):
        one = listed(run(script, tmp_path / "in", tmp_path / speaker, "--test-speaker", speaker))
        assert all((split == "test") == (speaker in name) for name, (split, _) in one.items())
        assert all(label == name.split("/")[-1][0] for name, (_, label) in one.items())
    assert metadata(tmp_path / "theo")["in/recordings/7_theo_3.wav"]["text"] == "seven"
    (tmp_path / "in/recordings/7_theo_3.wav").unlink()
    assert "1 of 360 recordings are missing" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_mandarin_syllables(tmp_path, load, capsys):
    script = load("mandarin_syllables", VOICES={"3": 40, "5": 40})
    bases = ["ㄅㄚ", "ㄓ", "ㄨㄛ", "ㄒㄩㄝ", "ㄇㄚ", "ㄌㄧ", "ㄏㄠ", "ㄙ", "ㄢ", "ㄕㄨ"]
    folders = [f"{base}{tone}" for base in bases for tone in range(1, 5)]
    touch(*(tmp_path / "in/usr/ogg" / folder / f"{voice}.ogg" for folder in folders for voice in "35"))
    out = run(script, tmp_path / "in", tmp_path / "out")
    sides: dict[str, set[str | None]] = {}
    for name, (split, label) in listed(out).items():
        folder = name.split("/")[1]
        sides.setdefault(folder[:-1], set()).add(split)
        initials = {"ㄅㄚ": "b", "ㄓ": "zh", "ㄨㄛ": "none", "ㄒㄩㄝ": "x", "ㄢ": "none", "ㄙ": "s"}
        assert label == initials.get(folder[:-1], label)
    assert all(len(side) == 1 for side in sides.values())
    assert {side for own in sides.values() for side in own} == {"train", "test"}
    known = metadata(out)["ogg/ㄓ3/5.ogg"]
    assert (known["voice"], known["syllable"], known["tone"]) == ("5", "ㄓ", "3")
    other = listed(run(script, tmp_path / "in", tmp_path / "voice", "--test-voice", "5"))
    assert all((split == "test") == name.endswith("5.ogg") for name, (split, _) in other.items())
    (tmp_path / "in/usr/ogg/ㄓ3/5.ogg").unlink()
    assert "holds 40 and 39 syllables" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_character_voices(tmp_path, load, capsys):
    script = load("character_voices", VOICES=2)
    voices = tmp_path / "in/usr/Sounds/voices"
    lines = [f"{line}.ogg" for line in ("Hello", "Ow1", "Ow2", "Bye", "Fire", "Nooo", "Drat", "Melon", "Ouch", "Hmm")]
    touch(*(voices / voice / line for voice in ("Pirate", "Robot") for line in lines), tmp_path / "in/music/a.ogg")
    for voice in ("Pirate", "Robot"):
        (voices / voice / "Bye.ogg").write_text("the same in both")
    out = run(script, tmp_path / "in", tmp_path / "out")
    assert "2 recordings that several voices have are left out" in capsys.readouterr().out
    assert len(listed(out)) == 18
    sides: dict[str, set[str | None]] = {}
    for name, (split, label) in listed(out).items():
        assert name.split("/")[1] == label
        sides.setdefault(name.split("/")[2].removesuffix(".ogg").rstrip("12"), set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert {side for own in sides.values() for side in own} == {"train", "test"}
    touch(voices / "Third/Hello.ogg")
    assert "holds 3 voices, not 2" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_drum_kits(tmp_path, load, capsys):
    script = load("drum_kits", KITS=2, TEST=("Two Kits",))
    for kit in ("One", "Two Kits"):
        hits = {
            "k.wav": "Bass Drum",
            "s1.wav": "Snare-Dry",
            "bell.wav": "Ride Bell",
            "h.wav": "HiHat_Closed",
            "x.wav": "23",
        }
        parts = (
            f"<instrument><name>{name}</name><layer><filename>{file}</filename></layer></instrument>"
            for file, name in hits.items()
        )
        xml = f"<drumkit_info xmlns='http://x'><name>n</name><instrumentList>{''.join(parts)}</instrumentList></drumkit_info>"
        write(tmp_path / "in" / kit / "drumkit.xml", xml)
        touch(*(tmp_path / "in" / kit / file for file in hits))
    (tmp_path / "in/Two Kits/h.wav").write_bytes((tmp_path / "in/One/h.wav").read_bytes())
    out = run(script, tmp_path / "in", tmp_path / "out")
    assert listed(out) == {
        "in/One/k.wav": ("train", "kick"),
        "in/One/s1.wav": ("train", "snare"),
        "in/One/h.wav": ("train", "hat"),
        "in/Two Kits/k.wav": ("test", "kick"),
        "in/Two Kits/s1.wav": ("test", "snare"),
    }
    assert "5 hits of other instruments, or there twice" in capsys.readouterr().out
    assert metadata(out)["in/Two Kits/k.wav"]["instrument"] == "Bass Drum"
    names = {
        "Kick Long": "kick",
        "Open HH": "hat",
        "Tom Hi": "tom",
        "Crash Left": "cymbal",
        "Stick": "snare",
        "Stomp": None,
    }
    assert {name: script.sort_of(name) for name in names} == names
    (tmp_path / "in/One/k.wav").unlink()
    assert "train/kick/One/k.wav" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")
    write(tmp_path / "in/One/drumkit.xml", "<a>")
    assert "drumkit.xml cannot be read" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


def test_fillets(tmp_path, load, capsys):
    script = load("fillets", LANGUAGES={"cs": 21, "nl": 20})
    for number in range(10):
        for language in ("cs", "nl"):
            touch(
                *(tmp_path / f"in/{language}/sound/l{number}/{language}/l{number}-{who}-hi.ogg" for who in ("m", "v"))
            )
        lines = (
            f'dialogId("l{number}-m-hi", "font_small", "Say \\"hi\\".")\ndialogStr("Řekni {number}.")\n\n'
            f'dialogId("l{number}-v-hi", "font_big", "No.")\n'
        )
        write(tmp_path / f"in/script/l{number}/dialogs_cs.lua", lines)
    deep = tmp_path / "in/cs/sound/share/border/cs/x-hs-again.ogg"
    touch(deep)
    deep.write_bytes((tmp_path / "in/cs/sound/l0/cs/l0-m-hi.ogg").read_bytes())
    out = run(script, tmp_path / "in", tmp_path / "out")
    assert "10 of them have transcripts" in capsys.readouterr().out
    known, sides = metadata(out), dict[str, set[str | None]]()
    assert len(known) == 40  # a recording that two levels share is there once
    for name, (split, label) in listed(out).items():
        level, language, file = name.split("/")
        sides.setdefault(level, set()).add(split)
        assert label == f"{language}-{file.split('-')[1]}"
        text = f"Řekni {level[1:]}." if label == "cs-m" else ""
        assert (known[name]["text"], known[name]["english"]) == (text, text and 'Say "hi".')
    assert all(len(side) == 1 for side in sides.values())
    assert {side for own in sides.values() for side in own} == {"train", "test"}
    deep.unlink()
    assert "holds 20 lines in cs, not 21" in refusal(script, capsys, tmp_path / "in", tmp_path / "x")


@pytest.mark.parametrize(
    "name",
    [
        *("librispeech", "libri_light", "audioset", "esc50", "speech_commands", "voxceleb", "spoken_digits"),
        *("mandarin_syllables", "character_voices", "drum_kits", "fillets"),
    ],
)
def test_mistakes_and_cards(tmp_path, load, capsys, name):
    script = load(name)
    for part in ("Content", "Source", "Licence", "Splits", "Disk"):
        assert f"\n    {part} " in (script.__doc__ or "")
    assert "is not a folder" in refusal(script, capsys, tmp_path / "gone", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "holds no recordings" in refusal(script, capsys, tmp_path / "empty", tmp_path / "out")

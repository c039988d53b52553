"""Claim: the units of a folder are the nearest codes of features that others compute one recording at a time; killed
anywhere, on any number of processes and in parts of any length the same units come out; what goes wrong is told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas

from mmssl import cli
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.data.audio import read_audio
from mmssl.data.sources import open_source
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.targets import joining, make, reading, work
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import MfccFeatures
from mmssl.targets.make import run_kmeans
from mmssl.targets.settings import KmeansSettings
from mmssl.targets.tokenizer import load_tokenizer
from mmssl.targets.units import Units
from mmssl.targets.work import Work
from tests.media import make_image, make_video, tone
from tests.runs import side_by_side

SAMPLES = Path(__file__).resolve().parents[2] / "datasets/samples/audio"
QUICK: dict[str, Any] = {"clusters": 12, "frames": 3000, "batch_size": 500, "n_init": 2, "max_iter": 3, "workers": 0}
OPTIONS = [part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def speech(count: int, skip: int = 0) -> list[Path]:
    files = sorted(SAMPLES.rglob("*.ogg"))
    return files[skip :: len(files) // (count + skip)][:count]


def small_chunks() -> None:
    """27 recordings in 6 chunks."""
    work.CHUNK_FILES = 5


@pytest.fixture(scope="module", autouse=True)
def chunks() -> Iterator[None]:
    kept = work.CHUNK_FILES
    small_chunks()
    yield
    work.CHUNK_FILES = kept


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real speech in four splits and forms: as it is, 44.1 kHz stereo, 8 kHz, and some that are very short."""
    folder = tmp_path_factory.mktemp("speech")
    for number, file in enumerate(speech(24)):
        sound, _ = soundfile.read(file, dtype="float32")
        place = folder / ("test" if number % 6 == 5 else "train") / f"voice{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            shutil.copy(file, place / f"{number:02d}.ogg")
        elif number % 3 == 1:
            soundfile.write(place / f"{number:02d}.flac", np.stack([sound, 0.5 * sound], 1), 44100)  # faster; no matter
        else:
            soundfile.write(place / f"{number:02d}.wav", sound, 8000)
    for number, samples in enumerate((399, 400, 1600)):
        soundfile.write(folder / "train/voice0" / f"short{number}.wav", sound[4000 : 4000 + samples], 16000)
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Units:
    return kmeans(data, tmp_path_factory.mktemp("made") / "units")


def kmeans(data: Path, out: Path, **more: Any) -> Units:
    return run_kmeans(KmeansSettings(data=str(data), out=out, **{**QUICK, **more}))


def content(units: Units) -> tuple[str, str, int]:
    return units.about["sha256"], units.about["codebook"], units.about["recordings"]


# ---------------------------------------------------------------------------------------------------------- the units


def test_units_are_the_nearest_codes_of_published_features(data: Path, made: Units) -> None:
    source = open_source(data, "audio")
    centroids = Codebook.load(made.folder / "codebook.safetensors").centroids.double()
    labels = agreeing = 0
    for row in source.rows():
        sound = read_audio(source.media(row), 16000)
        codes = made.of(source.id(row))
        assert len(codes) == max(0, (len(sound) - 400) // 160 + 1)
        if not len(codes):
            continue
        cepstra = kaldi.mfcc(sound[None], sample_frequency=16000, use_energy=False).T
        deltas = compute_deltas(cepstra)
        x = torch.cat([cepstra, deltas, compute_deltas(deltas)]).T.double()
        nearest = torch.cdist(x, centroids).argmin(1)
        labels += len(codes)
        agreeing += int((nearest.numpy() == codes).sum())
    assert labels == made.about["labels"] > 3000
    assert agreeing > 0.999 * labels  # two codes may be equally near within fp32
    assert made.about["empty"] == 1  # 399 samples
    assert made.codes == 12
    made.verify()


def test_figures_are_those_of_the_labels(data: Path, made: Units, tmp_path: Path) -> None:
    """Use, perplexity, purity and PNMI by scikit-learn; labels of frames are the codes themselves, so all are 1."""
    from sklearn.metrics import mutual_info_score

    source = open_source(data, "audio")
    codes = [made.of(source.id(row)) for row in source.rows()]
    classes = np.concatenate([[source.label(row)] * len(own) for row, own in zip(source.rows(), codes, strict=True)])
    flat = np.concatenate(codes)
    share = np.bincount(flat) / len(flat)
    share = share[share > 0]
    quality = made.about["quality"]
    assert quality["codes"]["use"] == len(share)
    assert quality["codes"]["dead"] == 12 - len(share)
    assert quality["codes"]["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    pnmi = mutual_info_score(classes, flat) / mutual_info_score(classes, classes)
    assert quality["classes"]["pnmi"] == pytest.approx(pnmi)
    best = sum(np.unique(classes[flat == code], return_counts=True)[1].max() for code in np.unique(flat))
    assert quality["classes"]["purity"] == pytest.approx(best / len(flat))
    assert quality["frames"] is None
    rows = ["id,start,end,label"]
    for row, own in zip(source.rows(), codes, strict=True):
        for place, code in enumerate(own.tolist()):  # each label over the 10 ms around the middle of its window
            rows.append(f"{source.id(row)},{0.0075 + place / 100},{0.0175 + place / 100},c{code}")
    (tmp_path / "frames.csv").write_text("\n".join(rows))
    again = kmeans(data, made.folder, labels=tmp_path / "frames.csv")
    assert content(again) == content(made)  # only the figures are new
    frames = again.about["quality"]["frames"]
    assert frames == {
        "purity": 1.0,
        "cluster_purity": 1.0,
        "pnmi": pytest.approx(1.0),
        "classes": len(share),
        "labelled": len(flat),
    }


def test_codes_are_fitted_on_the_training_split_and_serve_other_data(data: Path, made: Units, tmp_path: Path) -> None:
    alone = kmeans(data / "train", tmp_path / "train")
    assert alone.about["codebook"] == made.about["codebook"]
    held_out = kmeans(data / "test", tmp_path / "test", codebook=alone.folder)
    assert held_out.about["codebook"] == made.about["codebook"]
    assert held_out.about["recordings"] == 4
    for id in open_source(data / "test", "audio").index.column("id"):  # type: ignore[attr-defined]
        assert held_out.of(id).tolist() == made.of(f"test/{id}").tolist()
    other = kmeans(data / "test", tmp_path / "own")
    assert other.about["codebook"] != made.about["codebook"]


def test_parts_of_a_long_recording(data: Path, made: Units, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(data, "audio")
    lengths = [len(made.of(source.id(row))) for row in source.rows()]
    for seconds in (0.31, 1.0):
        monkeypatch.setattr(reading, "PART_SECONDS", seconds)
        assert max(lengths) > 300 * seconds  # several parts
        cut = kmeans(data, tmp_path / str(seconds), codebook=made.folder)
        for row in source.rows():
            assert cut.of(source.id(row)).tolist() == made.of(source.id(row)).tolist()


def test_layer_of_a_run_and_other_media(tmp_path: Path) -> None:
    """Units of the middle view are what the tokenizer gives; fitting looks at random views."""
    for number in range(6):
        make_image(tmp_path / "pictures" / f"{number}.png", 48, 64, number)
        make_video(tmp_path / "clips" / f"{number}.mp4", frames=8, height=32, width=48, seed=number)
    torch.manual_seed(0)
    encoder = build_encoder(ImageSpec(32, 8), EncoderSettings(width=32, depth=2, heads=2, prefix=1))
    encoder.save_pretrained(tmp_path / "encoder")
    sounds = AudioSpec(mels=16, frames=32)
    pictures = tmp_path / "pictures"
    for name, place, given in (
        ("layer", pictures, {"features": "layer", "encoder": str(tmp_path / "encoder"), "layer": 1}),
        ("pictures", pictures, {"features": "patches", "input": ImageSpec(32, 8)}),
        ("same", pictures, {"features": "patches", "encoder": str(tmp_path / "encoder")}),
        ("clips", tmp_path / "clips", {"features": "patches", "input": VideoSpec(32, 4, 1, patch=8)}),
        ("sounds", SAMPLES / "test/spanish", {"features": "patches", "input": sounds, "frames": 200}),
    ):
        units = kmeans(place, tmp_path / "out" / name, **{"clusters": 4, **given})
        tokenizer = load_tokenizer(units.folder)
        source = open_source(place, tokenizer.features.modality)
        row = int(source.rows()[3])
        assert tokenizer.features.views is not None
        [sample] = tokenizer.features.views.centre()(source.media(row), np.random.default_rng(0))
        length = torch.tensor([sample.lengths["view"]]) if sample.lengths else None
        codes = tokenizer(sample.views["view"][None], length)[0]
        assert codes.tolist() == units.of(source.id(row)).tolist()
        assert len(codes) == tokenizer.features.per_view
        assert units.about["quality"]["codes"]["use"] > 1
        with pytest.raises(UserError, match="not of whole recordings"):
            units.hop  # noqa: B018
    assert (
        Units.open(tmp_path / "out/same").about["codebook"] == Units.open(tmp_path / "out/pictures").about["codebook"]
    )


# ----------------------------------------------------------------------------------------- stopped, shared, resumed


class Killed(BaseException):
    """As a signal would: nothing of ours catches it."""


def killing(act: Callable[..., Any], at: int, after: bool) -> Callable[..., Any]:
    calls = 0

    def instead(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise Killed
        done = act(*given, **named)
        if calls == at:
            raise Killed
        return done

    return instead


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_stage(data: Path, made: Units, tmp_path: Path, after: bool) -> None:
    """Before and after each thing that is written; what was finished is not made again."""
    out = tmp_path / "out"
    puts: list[str] = []
    kept = Work.put

    def counted(self: Work, stage: str, chunk: work.Chunk, *given: Any) -> None:
        kept(self, stage, chunk, *given)
        puts.append(f"{stage} {chunk.number}")

    for holder, name, at in (
        (Work, "begin", 1),
        (Work, "put", 1),
        (Work, "put", 2),
        (make, "fit_stream", 1),
        (Codebook, "save", 1),
        (Work, "put", 3),
        (Work, "put", 2),
        (joining, "write_units", 1),
        (make, "measure", 1),
        (Work, "remove", 1),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Work, "put", counted)
            patch.setattr(holder, name, killing(getattr(holder, name), at, after))
            with pytest.raises(Killed):
                kmeans(data, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "put", counted)
        again = kmeans(data, out)
    assert content(again) == content(made)
    assert sorted(puts) == sorted(set(puts))  # each chunk once
    assert sum(put.startswith("labels") for put in puts) == 6
    assert sorted(os.listdir(out)) == [
        "codebook.safetensors",
        "index.parquet",
        "offsets.npy",
        "units.json",
        "units.npy",
    ]


def test_two_processes_share_the_work(data: Path, made: Units, tmp_path: Path) -> None:
    arguments = ["targets", "kmeans", "--data", str(data), "--out", str(tmp_path / "units"), *OPTIONS]
    assert side_by_side(2, 29671, arguments, small_chunks) == [0, 0]
    assert content(Units.open(tmp_path / "units")) == content(made)
    assert side_by_side(2, 29672, arguments, small_chunks) == [0, 0]  # all is there
    assert not (tmp_path / "units/.work").exists()
    arguments[3] = str(next((data / "test").iterdir()))  # one chunk: a process may have nothing to do
    assert side_by_side(2, 29673, [*arguments[:5], str(tmp_path / "few"), *OPTIONS], small_chunks) == [0, 0]


def test_workers_read_the_same(data: Path, made: Units, tmp_path: Path) -> None:
    assert content(kmeans(data, tmp_path / "units", workers=2)) == content(made)


# ---------------------------------------------------------------------------------------------------- what goes wrong


def spoil(file: Path) -> None:
    """Another content of equal size and time, which the index does not see."""
    known = file.stat()
    file.write_bytes(b"\0" * known.st_size)
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))


def test_unreadable_in_the_middle(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    ids = open_source(folder, "audio").index.column("id")  # type: ignore[attr-defined]
    spoil(folder / ids[10])
    with pytest.raises(UserError, match=rf"1 of 27 files could not be read \({ids[10]}: .*raise --max-bad-share"):
        kmeans(folder, tmp_path / "strict", max_bad_share=0.01)
    units = kmeans(folder, tmp_path / "units", max_bad_share=0.1)
    assert units.about["recordings"] == 26
    assert units.about["skipped"] == 1
    [line] = [json.loads(line) for line in (units.folder / "skipped.jsonl").read_text().splitlines()]
    assert line["id"] == ids[10]
    assert ids[10] in line["reason"]
    assert ids[10] not in units
    assert all(id in units for id in ids if id != ids[10])


def test_an_unreadable_file_that_would_be_drawn_first(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    source = open_source(folder, "audio")
    first = source.id(int(np.random.default_rng(0).permutation(source.rows("train"))[0]))
    spoil(folder / first)
    patches = {"features": "patches", "input": AudioSpec(mels=16, frames=32), "clusters": 4, "frames": 30}
    units = kmeans(folder, tmp_path / "units", max_bad_share=0.1, **patches)
    assert first not in units
    assert units.about["skipped"] == 1
    assert units.about["fit"]["features"] > 10


def test_a_decoder_that_hangs(data: Path, tmp_path: Path) -> None:
    """The file becomes a pipe into which nobody writes."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    source = open_source(folder, "audio")
    file = folder / source.id(4)
    features = MfccFeatures()
    groups = [chunk.parts for chunk in work.chunks_of(source, source.rows(), features.timing)]
    file.unlink()
    os.mkfifo(file)
    read = reading.features_of_parts(
        source, groups, features, device=torch.device("cpu"), workers=1, timeout=10.0
    )  # starting a worker counts, too
    with pytest.raises(UserError, match=rf"{source.id(4)} has been read for 10 s"):
        list(read)


def test_one_sentence_each(data: Path, made: Units, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds units of other settings or data"):
        kmeans(data, made.folder, clusters=13)
    with pytest.raises(UserError, match="leave out --features"):
        kmeans(data, tmp_path, codebook=made.folder, features="mfcc")
    with pytest.raises(UserError, match="needs --encoder and --layer"):
        kmeans(data, tmp_path, features="layer", layer=6)
    with pytest.raises(UserError, match="belongs to --features layer"):
        kmeans(data, tmp_path, layer=6)
    with pytest.raises(UserError, match="--clusters 0: give 1 or more"):
        kmeans(data, tmp_path, clusters=0)
    for clusters in (3500, 10000):
        with pytest.raises(UserError, match=f"{clusters} clusters got 2... features .* or ask for fewer"):
            kmeans(data, tmp_path / f"many{clusters}", clusters=clusters)
    with pytest.raises(UserError, match="was begun with another clusters"):
        kmeans(data, tmp_path / "many10000", clusters=20)
    (tmp_path / "labels.csv").write_text("id,label\na,b\n")
    with pytest.raises(UserError, match="columns id, start, end, label"):
        kmeans(data, made.folder, labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("id,start,end\n")
    with pytest.raises(UserError, match=r"labels\.csv holds no labels of frames.* id, start, end, label"):
        kmeans(data, made.folder, labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("id,start,end,label\nnobody,0,1,b\n")
    with pytest.raises(UserError, match="belong to none of the units"):
        kmeans(data, made.folder, labels=tmp_path / "labels.csv")
    soundfile.write(tmp_path / "short.wav", tone(440, 0.02, 16000), 16000)
    with pytest.raises(UserError, match=r"Nothing in|as long as one window"):
        kmeans(tmp_path, tmp_path / "none")
    with pytest.raises(UserError, match="as long as one window"):
        kmeans(tmp_path, tmp_path / "empty", codebook=made.folder)


def test_units_that_were_changed_are_not_found_made(data: Path, made: Units, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "units")
    labels = np.load(tmp_path / "units/units.npy")
    labels[100] += 1
    np.save(tmp_path / "units/units.npy", labels)
    with pytest.raises(UserError, match=r"units\.npy has other content than was written: remove the folder"):
        kmeans(data, tmp_path / "units")


def test_one_command_at_a_time(data: Path, tmp_path: Path) -> None:
    busy = Work(tmp_path)
    with pytest.raises(UserError, match="Another command makes units"):
        kmeans(data, tmp_path)
    busy.close()
    assert kmeans(data, tmp_path).codes == 12


def test_the_command_line(data: Path, made: Units, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["targets", "kmeans", "--data", str(data), "--out", str(tmp_path / "units"), *OPTIONS]
    cli.main(arguments)
    said = capsys.readouterr().out
    assert "12 of 12 codes in use" in said
    assert "beside 3 labels of files: purity" in said
    assert content(Units.open(tmp_path / "units")) == content(made)
    with pytest.raises(SystemExit) as ended:
        cli.main(["targets", "kmean"])
    assert ended.value.code == 2
    assert "give `mmssl targets kmeans`" in capsys.readouterr().err

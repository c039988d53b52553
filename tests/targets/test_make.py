"""Claim: the units of a folder are the nearest codes of features that others compute one recording at a time; on any
number of processes and in parts of any length the same units come out, from the command line, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas

from mmssl import cli
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.data.audio import read_audio
from mmssl.data.sources import open_source
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.targets import reading
from mmssl.targets.codebook import Codebook
from mmssl.targets.tokenizer import load_tokenizer
from mmssl.targets.units import Units
from tests.media import make_image, make_video
from tests.runs import side_by_side
from tests.targets.making import QUICK, SAMPLES, content, kmeans, small_chunks

pytestmark = pytest.mark.usefixtures("chunks")
OPTIONS = [part for name, value in QUICK.items() for part in (f"--{name.replace('_', '-')}", str(value))]


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

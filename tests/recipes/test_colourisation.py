"""The colourisation recipe, as the command line runs it on real pictures: colours are fitted once, kept in one place,
and stand beside the encoder; a run goes on only with the colours that it began with; two processes do what one does;
the encoder that it writes carries labels from frame to frame."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

import mmssl
from mmssl.cli import main
from mmssl.encoders.dense import DenseEncoder
from mmssl.targets.codebook import Codebook
from tests.evaluation.tracking.tracked import write_davis
from tests.runs import metrics, options, pretrain, side_by_side, trace

RECIPE = "video/colourisation"
STEPS = ("--steps", "3", "--save-every", "1", "--probe-every", "2", "--base-lr", "0.01")
RESNET = ("--encoder.arch", "resnet18", "--encoder.output-stride", "4", "--head.layers", "2", "--head.hidden", "8")


def write_film(path: Path, film: np.ndarray, rate: int) -> None:
    """An MP4 of frames uint8 [T,H,W,3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *film.shape[1:3], "yuv444p"
        for picture in film:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A camera that pans over colour photographs, those of scikit-learn."""
    folder, photographs = tmp_path_factory.mktemp("pans"), load_sample_images().images
    for number in range(8):
        rng, photograph = np.random.default_rng(number), photographs[number % 2][::2, ::2]
        y, x = (rng.integers(0, size - room) for size, room in zip(photograph.shape, (48 + 15, 64 + 30), strict=False))
        pan = np.stack([photograph[y + t : y + t + 48, x + 2 * t : x + 2 * t + 64] for t in range(16)])
        write_film(folder / f"class{number % 2}" / f"{number}.mp4", pan, rate=12)
    return folder


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    pretrain(RECIPE, data, out, *STEPS)
    return out


def test_recipe(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    pretrain(RECIPE, data, out, *STEPS)
    said = capsys.readouterr().err
    assert f"{out / 'encoder'}: only mmssl.Encoder will load it" in said
    assert "Fitting the colours on 24 samples." in said  # no more than the run itself has
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) and line["skipped_files"] == line["skipped_steps"] == 0 for line in lines)
    assert {"uniform_loss", "accuracy", "majority", "same_place", "absent"} <= lines[0].keys()
    assert "probe/effective_rank" in lines[1]
    assert (out / "report.html").stat().st_size > 10_000
    assert list((out / "pictures").glob("step-000003-colours*.png"))

    colours = Codebook.load(out / "codebook.safetensors")
    assert colours.centroids.shape == (4, 2)
    assert "cells of 8 x 8 pixels" in colours.features
    assert len({tuple(row) for row in colours.centroids.round().tolist()}) == 4
    assert Codebook.load(out / "encoder/colours.safetensors").sha256 == colours.sha256
    state = json.loads((out / "checkpoints/step-00000003/state.json").read_text())
    assert state["codebook"] == colours.sha256
    encoder = mmssl.Encoder.from_pretrained(out / "encoder")
    assert isinstance(encoder, DenseEncoder)
    clip = torch.randint(0, 256, (1, 2, 3, 40, 56), dtype=torch.uint8)
    assert encoder(clip).feature_map.shape == (1, 8, 2, 5, 7)

    # Going on from the last checkpoint but one gives the last step again, with the colours as they were.
    shutil.rmtree(out / "checkpoints/step-00000003")
    before = (out / "codebook.safetensors").stat().st_mtime_ns
    pretrain(RECIPE, data, out, *STEPS)
    assert [line["loss"] for line in metrics(out)] == [line["loss"] for line in lines]
    assert (out / "codebook.safetensors").stat().st_mtime_ns == before
    assert "Fitting the colours" not in capsys.readouterr().err


def test_a_run_goes_on_only_with_its_own_colours(
    data: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(done, tmp_path / "run")
    (out / "codebook.safetensors").unlink()
    with pytest.raises(SystemExit):
        pretrain(RECIPE, data, out, *STEPS)
    assert "codebook.safetensors is missing" in capsys.readouterr().err
    Codebook(torch.zeros(4, 2), "others").save(out / "codebook.safetensors")
    with pytest.raises(SystemExit):
        pretrain(RECIPE, data, out, *STEPS)
    assert "is not the codebook that the run" in capsys.readouterr().err
    shutil.copy(out / "encoder/colours.safetensors", out / "codebook.safetensors")  # as the first sentence says
    pretrain(RECIPE, data, out, *STEPS)


def test_killed_before_its_first_checkpoint(data: Path, done: Path, tmp_path: Path) -> None:
    """What a run leaves that died right after the fit is fitted again, to the same values."""
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(done / "recipe.json", out)
    Codebook(torch.ones(4, 2), "half a run's").save(out / "codebook.safetensors")
    pretrain(RECIPE, data, out, *STEPS)
    assert trace(out) == trace(done)
    assert Codebook.load(out / "codebook.safetensors").sha256 == Codebook.load(done / "codebook.safetensors").sha256


@pytest.mark.heavy
def test_two_processes_are_one(data: Path, tmp_path: Path) -> None:
    """Colours are fitted by one of them, read by both; batch norm runs over both."""
    more = (*STEPS, *RESNET, "--optimizer", "sgd", "--clip", "1", "--batch-size", "4", "--probe-every", "0")
    pretrain(RECIPE, data, tmp_path / "one", *more)
    assert side_by_side(2, 29541, options(RECIPE, data, tmp_path / "two", *more)) == [0, 0]
    one, two = (Codebook.load(tmp_path / name / "codebook.safetensors") for name in ("one", "two"))
    assert one.sha256 == two.sha256
    for name in ("loss", "accuracy", "uniform_loss", "same_place"):
        ours, theirs = ([line[name] for line in metrics(tmp_path / run)] for run in ("two", "one"))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_dry_run_fits_on_one_batch(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(RECIPE, data, tmp_path / "run", *STEPS, "--dry-run")
    assert "expected time" in capsys.readouterr().out
    assert list((tmp_path / "run/dry-run/pictures").glob("*colours*.png"))
    assert not (tmp_path / "run/codebook.safetensors").exists()


def test_more_colours_than_cells_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain(RECIPE, data, tmp_path / "run", *STEPS, "--clusters", "5000", "--colour-samples", "8")
    assert "k-means with 5000 clusters got 384 samples" in capsys.readouterr().err


def test_it_is_evaluated(done: Path, tmp_path: Path) -> None:
    davis = write_davis(tmp_path / "davis", videos=("left",), objects=1)
    main([
        "evaluate", "propagation", "--encoder", str(done / "encoder"), "--data", str(davis), "--size", "64",
        "--out", str(tmp_path / "found.json"), "--no-pictures",
    ])  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["encoder"]["class"] == "DenseEncoder"
    assert found["encoder"]["settings"]["head"]["out"] == 8

"""Both TCN recipes, as the command line runs them, on real footage that two cameras of other rates and beginnings
show: they train, resume where they stopped, export the trunk as transformers loads it and the embedding as
mmssl.Encoder does, and are evaluated; a camera that is missing ends in one sentence and takes nothing with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mmssl.cli import main
from mmssl.encoders.base import Encoder
from mmssl.encoders.headed import HeadedEncoder
from mmssl.evaluation.subject import untrained
from tests.cameras import make_cameras
from tests.runs import metrics, pretrain

RECIPES = ("video/tcn", "video/tcn_single")
RUN = ("--steps", "3", "--save-every", "1", "--probe-every", "2", "--batch-size", "4", "--base-lr", "0.01")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cameras(tmp_path_factory.mktemp("fish"), splits=True, real=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    pretrain(recipe, data, out, *RUN)
    said = capsys.readouterr().err
    assert f"{out / 'embedding'}: only mmssl.Encoder will load it" in said
    assert ("6 of 6 sequences have cameras that film different times" in said) == (recipe == "video/tcn")
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(torch.isfinite(torch.tensor(line["loss"])) and line["skipped_files"] == 0 for line in lines)
    assert {"accuracy", "active"} <= lines[0].keys()
    assert "probe/effective_rank" in lines[1]
    assert (out / "report.html").stat().st_size > 10_000
    assert list((out / "pictures").glob("step-000003-triplets*.png"))

    trunk, embedding = (Encoder.from_pretrained(out / name) for name in ("encoder", "embedding"))
    assert isinstance(embedding, HeadedEncoder)
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(embedding.trunk.state_dict()[name], tensor)
    _, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    twin = untrained(embedding, 0)
    assert twin(images).pooled.shape == embedding(images).pooled.shape == (2, 32)
    assert not torch.equal(twin(images).pooled, embedding(images).pooled)

    # Going on from the last checkpoint but one gives the last step again.
    shutil.rmtree(out / "checkpoints" / "step-00000003")
    pretrain(recipe, data, out, *RUN)
    assert [line["loss"] for line in metrics(out)] == [line["loss"] for line in lines]

    file = out / "alignment.json"
    main(["evaluate", "alignment", "--encoder", str(out / "embedding"), "--data", str(data), "--out", str(file)])
    result = json.loads(file.read_text())
    assert result["encoder"]["class"] == "HeadedEncoder"
    assert set(result["states"]["mean"]) == {"trained", "untrained (seed 0)", "pixels"}


def test_a_resnet_has_a_spatial_softmax(data: Path, tmp_path: Path) -> None:
    conv = ("--encoder.arch", "resnet18", "--input.size", "64", "--head.channels", "16", "--norm-group", "8")
    pretrain("video/tcn", data, tmp_path / "run", *RUN, *conv)
    facts = json.loads((tmp_path / "run/embedding/config.json").read_text())["mmssl"]
    assert facts["head"]["kind"] == "spatial_softmax"
    assert facts["trunk"]["encoder"] == "ConvEncoder"
    assert isinstance(Encoder.from_pretrained(tmp_path / "run/embedding"), HeadedEncoder)


def test_n_pairs_has_embeddings_of_any_length(data: Path, tmp_path: Path) -> None:
    pretrain("video/tcn", data, tmp_path / "run", *RUN, "--loss", "npairs", "--steps", "1")
    embedding = Encoder.from_pretrained(tmp_path / "run/embedding")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert not torch.allclose(embedding(images).pooled.norm(dim=1), torch.ones(2), atol=1e-3)


def test_a_window_in_which_nothing_repels_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        pretrain("video/tcn_single", data, tmp_path / "run", *RUN, "--far", "0.7")
    assert ended.value.code == 2
    assert "spans 0.7 s, and only frames more than 0.7 s apart repel" in capsys.readouterr().err


def test_a_missing_camera_ends_in_one_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    (root / "train/dot0_cam2.mp4").unlink()
    with pytest.raises(SystemExit) as ended:
        pretrain("video/tcn", root, tmp_path / "run", *RUN)
    assert ended.value.code == 2
    assert "names the file train/dot0_cam2.mp4, which is not in" in capsys.readouterr().err
    (root / "cameras.csv").unlink()
    with pytest.raises(SystemExit):
        pretrain("video/tcn", root, tmp_path / "run", *RUN)
    said = capsys.readouterr().err
    assert "1 of 6 sequences" in said
    assert "train/dot0: needs two cameras and has 1 (cam1)" in said
    pretrain("video/tcn", root, tmp_path / "run", *RUN, "--max-bad-share", "0.2", "--batch-size", "3")
    assert "dot0" in (tmp_path / "run/skipped.jsonl").read_text()
    assert len(metrics(tmp_path / "run")) == 3

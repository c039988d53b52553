"""Every recipe, as the command line runs it, on real files: it trains, resumes where it stopped, exports an encoder
that loads again and that transformers' AutoModel loads where the layout is one of its own, leaves pictures and report,
and is judged; video recipes on real footage, by retrieval of clips. The papers' values are compared with a table typed
from the papers and their official code.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mmssl import cli
from mmssl.encoders.base import Encoder
from mmssl.training.recipe import load_recipe, recipe_names
from tests.recipes.samples import sample_media
from tests.runs import ELSEWHERE, TINY, make_media, metrics, pretrain


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: make_media(tmp_path_factory.mktemp(kind), kind) for kind in ("image", "audio")}
    return made | {"video": sample_media(tmp_path_factory.mktemp("samples") / "video", "video")}


def test_the_table_of_this_test_is_complete() -> None:
    assert set(recipe_names()) == set(TINY)
    assert ELSEWHERE.keys() <= TINY.keys()
    assert all((Path(__file__).parent / file).is_file() for file in ELSEWHERE.values())


@pytest.mark.parametrize("recipe", [name for name in TINY if name not in ELSEWHERE])
def test_recipe(recipe: str, media: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = media[recipe.split("/")[0]], tmp_path / "run"
    pretrain(recipe, data, out, "--steps", "3", "--save-every", "1", "--probe-every", "2")
    said = f"{out / 'encoder'}: " in capsys.readouterr().err
    assert said == ("--encoder.stem" in TINY[recipe]), "a run says first when transformers cannot load its encoder"
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    assert all(line["skipped_steps"] == 0 and line["skipped_files"] == 0 for line in lines)
    assert "probe/effective_rank" in lines[1]
    assert lines[1]["probe/chance"] == 0.5  # two classes of equal size
    assert ">chance</text>" in (out / "report.html").read_text()
    saved = json.loads((out / "recipe.json").read_text())
    assert saved["recipe"] == recipe
    assert saved["settings"]["steps"] == 3
    assert (out / "report.html").stat().st_size > 10_000
    assert list((out / "pictures").glob("step-000003-*.png"))
    again = Encoder.from_pretrained(out / "encoder")
    assert again.spec.modality == recipe.split("/")[0]
    if "resnet" not in " ".join(TINY[recipe]):
        model, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        width = "hidden_dim" if model.config.model_type == "efficientnet" else "hidden_size"
        assert getattr(model.config, width) == again.width
    # Going on from the last checkpoint but one gives the last step again.
    last = out / "checkpoints" / "step-00000003"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    pretrain(recipe, data, out, "--steps", "3", "--save-every", "1", "--probe-every", "2")
    assert [line["loss"] for line in metrics(out)] == [line["loss"] for line in lines]
    judge(recipe, out, data)


def judge(recipe: str, out: Path, data: Path) -> None:
    kind = ["retrieval"] if recipe.startswith("video/") else ["knn", "--k", "3"]
    files = ["--encoder", str(out / "encoder"), "--data", str(data), "--out", str(out / "judged.json")]
    cli.main(["evaluate", *kind, *files, "--workers", "0", "--no-cache"])
    judged = json.loads((out / "judged.json").read_text())
    measures = ["recall_at_1", "recall_at_5", "recall_at_10"] if kind == ["retrieval"] else ["top1"]
    for name in measures:
        assert 0 <= judged["trained"][name] <= 1
        assert 0 <= judged["untrained"][name] <= 1
    assert judged["trained"]["n"] == 4, "two of the six files of a class"


def test_init_continues_from_a_checkpoint(media: dict[str, Path], tmp_path: Path) -> None:
    pretrain("image/mae", media["image"], tmp_path / "first", "--steps", "1")
    start = Encoder.from_pretrained(tmp_path / "first/encoder")
    pretrain(
        "image/mae", media["image"], tmp_path / "second", "--steps", "1", "--init", str(tmp_path / "first/encoder"),
        "--encoder.width", "64", "--base-lr", "0",
    )  # fmt: skip
    second = Encoder.from_pretrained(tmp_path / "second/encoder")
    assert second.width == 32  # the checkpoint's architecture wins
    # At a rate of 0 nothing has moved.
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=0, atol=0)


PAPERS = {
    # (optimizer, base_lr, lr_per, batch_size, weight_decay, betas[0], epochs)
    "image/mae": ("adamw", 1.5e-4, 256, 4096, 0.05, 0.9, 800),  # He et al., table 8
    "image/simclr": ("lars", 0.3, 256, 4096, 1e-6, 0.9, 100),  # Chen et al., section 2.2
    "image/moco_v2": ("sgd", 0.03, 256, 256, 1e-4, 0.9, 200),  # facebookresearch/moco, main_moco.py
    "video/videomae": ("adamw", 1.5e-4, 256, 2048, 0.05, 0.9, 800),  # MCG-NJU/VideoMAE, scripts/kinetics
    "video/videomae_ucf101": ("adamw", 3e-4, 256, 192, 0.05, 0.9, 3200),  # MCG-NJU/VideoMAE, scripts/ucf101
    "video/videomae_v2": ("adamw", 1e-3, 1024, 4096, 0.05, 0.9, 200),  # OpenGVLab/VideoMAEv2; 4 clips a file
    "video/mae_st": ("adamw", 1.6e-3, 1024, 512, 0.05, 0.9, 100),  # facebookresearch/mae_st, PRETRAIN.md; 4 clips
    "image/simmim": ("adamw", 1e-4, 512, 2048, 0.05, 0.9, 800),  # microsoft/SimMIM, configs/vit_base__800ep
    "video/vjepa": ("adamw", 5.25e-4, 3072, 3072, 0.04, 0.9, 33),  # facebookresearch/vjepa2, configs/train
    "audio/cola": ("adamw", 1e-3, 64, 64, 0.0, 0.9, 100),  # google-research, cola/main.py; 1000 steps an epoch
    "audio/mae": ("adamw", 2e-4, 256, 512, 1e-4, 0.9, 33),  # facebookresearch/AudioMAE
}


@pytest.mark.parametrize("recipe", PAPERS)
def test_defaults_are_the_papers(recipe: str) -> None:
    settings = load_recipe(recipe).Settings(data="x", out=Path("y"))
    found = (
        settings.optimizer, settings.base_lr, settings.lr_per, settings.batch_size, settings.weight_decay,
        settings.betas[0], settings.epochs,
    )  # fmt: skip
    assert found == PAPERS[recipe]


def test_defaults_build(media: dict[str, Path]) -> None:
    """The papers' models have the papers' sizes: ViT-B's 86 million parameters, ViT-L's 304, ResNet-50's 23.5 without
    its classifier."""
    sizes = {
        "image/mae": 85.8,
        "image/moco_v2": 23.5,
        "video/videomae": 86.2,
        "video/mae_st": 303.9,
        "video/vjepa": 303.9,
    }
    for recipe, millions in sizes.items():
        module = load_recipe(recipe)
        with torch.device("meta"):
            encoder = module.build(module.Settings(data="x", out=Path("y"))).objective.encoder
        assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.3)

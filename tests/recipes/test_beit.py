"""BEiT on images and clips and its like on spectrograms, as the command line runs them on the
recordings and pictures of datasets/samples: a tokenizer is made, a run trains on its codes, goes on where it stopped,
leaves an encoder that transformers loads with equal features and that can be judged, and pictures and report; use of
the codes is logged; and a tokenizer that does not belong to the run is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from mmssl import cli
from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import build_adapter
from mmssl.encoders.vit import ViTSettings
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.targets.codebook import Codebook
from mmssl.targets.dvae import CODES, CodeViT
from mmssl.targets.make import run_kmeans
from mmssl.targets.settings import KmeansSettings
from mmssl.targets.views import open_tokenizer
from mmssl.training.recipe import load_recipe
from tests.recipes.samples import RUN, check_going_on, sample_media
from tests.runs import metrics, pretrain

SPECS: dict[str, ImageSpec | VideoSpec | AudioSpec] = {
    "image/beit": ImageSpec(size=16, patch=4),  # half the encoder's size, as BEiT has it
    "video/beit": VideoSpec(size=16, patch=4, frames=4, stride=2),
    "audio/beats": AudioSpec(mels=32, frames=32, patch=8, stride=8),
}
CLASSES = {"image/beit": "ViTModel", "video/beit": "VideoMAEModel", "audio/beats": "ASTModel"}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("samples")
    return {modality: sample_media(folder / modality, modality) for modality in ("image", "video", "audio")}


@pytest.fixture(scope="module")
def tokenizers(media: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Eight clusters of patches for each recipe."""
    made = {}
    for recipe, spec in SPECS.items():
        made[recipe] = tmp_path_factory.mktemp("units") / recipe.replace("/", "-")
        run_kmeans(
            KmeansSettings(
                data=str(media[spec.modality]),
                out=made[recipe],
                features="patches",
                input=spec,
                clusters=8,
                frames=400,
                n_init=2,
                max_iter=5,
                workers=0,
                device="cpu",
            )
        )
    return made


def pixel_values(spec: Spec) -> tuple[Tensor, Tensor]:
    """A view, and what transformers is to be shown of it."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(spec, AudioSpec):
        view = torch.randn(2, spec.samples, generator=generator) * 0.1
        return view, view
    assert isinstance(spec, ImageSpec | VideoSpec)
    shape = (2, spec.frames, 3, spec.size, spec.size) if isinstance(spec, VideoSpec) else (2, 3, spec.size, spec.size)
    view = torch.rand(shape, generator=generator)
    return view, (view - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)


@pytest.mark.parametrize("recipe", SPECS)
def test_recipe(
    recipe: str, media: dict[str, Path], tokenizers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    data, out, tokenizer = media[SPECS[recipe].modality], tmp_path / "run", str(tokenizers[recipe])
    pretrain(recipe, data, out, *RUN, "--units", tokenizer)
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["skipped_files"] == line["skipped_steps"] == 0
        assert line["loss"] == pytest.approx(line["masked_loss"])
        assert line["masked"] == pytest.approx(0.75 if recipe == "audio/beats" else 0.4, abs=0.04)
        assert 2 < line["code_perplexity"] <= 8, "clusters of real media are used"
        assert line["majority"] < 0.8
    check_going_on(recipe, data, out, "--units", tokenizer)
    assert list((out / "pictures").glob("*prediction*"))
    assert (out / "report.html").stat().st_size > 10_000
    folder = out / "encoder"
    known = Codebook.load(tokenizers[recipe] / "codebook.safetensors").sha256
    assert Codebook.load(folder / "units.safetensors").sha256 == known, "the codebook travels with the encoder"
    cli.main(["evaluate", "knn", *f"--encoder {folder} --data {data} --out {out}/knn.json --k 3 --workers 0".split()])
    assert 0 <= json.loads((out / "knn.json").read_text())["trained"]["top1"] <= 1
    ours, theirs = Encoder.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    assert type(theirs).__name__ == CLASSES[recipe]
    view, pixels = pixel_values(ours.spec)
    if isinstance(ours.spec, AudioSpec):
        pixels = ours.adapter.pixels(view)[:, 0, 0].transpose(1, 2)  # type: ignore[operator, union-attr]
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state
        tokens = ours(view).tokens
    assert tokens is not None
    torch.testing.assert_close(tokens, expected[:, -tokens.shape[1] :], rtol=1e-4, atol=1e-4)


def discrete_vae(folder: Path) -> Path:
    """As a run of image/dvae leaves it."""
    torch.manual_seed(0)
    settings = ViTSettings(width=16, depth=1, heads=2, prefix=0, final_norm=False)
    CodeViT(build_adapter(ImageSpec(size=16, patch=4), 16), settings, 12).save_pretrained(folder)
    return folder


def test_codes_of_a_discrete_vae(media: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run on them; none of the tokenizer is trained; and a run goes on with no other codes than it began with."""
    own, out = discrete_vae(tmp_path / "tokenizer"), tmp_path / "run"
    given = (*RUN[2:], "--steps", "2", "--units", str(own))
    pretrain("image/beit", media["image"], out, *given)
    assert [line["step"] for line in metrics(out)] == [1, 2]
    module = load_recipe("image/beit")
    small = {"input": ImageSpec(size=32, patch=8), "out": tmp_path, "units": own}
    objective = module.build(module.Settings(data="x", **small)).objective
    assert isinstance(objective, MaskedPrediction)
    assert len(objective.known) == 12
    frozen = {name.split(".")[0] for name, p in objective.named_parameters() if not p.requires_grad}
    assert frozen == {"tokenizer"}
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    book = Codebook.load(own / CODES)
    Codebook(book.centroids + 1, book.features).save(own / CODES)
    with pytest.raises(SystemExit):
        pretrain("image/beit", media["image"], out, *given)
    assert "another codebook" in capsys.readouterr().err


def test_two_iterations_by_one_command(media: dict[str, Path], tmp_path: Path) -> None:
    """Patches are clustered, then the second layer of the encoder that was trained on the clusters."""
    out = tmp_path / "run"
    more = ("--clusters", "8", "6", "--layer", "2", "--fit-frames", "500")
    pretrain("audio/beats", media["audio"], out, *RUN, *more)
    first, second = (json.loads((out / f"iteration-{n}/units/units.json").read_text()) for n in (1, 2))
    assert (first["features"]["kind"], first["codes"]) == ("patches", 8)
    assert (second["features"]["layer"], second["codes"]) == (2, 6)
    assert all(len(metrics(out / f"iteration-{n}")) == 3 for n in (1, 2))
    assert (out / "iteration-2/encoder/config.json").is_file()


def test_patches_of_half_the_size_by_one_command(media: dict[str, Path], tmp_path: Path) -> None:
    """One iteration lies in OUT itself; 8 x 8 pixels of the view at half its size, as BEiT shows its tokenizer."""
    pretrain("image/beit", media["image"], tmp_path / "run", *RUN)
    about = json.loads((tmp_path / "run/units/units.json").read_text())
    assert (about["features"]["input"]["size"], about["features"]["input"]["patch"]) == (16, 4)
    assert (tmp_path / "run/encoder/config.json").is_file()


@pytest.mark.parametrize("recipe", SPECS)
def test_refusals(
    recipe: str, media: dict[str, Path], tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = media[SPECS[recipe].modality]

    def said(*more: str) -> str:
        with pytest.raises(SystemExit):
            pretrain(recipe, data, tmp_path / "run", *RUN, *more)
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert not (tmp_path / "run" / "recipe.json").exists()
        return error

    other = next(folder for name, folder in tokenizers.items() if name != recipe)
    assert "the encoder for" in said("--units", str(other))
    finer = ("--input.patch", "4", "--input.stride", "4") if recipe == "audio/beats" else ("--input.patch", "4")
    finer = finer if recipe != "video/beit" else (*finer, "--input.stride", "2")
    assert "gives a grid of" in said("--units", str(tokenizers[recipe]), *finer)


def test_codes_are_of_the_untransformed_crop(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    """The objective's codes are the tokenizer's of the very view that the encoder is shown."""
    module = load_recipe("image/beit")
    settings = module.Settings(
        data="x", out=tmp_path, units=tokenizers["image/beit"], input=ImageSpec(size=32, patch=8)
    )
    parts = module.build(settings)
    assert parts.device_views[0].p_jitter == 1.0
    assert parts.device_views[0].names == parts.objective.views
    tokenizer = open_tokenizer(settings.units, parts.objective.encoder)
    assert tokenizer.codebook.sha256 == parts.objective.known.sha256

"""Claims, through the command line on real files: fine-tuning beats chance on clothes, and the model that it writes
gives transformers the figures of the JSON file; every modality and a ResNet train, are tested over clips and crops, and
resume bit for bit; two processes take the steps of one; mistakes end in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from mmssl import cli
from mmssl.adaptation.adapt import adapted, make_head
from mmssl.adaptation.classifier import Classifier
from mmssl.adaptation.settings import FinetuneSettings, command_of, resolved
from mmssl.adaptation.testing import SpacedCrops, predict, square_crops, views_for_testing
from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, VideoSpec
from mmssl.data.sources import open_source
from mmssl.data.video import open_video
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.evaluation.views import evaluation_views
from mmssl.report.reading import read_evaluations
from tests.runs import make_media, metrics, side_by_side, trace

SAMPLES = Path(__file__).resolve().parents[2] / "datasets/samples"
TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2}
KINDS: dict[str, tuple[Spec, dict[str, Any], str]] = {
    "image": (ImageSpec(size=32, patch=8), {}, "BeitForImageClassification"),
    "video": (
        VideoSpec(size=32, patch=8, frames=4, stride=2),
        {"prefix": 0, "positions": "sincos1d", "qkv_bias": "qv"},
        "VideoMAEForVideoClassification",
    ),
    "audio": (
        AudioSpec(mels=32, frames=32, patch=8, stride=8),
        {"prefix": 2, "pooling": "prefix"},
        "ASTForAudioClassification",
    ),
    "resnet": (ImageSpec(size=32), {"arch": "resnet18"}, "ResNetForImageClassification"),
}


def save_encoder(kind: str, folder: Path) -> Path:
    spec, changes, _ = KINDS[kind]
    torch.manual_seed(5)  # not the untrained encoder's
    build_encoder(spec, EncoderSettings(**(TINY | changes))).save_pretrained(folder)
    return folder


def options(encoder: Path, data: Path, out: Path, *more: str) -> list[str]:
    given = ["evaluate", "finetune", "--encoder", str(encoder), "--data", str(data), "--out", str(out)]
    return [*given, "--batch-size", "4", "--steps", "4", "--workers", "0", "--log-every", "1", *more]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: make_media(tmp_path_factory.mktemp(kind), kind) for kind in ("image", "video", "audio")}
    return made | {"resnet": made["image"]}


def test_fine_tuning_beats_chance_and_transformers_gets_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    spec = ImageSpec(size=28, patch=7, mean=(0.29,) * 3, std=(0.35,) * 3)
    build_encoder(spec, EncoderSettings(width=48, depth=2, heads=3)).save_pretrained(tmp_path / "encoder")
    out = tmp_path / "run/finetune.json"
    more = ["--steps", "80", "--batch-size", "64", "--base-lr", "0.01", "--warmup", "0.2", "--layer-decay", "0.9"]
    more += ["--scale", "0.6", "1", "--randaugment", "1", "3", "--mixup", "0.2", "--cutmix", "0", "--no-untrained"]
    cli.main(options(tmp_path / "encoder", SAMPLES / "image", out, *more, "--log-every", "50"))
    result = json.loads(out.read_text())
    assert result["chance"]["uniform"] == pytest.approx(0.1)
    assert result["trained"]["top1_interval"][0] > 0.3
    assert result["untrained"] is None
    assert "finetune on 1200 test examples" in capsys.readouterr().out
    model, info = AutoModelForImageClassification.from_pretrained(
        out.with_suffix("") / "trained/model", output_loading_info=True
    )
    assert not info["missing_keys"]
    source = open_source(SAMPLES / "image", "image")
    rows = source.rows("test")[::6]
    views = evaluation_views(spec)
    shown = [views(source.media(int(row)), np.random.default_rng(0))[0].views["view"] for row in rows]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        theirs = model.eval()((torch.stack(shown) / 255 - mean) / std).logits
        ours = Classifier.from_pretrained(out.with_suffix("") / "trained/model")(torch.stack(shown))
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    names = [model.config.id2label[int(number)] for number in theirs.argmax(1)]
    right = np.mean([name == source.label(int(row)) for name, row in zip(names, rows, strict=True)])
    assert right == pytest.approx(result["trained"]["top1"], abs=0.1)  # every sixth picture of them


@pytest.mark.parametrize("kind", KINDS)
def test_every_modality_trains_tests_and_resumes(
    kind: str, media: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, out = save_encoder(kind, tmp_path / "encoder"), tmp_path / "run/finetune.json"
    more = ["--drop-path", "0.3", "--cutmix", "1", "--erase", "0.5", "--cutout", "6", "--save-every", "2"]
    if kind == "video":
        more += ["--repeats", "2", "--test-clips", "2"]
    cli.main(options(encoder, media[kind], out, *more))
    result = json.loads(out.read_text())
    for name in ("trained", "untrained"):
        run = out.with_suffix("") / name
        assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
        assert metrics(run)[0]["loss"] == pytest.approx(np.log(2), abs=0.01)
        assert all(line["skipped_steps"] == 0 for line in metrics(run))
        assert (run / "report.html").exists()
        config = json.loads((run / "model/config.json").read_text())
        assert config["architectures"] == [KINDS[kind][2]]
        assert result[name]["n"] == 4  # two of the six files of a class
        assert [row["name"] for row in result[name]["per_class"]] == ["class0", "class1"]
    assert trace(out.with_suffix("") / "trained") != trace(out.with_suffix("") / "untrained")
    assert result["difference"]["top1_interval"]
    assert result["settings"]["layer_decay"] == {"image": 0.65, "resnet": 1.0}.get(kind, 0.75)
    (read,) = read_evaluations(tmp_path / "run")
    assert read.results[0].evaluation == "finetune"
    assert read.results[0].chance == 0.5
    # Going on from the last checkpoint but one gives the same end.
    before = trace(out.with_suffix("") / "trained")
    weights = (out.with_suffix("") / "trained/model/model.safetensors").read_bytes()
    for gone in ("checkpoints/step-00000004", "model"):
        shutil.rmtree(out.with_suffix("") / "trained" / gone)
    cli.main(options(encoder, media[kind], out, *more, "--no-untrained"))
    assert trace(out.with_suffix("") / "trained") == before
    assert (out.with_suffix("") / "trained/model/model.safetensors").read_bytes() == weights
    again = json.loads(out.read_text())
    assert again["trained"]["per_class"] == result["trained"]["per_class"]
    assert again["untrained"] is None


@pytest.mark.heavy
def test_two_processes_take_the_steps_of_one(media: dict[str, Path], tmp_path: Path) -> None:
    encoder = save_encoder("image", tmp_path / "encoder")
    more = ["--mixup", "0", "--cutmix", "0", "--drop-path", "0", "--randaugment", "2", "9"]
    assert side_by_side(2, 29731, options(encoder, media["image"], tmp_path / "two.json", *more)) == [0, 0]
    cli.main(options(encoder, media["image"], tmp_path / "one.json", *more))
    for name in ("trained", "untrained"):
        one, two = (metrics(tmp_path / count / name) for count in ("one", "two"))
        assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    one, two = (json.loads((tmp_path / f"{count}.json").read_text()) for count in ("one", "two"))
    assert two["trained"]["per_class"] == one["trained"]["per_class"]
    assert two["trained"]["n"] == 4


def test_crops_lie_from_one_end_of_the_longer_side_to_the_other(media: dict[str, Path]) -> None:
    picture = torch.arange(60, dtype=torch.uint8).expand(3, 20, 60)
    left, middle, right = square_crops(picture, 20, 3, "bilinear")
    assert [int(crop[0, 0, 0]) for crop in (left, middle, right)] == [0, 20, 40]
    assert torch.equal(square_crops(picture.transpose(1, 2), 20, 3, "bilinear")[2], right.transpose(1, 2))
    spec = KINDS["video"][0]
    views = views_for_testing(spec, 5, 3, "video")
    source = open_source(media["video"], "video")
    samples = views(source.media(0), np.random.default_rng(0))
    assert len(samples) == views.per_file == 15
    assert {tuple(sample.views["view"].shape) for sample in samples} == {(4, 3, 32, 32)}
    one = SpacedCrops(32, 1, "bilinear", 5, 4, 2)(source.media(0), np.random.default_rng(0))
    plain = evaluation_views(spec, 5)(source.media(0), np.random.default_rng(0))
    for a, b in zip(one, plain, strict=True):
        assert torch.equal(a.views["view"], b.views["view"])
    for a, b in zip(samples[1::3], plain, strict=True):
        assert torch.equal(a.views["view"], b.views["view"]), "the middle one of three"


def test_a_video_is_judged_by_the_mean_over_its_clips_and_crops(media: dict[str, Path]) -> None:
    """Fifteen views of each of five videos, in batches that do not end with a video."""
    spec, changes, _ = KINDS["video"]
    torch.manual_seed(0)
    encoder = adapted(build_encoder(spec, EncoderSettings(**(TINY | changes))))
    model = Classifier(encoder, make_head(encoder, 3), ("a", "b", "c")).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    source, views = open_source(media["video"], "video"), views_for_testing(spec, 5, 3, "video")
    rows = source.rows(None)[[4, 1, 9, 0, 6]]
    tested = predict(model, source, rows, views, batch_size=4, workers=0)
    assert tested.rows.tolist() == rows.tolist()
    for row, logits in zip(rows, tested.logits, strict=True):
        samples = views(source.media(int(row)), np.random.default_rng(0))
        with torch.no_grad():
            each = np.stack([model(sample.views["view"][None])[0].double().numpy() for sample in samples])
        assert np.ptp(each, 0).max() > 1e-3, "views differ"
        np.testing.assert_allclose(logits, each.mean(0), rtol=1e-4, atol=1e-4)


def test_an_image_encoder_is_tuned_on_frames_of_videos(media: dict[str, Path], tmp_path: Path) -> None:
    """As Shuffle and Learn is judged: trained on any frames, tested on evenly spaced ones, averaged."""
    encoder, out = save_encoder("image", tmp_path / "encoder"), tmp_path / "run/finetune.json"
    cli.main(options(encoder, media["video"], out, "--no-untrained", "--repeats", "2", "--test-clips", "3"))
    result = json.loads(out.read_text())
    assert result["trained"]["n"] == 4
    assert (result["settings"]["test_clips"], result["settings"]["test_crops"]) == (3, 3)
    assert all(line["skipped_files"] == 0 for line in metrics(out.with_suffix("") / "trained"))
    model = Classifier.from_pretrained(out.with_suffix("") / "trained/model")
    source, views = open_source(media["video"], "video"), views_for_testing(KINDS["image"][0], 3, 1, "video")
    samples = views(source.media(0), np.random.default_rng(0))
    shown = [open_video(source.media(0)).read([place])[0] for place in (1, 5, 9)]  # of 12 frames
    for sample, frame in zip(samples, shown, strict=True):
        assert (sample.views["view"].int() - square_crops(frame, 32, 1, "bicubic")[0].int()).abs().max() <= 1
    tested = predict(model, source, source.rows(None)[:1], views, batch_size=2, workers=0)
    with torch.no_grad():
        logits = model(torch.stack([sample.views["view"] for sample in samples])).double().mean(0)
    np.testing.assert_allclose(tested.logits[0], logits.numpy(), rtol=1e-4, atol=1e-4)
    plain = FinetuneSettings(encoder="e", data="d", out=Path("o.json"))
    assert resolved(plain, Encoder.from_pretrained(encoder), "video").test_clips == 25


def test_mistakes_end_in_one_sentence(media: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    encoder = save_encoder("image", tmp_path / "encoder")
    plain = make_media(tmp_path / "plain", "image", files=6)
    for file in list(plain.glob("*/*.png")):
        file.rename(plain / file.name)
    for folder in [path for path in plain.iterdir() if path.is_dir()]:
        folder.rmdir()
    for data, more, words in (
        (plain, (), "None of the 6 files carries a label"),
        (media["image"], ("--drop-path", "1"), "--drop-path is 1"),
        (media["image"], ("--test-clips", "3", "--test-crops", "2"), "--test-clips 3: give 1 for images"),
        (media["image"], ("--batch-size", "64"), "--batch-size to at most 8"),
        (media["image"], ("--randaugment", "2", "11"), "strength from 0 to 10"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(options(encoder, data, tmp_path / "x.json", *more))
        assert ended.value.code == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(options(encoder, media["image"], tmp_path))
    assert "is no JSON file" in capsys.readouterr().err


def test_the_command_of_settings_is_what_was_given(tmp_path: Path) -> None:
    settings = FinetuneSettings(
        encoder="e", data="d d", out=Path("o.json"), untrained=False, randaugment=(1, 5), steps=3, workers=1
    )
    assert command_of(settings) == (
        "mmssl evaluate finetune --data 'd d' --out o.json --steps 3 --workers 1 --encoder e --no-untrained "
        "--randaugment 1 5"
    )


def test_images_have_no_clips_and_recordings_no_crops() -> None:
    with pytest.raises(UserError, match="--test-clips 2: give 1 for images"):
        views_for_testing(KINDS["image"][0], 2, 3, "image")
    with pytest.raises(UserError, match="recordings have no crops"):
        views_for_testing(KINDS["audio"][0], 2, 3, "audio")

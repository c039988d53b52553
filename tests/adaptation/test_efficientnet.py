"""Claims: a fine-tuned EfficientNet is transformers' EfficientNetForImageClassification with equal logits, for sound,
too; learning rates decay from its last convolution to its stem; the command fine-tunes COLA's encoder on recordings,
and what it cannot do is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from mmssl.adaptation.adapt import adapted, make_head
from mmssl.adaptation.classification import Classification, layer_numbers
from mmssl.adaptation.classifier import Classifier
from mmssl.adaptation.settings import FinetuneSettings
from mmssl.adapters.specs import AudioSpec, ImageSpec
from mmssl.encoders.build import build_front
from mmssl.encoders.efficientnet import EfficientNet, EfficientNetSettings
from mmssl.errors import UserError
from tests.evaluation.standins import write_tones

COLA = AudioSpec(front="cola", mels=64, frames=48, mean=0.0, std=127.5)
CLASSES = ("ant", "bee", "cat")


def encoder_of(spec: Any = COLA, pooling: Any = "max") -> EfficientNet:
    torch.manual_seed(0)
    return EfficientNet(build_front(spec), EfficientNetSettings(0.25, 0.5, pooling=pooling)).eval()


@torch.no_grad()
def settle(model: nn.Module, view: Tensor) -> None:
    """Give the batch norms the statistics of `view`, which at Keras' momentum of 0.01 would take hundreds of passes."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    own = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    model.train()
    for _ in range(5):
        model(view)
    for norm, momentum in zip(norms, own, strict=True):
        norm.momentum = momentum


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("spec", [COLA, ImageSpec(size=32)], ids=["sound", "image"])
@torch.no_grad()
def test_logits_are_those_of_transformers(spec: Any, pooling: str, tmp_path: Path) -> None:
    start = adapted(encoder_of(spec, pooling), drop=0.3)
    assert isinstance(start, EfficientNet)
    assert (start.settings.drop_connect, start.pooling, start.training) == (0.3, pooling, True)
    model = Classifier(start, make_head(start, len(CLASSES)), CLASSES)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    view = torch.randn(5, 8000) if spec is COLA else torch.rand(5, 3, 32, 32)
    settle(model, view)
    ours = model.eval()(view)
    assert ours.std(0).min() > 1e-3, "logits that depend on the input"
    form = model.save_pretrained(tmp_path)
    assert form.architecture == "EfficientNetForImageClassification"
    theirs, told = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(theirs.config.id2label.values()) == list(CLASSES)
    torch.testing.assert_close(theirs.eval()(start.front(view)[:, :, 0]).logits, ours, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(Classifier.from_pretrained(tmp_path)(view), ours, rtol=1e-5, atol=1e-5)
    card = (tmp_path / "README.md").read_text()
    assert "AutoModelForImageClassification" in card
    assert ("divide the waveform by its L2 norm" in card) == (spec is COLA)


def test_layers_are_counted_from_the_stem_to_the_head() -> None:
    encoder = encoder_of()
    layers, last = layer_numbers(encoder), len(encoder.net.encoder.blocks) + 1
    assert layers["net.embeddings.convolution.weight"] == layers["net.embeddings.batchnorm.bias"] == 0
    assert layers["net.encoder.blocks.2.projection.project_conv.weight"] == 3
    assert layers["net.encoder.top_conv.weight"] == layers["net.encoder.top_bn.weight"] == last
    head = make_head(encoder, len(CLASSES))
    groups = Classification(encoder, head, CLASSES, layer_decay=0.5).param_groups()
    scale = {name: group["lr_scale"] for group in groups for name, _ in group["params"]}
    assert scale["head.linear.weight"] == scale["encoder.net.encoder.top_conv.weight"] == 1
    assert scale["encoder.net.embeddings.convolution.weight"] == pytest.approx(0.5**last)
    with pytest.raises(UserError, match="--pooling cls is about tokens, and an EfficientNet has a feature map"):
        adapted(encoder, pooling="cls")
    assert adapted(encoder, pooling="mean").pooling == "mean"


def test_the_command_fine_tunes_on_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    write_tones(tmp_path / "tones")
    sounds = [soundfile.read(path, dtype="float32")[0][:8000] for path in sorted((tmp_path / "tones").rglob("*.wav"))]
    encoder = encoder_of()
    settle(encoder, torch.from_numpy(np.stack(sounds)))
    encoder.eval().save_pretrained(tmp_path / "encoder")
    settings = FinetuneSettings(
        encoder=str(tmp_path / "encoder"),
        data=str(tmp_path / "tones"),
        out=tmp_path / "finetune.json",
        epochs=10,
        batch_size=4,
        base_lr=0.2,
        mixup=0.0,
        workers=0,
    )
    result = settings.run()
    assert result["trained"]["top1"] == 1.0
    assert (result["settings"]["layer_decay"], result["settings"]["drop_path"]) == (1.0, 0.2)
    assert result["untrained"]["n"] == result["trained"]["n"]
    folder = tmp_path / "finetune" / "trained" / "model"
    assert sorted(AutoModelForImageClassification.from_pretrained(folder).config.id2label.values()) == ["high", "low"]
    assert json.loads((folder / "config.json").read_text())["num_channels"] == 1

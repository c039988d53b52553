"""Claims: a fine-tuned model loads through transformers' Auto class with nothing missing or unexpected, and its logits
equal ours, for every class that expresses one; our own reading gives the same logits; what no class expresses is said
and still reads back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
)

from mmssl.adaptation.adapt import adapted, make_head
from mmssl.adaptation.classifier import Classifier
from mmssl.adapters.specs import AudioSpec, ImageSpec, SoundSpec, Spec, VideoSpec
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError

TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2}
IMAGE = ImageSpec(size=32, patch=8)
CLIP = VideoSpec(size=16, patch=8, frames=4)
SOUND = AudioSpec(mels=32, frames=48, patch=16, stride=10)
CLASSES = ("ant", "bee", "cat", "dog", "elk")
AUTO = {
    "image": AutoModelForImageClassification,
    "video": AutoModelForVideoClassification,
    "audio": AutoModelForAudioClassification,
}
EXPRESSED: dict[str, tuple[Spec, dict]] = {
    "ViTForImageClassification": (IMAGE, {"pooling": "cls"}),
    "BeitForImageClassification": (IMAGE, {"pooling": "mean", "positions": "learned", "layer_scale": 0.1}),
    "IJepaForImageClassification": (IMAGE, {"prefix": 0}),
    "VideoMAEForVideoClassification": (CLIP, {"prefix": 0, "positions": "sincos1d", "qkv_bias": "qv"}),
    "VivitForVideoClassification": (CLIP, {"prefix": 1, "positions": "separable", "pooling": "cls"}),
    "ASTForAudioClassification": (SOUND, {"prefix": 2, "pooling": "prefix"}),
    "ResNetForImageClassification": (IMAGE, {"arch": "resnet18"}),
}
OURS: dict[str, tuple[Spec, dict]] = {
    "CIFAR stem": (IMAGE, {"arch": "resnet18", "stem": "cifar"}),
    "two prefix tokens of pictures": (IMAGE, {"prefix": 2, "layer_scale": 0.1}),
    "mean pooling of audio": (SOUND, {"prefix": 2, "pooling": "mean"}),
    "spectrogram ResNet": (SOUND, {"arch": "resnet18"}),
    "clips with a mean and a CLS token": (CLIP, {"prefix": 1, "positions": "separable", "pooling": "mean"}),
}


def model_of(spec: Spec, changes: dict) -> Classifier:
    torch.manual_seed(0)
    start = adapted(build_encoder(spec, EncoderSettings(**(TINY | changes))), drop=0.1)
    model = Classifier(start, make_head(start, len(CLASSES)), CLASSES)
    with torch.no_grad():  # nothing may stay at the value that a fresh model has
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def view_of(spec: Spec) -> torch.Tensor:
    if isinstance(spec, SoundSpec):
        return torch.randn(3, spec.samples) * 0.1
    frames = (spec.frames,) if isinstance(spec, VideoSpec) else ()
    return torch.randint(0, 256, (3, *frames, 3, spec.size, spec.size), dtype=torch.uint8)


def pixels_of(model: Classifier, view: torch.Tensor) -> torch.Tensor:
    """What the transformers class takes, from our own front: images [B,3,H,W], clips [B,T,3,H,W], spectrograms
    [B,frames,mels]."""
    encoder: Any = model.encoder
    front = encoder.adapter if hasattr(encoder, "adapter") else encoder.front
    pixels = front.pixels(view) if hasattr(front, "pixels") else front(view)  # [B,C,T,H,W]
    if encoder.spec.modality == "video":
        return pixels.transpose(1, 2)
    return pixels[:, 0, 0].transpose(1, 2) if encoder.spec.modality == "audio" else pixels.squeeze(2)


@pytest.mark.parametrize("architecture", EXPRESSED)
@torch.no_grad()
def test_logits_equal_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    spec, changes = EXPRESSED[architecture]
    model = model_of(spec, changes)
    form = model.save_pretrained(tmp_path / "model", {"Steps": 3})
    assert form.reason is None
    theirs, info = AUTO[spec.modality].from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == form.architecture == architecture
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert [theirs.config.id2label[number] for number in range(5)] == list(CLASSES)
    view = view_of(spec)
    ours = model(view)
    assert ours.std(0).min() > 1e-3, "logits that depend on the input"
    torch.testing.assert_close(theirs.eval()(pixels_of(model, view)).logits, ours, rtol=1e-4, atol=1e-4)
    again = Classifier.from_pretrained(tmp_path / "model")
    assert again.classes == CLASSES
    torch.testing.assert_close(again(view), ours, rtol=1e-5, atol=1e-5)
    assert "from_pretrained" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize("case", OURS)
@torch.no_grad()
def test_what_no_class_expresses_is_said_and_reads_back(case: str, tmp_path: Path) -> None:
    spec, changes = OURS[case]
    model = model_of(spec, changes)
    form = model.save_pretrained(tmp_path / "model")
    assert form.reason is not None
    assert form.reason in (tmp_path / "model/README.md").read_text()
    view = view_of(spec)
    torch.testing.assert_close(Classifier.from_pretrained(tmp_path / "model")(view), model(view))


def test_a_folder_without_a_classifier_is_named(tmp_path: Path) -> None:
    build_encoder(IMAGE, EncoderSettings(**TINY)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="holds no classifier of mmssl"):
        Classifier.from_pretrained(tmp_path / "encoder")

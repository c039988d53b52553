"""Claims: a fine-tuned speech encoder is transformers' HubertForSequenceClassification or its WavLM counterpart with
equal logits, also of padded recordings; learning rates decay from the head to the convolutions; the command
fine-tunes on recordings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from mmssl.adaptation.adapt import adapted, make_head
from mmssl.adaptation.classification import layer_numbers
from mmssl.adaptation.classifier import Classifier
from mmssl.adaptation.settings import FinetuneSettings
from mmssl.adapters.specs import WaveformSpec
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.errors import UserError
from tests.evaluation.standins import write_tones

SPEC = WaveformSpec(channels=(8,) * 7, seconds=0.5)
SETTINGS = SpeechSettings(width=24, depth=2, heads=3, mlp_ratio=2, position_kernel=8, position_groups=4)
CLASSES = ("ant", "bee", "cat")


def encoder_of(arch: Any, large: bool) -> SpeechEncoder:
    torch.manual_seed(0)
    spec = replace(SPEC, norm="layer", normalise=True) if large else SPEC
    return SpeechEncoder(spec, replace(SETTINGS, arch=arch, pre_norm=large))


@pytest.mark.parametrize(("arch", "large"), [("hubert", False), ("wavlm", True)])
def test_logits_are_those_of_transformers(tmp_path: Path, arch: str, large: bool) -> None:
    start = adapted(encoder_of(arch, large), drop=0.1)
    assert isinstance(start, SpeechEncoder)
    assert start.settings.layer_drop == 0.1
    model = Classifier(start, make_head(start, len(CLASSES)), CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    form = model.save_pretrained(tmp_path)
    assert form.architecture == {"hubert": "Hubert", "wavlm": "WavLM"}[arch] + "ForSequenceClassification"
    theirs, told = AutoModelForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(theirs.config.id2label.values()) == list(CLASSES)
    waves = [torch.randn(6000) * 0.1, torch.randn(9000) * 0.1]
    lengths = torch.tensor([6000, 9000])
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    ours = model(batch, lengths)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    for number, wave in enumerate(waves):
        given = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
        torch.testing.assert_close(theirs.eval()(**given).logits[0], ours[number], rtol=1e-4, atol=1e-5)
    if large:
        given = extractor([wave.numpy() for wave in waves], sampling_rate=16000, padding=True, return_tensors="pt")
        torch.testing.assert_close(theirs(**given).logits, ours, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Classifier.from_pretrained(tmp_path)(batch, lengths), ours, rtol=0, atol=0)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_layers_are_counted_from_the_convolutions_to_the_head(large: bool) -> None:
    layers = layer_numbers(encoder_of("wavlm", large))
    assert layers["adapter.feature_extractor.conv_layers.3.conv.weight"] == 0
    assert layers["position.weight_v"] == layers["relative.weight"] == 0
    assert layers["blocks.1.final_layer_norm.bias"] == 2
    assert layers["norm.weight"] == (3 if large else 0)
    with pytest.raises(UserError, match="--pooling cls: a speech encoder has no prefix tokens"):
        adapted(encoder_of("hubert", large), pooling="cls")


def test_the_command_fine_tunes_on_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    encoder_of("hubert", False).save_pretrained(tmp_path / "encoder")
    write_tones(tmp_path / "tones")
    settings = FinetuneSettings(
        encoder=str(tmp_path / "encoder"),
        data=str(tmp_path / "tones"),
        out=tmp_path / "finetune.json",
        untrained=False,
        epochs=10,
        batch_size=4,
        base_lr=0.2,
        mixup=0.0,
        workers=0,
    )
    result = settings.run()
    assert result["trained"]["top1"] == 1.0
    found = AutoModelForAudioClassification.from_pretrained(tmp_path / "finetune" / "trained" / "model")
    assert sorted(found.config.id2label.values()) == ["high", "low"]

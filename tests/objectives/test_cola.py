"""Claim: COLA is the official formula, re-computed in float64 NumPy from the weights: linear, layer norm (epsilon
0.001), tanh and a^T W p, or cosine over 0.2; cross-entropy from anchors to positives only. It reads segments at the
level they come at, the exported encoder does not; negatives come from the process or from all."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.adapters.specs import AudioSpec
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.objectives import contrastive
from mmssl.objectives.cola import COLA, cola_front
from mmssl.types import Batch

SPEC = AudioSpec(front="cola", mels=32, frames=32, patch=8, stride=8, mean=0.0, std=5.0)


def objective(similarity: Literal["bilinear", "cosine"] = "bilinear", **more: object) -> COLA:
    torch.manual_seed(0)
    encoder = build_encoder(SPEC, EncoderSettings(arch="resnet18", stem="cifar"))
    return COLA(encoder, out=16, similarity=similarity, **more)  # type: ignore[arg-type]


def batch(count: int = 6, level: float = 0.01) -> Batch:
    """Tones, so that samples differ."""
    generator = torch.Generator().manual_seed(1)
    hertz = 100 * 40 ** torch.rand(2, count, 1, generator=generator)
    waves = level * torch.sin(2 * torch.pi * hertz * torch.arange(SPEC.samples) / 16000)
    return Batch({"a": waves[0], "b": waves[1]}, torch.arange(count))


def features(cola: COLA, given: Batch) -> np.ndarray:
    """Of the encoder in training mode, on segments as they come: anchors and positives share their batch norms."""
    with torch.no_grad(), cola_front(cola.encoder).taken_as_given():
        return cola.encoder(torch.cat([given.views["a"], given.views["b"]])).pooled.double().numpy()


@pytest.mark.parametrize("similarity", ["bilinear", "cosine"])
def test_loss_equals_the_formula(similarity: Literal["bilinear", "cosine"]) -> None:
    cola, given = objective(similarity), batch()
    with torch.no_grad():
        heads = [parameter for name, parameter in cola.named_parameters() if not name.startswith("encoder.")]
        for parameter in heads:
            parameter.add_(torch.randn_like(parameter))
    weights = {name: p.detach().double().numpy() for name, p in cola.named_parameters()}
    output = cola(given)

    def head(x: np.ndarray) -> np.ndarray:
        if similarity == "cosine":
            y = x @ weights["projector.0.weight"].T + weights["projector.0.bias"]
            return y / np.linalg.norm(y, axis=1, keepdims=True)
        y = x @ weights["projector.0.0.weight"].T + weights["projector.0.0.bias"]
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-3)
        return np.tanh(y * weights["projector.1.weight"] + weights["projector.1.bias"])

    a, p = head(features(cola, given)).reshape(2, 6, -1)
    logits = a @ weights["bilinear.weight"].T @ p.T if similarity == "bilinear" else a @ p.T / 0.2
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert output.count.item() == 6
    swapped = cola(Batch({"a": given.views["b"], "b": given.views["a"]}, given.index))
    assert abs(swapped.loss.item() - output.loss.item()) > 1e-3 * expected, "one direction only"


def test_segments_keep_the_level_of_their_clip_and_embeddings_do_not() -> None:
    cola = objective().eval()
    first, louder = batch(level=0.002), batch(level=0.02)
    assert abs(cola(first).loss.item() - cola(louder).loss.item()) > 1e-4
    torch.testing.assert_close(cola(first, what="embed"), cola(louder, what="embed"), rtol=1e-3, atol=1e-3)
    assert cola.exports()["encoder"] is cola.encoder
    front = cola_front(cola.encoder)
    with pytest.raises(RuntimeError), front.taken_as_given():
        raise RuntimeError
    assert front.unit, "also after an error"


def test_negatives_of_the_process_need_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of two processes whose partner has other samples: 'process' is what it would compute alone."""
    given = batch()
    alone = objective()(given).loss.item()

    def both(x: Tensor) -> Tensor:
        return torch.cat([x.flip(0) + 0.5, x])

    monkeypatch.setattr(contrastive, "world_size", lambda: 2)
    monkeypatch.setattr(contrastive, "rank", lambda: 1)
    monkeypatch.setattr(contrastive, "gather", both)
    assert objective(negatives="process")(given).loss.item() == pytest.approx(alone, rel=1e-6)
    everybody = objective(negatives="global")(given).loss.item()
    assert everybody > alone + 0.1, "twice the candidates"
    with pytest.raises(UserError, match="at least 2"):
        objective(negatives="process")(batch(1))


def test_head_starts_as_keras() -> None:
    encoder = build_encoder(SPEC, EncoderSettings(width=256, depth=1, heads=2))
    cola = COLA(encoder)
    assert cola.bilinear is not None
    assert cola.bilinear.weight.std().item() == pytest.approx(0.05, rel=0.02)
    weight = cola.get_parameter("projector.0.0.weight")
    limit = (6 / (256 + 512)) ** 0.5  # Glorot uniform
    assert limit * 0.98 < weight.abs().max().item() <= limit
    assert (cola.get_parameter("projector.0.0.bias") == 0).all()


def test_another_front_end_is_refused() -> None:
    encoder = build_encoder(
        AudioSpec(mels=32, frames=32, patch=8, stride=8), EncoderSettings(width=32, depth=1, heads=2)
    )
    with pytest.raises(UserError, match="log-mel magnitudes"):
        COLA(encoder)

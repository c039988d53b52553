"""Claim: EfficientNet is transformers' EfficientNetModel (what the class computes from the written folder), has the
size of torchvision's B0, pads as TensorFlow's SAME does, and trains as Keras' does: slow batch norms, whole samples
dropped, Keras' initial weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from transformers import AutoModel

from mmssl.adapters.image import ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.video import VideoPixels
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import build_front
from mmssl.encoders.efficientnet import EfficientNet, EfficientNetSettings
from mmssl.errors import UserError
from mmssl.evaluation.subject import encoder_hash, untrained
from mmssl.objectives.batch_norm import group_batch_norms

COLA = AudioSpec(front="cola", mels=64, frames=98, mean=0.0, std=127.5)
SMALL = EfficientNetSettings(width=0.25, depth=0.5)


def sound() -> EfficientNet:
    torch.manual_seed(0)
    return EfficientNet(build_front(COLA), SMALL)


def waves(count: int) -> torch.Tensor:
    return torch.randn(count, 16000, generator=torch.Generator().manual_seed(1))


def test_b0_has_the_parameters_of_torchvisions() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.efficientnet_b0().features
        ours = EfficientNet(ImagePixels(ImageSpec()))
    assert ours.width == 1280
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 4_007_548


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_transformers_reads_it_and_finds_the_same(pooling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = EfficientNet(build_front(COLA), EfficientNetSettings(0.25, 0.5, pooling=pooling)).train()  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(20):
            encoder(waves(4))  # running statistics away from where they start
    encoder.eval().save_pretrained(tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == "EfficientNetModel"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    again = Encoder.from_pretrained(tmp_path)
    assert isinstance(again, EfficientNet)
    assert (again.settings, again.spec, again.pooling) == (encoder.settings, encoder.spec, pooling)
    with torch.no_grad():
        expected = model.eval()(encoder.front(waves(2))[:, :, 0])
        for one in (encoder, again):
            found = one(waves(2), hidden=True)
            assert found.feature_map is not None
            torch.testing.assert_close(found.pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.feature_map, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
            assert found.hidden is not None
            assert len(found.hidden) > 7
    card = (tmp_path / "README.md").read_text()
    assert "transformers cannot load it" not in card
    assert "minus 0, over 255" in card, "how its input is made"


def test_strided_convolutions_pad_below_and_to_the_right() -> None:
    """TensorFlow's SAME for an even size; torchvision pads both sides and would see another picture."""
    encoder = sound().eval()
    stem = encoder.net.embeddings
    x = torch.randn(1, 1, 98, 64)
    with torch.no_grad():
        found = stem.convolution(stem.padding(x))
    weight = stem.convolution.weight.detach().numpy()
    padded = np.zeros((99, 65))
    padded[:98, :64] = x.numpy()[0, 0]
    expected = np.array([(padded[10:13, 6:9] * weight[c, 0]).sum() for c in range(len(weight))])
    assert found.shape[2:] == (49, 32)
    np.testing.assert_allclose(found[0, :, 5, 3].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert encoder(waves(1)).feature_map.shape[2:] == (2, 3)  # type: ignore[union-attr]  # 64 mels, 98 frames


def test_batch_norms_move_by_a_hundredth() -> None:
    encoder = sound().train()
    norms = {name: m for name, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {m.momentum for m in norms.values()} == {0.01}
    assert {m.eps for m in norms.values()} == {1e-3}
    stem = encoder.net.embeddings
    view = waves(8)
    encoder(view)
    with torch.no_grad():
        mean = stem.convolution(stem.padding(encoder.front(view)[:, :, 0])).mean((0, 2, 3))
    torch.testing.assert_close(stem.batchnorm.running_mean, 0.01 * mean, rtol=1e-4, atol=1e-8)
    group_batch_norms(encoder, None)
    assert {m.momentum for m in encoder.modules() if hasattr(m, "running_mean")} == {0.01}


def test_drop_connect_drops_whole_samples_more_in_later_blocks() -> None:
    encoder = EfficientNet(ImagePixels(ImageSpec(size=32)), EfficientNetSettings(0.25, 1.0, drop_connect=0.5)).train()
    rates = [block.projection.dropout.rate for block in encoder.net.encoder.blocks]
    np.testing.assert_allclose(rates, 0.5 * np.arange(16) / 16)  # Keras: rate x block / blocks
    torch.manual_seed(0)
    dropped = encoder.net.encoder.blocks[14].projection.dropout(torch.ones(400, 2, 3, 3))
    values = dropped.flatten(1)
    assert (values == values[:, :1]).all()
    kept = (values[:, 0] > 0).float().mean().item()
    assert kept == pytest.approx(1 - rates[14], abs=0.08)
    assert values.max().item() == pytest.approx(1 / (1 - rates[14]))
    one = encoder.eval()(torch.ones(2, 3, 32, 32)).pooled
    torch.testing.assert_close(one[0], one[1])


def test_weights_start_as_keras() -> None:
    """Truncated normal of variance 2 / fan out, of one filter for depthwise convolutions."""
    encoder = EfficientNet(ImagePixels(ImageSpec()))
    block = encoder.net.encoder.blocks[10]
    for weight, fan_out in (
        (block.expansion.expand_conv.weight, block.expansion.expand_conv.out_channels),
        (block.depthwise_conv.depthwise_conv.weight, 25),
    ):
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert weight.abs().max().item() <= 2 * (2 / fan_out) ** 0.5 / 0.8796 + 1e-6


def test_twins_and_clips() -> None:
    first, second = untrained(sound(), 3), untrained(sound(), 3)
    assert encoder_hash(first) == encoder_hash(second) != encoder_hash(untrained(sound(), 4))
    with pytest.raises(UserError, match="ViT for clips"):
        EfficientNet(VideoPixels(VideoSpec()))

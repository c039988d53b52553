"""Claims: learning rates fall by block as BEiT's formula says, every parameter once, norms and biases undecayed; the
loss starts at ln(classes); stochastic depth drops the share of samples that it says, at the blocks that it says, and
keeps the mean, in ViT and ResNet; what `adapted` makes has the weights that it was given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmssl.adaptation.adapt import adapted, make_head
from mmssl.adaptation.classification import Classification, block_names, layer_numbers
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.vit import drop_path
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.types import Batch

IMAGE = ImageSpec(size=16, patch=8)
TINY: dict[str, Any] = {"width": 16, "depth": 3, "heads": 2}


def vit(**changes: Any) -> Encoder:
    return build_encoder(IMAGE, EncoderSettings(**(TINY | changes)))


def resnet(arch: Any = "resnet18") -> Encoder:
    return build_encoder(IMAGE, EncoderSettings(arch=arch, stem="cifar"))


def objective(encoder: Encoder, decay: float, classes: int = 4) -> Classification:
    names = tuple(f"c{number}" for number in range(classes))
    return Classification(encoder, make_head(encoder, classes), names, layer_decay=decay)


def test_layer_decay_is_beits_formula() -> None:
    model = objective(adapted(vit(pooling="cls", positions="learned")), 0.65)
    scale = {name: g["lr_scale"] for g in model.param_groups() for name, _ in g["params"]}
    assert set(scale) == {name for name, _ in model.named_parameters()}
    assert sum(len(g["params"]) for g in model.param_groups()) == len(scale), "no parameter twice"
    # BEiT: scales are decay ** (L + 1 - l) for l = 0 .. L + 1, the patch embedding being 0 and the head L + 1.
    expected = {
        "encoder.adapter.projection.weight": 0.65**4,
        "encoder.pos": 0.65**4,
        "encoder.prefix": 0.65**4,
        "encoder.blocks.0.attn.qkv.weight": 0.65**3,
        "encoder.blocks.2.mlp.fc2.bias": 0.65,
        "encoder.norm.weight": 1.0,
        "head.linear.weight": 1.0,
    }
    assert {name: scale[name] for name in expected} == pytest.approx(expected)
    decayed = {name for g in model.param_groups() if g["decay"] for name, _ in g["params"]}
    plain = {name for g in Objective.param_groups(model) if g["decay"] for name, _ in g["params"]}
    assert decayed == plain
    assert "encoder.pos" not in decayed


def test_layer_decay_of_a_resnet_goes_by_residual_block() -> None:
    encoder = resnet()
    assert block_names(encoder) == [f"layer{stage}.{number}" for stage in (1, 2, 3, 4) for number in (0, 1)]
    layers = layer_numbers(encoder)
    assert layers["conv1.weight"] == layers["bn1.bias"] == 0
    assert layers["layer1.0.conv1.weight"] == 1
    assert layers["layer4.1.bn2.weight"] == 8
    assert set(layers) == {name for name, _ in encoder.named_parameters()}


def test_loss_starts_at_the_logarithm_of_the_classes_and_counts_samples() -> None:
    model = objective(adapted(vit()), 1.0, classes=7)
    views = {"view": torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)}
    output = model(Batch(views, torch.arange(6), targets={"class": torch.arange(6)}))
    assert output.loss.item() == pytest.approx(math.log(7), abs=1e-3)
    assert float(output.count) == 6
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropped_share_and_mean() -> None:
    torch.manual_seed(0)
    out = drop_path(torch.ones(20_000, 3, 2), 0.3)
    kept = out[:, 0, 0] > 0
    assert kept.float().mean() == pytest.approx(0.7, abs=0.015)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.7))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("make", [vit, resnet, lambda: resnet("resnet50")], ids=["vit", "resnet18", "resnet50"])
def test_stochastic_depth_of_an_adapted_encoder(make) -> None:
    torch.manual_seed(0)
    source = make().eval()
    encoder = adapted(source, drop=0.9)
    assert encoder.training
    view = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert not torch.equal(encoder(view).pooled, encoder(view).pooled)
    encoder.load_state_dict({name: t for name, t in source.state_dict().items() if name in encoder.state_dict()})
    encoder.eval()
    names = block_names(encoder)
    plain = adapted(source).eval()
    torch.testing.assert_close(encoder(view).pooled, plain(view).pooled)
    # How often each block's output is its shortcut, over many single samples in training mode.
    rates = []
    for name in names:
        block: Any = encoder.get_submodule(name)
        for part in block.modules():
            part.train(not isinstance(part, torch.nn.BatchNorm2d))
        ends = [block.bn3 if hasattr(block, "bn3") else block.bn2] if hasattr(block, "bn1") else [block.attn.proj]
        if hasattr(block, "bn1"):
            width = ends[0].num_features
            found = [ends[0].train()(torch.randn(64, width, 2, 2)) for _ in range(40)]
            rates.append(float(torch.cat(found).flatten(1).eq(0).all(1).float().mean()))
        else:
            rates.append(block.drop_rate)
    count = len(names)
    if hasattr(encoder, "blocks"):
        expected = [0.9 * number / (count - 1) for number in range(count)]
    else:
        expected = [0.9 * (number + 1) / count for number in range(count)]
    assert rates == pytest.approx(expected, abs=0.04)


def test_adapted_encoders_keep_their_weights_and_leave_the_norm_to_the_head() -> None:
    source = vit(pooling="mean")
    encoder = adapted(source)
    assert isinstance(encoder.norm, torch.nn.Identity)
    assert isinstance(make_head(encoder, 3).norm, torch.nn.LayerNorm)
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, source.state_dict()[name], rtol=0, atol=0)
        assert tensor.data_ptr() != source.state_dict()[name].data_ptr(), "a copy"
    cls = adapted(source, pooling="cls")
    assert isinstance(cls.norm, torch.nn.LayerNorm)
    assert isinstance(make_head(cls, 3).norm, torch.nn.Identity)
    clips = build_encoder(VideoSpec(size=16, patch=8, frames=2), EncoderSettings(
        **TINY, prefix=0, positions="sincos1d", qkv_bias="qv"))  # fmt: skip
    assert make_head(adapted(clips), 3).norm.eps == 1e-5
    sound = build_encoder(AudioSpec(mels=16, frames=16, patch=8, stride=8), EncoderSettings(
        **TINY, prefix=2, pooling="prefix"))  # fmt: skip
    assert isinstance(adapted(sound).norm, torch.nn.LayerNorm)
    assert isinstance(make_head(adapted(sound), 3).norm, torch.nn.LayerNorm)
    assert isinstance(make_head(adapted(resnet()), 3).norm, torch.nn.Identity)


def test_a_pooling_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="--pooling cls is about tokens"):
        adapted(resnet(), pooling="cls")
    with pytest.raises(UserError, match="needs a prefix token"):
        adapted(vit(prefix=0), pooling="cls")

"""Claim: a ResNet's output stride changes the size of its map and nothing else, and a DenseEncoder gives one embedding
a place of every frame, at any size, from any trunk; both are on disk what they were, and say why only mmssl reads them.

Outside references: torchvision's own dilated layer4 (with its dilation taken out again), convolutions written out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

import mmssl
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import LogMel
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.dense import DenseEncoder, DenseHead, DenseSettings
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.evaluation.subject import encoder_hash, untrained

GREY = {"mean": (0.5,), "std": (0.25,), "colour": "lightness"}
CLIP = VideoSpec(size=32, frames=4, patch=8, tubelet=1, **GREY)  # type: ignore[arg-type]
FRAME = ImageSpec(size=32, patch=8, **GREY)  # type: ignore[arg-type]


@pytest.mark.parametrize(("stride", "side"), [(None, 2), (32, 2), (16, 4), (8, 8), (4, 16)])
def test_output_stride(stride: int | None, side: int) -> None:
    torch.manual_seed(0)
    plain = ConvEncoder(ImagePixels(ImageSpec(size=64)), "resnet18").eval()
    encoder = ConvEncoder(ImagePixels(ImageSpec(size=64)), "resnet18", output_stride=stride).eval()
    encoder.load_state_dict(plain.state_dict())  # the same weights fit
    view = torch.rand(1, 3, 64, 64)
    encoded, reference = encoder(view, hidden=True), plain(view, hidden=True)
    assert encoded.feature_map.shape == (1, 512, side, side)
    for ours, theirs in zip(encoded.hidden, reference.hidden, strict=True):
        if ours.shape == theirs.shape:  # stages before the change
            assert_close(ours, theirs, rtol=0, atol=0)


def test_flat_stages_are_torchvisions_without_dilation() -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(ImagePixels(ImageSpec(size=64)), "resnet50", output_stride=8).eval()
    net = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    net.fc = nn.Identity()  # type: ignore[assignment]
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            module.dilation = module.padding = (1, 1)
    net.load_state_dict(encoder.state_dict())
    view = torch.rand(1, 3, 64, 64)
    assert_close(encoder(view).pooled, net.eval()(encoder.front(view)[:, :, 0]), rtol=1e-5, atol=1e-5)


def test_head_looks_as_far_as_it_says() -> None:
    """Five layers see 1+2+4+8+16 = 31 cells and 5 frames each way; a place outside changes nothing."""
    torch.manual_seed(0)
    head = DenseHead(3, DenseSettings(out=2, hidden=4)).eval()
    for parameter in head.parameters():
        parameter.data.abs_()  # or a ReLU would hide what is behind it
    maps = torch.rand(1, 3, 13, 1, 70, requires_grad=True)
    head(maps)[0, :, 6, 0, 35].sum().backward()
    assert maps.grad is not None
    seen = maps.grad[0].abs().sum((0, 2)) > 0  # [T,W]
    assert seen.any(1).nonzero().flatten().tolist() == list(range(1, 12))
    assert seen.any(0).nonzero().flatten().tolist() == list(range(35 - 31, 35 + 32))


def test_linear_head_is_a_matrix() -> None:
    head = DenseHead(3, DenseSettings(out=2, layers=0))
    maps = torch.rand(2, 3, 4, 5, 6)
    weight, bias = head.project.weight.flatten(1), head.project.bias
    assert bias is not None
    expected = torch.einsum("oc,bcthw->bothw", weight, maps) + bias.view(1, -1, 1, 1, 1)
    assert_close(head(maps), expected)


def conv_dense() -> DenseEncoder:
    torch.manual_seed(0)
    trunk = ConvEncoder(ImagePixels(FRAME), "resnet18", output_stride=8)
    return DenseEncoder(trunk, CLIP, DenseSettings(out=6, hidden=8, layers=2)).eval()


def vit_dense() -> DenseEncoder:
    torch.manual_seed(0)
    trunk = ViT(ImagePatches(FRAME, 16), ViTSettings(width=16, depth=1, heads=2))
    return DenseEncoder(trunk, CLIP, DenseSettings(out=6, layers=0)).eval()


def test_maps_of_clips() -> None:
    """Frames stay in order, each at its place, at other sizes, too: 480p is 854 x 480, no multiple of the stride."""
    encoder = vit_dense()
    clip = torch.randint(0, 256, (2, 3, 3, 48, 40), dtype=torch.uint8)
    encoded = encoder(clip)
    assert encoded.feature_map.shape == (2, 6, 3, 6, 5)
    assert_close(encoded.pooled, encoded.feature_map.mean((2, 3, 4)))
    for b in range(2):  # a linear head takes each frame by itself
        for t in range(3):
            alone = encoder(clip[b : b + 1, t : t + 1]).feature_map[0, :, 0]
            assert_close(encoded.feature_map[b, :, t], alone, rtol=1e-4, atol=1e-5)
            patch = encoder.trunk(clip[b : b + 1, t]).tokens[0, 2 * 5 + 3]  # row 2, column 3
            assert_close(alone[:, 2, 3], encoder.head.project.weight.flatten(1) @ patch + encoder.head.project.bias)
    assert conv_dense()(torch.rand(1, 2, 3, 60, 107)).feature_map.shape == (1, 6, 2, 8, 14)


@pytest.mark.parametrize("frames", [3, 4])
def test_a_still_frame_is_the_middle_of_a_clip_in_which_nothing_moves(frames: int) -> None:
    encoder = conv_dense()
    encoder.spec = replace(CLIP, frames=frames)
    picture = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    expected = encoder(picture[:, None].expand(-1, frames, -1, -1, -1)).feature_map[:, :, frames // 2]
    assert_close(encoder.still(picture), expected, rtol=1e-4, atol=1e-5)


def test_states() -> None:
    clip = torch.randint(0, 256, (2, 3, 3, 32, 40), dtype=torch.uint8)
    for encoder, count in ((conv_dense(), 6), (vit_dense(), 3)):
        encoded = encoder(clip, hidden=True)
        assert encoded.hidden is not None
        assert len(encoded.hidden) == count
        assert_close(encoded.feature_map, encoder(clip).feature_map, rtol=0, atol=0)
        assert_close(encoded.hidden[-1], encoded.feature_map, rtol=0, atol=0)
        assert_close(encoder.head(encoded.hidden[-2]), encoded.feature_map, rtol=1e-5, atol=1e-5)
        trunk = encoder.trunk(clip[:, 1], hidden=True)
        first = (
            trunk.hidden[0] if trunk.tokens is None else trunk.hidden[0][:, -20:].transpose(1, 2).unflatten(2, (4, 5))
        )
        assert_close(encoded.hidden[0][:, :, 1], first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [conv_dense, vit_dense])
def test_written_and_read(make: object, tmp_path: Path) -> None:
    encoder = make()  # type: ignore[operator]
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "mmssl"
    assert "one embedding a place" in (tmp_path / "README.md").read_text()
    again = mmssl.Encoder.from_pretrained(tmp_path)
    assert isinstance(again, DenseEncoder)
    assert again.spec == CLIP
    clip = torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)
    assert_close(again(clip).feature_map, encoder(clip).feature_map, rtol=0, atol=0)
    assert encoder_hash(again) == encoder_hash(encoder)
    twin = untrained(again, 0)
    assert twin.state_dict().keys() == again.state_dict().keys()
    assert encoder_hash(twin) == encoder_hash(untrained(encoder, 0)) != encoder_hash(untrained(encoder, 1))


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (lambda: ConvEncoder(ImagePixels(ImageSpec(size=32)), output_stride=8), "output stride of 32"),
        (lambda: ConvEncoder(ImagePixels(FRAME)), "make no lightness"),
        (lambda: ViT(ImagePatches(FRAME, 8), ViTSettings(width=8, depth=1, heads=1)), "make no lightness"),
    ],
)
def test_facts_survive(encoder: object, reason: str, tmp_path: Path) -> None:
    first: Encoder = encoder()  # type: ignore[operator]
    first.save_pretrained(tmp_path)
    assert reason in (tmp_path / "README.md").read_text()
    again = mmssl.Encoder.from_pretrained(tmp_path)
    view = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert again.spec == first.spec
    assert_close(again(view).pooled, first.eval()(view).pooled, rtol=0, atol=0)
    if isinstance(first, ConvEncoder):
        assert again(view).feature_map.shape == first(view).feature_map.shape
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["do_normalize"] == (first.spec.colour == "rgb")  # type: ignore[union-attr]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="no output stride of 12: choose 32, 16, 8 or 4"):
        ConvEncoder(ImagePixels(ImageSpec()), output_stride=12)
    with pytest.raises(UserError, match="choose 8, 4, 2 or 1"):
        ConvEncoder(ImagePixels(ImageSpec()), "resnet18", "cifar", 32)
    with pytest.raises(UserError, match="takes images, and this ConvEncoder takes audio"):
        DenseEncoder(ConvEncoder(LogMel(AudioSpec())), CLIP, DenseSettings())
    with pytest.raises(UserError, match="0 layers or more"):
        DenseEncoder(ConvEncoder(ImagePixels(FRAME)), CLIP, DenseSettings(layers=-1))

"""Claim: the trunk does what its settings say.

Position tables against transformers', masking against a plain re-computation, drop path against its expectation, and
every trainable parameter gets a gradient in masked and in pooled use (DDP stops otherwise).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.positions import interpolate, join_separable, sincos_1d, sincos_2d, split_separable
from mmssl.encoders.vit import Block, ViT, ViTSettings, drop_path, vit_preset
from mmssl.errors import UserError

SETTINGS = ViTSettings(width=24, depth=3, heads=3)


def image_vit(**changes: object) -> ViT:
    torch.manual_seed(0)
    return ViT(ImagePatches(ImageSpec(size=16, patch=4), 24), replace(SETTINGS, **changes))  # type: ignore[arg-type]


def test_position_tables_are_those_of_mae_and_videomae() -> None:
    table = build_2d_sinusoidal_position_embedding(3, 5, 24)
    assert_close(sincos_2d(3, 5, 24), torch.cat([table[:, 12:], table[:, :12]], dim=1), rtol=0, atol=1e-6)
    assert_close(sincos_1d(1568, 24), get_sinusoid_encoding_table(1568, 24)[0], rtol=0, atol=1e-6)


def test_interpolation_over_time_and_space() -> None:
    ramp = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 3, 8).reshape(1, 24, 8)
    longer = interpolate(ramp, (4, 2, 3), (8, 2, 3)).view(8, 2, 3, 8)
    assert_close(longer[:, 0, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    other = interpolate(ramp, (4, 2, 3), (4, 5, 6)).view(4, 5, 6, 8)
    assert_close(other, torch.arange(4.0).view(4, 1, 1, 1).expand(4, 5, 6, 8))
    assert interpolate(ramp, (4, 2, 3), (4, 2, 3)) is ramp


def test_separable_positions_are_the_sum_of_space_and_time() -> None:
    space, time = torch.randn(1, 6, 8), torch.randn(1, 4, 8)
    table = join_separable(space, time)
    for t, cell in ((0, 0), (3, 5), (2, 1)):
        assert_close(table[0, t * 6 + cell], space[0, cell] + time[0, t])
    parts = split_separable(table, 4)
    assert parts is not None
    assert_close(join_separable(*parts), table, rtol=0, atol=1e-6)
    table[0, 13] += 1e-3
    assert split_separable(table, 4) is None
    # Interpolating the sum is interpolating both parts.
    parts = interpolate(space, (1, 2, 3), (1, 5, 4)), interpolate(time, (4, 1, 1), (6, 1, 1))
    whole = interpolate(join_separable(space, time), (4, 2, 3), (6, 5, 4))
    assert_close(whole, join_separable(*parts), rtol=0, atol=1e-5)


def test_encode_replaces_before_positions_and_gathers_after() -> None:
    vit, view = image_vit().eval(), torch.rand(2, 3, 16, 16)
    tokens = vit.tokenize(view)
    assert tokens.pos is not None
    assert vit.prefix is not None
    mask, mask_token = torch.rand(2, 16) < 0.5, torch.randn(24)
    keep = torch.tensor([[9, 2, 4], [0, 15, 7]])
    x = tokens.x.clone()
    x[mask] = mask_token
    x = (x + tokens.pos)[torch.arange(2)[:, None], keep]
    x = torch.cat([vit.prefix.expand(2, -1, -1), x], dim=1)
    for block in vit.blocks:
        x = block(x)
    x = vit.norm(x)
    encoded = vit.encode(tokens, keep=keep, mask=mask, mask_token=mask_token, hidden=True)
    assert encoded.tokens is not None
    assert encoded.hidden is not None
    assert_close(torch.cat([encoded.prefix, encoded.tokens], dim=1), x)  # type: ignore[list-item]
    assert_close(encoded.pooled, x[:, 1:].mean(1))
    assert encoded.grid == (1, 4, 4)
    assert len(encoded.hidden) == 4


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("case", ["image", "cls", "learned", "scale", "video", "separable", "audio"])
def test_every_parameter_gets_a_gradient(case: str, masked: bool) -> None:
    settings = {
        "image": SETTINGS,
        "cls": replace(SETTINGS, pooling="cls"),
        "learned": replace(SETTINGS, positions="learned"),
        "scale": replace(SETTINGS, layer_scale=0.1, drop_path=0.1),
        "video": replace(SETTINGS, prefix=0, positions="sincos1d", qkv_bias="qv"),
        "separable": replace(SETTINGS, positions="separable"),
        "audio": replace(SETTINGS, prefix=2, pooling="prefix"),
    }[case]
    if case in ("video", "separable"):
        vit, view = ViT(VideoTubelets(VideoSpec(16, 4, patch=4), 24), settings), torch.rand(2, 4, 3, 16, 16)
    elif case == "audio":
        vit = ViT(SpectrogramPatches(AudioSpec(mels=16, frames=32, patch=8, stride=8), 24), settings)
        view = torch.randn(2, 6000)
    else:
        vit, view = ViT(ImagePatches(ImageSpec(16, 4), 24), settings), torch.rand(2, 3, 16, 16)
    vit.eval()  # drop path may skip a whole block of so small a batch
    if masked:
        encoded = vit.encode(vit.tokenize(view, keep=torch.tensor([[0, 5], [3, 1]])))
        out = encoded.tokens.square().sum() + (0 if encoded.prefix is None else encoded.prefix.square().sum())  # type: ignore[union-attr]
    else:
        out = vit(view).pooled[:, 0].sum()
    out.backward()
    # A bias of the keys shifts all scores of a query alike, so its gradient is zero, but it is there.
    assert not [name for name, p in vit.named_parameters() if p.grad is None]


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    out = drop_path(torch.ones(20000, 2, 3), 0.3)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(out.amin((1, 2)), out.amax((1, 2)))
    assert abs(out.mean().item() - 1) < 0.02
    vit, view = image_vit(drop_path=0.5), torch.rand(4, 3, 16, 16)
    assert [block.drop_rate for block in vit.blocks if isinstance(block, Block)] == [0.0, 0.25, 0.5]
    assert not torch.equal(vit(view).pooled, vit(view).pooled)
    vit.eval()
    assert torch.equal(vit(view).pooled, image_vit().eval()(view).pooled)


def test_layer_scale_of_zero_is_the_identity() -> None:
    vit = image_vit(layer_scale=0.0)
    hidden = vit(torch.rand(1, 3, 16, 16), hidden=True).hidden
    assert hidden is not None
    assert all(torch.equal(hidden[0], state) for state in hidden)


def test_initialisation_is_maes() -> None:
    vit = ViT(ImagePatches(ImageSpec(), 192), ViTSettings(192, 1, 3))
    block = vit.blocks[0]
    assert isinstance(block, Block)
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, vit.adapter.projection.weight.flatten(1)):
        limit = (6 / sum(weight.shape)) ** 0.5  # Glorot and Bengio 2010: uniform in +-sqrt(6 / (fan in + fan out))
        assert weight.abs().max() <= limit
        assert weight.abs().max() > 0.99 * limit
    assert not any(p.any() for name, p in vit.named_parameters() if name.endswith("bias"))
    assert vit.prefix is not None
    assert 0.015 < vit.prefix.std().item() < 0.025
    assert "pos" not in vit.state_dict()


def test_truncated_initialisation_is_vjepas() -> None:
    vit = ViT(ImagePatches(ImageSpec(), 192), ViTSettings(192, 3, 3, initial="truncated"))
    for number, block in enumerate(vit.blocks, start=1):
        assert isinstance(block, Block)
        plain, scaled = (block.attn.qkv, block.mlp.fc1), (block.attn.proj, block.mlp.fc2)
        for layer in plain:
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        for layer in scaled:
            assert layer.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.03)
    assert vit.adapter.projection.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert not any(p.any() for name, p in vit.named_parameters() if name.endswith("bias"))


def test_bf16_autocast_keeps_the_residual_stream_in_fp32() -> None:
    vit, view = image_vit().eval(), torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = vit(view, hidden=True)
    assert all(state.dtype == torch.float32 for state in encoded.hidden)
    assert_close(encoded.pooled, vit(view).pooled, rtol=0.1, atol=0.1)
    low = image_vit().to(torch.bfloat16).eval()(view, hidden=True)
    assert all(state.dtype == torch.bfloat16 for state in low.hidden)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 5.5), ("small", 21.7), ("base", 85.8)])
def test_presets_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    width, depth, heads = vit_preset(name)  # type: ignore[arg-type]
    with torch.device("meta"):
        blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
    rest = 3 * 16 * 16 * width + width + 197 * width + width + 2 * width  # patches, positions, CLS, norm
    total = sum(p.numel() for p in blocks.parameters()) + rest
    assert abs(total / 1e6 - millions) < 0.1  # DeiT, table 1, without the classifier


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"width": 32}, "width 24"),
        ({"heads": 5}, "5 heads"),
        ({"prefix": 0, "pooling": "cls"}, "needs a prefix token"),
        ({"prefix": 3}, "prefix=3"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
    ],
)
def test_contradictory_settings_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        image_vit(**changes)
    with pytest.raises(UserError, match="rows and columns"):
        ViT(VideoTubelets(VideoSpec(16, 4, patch=4), 24), SETTINGS)
    with pytest.raises(UserError, match="choose one of tiny"):
        vit_preset("giant")  # type: ignore[arg-type]

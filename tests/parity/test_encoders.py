"""Claim: our encoders ARE the models of transformers.

With random weights read from transformers' own files, outputs, hidden states and gradients are equal in fp32.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from mmssl import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.key_maps import BLOCK, FUSED
from mmssl.encoders.vit import ViT

TRUNK: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
PICTURE: dict[str, Any] = {"image_size": 16, "patch_size": 4, **TRUNK}
HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


near = partial(assert_close, rtol=1e-5, atol=1e-5)
close = partial(assert_close, rtol=1e-4, atol=1e-4)
"""For gradients, which are sums over many more terms."""


def randomise(model: nn.Module) -> None:
    """Every parameter and statistic gets a random value, so that none can be mapped wrongly and go unseen."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = dict(model.state_dict())
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim > 1 else 0.1))


def from_transformers(model: nn.Module, folder: Path, processor: dict | None = None) -> Encoder:
    randomise(model)
    model.eval().save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or HALF))
    return Encoder.from_pretrained(folder)


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (value * weight).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare_gradients(encoder: ViT, model: nn.Module, ours: Tensor, theirs: Tensor) -> None:
    """Every gradient of ours is that of the same weight in transformers' model, whose names in memory are others."""
    mine, other = gradients(encoder, ours), gradients(model, theirs)
    layers = ["layers", "encoder.layer"]
    spelt = {
        "attention.attention.query.": ["attention.q_proj."],
        "attention.attention.key.": ["attention.k_proj."],
        "attention.attention.value.": ["attention.v_proj."],
        "attention.output.dense.": ["attention.o_proj."],
        "intermediate.dense.": ["mlp.fc1."],
        "output.dense.": ["mlp.fc2."],
        "attention.attention.q_bias": ["attention.attention.query.bias"],
        "attention.attention.v_bias": ["attention.attention.value.bias"],
    }

    def find(number: int, name: str) -> Tensor:
        tried = [name, *(name.replace(old, new[0]) for old, new in spelt.items() if name.startswith(old))]
        for layer in layers:
            for candidate in tried:
                if (full := f"{layer}.{number}.{candidate}") in other:
                    return other[full]
        raise AssertionError(f"no gradient for {name} among {sorted(other)}")

    for number in range(encoder.settings.depth):
        for our, their in BLOCK.items():
            if (key := f"blocks.{number}.{our}") in mine:
                close(mine[key], find(number, their), msg=key)
        for our, parts in FUSED.items():
            if (key := f"blocks.{number}.{our}") in mine:
                close(mine[key], torch.cat([find(number, part) for part in parts]), msg=key)
    projection = "embeddings.patch_embeddings.projection."
    for our, their in {
        "adapter.projection.weight": projection + "weight",
        "adapter.projection.bias": projection + "bias",
    }.items():
        close(mine[our], other[their], msg=our)
    if encoder.prefix is not None:
        close(mine["prefix"][:, :1], other["embeddings.cls_token"])
    if isinstance(encoder.pos, nn.Parameter) and "embeddings.position_embeddings" in other:
        close(mine["pos"], other["embeddings.position_embeddings"][:, encoder.settings.prefix :])
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == set(mine)


def compare_hidden(ours: tuple[Tensor, ...] | None, theirs: tuple[Tensor, ...]) -> None:
    assert ours is not None
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        near(mine, other)


@pytest.mark.parametrize("biased", [True, False])
def test_vit(tmp_path: Path, biased: bool) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**PICTURE, qkv_bias=biased))
    encoder = from_transformers(model, tmp_path)
    assert isinstance(encoder, ViT)
    assert encoder.pooling == "cls"
    assert encoder.settings.positions == "learned"
    view = torch.rand(2, 3, 16, 16)
    ours = encoder(view, hidden=True)
    theirs = model((view - 0.5) / 0.5, output_hidden_states=True)
    assert ours.tokens is not None
    assert ours.prefix is not None
    whole = torch.cat([ours.prefix, ours.tokens], dim=1)
    near(whole, theirs.last_hidden_state)
    near(ours.pooled, theirs.last_hidden_state[:, 0])
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model, whole, theirs.last_hidden_state)


def test_vit_on_another_size_interpolates_positions_as_transformers_does(tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**PICTURE))
    encoder = from_transformers(model, tmp_path)
    view = torch.rand(1, 3, 24, 20)
    theirs = model((view - 0.5) / 0.5, interpolate_pos_encoding=True).last_hidden_state
    ours = encoder(view)
    assert ours.grid == (1, 6, 5)
    near(ours.tokens, theirs[:, 1:])


def test_classifier_checkpoint_without_pooler(tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURE))
    encoder = from_transformers(model, tmp_path)
    view = torch.rand(2, 3, 16, 16)
    near(encoder(view).pooled, model.vit((view - 0.5) / 0.5).last_hidden_state[:, 0])


def test_vit_mae_encoder_with_and_without_masking(tmp_path: Path) -> None:
    small: dict[str, Any] = {f"decoder_{k}": 8 for k in ("hidden_size", "intermediate_size", "num_attention_heads")}
    config = transformers.ViTMAEConfig(**PICTURE, **small, decoder_num_hidden_layers=1, mask_ratio=0.75)
    model = transformers.ViTMAEForPreTraining(config)
    randomise(model)
    # transformers 5.23 leaves the table of a fresh model at zero; this is the one it means, halves swapped as in MAE.
    table = build_2d_sinusoidal_position_embedding(4, 4, 24, cls_token=True)
    model.vit.embeddings.position_embeddings.data.copy_(torch.cat([table[:, 12:], table[:, :12]], dim=1)[None])
    model.eval().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF))
    encoder = Encoder.from_pretrained(tmp_path)
    assert isinstance(encoder, ViT)
    assert encoder.settings.positions == "sincos"
    assert "pos" not in encoder.state_dict()
    view, noise = torch.rand(2, 3, 16, 16), torch.rand(2, 16)
    theirs = model.vit((view - 0.5) / 0.5, noise=noise, output_hidden_states=True)
    keep = noise.argsort(dim=1)[:, :4]
    ours = encoder.encode(encoder.tokenize(view, keep=keep), hidden=True)
    assert ours.tokens is not None
    assert ours.prefix is not None
    whole = torch.cat([ours.prefix, ours.tokens], dim=1)
    near(whole, theirs.last_hidden_state)
    near(encoder.encode(encoder.tokenize(view), keep=keep).tokens, ours.tokens)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model.vit, whole, theirs.last_hidden_state)

    model.vit.embeddings.config.mask_ratio = 0.0  # shuffles the tokens all the same, so they are put back in order
    theirs = model.vit((view - 0.5) / 0.5, noise=noise)
    order = theirs.ids_restore[..., None].expand(-1, -1, 24)
    near(encoder(view).tokens, theirs.last_hidden_state[:, 1:].gather(1, order))


def videomae(mean_pooling: bool = False) -> transformers.VideoMAEConfig:
    return transformers.VideoMAEConfig(**PICTURE, num_frames=4, use_mean_pooling=mean_pooling)


@pytest.mark.parametrize("mean_pooling", [False, True])
def test_videomae(tmp_path: Path, mean_pooling: bool) -> None:
    model = transformers.VideoMAEModel(videomae(mean_pooling))
    encoder = from_transformers(model, tmp_path)
    assert isinstance(encoder, ViT)
    assert encoder.settings.final_norm is not mean_pooling
    view = torch.rand(2, 4, 3, 16, 16)
    mask = torch.rand(2, 32).argsort(dim=1) < 24
    theirs = model((view - 0.5) / 0.5, bool_masked_pos=mask, output_hidden_states=True)
    keep = (~mask).nonzero()[:, 1].view(2, 8)
    ours = encoder.encode(encoder.tokenize(view, keep=keep), hidden=True)
    assert ours.tokens is not None
    near(ours.tokens, theirs.last_hidden_state)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model, ours.tokens, theirs.last_hidden_state)
    near(encoder(view).tokens, model((view - 0.5) / 0.5).last_hidden_state)


def test_vivit_with_its_own_processor(tmp_path: Path) -> None:
    picture = {name: value for name, value in PICTURE.items() if name != "patch_size"}
    config = transformers.VivitConfig(**picture, tubelet_size=[2, 4, 4], num_frames=4, hidden_act="gelu")
    model = transformers.VivitModel(config)
    processor = transformers.VivitImageProcessor(do_resize=False, do_center_crop=False, image_std=[0.2, 0.3, 0.5])
    encoder = from_transformers(model, tmp_path, processor.to_dict())
    assert isinstance(encoder, ViT)
    assert encoder.settings.positions == "learned"
    assert encoder.pooling == "cls"
    view = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    values = torch.cat([processor(list(clip.numpy()), return_tensors="pt").pixel_values for clip in view])
    theirs = model(values.float(), output_hidden_states=True)
    ours = encoder(view, hidden=True)
    assert ours.tokens is not None
    assert ours.prefix is not None
    whole = torch.cat([ours.prefix, ours.tokens], dim=1)
    near(whole, theirs.last_hidden_state)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model, whole, theirs.last_hidden_state)


def test_videomae_old_and_new_bias_names_load_alike(tmp_path: Path) -> None:
    model = transformers.VideoMAEForPreTraining(
        transformers.VideoMAEConfig(
            **PICTURE, num_frames=4, use_mean_pooling=False, decoder_hidden_size=8, decoder_num_attention_heads=2,
            decoder_num_hidden_layers=1, decoder_intermediate_size=8,
        )
    )  # fmt: skip
    from_transformers(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    base = {
        name.replace(".attention.query.bias", ".attention.q_bias").replace(
            ".attention.value.bias", ".attention.v_bias"
        ): tensor
        for name, tensor in weights.items()
    }
    new = {name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): t for name, t in base.items()}
    assert set(base) != set(new)
    view = torch.rand(1, 4, 3, 16, 16)
    expected = model.videomae((view - 0.5) / 0.5).last_hidden_state
    for names in (base, new):
        save_file(names, tmp_path / "model.safetensors", metadata={"format": "pt"})
        near(Encoder.from_pretrained(tmp_path)(view).tokens, expected)


@pytest.mark.parametrize("stride", [8, 5])
def test_ast(tmp_path: Path, stride: int) -> None:
    config = transformers.ASTConfig(
        **TRUNK, patch_size=8, frequency_stride=stride, time_stride=stride, max_length=48, num_mel_bins=24
    )
    model = transformers.ASTModel(config)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=24, max_length=48, mean=-5.0, std=3.0)
    encoder = from_transformers(model, tmp_path, extractor.to_dict())
    assert isinstance(encoder, ViT)
    waves = torch.randn(2, 8000) * 0.1
    values = torch.from_numpy(extractor(list(waves.numpy()), sampling_rate=16000, return_tensors="np").input_values)
    theirs = model(values, output_hidden_states=True)
    ours = encoder(waves, hidden=True)
    assert ours.tokens is not None
    assert ours.prefix is not None
    whole = torch.cat([ours.prefix, ours.tokens], dim=1)
    near(whole, theirs.last_hidden_state)
    near(ours.pooled, theirs.pooler_output)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model, whole, theirs.last_hidden_state)


def test_ijepa(tmp_path: Path) -> None:
    model = transformers.IJepaModel(transformers.IJepaConfig(**PICTURE))
    encoder = from_transformers(model, tmp_path)
    view = torch.rand(2, 3, 16, 16)
    ours = encoder(view)
    assert ours.prefix is None
    assert ours.tokens is not None
    theirs = model((view - 0.5) / 0.5).last_hidden_state
    near(ours.tokens, theirs)
    assert isinstance(encoder, ViT)
    compare_gradients(encoder, model, ours.tokens, theirs)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_resnet_forward_and_gradients_in_both_modes(tmp_path: Path, arch: str) -> None:
    shape = {
        "resnet18": ("basic", (2, 2, 2, 2), (64, 128, 256, 512)),
        "resnet50": ("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048)),
    }
    kind, depths, widths = shape[arch]
    model = transformers.ResNetModel(transformers.ResNetConfig(layer_type=kind, depths=depths, hidden_sizes=widths))
    model.eval().save_pretrained(
        tmp_path
    )  # transformers' initialisation: random weights of any size overflow 50 layers
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**HALF, "size": {"shortest_edge": 64}}))
    encoder = Encoder.from_pretrained(tmp_path)
    assert isinstance(encoder, ConvEncoder)
    assert encoder.arch == arch
    view = torch.rand(2, 3, 64, 64)
    for training in (False, True):
        encoder.train(training), model.train(training)
        ours, theirs = encoder(view, hidden=True), model((view - 0.5) / 0.5, output_hidden_states=True)
        near(ours.feature_map, theirs.last_hidden_state)
        near(ours.pooled, theirs.pooler_output.flatten(1))
        compare_hidden(ours.hidden, theirs.hidden_states)
        mine, other = gradients(encoder, ours.pooled), gradients(model, theirs.pooler_output.flatten(1))
        assert_close(mine["conv1.weight"], other["embedder.embedder.convolution.weight"], rtol=1e-3, atol=1e-3)
        last = "encoder.stages.3.layers.1.layer.1.convolution.weight"
        close(mine["layer4.1.conv2.weight"], other[last])

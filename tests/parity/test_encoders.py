"""Claim: our encoders ARE the models of transformers. With weights of random values read from transformers' own files, outputs, hidden
states and gradients are equal in fp32; written by us, AutoModel loads them with nothing missing or unexpected and the same features."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from mmssl import Encoder
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.files import save_encoder
from mmssl.encoders.layouts import BLOCK, FUSED, layout_of
from mmssl.encoders.vit import ViT, ViTSettings

TRUNK = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
PICTURE = {"image_size": 16, "patch_size": 4, **TRUNK}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def randomise(model: nn.Module) -> None:
    """Every parameter and statistic gets a random value, so that none can be mapped wrongly and go unseen."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim > 1 else 0.1))


def from_transformers(model: nn.Module, folder: Path, processor: dict | None = None) -> Encoder:
    randomise(model)
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or HALF))
    return Encoder.from_pretrained(folder)


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    (value * weight).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare_gradients(encoder: ViT, model: nn.Module, ours: Tensor, theirs: Tensor) -> None:
    """Every gradient of ours equals the one of the same weight in transformers' model (whose names in memory differ from its files)."""
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
                assert_close(mine[key], find(number, their), rtol=1e-4, atol=1e-4, msg=key)
        for our, parts in FUSED.items():
            if (key := f"blocks.{number}.{our}") in mine:
                assert_close(
                    mine[key], torch.cat([find(number, part) for part in parts]), rtol=1e-4, atol=1e-4, msg=key
                )
    projection = "embeddings.patch_embeddings.projection."
    for our, their in {
        "adapter.projection.weight": projection + "weight",
        "adapter.projection.bias": projection + "bias",
    }.items():
        assert_close(mine[our], other[their], rtol=1e-4, atol=1e-4, msg=our)
    if encoder.prefix is not None:
        assert_close(mine["prefix"][:, :1], other["embeddings.cls_token"], rtol=1e-4, atol=1e-4)
    if isinstance(encoder.pos, nn.Parameter) and "embeddings.position_embeddings" in other:
        assert_close(
            mine["pos"], other["embeddings.position_embeddings"][:, encoder.settings.prefix :], rtol=1e-4, atol=1e-4
        )
    assert {name for name, p in encoder.named_parameters() if p.requires_grad} == set(mine)


def compare_hidden(ours: tuple[Tensor, ...] | None, theirs: tuple[Tensor, ...]) -> None:
    assert ours is not None and len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, **TOLERANCE)


@pytest.mark.parametrize("biased", [True, False])
def test_vit(tmp_path: Path, biased: bool) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**PICTURE, qkv_bias=biased))
    encoder = from_transformers(model, tmp_path)
    assert isinstance(encoder, ViT) and encoder.pooling == "cls" and encoder.settings.positions == "learned"
    view = torch.rand(2, 3, 16, 16)
    ours = encoder(view, hidden=True)
    theirs = model((view - 0.5) / 0.5, output_hidden_states=True)
    assert ours.tokens is not None and ours.prefix is not None
    whole = torch.cat([ours.prefix, ours.tokens], dim=1)
    assert_close(whole, theirs.last_hidden_state, **TOLERANCE)
    assert_close(ours.pooled, theirs.last_hidden_state[:, 0], **TOLERANCE)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model, whole, theirs.last_hidden_state)


def test_vit_on_another_size_interpolates_positions_as_transformers_does(tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**PICTURE))
    encoder = from_transformers(model, tmp_path)
    view = torch.rand(1, 3, 24, 20)
    theirs = model((view - 0.5) / 0.5, interpolate_pos_encoding=True).last_hidden_state
    ours = encoder(view)
    assert ours.grid == (1, 6, 5)
    assert_close(ours.tokens, theirs[:, 1:], **TOLERANCE)


def test_classifier_checkpoint_without_pooler(tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURE))
    encoder = from_transformers(model, tmp_path)
    view = torch.rand(2, 3, 16, 16)
    assert_close(encoder(view).pooled, model.vit((view - 0.5) / 0.5).last_hidden_state[:, 0], **TOLERANCE)


def test_vit_mae_encoder_with_and_without_masking(tmp_path: Path) -> None:
    small = {f"decoder_{k}": 8 for k in ("hidden_size", "intermediate_size", "num_attention_heads")}
    config = transformers.ViTMAEConfig(**PICTURE, **small, decoder_num_hidden_layers=1, mask_ratio=0.75)
    model = transformers.ViTMAEForPreTraining(config)
    randomise(model)
    # transformers 5.23 leaves the table of a fresh model at zero; this is the one that it means, halves swapped as in MAE's files.
    table = build_2d_sinusoidal_position_embedding(4, 4, 24, cls_token=True)
    model.vit.embeddings.position_embeddings.data.copy_(torch.cat([table[:, 12:], table[:, :12]], dim=1)[None])
    model.eval().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF))
    encoder = Encoder.from_pretrained(tmp_path)
    assert isinstance(encoder, ViT) and encoder.settings.positions == "sincos" and "pos" not in encoder.state_dict()
    view, noise = torch.rand(2, 3, 16, 16), torch.rand(2, 16)
    theirs = model.vit((view - 0.5) / 0.5, noise=noise, output_hidden_states=True)
    keep = noise.argsort(dim=1)[:, :4]
    ours = encoder.encode(encoder.tokenize(view, keep=keep), hidden=True)
    assert ours.tokens is not None and ours.prefix is not None
    whole = torch.cat([ours.prefix, ours.tokens], dim=1)
    assert_close(whole, theirs.last_hidden_state, **TOLERANCE)
    assert_close(encoder.encode(encoder.tokenize(view), keep=keep).tokens, ours.tokens, **TOLERANCE)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model.vit, whole, theirs.last_hidden_state)

    model.vit.embeddings.config.mask_ratio = 0.0  # shuffles the tokens all the same, so they are put back in order
    theirs = model.vit((view - 0.5) / 0.5, noise=noise)
    order = theirs.ids_restore[..., None].expand(-1, -1, 24)
    assert_close(encoder(view).tokens, theirs.last_hidden_state[:, 1:].gather(1, order), **TOLERANCE)


def videomae(mean_pooling: bool = False) -> transformers.VideoMAEConfig:
    return transformers.VideoMAEConfig(**PICTURE, num_frames=4, use_mean_pooling=mean_pooling)


@pytest.mark.parametrize("mean_pooling", [False, True])
def test_videomae(tmp_path: Path, mean_pooling: bool) -> None:
    model = transformers.VideoMAEModel(videomae(mean_pooling))
    encoder = from_transformers(model, tmp_path)
    assert isinstance(encoder, ViT) and encoder.settings.final_norm is not mean_pooling
    view = torch.rand(2, 4, 3, 16, 16)
    mask = torch.rand(2, 32).argsort(dim=1) < 24
    theirs = model((view - 0.5) / 0.5, bool_masked_pos=mask, output_hidden_states=True)
    keep = (~mask).nonzero()[:, 1].view(2, 8)
    ours = encoder.encode(encoder.tokenize(view, keep=keep), hidden=True)
    assert ours.tokens is not None
    assert_close(ours.tokens, theirs.last_hidden_state, **TOLERANCE)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model, ours.tokens, theirs.last_hidden_state)
    assert_close(encoder(view).tokens, model((view - 0.5) / 0.5).last_hidden_state, **TOLERANCE)


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
        assert_close(Encoder.from_pretrained(tmp_path)(view).tokens, expected, **TOLERANCE)


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
    assert ours.tokens is not None and ours.prefix is not None
    whole = torch.cat([ours.prefix, ours.tokens], dim=1)
    assert_close(whole, theirs.last_hidden_state, **TOLERANCE)
    assert_close(ours.pooled, theirs.pooler_output, **TOLERANCE)
    compare_hidden(ours.hidden, theirs.hidden_states)
    compare_gradients(encoder, model, whole, theirs.last_hidden_state)


def test_ijepa(tmp_path: Path) -> None:
    model = transformers.IJepaModel(transformers.IJepaConfig(**PICTURE))
    encoder = from_transformers(model, tmp_path)
    view = torch.rand(2, 3, 16, 16)
    ours = encoder(view)
    assert ours.prefix is None and ours.tokens is not None
    theirs = model((view - 0.5) / 0.5).last_hidden_state
    assert_close(ours.tokens, theirs, **TOLERANCE)
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
    assert isinstance(encoder, ConvEncoder) and encoder.arch == arch
    view = torch.rand(2, 3, 64, 64)
    for training in (False, True):
        encoder.train(training), model.train(training)
        ours, theirs = encoder(view, hidden=True), model((view - 0.5) / 0.5, output_hidden_states=True)
        assert_close(ours.feature_map, theirs.last_hidden_state, **TOLERANCE)
        assert_close(ours.pooled, theirs.pooler_output.flatten(1), **TOLERANCE)
        compare_hidden(ours.hidden, theirs.hidden_states)
        mine, other = gradients(encoder, ours.pooled), gradients(model, theirs.pooler_output.flatten(1))
        assert_close(mine["conv1.weight"], other["embedder.embedder.convolution.weight"], rtol=1e-3, atol=1e-3)
        last = "encoder.stages.3.layers.1.layer.1.convolution.weight"
        assert_close(mine["layer4.1.conv2.weight"], other[last], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ files we write


def encoders() -> dict[str, Encoder]:
    image, settings = ImageSpec(size=16, patch=4), ViTSettings(width=24, depth=2, heads=3, mlp_ratio=2)
    audio = AudioSpec(mels=24, frames=48, patch=8, stride=8)
    clip = VideoSpec(size=16, frames=4, patch=4)
    return {
        "vit": ViT(ImagePatches(image, 24), settings),
        "vit_learned": ViT(ImagePatches(image, 24), replace(settings, positions="learned", pooling="cls")),
        "ijepa": ViT(ImagePatches(image, 24), replace(settings, prefix=0)),
        "videomae": ViT(VideoTubelets(clip, 24), replace(settings, prefix=0, positions="sincos1d", qkv_bias="qv")),
        "ast": ViT(SpectrogramPatches(audio, 24), replace(settings, prefix=2)),
        "resnet": ConvEncoder(ImagePixels(image), "resnet18"),
    }


def media(encoder: Encoder) -> Tensor:
    torch.manual_seed(3)
    shapes = {"image": (2, 3, 16, 16), "video": (2, 4, 3, 16, 16), "audio": (2, 8000)}
    return torch.rand(shapes[encoder.spec.modality])


def pixel_values(encoder: Encoder, view: Tensor) -> Tensor:
    front = encoder.front if isinstance(encoder, ConvEncoder) else encoder.adapter.front  # type: ignore[attr-defined]
    pixels = front(view)
    return {"image": pixels[:, :, 0], "video": pixels.transpose(1, 2), "audio": pixels[:, 0, 0].mT}[
        encoder.spec.modality
    ]


@pytest.mark.parametrize("name", encoders())
def test_automodel_loads_what_we_write_and_so_do_we(tmp_path: Path, name: str) -> None:
    encoder = encoders()[name]
    randomise(encoder) if name != "resnet" else None
    encoder.eval()
    assert save_encoder(encoder, tmp_path / "ours").reason is None
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    view = media(encoder)
    ours, theirs = encoder(view), model(pixel_values(encoder, view))
    whole = ours.feature_map if ours.tokens is None else ours.tokens
    if ours.prefix is not None:
        whole = torch.cat([ours.prefix, ours.tokens], dim=1)  # type: ignore[list-item]
        if name.startswith("vit"):
            assert_close(theirs.pooler_output, ours.prefix[:, 0], **TOLERANCE)
    assert_close(whole, theirs.last_hidden_state, rtol=0, atol=1e-5)

    again = Encoder.from_pretrained(tmp_path / "ours")
    assert again.spec == encoder.spec and again.pooling == encoder.pooling
    assert again.state_dict().keys() == encoder.state_dict().keys()
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[key]), key
    assert torch.equal(again(view).pooled, ours.pooled)
    if isinstance(encoder, ViT):
        assert isinstance(again, ViT) and again.settings == encoder.settings

    # The very files that transformers' own save_pretrained writes.
    model.save_pretrained(tmp_path / "theirs")
    written, expected = load_file(tmp_path / "ours/model.safetensors"), load_file(tmp_path / "theirs/model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in written)
    config = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs")]
    assert config[0] == config[1]


def test_a_process_that_cannot_import_mmssl_gets_the_same_features(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["mmssl"] = None  # import mmssl fails
from safetensors.torch import load_file, save_file
from transformers import AutoModel
folder = sys.argv[1]
values = load_file(f"{folder}/in.safetensors")
out = {name: AutoModel.from_pretrained(f"{folder}/{name}")(x).last_hidden_state.detach() for name, x in values.items()}
save_file(out, f"{folder}/out.safetensors")
"""
    made = {name: encoder.eval() for name, encoder in encoders().items() if name in ("vit", "videomae", "ast")}
    for name, encoder in made.items():
        encoder.save_pretrained(tmp_path / name)
    values = {name: pixel_values(encoder, media(encoder)).contiguous() for name, encoder in made.items()}
    save_file(values, tmp_path / "in.safetensors")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path, capture_output=True)
    theirs = load_file(tmp_path / "out.safetensors")
    for name, encoder in made.items():
        tokens = encoder(media(encoder)).tokens
        assert_close(tokens, theirs[name][:, -tokens.shape[1] :], rtol=0, atol=1e-5)


def test_positions_that_transformers_trained_on_are_kept(tmp_path: Path) -> None:
    encoder = encoders()["vit"]
    encoder.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    model.embeddings.position_embeddings.data[:, 3] += 1
    model.save_pretrained(tmp_path)
    view = media(encoder)
    moved = Encoder.from_pretrained(tmp_path)
    assert isinstance(moved, ViT) and moved.settings.positions == "learned"
    assert_close(moved(view).tokens, model(pixel_values(moved, view)).last_hidden_state[:, 1:], **TOLERANCE)


def test_what_no_class_expresses_is_said_and_loads_with_mmssl_only(tmp_path: Path) -> None:
    cifar = ConvEncoder(ImagePixels(ImageSpec(size=16)), "resnet18", "cifar")
    assert "cifar" in (layout_of(cifar).reason or "")
    cifar.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mmssl"
    assert torch.equal(Encoder.from_pretrained(tmp_path)(media(cifar)).pooled, cifar.eval()(media(cifar)).pooled)

"""Claim: encoders that we write are Hugging Face models.

AutoModel loads them with nothing missing or unexpected, also where mmssl cannot be imported, gives the same features,
and would write the very same files itself; we read them back bit for bit.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from mmssl import Encoder
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec, WaveformSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.build import build_front
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.efficientnet import EfficientNet, EfficientNetSettings
from mmssl.encoders.files import save_encoder
from mmssl.encoders.layouts import layout_of
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.encoders.vit import ViT, ViTSettings

near = partial(assert_close, rtol=0, atol=1e-5)


def randomise(model: nn.Module) -> None:
    """Every parameter and statistic gets a random value, so that none can be mapped wrongly and go unseen."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = dict(model.state_dict())
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.ndim > 1 else 0.1))


def encoders() -> dict[str, Encoder]:
    image, settings = ImageSpec(size=16, patch=4), ViTSettings(width=24, depth=2, heads=3, mlp_ratio=2)
    audio = AudioSpec(mels=24, frames=48, patch=8, stride=8)
    clip = VideoSpec(size=16, frames=4, patch=4)
    return {
        "vit": ViT(ImagePatches(image, 24), settings),
        "vit_learned": ViT(ImagePatches(image, 24), replace(settings, positions="learned", pooling="cls")),
        "ijepa": ViT(ImagePatches(image, 24), replace(settings, prefix=0)),
        "videomae": ViT(VideoTubelets(clip, 24), replace(settings, prefix=0, positions="sincos1d", qkv_bias="qv")),
        "vivit": ViT(VideoTubelets(clip, 24), replace(settings, positions="learned", pooling="cls")),
        "vivit_separable": ViT(VideoTubelets(clip, 24), replace(settings, positions="separable")),
        "vivit_fixed": ViT(VideoTubelets(clip, 24), replace(settings, positions="sincos1d", qkv_bias="none")),
        "ast": ViT(SpectrogramPatches(audio, 24), replace(settings, prefix=2)),
        "resnet": ConvEncoder(ImagePixels(image), "resnet18"),
    }


def more_of_sound() -> dict[str, Encoder]:
    """Encoders that are taken apart in tests of their own."""
    spec = AudioSpec(front="cola", mels=64, frames=48, mean=0.0, std=127.5)
    waves = WaveformSpec(channels=(8,) * 7)
    trunk = SpeechSettings(width=24, depth=2, heads=3, mlp_ratio=2, position_kernel=8, position_groups=4)
    return {
        "efficientnet": EfficientNet(build_front(spec), EfficientNetSettings(0.25, 0.5)),
        "hubert": SpeechEncoder(waves, trunk),
        "hubert_large": SpeechEncoder(replace(waves, norm="layer"), replace(trunk, pre_norm=True)),
        "wavlm": SpeechEncoder(waves, replace(trunk, arch="wavlm")),
    }


def media(encoder: Encoder) -> Tensor:
    torch.manual_seed(3)
    shapes = {"image": (2, 3, 16, 16), "video": (2, 4, 3, 16, 16), "audio": (2, 8000)}
    return torch.rand(shapes[encoder.spec.modality])


def pixel_values(encoder: Encoder, view: Tensor) -> Tensor:
    if isinstance(encoder, ConvEncoder | EfficientNet):
        return encoder.front(view)[:, :, 0]
    if isinstance(encoder, SpeechEncoder):
        return view
    assert isinstance(encoder, ViT)
    pixels = encoder.adapter.pixels(view)
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
        if name.startswith("vi"):
            near(theirs.pooler_output, ours.prefix[:, 0])
    assert_close(whole, theirs.last_hidden_state, rtol=0, atol=1e-5)

    again = Encoder.from_pretrained(tmp_path / "ours")
    assert again.spec == encoder.spec
    assert again.pooling == encoder.pooling
    assert again.state_dict().keys() == encoder.state_dict().keys()
    for key, tensor in again.state_dict().items():
        if not key.startswith(("pos_space", "pos_time")):  # known from their sum, up to a constant
            assert torch.equal(tensor, encoder.state_dict()[key]), key
    assert_close(again(view).pooled, ours.pooled, rtol=0, atol=1e-5 if name == "vivit_separable" else 0)
    if isinstance(encoder, ViT):
        assert isinstance(again, ViT)
        assert again.settings == encoder.settings

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
    made = {name: encoder.eval() for name, encoder in (encoders() | more_of_sound()).items()}
    for name, encoder in made.items():
        encoder.save_pretrained(tmp_path / name)
    values = {name: pixel_values(encoder, media(encoder)).contiguous() for name, encoder in made.items()}
    save_file(values, tmp_path / "in.safetensors")
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=tmp_path, capture_output=True)
    theirs = load_file(tmp_path / "out.safetensors")
    for name, encoder in made.items():
        found = encoder(media(encoder))
        if found.tokens is None:
            assert_close(found.feature_map, theirs[name], rtol=0, atol=1e-5)
        else:
            assert_close(found.tokens, theirs[name][:, -found.tokens.shape[1] :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "ijepa", "videomae", "vivit", "vjepa2", "ast"])
def test_layer_scale_goes_into_the_weights(tmp_path: Path, name: str) -> None:
    plain = encoders().get(name)
    if plain is None:
        clip = VideoTubelets(VideoSpec(size=16, frames=4, patch=4), 24)
        plain = ViT(clip, ViTSettings(24, 2, 2, prefix=0, positions="rope3d"))
    assert isinstance(plain, ViT)
    encoder = ViT(plain.adapter, replace(plain.settings, layer_scale=0.1)).eval()
    randomise(encoder)
    before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
    layout = save_encoder(encoder, tmp_path)
    assert layout.reason is None
    assert layout.model_type == layout_of(plain).model_type
    assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
    model, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    view = media(encoder)
    ours, pixels = encoder(view), pixel_values(encoder, view)
    theirs = model(pixels, skip_predictor=True) if name == "vjepa2" else model(pixels)
    fold = partial(assert_close, rtol=1e-4, atol=1e-5)  # two products where there was one
    fold(theirs.last_hidden_state[:, -ours.tokens.shape[1] :], ours.tokens)
    again = Encoder.from_pretrained(tmp_path)
    assert isinstance(again, ViT)
    assert again.settings == plain.settings
    fold(again(view).pooled, ours.pooled)


def test_positions_that_transformers_trained_on_are_kept(tmp_path: Path) -> None:
    encoder = encoders()["vit"]
    encoder.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    model.embeddings.position_embeddings.data[:, 3] += 1
    model.save_pretrained(tmp_path)
    view = media(encoder)
    moved = Encoder.from_pretrained(tmp_path)
    assert isinstance(moved, ViT)
    assert moved.settings.positions == "learned"
    near(moved(view).tokens, model(pixel_values(moved, view)).last_hidden_state[:, 1:])


def test_a_table_that_is_no_sum_of_space_and_time_any_more_is_read_whole(tmp_path: Path) -> None:
    encoder = encoders()["vivit_separable"]
    encoder.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    model.embeddings.position_embeddings.data[:, 7] += 1
    model.save_pretrained(tmp_path)
    moved = Encoder.from_pretrained(tmp_path)
    assert isinstance(moved, ViT)
    assert moved.settings.positions == "learned"
    view = media(encoder)
    near(moved(view).tokens, model(pixel_values(moved, view)).last_hidden_state[:, 1:])


def test_what_no_class_expresses_is_said_and_loads_with_mmssl_only(tmp_path: Path) -> None:
    cifar = ConvEncoder(ImagePixels(ImageSpec(size=16)), "resnet18", "cifar")
    assert "cifar" in (layout_of(cifar).reason or "")
    cifar.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mmssl"
    assert torch.equal(Encoder.from_pretrained(tmp_path)(media(cifar)).pooled, cifar.eval()(media(cifar)).pooled)

"""Claim: transformers' own processors make the same pixels as our evaluation view and adapter.

Files of every legal form are read, and whatever cannot be read says which file and what to do.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as F

from mmssl import Encoder
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import LogMel, SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.data.views import ImageCentre, centre_crop
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.files import save_encoder
from mmssl.encoders.layouts import layout_of
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError

SETTINGS = ViTSettings(width=24, depth=2, heads=3, mlp_ratio=2)
IMAGE = ImageSpec(size=16, patch=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def image_vit(settings: ViTSettings = SETTINGS, spec: ImageSpec = IMAGE) -> ViT:
    torch.manual_seed(0)
    return ViT(ImagePatches(spec, 24), settings).eval()


def noise(*shape: int) -> np.ndarray:
    """Smooth random pictures: white noise would hide a resize that is one pixel off behind another one."""
    coarse = np.random.default_rng(0).uniform(0, 255, (*shape[:-3], 9, 9, 3)).astype(np.float32)
    tensor = torch.from_numpy(coarse).movedim(-1, -3)
    big = F.resize(tensor.flatten(0, -4) if tensor.ndim > 3 else tensor, [shape[-3], shape[-2]])
    return big.clamp(0, 255).byte().movedim(-3, -1).numpy().reshape(shape)


@pytest.mark.parametrize("size", [(37, 53), (16, 16), (11, 30)])
def test_image_processor_equals_our_evaluation_view(tmp_path: Path, size: tuple[int, int]) -> None:
    encoder = image_vit()
    encoder.save_pretrained(tmp_path)
    buffer = io.BytesIO()
    Image.fromarray(noise(*size, 3)).save(buffer, "PNG")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    theirs = processor(Image.open(buffer), return_tensors="pt").pixel_values

    view = centre_crop(torch.from_numpy(noise(*size, 3)).movedim(2, 0), 16, ImageCentre(16).interpolation)[None]
    assert_close(theirs, encoder.adapter.pixels(view)[:, :, 0], rtol=0, atol=1e-5)
    assert_close(model(theirs).last_hidden_state[:, 1:], encoder(view).tokens, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("prefix", [0, 1])
def test_video_processors_equal_our_evaluation_view(tmp_path: Path, kind: str, prefix: int) -> None:
    spec = VideoSpec(size=16, frames=4, patch=4)
    settings = replace(SETTINGS, prefix=0, positions="sincos1d", qkv_bias="qv")
    if prefix:  # VivitModel, which takes what VideoMAE's processors make
        settings = replace(SETTINGS, prefix=1, positions="separable")
    encoder = ViT(VideoTubelets(spec, 24), settings).eval()
    encoder.save_pretrained(tmp_path)
    frames = noise(4, 29, 41, 3)
    auto = transformers.AutoImageProcessor if kind == "image" else transformers.AutoVideoProcessor
    theirs = auto.from_pretrained(tmp_path)(list(frames), return_tensors="pt").pixel_values
    view = centre_crop(torch.from_numpy(frames).movedim(3, 1), 16, "bilinear")[None]
    assert_close(theirs, encoder.adapter.pixels(view).transpose(1, 2), rtol=0, atol=1e-5)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    assert_close(model(theirs).last_hidden_state[:, prefix:], encoder(view).tokens, rtol=0, atol=1e-5)


def test_feature_extractor_equals_our_adapter(tmp_path: Path) -> None:
    spec = AudioSpec(rate=8000, mels=24, frames=48, patch=8, stride=8, mean=-3.0, std=2.0)
    encoder = ViT(SpectrogramPatches(spec, 24), replace(SETTINGS, prefix=2)).eval()
    encoder.save_pretrained(tmp_path)
    waves = torch.randn(2, 3000) * 0.1
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    theirs = extractor(list(waves.numpy()), sampling_rate=8000, return_tensors="pt").input_values
    model = transformers.AutoModel.from_pretrained(tmp_path)
    assert_close(model(theirs).last_hidden_state[:, 2:], encoder(waves).tokens, rtol=0, atol=1e-5)


def test_settings_that_only_mmssl_has_survive(tmp_path: Path) -> None:
    made: dict[str, Encoder] = {
        "drop": image_vit(replace(SETTINGS, drop_path=0.1)),
        "scale": image_vit(replace(SETTINGS, layer_scale=1e-4, prefix=2)),
        "clip": ViT(
            VideoTubelets(VideoSpec(16, 4, stride=7, patch=4), 24), replace(SETTINGS, prefix=0, positions="learned")
        ),
        "audio": ViT(SpectrogramPatches(AudioSpec(mels=16, frames=32, patch=8, stride=4), 24), SETTINGS),
        "audio_conv": ConvEncoder(LogMel(AudioSpec(mels=32, frames=64)), "resnet18"),
    }
    for name, encoder in made.items():
        layout = save_encoder(encoder, tmp_path / name, card={"recipe": "image/mae"})
        again = Encoder.from_pretrained(tmp_path / name)
        assert again.spec == encoder.spec
        assert getattr(again, "settings", None) == getattr(encoder, "settings", None)
        for key, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[key])
        assert (layout.reason is None) == (name == "drop")
        card = (tmp_path / name / "README.md").read_text()
        assert "image/mae" in card
        assert ("transformers cannot load it" in card) == (layout.reason is not None)


def test_others_may_read_all_that_is_written(tmp_path: Path) -> None:
    """Every file has the rights that a new file gets here."""
    save_encoder(image_vit(), tmp_path / "encoder")
    (tmp_path / "new").touch()
    rights = {path.name: path.stat().st_mode for path in (tmp_path / "encoder").iterdir()}
    assert "model.safetensors" in rights
    assert set(rights.values()) == {(tmp_path / "new").stat().st_mode}


def test_a_state_dict_from_elsewhere_is_written(tmp_path: Path) -> None:
    encoder, other = image_vit(), image_vit()
    with torch.no_grad():
        other.norm.bias.add_(1)  # type: ignore[operator]
    save_encoder(encoder, tmp_path, state=other.state_dict())
    view = torch.rand(1, 3, 16, 16)
    assert torch.equal(Encoder.from_pretrained(tmp_path)(view).pooled, other(view).pooled)


def test_shards_half_precision_and_run_folders_are_read(tmp_path: Path) -> None:
    encoder = image_vit()
    run = tmp_path / "encoder"
    encoder.save_pretrained(run)
    weights = load_file(run / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name].half() for name in part}, run / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (run / "model.safetensors.index.json").write_text(json.dumps(index))
    (run / "model.safetensors").unlink()
    again = Encoder.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    view = torch.rand(1, 3, 16, 16)
    assert_close(again(view).pooled, encoder(view).pooled, rtol=0, atol=1e-2)
    (run / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="holds no model-00002-of-00002"):
        Encoder.from_pretrained(tmp_path)


def test_a_hub_checkpoint_without_processor_warns(tmp_path: Path) -> None:
    image_vit(replace(SETTINGS, prefix=0)).save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    del model.config.mmssl
    model.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="no mean and std"):
        encoder = Encoder.from_pretrained(tmp_path / "theirs")
    assert encoder.spec == ImageSpec(size=16, patch=4)


def test_hub_names_are_downloaded_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    encoder = image_vit()
    encoder.save_pretrained(tmp_path)
    asked = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    view = torch.rand(1, 3, 16, 16)
    assert torch.equal(Encoder.from_pretrained("someone/encoder")(view).pooled, encoder(view).pooled)
    there = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "modeling_x.py",
        "training_args.bin",
    ]
    wanted = list(filter_repo_objects(there, allow_patterns=asked["someone/encoder"]))
    assert wanted == ["config.json", "model.safetensors"]


def edit_weights(folder: Path, change: dict[str, Tensor | None]) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    save_file(weights, folder / "model.safetensors")


def edit_config(folder: Path, **change: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_missing_unexpected_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    image_vit().save_pretrained(tmp_path)
    edit_weights(tmp_path, {"layernorm.bias": None, "surprise": torch.ones(1), "layernorm.weight": torch.ones(5)})
    with pytest.raises(
        UserError, match=r"1 missing: norm.bias; 1 unexpected: surprise; 1 of another shape: norm.weight"
    ):
        Encoder.from_pretrained(tmp_path)
    image_vit().save_pretrained(tmp_path)
    edit_weights(tmp_path, {"encoder.layer.1.attention.attention.key.bias": None})
    with pytest.raises(UserError, match=r"blocks.1.attn.qkv.bias"):
        Encoder.from_pretrained(tmp_path)
    image_vit().save_pretrained(tmp_path)
    edit_weights(tmp_path, {"embeddings.cls_token": None})
    with pytest.raises(UserError, match="prefix"):
        Encoder.from_pretrained(tmp_path)


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*absent"):
        Encoder.from_pretrained(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no config.json"):
        Encoder.from_pretrained(tmp_path)

    image_vit().save_pretrained(tmp_path)
    edit_config(tmp_path, model_type="bert")
    with pytest.raises(UserError, match=r"'bert'.*vit, vit_mae, ijepa, videomae"):
        Encoder.from_pretrained(tmp_path)

    image_vit().save_pretrained(tmp_path)
    edit_config(tmp_path, mmssl=None, hidden_act="relu")
    with pytest.raises(UserError, match="'relu'"):
        Encoder.from_pretrained(tmp_path)

    image_vit().save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())["mmssl"]
    edit_config(tmp_path, mmssl=facts | {"version": "9.0", "settings": facts["settings"] | {"rope": True}})
    with pytest.raises(UserError, match=r"mmssl 9.0 .*rope"):
        Encoder.from_pretrained(tmp_path)

    image_vit().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"Only safetensors are read"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is not valid JSON"):
        Encoder.from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        image_vit().save_pretrained(tmp_path / "file" / "encoder")


@pytest.mark.parametrize(
    ("changes", "model_type"),
    [
        ({}, "vit"),
        ({"prefix": 0}, "ijepa"),
        ({"qkv_bias": "none"}, "vit"),
        ({"prefix": 2}, "mmssl"),
        ({"qkv_bias": "qv"}, "mmssl"),
        ({"final_norm": False}, "mmssl"),
        ({"layer_scale": 0.1}, "vit"),
        ({"layer_scale": 0.1, "prefix": 2}, "mmssl"),
    ],
)
def test_layout_of_pictures(changes: dict[str, object], model_type: str) -> None:
    layout = layout_of(image_vit(replace(SETTINGS, **changes)))  # type: ignore[arg-type]
    assert layout.model_type == model_type
    assert (layout.reason is None) == (model_type != "mmssl")


def test_resnet_file_without_batch_counters_is_read(tmp_path: Path) -> None:
    encoder = ConvEncoder(ImagePixels(IMAGE), "resnet18").eval()
    encoder.save_pretrained(tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if name.endswith("num_batches_tracked")]
    assert names
    edit_weights(tmp_path, dict.fromkeys(names))
    view = torch.rand(1, 3, 16, 16)
    assert torch.equal(Encoder.from_pretrained(tmp_path)(view).pooled, encoder(view).pooled)

"""Tokenizers for an encoder's views: codes of every kind of tokenizer are those that an independent computation gives
on the crop at the tokenizer's size; DALL-E's, as transformers holds it, is read and equals transformers' own; and one
of another grid, another modality, another extent or of whole recordings is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig
from transformers.models.flava.image_processing_flava import FlavaImageProcessor

from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_adapter, build_encoder
from mmssl.encoders.vit import ViTSettings
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.targets.dvae import CodeViT
from mmssl.targets.features import Features, MfccFeatures, PatchFeatures, feature_text
from mmssl.targets.units import write_units
from mmssl.targets.views import open_tokenizer
from tests.media import pixels


def encoder_of(spec: Spec, **settings: object) -> Encoder:
    return build_encoder(spec, EncoderSettings(width=16, depth=1, heads=2, **settings))  # type: ignore[arg-type]


def units(folder: Path, features: Features, codes: int = 9) -> Path:
    """A folder as target making leaves it; the centroids are drawn."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    book = Codebook(torch.randn(codes, features.width, generator=generator), feature_text(features.describe()))
    book.save(folder / "codebook.safetensors")
    timing = features.timing
    about = {
        "codes": codes,
        "codebook": book.sha256,
        "features": features.describe(),
        "encoder": features.source,
        "rate": timing and timing.rate,
        "hop": timing and timing.hop,
        "window": timing and timing.window,
    }
    write_units(folder, ["a"], np.array([1]), iter([np.zeros(1, np.int64)]), about)
    return folder


def views(batch: int = 3, side: int = 32) -> torch.Tensor:
    """uint8 [B,3,H,W]."""
    return torch.stack([torch.from_numpy(pixels(side, side, seed)).permute(2, 0, 1) for seed in range(batch)])


def test_patches_of_the_same_crop_at_half_its_size(tmp_path: Path) -> None:
    """Against Pillow's resizing and a search in NumPy; resizing in another way moves some features a little."""
    own = ImageSpec(size=16, patch=4)
    tokenizer = open_tokenizer(units(tmp_path, PatchFeatures(own)), encoder_of(ImageSpec(size=32, patch=8)))
    view = views()
    codes = tokenizer(view)
    assert (codes.shape, codes.dtype) == ((3, 16), torch.int64)
    small = [Image.fromarray(v.permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC) for v in view]
    x = (np.stack([np.asarray(picture) for picture in small]) / 255 - own.mean) / own.std  # [B,16,16,3]
    x = x.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, -1)
    centroids = Codebook.load(tmp_path / "codebook.safetensors").centroids.numpy()
    expected = ((x[:, :, None] - centroids) ** 2).sum(-1).argmin(-1)
    assert (codes.numpy() == expected).mean() > 0.95
    assert len(np.unique(expected)) > 2
    floats = tokenizer(view.float() / 255)
    assert torch.equal(floats, codes), "the same picture after a device view"
    assert tokenizer.codebook.sha256 == Codebook.load(tmp_path / "codebook.safetensors").sha256


def test_clips_are_resized_frame_by_frame(tmp_path: Path) -> None:
    own, spec = VideoSpec(size=16, frames=4, patch=8), VideoSpec(size=32, frames=4, patch=16)
    trunk = encoder_of(spec, prefix=0, positions="sincos1d", qkv_bias="qv")
    tokenizer = open_tokenizer(units(tmp_path, PatchFeatures(own)), trunk)
    frames = views(4).unsqueeze(0)
    flipped = frames.flip(1)
    codes = tokenizer(torch.cat([frames, flipped]))
    assert codes.shape == (2, 8)
    alone = open_tokenizer(tmp_path, trunk)(flipped)
    assert torch.equal(codes[1:], alone)


def test_discrete_vae_of_a_run(tmp_path: Path) -> None:
    """OUT or OUT/encoder."""
    own = ImageSpec(size=16, patch=4)
    settings = ViTSettings(width=16, depth=2, heads=2, prefix=0, final_norm=False)
    model = CodeViT(build_adapter(own, 16), settings, 12).eval()
    with torch.no_grad():
        model.codes.mul_(4)
    model.save_pretrained(tmp_path / "encoder")
    trunk = encoder_of(own)
    view = views(3, 16)
    with torch.no_grad():
        tokens = model(view).tokens
        assert tokens is not None
        expected = torch.cdist(tokens.double(), model.codes.double()).argmin(-1)
    for folder in (tmp_path, tmp_path / "encoder"):
        tokenizer = open_tokenizer(folder, trunk).train()
        assert torch.equal(tokenizer(view), expected)
        assert len(tokenizer.codebook) == 12
    assert len(expected.unique()) > 2


@pytest.fixture(scope="module")
def dalle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of DALL-E's shape, small and untrained, as transformers writes it."""
    folder = tmp_path_factory.mktemp("dalle")
    torch.manual_seed(0)
    network = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, vocab_size=50))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    network.save_pretrained(folder)
    return folder


def test_dalles_tokenizer_equals_transformers(dalle: Path) -> None:
    trunk = encoder_of(ImageSpec(size=32, patch=8))
    tokenizer = open_tokenizer(dalle, trunk)
    view = views()
    codes = tokenizer(view)
    processor: Any = FlavaImageProcessor()
    found = processor(
        list(view), return_codebook_pixels=True, codebook_do_resize=False,
        codebook_do_center_crop=False, return_tensors="pt",
    )  # fmt: skip
    network = FlavaImageCodebook.from_pretrained(dalle)
    with torch.no_grad():
        expected = network.get_codebook_indices(found["codebook_pixel_values"]).flatten(1)
    assert torch.equal(codes, expected)
    assert len(codes.unique()) > 3
    assert len(tokenizer.codebook) == 50
    doubled = views(2, 64)
    assert open_tokenizer(dalle, encoder_of(ImageSpec(size=64, patch=16)))(doubled).shape == (2, 16), "112 for 224"


def test_codes_of_another_network_are_another_codebook(dalle: Path, tmp_path: Path) -> None:
    network = FlavaImageCodebook.from_pretrained(dalle)
    with torch.no_grad():
        next(iter(network.parameters())).add_(1)
    network.save_pretrained(tmp_path)
    trunk = encoder_of(ImageSpec(size=32, patch=8))
    assert open_tokenizer(dalle, trunk).codebook.sha256 != open_tokenizer(tmp_path, trunk).codebook.sha256


SOUND = AudioSpec(mels=16, frames=32, patch=8, stride=8)


@pytest.mark.parametrize(
    ("features", "spec", "said"),
    [
        (PatchFeatures(ImageSpec(size=16, patch=8)), ImageSpec(size=32, patch=8), r"grid of \(1, 2, 2\).*\(1, 4, 4\)"),
        (PatchFeatures(SOUND), ImageSpec(size=32, patch=8), "is for audio, and the encoder for image"),
        (MfccFeatures(), SOUND, "each 160 samples of whole recordings"),
        (PatchFeatures(SOUND), AudioSpec(rate=8000, mels=16, frames=32, patch=8, stride=8), "at 16000 Hz.*at 8000 Hz"),
    ],
)
def test_what_does_not_fit_is_refused(features: Features, spec: Spec, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        open_tokenizer(units(tmp_path, features), encoder_of(spec))


def test_clips_of_another_length_are_refused(tmp_path: Path) -> None:
    """The same grid over twice the frames."""
    own, spec = VideoSpec(size=16, frames=8, tubelet=4, patch=8), VideoSpec(size=16, frames=4, patch=8)
    trunk = encoder_of(spec, prefix=0, positions="sincos1d")
    with pytest.raises(UserError, match="tubes of 4 x 8 of 8 frames"):
        open_tokenizer(units(tmp_path, PatchFeatures(own)), trunk)


def test_no_tokenizer_or_a_broken_one(tmp_path: Path, dalle: Path) -> None:
    trunk = encoder_of(ImageSpec(size=32, patch=8))
    with pytest.raises(UserError, match=r"no tokenizer is named.*--units"):
        open_tokenizer(None, trunk)
    with pytest.raises(UserError, match="There is no folder"):
        open_tokenizer(tmp_path / "none", trunk)
    with pytest.raises(UserError, match="has none: choose a ViT"):
        open_tokenizer(dalle, encoder_of(ImageSpec(size=32), arch="resnet18"))
    with pytest.raises(UserError, match="is for images"):
        open_tokenizer(dalle, encoder_of(SOUND))
    (tmp_path / "config.json").write_bytes((dalle / "config.json").read_bytes())
    with pytest.raises(UserError, match="holds no tokenizer that can be read"):
        open_tokenizer(tmp_path, trunk)
    (tmp_path / "model.safetensors").write_bytes((dalle / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="holds no tokenizer that can be read"):
        open_tokenizer(tmp_path, trunk)

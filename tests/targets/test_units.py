"""Claim: units come back as they were written, by id, in every process; what is not whole, not theirs or
damaged is told. A tokenizer gives the codes that an independent NumPy search of the nearest centroid gives."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import Features, LayerFeatures, MfccFeatures, PatchFeatures, feature_text, features_from
from mmssl.targets.tokenizer import Tokenizer, load_tokenizer
from mmssl.targets.units import Units, write_units

SMALL = EncoderSettings(width=32, depth=3, heads=2, prefix=1)


def codebook(features: Features, codes: int = 7) -> Codebook:
    generator = torch.Generator().manual_seed(0)
    return Codebook(torch.randn(codes, features.width, generator=generator), feature_text(features.describe()))


def write(folder: Path, labels: dict[str, list[int]], codes: int = 7, features: Features | None = None) -> Units:
    features = features or MfccFeatures()
    book = codebook(features, codes)
    book.save(folder / "codebook.safetensors")
    timing = features.timing
    about: dict[str, Any] = {
        "codes": codes,
        "codebook": book.sha256,
        "features": features.describe(),
        "encoder": features.source,
        "rate": timing and timing.rate,
        "hop": timing and timing.hop,
        "window": timing and timing.window,
    }
    arrays = [np.array(values, np.int64) for values in labels.values()]
    return write_units(folder, list(labels), np.array([len(a) for a in arrays]), iter(arrays), about)


LABELED = {"b/2.wav": [3, 1, 4], "a/1.wav": [], "ünï.ogg": [1, 5, 2, 6]}


def test_written_and_found_by_id(tmp_path: Path) -> None:
    write(tmp_path, LABELED)
    for units in (Units.open(tmp_path), pickle.loads(pickle.dumps(Units.open(tmp_path)))):
        for name, expected in LABELED.items():
            assert units.of(name).tolist() == expected
            assert name in units
        assert (units.codes, units.hop, units.window, units.rate_in) == (7, 160, 400, 16000)
        assert "c" not in units
        with pytest.raises(KeyError, match="holds no units of c"):
            units.of("c")
        units.verify()
    assert len(pickle.dumps(units)) < 5000  # a worker gets the name of the folder, not the labels
    assert np.load(tmp_path / "units.npy").dtype == np.int16
    assert not list(tmp_path.glob(".*"))


def test_many_codes_need_32_bits(tmp_path: Path) -> None:
    assert write(tmp_path / "a", {"x": [32767]}, 32768).of("x").dtype == np.int16
    assert write(tmp_path / "b", {"x": [32768]}, 32769).of("x").tolist() == [32768]


def test_what_is_not_whole_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        Units.open(tmp_path / "none")
    with pytest.raises(UserError, match="goes on with the same command"):
        Units.open(tmp_path)
    write(tmp_path, LABELED)
    content = (tmp_path / "units.npy").read_bytes()
    (tmp_path / "units.npy").write_bytes(content[:-2] + b"\0\0")
    with pytest.raises(UserError, match="other content than was written"):
        Units.open(tmp_path).verify()
    (tmp_path / "units.npy").write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"units\.npy cannot be read"):
        Units.open(tmp_path)
    np.save(tmp_path / "units.npy", np.zeros(3, np.int16))
    with pytest.raises(UserError, match="another length"):
        Units.open(tmp_path)
    (tmp_path / "units.npy").write_bytes(content)
    codebook(MfccFeatures(), 9).save(tmp_path / "codebook.safetensors")
    with pytest.raises(UserError, match="is not the codebook that the units"):
        Units.open(tmp_path)
    (tmp_path / "units.json").write_text("{")
    with pytest.raises(UserError, match=r"units\.json cannot be read"):
        Units.open(tmp_path)
    (tmp_path / "units.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="is of version 99"):
        Units.open(tmp_path)


AUDIO = AudioSpec(mels=16, frames=32, mean=-8.0)
SPECS: dict[str, ImageSpec | VideoSpec | AudioSpec] = {
    "image": ImageSpec(16, 8),
    "video": VideoSpec(16, 4, 2, patch=8),
    "audio": AUDIO,
}


def views(modality: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if modality == "image":
        return torch.randint(0, 256, (2, 3, 16, 16), generator=generator, dtype=torch.uint8)
    if modality == "video":
        return torch.randint(0, 256, (2, 4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    sound = torch.rand(2, AUDIO.samples, generator=generator) - 0.5
    return sound * torch.tensor([[1e-4], [1.0]])


@pytest.mark.parametrize("modality", list(SPECS))
def test_tokenizer_of_patches(tmp_path: Path, modality: str) -> None:
    """The nearest of the codes, searched by hand; the patches are those that the adapter reconstructs."""
    spec = SPECS[modality]
    features = PatchFeatures(spec)
    write(tmp_path, LABELED, features=features)
    tokenizer, view = load_tokenizer(tmp_path), views(modality)
    pixels = features.adapter.pixels(view)
    patches = features.adapter.patches(pixels)
    assert torch.equal(features.adapter.unpatches(patches), pixels)
    x = patches.flatten(2).double().numpy()
    far = ((x[:, :, None] - tokenizer.centroids.double().numpy()) ** 2).sum(-1)
    codes = tokenizer(view)
    assert codes.dtype == torch.int64
    assert codes.shape == (2, int(np.prod(features.adapter.grid)))
    assert (codes.numpy() == far.argmin(-1)).all()
    assert tokenizer.codes == 7
    assert len(codes.unique()) > 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer(view), codes)  # in a training step, too


@pytest.mark.parametrize("modality", list(SPECS))
def test_layer_of_an_encoder(tmp_path: Path, modality: str) -> None:
    spec = SPECS[modality]
    settings = SMALL if modality == "image" else EncoderSettings(width=36, depth=3, heads=2, positions="sincos1d")
    encoder = build_encoder(spec, settings).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    view = views(modality)
    with torch.no_grad():
        states = encoder(view, hidden=True).hidden
    write(tmp_path / "units", LABELED, features=LayerFeatures(encoder, 2, tmp_path / "encoder"))
    assert not any(name.startswith("blocks.2") for name in encoder.state_dict())  # what lies above is not computed
    assert states is not None
    expected = states[2][:, settings.prefix :]  # 0 is what enters the first block
    tokenizer = load_tokenizer(tmp_path / "units").train()
    torch.testing.assert_close(tokenizer.features(view), expected)
    distances = torch.cdist(expected.double(), tokenizer.centroids.double())
    assert torch.equal(tokenizer(view), distances.argmin(-1))
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not any(module.training for module in tokenizer.modules())


def test_codebook_of_another_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = (build_encoder(SPECS["image"], SMALL) for _ in range(2))
    first.save_pretrained(tmp_path / "encoder")
    write(tmp_path / "units", LABELED, features=LayerFeatures(first, 2, tmp_path / "encoder"))
    (tmp_path / "encoder").rename(tmp_path / "moved")
    assert load_tokenizer(tmp_path / "units", encoder=tmp_path / "moved").codes == 7  # the same model elsewhere
    second.save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="encoder is another one"):
        load_tokenizer(tmp_path / "units")
    with pytest.raises(UserError, match="name the folder that holds both"):
        Tokenizer(
            LayerFeatures(Encoder.from_pretrained(tmp_path / "moved"), 1),
            Codebook.load(tmp_path / "units" / "codebook.safetensors"),
        )


def test_descriptions_are_of_what_matters() -> None:
    descriptions = [
        *(PatchFeatures(spec).describe() for spec in SPECS.values()),
        PatchFeatures(ImageSpec(16, 4)).describe(),
        MfccFeatures().describe(),
    ]
    assert len({feature_text(description) for description in descriptions}) == 5
    for description in descriptions:
        again = json.loads(json.dumps(description))
        assert features_from(again).describe() == description
    encoder = build_encoder(SPECS["image"], SMALL)
    for layer in (0, 4):
        with pytest.raises(UserError, match="layers 1 to 3"):
            LayerFeatures(encoder, layer)
    assert LayerFeatures(copy.deepcopy(encoder), 1).describe() != LayerFeatures(encoder, 2).describe()
    with pytest.raises(UserError, match="no numbered layers"):
        LayerFeatures(build_encoder(SPECS["image"], EncoderSettings(arch="resnet18")), 1)
    with pytest.raises(UserError, match="choose mfcc, patches or layer"):
        features_from({"kind": "fbank"})

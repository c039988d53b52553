"""Claim: positions='rope3d' is V-JEPA 2's trunk.

With equal weights, transformers' VJEPA2Model gives our features, hidden states and gradients: on whole clips, on the
tokens that a mask keeps, and on clips of other sizes. Its files are read, and ours are read by AutoModel with nothing
missing, whose processor makes the pixels of our evaluation view.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.transforms.v2 import functional as F

from mmssl import Encoder
from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.data.views import centre_crop
from mmssl.encoders.key_maps import VJEPA2_BLOCK, VJEPA2_FUSED, VJEPA2_TRUNK
from mmssl.encoders.layouts import VJEPA2, layout_of
from mmssl.encoders.positions import rope_3d, turn
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from tests.parity.test_written_encoders import randomise

SHAPE: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "mlp_ratio": 50 / 48, "patch_size": 4,
    "crop_size": 16, "frames_per_clip": 4, "pred_hidden_size": 12, "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
}  # fmt: skip
"""Heads of 16 channels: 4 turn by frame, 4 by row, 4 by column and 4 stay."""
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}


def pair(folder: Path) -> tuple[transformers.VJEPA2Model, ViT]:
    """A random model of transformers, and ours read from the files that it writes."""
    model = transformers.VJEPA2Model(transformers.VJEPA2Config(**SHAPE))
    randomise(model)
    model.eval().save_pretrained(folder)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(HALF))
    encoder = Encoder.from_pretrained(folder)
    assert isinstance(encoder, ViT)
    return model, encoder


def theirs(model: transformers.VJEPA2Model, view: Tensor) -> Any:
    return model((view - 0.5) / 0.5, skip_predictor=True, output_hidden_states=True)


def compare_gradients(encoder: ViT, model: nn.Module, ours: Tensor, other: Tensor) -> None:
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weight).sum().backward()
    (other * weight).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    names: dict[str, list[str]] = {ours: [name] for ours, name in VJEPA2_TRUNK.items()}
    for number in range(3):
        layer = f"encoder.layer.{number}."
        names |= {f"blocks.{number}.{ours}": [layer + name] for ours, name in VJEPA2_BLOCK.items()}
        names |= {f"blocks.{number}.{ours}": [layer + n for n in parts] for ours, parts in VJEPA2_FUSED.items()}
    parameters = dict(encoder.named_parameters())
    assert set(names) == set(parameters)
    for name, parameter in parameters.items():
        expected = torch.cat([found[part] for part in names[name]])  # type: ignore[misc]
        assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_features_hidden_states_and_gradients(tmp_path: Path) -> None:
    model, encoder = pair(tmp_path)
    assert encoder.settings.positions == "rope3d"
    assert encoder.blocks[0].mlp.fc1.out_features == 50  # type: ignore[union-attr]
    view = torch.rand(2, 4, 3, 16, 16)
    ours, other = encoder(view, hidden=True), theirs(model, view)
    assert_close(ours.tokens, other.last_hidden_state, rtol=0, atol=1e-5)
    assert ours.hidden is not None
    assert len(ours.hidden) == len(other.hidden_states) == 4
    for mine, state in zip(ours.hidden, other.hidden_states, strict=True):
        assert_close(mine, state, rtol=0, atol=1e-5)
    compare_gradients(encoder, model, ours.tokens, other.last_hidden_state)  # type: ignore[arg-type]


def test_kept_tokens_keep_their_places(tmp_path: Path) -> None:
    """transformers' layers on the kept tokens, told where these stood (position_mask)."""
    model, encoder = pair(tmp_path)
    view = torch.rand(2, 4, 3, 16, 16)
    keep = torch.rand(2, 32).argsort(1)[:, :9]
    hidden = model.encoder.embeddings((view - 0.5) / 0.5)
    hidden = hidden.gather(1, keep[..., None].expand(-1, -1, 48))
    for layer in model.encoder.layer:
        hidden = layer(hidden, keep)[0]
    expected = model.encoder.layernorm(hidden)
    ours = encoder.encode(encoder.tokenize(view, keep=keep)).tokens
    assert_close(ours, expected, rtol=0, atol=1e-5)
    assert_close(encoder.encode(encoder.tokenize(view), keep=keep).tokens, expected, rtol=0, atol=1e-5)
    compare_gradients(encoder, model, ours, expected)  # type: ignore[arg-type]


def test_clips_of_other_sizes(tmp_path: Path) -> None:
    """No position has a weight: a model of another size and length with the same weights is the reference."""
    model, encoder = pair(tmp_path)
    other = transformers.VJEPA2Model(transformers.VJEPA2Config(**{**SHAPE, "crop_size": 24, "frames_per_clip": 6}))
    other.load_state_dict(model.state_dict())
    view = torch.rand(1, 6, 3, 24, 24)
    expected = theirs(other.eval(), view).last_hidden_state
    assert_close(encoder(view).tokens, expected, rtol=0, atol=1e-5)
    keep = torch.rand(1, 108).argsort(1)[:, :20]
    picked = encoder.encode(encoder.tokenize(view), keep=keep).tokens
    assert_close(encoder.encode(encoder.tokenize(view, keep=keep)).tokens, picked, rtol=0, atol=1e-6)
    assert encoder(torch.rand(1, 4, 3, 8, 24)).grid == (2, 2, 6)


def test_what_we_write_is_a_vjepa2_model(tmp_path: Path) -> None:
    spec = VideoSpec(size=16, frames=4, patch=4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    encoder = ViT(VideoTubelets(spec, 48), ViTSettings(48, 2, 3, 50 / 48, prefix=0, positions="rope3d"))
    randomise(encoder)
    encoder.eval().save_pretrained(tmp_path / "ours")
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert isinstance(model, transformers.VJEPA2Model)
    assert not any(info.values()), info
    frames = torch.randint(0, 256, (4, 3, 6, 9), dtype=torch.uint8)
    frames = F.resize(frames, [29, 41])  # smooth, so that a resize that is one pixel off shows
    processor = transformers.AutoVideoProcessor.from_pretrained(tmp_path / "ours")
    values = processor(list(frames.movedim(1, 3).numpy()), return_tensors="pt")
    view = centre_crop(frames, 16, "bilinear")[None]
    assert_close(values.pixel_values_videos, encoder.adapter.pixels(view).transpose(1, 2), rtol=0, atol=1e-5)
    ours = encoder(view)
    assert_close(model(**values).last_hidden_state, ours.tokens, rtol=0, atol=1e-5)
    again = Encoder.from_pretrained(tmp_path / "ours")
    assert isinstance(again, ViT)
    assert again.settings == encoder.settings
    assert again.spec == spec
    assert torch.equal(again(view).pooled, ours.pooled)
    model.save_pretrained(tmp_path / "theirs")
    config = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs")]
    assert config[0] == config[1]


def test_turning_by_hand() -> None:
    """One token at frame 1, row 0, column 2 of a head of 8 channels: 2 turn by each, 2 stay."""
    rope = rope_3d((2, 2, 3), 8)
    x = torch.arange(1.0, 9.0).view(1, 1, 1, 8)
    token = turn(x, rope[:, 8:9])[0, 0, 0]  # 1*6 + 0*3 + 2
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    expected = [
        1 * one.cos() - 2 * one.sin(), 2 * one.cos() + 1 * one.sin(), 3.0, 4.0,
        5 * two.cos() - 6 * two.sin(), 6 * two.cos() + 5 * two.sin(), 7.0, 8.0,
    ]  # fmt: skip
    assert_close(token, torch.stack([torch.as_tensor(value) for value in expected]))
    assert turn(x.bfloat16(), rope[:, 8:9]).dtype == torch.bfloat16


def test_what_does_not_fit_is_refused_or_ours() -> None:
    rope = ViTSettings(48, 1, 3, prefix=0, positions="rope3d")
    image = ViT(ImagePatches(ImageSpec(size=16, patch=4), 48), rope)
    assert layout_of(image).model_type == "mmssl"
    assert image(torch.rand(1, 3, 16, 16)).grid == (1, 4, 4)
    clip = VideoTubelets(VideoSpec(16, 4, patch=4), 48)
    assert layout_of(ViT(clip, rope)) is VJEPA2
    with pytest.raises(UserError, match="prefix=0"):
        ViT(clip, ViTSettings(48, 1, 3, positions="rope3d"))
    with pytest.raises(UserError, match="6 channels a head"):
        ViT(clip, ViTSettings(48, 1, 12, prefix=0, positions="rope3d"))

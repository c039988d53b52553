"""The features of what the masked recipes on clips write are those that transformers computes from the files. MAE-ST is
a VivitModel there, since it has a CLS token and learned positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.encoders.base import Encoder
from tests.recipes.samples import sample_media
from tests.runs import pretrain


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_media(tmp_path_factory.mktemp("samples") / "video", "video")


@pytest.mark.parametrize(
    ("recipe", "transformers_class"), [("video/mae_st", "VivitModel"), ("video/simmim", "VideoMAEModel")]
)
def test_encoder_is_read_by_transformers(recipe: str, transformers_class: str, clips: Path, tmp_path: Path) -> None:
    pretrain(recipe, clips, tmp_path / "run", "--steps", "2")
    folder = tmp_path / "run" / "encoder"
    ours, theirs = Encoder.from_pretrained(folder).eval(), AutoModel.from_pretrained(folder).eval()
    assert type(theirs).__name__ == transformers_class
    view = torch.rand(2, 4, 3, 32, 32)
    spec = ours.spec
    assert isinstance(spec, ImageSpec | VideoSpec)
    pixels = (view - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).last_hidden_state
        actual = ours(view)
    assert actual.tokens is not None
    torch.testing.assert_close(actual.tokens, expected[:, -actual.tokens.shape[1] :], rtol=1e-4, atol=1e-5)

"""What the masked recipes on clips write can be judged: kNN on their encoders runs, and the features are those that
transformers computes from the files. MAE-ST is a VivitModel there, since it has a CLS token and learned positions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mmssl import cli
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.encoders.base import Encoder
from tests.runs import make_media, pretrain


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("video"), "video", files=8)


@pytest.mark.parametrize(
    ("recipe", "transformers_class"), [("video/mae_st", "VivitModel"), ("video/simmim", "VideoMAEModel")]
)
def test_encoder_is_judged_and_read_by_transformers(
    recipe: str, transformers_class: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))
    pretrain(recipe, clips, tmp_path / "run", "--steps", "2")
    folder = tmp_path / "run" / "encoder"
    options = f"--encoder {folder} --data {clips} --out {tmp_path / 'knn.json'} --k 3 --workers 0"
    cli.main(["evaluate", "knn", *options.split()])
    result = json.loads((tmp_path / "knn.json").read_text())
    assert 0 <= result["trained"]["top1"] <= 1
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

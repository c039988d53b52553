"""docs/add-an-objective.md is true: its code, saved as one file, trains, resumes, exports and is read by transformers.

The loss is compared with a float64 re-computation in NumPy of the cross-entropy over the four turns.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from mmssl.adapters.specs import ImageSpec
from mmssl.cli import main
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.training.recipe import load_recipe
from mmssl.types import Batch
from tests.media import make_image_tree

PAGE = Path(__file__).parents[2] / "docs" / "add-an-objective.md"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "rotation.py"
    path.write_text(code, encoding="utf-8")
    return path


def test_the_page_runs_resumes_and_exports(recipe: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    make_image_tree(data, each=4)
    vit = "--encoder.arch vit --encoder.width 32 --encoder.depth 1 --encoder.heads 2 --input.size 32 --input.patch 8"
    rest = "--batch-size 4 --epochs 2 --workers 0 --log-every 1"
    command = f"pretrain {recipe} --data {data} --out {out} {vit} {rest}".split()
    main(command)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    assert all(0 <= entry["accuracy"] <= 1 for entry in steps)
    before = (out / "metrics.jsonl").read_text()
    main(command)  # finished: the same command again changes nothing
    assert (out / "metrics.jsonl").read_text() == before
    model, report = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.hidden_size == 32
    assert (out / "report.html").stat().st_size > 1000


def test_the_loss_is_the_cross_entropy_over_four_turns(recipe: Path) -> None:
    module = load_recipe(str(recipe))
    torch.manual_seed(0)
    small = EncoderSettings(arch="vit", width=32, depth=1, heads=2)
    objective = module.Rotation(build_encoder(ImageSpec(size=16, patch=8), small, None)).eval()
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    output = objective(Batch(views={"view": images}, index=torch.arange(3)))
    terms = []
    for turn in range(4):
        turned = torch.from_numpy(np.rot90(images.numpy(), turn, (2, 3)).copy())
        with torch.no_grad():
            logits = objective.head(objective.encoder(turned).pooled).double().numpy()
        shifted = logits - logits.max(1, keepdims=True)
        terms.append(np.log(np.exp(shifted).sum(1)) - shifted[:, turn])
    assert output.loss.item() == pytest.approx(np.concatenate(terms).mean(), abs=1e-6)
    assert output.count.item() == 12

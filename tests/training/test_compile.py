"""--compile changes how blocks are computed and nothing else: losses of a run equal those without it, probes (other
batch sizes, evaluation mode) compile nothing, and where compiling is impossible one sentence says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from mmssl.errors import UserError
from mmssl.training.start import compile_blocks
from tests.runs import make_media, metrics, pretrain

OPTIONS = [
    "--steps",
    "4",
    "--probe-every",
    "2",
    "--encoder.drop-path",
    "0",
    "--base-lr",
    "0.001",
]  # drop path draws otherwise compiled


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", ["image/mae", "video/videomae"])
def test_losses_equal_those_without(recipe: str, tmp_path: Path) -> None:
    media = make_media(tmp_path / "media", recipe.split("/")[0])
    pretrain(recipe, media, tmp_path / "eager", *OPTIONS)
    counters.clear()
    torch.compiler.reset()
    pretrain(recipe, media, tmp_path / "compiled", *OPTIONS, "--compile")
    # Encoder and decoder see one shape each: two compilations, however many blocks and probes.
    assert counters["stats"]["unique_graphs"] == 2
    plain, compiled = (
        [line["loss"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("eager", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="--compile on a CPU needs a C\\+\\+ compiler"):
        compile_blocks(torch.nn.Linear(1, 1), torch.device("cpu"))

"""--precision bf16: networks run in bf16, losses in fp32. What each loss function was given is recorded in a real run,
and its result compared with float64 NumPy: products in bf16 would be wrong in the third digit. A precision that the
device does not have is refused; Accelerate alone would train in another one without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.objectives import contrastive, masked_autoencoder, moco
from mmssl.objectives.info_nce import InfoNCE
from tests.runs import make_media, metrics, pretrain


def double(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def info_nce_float64(
    anchors: Tensor, positives: Tensor, candidates: Tensor, temperature: float, ignore: Tensor | None
) -> float:
    negative = double(anchors) @ double(candidates).T / temperature
    if ignore is not None:
        np.put_along_axis(negative, ignore.numpy(), -np.inf, axis=1)
    positive = (double(anchors) * double(positives)).sum(1) / temperature
    return float((np.logaddexp(positive, np.logaddexp.reduce(negative, axis=1)) - positive).mean())


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, float]]:
    """(loss, the same in float64) of every call of a loss function."""
    found: list[tuple[Tensor, float]] = []
    mse, nce = masked_autoencoder.reconstruction_loss, contrastive.info_nce

    def watch_mse(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert prediction.dtype == torch.bfloat16
        assert (target != target.bfloat16().float()).any(), "targets were rounded to bf16"
        loss, count = mse(prediction, target, weight)
        found.append((loss, float(np.square(double(prediction) - double(target)).mean())))
        return loss, count

    def watch_nce(a: Tensor, p: Tensor, c: Tensor, *, temperature: float, ignore: Tensor | None = None) -> InfoNCE:
        exact = info_nce_float64(a, p, c, temperature, ignore)
        found.append((nce(a, p, c, temperature=temperature, ignore=ignore).loss, exact))
        return nce(a, p, c, temperature=temperature, ignore=ignore)

    monkeypatch.setattr(masked_autoencoder, "reconstruction_loss", watch_mse)
    monkeypatch.setattr(contrastive, "info_nce", watch_nce)
    monkeypatch.setattr(moco, "info_nce", watch_nce)
    return found


@pytest.mark.parametrize("recipe", ["image/mae", "image/simclr", "image/moco_v2", "audio/contrastive"])
def test_losses_are_fp32_under_bf16(recipe: str, pairs: list[Any], tmp_path: Path) -> None:
    data, more = make_media(tmp_path / "data", recipe.split("/")[0]), ("--steps", "2", "--batch-size", "4")
    pretrain(recipe, data, tmp_path / "half", *more, "--precision", "bf16")
    assert len(pairs) == 2
    for loss, exact in pairs:
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(exact, rel=1e-5)
    half = [line["loss"] for line in metrics(tmp_path / "half")]
    assert half == [pytest.approx(float(loss), rel=1e-6) for loss, _ in pairs]
    assert all(line["skipped_steps"] == 0 for line in metrics(tmp_path / "half"))


def test_networks_do_run_in_bf16(tmp_path: Path) -> None:
    """The first loss, before any step, differs from fp32's by about the precision of bf16; and the precision of a run
    does not stick to the next one in the same process."""
    data = make_media(tmp_path / "data", "image")
    for name, precision in (("whole", ["--precision", "no"]), ("half", ["--precision", "bf16"]), ("default", [])):
        pretrain("image/simclr", data, tmp_path / name, "--steps", "1", *precision)
    whole, half, default = (metrics(tmp_path / name)[0]["loss"] for name in ("whole", "half", "default"))
    assert whole == default != half
    assert half == pytest.approx(whole, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
@pytest.mark.parametrize("asked", ["option", "configuration"])
def test_fp16_is_refused_on_a_cpu(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_media(tmp_path / "data", "image", 2)
    if asked == "configuration":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(SystemExit) as caught:
        pretrain("image/mae", data, tmp_path / "run", *(["--precision", "fp16"] if asked == "option" else []))
    assert caught.value.code == 2
    assert "fp16 needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""The discrete VAE, as the command line runs it on real pictures: it is trained, goes on where it was stopped, shows
its pictures, tells how its codes are used, and leaves a tokenizer that gives one code a patch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl.adapters.specs import ImageSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.targets.views import open_tokenizer
from mmssl.training.recipe import load_recipe
from tests.recipes.samples import RUN, check_going_on, sample_media
from tests.runs import metrics, options, pretrain, side_by_side


def test_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = sample_media(tmp_path / "data", "image"), tmp_path / "run"
    pretrain("image/dvae", data, out, *RUN)
    assert "only mmssl.Encoder will load it" in capsys.readouterr().err
    lines = metrics(out)
    assert [line["temperature"] for line in lines] == pytest.approx([1.0, 0.53125, 0.0625]), "half of 3 steps is 2"
    for line in lines:
        assert line["loss"] == pytest.approx(line["error"] + 1e-3 * line["divergence"], rel=1e-5)
        assert 1 <= line["code_perplexity"] <= 16
        assert 0 < line["codes_used"] <= 1
    check_going_on("image/dvae", data, out)
    assert list((out / "pictures").glob("*reconstruction*"))
    assert (out / "report.html").stat().st_size > 10_000
    assert Encoder.from_pretrained(out / "encoder").spec == ImageSpec(size=16, patch=4)
    for size in (16, 32):  # one's own size, and twice that
        encoder = build_encoder(ImageSpec(size=size, patch=size // 4), EncoderSettings(width=32, depth=1, heads=2))
        codes = open_tokenizer(out, encoder)(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
        assert codes.shape == (2, 16)
        assert 0 <= codes.min() <= codes.max() < 16


def test_it_is_not_begun_from_a_checkpoint(tmp_path: Path) -> None:
    module = load_recipe("image/dvae")
    with pytest.raises(UserError, match="trained from the beginning"):
        module.build(module.Settings(data="x", out=tmp_path, init="somewhere"))


@pytest.mark.heavy
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """The draws of the codes are each sample's own, and BEiT's tokenizer is in every process."""
    data = sample_media(tmp_path / "data", "image")
    # SGD, since Adam makes a step of the sign of what is rounding; drop path is each process's own.
    more = ("--steps", "2", "--optimizer", "sgd", "--base-lr", "0.01", "--encoder.drop-path", "0")
    for port, recipe in ((29681, "image/dvae"), (29682, "image/beit")):
        given = more if recipe == "image/dvae" else (*more, "--units", str(tmp_path / "image/dvae/one"))
        given = given if recipe == "image/dvae" else (*given, "--input.size", "16", "--input.patch", "4")
        one, two = tmp_path / recipe / "one", tmp_path / recipe / "two"
        pretrain(recipe, data, one, *given)
        assert side_by_side(2, port, options(recipe, data, two, *given)) == [0, 0]
        for name in ("loss", "grad_norm"):
            expected, found = ([line[name] for line in metrics(out)] for out in (one, two))
            assert found == pytest.approx(expected, rel=1e-4), name

"""Claims: ABX errors are those of counting every triple; warping finds the cheapest of all paths (tried one by one) and
its mean; an encoder that hears pitch tells tones apart and one that hears nothing does not. Real sound files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmssl import cli
from mmssl.adapters.specs import AudioSpec
from mmssl.data.sources import open_source
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.evaluation.speech.abx import abx, abx_errors, dtw_distances, nearest, pooled_distances, warp
from mmssl.evaluation.speech.discrimination import DiscriminationSettings, abx_interval, count_frames, discriminate
from mmssl.report.reading import read_evaluations
from mmssl.types import Encoded
from tests.evaluation.standins import write_tones

SPEC = AudioSpec(mels=16, frames=64, patch=8, stride=8)


def test_errors_are_those_of_every_triple() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 14)
    labels[0] = 3  # an only child
    distances = rng.integers(0, 6, (14, 14)).astype(float)  # ties
    distances = distances + distances.T
    expected = []
    for name in range(3):
        items = []
        for x in np.flatnonzero(labels == name):
            rates = []
            for other in {0, 1, 2, 3} - {name}:
                wrong = [
                    float(distances[x, b] < distances[x, a]) + 0.5 * float(distances[x, b] == distances[x, a])
                    for a in np.flatnonzero(labels == name)
                    for b in np.flatnonzero(labels == other)
                    if a != x
                ]
                rates.append(np.mean(wrong))
            items.append(np.mean(rates))
        expected.append(np.mean(items))
    errors = abx_errors(distances, labels)
    assert np.isnan(errors[0])
    assert abx(errors, labels) == pytest.approx(np.mean(expected))
    low, high = abx_interval([errors], labels, 0)
    assert low < abx(errors, labels) < high
    assert abx_interval([errors, errors], labels, 0) == (0.0, 0.0)


def test_warping_is_the_cheapest_of_all_paths() -> None:
    rng = np.random.default_rng(1)
    local = rng.random((3, 4, 4))
    rows, columns = np.array([4, 3, 2]), np.array([4, 2, 4])

    def paths(i: int, j: int) -> list[list[tuple[int, int]]]:
        if (i, j) == (0, 0):
            return [[(0, 0)]]
        before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        return [[*path, (i, j)] for a, b in before if a >= 0 and b >= 0 for path in paths(a, b)]

    found = warp(local, rows, columns)
    for one, height, width, value in zip(local, rows, columns, found, strict=True):
        every = paths(height - 1, width - 1)
        cheapest = min(every, key=lambda path: sum(one[place] for place in path))
        assert value == pytest.approx(np.mean([one[place] for place in cheapest]))


def test_distances_are_angles_and_warping_ignores_pace() -> None:
    east, north = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    items = [np.stack(one) for one in ([east, north], [east, east, east, north], [north, east], [-east, -north])]
    warped, pooled = dtw_distances(items), pooled_distances(items)
    assert warped[0, 1] == pytest.approx(0, abs=1e-3)
    assert warped[0, 2] > 0.3
    assert warped[0, 3] == pytest.approx(1, abs=1e-3)
    assert pooled[0, 2] == pytest.approx(0, abs=1e-6)
    assert pooled[0, 3] == pytest.approx(1)
    assert nearest(warped, np.array([7, 7, 8, 9]))[0] == 7
    np.testing.assert_array_equal(warped, warped.T)


class Ear(Encoder):
    """Hears the spectrum of each of 20 parts of a second, or nothing at all."""

    pooling = "mean"

    def __init__(self, deaf: bool) -> None:
        super().__init__()
        self.width, self.spec, self.deaf = 401, AudioSpec(frames=98), deaf
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, view: torch.Tensor, *, lengths: torch.Tensor | None = None, hidden: bool = False) -> Encoded:
        parts = view[:, :15920].unflatten(1, (20, 796))
        spectrum = torch.fft.rfft(torch.randn_like(parts) if self.deaf else parts, n=800).abs() + self.anything
        return Encoded(pooled=spectrum.mean(1), tokens=spectrum, grid=(1, 1, 20))


def test_hearing_tells_tones_apart(tmp_path: Path) -> None:
    write_tones(tmp_path / "data", per_class=8)
    given = DiscriminationSettings(encoder="x", data="y", out=tmp_path / "a.json", workers=0, items=6)
    result = discriminate([Ear(deaf=False), Ear(deaf=True)], open_source(tmp_path / "data", "audio"), given)
    assert result["distance"] == "dtw"
    assert result["trained"]["abx_error"] < 0.1
    assert result["trained"]["top1"] == 1.0
    assert 0.3 < result["untrained"]["abx_error"] < 0.7
    low, high = result["difference"]["abx_error_interval"]
    assert low < result["difference"]["abx_error"] < high < 0
    assert result["data"]["examples"]["test"] == 12
    again = discriminate([Ear(deaf=False), Ear(deaf=True)], open_source(tmp_path / "data", "audio"), given)
    assert again["trained"] == result["trained"]


def test_command_on_layers_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tones(tmp_path / "data", per_class=4)
    torch.manual_seed(0)
    vit = build_encoder(SPEC, EncoderSettings(width=16, depth=2, heads=2, prefix=2))
    vit.save_pretrained(tmp_path / "encoder")
    build_encoder(SPEC, EncoderSettings(arch="resnet18", stem="cifar")).save_pretrained(tmp_path / "conv")
    given = f"--data {tmp_path / 'data'} --out {tmp_path / 'a.json'} --workers 0 --items 3".split()
    for encoder, more, distance in (("encoder", ["--layer", "1"], "dtw"), ("conv", ["--distance", "mean"], "mean")):
        cli.main(["evaluate", "discrimination", "--encoder", str(tmp_path / encoder), *given, *more])
        result = json.loads((tmp_path / "a.json").read_text())
        assert result["distance"] == distance
        assert 0 <= result["trained"]["abx_error"] <= 1
        assert "ABX error, trained" in capsys.readouterr().out
    (read,) = read_evaluations(tmp_path)
    assert [one.measure for one in read.results] == ["top-1", "balanced accuracy", "ABX error"]
    assert read.results[-1].chance == 0.5
    assert replace(read.results[-1], gain_interval=(-0.2, -0.1)).verdict == "better than untrained"
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "discrimination", "--encoder", str(tmp_path / "encoder"), *given, "--layer", "3"])
    assert "states 0 to 2" in capsys.readouterr().err
    (tmp_path / "lonely" / "one").mkdir(parents=True)
    (tmp_path / "lonely" / "one" / "a.wav").write_bytes((tmp_path / "data" / "low" / "0.wav").read_bytes())
    with pytest.raises(UserError, match="two or more classes"):
        discriminate(
            [vit],
            open_source(tmp_path / "lonely", "audio"),
            DiscriminationSettings(encoder="x", data="y", out=tmp_path / "b.json"),
        )


def test_padding_is_no_frame() -> None:
    vit = build_encoder(SPEC, EncoderSettings(width=16, depth=1, heads=2))
    assert count_frames(vit, 8, 100_000) == 8
    assert count_frames(vit, 8, 1) == 1
    assert count_frames(vit, 8, 760 + 2 * 1280 + 1) == 3

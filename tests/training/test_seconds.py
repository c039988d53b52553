"""Claims: a recipe by seconds of audio trains on batches of several lengths, says how much of the audio its buckets
use, counts what it trained on, goes on from a checkpoint and on two processes with the same losses; its learning rate
goes by --batch-seconds; --batch-size is no option of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tyro

from mmssl.data.crops_audio import samples_of
from mmssl.errors import UserError
from mmssl.training.seconds import SettingsBySeconds
from tests.media import make_audio
from tests.runs import metrics, side_by_side

RECIPE = '''
from dataclasses import dataclass, field

import torch

from mmssl.adapters.specs import AudioSpec
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.base import Objective
from mmssl.training.recipe import Parts, main
from mmssl.training.seconds import SettingsBySeconds
from mmssl.types import ObjectiveOutput


class Loudness(Objective):
    """Tell how loud a crop is."""

    views = ("view",)

    def __init__(self, encoder):
        super().__init__(encoder)
        self.head = torch.nn.Linear(encoder.width, 1)

    def loss(self, batch):
        view = batch.views["view"]
        error = (self.head(self.encoder(view).pooled)[:, 0] - view.abs().mean(1)).square().mean()
        count = error.new_tensor(float(view.numel()))
        return ObjectiveOutput(error, count, {"samples": error.new_tensor(float(view.shape[1]))})


@dataclass(kw_only=True)
class Settings(SettingsBySeconds):
    input: AudioSpec = field(default_factory=lambda: AudioSpec(mels=16, frames=32, patch=8, stride=8))


def build(settings):
    trunk = EncoderSettings(arch="vit", width=16, depth=1, heads=2)
    views = settings.views()
    return Parts(Loudness(build_encoder(settings.input, trunk, None)), views, plan=settings.plan(views))


if __name__ == "__main__":
    main(Settings, build)
'''
RUN = ["--batch-seconds", "4", "--min-seconds", "0.2", "--max-seconds", "1", "--buckets", "3", "--accumulate", "2"]
RUN += ["--steps", "6", "--log-every", "1", "--save-every", "2", "--probe-every", "0", "--workers", "0"]
TIMES = {"samples_per_s", "audio_s_per_s", "data_wait"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("seconds")
    for number in range(20):
        make_audio(folder / "data" / f"{number}.wav", 0.15 + 0.06 * number, seed=number)
    (folder / "loudness.py").write_text(RECIPE)
    return ["pretrain", str(folder / "loudness.py"), "--data", str(folder / "data"), *RUN]


def losses(out: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in metrics(out)]


def test_trains_resumes_and_shares_out(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmssl import cli

    out = tmp_path / "run"
    cli.main([*arguments, "--out", str(out)])
    told = capsys.readouterr().err
    assert "3 bucket(s) of 0.20 to 0.98 s: 75.3% of the audio is heard a pass." in told
    assert "1 of 20 recordings are shorter than --min-seconds 0.2: left out." in told
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert len({line["samples"] for line in lines}) > 2  # lengths differ from step to step
    assert all(400 <= line["samples"] <= samples_of(49) for line in lines)
    assert all(line["audio_s_per_s"] < 4 * line["samples_per_s"] for line in lines)

    again = tmp_path / "again"
    shutil.copytree(out, again)
    shutil.rmtree(again / "checkpoints/step-00000006")
    cli.main([*arguments, "--out", str(again)])
    assert losses(again) == losses(out)

    two = tmp_path / "two"
    assert side_by_side(2, 29731, [*arguments, "--out", str(two)]) == [0, 0]
    for ours, theirs in zip(losses(two), losses(out), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_dry_run(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmssl import cli

    cli.main([*arguments, "--out", str(tmp_path / "dry"), "--dry-run"])
    told = capsys.readouterr().out
    assert "data: 19 files, " in told
    assert "view view float32 [" in told


def test_settings() -> None:
    common = {"data": "x", "out": Path("y")}
    settings = SettingsBySeconds(**common, batch_seconds=700.0, base_lr=5e-4, min_lr=1e-4)  # type: ignore[arg-type]
    assert settings.lr == pytest.approx(1.25e-4)
    assert settings.last_lr == pytest.approx(2.5e-5)
    settings.check(world=8)
    with pytest.raises(UserError, match=r"--batch-seconds is 0 .*above 0"):
        SettingsBySeconds(**common, batch_seconds=0.0).check(1)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        tyro.cli(SettingsBySeconds, args=["--data", "x", "--out", "y", "--batch-size", "8"])
    assert tyro.cli(SettingsBySeconds, args=["--data", "x", "--out", "y", "--buckets", "4"]).buckets == 4
    assert settings.views().max_frames == 781

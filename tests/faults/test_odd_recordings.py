"""Claim: one command makes units of, and trains HuBERT on, a folder in which recordings of a hundredth and a tenth of a
second, in stereo at 44.1 kHz and of many minutes (three hours) at 8 kHz lie side by side: each has as many units as its
length says, what is too short to train on is left out and said, and crops come from all parts of the long one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.data.sources import open_source
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.targets.units import Units
from mmssl.types import Batch, ObjectiveOutput
from tests.media import make_audio, tone
from tests.runs import metrics, pretrain

RATE = 8000


def write_long(file: Path, minutes: int) -> None:
    """Ten minutes of a tone that is another one every second, again and again."""
    piece = np.concatenate([tone(200 + 3 * second, 1.0, RATE, second) for second in range(600)])
    with soundfile.SoundFile(file, "w", RATE, 1) as opened:
        for start in range(0, minutes, 10):
            opened.write(piece[: (min(minutes - start, 10)) * 60 * RATE])


@pytest.mark.parametrize("minutes", [4, pytest.param(180, marks=pytest.mark.heavy)])
def test_very_short_and_very_long(
    minutes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    make_audio(data / "click.wav", 0.01)
    make_audio(data / "short.wav", 0.1)
    make_audio(data / "stereo.flac", 1.5, rate=44100, channels=2)
    write_long(data / "long.flac", minutes)
    starts: list[float] = []
    plain = MaskedPrediction.loss

    def noted(self: MaskedPrediction, batch: Batch) -> ObjectiveOutput:
        starts.extend(batch.targets["start"].flatten().tolist())
        return plain(self, batch)

    monkeypatch.setattr(MaskedPrediction, "loss", noted)
    pretrain("audio/hubert", data, out, "--clusters", "8", "--steps", "12", "--fit-frames", "3000")
    told = capsys.readouterr().err
    assert "2 of 4 recordings are shorter than --min-seconds 0.3: left out." in told
    units, source = Units.open(out / "units"), open_source(data, "audio")
    counts = {source.id(row): len(units.of(source.id(row))) for row in source.rows()}
    samples = {"click.wav": 160, "short.wav": 1600, "stereo.flac": 24000, "long.flac": minutes * 60 * 16000}
    assert counts == {name: max(0, (count - 400) // 160 + 1) for name, count in samples.items()}
    assert units.about["empty"] == 1
    assert len(np.unique(units.of("long.flac"))) > 4
    lines = metrics(out)
    assert len(lines) == 12
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert all(line["skipped_files"] == line["skipped_steps"] == 0 for line in lines)
    assert min(starts) < 0.25 * 60 * minutes
    assert max(starts) > 0.75 * 60 * minutes

"""Claims: the probe of windows cuts recordings as COLA's official code does (training windows of 16000 samples at
random, test windows of 15680 one after the other, the last one filled with zeros), and a recording's answer is that of
the mean of its windows' logits, re-computed here window by window. Real files, read back by soundfile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl import cli
from mmssl.adapters.specs import AudioSpec, ImageSpec
from mmssl.data.media import Media, Record
from mmssl.data.sources import open_source
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.evaluation.features import extract
from mmssl.evaluation.labels import file_labels
from mmssl.evaluation.probes.linear import linear_probe
from mmssl.evaluation.probes.windows import AllWindows, WindowsSettings, mean_by_group, shuffled_files, window_views
from mmssl.report.reading import read_evaluations
from tests.evaluation.standins import write_tones

SPEC = AudioSpec(front="cola", mels=64, frames=98, mean=0.0, std=5.0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def given(tmp_path: Path, **more: object) -> WindowsSettings:
    values: dict = {"encoder": str(tmp_path / "encoder"), "data": str(tmp_path / "data"), "out": tmp_path / "w.json"}
    return WindowsSettings(**(values | {"workers": 0, "draws": 3, "epochs": 1} | more))


def test_windows_are_the_official_ones(tmp_path: Path) -> None:
    encoder = build_encoder(SPEC, EncoderSettings(arch="resnet18", stem="cifar"))
    fit, test = window_views(encoder, given(tmp_path))
    assert (fit.samples, fit.per_file) == (16000, 3)  # type: ignore[attr-defined]
    assert isinstance(test, AllWindows)
    assert test.samples == 15680
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 40000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    media = Media(Record("a.wav", "audio", "a.wav", frames=40000, rate=16000.0, backend="soundfile"), tmp_path)
    found = test(media, np.random.default_rng(0))
    assert [sample.lengths["view"] for sample in found] == [15680, 15680, 8640]
    joined = torch.cat([sample.views["view"] for sample in found]).numpy()
    np.testing.assert_array_equal(joined, np.pad(wave, (0, 3 * 15680 - 40000)))


def test_logits_of_windows_are_averaged(tmp_path: Path) -> None:
    write_tones(tmp_path / "data", per_class=8)
    for file in sorted((tmp_path / "data").rglob("*.wav"))[::2]:  # some are three windows long
        wave, rate = soundfile.read(file)
        soundfile.write(file, np.tile(wave, 3)[:40000], rate)
    torch.manual_seed(0)
    encoder = build_encoder(SPEC, EncoderSettings(arch="resnet18", stem="cifar")).eval()
    encoder.save_pretrained(tmp_path / "encoder")
    options = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / 'w.json'} --workers 0"
    cli.main(
        [
            "evaluate",
            "windows",
            *options.split(),
            "--draws",
            "3",
            "--epochs",
            "1",
            "--rates",
            "0.03",
            "--decays",
            "0.01",
        ]
    )
    (read,) = read_evaluations(tmp_path)
    assert [one.evaluation for one in read.results] == ["windows", "windows"]

    source = open_source(tmp_path / "data", "audio")
    task, fit = file_labels(source, 0), window_views(encoder, given(tmp_path))[0]
    train = extract(encoder, source, task.train, views=fit, each=True)
    assert len(train.x) == 3 * len(task.train)
    labels = torch.tensor([task.classes.index(str(label)) for label in train.labels])
    head = linear_probe(
        torch.from_numpy(train.x), labels, classes=2, groups=train.rows, rates=(0.03,), decays=(0.01,), epochs=1
    )
    right = 0
    for row in task.test:
        wave, _ = soundfile.read(tmp_path / "data" / source.id(int(row)), dtype="float32")
        wave = np.pad(wave, (0, -len(wave) % 15680)).reshape(-1, 15680)
        with torch.no_grad():
            logits = head.logits(encoder(torch.from_numpy(wave)).pooled).mean(0)
        right += task.classes[int(logits.argmax())] == source.label(int(row))
    assert read.results[0].trained == pytest.approx(right / len(task.test))


def test_means_and_shuffles_are_by_file() -> None:
    rows = np.array([4, 4, 2, 7, 7, 7])
    values = np.arange(12.0).reshape(6, 2)
    np.testing.assert_allclose(mean_by_group(rows, values), [[4, 5], [1, 2], [8, 9]])
    labels = np.array([0, 0, 1, 2, 2, 2])
    found = {tuple(shuffled_files(rows, labels, seed)) for seed in range(20)}
    assert len(found) == 6
    assert all(one[0] == one[1] and one[3] == one[4] == one[5] for one in found)


def test_what_makes_no_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--draws is 1 or more"):
        given(tmp_path, draws=0).check()
    with pytest.raises(UserError, match="leave out --labels"):
        given(tmp_path, clips=2).check()
    build_encoder(ImageSpec(size=16, patch=8), EncoderSettings(width=16, depth=1, heads=2)).save_pretrained(
        tmp_path / "encoder"
    )
    with pytest.raises(UserError, match="this encoder takes image"):
        given(tmp_path).run()

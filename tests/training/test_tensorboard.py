"""Claims: --tensorboard writes what metrics.jsonl holds, read back by TensorBoard's own reader, also over a restart;
without it nothing is written; without the package the run says so; nothing in OUT is a pickle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmssl.training import start
from tests.runs import make_media, metrics, pretrain


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("data"), "image")


def test_scalars_equal_the_metrics(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain("image/mae", data, out, "--steps", "4", "--save-every", "2", "--tensorboard", "--probe-every", "2")
    # As if killed after step 4, before its checkpoint was whole: steps 3 and 4 are logged twice.
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    pretrain("image/mae", data, out, "--steps", "4", "--save-every", "2", "--tensorboard", "--probe-every", "2")
    files = [file for file in (out / "tensorboard").rglob("*") if file.is_file()]
    assert len(files) == 2
    assert all(file.name.startswith("events.out.tfevents.") for file in files)
    reader = EventAccumulator(str(files[0].parent)).Reload()
    for name in ("loss", "lr", "probe/effective_rank", "probe/chance"):
        logged = [(line["step"], line[name]) for line in metrics(out) if name in line]
        read = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in reader.Scalars(name)]
        assert logged == read, name
    assert [event.step for event in reader.Scalars("loss")] == [1, 2, 3, 4]
    for file in out.rglob("*"):  # pickles begin with PROTO, torch.save's zips with PK
        assert not file.is_file() or file.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"), file


def test_nothing_without_it(data: Path, tmp_path: Path) -> None:
    pretrain("image/mae", data, tmp_path / "run", "--steps", "1")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not list(tmp_path.rglob("events.*"))


def test_missing_package(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "is_tensorboard_available", lambda: False)
    with pytest.raises(SystemExit):
        pretrain("image/mae", data, tmp_path / "run", "--tensorboard")
    assert "pip install 'mmssl[tensorboard]'" in capsys.readouterr().err

"""A run killed with SIGKILL at any step, or stopped with Ctrl-C, and restarted by the same command logs the same losses
and ends with the same weights, bit for bit, as one left alone; also with another number of loader workers.

The reference is the run left alone. Drop path is on, so that generators that were not restored would show.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import end_at, make_media, metrics, pretrain, session, start, trace


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("data"), "image")


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    pretrain("image/mae", data, out, "--save-every", "2")
    return out


def assert_same(out: Path, reference: Path) -> None:
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert trace(out) == trace(reference)
    for file in ("model", "optimizer", "random"):
        ours = load_file(out / f"checkpoints/step-00000006/{file}.safetensors")
        theirs = load_file(reference / f"checkpoints/step-00000006/{file}.safetensors")
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name


def test_losses_differ_from_step_to_step(alone: Path) -> None:
    """Otherwise the comparisons below could not fail."""
    losses = [line["loss"] for line in metrics(alone)]
    assert len(set(losses)) == 6
    assert losses[-1] < losses[0]


def test_the_last_checkpoints_are_kept(alone: Path) -> None:
    """Of those after steps 2, 4 and 6 the last two, which is the default; and nothing half written."""
    assert sorted(path.name for path in (alone / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_killed_at_any_step(data: Path, alone: Path, tmp_path: Path) -> None:
    step = random.randrange(1, 6)
    out = tmp_path / "run"
    process = start("image/mae", data, out, "--save-every", "2", "--workers", "1", start_new_session=True)
    end_at(process, out, step, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not session(process.pid), "its loader worker went with it"
    pretrain("image/mae", data, out, "--save-every", "2")  # without workers this time
    assert_same(out, alone)


def test_interrupted(data: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("image/mae", data, out, "--save-every", "100", "--workers", "1")
    end_at(process, out, 1, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To go on:" in errors
    assert f"--out {out}" in errors
    assert "Traceback" not in errors
    done = metrics(out)[-1]["step"]
    assert 1 <= done < 6
    assert [folder.name for folder in (out / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    pretrain("image/mae", data, out, "--save-every", "2", "--workers", "1")
    assert_same(out, alone)


def test_seed_and_weights_decide(data: Path, alone: Path, tmp_path: Path) -> None:
    pretrain("image/mae", data, tmp_path / "run", "--seed", "1", "--steps", "1")
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(alone)[0]["loss"]


def test_accumulation_changes_nothing(data: Path, alone: Path, tmp_path: Path) -> None:
    """8 micro-batches of 1 sample give what 1 of 8 gives, for an objective without in-batch negatives and without drop
    path, whose draws go by micro-batch."""
    for accumulate in ("1", "8"):
        pretrain(
            "image/mae",
            data,
            tmp_path / accumulate,
            "--accumulate",
            accumulate,
            "--encoder.drop-path",
            "0",
            "--clip",
            "0.1",
        )
    one, eight = metrics(tmp_path / "1"), metrics(tmp_path / "8")
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close([line[name] for line in one], [line[name] for line in eight], rtol=1e-5, atol=1e-6)
    assert one[0]["grad_norm"] > 0.1  # clipping took place


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", ["image/simclr", "image/moco_v2", "video/videomae", "audio/contrastive"])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_killed_heavy(recipe: str, step: int, tmp_path: Path) -> None:
    data = make_media(tmp_path / "data", recipe.split("/")[0])
    pretrain(recipe, data, tmp_path / "alone", "--save-every", "2")
    process = start(recipe, data, tmp_path / "run", "--save-every", "2", "--workers", "2")
    end_at(process, tmp_path / "run", step, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    pretrain(recipe, data, tmp_path / "run", "--save-every", "2")
    assert_same(tmp_path / "run", tmp_path / "alone")

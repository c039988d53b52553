"""Claim: a batch without a finite loss on one process of two is skipped by both, counted once and leaves no trace;
where no other batches come, both end together in one sentence instead of waiting for each other."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.training import loop
from mmssl.types import Batch, ObjectiveOutput
from tests.runs import make_media, metrics, options, side_by_side

ROOM = ("--encoder.drop-path", "0", "--optimizer", "sgd")


def spoil(steps: range) -> None:
    """In the second process alone, the loss of these steps (from 1) is no number."""
    plain, calls = MaskedAutoencoder.loss, 0

    def spoilt(self: MaskedAutoencoder, batch: Batch) -> ObjectiveOutput:
        nonlocal calls
        calls += 1
        output = plain(self, batch)
        factor = math.nan if calls in steps and os.environ["RANK"] == "1" else 1.0
        return ObjectiveOutput(output.loss * factor, output.count, output.metrics)

    MaskedAutoencoder.loss = spoilt  # type: ignore[method-assign]


def once() -> None:
    spoil(range(3, 4))


def endlessly() -> None:
    loop.BAD_IN_A_ROW = 3
    spoil(range(2, 100))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("data"), "image")


def test_both_processes_skip_it(data: Path, tmp_path: Path) -> None:
    assert side_by_side(2, 29741, options("image/mae", data, tmp_path / "run", *ROOM), once) == [0, 0]
    lines = metrics(tmp_path / "run")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1]
    assert [line["step"] for line in lines if line["loss"] is None] == [3]
    # Weights of which the second process had taken the step would give no number from then on.
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines[3:])


def test_both_processes_stop(data: Path, tmp_path: Path) -> None:
    arguments = options("image/mae", data, tmp_path / "run", *ROOM, "--steps", "50")
    assert side_by_side(2, 29742, arguments, endlessly) == [2, 2]
    assert [line["skipped_steps"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3]

"""What a run shows while it trains: without a terminal plain lines, at most one in `every` seconds and always the last;
on a terminal one live line; both with loss, samples/s, time left and the share of time spent waiting for data. The
clock is the test's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mmssl.training import progress
from mmssl.training.progress import Display, duration
from tests.runs import make_media, pretrain


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Holds the time; append to it to let time pass."""
    times = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: times[-1]))
    return times


@pytest.fixture
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_plain_lines_at_an_interval(clock: list[float], no_terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Step 30 of 100 after step 20 at an earlier start: ten steps took 20 s, so that 70 steps take 140 s."""
    with Display(total=100, done=20, every=15, shown=True) as display:
        for step, now in ((25, 110.0), (30, 120.0), (35, 130.0), (40, 140.0), (100, 141.0)):
            clock.append(now)
            display.update(step, 0.12345, 81.234, 0.034)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 30/100  loss 0.1235  81.23 samples/s  2:20 left  3% waiting for data"
    assert [line.split()[1] for line in lines] == ["30/100", "40/100", "100/100"]


def test_a_live_line_on_a_terminal(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display(total=100, done=0, every=15, shown=True) as display:
        clock.append(101.0)
        display.update(1, 2.0, 5.0, 0.5)
        assert display.live is not None
        (task,) = display.live.tasks
        assert (task.completed, task.total) == (1, 100)
        assert task.description == "loss 2.0000  5 samples/s  1:39 left  50% waiting for data"
        display.advance(2)
        assert task.completed == 2
    assert "step 1/100  " not in capsys.readouterr().err  # no plain lines between


def test_processes_but_the_main_one_are_silent(no_terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    with Display(total=2, done=0, every=0, shown=False) as display:
        display.update(2, 1.0, 1.0, 0.0)
        display.say("done")
    assert capsys.readouterr().err == ""


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3599, 3600, 90061)] == ["0:00", "1:00", "59:59", "1h00", "25h01"]


@pytest.mark.parametrize(("seconds", "shown"), [("0", [1, 2, 3]), ("1000", [3])])
def test_the_interval_is_an_option_of_every_run(
    seconds: str, shown: list[int], no_terminal: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = make_media(tmp_path / "media", "image")
    pretrain("image/mae", media, tmp_path / "run", "--steps", "3", "--progress-seconds", seconds)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == shown

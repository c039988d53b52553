"""What is wrong or odd about files, at the level of `mmssl pretrain`: broken ones are listed with their reasons and the
run goes on without them, odd ones are trained on as they are, and above the share that was allowed the run stops; a
worker that dies or hangs ends the run in one sentence, and the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl import cli
from mmssl.data.loader import MediaDataset
from mmssl.data.media import Media
from mmssl.data.views import ImageViews, Sample, Views
from mmssl.training import loop
from mmssl.types import Batch
from tests.media import broken_videos, make_audio, make_video, odd_videos, truncate
from tests.runs import make_media, metrics, options, pretrain, trace


def listed(out: Path) -> dict[str, str]:
    """File name -> reason, of skipped.jsonl."""
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    return {Path(line["file"]).name: line["reason"] for line in lines}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The only sentence of a command that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.rpartition("mmssl: ")[2].strip()


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Ids of the files that batches were really made of."""
    read: set[str] = set()
    plain = MediaDataset.batch

    def batch(self: MediaDataset, draws: Any) -> Batch:
        made = plain(self, draws)
        read.update(self.source.id(row) for row in made.index.tolist())
        return made

    monkeypatch.setattr(MediaDataset, "batch", batch)
    return read


def test_broken_videos_are_listed_and_odd_ones_trained_on(tmp_path: Path, rows_read: set[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    broken = {path.name for path in broken_videos(data / "broken").values()}
    odd = {path.name for path, _ in odd_videos(data / "odd").values()}
    steps = ("--steps", "2", "--batch-size", str(len(odd)), "--clips", "1", "--max-bad-share", "0.6")
    pretrain("video/videomae", data, out, *steps)
    reasons = listed(out)
    assert reasons.keys() == broken
    assert "moov atom not found" in reasons["moovless.mp4"]
    assert reasons["zero.mp4"] == "empty file"
    assert reasons["sound-only.mp4"].startswith("not a video")
    assert reasons["picture.mp4"].startswith("wrong extension")
    assert {Path(name).name for name in rows_read} == odd
    for line in metrics(out):
        assert math.isfinite(line["loss"])
        assert (line["skipped_files"], line["skipped_steps"]) == (0, 0)
    assert "moovless.mp4" in (out / "report.html").read_text()


def test_sounds_of_any_rate_are_trained_on(tmp_path: Path, rows_read: set[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    make_audio(data / "stereo.wav", 0.8, rate=44100, channels=2)
    make_audio(data / "phone.wav", 0.8, rate=8000)
    make_audio(data / "short.flac", 0.1)
    make_audio(data / "song.mp3", 1.5, rate=48000, channels=2)
    make_video(data / "talk.mp4", 30, sound=True)
    truncate(make_audio(data / "cut.wav", 3.0))
    make_video(data / "mute.mp4", 5)
    pretrain("audio/mae", data, out, "--steps", "2", "--batch-size", "5", "--max-bad-share", "0.5")
    assert listed(out).keys() == {"cut.wav", "mute.mp4"}
    assert rows_read == {"stereo.wav", "phone.wav", "short.flac", "song.mp3", "talk.mp4"}
    assert all(math.isfinite(line["loss"]) and line["skipped_files"] == 0 for line in metrics(out))


def test_files_that_break_during_the_run_stop_it_above_the_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_media(tmp_path / "data", "image"), tmp_path / "run"
    opened = loop.open_source

    def broken_afterwards(*arguments: Any, **keywords: Any) -> Any:
        source = opened(*arguments, **keywords)
        for number in (0, 2, 4, 6):
            (data / "class0" / f"{number}.png").write_bytes(b"")
        return source

    monkeypatch.setattr(loop, "open_source", broken_afterwards)
    run = options("image/mae", data, out, "--steps", "40", "--batch-size", "12", "--max-bad-share", "0.2")
    said = refused(capsys, *run)
    assert "could not be read, which is more than --max-bad-share 0.2" in said
    assert str(out / "skipped.jsonl") in said
    assert listed(out).keys() == {"0.png", "2.png", "4.png", "6.png"}
    assert metrics(out)[-1]["step"] < 3


def test_pictures_on_a_full_disk_end_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmssl.training import watch

    def full(*arguments: Any) -> None:
        Path("/dev/full").write_text("x")

    monkeypatch.setattr(watch, "save_pictures", full)
    data = make_media(tmp_path / "data", "image")
    said = refused(capsys, *options("image/mae", data, tmp_path / "run", "--probe-every", "3", "--save-every", "2"))
    assert said.startswith(f"{tmp_path / 'run' / 'pictures'} could not be written, since the disk is full")
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


@dataclass(frozen=True)
class Faulty(Views):
    """Pictures whose worker dies (or hangs, as a decoder does: in native code, with the interpreter's lock held) at
    the second epoch of one file."""

    good: ImageViews
    bad: str
    fault: str
    mark: Path
    names: tuple[str, ...] = ("view",)
    per_file: int = 1

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        if media.name == self.bad:
            if self.mark.exists() and self.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.mark.exists():
                re.match("(a+)+$", "a" * 60 + "b")
            self.mark.touch()
        return self.good(media, rng)

    def centre(self) -> Views:
        return self


@pytest.mark.parametrize(
    ("fault", "words"), [("die", ("SIGKILL", "fewer --workers")), ("hang", ("has been reading", "--file-seconds (2)"))]
)
def test_a_worker_that_dies_or_hangs_costs_no_checkpoint(
    fault: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = make_media(tmp_path / "data", "image"), tmp_path / "run"
    run = ("--save-every", "1", "--steps", "6", "--batch-size", "4", "--file-seconds", "2")

    def dataset(source: Any, views: Any, *rest: Any) -> MediaDataset:
        return MediaDataset(source, Faulty(views, "class0/4.png", fault, tmp_path / "mark"), *rest)

    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "MediaDataset", dataset)
        said = refused(capsys, *options("image/mae", data, out, *run, "--workers", "1"))
    assert time.monotonic() - began < 40
    assert "\n" not in said
    assert all(word in said for word in ("class0/4.png", *words)), said
    (last,) = [line["step"] for line in metrics(out)][-1:]
    assert 1 <= last < 6
    assert (out / "checkpoints" / f"step-{last:08d}").is_dir()
    pretrain("image/mae", data, out, *run)
    assert "Going on after step" in capsys.readouterr().err
    pretrain("image/mae", data, tmp_path / "alone", *run)
    assert trace(out) == trace(tmp_path / "alone")

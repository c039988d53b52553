"""`mmssl prepare`: the copy has the same ids, labels and splits; every video in it is sound and is read by decord;
what cannot be used is listed with its reason and counted; a second run does nothing, and after a changed source, other
settings, Ctrl-C or a kill only what is missing is done; tars are whole, hold the same labels and are the same bytes
each time; mistakes end in one sentence and nothing of the user's is touched."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.data import children
from mmssl.data.index import Index
from mmssl.data.listing import list_media
from mmssl.data.media import Media
from mmssl.data.prepare import PrepareSettings, run_prepare
from mmssl.data.prepared import STATE
from mmssl.data.sources import LocalSource
from mmssl.data.video import open_video
from mmssl.data.views import VideoViews
from mmssl.errors import UserError
from tests.media import broken_videos, frame_numbers, make_tar, make_video, numbered_frame, rotate_mp4


def tree(root: Path, tars: bool = True) -> Path:
    """Two splits, two classes, several containers, a shard with labels, and files that are no videos."""
    make_video(root / "train/cat/a.mp4", 20, height=320, width=400)
    make_video(root / "train/cat/b.avi", 20, codec="mpeg4")
    make_video(root / "train/dog/c.mkv", 20)
    rotate_mp4(make_video(root / "test/dog/d.mov", 10))
    make_video(root / "test/cat/e.ts", 30, gop=30)
    (root / "notes.txt").write_text("hello")
    if tars:
        video = make_video(root / "x.mp4", 12)
        content = {"1.mp4": video.read_bytes(), "1.cls": b"cat", "2.mp4": b"junk", "2.cls": b"dog", "3.txt": b"owl"}
        make_tar(root / "train/more-train.tar", content)
        video.unlink()
    return root


def run(data: Path, out: Path, **settings: Any) -> Index:
    return run_prepare(PrepareSettings(data, out, workers=2, **settings), cache=out.parent / "cache")


def facts(index: Index) -> dict[str, tuple[str | None, str | None]]:
    rows = index.table.select(["id", "label", "split"]).to_pylist()
    return {row["id"]: (row["label"], row["split"]) for row in rows}


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Which sources are worked on."""
    seen: Counter[str] = Counter()
    real = children.Child.begin

    def begin(child: children.Child, job: children.Job) -> None:
        if "target" in job.content:
            seen[job.content["record"]["id"]] += 1
        real(child, job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children.Child, "begin", begin)
        yield seen


def problems(out: Path) -> dict[str, str]:
    with open(out / "problems.csv", encoding="utf-8", newline="") as file:
        return {row["file"]: row["problem"] for row in csv.DictReader(file)}


def test_the_copy_has_the_same_ids_labels_and_splits(tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    index = run(data, tmp_path / "out")
    before = {record.id: (record.label, record.split) for record in list_media(data, "video").records}
    assert facts(index) == {name: said for name, said in before.items() if not name.endswith("tar/2.mp4")}
    assert index.problems() == []
    assert set(index.column("backend")) == {"decord"}  # as fast as it gets: also what was rotated, .avi and .ts
    assert min(index.column("height")) == 96
    assert {(w, h) for w, h in zip(index.column("width"), index.column("height"), strict=True)} == {
        (160, 96),
        (96, 160),
        (320, 256),
    }
    for row in range(len(index)):
        media = Media(index.record(row), index.root)
        numbers = list(range(index.record(row).frames or 0))
        if not media.name.endswith("d.mov") and not media.name.endswith("a.mp4"):
            assert frame_numbers(open_video(media).read(numbers)) == numbers
    assert list(problems(tmp_path / "out")) == ["train/more-train.tar/2.mp4"]
    with tarfile.open(tmp_path / "out/train/more-train.tar") as tar:  # the label of what is left out goes with it
        assert tar.getnames() == ["1.mp4", "1.cls", "3.txt"]
    assert not list((tmp_path / "out").rglob("*.part"))


def test_metadata_keeps_labels_and_splits(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("one.mp4", "two.mp4"):
        make_video(data / "clips" / name, 5)
    (data / "metadata.csv").write_text("file_name,label,split\nclips/one.mp4,cat,train\nclips/two.mp4,dog,fold-2\n")
    index = run(data, tmp_path / "out")
    assert facts(index) == {"clips/one.mp4": ("cat", "train"), "clips/two.mp4": ("dog", "fold-2")}
    assert (tmp_path / "out/metadata.csv").read_bytes() == (data / "metadata.csv").read_bytes()
    with pytest.raises(UserError, match="cannot keep the split 'fold-2'"):
        run(data, tmp_path / "tars", tars=2)


def test_clips_of_the_copy_are_those_of_the_data(tmp_path: Path) -> None:
    """The same draws give the same frames and the same crop, before and after."""
    make_video(tmp_path / "data/a.mp4", 60, height=240, width=400)
    index = run(tmp_path / "data", tmp_path / "out", crf=10)
    views = VideoViews(96, frames=8, stride=4)
    sources = [LocalSource(i, "video") for i in (Index.build(tmp_path / "data", "video"), index)]
    one, other = (views(source.media(0), np.random.default_rng(3))[0] for source in sources)
    assert one.targets["start"] == pytest.approx(other.targets["start"])
    difference = one.views["clip"].float() - other.views["clip"].float()
    assert difference.abs().mean() < 3  # of 255; the next frame of this pattern differs by more than 10


def test_what_cannot_be_used_is_listed_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken_videos(tmp_path / "data")
    make_video(tmp_path / "data/good.mp4", 5)
    (tmp_path / "data/gone.mp4").symlink_to("nowhere.mp4")
    index = run(tmp_path / "data", tmp_path / "out")
    assert facts(index).keys() == {"good.mp4"}
    found = problems(tmp_path / "out")
    assert found["gone.mp4"] == "cannot be opened: No such file or directory"
    assert found["zero.mp4"] == "empty file"
    assert found["picture.mp4"] == "wrong extension: named .mp4, but it is a PNG image"
    assert found["truncated.mp4"].startswith("truncated after frame")
    assert len(found) == 9
    assert "9 videos cannot be used" in capsys.readouterr().out
    # The same judgement as verification's: nothing is salvaged in silence, nothing sound is lost.
    assert found.keys() == dict(Index.build(tmp_path / "data", "video", cache=tmp_path / "cache").problems()).keys()


def test_a_video_that_hangs_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        make_video(tmp_path / "data" / f"{name}.mp4", 5)
    real = children.Child.begin

    def begin(child: Any, job: Any) -> None:
        real(child, job)
        if job.content["record"]["id"] == "b.mp4" and "target" in job.content:
            os.kill(child._process.pid, signal.SIGSTOP)
            child._ready = True
            child._start_clock()

    monkeypatch.setattr(children.Child, "begin", begin)
    index = run(tmp_path / "data", tmp_path / "out", timeout=3)
    assert facts(index).keys() == {"a.mp4", "c.mp4"}
    assert "timed out after" in problems(tmp_path / "out")["b.mp4"]
    monkeypatch.undo()
    with counted() as seen:
        assert len(run(tmp_path / "data", tmp_path / "out")) == 3  # tried again, alone
    assert seen == {"b.mp4": 1}
    assert not (tmp_path / "out/problems.csv").exists()


# ---------------------------------------------------------------- going on


def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    data, out = tree(tmp_path / "data"), tmp_path / "out"
    run(data, out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "problems.csv"}
    with counted() as seen:
        index = run(data, out)
    assert not seen
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert list(problems(out)) == ["train/more-train.tar/2.mp4"]  # remembered
    assert len(index) == 6
    make_video(data / "train/dog/c.mkv", 8, seed=3)
    (out / "test/cat/e.ts").unlink()
    with counted() as seen:
        index = run(data, out)
    assert seen.keys() == {"train/dog/c.mkv", "test/cat/e.ts"}
    assert index.column("frames")[index.column("id").index("train/dog/c.mkv")] == 8
    with counted() as seen:
        run(data, out, crf=30)
    assert len(seen) == 7
    # A source that is no longer good leaves no copy behind that would pass for it.
    (data / "train/cat/a.mp4").write_bytes(b"junk")
    assert "train/cat/a.mp4" not in facts(run(data, out, crf=30))
    # A torn line, as a power cut leaves it, is a file that was not finished.
    state = (out / STATE).read_bytes()
    (out / STATE).write_bytes(state[: state.rindex(b"\n", 0, -1) + 9])
    with counted() as seen:
        run(data, out, crf=30)
    assert "train/cat/a.mp4" in seen  # the junk
    assert len(seen) <= 3  # and the torn one, with what is in it if it was the tar
    assert all(json.loads(line) for line in (out / STATE).read_text().splitlines())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    one = make_video(data / "00.mp4", 100, height=256, width=400)
    for number in range(1, 12):
        (data / f"{number:02d}.mp4").write_bytes(one.read_bytes())
    command = [sys.executable, "-m", "mmssl.cli", "prepare", str(data), "--out", str(out), "--workers", "1"]
    environment = os.environ | {"MMSSL_CACHE": str(tmp_path / "cache")}
    # Background jobs of a shell, and all they start, ignore Ctrl-C unless somebody undoes it.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, preexec_fn=heed)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.mp4"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    said = process.communicate(timeout=30)
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    assert 3 <= len(done) < 12
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in said[0]
        assert "Traceback" not in said[1]
        assert not list(out.glob(".*.part"))
    with counted() as seen:
        index = run(data, out)
    # A file may have been finished and not yet noted when the run was killed.
    assert 12 - len(done) <= len(seen) <= 13 - len(done)
    assert index.column("frames") == [100] * 12
    assert not list(out.glob(".*.part"))


# ---------------------------------------------------------------- tars


def test_tars_hold_every_video_with_its_label(tmp_path: Path) -> None:
    data = tree(tmp_path / "data")
    index = run(data, tmp_path / "out", tars=2)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert names == ["test-000000.tar", *(f"train-{n:06d}.tar" for n in range(3))]
    assert Counter(zip(index.column("label"), index.column("split"), strict=True)) == {
        ("cat", "train"): 3,
        ("dog", "train"): 1,
        ("cat", "test"): 1,
        ("dog", "test"): 1,
    }
    assert set(index.column("backend")) == {"decord"}
    ids = set()
    for name in names:
        with tarfile.open(tmp_path / "out" / name) as tar:
            ids |= {json.load(tar.extractfile(m))["id"] for m in tar if m.name.endswith(".json")}  # type: ignore[arg-type]
    assert ids == {r.id for r in list_media(data, "video").records} - {"train/more-train.tar/2.mp4"}
    run(data, tmp_path / "again", tars=2)
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    with counted() as seen:
        run(data, tmp_path / "out", tars=2)
    assert not seen
    assert not (tmp_path / "out/.loose").exists()
    with pytest.raises(UserError, match="holds 4 files of an earlier run"):
        run(data, tmp_path / "out")


def test_videos_that_wait_for_their_tar_are_not_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tree(tmp_path / "data", tars=False)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mmssl.data.prepare.write_tar", stop)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / "out", tars=100)
    with counted() as seen:
        index = run(data, tmp_path / "out", tars=100)
    assert len(seen) <= 3  # the test split was complete
    assert len(index) == 5


# ---------------------------------------------------------------- mistakes


def test_mistakes_end_in_one_sentence(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", tars=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("do not lose")
    for out, what in (
        (data, "lie in one another"),
        (data / "small", "lie in one another"),
        (tmp_path, "lie in one another"),
        (tmp_path / "mine", "holds other files"),
        (tmp_path / "mine/thesis.txt", "not a folder|in the way"),
    ):
        with pytest.raises(UserError, match=what):
            run(data, out)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no video files"):
        run(tmp_path / "empty", tmp_path / "out")
    for wrong in ({"crf": 60}, {"short_side": 4}, {"rate": 0.0}, {"key_frames": 0}, {"tars": 0}):
        with pytest.raises(UserError, match="is not between"):
            run(data, tmp_path / "out", **wrong)


def test_two_commands_do_not_write_one_copy(tmp_path: Path) -> None:
    data = make_video(tmp_path / "data/a.mp4", 3).parent
    run(data, tmp_path / "out")
    code = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out" / STATE)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UserError, match="Another mmssl prepare writes to"):
            run(data, tmp_path / "out")
    finally:
        holder.kill()
        holder.communicate()


def test_a_full_disk_stops_with_a_sentence_and_blames_no_video(tmp_path: Path) -> None:
    """A limit on the size of files stands in for it."""
    make_video(tmp_path / "data/a.mp4", 60, height=256, width=400)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    command = [sys.executable, "-m", "mmssl.cli", "prepare", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=60)
    assert done.returncode == 2
    assert "could not be written, since it would exceed the size allowed here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/problems.csv").exists()
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_numbered_frames_differ() -> None:
    """The crop test above means something only while neighbouring frames are told apart."""
    one, other = (numbered_frame(n, 240, 400).astype(float) for n in (20, 24))
    assert np.abs(one - other).mean() > 10

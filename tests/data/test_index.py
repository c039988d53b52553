"""Claims: an interrupted index goes on without verifying anything twice, and a changed file is verified again; the
table on disk is whole or absent.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmssl.data import index as index_module
from mmssl.data.index import Index
from mmssl.data.indexing import build_index, show_progress
from mmssl.errors import UserError
from tests.media import make_audio, make_image, make_image_tree, make_video


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the files that were sent to be verified, in all builds of a test."""
    sent: list[str] = []
    real = index_module.verify

    def spy(root: Path, jobs: Any, **how: Any) -> Any:
        jobs = list(jobs)
        sent.extend(record.id for _, record in jobs)
        return real(root, jobs, **how)

    monkeypatch.setattr(index_module, "verify", spy)
    return sent


def test_facts_of_each_kind(tmp_path: Path) -> None:
    make_image(tmp_path / "d" / "a.png", 30, 50)
    make_video(tmp_path / "d" / "b.mp4", 24, rate=12)
    make_audio(tmp_path / "d" / "c.wav", 0.5, rate=44100, channels=2)
    index = Index.build(tmp_path / "d", workers=2, cache=tmp_path / "cache")
    image, video, sound = (index.record(row) for row in range(3))
    assert (image.width, image.height, image.frames, image.channels, image.backend) == (50, 30, 1, 3, "pillow")
    assert (video.width, video.height, video.frames, video.rate, video.duration) == (160, 96, 24, 12.0, 2.0)
    assert (sound.frames, sound.rate, sound.channels, sound.duration) == (22050, 44100.0, 2, 0.5)
    assert index.problems() == []
    assert index.rows().tolist() == [0, 1, 2]


def test_saved_and_loaded_the_same(tmp_path: Path) -> None:
    make_image_tree(tmp_path / "d", each=2)
    index = Index.build(tmp_path / "d", "image", workers=1, cache=tmp_path / "cache")
    index.save(tmp_path / "out" / "index.parquet")
    assert os.listdir(tmp_path / "out") == ["index.parquet"]
    loaded = Index.load(tmp_path / "out" / "index.parquet")
    assert loaded.table.equals(index.table)
    assert (loaded.root, loaded.fingerprint) == (index.root, index.fingerprint)
    assert loaded.rows("test").tolist() == [0, 1]
    assert loaded.rows("train").tolist() == [2, 3, 4, 5]
    (tmp_path / "other.parquet").write_bytes(b"junk")
    for wrong in ("other.parquet", "gone.parquet"):
        with pytest.raises(UserError, match=f"{wrong} is not an index"):
            Index.load(tmp_path / wrong)


def test_known_files_are_not_verified_again(tmp_path: Path, counted: list[str]) -> None:
    root, cache = tmp_path / "d", tmp_path / "cache"
    make_image_tree(root, each=2)
    first = Index.build(root, "image", workers=2, cache=cache)
    assert sorted(counted) == first.column("id")
    counted.clear()
    assert Index.build(root, "image", workers=2, cache=cache).table.equals(first.table)
    assert Index.build(root / "train", "image", workers=2, cache=cache).rows().size == 4  # known by their full path
    assert counted == []
    make_image(root / "train" / "cat" / "1.png", 20, 20, seed=9)
    make_image(root / "train" / "cat" / "new.png")
    changed = Index.build(root, "image", workers=2, cache=cache)
    assert sorted(counted) == ["train/cat/1.png", "train/cat/new.png"]
    assert changed.fingerprint != first.fingerprint
    shutil.rmtree(cache)
    counted.clear()
    assert len(Index.build(root, "image", workers=2, cache=cache)) == len(counted) == 7


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path, counted: list[str]) -> None:
    root, cache = tmp_path / "d", tmp_path / "cache"
    for number in range(8):
        make_image(root / f"{number}.png")
    seen: list[int] = []

    def stop(done: int, total: int, bad: int) -> None:
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.build(root, "image", workers=1, cache=cache, progress=stop)
    assert seen == [0, 1, 2, 3]
    counted.clear()
    index = Index.build(root, "image", workers=1, cache=cache)
    assert len(counted) == 5
    assert index.rows().size == 8


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, counted: list[str]) -> None:
    """SIGKILL of the whole process: what was committed by then is known, nothing is damaged, no child lives on."""
    root, cache = tmp_path / "d", tmp_path / "cache"
    for number in range(40):
        make_image(root / f"{number:02}.png")
    code = (
        "import sys, time; from pathlib import Path; from mmssl.data import verify; verify.COMMIT_SECONDS = 0\n"
        "from mmssl.data.index import Index\n"
        "def slow(done, total, bad): print(done, flush=True); time.sleep(0.05)\n"
        f"Index.build(Path({str(root)!r}), 'image', workers=1, cache=Path({str(cache)!r}), progress=slow)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 10:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    index = Index.build(root, "image", workers=1, cache=cache)
    assert 25 <= len(counted) <= 31
    assert index.rows().size == 40


def test_ctrl_c_in_the_command_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    make_image(tmp_path / "d" / "1.png")
    console = Console(record=True, width=200)

    def stop(*_: Any, progress: Any, **__: Any) -> None:
        progress(1, 5, 0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Index, "build", stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(tmp_path / "d", cache=tmp_path / "cache", console=console)
    assert "1 of 5 files are verified and kept" in console.export_text()
    (tmp_path / "d" / "bad.png").write_bytes(b"")
    index = build_index(
        tmp_path / "d", cache=tmp_path / "cache", console=console, out=tmp_path / "i.parquet", workers=1
    )
    text = console.export_text()
    assert "2 image files, 1 usable" in text
    assert "bad.png: empty file" in text
    assert Index.load(tmp_path / "i.parquet").table.equals(index.table)


def test_children_start_without_torch(tmp_path: Path) -> None:
    code = "import sys, mmssl.data.probe; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_children_are_gone_when_a_build_ends(tmp_path: Path) -> None:
    for number in range(3):
        make_image(tmp_path / "d" / f"{number}.png")
    Index.build(tmp_path / "d", "image", workers=2, cache=tmp_path / "cache")
    deadline = time.monotonic() + 5
    while _children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _children() == []


def _children() -> list[int]:
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    pids = [int(pid) for pid in task.read_text().split()]
    return [pid for pid in pids if b"mmssl.data.probe" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_without_a_terminal_the_last_count_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(Console(file=io.StringIO())) as show:
        for done in range(1, 6):
            show(done, 5, done // 5)
    told = capsys.readouterr().err.splitlines()
    assert told == ["verified 1 of 5 files, 0 with a problem", "verified 5 of 5 files, 1 with a problem"]

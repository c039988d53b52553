"""Claim: both iterations of HuBERT, killed by SIGKILL in each stage while it writes, and started again by the same
command, end with the files of a run that is left alone: units, codebooks, weights and optimiser byte for byte, the same
log, nothing lost and nothing half written left behind.

The signals are real, and come at chosen calls: no `finally` runs, part files stay. Commands are forks of one process
that has imported everything, which saves most of their time.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from mmssl import cli
from mmssl.targets import work
from mmssl.targets.units import Units
from tests.media import make_audio
from tests.runs import REPOSITORY, metrics, options, trace


class Point(NamedTuple):
    """Where SIGKILL comes: at a call of a function, counted from 1, before it does anything."""

    stage: str
    module: str
    function: str
    call: int = 1


FIRST = (
    Point("MFCC of the second chunk, written and not yet named", "mmssl.targets.work", "sync_path", 2),
    Point("k-means", "mmssl.targets.make", "fit_stream"),
    Point("units of the second chunk", "mmssl.targets.work", "sync_path", 2),
    Point("joining: labels without units.json", "mmssl.targets.units", "hash_file"),
    Point("training: in the second checkpoint", "mmssl.training.checkpoint", "sync_path", 7),
    Point("the end: an encoder without a report", "mmssl.training.finish", "collect"),
)
SECOND = (
    Point("features of a layer, first chunk", "mmssl.targets.work", "sync_path", 1),
    Point("clusters: the codebook written and not yet named", "mmssl.targets.codebook", "sync_path"),
    Point("units of the third chunk", "mmssl.targets.work", "sync_path", 3),
    Point("figures of units that stand", "mmssl.targets.make", "measure"),
    Point("training: before there is a checkpoint", "mmssl.training.checkpoint", "sync_path", 2),
    Point("training: in the third checkpoint", "mmssl.training.checkpoint", "sync_path", 12),
    Point("the end: neighbours without a report", "mmssl.training.finish", "write_report"),
)


IMPORTED = (
    "mmssl.training.loop",
    "mmssl.targets.make",
    "transformers.models.auto",
    "torch._dynamo",
    "sklearn.manifold",
)


def serve() -> None:
    """The commands of stdin, one after the other: killed at their point, or left alone where there is none."""
    arguments, points = json.load(sys.stdin)
    for name in IMPORTED:
        importlib.import_module(name)
    for given in points:
        point = given and Point(*given)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work.CHUNK_FILES = 3
                if point:
                    kill_at(point)
                cli.main(arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if ended != (-signal.SIGKILL if point else 0):
            sys.exit(f"{point}: ended with {ended}")


def kill_at(point: Point) -> None:
    module = importlib.import_module(point.module)
    act, calls = getattr(module, point.function), 0

    def counted(*given: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == point.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*given, **named)

    setattr(module, point.function, counted)


def run(data: Path, out: Path, points: Sequence[Point | None]) -> None:
    arguments = options("audio/hubert", data, out, "--steps", "3", "--save-every", "1", "--clusters", "6", "8")
    done = subprocess.run(
        [sys.executable, "-c", "from tests.faults.test_killed_pipeline import serve; serve()"],
        input=json.dumps([arguments, points]),
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine recordings, in three chunks of target making; one at 8 kHz, one in stereo."""
    folder = tmp_path_factory.mktemp("speech")
    for number in range(9):
        kind = {3: {"rate": 8000}, 4: {"channels": 2}}.get(number, {})
        make_audio(folder / f"{number}.wav", seconds=0.8 + 0.1 * (number % 3), hertz=200.0 + 60 * number, **kind)
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(data, out, [None])
    return out


def kept(out: Path) -> dict[str, object]:
    """All files of a run: the content of those that are made of the data and the seed alone."""
    files = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {name: content(path) for name, path in files.items()}


def content(path: Path) -> object:
    """Bytes; of safetensors the header without its order, which the library takes from a hash map, and the bytes."""
    if path.suffix == ".safetensors":
        whole = path.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        return json.loads(whole[8:end]), whole[end:]
    return path.read_bytes() if path.suffix in (".npy", ".png") else None


@pytest.mark.parametrize(
    "points",
    [
        pytest.param([*FIRST[2:3], *FIRST[5:6], *SECOND[5:6]], id="some"),
        pytest.param([*FIRST, *SECOND], id="all", marks=pytest.mark.heavy),
    ],
)
def test_killed_in_its_stages(points: list[Point], data: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(data, out, [*points, None])
    found, expected = kept(out), kept(alone)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    for number, steps in ((1, 2), (2, 3)):
        name = f"iteration-{number}"
        assert [line["step"] for line in metrics(out / name)] == list(range(1, steps + 1))
        assert trace(out / name) == trace(alone / name)
        units, other = (Units.open(folder / name / "units") for folder in (out, alone))
        units.verify()
        for fact in ("sha256", "codebook", "recordings", "quality", "key", "fit"):
            assert units.about[fact] == other.about[fact], fact

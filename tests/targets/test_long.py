"""Claim: units of a recording of three hours take no more memory than those of a short one, and know no seams; a
process that is killed by SIGKILL again and again ends with the units of one that is left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.targets.units import Units
from tests.runs import REPOSITORY, session
from tests.targets.making import SAMPLES, speech

PEAK = """
import sys
from mmssl import cli
cli.main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.heavy
def test_three_hours(tmp_path: Path) -> None:
    """Speech of a few seconds again and again, at a period of whole labels: so the labels have that period, too."""
    pieces = [soundfile.read(file, dtype="float32") for file in speech(12)]
    rate = pieces[0][1]
    period = np.concatenate([sound for sound, own in pieces if own == rate])
    hop = rate // 100
    period = period[: len(period) // hop * hop]
    peaks = {}
    for name, seconds in (("short", 120.0), ("long", 3 * 3600.0)):
        folder = tmp_path / name
        folder.mkdir()
        with soundfile.SoundFile(folder / "sound.flac", "w", rate, 1) as file:
            for _ in range(round(seconds * rate / len(period))):
                file.write(period)
        command = ["targets", "kmeans", "--data", str(folder), "--out", str(tmp_path / f"units-{name}")]
        given = ["--clusters", "50", "--frames", "50000", "--max-iter", "5", "--n-init", "1", "--workers", "0"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command, *given], cwd=REPOSITORY, text=True, capture_output=True, check=True
        )
        peaks[name] = int(done.stdout.split()[-1]) / 1024
    labels = Units.open(tmp_path / "units-long").of("sound.flac")
    assert abs(len(labels) / 100 - 3 * 3600) < 30
    step = len(period) // hop
    inner = labels[step : len(labels) // step * step - step].reshape(-1, step)
    assert len(np.unique(inner[0])) > 20
    assert (inner == inner[0]).mean() > 0.9999  # two codes may be equally near within fp32
    print(f"peak resident memory: {peaks['short']:.0f} MiB for 2 minutes, {peaks['long']:.0f} MiB for 3 hours")
    assert peaks["long"] < peaks["short"] + 200  # as a whole, 660 MiB of sound at 16 kHz


CHUNKS = (
    "import sys\nfrom mmssl import cli\nfrom mmssl.targets import work\nwork.CHUNK_FILES = 12\ncli.main(sys.argv[1:])"
)


@pytest.mark.heavy
def test_sigkill(tmp_path: Path) -> None:
    """Each time as soon as some more is there, the last time while units are joined or made."""

    def start(out: Path) -> subprocess.Popen[str]:
        command = ["targets", "kmeans", "--data", str(SAMPLES / "test/spanish"), "--out", str(out), "--workers", "1"]
        given = ["--clusters", "40", "--frames", "20000", "--max-iter", "20", "--n-init", "3"]
        return subprocess.Popen(
            [sys.executable, "-c", CHUNKS, *command, *given], cwd=REPOSITORY, text=True, start_new_session=True
        )

    def there(out: Path) -> int:
        with contextlib.suppress(FileNotFoundError):
            return len(os.listdir(out / ".work")) + len(os.listdir(out))
        return 0

    assert start(tmp_path / "whole").wait() == 0
    out = tmp_path / "out"
    for more in (1, 4, 9, 3, 8):
        process, wanted = start(out), there(out) + more
        while there(out) < wanted and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while session(process.pid):  # its worker ends with it
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert start(out).wait() == 0
    whole, killed = Units.open(tmp_path / "whole"), Units.open(out)
    assert killed.about["sha256"] == whole.about["sha256"]
    assert killed.about["codebook"] == whole.about["codebook"]
    killed.verify()
    assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))

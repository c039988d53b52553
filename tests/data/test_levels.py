"""Claims: the shares of silent frames and clipped samples in the index are those of the samples themselves, whatever
the block they are read in, the format and the library; recordings with samples that are no numbers are named; the
summary names the worst; older tables and cached verdicts do not hide them.

The reference counts run by run and frame by frame in plain Python and NumPy, on the whole recording.
"""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from rich.console import Console

from mmssl.data import verify
from mmssl.data.index import Index
from mmssl.data.indexing import build_index
from mmssl.data.levels import Levels
from mmssl.data.media import Record
from tests.media import make_audio

SAMPLES = Path(__file__).resolve().parents[2] / "datasets/samples/audio"


def reference(sound: np.ndarray, rate: int, full: float = 32767 / 32768) -> tuple[float, float]:
    frame = round(rate * 0.02)
    quiet = [float((sound[k : k + frame] ** 2).mean()) < 1e-6 for k in range(0, len(sound), frame)]
    clipped = 0
    for channel in sound.T:
        for high, run in groupby(np.abs(channel) >= full):
            length = len(list(run))
            clipped += length if high and length > 1 else 0
    return sum(quiet) / len(quiet), clipped / sound.size


def noisy(samples: int, channels: int, seed: int = 0) -> np.ndarray:
    """Loud and clipped noise with a silent stretch, and single samples at full scale, which are not clipped."""
    generator = np.random.default_rng(seed)
    sound = np.clip(generator.normal(0, 0.6, (samples, channels)), -1, 32767 / 32768)
    sound[samples // 3 : samples // 2] = generator.normal(0, 5e-4, (samples // 2 - samples // 3, channels))
    sound[samples // 2 + 100 : samples // 2 + 2000 : 50] = 32767 / 32768
    return sound


@pytest.mark.parametrize("block", [1, 7, 160, 1000, 10**6])
def test_blocks_do_not_matter(block: int) -> None:
    sound = noisy(9_003, 2)
    levels = Levels(16_000)
    for first in range(0, len(sound), block):
        levels.add(sound[first : first + block].astype(np.float32))
    silence, clipping = reference(sound, 16_000)
    assert 0.1 < silence < 0.3
    assert 0.01 < clipping < 0.15
    assert levels.shares() == {
        "silence": pytest.approx(silence, abs=1e-6),
        "clipping": pytest.approx(clipping, abs=1e-8),
    }


def record(index: Index, name: str) -> Record:
    return next(index.record(row) for row in range(len(index)) if index.record(row).id == name)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW", "PCM_U8"])
def test_formats(tmp_path: Path, subtype: str) -> None:
    (tmp_path / "d").mkdir()
    sound = np.clip(noisy(40_000, 1) * 1.3, -1, 32767 / 32768)
    soundfile.write(tmp_path / "d" / "a.wav", sound, 22_050, subtype=subtype)
    index = Index.build(tmp_path / "d", "audio", workers=1, cache=tmp_path / "cache")
    decoded = soundfile.read(tmp_path / "d" / "a.wav", always_2d=True)[0]
    full = {"ULAW": 32124, "PCM_U8": 127 << 8}.get(subtype, 32767) / 32768
    silence, clipping = reference(decoded, 22_050, full)
    assert clipping > 0.02
    assert index.record(0).silence == pytest.approx(silence, abs=1e-6)
    assert index.record(0).clipping == pytest.approx(clipping, abs=1e-6)


def test_real_recordings_and_containers(tmp_path: Path) -> None:
    """Telephone prompts (silent around the words, not clipped), and a container that PyAV reads."""
    files = sorted(SAMPLES.rglob("*.ogg"))[:6]
    assert files
    (tmp_path / "d").mkdir()
    for file in files:
        (tmp_path / "d" / file.name).write_bytes(file.read_bytes())
    make_audio(tmp_path / "d" / "tone.m4a", 1.0, rate=44_100, channels=2)
    index = Index.build(tmp_path / "d", "audio", workers=1, cache=tmp_path / "cache")
    for file in files:
        sound, rate = soundfile.read(file, always_2d=True)
        silence, clipping = reference(sound, rate)
        found = record(index, file.name)
        assert found.silence == pytest.approx(silence, abs=1e-6)
        assert found.clipping == pytest.approx(clipping, abs=1e-7)
    tone = record(index, "tone.m4a")
    assert tone.backend == "pyav"
    assert tone.clipping == 0
    assert tone.silence is not None
    assert tone.silence < 0.1


def test_samples_that_are_no_numbers_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    sound = np.zeros(1000, np.float32)
    sound[[3, 500]] = np.nan, np.inf
    soundfile.write(tmp_path / "d" / "a.wav", sound, 16_000, subtype="FLOAT")
    index = Index.build(tmp_path / "d", "audio", workers=1, cache=tmp_path / "cache")
    assert index.problems() == [("a.wav", "2 samples are no numbers (NaN or infinite)")]


def test_the_summary_names_the_worst(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, sound in (("empty", np.zeros(16_000)), ("loud", noisy(16_000, 1)), ("fine", np.full(32_000, 0.1))):
        soundfile.write(tmp_path / "d" / f"{name}.wav", sound, 16_000)
    told = io.StringIO()
    build_index(tmp_path / "d", workers=1, cache=tmp_path / "cache", console=Console(file=told, width=200))
    silence = 100 * (1 + reference(noisy(16_000, 1), 16_000)[0]) / 4
    assert f"  {silence:.3f}% of the sound is silent (20 ms frames below -60 dB)" in told.getvalue()
    assert "1 recording(s) with 90.0% or more: empty.wav (100.0%)" in told.getvalue()
    assert "of the samples are clipped; 1 recording(s) with 0.1% or more: loud.wav (" in told.getvalue()


def test_older_tables_load_and_older_verdicts_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_audio(tmp_path / "d" / "a.wav", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(verify, "VERSIONS", {**verify.VERSIONS, "audio": 1})
        patch.setattr(verify, "FACTS", tuple(fact for fact in verify.FACTS if fact not in ("silence", "clipping")))
        Index.build(tmp_path / "d", "audio", workers=1, cache=tmp_path / "cache")
    index = Index.build(tmp_path / "d", "audio", workers=1, cache=tmp_path / "cache")
    assert index.record(0).silence is not None
    index.save(tmp_path / "new.parquet")
    assert Index.load(tmp_path / "new.parquet").table.equals(index.table)
    pq.write_table(
        pq.read_table(tmp_path / "new.parquet").drop_columns(["silence", "clipping"]), tmp_path / "old.parquet"
    )
    assert Index.load(tmp_path / "old.parquet").record(0) == replace(index.record(0), silence=None, clipping=None)

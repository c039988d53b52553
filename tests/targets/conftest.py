"""Speech that the tests of making units read, and the units made of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.targets import work
from mmssl.targets.units import Units
from tests.targets.making import kmeans, small_chunks, speech


@pytest.fixture(scope="module")
def chunks() -> Iterator[None]:
    kept = work.CHUNK_FILES
    small_chunks()
    yield
    work.CHUNK_FILES = kept


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real speech in four splits and forms: as it is, 44.1 kHz stereo, 8 kHz, and some that are very short."""
    folder = tmp_path_factory.mktemp("speech")
    for number, file in enumerate(speech(24)):
        sound, _ = soundfile.read(file, dtype="float32")
        place = folder / ("test" if number % 6 == 5 else "train") / f"voice{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            shutil.copy(file, place / f"{number:02d}.ogg")
        elif number % 3 == 1:
            soundfile.write(place / f"{number:02d}.flac", np.stack([sound, 0.5 * sound], 1), 44100)  # faster; no matter
        else:
            soundfile.write(place / f"{number:02d}.wav", sound, 8000)
    for number, samples in enumerate((399, 400, 1600)):
        soundfile.write(folder / "train/voice0" / f"short{number}.wav", sound[4000 : 4000 + samples], 16000)
    return folder


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Units:
    return kmeans(data, tmp_path_factory.mktemp("made") / "units")

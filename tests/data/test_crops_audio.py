"""Claims: a crop is whole frames of the encoder and its units are those of exactly these frames, at either label rate,
at any rate of the file, in parts of long recordings and in padding; units of other audio are refused; the replacement
of an unreadable file is long enough.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl.data.audio import read_audio
from mmssl.data.crops_audio import AudioCrops, frames_of, samples_of
from mmssl.data.loader import MediaDataset
from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.data.plan import Cut, Draw
from mmssl.data.sources import open_source
from mmssl.errors import UserError
from tests.media import make_audio

KERNELS = [(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 2
"""Width and stride of HuBERT's convolutions."""


@dataclass
class Known:
    """Units of one recording."""

    labels: np.ndarray
    hop: int = 320
    rate_in: int = 16000
    window: int = 400

    def of(self, id: str) -> np.ndarray:
        return {"a.wav": self.labels}[id]

    def __contains__(self, id: str) -> bool:
        return id == "a.wav"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramp(folder: Path, samples: int, rate: int = 16000) -> Media:
    """A recording whose sample k is k / 2^20, so that a crop says where it was cut."""
    soundfile.write(folder / "a.wav", np.arange(samples) / 2**20, rate, subtype="FLOAT")
    return Media(Record("a.wav", "audio", "a.wav", frames=samples, rate=rate, backend="soundfile"), folder)


def begin(view: torch.Tensor) -> int:
    return round(float(view[0]) * 2**20)


def test_frames_are_what_the_convolutions_of_hubert_make_of_every_length() -> None:
    for samples in range(400, 60_001):
        length = samples
        for kernel, stride in KERNELS:
            length = (length - kernel) // stride + 1
        assert frames_of(samples) == length
        assert samples_of(length) <= samples < samples_of(length + 1)
    assert (frames_of(250_000), frames_of(16_000), frames_of(399)) == (781, 49, 0)
    assert AudioCrops().frames == 781


@pytest.mark.parametrize("hop", [320, 160])
def test_units_are_those_that_labelling_the_crop_itself_would_give(tmp_path: Path, hop: int) -> None:
    media = ramp(tmp_path, 50_123)
    # The label of a window is the number of the sample it begins with: exact for the whole recording and for a crop.
    units = Known(np.arange(0, 50_123 - 400 + 1, hop), hop)
    views = pickle.loads(pickle.dumps(AudioCrops(units=units, min_seconds=0.1, max_seconds=1.0)))
    generator, starts = rng(), set()
    for _ in range(200):
        (sample,) = views(media, generator)
        crop = sample.views["view"]
        assert crop.dtype == torch.float32
        assert crop.shape == (samples_of(49),)
        expected = [begin(window) for window in crop.unfold(0, 400, 320)]
        assert sample.targets["units"].tolist() == expected
        assert sample.targets["units"].dtype == torch.int64
        assert float(sample.targets["start"]) == pytest.approx(begin(crop) / 16000)
        assert sample.lengths == {}
        starts.add(begin(crop))
    available = frames_of(50_123) - 49
    assert starts <= set(range(0, 320 * available + 1, 320))
    assert {0, 320 * available} <= starts  # 108 places, 200 draws: missing either has probability 0.3; seed is fixed


def test_every_place_is_equally_likely(tmp_path: Path) -> None:
    media, views, generator = ramp(tmp_path, samples_of(14)), AudioCrops(max_seconds=0.205, min_seconds=0.1), rng(1)
    counts = np.zeros(5)
    for _ in range(1000):
        counts[begin(views(media, generator)[0].views["view"]) // 320] += 1
    assert views.frames == 10
    assert ((counts - 200) ** 2 / 200).sum() < 18.5  # 99.9 % quantile of chi-square, 4 degrees of freedom


def test_a_crop_is_part_of_the_resampled_recording_with_the_units_of_that(tmp_path: Path) -> None:
    make_audio(tmp_path / "a.wav", 1.37, rate=44_100, channels=2)
    count = soundfile.info(tmp_path / "a.wav").frames
    media = Media(Record("a.wav", "audio", "a.wav", frames=count, rate=44_100.0, backend="soundfile"), tmp_path)
    whole = read_audio(media, 16_000)
    units = Known((whole.unfold(0, 400, 320).abs().sum(1) * 1000).round().numpy())
    views = AudioCrops(units=units, min_seconds=0.2, max_seconds=0.5)
    for seed in range(20):
        (sample,) = views(media, rng(seed))
        own = (sample.views["view"].unfold(0, 400, 320).abs().sum(1) * 1000).round()
        assert (own - sample.targets["units"]).abs().max() <= 1  # rounding


def test_parts_of_a_long_recording_are_apart_and_together_all_of_it(tmp_path: Path) -> None:
    media = ramp(tmp_path, samples_of(103))
    views = AudioCrops(min_seconds=0.1, max_seconds=0.5)
    found: set[int] = set()
    for part in range(4):
        own = set()
        for seed in range(200):
            start = begin(views.cut_to(Cut(24, part, 4))(media, rng(seed))[0].views["view"]) // 320
            own |= set(range(start, start + 24))
        assert not own & found
        found |= own
    assert found == set(range(103))


def test_short_recordings_are_skipped_or_padded_as_asked(tmp_path: Path) -> None:
    media = ramp(tmp_path, 8_123)
    units = Known(np.arange(frames_of(8_123)))
    skip = AudioCrops(units=units, min_seconds=0.3, max_seconds=1.0)
    with pytest.raises(UnreadableMedia, match=r"a\.wav: too short: 0.508 s, and 0.985 s are needed"):
        skip(media, rng())
    assert not skip.fits(media.record)
    pad = replace(skip, short="pad")
    assert pad.fits(media.record)
    (sample,) = pad(media, rng())
    assert sample.lengths == {"view": 8_123}
    assert sample.views["view"].shape == (samples_of(49),)
    assert begin(sample.views["view"][8_122:]) == 8_122
    assert not sample.views["view"][8_123:].any()
    assert sample.targets["units"].tolist() == [*range(25), *[-1] * 24]
    with pytest.raises(UnreadableMedia, match=r"0\.6 s are needed"):
        replace(pad, min_seconds=0.6)(media, rng())


def test_a_file_that_nobody_verified_is_read_whole(tmp_path: Path) -> None:
    media = ramp(tmp_path, 40_000)
    views = AudioCrops(min_seconds=0.3, max_seconds=1.0)
    unknown = Media(replace(media.record, frames=None, rate=None), media.root)
    assert views.fits(unknown.record)
    assert torch.equal(views(unknown, rng(5))[0].views["view"], views(media, rng(5))[0].views["view"])


def test_units_of_other_audio_are_refused(tmp_path: Path) -> None:
    media = ramp(tmp_path, 40_000)
    views = AudioCrops(units=Known(np.arange(62)), min_seconds=0.3, max_seconds=1.0)
    with pytest.raises(UserError, match=r"a\.wav has 62 units and should have 124 .*make them again"):
        views(media, rng())
    with pytest.raises(UnreadableMedia, match=r"b\.wav: has no units"):
        views(Media(replace(media.record, id="b.wav"), media.root), rng())
    with pytest.raises(UserError, match="at 8000 Hz, one every 320 samples for 400, and the recipe reads 16000 Hz"):
        AudioCrops(units=Known(np.arange(9), rate_in=8000))
    with pytest.raises(UserError, match="one every 200 samples"):
        AudioCrops(units=Known(np.arange(9), hop=200))
    with pytest.raises(UserError, match="320 samples for 640"):
        AudioCrops(units=Known(np.arange(9), window=640))
    with pytest.raises(UserError, match="--max-seconds of at least 2"):
        AudioCrops(max_seconds=1.0)


def test_the_replacement_of_an_unreadable_file_is_long_enough(tmp_path: Path) -> None:
    for number in range(8):
        make_audio(tmp_path / "data" / f"{number}.wav", 2.0 if number in (0, 5) else 0.3)
    source = open_source(tmp_path / "data", "audio", out=tmp_path, workers=1, cache=tmp_path / "cache")
    (tmp_path / "data" / "0.wav").unlink()
    dataset = MediaDataset(source, AudioCrops(min_seconds=0.1, max_seconds=2.0), 0, {"x": 1}, source.rows())
    for epoch in range(10):
        loaded = dataset[Draw(epoch, 0, Cut(60, 3, 4))]
        assert loaded.row == 5
        assert {row for row, _ in loaded.skipped} == {0}  # shorter ones are not tried, and so not reported
        assert loaded.samples[0].views["view"].shape == (samples_of(60),)
    noise = [float(dataset[Draw(0, 5, Cut(10, part, 3))].noise[0]["x"]) for part in range(3)]
    assert len(set(noise)) == 3
    assert noise[0] == float(dataset[Draw(0, 5, Cut(10))].noise[0]["x"])
    with pytest.raises(TypeError, match="samples of one size"):
        AudioCrops().centre().cut_to(Cut(10))


def test_the_evaluation_view_is_the_middle(tmp_path: Path) -> None:
    media = ramp(tmp_path, 40_000)
    (sample,) = AudioCrops(max_seconds=1.0, min_seconds=0.5).centre()(media, rng())
    assert begin(sample.views["view"]) == (40_000 - samples_of(49)) // 2
    assert sample.views["view"].shape == (samples_of(49),)

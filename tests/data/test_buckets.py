"""Claims: a plan by length reads every crop of every recording once a pass, never passes the seconds it is given, has
one shape a micro-batch and as many shapes as buckets, is the same for any number of processes and from any step on;
its buckets waste the least that so many buckets can; what cannot work is refused in a sentence; through the loader, the
crops have the planned length and the units of their place."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile

from mmssl.data.audio import read_audio
from mmssl.data.buckets import BucketPlan
from mmssl.data.crops_audio import AudioCrops, frames_of, samples_of
from mmssl.data.edges import bucket_edges
from mmssl.data.loader import MediaDataset, make_loader
from mmssl.data.plan import Draw
from mmssl.data.sources import Source, open_source
from mmssl.errors import UserError
from tests.media import make_audio

SAMPLES = np.random.default_rng(0).gamma(6.0, 2.0, 700) * 16000
"""Seconds of about 12 on average, in samples."""
SAMPLES[:9], SAMPLES[9:12] = 16_000, 16_000 * np.array([300, 47, 33])  # too short; much longer than the longest crop
ROWS = np.arange(1000, 1700)


def make(**changes: Any) -> BucketPlan:
    settings: dict[str, Any] = {"seed": 3, "batch_seconds": 100.0, "accumulate": 1, "buckets": 8} | changes
    views = settings.pop("views", AudioCrops())
    rows, samples = settings.pop("rows", ROWS), settings.pop("samples", SAMPLES)
    return BucketPlan(rows, samples.astype(np.int64), views, **settings)


def seconds(draws: list[Draw]) -> float:
    return sum(samples_of(draw.cut.frames) for draw in draws if draw.cut) / 16000


@pytest.mark.parametrize("short", ["skip", "pad"])
def test_every_crop_comes_once_an_epoch_and_no_batch_passes_the_limit(short: Any) -> None:
    plan = make(views=AudioCrops(short=short))
    expected = set()
    for row, samples in zip(ROWS.tolist(), SAMPLES.astype(int).tolist(), strict=True):
        if samples >= 32_000:
            parts = max(frames_of(samples) // 781, 1)
            expected |= {(row, part, parts) for part in range(parts)}
    assert (1009, 18, 19) in expected  # 300 s
    seen: Counter[tuple[int, int, int, int]] = Counter()
    shapes = set()
    for step in range(round(4 * plan.steps_per_epoch)):
        (draws,) = plan.micro_batches(step)
        assert draws == plan.draws(step)
        assert seconds(draws) <= 100
        assert seconds(draws) == pytest.approx(plan.seconds(step))
        shapes.add((len(draws), draws[0].cut.frames))  # type: ignore[union-attr]
        for draw in draws:
            assert draw.cut is not None
            assert draw.cut.frames == draws[0].cut.frames  # type: ignore[union-attr]
            frames = min(frames_of(int(SAMPLES[draw.row - 1000])), 781)
            assert frames >= draw.cut.frames if short == "skip" else frames <= draw.cut.frames
            seen[draw.epoch, draw.row, draw.cut.part, draw.cut.parts] += 1
    assert set(seen.values()) == {1}
    assert len(shapes) == len(plan.buckets) == 8
    for epoch in range(3):  # the last of the four has not ended in every bucket
        assert {key[1:] for key in seen if key[0] == epoch} == expected
    assert len(seen) == pytest.approx(4 * len(expected), rel=0.03)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_any_number_of_processes_shares_the_same_batches(accumulate: int) -> None:
    plan = make(batch_seconds=150.0 * accumulate, accumulate=accumulate)
    for step in range(40):
        alone = plan.micro_batches(step)
        assert len(alone) == accumulate
        for world in (2, 3, 5, 8):
            shares = [plan.micro_batches(step, rank, world) for rank in range(world)]
            for number in range(accumulate):
                parts = [share[number] for share in shares]
                assert [draw for part in parts for draw in part] == alone[number]
                assert max(map(len, parts)) - min(map(len, parts)) <= 1
        split = plan.micro_batches(step, accumulate=2 * accumulate)
        assert len(split) == 2 * accumulate
        assert [draw for part in split for draw in part] == plan.draws(step)
        assert plan.seconds(step) <= 150 * accumulate
    with pytest.raises(ValueError, match="made for"):
        plan.micro_batches(0, accumulate=accumulate + 1 if accumulate > 1 else 0)


def test_a_step_number_is_all_that_resuming_needs() -> None:
    plan, again = make(accumulate=2), make(accumulate=2)
    steps = list(range(0, 400, 7))
    forwards = [plan.micro_batches(step) for step in steps]
    assert [again.micro_batches(step) for step in reversed(steps)] == forwards[::-1]
    assert make(seed=4, accumulate=2).draws(0) != plan.draws(0)


def test_passes_are_shuffled_and_lengths_are_mixed() -> None:
    plan = make()
    order = [plan.draws(step)[0].cut.frames for step in range(2 * round(plan.steps_per_epoch))]  # type: ignore[union-attr]
    half = len(order) // 2
    assert order[:half] != order[half : 2 * half]
    assert np.corrcoef(order[:-1], order[1:])[0, 1] < 0.3
    early = [draw.row for step in range(20) for draw in plan.draws(step)]
    assert abs(np.corrcoef(early, np.arange(len(early)))[0, 1]) < 0.25


def test_a_batch_of_few_recordings_has_none_three_times() -> None:
    plan = make(rows=ROWS[100:130], samples=SAMPLES[100:130], batch_seconds=60.0, buckets=30)
    for step in range(100):
        rows = Counter(draw.row for draw in plan.draws(step))
        assert max(rows.values()) <= 2  # twice where one epoch ends and the next begins
    assert all(len(bucket.row) >= bucket.files for bucket in plan.buckets)


@pytest.mark.parametrize("pad", [False, True])
def test_edges_are_the_best_of_all(pad: bool) -> None:
    lengths = np.array([3, 4, 7, 8, 9, 15, 16, 20])
    counts = np.array([5, 1, 3, 8, 2, 1, 6, 4])
    fit = 40 // lengths

    def cost(edges: tuple[int, ...]) -> float:
        total = 0.0
        for first, last in pairwise(edges):
            shape = last - 1 if pad else first
            if counts[first:last].sum() < fit[shape]:
                return np.inf
            total += abs(counts[first:last] * (lengths[first:last] - lengths[shape])).sum()
        return total

    every = [(0, *inner, 8) for size in range(4) for inner in combinations(range(1, 8), size)]
    found = bucket_edges(lengths, counts, fit, 4, pad)
    assert found is not None
    assert cost(tuple(found)) == min(map(cost, every)) < np.inf
    assert bucket_edges(lengths, counts, np.full(8, 31), 4, pad) is None


@pytest.mark.parametrize("short", ["skip", "pad"])
def test_a_few_others_do_not_drag_the_many_of_one_length_along(short: Any) -> None:
    """Long recordings give many crops of the longest length; a few short ones are no batch of their own."""
    samples = np.array([200_000_000, 40_000, 48_000, 50_000])
    plan = make(rows=np.arange(4), samples=samples, batch_seconds=40.0, views=AudioCrops(short=short))
    crops = {bucket.frames: len(bucket.row) for bucket in plan.buckets}
    assert sum(crops.values()) == frames_of(200_000_000) // 781 + 3
    assert crops[781] > 620
    assert all(len(bucket.row) >= bucket.files for bucket in plan.buckets)
    if short == "skip":
        assert {frames for frames in crops if frames < 781} == {frames_of(40_000)}


def test_buckets_waste_less_than_none() -> None:
    many, few, one = (make(samples=np.minimum(SAMPLES, 250_000), buckets=buckets) for buckets in (16, 4, 1))
    heard = [float(plan.notes()[0].split(": ")[1].split("%")[0]) for plan in (many, few, one)]
    assert heard[0] > 96 > heard[1] > 84 > 30 > heard[2]
    assert (
        make().notes()[1] == f"{(SAMPLES < 32_000).sum()} of 700 recordings are shorter than --min-seconds 2: left out."
    )


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": -1}, ["-1", "--seed"]),
        ({"samples": SAMPLES * 0 + 16_000}, ["at least 2 s", "--min-seconds"]),
        ({"rows": ROWS[:0], "samples": SAMPLES[:0]}, ["--min-seconds"]),
        ({"batch_seconds": 15.0}, ["--batch-seconds 15", "--max-seconds"]),
        ({"batch_seconds": 60.0, "accumulate": 4}, ["60", "4 micro-batch"]),
        ({"rows": ROWS[20:24], "samples": SAMPLES[20:24]}, ["more than the data has", "4 crops"]),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(changes: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make(**changes)
    assert all(name in str(error.value) for name in names)


def test_too_many_processes_are_refused() -> None:
    with pytest.raises(UserError, match=r"micro-batches of 6 recording\(s\), too few for 8 processes"):
        make().micro_batches(0, 0, 8)


# ---------------------------------------------------------------- through the loader


@dataclass
class Numbers:
    """Unit n of a recording is 1000 x the recording's number + n."""

    hop: int = 320
    rate_in: int = 16000
    window: int = 400
    known: tuple[str, ...] = tuple(f"{number}.wav" for number in range(24))

    def of(self, id: str) -> np.ndarray:
        number = int(id.removesuffix(".wav"))
        return 1000 * number + np.arange(frames_of(4000 + 1700 * number))

    def __contains__(self, id: str) -> bool:
        return id in self.known


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """24 recordings of 0.25 to 2.7 s."""
    root = tmp_path_factory.mktemp("sounds")
    for number in range(24):
        make_audio(root / "data" / f"{number}.wav", (4000 + 1700 * number) / 16000, seed=number)
    return open_source(root / "data", "audio", out=root, workers=1, cache=root / "cache")


@pytest.mark.parametrize("short", ["skip", "pad"])
def test_batches_arrive_as_planned(source: Source, short: Any) -> None:
    views = AudioCrops(units=Numbers(), min_seconds=0.3, max_seconds=1.5, short=short)
    plan = BucketPlan.of(source, source.rows(), views, seed=0, batch_seconds=6.0, accumulate=2, buckets=4)
    assert len(plan.rows) == 23
    dataset = MediaDataset(source, views, 0, {"mask": 2})
    got = list(make_loader(dataset, plan, start_step=0, stop_step=6, accumulate=2))
    assert len(got) == 12
    planned = [batch for step in range(6) for batch in plan.micro_batches(step)]
    for batch, draws in zip(got, planned, strict=True):
        assert batch.index.tolist() == [draw.row for draw in draws]
        frames = draws[0].cut.frames  # type: ignore[union-attr]
        assert tuple(batch.views["view"].shape) == (len(draws), samples_of(frames))
        assert batch.skipped == ()
        starts = (batch.targets["start"][:, 0] * 50).round().long()
        for draw, start, units in zip(draws, starts.tolist(), batch.targets["units"].tolist(), strict=True):
            number = int(source.id(draw.row).removesuffix(".wav"))
            real = min(frames, frames_of(4000 + 1700 * number))
            assert units == [1000 * number + start + n for n in range(real)] + [-1] * (frames - real)
        assert ("view" in batch.lengths) == (short == "pad")
    resumed = list(make_loader(dataset, plan, start_step=4, stop_step=6, accumulate=2))
    halves = [
        list(make_loader(dataset, plan, start_step=4, stop_step=6, rank=r, world=2, accumulate=2)) for r in (0, 1)
    ]
    for number, batch in enumerate(resumed):
        whole = got[8 + number]
        both = np.concatenate([half[number].views["view"] for half in halves])
        assert np.array_equal(batch.views["view"], whole.views["view"])
        assert np.array_equal(both, whole.views["view"])
        assert np.array_equal(np.concatenate([half[number].noise["mask"] for half in halves]), whole.noise["mask"])


def test_rows_without_known_lengths_are_refused(source: Source) -> None:
    with pytest.raises(UserError, match="save the recordings as files"):
        BucketPlan.of(cast(Source, None), source.rows(), AudioCrops(), seed=0, batch_seconds=6.0)


def test_recordings_without_units_are_left_out_and_said(source: Source) -> None:
    settings: dict[str, Any] = {"seed": 0, "batch_seconds": 3.0, "buckets": 2}
    some = AudioCrops(units=Numbers(known=("5.wav", "7.wav", "20.wav", "22.wav")), min_seconds=0.3, max_seconds=1.5)
    plan = BucketPlan.of(source, source.rows(), some, **settings)
    assert {source.id(row) for row in plan.rows.tolist()} == set(some.units.known)  # type: ignore[union-attr]
    assert "20 of 24 recordings have no units (see skipped.jsonl beside the units): left out." in plan.notes()
    every = BucketPlan.of(source, source.rows(), replace(some, units=Numbers()), **settings)
    assert not any("no units" in note for note in every.notes())
    with pytest.raises(UserError, match=r"None of the 24 recordings has units \(0.wav, .*name their folder by --units"):
        BucketPlan.of(source, source.rows(), replace(some, units=Numbers(known=())), **settings)


def test_lengths_come_from_the_index_at_the_rate_of_the_views(tmp_path: Path) -> None:
    make_audio(tmp_path / "data" / "a.wav", 1.0, rate=8000)
    source = open_source(tmp_path / "data", "audio", out=tmp_path, workers=1, cache=tmp_path / "cache")
    plan = BucketPlan.of(source, source.rows(), AudioCrops(min_seconds=0.5), seed=0, batch_seconds=1.0)
    assert plan.buckets[0].frames == frames_of(16_000)


@pytest.mark.heavy
def test_recordings_of_a_tenth_of_a_second_and_of_three_hours(tmp_path: Path) -> None:
    """Of the long one only the crops are read: each in far less time than decoding it would take."""
    seconds, rate = 3 * 3600, 8000
    folder = tmp_path / "data"
    make_audio(folder / "short.wav", 0.1)
    make_audio(folder / "some.wav", 3.0, channels=2)
    with soundfile.SoundFile(folder / "long.flac", "w", rate, 1) as file:
        for minute in range(seconds // 60):  # the level tells the minute
            file.write(np.full(60 * rate, (minute + 1) / 256))
    source = open_source(folder, "audio", out=tmp_path, workers=1, cache=tmp_path / "cache")
    plan = BucketPlan.of(source, source.rows(), AudioCrops(), seed=0, batch_seconds=20.0, buckets=4)
    assert plan.notes()[1] == "1 of 3 recordings are shorter than --min-seconds 2: left out."
    dataset, whole = MediaDataset(source, AudioCrops(), 0), time.perf_counter()
    read_audio(source.media(source.rows()[0]), 16_000, start=0.0, seconds=1800.0)
    whole = 6 * (time.perf_counter() - whole)
    read, began = 0, time.perf_counter()
    for step in range(40):
        for draw in plan.draws(step):
            sample = dataset[draw].samples[0]
            if source.id(draw.row) == "long.flac":
                read += 1
                start = float(sample.targets["start"])
                middle = sample.views["view"][1000:-1000]
                assert {round(float(level) * 256) - 1 for level in (middle[0], middle[-1])} <= {
                    int(start // 60),
                    int((start + 16) // 60),
                }
    assert read > 35
    assert (time.perf_counter() - began) / 40 < whole / 20

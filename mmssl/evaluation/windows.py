"""`mmssl evaluate windows`: COLA's probe of recordings of any length (Saeed et al. 2021; official code, supervised.py).

A linear head on the frozen encoder's pooled output is trained on random windows; a test recording gets the mean of the
logits of all its non-overlapping windows.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console

from mmssl.adapters.specs import AudioSpec, SoundSpec
from mmssl.data.audio import read_audio
from mmssl.data.indexing import show_progress
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.sources import Source, open_source
from mmssl.data.views import AudioViews, Sample, Views
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.errors import UserError
from mmssl.evaluation.command import Answer, LinearSettings, Probing, compare
from mmssl.evaluation.features import Features, extract_all, features_cache
from mmssl.evaluation.labels import file_labels
from mmssl.evaluation.linear import linear_probe
from mmssl.evaluation.results import check_file, data_of, encode, settings_of, versions, write_result
from mmssl.evaluation.subject import describe, pick_device, untrained
from mmssl.evaluation.table import print_table
from mmssl.evaluation.views import kind_for


@dataclass(kw_only=True)
class WindowsSettings(LinearSettings):
    """A linear probe on random windows of recordings; a test recording gets the mean logits of all its windows."""

    draws: int = 10
    """Random windows of a training recording. (The official code draws one anew in each of 100 epochs.)"""
    seconds: float | None = None
    """Length of a training window; the encoder's own, in whole steps of 10 ms, if not given (COLA's 1 s)."""
    test_seconds: float | None = None
    """Length and distance of the windows of a test recording; as in training if not given, but the frames x 10 ms of a
    convolutional net with COLA's front end (0.98 s, which hold 96 whole frames, as in the official code)."""

    @property
    def name(self) -> str:
        return "windows"

    def check(self) -> None:
        super().check()
        if self.labels != "data" or self.clips != 1:
            raise UserError(
                "A probe of windows takes the labels of the data and all windows: leave out --labels, --clips."
            )
        if self.draws < 1 or min(self.seconds or 1.0, self.test_seconds or 1.0) <= 0:
            raise UserError("--draws is 1 or more, --seconds and --test-seconds are above 0.")

    def run(self) -> dict[str, Any]:
        return run_windows(self)


def run_windows(settings: WindowsSettings) -> dict[str, Any]:
    """Evaluate as the command line does: load, compute, print the table, write the JSON file; returns its content."""
    settings.check()
    check_file(settings.out)
    encoder = Encoder.from_pretrained(settings.encoder)
    if encoder.spec.modality != "audio":
        raise UserError(f"Windows are cut from recordings, and this encoder takes {encoder.spec.modality}.")
    with show_progress(Console(stderr=True)) as progress:
        source = open_source(settings.data, kind_for(settings.data, encoder.spec), progress=progress)
    result = evaluate_windows(encoder, source, settings)
    write_result(settings.out, result)
    print_table(result)
    print(f"All figures: {settings.out}")
    return result


def evaluate_windows(encoder: Encoder, source: Source, settings: WindowsSettings) -> dict[str, Any]:
    """All figures: the encoder, its untrained twins and chance, on the same windows.

    Raises:
        UserError: no labels, too few classes or files, or files that cannot be read.
    """
    settings.check()
    begin = time.monotonic()
    task = file_labels(source, settings.seed)
    fit, test = window_views(encoder, settings)
    twins = [untrained(encoder, seed) for seed in range(settings.seed, settings.seed + settings.seeds)]

    def features(rows: np.ndarray, views: Views) -> list[Features]:
        return extract_all(
            [encoder, *twins],
            source,
            rows,
            views=views,
            each=True,
            batch_size=settings.batch_size,
            workers=settings.workers,
            device=pick_device(settings.device),
            seed=settings.seed,
            cache=features_cache() if settings.cache else None,
            title="windows",
        )

    sides = list(zip(features(task.train, fit), features(task.test, test), strict=True))
    probe = WindowProbing(task, settings, sides[0])
    skipped = [entry for side in sides[0] for entry in side.skipped]
    counts = (len(probe.known), len(probe.truth))
    about = data_of(settings.data, settings.labels, source, task, test, examples=counts, skipped=skipped)
    return {
        "evaluation": settings.name,
        "settings": settings_of(settings),
        "encoder": describe(encoder, settings.encoder),
        "data": about | {"training_views": repr(fit), "test_windows": len(sides[0][1].x)},
        **compare(probe, sides[0], sides[1:], settings),
        "versions": versions(),
        "device": str(pick_device(settings.device)),
        "seconds": round(time.monotonic() - begin, 3),
    }


def window_views(encoder: Encoder, settings: WindowsSettings) -> tuple[Views, Views]:
    """How training and test recordings are cut."""
    spec = encoder.spec
    assert isinstance(spec, SoundSpec)
    rate, step = spec.rate, round(0.010 * spec.rate)
    train = math.ceil(spec.samples / step) * step if settings.seconds is None else round(settings.seconds * rate)
    if settings.test_seconds is not None:
        test = round(settings.test_seconds * rate)
    else:
        test = train
        if isinstance(spec, AudioSpec) and spec.front == "cola" and not isinstance(encoder, TokenEncoder):
            test = spec.frames * step
    return AudioViews(rate, train, per_file=settings.draws), AllWindows(rate, test)


@dataclass(frozen=True)
class AllWindows(Views):
    """All windows of a recording, one after the other, each float32 [samples]; zeros follow the end of the last one."""

    rate: int
    samples: int
    names: tuple[str, ...] = ("view",)
    per_file: int = 1
    """Of a short recording; longer ones have more."""

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        wave = read_audio(media, self.rate)
        if len(wave) == 0:
            raise UnreadableMedia(f"{media.name}: holds no sound")
        windows = wave.split(self.samples)
        return [
            Sample({"view": F.pad(part, (0, self.samples - len(part)))}, lengths={"view": len(part)})
            for part in windows
        ]

    def centre(self) -> Views:
        return self


class WindowProbing(Probing):
    """Probes trained on windows and scored on recordings. What it takes as features is (training, test) windows."""

    def __init__(self, task: Any, settings: WindowsSettings, features: tuple[Features, Features]) -> None:
        self.task, self.settings = task, settings
        train, test = features
        self.known = encode(train.labels, task.classes)
        self.groups, first = np.unique(test.rows, return_index=True)
        self.truth = encode(test.labels, task.classes)[first]
        if not len(self.known) or not len(self.truth):
            raise UserError("No training file, or no test file, could be read: run `mmssl index` on the data.")

    def __call__(self, features: Any, shuffle: int | None = None) -> Answer:
        train, test = features
        settings, device = self.settings, pick_device(self.settings.device)
        assert isinstance(settings, WindowsSettings)
        labels = self.known if shuffle is None else shuffled_files(train.rows, self.known, shuffle)
        head = linear_probe(
            torch.from_numpy(train.x).to(device),
            torch.from_numpy(labels).to(device),
            classes=len(self.task.classes),
            groups=train.rows,
            rates=settings.rates,
            decays=settings.decays,
            epochs=settings.epochs,
            batch=settings.probe_batch_size,
            seed=settings.seed,
        )
        logits = head.logits(torch.from_numpy(test.x).to(device)).cpu().numpy()
        trials = [dataclasses.asdict(trial) for trial in head.trials]
        for trial in trials:  # JSON has no infinity
            trial["validation_loss"] = trial["validation_loss"] if np.isfinite(trial["validation_loss"]) else None
        predicted = mean_by_group(test.rows, logits).argmax(1)
        return Answer(predicted, {"rate": head.rate, "decay": head.decay, "validation": trials})


def mean_by_group(groups: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of values [N,C] over the examples of each group, float64 [G,C], groups in rising order."""
    different, place = np.unique(groups, return_inverse=True)
    total = np.zeros((len(different), values.shape[1]))
    np.add.at(total, place, values)
    return total / np.bincount(place)[:, None]


def shuffled_files(rows: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Labels permuted among the files; windows of one file keep one label."""
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    return np.random.default_rng(seed).permutation(labels[first])[place]

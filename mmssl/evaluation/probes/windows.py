"""`mmssl evaluate windows`: COLA's probe of recordings of any length (Saeed et al. 2021; official code, supervised.py).

A linear head on the frozen encoder's pooled output is trained on random windows; a test recording gets the mean of the
logits of all its non-overlapping windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mmssl.adapters.specs import AudioSpec, SoundSpec
from mmssl.data.audio import read_audio
from mmssl.data.audio_views import AudioViews
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.sources import Source
from mmssl.data.views import Sample, Views
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.errors import UserError
from mmssl.evaluation.features import Features, extract_all
from mmssl.evaluation.frame import Figures, open_media, run
from mmssl.evaluation.labels import Task, file_labels
from mmssl.evaluation.probes.linear import LinearSettings, fit
from mmssl.evaluation.probes.probing import Answer, Examples, compare
from mmssl.evaluation.results import encode
from mmssl.evaluation.subject import pick_device


@dataclass(kw_only=True)
class WindowsSettings(LinearSettings):
    """A linear probe on random windows of recordings; a test recording gets the mean logits of all its windows."""

    evaluation = "windows"

    draws: int = 10
    """Random windows of a training recording. (The official code draws one anew in each of 100 epochs.)"""
    seconds: float | None = None
    """Length of a training window; the encoder's own, in whole steps of 10 ms, if not given (COLA's 1 s)."""
    test_seconds: float | None = None
    """Length and distance of the windows of a test recording; as in training if not given, but the frames x 10 ms of a
    convolutional net with COLA's front end (0.98 s, which hold 96 whole frames, as in the official code)."""

    def check(self) -> None:
        super().check()
        if self.labels != "data" or self.clips != 1:
            raise UserError(
                "A probe of windows takes the labels of the data and all windows: leave out --labels, --clips."
            )
        if self.draws < 1 or min(self.seconds or 1.0, self.test_seconds or 1.0) <= 0:
            raise UserError("--draws is 1 or more, --seconds and --test-seconds are above 0.")

    def run(self) -> Figures:
        return run(self, evaluate, data=recordings)


def recordings(settings: WindowsSettings, encoder: Encoder) -> Source:
    if encoder.spec.modality != "audio":
        raise UserError(f"Windows are cut from recordings, and this encoder takes {encoder.spec.modality}.")
    return open_media(settings.data, "audio")


def evaluate(encoders: list[Encoder], source: Source, settings: WindowsSettings) -> Figures:
    """The encoder, its untrained twins and chance, on the same windows.

    Raises:
        UserError: no labels, too few classes or files, or files that cannot be read.
    """
    task = file_labels(source, settings.seed)
    fit_views, test_views = window_views(encoders[0], settings)

    def features(rows: np.ndarray, views: Views) -> list[Features]:
        how = settings.reading()
        return extract_all(encoders, source, rows, views=views, each=True, seed=settings.seed, title="windows", **how)

    sides = list(zip(features(task.train, fit_views), features(task.test, test_views), strict=True))
    probe = WindowProbe(task, settings, sides[0])
    skipped = [entry for side in sides[0] for entry in side.skipped]
    figures = compare(probe, sides, settings, source, test_views, probe.examples, skipped)
    figures["data"] |= {"training_views": repr(fit_views), "test_windows": len(sides[0][1].x)}
    return figures


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


class WindowProbe:
    """Probes trained on windows and scored on recordings. What it takes as features is (training, test) windows."""

    def __init__(self, task: Task, settings: WindowsSettings, features: tuple[Features, Features]) -> None:
        self.settings = settings
        train, test = features
        groups, first = np.unique(test.rows, return_index=True)
        known, truth = encode(train.labels, task.classes), encode(test.labels, task.classes)
        self.examples = Examples(task, known, truth[first], groups)

    def __call__(self, features: tuple[Features, Features], shuffle: int | None = None) -> Answer:
        train, test = features
        device, known = pick_device(self.settings.device), self.examples.known
        labels = known if shuffle is None else shuffled_files(train.rows, known, shuffle)
        x, y, queries = (torch.from_numpy(part).to(device) for part in (train.x, labels, test.x))
        head = fit(x, y, train.rows, len(self.examples.task.classes), self.settings)
        return Answer(mean_by_group(test.rows, head.logits(queries).cpu().numpy()).argmax(1), head.chosen)


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

"""What the probes of frozen encoders share: their settings, their examples, their figures beside twins and chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmssl.adapters.specs import Spec
from mmssl.data.sources import Source
from mmssl.data.views import Views
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.features import Features, extract_all, features_cache
from mmssl.evaluation.frame import Figures, Settings, at_least, beside
from mmssl.evaluation.labels import Task, file_labels, footage_labels
from mmssl.evaluation.metrics import balanced_accuracy, chance, difference, mean_interval, score
from mmssl.evaluation.results import data_of, encode
from mmssl.evaluation.subject import pick_device
from mmssl.evaluation.views import evaluation_views

SHUFFLES = 20


@dataclass(kw_only=True)
class ProbeSettings(Settings):
    """What all probes ask for."""

    labels: Literal["data", "speed", "arrow"] = "data"
    """'data': class folders or metadata. 'speed' (video): every file gives clips at 1x, 2x and 4x, to be told apart.
    'arrow' (video): clips that run forward and backwards."""
    clips: int = 1
    """Clips or segments of a file whose features are averaged; 1 is the middle one."""
    shuffle_labels: bool = False
    """Also train the probe on shuffled labels, twenty times: a control that has to be at chance."""
    batch_size: int = 64
    workers: int = 2
    """Processes that decode; 0 decodes in this one."""
    cache: bool = True
    """Keep features on disk and use those that are already there."""

    @property
    def name(self) -> str:
        return self.evaluation if self.labels == "data" else f"{self.evaluation} ({self.labels})"

    def check(self) -> None:
        super().check()
        at_least(self, clips=1, batch_size=1, workers=0)
        if self.labels != "data" and self.clips != 1:
            raise UserError(
                f"--clips averages clips of one file, which --labels {self.labels} tells apart: leave it out."
            )

    def reading(self) -> dict[str, Any]:
        """How files are read and encoded, for what collects features."""
        return {
            "batch_size": self.batch_size,
            "workers": self.workers,
            "device": pick_device(self.device),
            "cache": features_cache() if self.cache else None,
        }


def task_for(settings: ProbeSettings, source: Source, spec: Spec) -> tuple[Task, Views]:
    """What is to be told apart, and what the encoder is shown for it. Raises UserError where the data give none."""
    if settings.labels != "data":
        return footage_labels(source, spec, settings.labels, settings.seed)
    return file_labels(source, settings.seed), evaluation_views(spec, settings.clips)


def pooled_features(
    encoders: Sequence[Encoder], source: Source, task: Task, views: Views, settings: ProbeSettings
) -> list[Features]:
    """One vector an example, of the training and of the test files, by encoder."""
    return extract_all(
        encoders,
        source,
        np.concatenate([task.train, task.test]),
        views=views,
        classes=task.classes if settings.labels != "data" else None,
        seed=settings.seed,
        **settings.reading(),
    )


@dataclass(frozen=True)
class Examples:
    """What is told apart: the same examples in the same order for every encoder.

    Raises:
        UserError: when no file of one side could be read.
    """

    task: Task
    known: np.ndarray
    """int64 [N]: classes of the training examples."""
    truth: np.ndarray
    """int64 [Q]: classes of the test examples."""
    groups: np.ndarray
    """int64 [Q]: the file that each test example is from."""

    def __post_init__(self) -> None:
        if not len(self.known) or not len(self.truth):
            raise UserError("No training file, or no test file, could be read: run `mmssl index` on the data.")

    @staticmethod
    def of(features: Features, task: Task) -> Examples:
        train, test = features.at(task.train), features.at(task.test)
        return Examples(task, encode(train.labels, task.classes), encode(test.labels, task.classes), test.rows)

    def labels(self, shuffle: int | None) -> np.ndarray:
        """int64 [N]: classes of the training examples, permuted where a seed is given."""
        return self.known if shuffle is None else np.random.default_rng(shuffle).permutation(self.known)


@dataclass(frozen=True)
class Answer:
    """Predictions of one probe."""

    predicted: np.ndarray
    """int64 [Q]."""
    details: dict[str, Any]
    """What the probe chose or tried, for the JSON file."""


class Probe(Protocol):
    """Trained and scored alike for every encoder."""

    def __call__(self, features: Any, shuffle: int | None = None) -> Answer:
        """Train on the training examples (their labels shuffled at a seed, if given) and predict the test examples."""


def compare(
    probe: Probe,
    features: Sequence[Any],
    settings: ProbeSettings,
    source: Source,
    views: Views,
    examples: Examples,
    skipped: Sequence[tuple[str, str]],
) -> Figures:
    """What the JSON file says of the data, and the figures of the encoder (whose features stand first), of its
    untrained twins and of chance."""
    task, truth, groups, seed = examples.task, examples.truth, examples.groups, settings.seed

    def figures(answer: Answer) -> Figures:
        return dataclasses.asdict(score(truth, answer.predicted, task.classes, groups, seed)) | answer.details

    def gain(answer: Answer, twin: Answer) -> Figures:
        return dataclasses.asdict(difference(truth, answer.predicted, twin.predicted, groups, seed))

    counts = len(examples.known), len(truth)
    return {
        "data": data_of(settings.data, settings.labels, source, task, views, examples=counts, skipped=skipped),
        **beside([probe(one) for one in features], figures, gain, seed),
        "shuffled": control(probe, features[0], truth, seed) if settings.shuffle_labels else None,
        "chance": dataclasses.asdict(chance(examples.known, truth)),
    }


def control(probe: Probe, features: Any, truth: np.ndarray, seed: int) -> Figures:
    """Figures of `SHUFFLES` probes on shuffled labels.

    Examples of one class lie together, so a shuffle gets whole classes right or wrong, and its accuracy varies far
    more than that of as many independent guesses. Hence several shuffles, and the interval of their mean.
    """
    answers = [probe(features, shuffle=seed + number).predicted for number in range(SHUFFLES)]
    top1 = np.array([(answer == truth).mean() for answer in answers])
    balanced = np.array([balanced_accuracy(truth, answer) for answer in answers])
    return {
        "top1": float(top1.mean()),
        "top1_interval": mean_interval(top1),
        "top1_each": top1.tolist(),
        "balanced": float(balanced.mean()),
        "balanced_interval": mean_interval(balanced),
        "balanced_each": balanced.tolist(),
    }


@dataclass(frozen=True)
class Sides:
    """Pooled features of one encoder on the device, and what is to be predicted from them."""

    x: Tensor
    """[N,D]: training examples."""
    y: Tensor
    """int64 [N]."""
    groups: np.ndarray
    """[N]: file of each of them."""
    queries: Tensor
    """[Q,D]: test examples."""
    truth: np.ndarray
    """int64 [Q]."""
    classes: int


S = TypeVar("S", bound=ProbeSettings)


def probe_pooled(encoders: list[Encoder], source: Source, settings: S, probe: Callable[[Sides, S], Answer]) -> Figures:
    """All of an evaluation of one vector an example but for `probe`, which trains and predicts.

    Raises:
        UserError: no labels, too few classes or files, or files that cannot be read.
    """
    task, views = task_for(settings, source, encoders[0].spec)
    found = pooled_features(encoders, source, task, views, settings)
    examples, device = Examples.of(found[0], task), pick_device(settings.device)

    def one(features: Features, shuffle: int | None = None) -> Answer:
        train, test = features.at(task.train), features.at(task.test)
        x, y, queries = (torch.from_numpy(part).to(device) for part in (train.x, examples.labels(shuffle), test.x))
        return probe(Sides(x, y, train.rows, queries, examples.truth, len(task.classes)), settings)

    return compare(one, found, settings, source, views, examples, found[0].skipped)

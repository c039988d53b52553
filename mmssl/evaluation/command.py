"""`mmssl evaluate knn` and `mmssl evaluate linear`: what an encoder is worth, beside its untrained twin and chance."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from mmssl.adapters.specs import Spec
from mmssl.data.indexing import show_progress
from mmssl.data.sources import Source, open_source
from mmssl.data.views import Views
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation import knn, linear
from mmssl.evaluation.embed import EmbedSettings, run_embed
from mmssl.evaluation.features import Features, extract_all, features_cache
from mmssl.evaluation.labels import Task, file_labels, footage_labels
from mmssl.evaluation.metrics import balanced_accuracy, chance, difference, mean_interval, score
from mmssl.evaluation.results import check_file, data_of, encode, settings_of, versions, write_result
from mmssl.evaluation.subject import describe, pick_device, untrained
from mmssl.evaluation.table import print_table
from mmssl.evaluation.views import evaluation_views, kind_for

__all__ = ["EmbedSettings", "KnnSettings", "LinearSettings", "evaluate", "run_embed", "run_evaluate", "versions"]

SHUFFLES = 5


@dataclass(kw_only=True)
class EvaluateSettings:
    """What both probes share."""

    encoder: str
    """Folder of a run's encoder, or a Hub id."""
    data: str
    """Labelled media: folders, a train/ + test/ tree, a folder with metadata.csv, WebDataset tars, or a Hub name."""
    out: Path
    """JSON file for all figures and settings."""
    labels: Literal["data", "speed", "arrow"] = "data"
    """'data': class folders or metadata. 'speed' (video): every file gives clips at 1x, 2x and 4x, to be told apart.
    'arrow' (video): clips that run forward and backwards."""
    clips: int = 1
    """Clips or segments of a file whose features are averaged; 1 is the middle one."""
    seed: int = 0
    """Fixes the split (where the data has none), the untrained encoder, the order of the probe and the intervals."""
    seeds: int = 1
    """Untrained encoders to compare with, at seeds seed, seed+1, ..."""
    shuffle_labels: bool = False
    """Also train the probe on shuffled labels, five times: a control that has to be at chance."""
    batch_size: int = 64
    workers: int = 2
    """Processes that decode; 0 decodes in this one."""
    device: str = "auto"
    """'auto' takes a GPU where one is at hand; else a torch device such as 'cpu' or 'cuda:1'."""
    cache: bool = True
    """Keep features on disk and use those that are already there."""

    def check(self) -> None:
        """Raise UserError for values that make no evaluation."""
        for name, least in (("seeds", 1), ("clips", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give {least} or more.")
        if self.labels != "data" and self.clips != 1:
            raise UserError(
                f"--clips averages clips of one file, which --labels {self.labels} tells apart: leave it out."
            )

    def run(self) -> dict[str, Any]:
        assert isinstance(self, KnnSettings | LinearSettings)
        return run_evaluate(self)


@dataclass(kw_only=True)
class KnnSettings(EvaluateSettings):
    """Weighted nearest neighbours on frozen features, as DINO evaluates (arXiv:2104.14294)."""

    @property
    def name(self) -> str:
        return "knn" if self.labels == "data" else f"knn ({self.labels})"

    k: int = 20
    """Neighbours of the figures in the table."""
    neighbours: tuple[int, ...] = knn.NEIGHBOURS
    """Further values of k that are reported."""
    temperature: float = knn.TEMPERATURE
    """T of the weight exp(cosine / T)."""

    def check(self) -> None:
        super().check()
        if min(self.k, *self.neighbours) < 1 or self.temperature <= 0:
            raise UserError("--k and --neighbours are counts of 1 or more, and --temperature is above 0.")


@dataclass(kw_only=True)
class LinearSettings(EvaluateSettings):
    """A linear probe on frozen, standardised features; rate and decay are chosen on a fifth of the training files."""

    @property
    def name(self) -> str:
        return "linear" if self.labels == "data" else f"linear ({self.labels})"

    rates: tuple[float, ...] = linear.RATES
    """Learning rates to choose from."""
    decays: tuple[float, ...] = linear.DECAYS
    """Weight decays to choose from."""
    epochs: int = 100
    """Passes over the training examples (and at least 1,000 steps)."""
    probe_batch_size: int = 256
    """Examples of one step of the probe."""

    def check(self) -> None:
        super().check()
        if not self.rates or not self.decays or min(self.rates) <= 0 or min(self.decays) < 0:
            raise UserError("--rates needs one or more values above 0, and --decays one or more of 0 or above.")
        if min(self.epochs, self.probe_batch_size) < 1:
            raise UserError("--epochs and --probe-batch-size are 1 or more.")


@dataclass(frozen=True)
class Answer:
    """Predictions of one probe."""

    predicted: np.ndarray
    """int64 [Q]."""
    details: dict[str, Any]
    """What the probe chose or tried, for the JSON file."""


def run_evaluate(settings: KnnSettings | LinearSettings) -> dict[str, Any]:
    """Evaluate as the command line does: load, compute, print the table, write the JSON file; returns its content."""
    settings.check()
    check_file(settings.out)
    encoder = Encoder.from_pretrained(settings.encoder)
    with show_progress(Console(stderr=True)) as progress:
        source = open_source(settings.data, kind_for(settings.data, encoder.spec), progress=progress)
    result = evaluate(encoder, source, settings)
    write_result(settings.out, result)
    print_table(result)
    print(f"All figures: {settings.out}")
    return result


def evaluate(encoder: Encoder, source: Source, settings: KnnSettings | LinearSettings) -> dict[str, Any]:
    """All figures of one probe: the encoder, its untrained twins and chance, on the same files.

    Raises:
        UserError: no labels, too few classes or files, or files that cannot be read.
    """
    settings.check()
    begin = time.monotonic()
    task, views = task_for(settings, source, encoder.spec)

    seeds = range(settings.seed, settings.seed + settings.seeds)
    trained, *twins = extract_all(
        [encoder, *(untrained(encoder, seed) for seed in seeds)],
        source,
        np.concatenate([task.train, task.test]),
        views=views,
        classes=task.classes if settings.labels != "data" else None,
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=pick_device(settings.device),
        seed=settings.seed,
        cache=features_cache() if settings.cache else None,
    )
    probe = Probing(task, settings, trained)
    return {
        "evaluation": settings.name,
        "settings": settings_of(settings),
        "encoder": describe(encoder, settings.encoder),
        "data": data_of(
            settings.data,
            settings.labels,
            source,
            task,
            views,
            examples=(len(probe.known), len(probe.truth)),
            skipped=trained.skipped,
        ),
        **compare(probe, trained, twins, settings),
        "versions": versions(),
        "device": str(pick_device(settings.device)),
        "seconds": round(time.monotonic() - begin, 3),
    }


def task_for(settings: EvaluateSettings, source: Source, spec: Spec) -> tuple[Task, Views]:
    """What is to be told apart, and what the encoder is shown for it. Raises UserError where the data give none."""
    if settings.labels != "data":
        return footage_labels(source, spec, settings.labels, settings.seed)
    return file_labels(source, settings.seed), evaluation_views(spec, settings.clips)


def compare(probe: Probing, trained: Any, twins: Sequence[Any], settings: EvaluateSettings) -> dict[str, Any]:
    """Figures of the encoder, of its untrained twins (at seeds seed, seed + 1, ...), and of chance."""
    answer = probe(trained)
    others = []
    for seed, features in enumerate(twins, settings.seed):
        twin = probe(features)
        gain = difference(probe.truth, answer.predicted, twin.predicted, probe.groups, settings.seed)
        others.append({"seed": seed, **probe.figures(twin), "difference": dataclasses.asdict(gain)})
    first = dict(others[0])
    gain_over_first = first.pop("difference")
    return {
        "trained": probe.figures(answer),
        "untrained": first,
        "difference": gain_over_first,
        "further_untrained": others[1:],
        "shuffled": probe.control(trained) if settings.shuffle_labels else None,
        "chance": dataclasses.asdict(chance(probe.known, probe.truth)),
    }


class Probing:
    """One probe, trained and scored alike for every encoder: same examples, same order, same options.

    Raises:
        UserError: when no file of one side could be read.
    """

    def __init__(self, task: Task, settings: KnnSettings | LinearSettings, features: Features) -> None:
        self.task, self.settings = task, settings
        train, test = features.at(task.train), features.at(task.test)
        self.known, self.truth = encode(train.labels, task.classes), encode(test.labels, task.classes)
        """int64: classes of the training and of the test examples."""
        self.groups = test.rows
        if not len(self.known) or not len(self.truth):
            raise UserError("No training file, or no test file, could be read: run `mmssl index` on the data.")

    def __call__(self, features: Features, shuffle: int | None = None) -> Answer:
        """Train on the training examples (their labels shuffled at a seed, if given) and predict the test examples."""
        settings, classes = self.settings, len(self.task.classes)
        device = pick_device(settings.device)
        train, test = features.at(self.task.train), features.at(self.task.test)
        labels = self.known if shuffle is None else np.random.default_rng(shuffle).permutation(self.known)
        x, queries = torch.from_numpy(train.x).to(device), torch.from_numpy(test.x).to(device)
        y = torch.from_numpy(labels).to(device)
        if isinstance(settings, KnnSettings):
            wanted = (settings.k, *settings.neighbours)
            found = knn.knn_predict(x, y, queries, classes=classes, neighbours=wanted, temperature=settings.temperature)
            k = min(settings.k, len(x))
            by_k = {str(n): float(np.mean(answer.cpu().numpy() == self.truth)) for n, answer in found.items()}
            return Answer(found[k].cpu().numpy(), {"k": k, "top1_by_k": by_k})
        head = linear.linear_probe(
            x,
            y,
            classes=classes,
            groups=train.rows,
            rates=settings.rates,
            decays=settings.decays,
            epochs=settings.epochs,
            batch=settings.probe_batch_size,
            seed=settings.seed,
        )
        trials = [dataclasses.asdict(trial) for trial in head.trials]
        for trial in trials:  # JSON has no infinity
            trial["validation_loss"] = trial["validation_loss"] if np.isfinite(trial["validation_loss"]) else None
        chosen = {"rate": head.rate, "decay": head.decay, "validation": trials}
        return Answer(head.predict(queries).cpu().numpy(), chosen)

    def control(self, features: Features) -> dict[str, Any]:
        """Figures of `SHUFFLES` probes on shuffled labels.

        Examples of one class lie together, so a shuffle gets whole classes right or wrong, and its accuracy varies far
        more than that of as many independent guesses. Hence several shuffles, and the interval of their mean.
        """
        answers = [self(features, shuffle=self.settings.seed + number).predicted for number in range(SHUFFLES)]
        top1 = np.array([(answer == self.truth).mean() for answer in answers])
        balanced = np.array([balanced_accuracy(self.truth, answer) for answer in answers])
        return {
            "top1": float(top1.mean()),
            "top1_interval": mean_interval(top1),
            "top1_each": top1.tolist(),
            "balanced": float(balanced.mean()),
            "balanced_interval": mean_interval(balanced),
            "balanced_each": balanced.tolist(),
        }

    def figures(self, answer: Answer) -> dict[str, Any]:
        result = score(self.truth, answer.predicted, self.task.classes, self.groups, self.settings.seed)
        return {**dataclasses.asdict(result), **answer.details}

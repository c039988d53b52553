"""Figures of a classification, with what chance gives and how sure each figure is.

G is the number of groups: examples cut from one file are not independent, so intervals resample files, never examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

Interval = tuple[float, float]

Z95 = 1.959963984540054
RESAMPLES = 2000


def wilson(correct: int, n: int) -> Interval:
    """95 % score interval of a share of `n` independent trials (Wilson 1927); (0, 1) when there is none."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall of the classes that `truth` contains (int64 [N] each)."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


@dataclass(frozen=True)
class Resamples:
    """What a bootstrap over files gives, R resamples, the same ones for every prediction of the same examples."""

    top1: np.ndarray
    """float64 [R]."""
    balanced: np.ndarray
    """float64 [R]: mean recall of the classes that each resample contains."""


def bootstrap(truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray, seed: int) -> Resamples:
    """Resample the files (`groups`, int64 [N]) with replacement (Efron 1979; cluster bootstrap)."""
    _, group = np.unique(groups, return_inverse=True)
    classes, target = np.unique(truth, return_inverse=True)
    count = group.max() + 1
    # Per file and class: how many examples, how many of them right. A resample is then two small matrix products.
    total = np.zeros((count, len(classes)))
    right = np.zeros((count, len(classes)))
    np.add.at(total, (group, target), 1.0)
    np.add.at(right, (group, target), (predicted == truth).astype(float))
    rng = np.random.default_rng(seed)
    tops, recalls = [], []
    for start in range(0, RESAMPLES, 250):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(250, RESAMPLES - start)).astype(float)
        n, hits = times @ total, times @ right
        tops.append(hits.sum(1) / n.sum(1))
        recall = np.divide(hits, n, out=np.zeros_like(hits), where=n > 0)
        recalls.append(recall.sum(1) / (n > 0).sum(1))
    return Resamples(np.concatenate(tops), np.concatenate(recalls))


def percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class ClassScore:
    name: str
    n: int
    """Test examples of the class."""
    recall: float | None
    """None when the test holds no example of it."""
    precision: float | None
    """None when it is never predicted."""


@dataclass(frozen=True)
class Score:
    """Figures of one set of predictions; intervals are at 95 %."""

    n: int
    top1: float
    top1_interval: Interval
    """Wilson where every file gives one example, else bootstrap over files."""
    balanced: float
    balanced_interval: Interval
    """Bootstrap over files."""
    per_class: tuple[ClassScore, ...]


def score(
    truth: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], groups: np.ndarray, seed: int = 0
) -> Score:
    """Score predictions; all arrays int64 [N], `groups` says which file each example is from."""
    right = predicted == truth
    resamples = bootstrap(truth, predicted, groups, seed)
    single = len(np.unique(groups)) == len(groups)
    table = []
    for index, name in enumerate(classes):
        actual, claimed = truth == index, predicted == index
        recall = float(right[actual].mean()) if actual.any() else None
        precision = float(right[claimed].mean()) if claimed.any() else None
        table.append(ClassScore(name, int(actual.sum()), recall, precision))
    return Score(
        n=len(truth),
        top1=float(right.mean()),
        top1_interval=wilson(int(right.sum()), len(right)) if single else percentiles(resamples.top1),
        balanced=balanced_accuracy(truth, predicted),
        balanced_interval=percentiles(resamples.balanced),
        per_class=tuple(table),
    )


@dataclass(frozen=True)
class Difference:
    """Trained minus untrained on the same test examples; a gain is real where the interval lies above zero."""

    top1: float
    top1_interval: Interval
    balanced: float
    balanced_interval: Interval


def difference(
    truth: np.ndarray, trained: np.ndarray, untrained: np.ndarray, groups: np.ndarray, seed: int = 0
) -> Difference:
    """Paired bootstrap over files of the difference of two predictions of the same examples (int64 [N] each)."""
    a, b = bootstrap(truth, trained, groups, seed), bootstrap(truth, untrained, groups, seed)
    return Difference(
        top1=float((trained == truth).mean() - (untrained == truth).mean()),
        top1_interval=percentiles(a.top1 - b.top1),
        balanced=balanced_accuracy(truth, trained) - balanced_accuracy(truth, untrained),
        balanced_interval=percentiles(a.balanced - b.balanced),
    )


def mean_interval(values: np.ndarray) -> Interval:
    """95 % t interval of the mean of a few independent repetitions [R]."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


@dataclass(frozen=True)
class Chance:
    """What needs no features."""

    majority: float
    """Test top-1 of always answering the most frequent class of the training examples."""
    majority_balanced: float
    """Its balanced accuracy."""
    uniform: float
    """Test top-1 expected of drawing one of the training classes evenly."""
    uniform_balanced: float
    """Its balanced accuracy."""


def chance(train: np.ndarray, test: np.ndarray) -> Chance:
    """Chance for training and test labels, int64 [N] and [Q]."""
    classes, counts = np.unique(train, return_counts=True)
    answer = np.full_like(test, classes[counts.argmax()])
    known = np.isin(test, classes)
    known_classes = np.isin(np.unique(test), classes)
    return Chance(
        majority=float((test == answer).mean()),
        majority_balanced=balanced_accuracy(test, answer),
        uniform=float(known.mean() / len(classes)),
        uniform_balanced=float(known_classes.mean() / len(classes)),
    )

"""Claim: figures and intervals are the field's. Compared with sklearn, with published examples and with simulation."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from mmssl.evaluation import metrics


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    truth = rng.choice(4, size=400, p=[0.6, 0.2, 0.15, 0.05])
    predicted = np.where(rng.random(400) < 0.7, truth, rng.integers(0, 4, 400))
    return truth, predicted


def test_table_equals_sklearn(answers):
    truth, predicted = answers
    result = metrics.score(truth, predicted, ("a", "b", "c", "d"), np.arange(400))
    precision, recall, _, n = precision_recall_fscore_support(truth, predicted)
    np.testing.assert_allclose(np.array([row.recall for row in result.per_class], float), recall)
    np.testing.assert_allclose(np.array([row.precision for row in result.per_class], float), precision)
    assert [row.n for row in result.per_class] == n.tolist()
    assert result.balanced == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert result.top1 == pytest.approx((truth == predicted).mean())


@pytest.mark.parametrize(
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score without continuity correction).
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_examples(correct, n, low, high):
    assert metrics.wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_a_perfect_score_is_not_a_point():
    low, high = metrics.wilson(20, 20)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(1 - 0.1611, abs=5e-5)


def test_bootstrap_of_single_examples_agrees_with_wilson(answers):
    truth, predicted = answers
    resamples = metrics.bootstrap(truth, predicted, np.arange(400), seed=0)
    low, high = metrics.wilson(int((truth == predicted).sum()), 400)
    assert metrics.percentiles(resamples.top1) == pytest.approx((low, high), abs=0.01)


def test_bootstrap_equals_direct_resampling(answers):
    truth, predicted = answers
    rng = np.random.default_rng(9)
    direct = []
    for _ in range(500):
        rows = rng.integers(0, 400, 400)
        direct.append(balanced_accuracy_score(truth[rows], predicted[rows]))
    result = metrics.score(truth, predicted, ("a", "b", "c", "d"), np.arange(400))
    assert result.balanced_interval == pytest.approx(metrics.percentiles(np.array(direct)), abs=0.02)


def test_examples_of_one_file_are_not_independent():
    """Ten copies of every example tell nothing new: the interval must not shrink."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 60)
    predicted = np.where(rng.random(60) < 0.75, truth, 1 - truth)
    single = metrics.score(truth, predicted, ("a", "b"), np.arange(60))
    copied = metrics.score(truth.repeat(10), predicted.repeat(10), ("a", "b"), np.arange(60).repeat(10))
    naive = metrics.score(truth.repeat(10), predicted.repeat(10), ("a", "b"), np.arange(600))
    width = [high - low for low, high in (single.top1_interval, copied.top1_interval, naive.top1_interval)]
    assert width[1] == pytest.approx(width[0], abs=0.03)
    assert width[2] < 0.5 * width[1]


def test_a_class_that_the_test_lacks_has_no_recall():
    result = metrics.score(np.array([0, 0, 1]), np.array([0, 1, 1]), ("a", "b", "c"), np.arange(3))
    assert result.per_class[2] == metrics.ClassScore("c", 0, None, None)
    assert result.balanced == pytest.approx((0.5 + 1.0) / 2)


def test_paired_difference_is_tighter_than_two_intervals():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 300)
    a = np.where(rng.random(300) < 0.7, truth, (truth + 1) % 3)
    b = np.where(rng.random(300) < 0.1, (truth + 1) % 3, a)
    gap = metrics.difference(truth, a, b, np.arange(300))
    assert gap.top1 == pytest.approx((a == truth).mean() - (b == truth).mean())
    assert gap.top1_interval[0] < gap.top1 < gap.top1_interval[1]
    own = metrics.wilson(int((a == truth).sum()), 300)
    assert gap.top1_interval[1] - gap.top1_interval[0] < own[1] - own[0]
    same = metrics.difference(truth, a, a, np.arange(300))
    assert same.top1_interval == same.balanced_interval == (0.0, 0.0)


def test_interval_of_a_mean_equals_scipy():
    values = np.array([0.31, 0.35, 0.36, 0.29, 0.33])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert metrics.mean_interval(values) == pytest.approx((expected.low, expected.high))


def test_chance():
    found = metrics.chance(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 2]))
    assert found == metrics.Chance(majority=0.25, majority_balanced=1 / 3, uniform=0.375, uniform_balanced=1 / 3)

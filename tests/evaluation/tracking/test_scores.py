"""Claims: F equals the definition, boundaries dilated by a disc and compared pixel by pixel, written out in NumPy; J, F
and PCK have the values that can be told without a computer; recall and decay follow DAVIS's bins."""

import math

import numpy as np
import pytest

from mmssl.evaluation.tracking.scores import (
    boundary,
    boundary_accuracy,
    joint_errors,
    pck,
    recall_and_decay,
    region_similarity,
)


def edges_by_hand(mask: np.ndarray) -> np.ndarray:
    """Pixel by pixel: does the right, lower or lower right neighbour differ; what is outside does not."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            beside = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if y == height - 1 or x == width - 1:  # the scorer looks along the last row and column only
                beside = beside[:1] if y == height - 1 else beside[1:2]
            out[y, x] = any(q < width and p < height and mask[p, q] != mask[y, x] for p, q in beside)
    return out


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel within a disc of a True one, by moving the mask over all offsets of the disc."""
    padded = np.pad(mask, radius)
    out = np.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if dy * dy + dx * dx <= radius * radius:
                top, left = radius + dy, radius + dx
                out |= padded[top : top + mask.shape[0], left : left + mask.shape[1]]
    return out


def f_by_hand(truth: np.ndarray, predicted: np.ndarray) -> float:
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    wanted, found = edges_by_hand(truth), edges_by_hand(predicted)
    if not wanted.any() or not found.any():
        return float(not wanted.any() and not found.any())
    precision = (found & dilate(wanted, radius)).sum() / found.sum()
    recall = (wanted & dilate(found, radius)).sum() / wanted.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blob(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 30
    field = sum(np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-3, 3, (6, 3)))
    return field > 0.5


@pytest.mark.parametrize("shape", [(60, 90), (240, 427), (97, 61)])
@pytest.mark.parametrize("seed", range(3))
def test_f_equals_the_definition(shape, seed):
    truth, other = blob(seed, *shape), blob(seed + 10, *shape)
    near = np.roll(truth, (1, 2), (0, 1))
    assert boundary_accuracy(truth, near) == pytest.approx(f_by_hand(truth, near), abs=1e-12)
    assert boundary_accuracy(truth, other) == pytest.approx(f_by_hand(truth, other), abs=1e-12)
    assert 0 < boundary_accuracy(truth, other) < boundary_accuracy(truth, near)
    np.testing.assert_array_equal(boundary(truth), edges_by_hand(truth))


def test_f_forgives_what_lies_within_the_tolerance():
    mask = np.zeros((480, 854), bool)
    mask[100:200, 300:500] = True
    radius = math.ceil(0.008 * math.hypot(480, 854))
    assert radius == 8
    assert boundary_accuracy(mask, np.roll(mask, radius, 1)) == 1.0
    moved = boundary_accuracy(mask, np.roll(mask, radius + 1, 1))
    assert 0.6 < moved < 0.7  # the upright sides (1/3 of the outline) are lost, and no more
    empty = np.zeros_like(mask)
    assert boundary_accuracy(mask, mask) == boundary_accuracy(empty, empty) == 1.0
    assert boundary_accuracy(mask, empty) == boundary_accuracy(empty, mask) == 0.0
    assert boundary_accuracy(mask, ~mask) == 1.0  # the same outline


def test_j_is_intersection_over_union():
    truth, predicted = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    truth[:, :6] = True
    predicted[:, 4:] = True
    assert region_similarity(truth, predicted) == 20 / 100
    assert region_similarity(truth, truth) == 1.0
    assert region_similarity(truth, ~truth) == 0.0
    assert region_similarity(truth & False, truth & False) == 1.0
    void = np.zeros_like(truth)
    void[:, 6:] = True  # wrong pixels that do not count
    assert region_similarity(truth, predicted, void) == 20 / 60
    assert boundary_accuracy(truth, truth | void, void) == 1.0


def test_recall_and_decay_follow_the_bins_of_davis():
    values = np.array([0.9] * 5 + [0.6] * 5 + [0.4] * 5 + [0.1] * 6)
    recall, decay = recall_and_decay(values)
    assert recall == pytest.approx(10 / 21)
    # 21 frames: the bins end at frames 0, 5, 10, 15, 20, ends included
    assert decay == pytest.approx(values[:6].mean() - values[15:].mean())
    long = np.linspace(1, 0, 1001)  # more frames than a byte counts
    assert recall_and_decay(long)[1] == pytest.approx(0.75, abs=1e-3)


def test_pck_counts_joints_within_shares_of_the_box():
    # A box of 30 x 40 has the diagonal 50; the unit of distance is 0.6 x 50 = 30 pixels.
    truth = np.array([[0.0, 0.0], [30.0, 40.0], [10.0, 10.0], [np.nan, np.nan]])
    predicted = truth + np.array([[3.0, 0.0], [0.0, 6.1], [20.0, 0.0], [0.0, 0.0]])
    errors = joint_errors(truth, predicted)
    np.testing.assert_allclose(errors, [0.1, 6.1 / 30, 20 / 30, np.nan])
    assert pck(errors[None]) == {"0.1": 1 / 3, "0.2": 1 / 3, "0.3": 2 / 3, "0.4": 2 / 3, "0.5": 2 / 3}
    predicted[0] = np.nan
    assert joint_errors(truth, predicted)[0] == np.inf  # a lost joint is wrong, not left out
    # Joints count alike, however often each is labelled.
    frames = np.array([[0.0, 1.0], [0.0, np.nan], [0.0, np.nan]])
    assert pck(frames)["0.5"] == 0.5
    assert np.isnan(joint_errors(np.full((2, 2), np.nan), np.zeros((2, 2)))).all()

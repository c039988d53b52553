"""Scores of tracked masks and key points: J, F and PCK."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import KDTree

BOUND = 0.008
"""Tolerance of F: a share of the picture's diagonal, rounded up to whole pixels (DAVIS's bound_th)."""
PCK_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
BOX_SHARE = 0.6
"""Of the diagonal of the box around a person's joints; what a key point's distance is divided by (CRW's scorer)."""


def region_similarity(truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None) -> float:
    """J, intersection over union of two masks bool [H,W]; 1 where both are empty (Perazzi et al. 2016).

    Pixels that are True in `void` do not count.
    """
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    union = np.count_nonzero(truth | predicted)
    return np.count_nonzero(truth & predicted) / union if union else 1.0


def boundary_accuracy(truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None) -> float:
    """F, the harmonic mean of precision and recall of boundary pixels (Perazzi et al. 2016).

    A boundary pixel is found if the other boundary has a pixel within ceil(0.008 x diagonal) of it: what DAVIS's scorer
    computes by dilation with a disc, here from the distances of the boundary pixels alone. Two empty masks give 1.
    """
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    wanted, found = np.argwhere(boundary(truth)), np.argwhere(boundary(predicted))
    if not len(wanted) or not len(found):
        return float(len(wanted) == len(found))
    radius = math.ceil(BOUND * math.hypot(*truth.shape))
    precision = np.mean(_nearest(found, wanted) <= radius)
    recall = np.mean(_nearest(wanted, found) <= radius)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels bool [H,W] whose right, lower or lower right neighbour differs: one pixel wide (DAVIS's seg2bmap).

    The last row and column look along themselves only, and the last pixel is none.
    """
    edge = np.zeros_like(mask)
    edge[:-1, :-1] = (
        (mask[:-1, :-1] != mask[:-1, 1:]) | (mask[:-1, :-1] != mask[1:, :-1]) | (mask[:-1, :-1] != mask[1:, 1:])
    )
    edge[-1, :-1] = mask[-1, :-1] != mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] != mask[1:, -1]
    return edge


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    return KDTree(others).query(points)[0]


def recall_and_decay(values: np.ndarray) -> tuple[float, float]:
    """DAVIS's recall (share of frames above 0.5) and decay (mean of the first quarter minus that of the last) of
    values [T] over time."""
    ends = np.floor(np.linspace(1, len(values), 5) + 0.5).astype(int) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    return float(np.mean(values > 0.5)), float(first.mean() - last.mean())


def joint_errors(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Distance of each joint from where it is, divided by 0.6 x the diagonal of the box around the true joints.

    Args:
        truth: float [J,2] pixels, NaN where the joint is not labelled.
        predicted: float [J,2] pixels, NaN where it was lost.

    Returns:
        float [J]: NaN where there is no truth, infinite where the joint was lost. A frame with fewer than two labelled
        joints has no box and gives NaN only.
    """
    known = ~np.isnan(truth).any(1)
    errors = np.full(len(truth), np.nan)
    box = float(np.linalg.norm(np.ptp(truth[known], axis=0))) if known.sum() > 1 else 0.0
    if box > 0:
        errors[known] = np.linalg.norm(predicted[known] - truth[known], axis=1) / (BOX_SHARE * box)
        errors[known & np.isnan(errors)] = np.inf
    return errors


def pck(errors: np.ndarray) -> dict[str, float]:
    """Share of joints within each threshold, over all frames, then the mean over joints, as CRW's scorer has it.

    Args:
        errors: float [frames,J] of `joint_errors`.
    """
    labelled = ~np.isnan(errors)
    joints = labelled.any(0)
    with np.errstate(invalid="ignore"):
        hits = {t: ((errors <= t) & labelled).sum(0)[joints] / labelled.sum(0)[joints] for t in PCK_THRESHOLDS}
    return {f"{t:g}": float(share.mean()) for t, share in hits.items()}

"""ABX discrimination (Schatz et al. 2013): is X nearer to A of its own class than to B of another?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PAIRS_AT_ONCE = 1 << 22
"""Places of local distance matrices held at a time (32 MiB)."""


def abx_errors(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Error of every item as X, float64 [N]: the mean over other classes of the share of pairs (A of its own class, B
    of the other) in which B is nearer; ties count one half. NaN for the only item of a class.

    Args:
        distances: [N,N], symmetric. labels: int64 [N].
    """
    errors = np.full(len(labels), np.nan)
    classes = np.unique(labels)
    for x in range(len(labels)):
        own = np.flatnonzero((labels == labels[x]) & (np.arange(len(labels)) != x))
        if not len(own):
            continue
        near = np.sort(distances[x, own])
        found = []
        for other in classes[classes != labels[x]]:
            far = distances[x, labels == other]
            below = np.searchsorted(near, far, "left")  # As nearer than each B
            equal = np.searchsorted(near, far, "right") - below
            found.append(1 - (below + 0.5 * equal).mean() / len(near))
        errors[x] = np.mean(found)
    return errors


def abx(errors: np.ndarray, labels: np.ndarray) -> float:
    """The error over classes: mean over classes of the mean over their items, so that pairs of classes weigh alike."""
    return float(np.mean([np.nanmean(errors[labels == name]) for name in np.unique(labels[~np.isnan(errors)])]))


def nearest(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class of each item's nearest other item, int64 [N]."""
    others = distances + np.diag(np.full(len(distances), np.inf))
    return labels[others.argmin(1)]


def angular(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle over pi of unit vectors a [...,n,D] and b [...,m,D]: [...,n,m]."""
    return np.arccos(np.clip(a @ np.swapaxes(b, -1, -2), -1, 1)) / np.pi


def pooled_distances(items: Sequence[np.ndarray]) -> np.ndarray:
    """Angles over pi [N,N] between the means over time of N items [T,D]."""
    x = _unit(np.stack([item.mean(0) for item in items]).astype(np.float64))
    return angular(x, x)


def dtw_distances(items: Sequence[np.ndarray]) -> np.ndarray:
    """Distances [N,N] of N items [T,D]: the mean angle over pi along the best path of dynamic time warping (steps along
    one item, the other, or both), as the zero-resource challenges measure ABX."""
    lengths = np.array([len(item) for item in items])
    longest = int(lengths.max())
    padded = np.zeros((len(items), longest, items[0].shape[1]), np.float32)
    for number, item in enumerate(items):
        padded[number, : len(item)] = _unit(item)
    first, second = np.triu_indices(len(items), 1)
    found = np.zeros((len(items), len(items)))
    many = max(1, PAIRS_AT_ONCE // longest**2)
    for start in range(0, len(first), many):
        a, b = first[start : start + many], second[start : start + many]
        local = angular(padded[a], padded[b])  # [P,T,T]
        found[a, b] = found[b, a] = warp(local, lengths[a], lengths[b])
    return found


def warp(local: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Mean of the local distances [P,T,T] along the cheapest path from the first place of each pair to (rows - 1,
    columns - 1): float64 [P]. What lies beyond is never looked at."""
    pairs, height, width = local.shape
    places = np.ascontiguousarray(local.transpose(1, 2, 0))  # pairs last: every place is one stretch of memory
    cost = np.full((height + 1, width + 1, pairs), np.inf)
    steps = np.zeros((height + 1, width + 1, pairs))
    cost[0, 0] = 0
    for i in range(1, height + 1):
        for j in range(1, width + 1):
            best, taken = cost[i - 1, j - 1], steps[i - 1, j - 1]
            for a, b in ((i - 1, j), (i, j - 1)):
                nearer = cost[a, b] < best
                best, taken = np.where(nearer, cost[a, b], best), np.where(nearer, steps[a, b], taken)
            cost[i, j], steps[i, j] = places[i - 1, j - 1] + best, 1 + taken
    end = (rows, columns, np.arange(pairs))
    return cost[end] / steps[end]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

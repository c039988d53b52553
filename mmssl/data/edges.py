"""Which lengths go into one bucket."""

from __future__ import annotations

import numpy as np


def split_common(lengths: np.ndarray, counts: np.ndarray, least: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths that more items have than `most` buckets would share out evenly, in up to three pieces, the outer ones of
    `least` items: so a few items of another length can fill up their bucket with some of these, and do not drag all of
    them into it. Parts of long recordings all have the longest length."""
    common = counts * most > counts.sum()
    outer = np.where(common, np.minimum(least, counts // 3), 0)
    pieces = np.stack([outer, counts - 2 * outer, outer], 1)
    return np.repeat(lengths, 3)[pieces.ravel() > 0], pieces[pieces > 0]


def bucket_edges(lengths: np.ndarray, counts: np.ndarray, fit: np.ndarray, most: int, pad: bool) -> list[int] | None:
    """Positions in `lengths` at which buckets begin, and the number of lengths at the end: of all ways to make at most
    `most` buckets that which crops every item to its bucket's shortest (or pads to its longest) at the least cost in
    frames, by dynamic programming. None where the items are too few for one micro-batch.

    Args:
        lengths: int [u], rising.
        counts: int [u], items of each.
        fit: int [u], items of that length in a micro-batch: a bucket holds as many at least, since a smaller one would
            show the same item several times in a batch.
    """
    size = len(lengths)
    items = np.concatenate([[0], np.cumsum(counts)])
    total = np.concatenate([[0], np.cumsum(counts * lengths)]).astype(np.float64)
    first, last = np.arange(size)[:, None], np.arange(size)[None]  # of the lengths of a bucket, both inside
    inside = items[last + 1] - items[first]
    shape = last if pad else first
    cost = np.abs(total[last + 1] - total[first] - inside * lengths[shape])
    cost[(last < first) | (inside < fit[shape])] = np.inf
    best, begins = [cost[0]], [np.zeros(size, np.int64)]
    for _ in range(most - 1):
        before = np.concatenate([[np.inf], best[-1][:-1]])  # the best way to fill what lies before `first`
        through = before[:, None] + cost
        begins.append(through.argmin(0))
        best.append(through.min(0))
    ends = [way[-1] for way in best]
    if not np.isfinite(min(ends)):
        return None
    edges = [size]
    for number in range(int(np.argmin(ends)), -1, -1):
        edges.append(int(begins[number][edges[-1] - 1]))
    return edges[::-1]

"""k-means on the device, for anything that has features: frames of sound, colours, image patches, video tubes.

`fit` is Lloyd's algorithm over features that fit into memory. `fit_stream` is the mini-batch version (Sculley 2010),
over an iterator of feature batches, of which it never holds more than the start and one batch; its settings have the
names and meanings of scikit-learn's MiniBatchKMeans. Both start with k-means++ (Arthur and Vassilvitskii 2007), of
which each step tries several candidates and keeps the best, as scikit-learn does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.errors import UserError

CHUNK = {"cpu": 1 << 20}
"""Distances that are held at once, by kind of device: on a CPU those that its cache holds."""
LARGE_CHUNK = 1 << 26
"""On other devices: 256 MiB."""
SMOOTHING = 0.1
"""Weight of a batch in the running inertia that decides about the end. Ours: scikit-learn takes it from the number of
samples, which a stream does not know."""


@dataclass(frozen=True)
class Fitted:
    centroids: Tensor
    """float32 [k,d]."""
    counts: Tensor
    """float64 [k]: samples of each cluster; of a stream, over all its batches."""
    inertia: float
    """Mean squared distance to the nearest centroid; of a stream, over its last batches, smoothed."""
    iterations: int
    """Rounds over the samples; of a stream, batches."""


def assign(x: Tensor, centroids: Tensor) -> Tensor:
    """Index int64 [...] of the nearest centroid [k,d] of every vector of x [...,d], the first of equally near ones."""
    if not x.numel():
        return torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    found = _nearest_by_chunk(x.reshape(-1, x.shape[-1]), centroids)
    return torch.cat([labels for _, _, labels in found]).view(x.shape[:-1])


def fit(
    x: Tensor,
    n_clusters: int,
    *,
    init: Tensor | None = None,
    n_init: int = 1,
    max_iter: int = 300,
    tol: float = 1e-4,
    seed: int = 0,
) -> Fitted:
    """Lloyd's algorithm over all of x [n,d]. A cluster that loses all its samples moves to the one farthest from its
    own centroid.

    Args:
        init: the start [k,d]; k-means++ if None.
        n_init: starts, of which the one with the least inertia wins.
        tol: stops when the squared moves of all centroids sum to no more than this share of the mean variance of x.

    Raises:
        UserError: fewer samples than clusters, or values that are not finite.
    """
    _require(x, n_clusters)
    generator = torch.Generator(x.device).manual_seed(seed)
    tolerance = tol * float(x.double().var(0, correction=0).mean()) if tol else 0.0
    best: Fitted | None = None
    for _ in range(1 if init is not None else n_init):
        start = plus_plus(x, n_clusters, generator) if init is None else init.to(x)
        found = _lloyd(x, start, max_iter, tolerance)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return best


def fit_stream(
    batches: Iterable[Tensor],
    n_clusters: int,
    *,
    batch_size: int = 1024,
    init_size: int | None = None,
    n_init: int = 3,
    max_no_improvement: int | None = 10,
    tol: float = 0.0,
    reassignment_ratio: float = 0.01,
    seed: int = 0,
) -> Fitted:
    """Mini-batch k-means over features [any n,d], read once, on the device that they lie on.

    Args:
        batch_size: samples of one update; batches of the stream are cut and joined to it.
        init_size: samples from the beginning of the stream that the start is chosen on; 3 batches if not given, and no
            fewer than 3 a cluster. They are trained on, too. Shuffle the stream, or the start sees little of it.
        n_init: starts, of which the one with the least inertia on these samples wins.
        max_no_improvement: ends after so many batches that did not lower the smoothed inertia; None for never.
        tol: ends when a batch moved the centroids by no more than this share of the variance; 0 for never.
        reassignment_ratio: a centroid with at most this share of the samples of the largest is moved to a sample of the
            batch, drawn in proportion to its squared distance. 0 moves those only that nothing was nearest to, where
            scikit-learn moves none.

    Raises:
        UserError: fewer samples than clusters, or values that are not finite.
    """
    init_size = max(init_size or 3 * batch_size, 3 * n_clusters)
    stream = _rows(iter(batches), batch_size)
    head: list[Tensor] = []
    for rows in stream:
        head.append(rows)
        if sum(map(len, head)) >= init_size:
            break
    if not head:
        raise UserError(f"k-means with {n_clusters} clusters got no samples: the stream of features is empty.")
    sample = torch.cat(head)
    _require(sample, n_clusters)
    generator = torch.Generator(sample.device).manual_seed(seed)
    starts = [plus_plus(sample, n_clusters, generator) for _ in range(n_init)]
    state = _MiniBatch(min(starts, key=lambda start: float(_nearest(sample, start)[1].mean())), reassignment_ratio)
    tolerance = tol * float(sample.double().var(0, correction=0).mean())
    best, waited = math.inf, 0
    for rows in _chain(head, stream):
        moved = state.update(rows, generator)
        waited = 0 if state.inertia < best else waited + 1
        best = min(best, state.inertia)
        if (tol > 0 and moved <= tolerance) or (max_no_improvement is not None and waited >= max_no_improvement):
            break
    return Fitted(state.centroids.float(), state.counts, state.inertia, state.updates)


def plus_plus(x: Tensor, n_clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ with 2 + log k candidates a step: [k,d], rows of x [n,d]."""
    _require(x, n_clusters)
    trials = 2 + int(math.log(n_clusters))
    middle = x.mean(0, dtype=_wide(x)).to(x.dtype)
    x = x - middle  # squared distances from products lose their digits far from the origin
    norms = x.square().sum(1)

    def distances(rows: Tensor) -> Tensor:
        return (norms[rows, None] + norms - 2 * x[rows] @ x.T).clamp_(min=0)

    first = torch.randint(len(x), (1,), generator=generator, device=x.device)
    chosen = [first]
    with torch.autocast(x.device.type, enabled=False):
        nearest = distances(first)[0]
        for _ in range(1, n_clusters):
            sums = nearest.cumsum(0, dtype=_wide(x))
            draws = torch.rand(trials, generator=generator, device=x.device, dtype=sums.dtype) * sums[-1]
            candidates = torch.searchsorted(sums, draws).clamp_(max=len(x) - 1)
            improved = torch.minimum(nearest, distances(candidates))  # [trials,n]
            best = improved.sum(1).argmin()
            nearest = improved[best]
            chosen.append(candidates[best][None])
    return x[torch.cat(chosen)] + middle


class _MiniBatch:
    """Centroids that follow batches: each is the mean of all samples it was nearest to when they came."""

    def __init__(self, start: Tensor, reassignment_ratio: float) -> None:
        self.centroids = start.to(_wide(start))
        self.counts = torch.zeros(len(start), dtype=self.centroids.dtype, device=start.device)
        self.ratio = reassignment_ratio
        self.inertia = math.inf
        self.updates = 0
        self.since = 0  # samples since centroids were last reassigned

    def update(self, x: Tensor, generator: torch.Generator) -> float:
        """Returns the squared moves of all centroids, summed."""
        _require(x, 1)
        before = self.centroids.clone()
        labels, distances = _nearest(x, self.centroids.to(x.dtype))
        sums, counts = _sums(x, labels, len(self.counts))
        self.counts += counts
        self.centroids += (sums - counts[:, None] * self.centroids) / self.counts.clamp(min=1)[:, None]
        mean = float(distances.mean())
        self.inertia = mean if math.isinf(self.inertia) else self.inertia + SMOOTHING * (mean - self.inertia)
        self.updates += 1
        self.since += len(x)
        if self.since >= 10 * len(self.counts) or bool((self.counts == 0).any()):
            self.reassign(x, distances, generator)
        return float((self.centroids - before).square().sum())

    def reassign(self, x: Tensor, distances: Tensor, generator: torch.Generator) -> None:
        self.since = 0
        far = int((distances > 0).sum())
        rare = (self.counts <= self.ratio * self.counts.max()).nonzero()[:, 0]
        rare = rare[self.counts[rare].argsort()][: min(far, len(x) // 2)]  # half of a batch moves at most
        if not len(rare):
            return
        kept = torch.ones_like(self.counts, dtype=torch.bool)
        kept[rare] = False
        # Exponential races: the first to arrive, at rates of their squared distances, are draws without replacement.
        race = torch.rand(len(x), generator=generator, device=x.device).clamp_(min=1e-30).log_().neg_() / distances
        self.centroids[rare] = x[race.argsort()[: len(rare)]].to(self.centroids)
        self.counts[rare] = self.counts[kept].min() if kept.any() else 1.0  # or they would jump with every sample


def _lloyd(x: Tensor, centroids: Tensor, max_iter: int, tolerance: float) -> Fitted:
    k = len(centroids)
    labels = torch.full((len(x),), -1, device=x.device)
    iterations = 0
    for iterations in range(1, max_iter + 1):  # noqa: B007 (read after the loop)
        before, (labels, distances) = labels, _nearest(x, centroids)
        sums, counts = _sums(x, labels, k)
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            far = distances.topk(len(empty)).indices
            sums[empty], counts[empty] = x[far].to(sums), 1.0
            sums.index_add_(0, labels[far], -x[far].to(sums))
            counts.index_add_(0, labels[far], -torch.ones_like(counts[empty]))
        previous = centroids.to(sums)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], previous).to(x.dtype)
        if torch.equal(before, labels) or float((centroids.to(sums) - previous).square().sum()) <= tolerance:
            break
    labels, distances = _nearest(x, centroids)
    counts = torch.bincount(labels, minlength=k).to(_wide(x))
    return Fitted(centroids.float(), counts, float(distances.mean(dtype=_wide(x))), iterations)


def _nearest(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Labels int64 [n] and squared distances [n] of x [n,d]."""
    labels, distances = [], []
    for rows, nearness, label in _nearest_by_chunk(x, centroids):
        labels.append(label)
        distances.append((nearness + rows.square().sum(1)).clamp_(min=0))
    return torch.cat(labels), torch.cat(distances)


def _nearest_by_chunk(x: Tensor, centroids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of rows, moved to the middle of the centroids, their squared distances less their own squares, and
    labels."""
    kind = torch.promote_types(x.dtype, torch.float32)
    centroids = centroids.to(x.device, kind)
    middle = centroids.mean(0)  # digits again: see plus_plus
    centroids = centroids - middle
    norms = centroids.square().sum(1)
    for rows in x.split(_rows_at_once(x, len(centroids))):
        with torch.autocast(x.device.type, enabled=False):
            rows = rows.to(kind) - middle
            nearness, label = torch.addmm(norms, rows, centroids.T, alpha=-2).min(1)
        yield rows, nearness, label


def _rows_at_once(x: Tensor, values: int) -> int:
    return max(1, CHUNK.get(x.device.type, LARGE_CHUNK) // values)


def _sums(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sum [k,d] and number [k] of the samples of each cluster, in the widest float of the device."""
    kind = _wide(x)
    sums = torch.zeros(k, x.shape[1], dtype=kind, device=x.device)
    size = _rows_at_once(x, x.shape[1])
    for rows, chosen in zip(x.split(size), labels.split(size), strict=True):
        sums.index_add_(0, chosen, rows.to(kind))
    return sums, torch.bincount(labels, minlength=k).to(kind)


def _rows(batches: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The samples of a stream in batches of `size`; the last one may be smaller."""
    held: list[Tensor] = []
    for batch in batches:
        held.append(batch.to(torch.promote_types(batch.dtype, torch.float32)))
        if sum(map(len, held)) < size:
            continue
        *whole, rest = torch.cat(held).split(size)
        if len(rest) == size:
            whole, rest = [*whole, rest], rest[:0]
        yield from whole
        held = [rest.clone()] if len(rest) else []  # a view would keep all of it
    if held:
        yield torch.cat(held)


def _chain(first: list[Tensor], rest: Iterator[Tensor]) -> Iterator[Tensor]:
    while first:
        yield first.pop(0)
    yield from rest


def _require(x: Tensor, n_clusters: int) -> None:
    if n_clusters < 1:
        raise UserError(f"k-means with {n_clusters} clusters: give 1 or more.")
    if len(x) < n_clusters:
        raise UserError(
            f"k-means with {n_clusters} clusters got {len(x)} samples: give it more data, or ask for fewer clusters."
        )
    if not bool(torch.isfinite(x).all()):
        raise UserError("k-means got features that are not finite: look for broken files or a model that diverged.")


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64

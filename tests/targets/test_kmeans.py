"""Claim: k-means finds what scikit-learn finds: the same centroids from the same start, and as good ones from its own,
also when features come in batches that are never all held; dead centroids come back to life."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans, kmeans_plusplus
from sklearn.datasets import load_digits
from torch import Tensor
from torch.testing import assert_close

from mmssl.errors import UserError
from mmssl.targets.kmeans import _MiniBatch, assign, fit, fit_stream, plus_plus
from mmssl.targets.mfcc import Mfcc
from tests.targets.test_mfcc import recordings


def digits() -> Tensor:
    """1797 scanned digits of 8 x 8 pixels."""
    return torch.from_numpy(load_digits().data)


def inertia(x: Tensor, centroids: Tensor) -> float:
    return float(torch.cdist(x.double(), centroids.double()).min(1).values.square().mean())


@pytest.mark.parametrize("k", [1, 10, 64])
def test_lloyd_equals_scikit_learn_on_equal_starts(k: int) -> None:
    x = digits()
    start = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(k))[:k]]
    theirs = KMeans(k, init=start.numpy(), n_init=1, tol=1e-4, algorithm="lloyd").fit(x.numpy())
    ours = fit(x, k, init=start, tol=1e-4)
    assert_close(ours.centroids, torch.from_numpy(theirs.cluster_centers_).float(), rtol=1e-5, atol=1e-5)
    assert ours.iterations == theirs.n_iter_
    assert ours.inertia == pytest.approx(theirs.inertia_ / len(x), rel=1e-6)
    assert_close(assign(x, ours.centroids), torch.from_numpy(theirs.labels_).long(), rtol=0, atol=0)
    assert_close(ours.counts, torch.bincount(torch.from_numpy(theirs.labels_).long(), minlength=k).double())


def test_empty_clusters_move_as_in_scikit_learn() -> None:
    x = digits()[:300]
    start = torch.cat([x[:5], x[:1] + 1e3, x[:1] - 1e3])  # two that nothing is nearest to
    theirs = KMeans(7, init=start.numpy(), n_init=1, tol=0).fit(x.numpy())
    ours = fit(x, 7, init=start, tol=0)
    assert (ours.counts > 0).all()
    assert_close(ours.centroids, torch.from_numpy(theirs.cluster_centers_).float(), rtol=1e-5, atol=1e-5)


def test_plus_plus_is_as_good_as_scikit_learns() -> None:
    x = digits()
    ours = [inertia(x, plus_plus(x, 32, torch.Generator().manual_seed(seed))) for seed in range(20)]
    theirs = [inertia(x, torch.from_numpy(kmeans_plusplus(x.numpy(), 32, random_state=seed)[0])) for seed in range(20)]
    chance = [inertia(x, x[torch.randperm(len(x))[:32]]) for _ in range(20)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.02)
    assert np.mean(ours) < 0.97 * np.mean(chance)
    rows = plus_plus(x, 32, torch.Generator().manual_seed(0))
    assert torch.cdist(rows, x).min(1).values.max() < 1e-6  # rows of x, all of them other ones
    assert len(rows.unique(dim=0)) == 32


def blobs(batches: int, centres: int = 40, width: int = 16) -> Iterator[Tensor]:
    """Clouds of unequal size, a batch at a time."""
    rng = np.random.default_rng(0)
    middles, share = rng.normal(0, 3, (centres, width)), rng.dirichlet(np.ones(centres))
    for _ in range(batches):
        cloud = rng.choice(centres, 3000, p=share)
        yield torch.from_numpy(middles[cloud] + rng.normal(0, 1, (3000, width))).float()


def test_stream_is_as_good_as_scikit_learns() -> None:
    x = torch.cat(list(blobs(40)))
    held_out, k = x[-30_000:], 40
    settings = {"batch_size": 2048, "n_init": 3, "max_no_improvement": None}
    ours = np.mean([
        inertia(held_out, fit_stream(iter(x[:-30_000].split(700)), k, seed=seed, **settings).centroids)  # type: ignore[arg-type]
        for seed in range(4)
    ])  # fmt: skip
    theirs = np.mean([
        inertia(held_out, torch.from_numpy(
            MiniBatchKMeans(k, random_state=seed, max_iter=1, **settings).fit(x[:-30_000].numpy()).cluster_centers_
        ))
        for seed in range(4)
    ])  # fmt: skip
    full = inertia(held_out, torch.from_numpy(KMeans(k, n_init=2, random_state=0).fit(x[:-30_000]).cluster_centers_))
    assert ours < 1.03 * theirs
    assert ours < 1.08 * full


def test_updates_of_a_stream_are_scikit_learns_on_equal_starts() -> None:
    x = torch.cat(list(blobs(4)))
    start, batches = x[:40], x.split(2000)
    theirs = MiniBatchKMeans(40, init=start.numpy(), n_init=1, reassignment_ratio=0.0)
    ours = _MiniBatch(start, reassignment_ratio=0.0)
    for batch in batches:
        theirs.partial_fit(batch.numpy())
        ours.update(batch, torch.Generator().manual_seed(0))
    assert (ours.centroids.float() - start).abs().max() > 0.5
    assert_close(ours.centroids.float(), torch.from_numpy(theirs.cluster_centers_), rtol=1e-4, atol=1e-4)
    assert ours.counts.sum() == len(x)


def test_speech_is_clustered_as_well_as_by_scikit_learn_in_the_published_settings() -> None:
    """HuBERT's first iteration: 100 clusters of MFCC, as fairseq's learn_kmeans has them, on real recordings."""
    x = torch.cat([Mfcc()(sound[None])[0] for sound in recordings(90)])
    assert len(x) > 15_000
    settings: dict[str, Any] = {"batch_size": 10_000, "n_init": 20, "max_no_improvement": 100}
    generator = torch.Generator().manual_seed(0)
    rounds = (x[places] for _ in range(100) for places in torch.randperm(len(x), generator=generator).split(10_000))
    ours = fit_stream(rounds, 100, reassignment_ratio=0.0, **settings)
    theirs = MiniBatchKMeans(100, max_iter=100, tol=0.0, reassignment_ratio=0.0, random_state=0, **settings)
    centroids = torch.from_numpy(theirs.fit(x.numpy()).cluster_centers_)
    assert inertia(x, ours.centroids) < 1.01 * inertia(x, centroids)
    assert len(assign(x, ours.centroids).unique()) == 100


def test_stream_is_never_held() -> None:
    """40 batches of 4 MB go by within 30 MB (NumPy's, that is: torch's own allocations are not traced)."""
    largest = held = 0

    def counted() -> Iterator[Tensor]:
        nonlocal largest, held
        for number in range(40):
            features = np.random.default_rng(number).random((31_250, 32), dtype=np.float32)
            held, _ = tracemalloc.get_traced_memory()
            largest = max(largest, held)
            yield torch.from_numpy(features)

    tracemalloc.start()
    try:
        found = fit_stream(counted(), 8, batch_size=31_250, init_size=1000, n_init=1, max_no_improvement=None)
    finally:
        tracemalloc.stop()
    assert found.iterations == 40
    assert float(found.counts.sum()) == 40 * 31_250
    assert largest < 30e6


def test_stream_takes_batches_of_any_size() -> None:
    x = digits().float()
    whole = fit_stream([x], 10, batch_size=256)
    cut = fit_stream(iter(x.split(13)), 10, batch_size=256)
    assert_close(whole.centroids, cut.centroids, rtol=0, atol=0)
    assert whole.iterations == cut.iterations == 8  # 1797 samples


def test_stream_ends_when_it_does_not_improve() -> None:
    found = fit_stream(blobs(400), 40, batch_size=3000, max_no_improvement=10)
    assert 12 < found.iterations < 400
    settled = fit_stream(blobs(400), 40, batch_size=3000, max_no_improvement=None, tol=1e-4)
    assert settled.iterations < 400


def test_centroids_on_outliers_come_back() -> None:
    """k-means++ puts centroids onto the few far away points of the start; the stream never sees such points again."""
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(60_000, 2, generator=generator)
    outliers = torch.randn(10, 2, generator=generator) * 1000
    stream = [torch.cat([outliers, cloud[:4000]]), *cloud[4000:].split(4000)]
    settings = {"batch_size": 4000, "init_size": 4010, "max_no_improvement": None}
    back, left = (fit_stream(stream, 20, reassignment_ratio=ratio, **settings) for ratio in (0.01, 0.0))  # type: ignore[arg-type]
    assert len(assign(cloud, left.centroids).unique()) <= 12
    assert len(assign(cloud, back.centroids).unique()) >= 18
    ours = [fit_stream(stream, 20, seed=seed, **settings).centroids for seed in range(4)]  # type: ignore[arg-type]
    theirs = [
        MiniBatchKMeans(20, random_state=seed, max_iter=1, **settings).fit(torch.cat(stream).numpy()).cluster_centers_
        for seed in range(4)
    ]
    best = np.mean([inertia(cloud, torch.from_numpy(centroids)) for centroids in theirs])
    assert np.mean([inertia(cloud, centroids) for centroids in ours]) < 1.05 * best


def test_centroids_that_nothing_is_nearest_to_come_back_at_any_ratio() -> None:
    """The stream begins with one colour: all centroids start in one place, and one of them gets everything."""
    cloud = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    stream = [torch.zeros(1000, 3), *cloud.split(1000)]
    found = fit_stream(stream, 16, batch_size=1000, init_size=1000, max_no_improvement=None, reassignment_ratio=0.0)
    assert len(assign(cloud, found.centroids).unique()) == 16
    assert inertia(cloud, found.centroids) < 1.5 * fit(cloud, 16).inertia  # one centroid alone: 4.3 times


def test_assign_far_from_the_origin_and_in_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(70_000, 2, generator=generator) + 3000  # squares of 9e6 and distances of 1e-3
    centroids = torch.rand(50, 2, generator=generator) + 3000
    expected = torch.cdist(x.double(), centroids.double()).argmin(1)
    found = assign(x.view(700, 100, 2), centroids)
    assert found.shape == (700, 100)
    assert found.dtype == torch.int64
    assert (found.flatten() != expected).float().mean() < 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(assign(x, centroids), found.flatten(), rtol=0, atol=0)
    assert assign(x[:0], centroids).shape == (0,)


def test_half_precision_features_are_clustered_in_fp32() -> None:
    x = digits().half()
    found = fit_stream(x.split(100), 10, batch_size=500)
    assert_close(found.centroids, fit_stream([x.float()], 10, batch_size=500).centroids, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.rand(5, 2), "6 clusters got 5 samples: give it more data, or ask for fewer clusters"),
        (torch.full((9, 2), torch.nan), "not finite"),
    ],
)
def test_what_cannot_be(x: Tensor, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(x, 6)
    with pytest.raises(UserError, match=said):
        fit_stream([x], 6)


def test_no_clusters_and_no_samples() -> None:
    with pytest.raises(UserError, match="give 1 or more"):
        fit(torch.rand(5, 2), 0)
    with pytest.raises(UserError, match="the stream of features is empty"):
        fit_stream([], 6)
    same = fit_stream([torch.ones(64, 3)], 4)  # one place for four centroids is no reason to fail
    assert_close(same.centroids, torch.ones(4, 3))

"""Clustering MFCC of real speech with the settings that HuBERT published, against scikit-learn's MiniBatchKMeans: time,
memory, and how good the clusters are; then giving every frame its unit.

Both get the same 39 values of every frame of the sample recordings, three times over with a little noise, as one array
in memory, and the same settings: 100 clusters, batches of 10,000, 20 starts by k-means++, an end after 100 batches
without improvement or 100 rounds, no reassignment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from timing import compare, table
from torch import Tensor

from mmssl.data.sources import open_source
from mmssl.targets.features import MfccFeatures
from mmssl.targets.kmeans import assign, fit_stream
from mmssl.targets.reading import features_of_parts
from mmssl.targets.work import chunks_of

SAMPLES = Path("datasets/samples/audio")
CLUSTERS, BATCH, STARTS, ROUNDS, PATIENCE = 100, 10_000, 20, 100, 100


def write_features(file: Path) -> None:
    """MFCC of all sample recordings: float32 [n,39]."""
    source, features = open_source(SAMPLES, "audio"), MfccFeatures()
    groups = [chunk.parts for chunk in chunks_of(source, source.rows(), features.timing)]
    device = torch.device("cpu")
    found = features_of_parts(source, groups, features, device=device, workers=0, timeout=60)
    once = torch.cat([x for _, x in found if isinstance(x, Tensor)]).numpy()
    rng = np.random.default_rng(0)
    np.save(file, np.concatenate([once + 0.1 * rng.standard_normal(once.shape, np.float32) for _ in range(3)]))


def our_fit(file: Path) -> Callable[[], Tensor]:
    x = torch.from_numpy(np.load(file))

    def shuffled() -> Iterator[Tensor]:
        for number in range(ROUNDS):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(number))
            yield from (x[places] for places in order.split(BATCH))

    settings = {"batch_size": BATCH, "n_init": STARTS, "max_no_improvement": PATIENCE}
    return lambda: fit_stream(shuffled(), CLUSTERS, reassignment_ratio=0.0, **settings).centroids  # type: ignore[arg-type]


def their_fit(file: Path) -> Callable[[], np.ndarray]:
    x = np.load(file)

    def fit() -> np.ndarray:
        model = MiniBatchKMeans(
            CLUSTERS,
            batch_size=BATCH,
            n_init=STARTS,
            max_iter=ROUNDS,
            max_no_improvement=PATIENCE,
            tol=0.0,
            reassignment_ratio=0.0,
            compute_labels=False,
            random_state=0,
        )
        centroids: np.ndarray = model.fit(x).cluster_centers_
        return centroids

    return fit


def our_units(file: Path) -> Callable[[], Tensor]:
    x = torch.from_numpy(np.load(file))
    return partial(assign, x, x[:CLUSTERS].clone())


def their_units(file: Path) -> Callable[[], np.ndarray]:
    x = np.load(file)
    model = MiniBatchKMeans(CLUSTERS, init=x[:CLUSTERS], n_init=1, max_iter=1).partial_fit(x[:CLUSTERS])
    return partial(model.predict, x)


def inertia(x: Tensor, centroids: Tensor | np.ndarray) -> float:
    """Mean squared distance of all features to the nearest centroid."""
    book = torch.as_tensor(centroids).float()
    return float((x - book[assign(x, book)]).square().sum(1).mean())


def run(rounds: int = 3) -> str:
    """Both tables as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.npy"
        write_features(file)
        x = torch.from_numpy(np.load(file))
        fits: dict[str, Callable[[Path], Callable[[], Any]]] = {
            "mmssl": our_fit,
            "scikit-learn MiniBatchKMeans": their_fit,
        }
        quality = {name: inertia(x, make(file)()) for name, make in fits.items()}
        fitted = compare(
            {f"{name}, inertia {quality[name]:.0f}": partial(make, file) for name, make in fits.items()}, rounds
        )
        given = compare(
            {"mmssl": partial(our_units, file), "scikit-learn predict": partial(their_units, file)}, max(rounds, 5)
        )
    title = f"### k-means of {len(x)} MFCC frames, {CLUSTERS} clusters, HuBERT's settings"
    return f"{title}\n\n{table(fitted, 'fit')}\n\n### Their units\n\n{table(given, 'pass')}"


if __name__ == "__main__":
    print(run())

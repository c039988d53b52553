"""What the encoder finds alike: nearest neighbours of some samples, and a map of all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.adapters.specs import VideoSpec, WaveformSpec
from mmssl.errors import UserError
from mmssl.evaluation.features import Features, extract
from mmssl.evaluation.views import evaluation_views
from mmssl.files import write_json
from mmssl.report.pictures import colour_range, enlarge, heat_map

if TYPE_CHECKING:
    from mmssl.data.sources import Source
    from mmssl.encoders.base import Encoder

THUMBNAIL = 112
MAP_POINTS = 1000


@dataclass(frozen=True)
class Neighbour:
    id: str
    label: str | None
    similarity: float
    """Cosine similarity to the query; 1 for the query itself."""
    file: str
    """Thumbnail, relative to OUT."""


@dataclass(frozen=True)
class Agreement:
    """How often a neighbour carries the label of its query, over all labelled samples."""

    share: float
    chance: float
    """The same share if neighbours were drawn at random."""
    k: int
    samples: int


@dataclass(frozen=True)
class Map:
    method: str
    """In words: t-SNE or PCA, its settings, and how many of how many samples it shows."""
    points: list[list[float]]
    labels: list[str] | None


def nearest(features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest others of every row by cosine similarity, best first: indices int64 [N,k], similarities float32 [N,k]."""
    x = torch.nn.functional.normalize(torch.as_tensor(features, dtype=torch.float32), dim=1)
    k = min(k, len(x) - 1)
    indices, similarities = [], []
    for start in range(0, len(x), 1024):
        similarity = x[start : start + 1024] @ x.T
        block = torch.arange(len(similarity))
        similarity[block, start + block] = -torch.inf
        best = similarity.topk(k, dim=1)
        indices.append(best.indices)
        similarities.append(best.values)
    return torch.cat(indices).numpy(), torch.cat(similarities).numpy()


def choose_queries(labels: Sequence[str | None], queries: int, seed: int) -> list[int]:
    """Random samples, one of each label in turn, so that a rare class is shown too."""
    rng = np.random.default_rng(seed)
    by_label: dict[str | None, list[int]] = {}
    for i in rng.permutation(len(labels)):
        by_label.setdefault(labels[i], []).append(int(i))
    turns = sorted(by_label, key=lambda label: (label is None, label or ""))
    chosen: list[int] = []
    while len(chosen) < min(queries, len(labels)):
        for label in turns:
            if by_label[label] and len(chosen) < queries:
                chosen.append(by_label[label].pop())
    return chosen


def agreement(indices: np.ndarray, labels: Sequence[str | None]) -> Agreement | None:
    """Share of the neighbours [N,k] that carry their query's label; None when fewer than two labels exist."""
    names, counts = np.unique([label for label in labels if label is not None], return_counts=True)
    if len(names) < 2:
        return None
    code = np.array([-1 if label is None else int(np.searchsorted(names, label)) for label in labels])
    known = code >= 0
    same = (code[indices] == code[:, None])[known]
    total = int(counts.sum())
    chance = float((counts * (counts - 1)).sum() / (total * (len(labels) - 1)))
    return Agreement(float(same.mean()), chance, indices.shape[1], total)


def nearest_neighbours(
    features: np.ndarray,
    thumbnails: Callable[[int], str],
    ids: Sequence[str],
    labels: Sequence[str | None],
    *,
    queries: int = 8,
    k: int = 6,
    seed: int = 0,
) -> tuple[list[list[Neighbour]], Agreement | None]:
    """Rows of (query, its k nearest by cosine similarity), and the agreement of their labels over all samples.

    Args:
        features: [N,D]. thumbnails: position in `features` -> thumbnail file, called only for the samples shown.
    """
    indices, similarities = nearest(features, k)
    rows = []
    for query in choose_queries(labels, queries, seed):
        shown = [(query, 1.0), *zip(indices[query].tolist(), similarities[query].tolist(), strict=True)]
        rows.append([Neighbour(ids[i], labels[i], float(s), thumbnails(i)) for i, s in shown])
    return rows, agreement(indices, labels)


def embedding_map(features: np.ndarray, labels: Sequence[str | None], *, limit: int = MAP_POINTS, seed: int = 0) -> Map:
    """Two coordinates a sample, of at most `limit` random samples: t-SNE (van der Maaten & Hinton 2008) on features of
    length one; principal components below 50 samples, where t-SNE shows nothing."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.sort(np.random.default_rng(seed).permutation(len(features))[:limit])
    x = np.asarray(features, dtype=np.float32)[rows]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    reduced = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
    if len(rows) < 50:
        points = np.pad(reduced, ((0, 0), (0, max(0, 2 - reduced.shape[1]))))[:, :2]
        method = f"first two principal components of {len(rows)} of {len(features)} samples"
    else:
        perplexity = min(30, len(rows) // 4)
        points = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed).fit_transform(reduced)
        method = f"t-SNE (perplexity {perplexity}, seed {seed}) of {len(rows)} of {len(features)} samples"
    points = (points - points.mean(axis=0)) / max(float(np.abs(points).max()), 1e-12)
    known = any(label is not None for label in labels)
    names = [labels[row] or "(no label)" for row in rows] if known else None
    return Map(method, np.round(points, 4).tolist(), names)


def collect(
    out: Path,
    encoder: Encoder,
    source: Source,
    *,
    limit: int | None = None,
    queries: int = 8,
    k: int = 6,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Encode random readable samples of `source` on the encoder's device and write OUT/neighbours.json with thumbnails.

    Samples that cannot be encoded (unreadable files, features that are not finite) do not end a run that is trained and
    saved: the file then says why, and so does the report.

    Args:
        limit: most samples; if None 2,000, or 500 videos, which cost more to decode, or 500 waveforms, which cost
            more to encode.
        workers: processes that decode; none for up to 256 samples, else up to 4, if None.

    Returns:
        OUT/neighbours.json. `write_report` reads only this file and its thumbnails.
    """
    limit = limit or (500 if isinstance(encoder.spec, VideoSpec | WaveformSpec) else 2000)
    rows = np.sort(np.random.default_rng(seed).permutation(source.rows(None))[:limit])
    if workers is None:
        workers = 0 if len(rows) <= 256 else min(4, os.cpu_count() or 1)
    try:
        device = next(encoder.parameters()).device
        features = extract(encoder, source, rows, workers=workers, device=device, title="neighbours")
        content = _content(out, features, encoder, source, queries, k, seed)
    except UserError as error:
        content = {"problem": str(error)}
    file = Path(out) / "neighbours.json"
    write_json(file, content)
    return file


def _content(
    out: Path, features: Features, encoder: Encoder, source: Source, queries: int, k: int, seed: int
) -> dict[str, Any]:
    if len(features.x) < 2:
        raise UserError(f"{len(features.x)} readable sample(s): neighbours need two or more.")
    views = evaluation_views(encoder.spec)

    def save_thumbnail(position: int) -> str:
        row = int(features.rows[position])
        name = f"pictures/neighbours/{row:06d}.webp"
        sample = views(source.media(row), np.random.default_rng((0, row)))[0]
        image = Image.fromarray(thumbnail(next(iter(sample.views.values())), getattr(encoder.spec, "rate", 0)))
        image.thumbnail((2 * THUMBNAIL, THUMBNAIL))
        (Path(out) / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(Path(out) / name, "WEBP", quality=88)
        return name

    shown, agreed = nearest_neighbours(
        features.x, save_thumbnail, features.ids, features.labels, queries=queries, k=k, seed=seed
    )
    return {
        "samples": len(features.x),
        "rows": [[asdict(cell) for cell in row] for row in shown],
        "agreement": agreed and asdict(agreed),
        "map": asdict(embedding_map(features.x, features.labels, seed=seed)),
    }


def thumbnail(view: Tensor, rate: int = 0) -> np.ndarray:
    """uint8 [h,w,3] of what the encoder gets: an image as it is, a clip's middle frame, a waveform's spectrogram.

    Args:
        view: uint8 [3,H,W], uint8 [T,3,H,W] or float32 [S]. rate: Hz of a waveform.
    """
    if view.ndim == 1:
        return spectrogram(view, rate)
    return enlarge(np.moveaxis((view if view.ndim == 3 else view[len(view) // 2]).numpy(), 0, -1))


def spectrogram(wave: Tensor, rate: int, *, height: int = THUMBNAIL, width: int = 2 * THUMBNAIL) -> np.ndarray:
    """Waveform [S] -> heat map uint8 [height,width,3]: decibels, 50 Hz to half the rate on a logarithmic axis."""
    window = round(0.025 * rate)
    power = torch.stft(
        torch.nn.functional.pad(wave.float(), (0, max(0, window - len(wave)))),
        n_fft=2048 if rate > 24000 else 1024,
        hop_length=max(1, len(wave) // width),
        win_length=window,
        window=torch.hann_window(window),
        return_complex=True,
        pad_mode="constant",
    ).abs()
    bins = np.geomspace(50 / (rate / 2), 1, height) * (len(power) - 1)
    values = 20 * torch.log10(power[bins.round().astype(int)].clamp(min=1e-6)).numpy()[:, :width]
    low, high = colour_range([values])
    return heat_map(values, max(low, high - 80), high)

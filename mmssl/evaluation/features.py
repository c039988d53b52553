"""Frozen features of a data source: deterministic views in, one vector an example out, kept for the next probe."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import mmssl
from mmssl.data.verify import cache_folder
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.reading import Files, read_nearly_all
from mmssl.evaluation.subject import encoder_hash, evaluating
from mmssl.evaluation.views import evaluation_views

if TYPE_CHECKING:
    from mmssl.data.sources import Source
    from mmssl.data.views import Views


@dataclass(frozen=True)
class Features:
    x: np.ndarray
    """float32 [N,D]: `Encoded.pooled` of each example."""
    rows: np.ndarray
    """int64 [N]: row of each example in its source; a file may give several examples."""
    labels: tuple[str | None, ...]
    """N labels: the source's, or what the view says where the footage gives the label itself."""
    ids: tuple[str, ...]
    """N ids of the source."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(id, reason) of files that could not be read."""

    def at(self, rows: np.ndarray) -> Features:
        """The examples of some rows."""
        keep = np.flatnonzero(np.isin(self.rows, rows))
        labels, ids = tuple(self.labels[i] for i in keep), tuple(self.ids[i] for i in keep)
        return Features(self.x[keep], self.rows[keep], labels, ids, self.skipped)


def features_cache() -> Path:
    """Where features are kept between evaluations. May be deleted at any time."""
    return cache_folder() / "features"


def extract(encoder: Encoder, source: Source, rows: np.ndarray, **options: Any) -> Features:
    """Features of one encoder; see `extract_all` for the options."""
    return extract_all([encoder], source, rows, **options)[0]


@torch.no_grad()
def extract_all(
    encoders: Sequence[Encoder],
    source: Source,
    rows: np.ndarray,
    *,
    views: Views | None = None,
    classes: tuple[str, ...] | None = None,
    each: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    seed: int = 0,
    cache: Path | None = None,
    title: str = "features",
) -> list[Features]:
    """Features of frozen encoders of one spec, in evaluation mode and fp32; files are decoded once for all of them.

    Args:
        views: deterministic sampling; `evaluation_views(encoder.spec)` if None. Several samples of a file are averaged.
        classes: names of the classes that the views give: then every sample is an example of its own.
        each: every sample is an example of its own and has its file's label.
        device: where to compute (encoders are moved there); None leaves each encoder where it is.
        cache: folder of features already computed; the key covers weights, data, rows, views and seed.

    Raises:
        UserError: no rows, too many unreadable files, or features that are not finite.
    """
    if not len(rows):
        raise UserError("There is no file to compute features of: check the split and the folder.")
    files = Files(source, views or evaluation_views(encoders[0].spec), np.asarray(rows, np.int64), seed)
    keys = [cache_key(encoder, files) for encoder in encoders]
    stored = [load_cached(cache, key) for key in keys]
    missing = [i for i, found in enumerate(stored) if found is None]
    if missing:
        wanted = [encoders[i] if device is None else encoders[i].to(device) for i in missing]
        for i, found in zip(missing, _compute(wanted, files, batch_size, workers, title), strict=True):
            stored[i] = found
            save_cached(cache, keys[i], found)
    return [_features(found, source, classes, each) for found in stored if found is not None]


def _compute(
    encoders: list[Encoder], files: Files, batch_size: int, workers: int, title: str
) -> list[dict[str, np.ndarray]]:
    parts: list[list[Tensor]] = [[] for _ in encoders]
    rows, classes, skipped = [], [], list[tuple[int, str]]()
    with evaluating(*encoders):
        for chunk in read_nearly_all(files, skipped, batch_size=batch_size, workers=workers, title=title):
            assert chunk.views is not None
            for start in range(0, len(chunk.views), batch_size):
                few = slice(start, start + batch_size)
                for encoder, found in zip(encoders, parts, strict=True):
                    place = next(encoder.parameters()).device
                    lengths = None if chunk.lengths is None else chunk.lengths[few].to(place)
                    with torch.autocast(place.type, enabled=False):
                        found.append(encoder(chunk.views[few].to(place), lengths=lengths).pooled.float().cpu())
            rows.append(chunk.rows)
            classes.append(chunk.classes)
    shared = {
        "rows": np.concatenate(rows),
        "classes": np.concatenate(classes),
        "bad": np.array([row for row, _ in skipped], np.int64),
        "reasons": np.array([reason for _, reason in skipped], np.str_),
    }
    results = []
    for found in parts:
        x = torch.cat(found).numpy()
        if not np.isfinite(x).all():
            wrong = shared["rows"][~np.isfinite(x).all(1)]
            raise UserError(
                f"The encoder gives features that are not finite for {len(wrong)} of {len(x)} examples (first:"
                f" {files.source.id(int(wrong[0]))}): its training diverged; take an earlier checkpoint."
            )
        results.append({"x": x, **shared})
    return results


def _features(stored: dict[str, np.ndarray], source: Source, classes: tuple[str, ...] | None, each: bool) -> Features:
    x, rows = stored["x"], stored["rows"]
    if classes is None:
        if not each:
            rows, x = _mean_by_file(rows, x)
        labels = tuple(source.label(int(row)) for row in rows)
    else:
        labels = tuple(classes[number] for number in stored["classes"])
    bad = zip(stored["bad"], stored["reasons"], strict=True)
    skipped = tuple((source.id(int(row)), str(reason)) for row, reason in bad)
    return Features(x, rows, labels, tuple(source.id(int(row)) for row in rows), skipped)


def _mean_by_file(rows: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the examples [N,D] of each row; rows stay in the order of their first example."""
    different, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    if len(different) == len(rows):
        return rows, x
    total = np.zeros((len(different), x.shape[1]))
    np.add.at(total, inverse, x)
    order = np.argsort(first)
    return different[order], (total / np.bincount(inverse)[:, None]).astype(np.float32)[order]


# ------------------------------------------------------------------------------------------------------------- cache


def cache_key(encoder: Encoder, files: Files) -> str:
    versions = (mmssl.__version__, torch.__version__)
    parts = (*versions, encoder_hash(encoder), files.source.fingerprint, repr(files.views), files.seed)
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(files.rows.tobytes())
    return digest.hexdigest()


def load_cached(cache: Path | None, key: str) -> dict[str, np.ndarray] | None:
    if cache is None or not (cache / f"{key}.npz").exists():
        return None
    try:
        with np.load(cache / f"{key}.npz", allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None  # a damaged cache costs a computation, never an evaluation


def save_cached(cache: Path | None, key: str, stored: dict[str, np.ndarray]) -> None:
    if cache is None:
        return
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".part", delete=False) as part:
            np.savez(part, allow_pickle=False, **stored)
        os.replace(part.name, cache / f"{key}.npz")
    except OSError as error:
        raise UserError(
            f"Features cannot be kept in {cache} ({error.strerror}): free some space there, set MMSSL_CACHE to another"
            " folder, or give --no-cache."
        ) from error


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale [D] that make features [N,D] what BatchNorm1d(affine=False) makes of them.

    MAE puts that layer before its head (arXiv:2111.06377, appendix A.1). Its fixed epsilon would shrink encoders whose
    features vary little, untrained ones above all, so only what varies less than fp32 can tell is held down here.
    """
    wide = x.double()
    mean = wide.mean(0)
    return mean.float(), wide.std(0, correction=0).clamp_min(1e-12).maximum(1e-5 * mean.abs()).float()

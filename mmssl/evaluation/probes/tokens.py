"""All tokens of frozen encoders, kept as fp16 in a memory map where there is room, else computed anew when they are
asked for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mmssl
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.reading import Chunk, Files, read_nearly_all, read_views
from mmssl.evaluation.subject import encoder_hash, evaluating
from mmssl.types import Encoded

SPARE = 0.8
"""Share of the free disk that tokens may take."""


def tokens_of(encoded: Encoded) -> Tensor:
    """What an attentive probe looks at: prefix and patch tokens, or the places of a convolutional net's feature map;
    standardised over D without a learned factor, which belongs to the probe: float32 [B,N,D]."""
    if encoded.tokens is not None:
        parts = [encoded.tokens] if encoded.prefix is None else [encoded.prefix, encoded.tokens]
        tokens = torch.cat(parts, 1)
    elif encoded.feature_map is not None:
        tokens = encoded.feature_map.flatten(2).transpose(1, 2)
    else:
        tokens = encoded.pooled[:, None]
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


@dataclass(frozen=True)
class Tokens:
    """The tokens of E examples of one encoder."""

    rows: np.ndarray
    """int64 [E]: row of each example in its source."""
    classes: np.ndarray
    """int64 [E]: the class that the view gives, -1 for none."""
    skipped: tuple[tuple[str, str], ...]
    """(id, reason) of files that could not be read."""
    shape: tuple[int, int]
    """(N, D)."""
    stored: np.ndarray | None
    """float16 [E,N,D] memory map; None where they are computed anew."""
    fresh: Fresh

    def batches(self, files: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens float16 [b,N,D] on the CPU and the numbers of their examples, int64 [b], file by file."""
        if self.stored is None:
            yield from self.fresh.batches(self, files, size)
            return
        numbers = self.numbers(files)
        per_file = self.fresh.files.views.per_file
        size = max(1, size // per_file) * per_file  # whole files, as they are read
        for start in range(0, len(numbers), size):
            few = numbers[start : start + size]
            yield torch.from_numpy(self.stored[few]), torch.from_numpy(few)

    def numbers(self, files: np.ndarray) -> np.ndarray:
        """Numbers of the examples of files (rows), in their order."""
        order = np.argsort(self.rows, kind="stable")
        first = np.searchsorted(self.rows[order], files, "left")
        last = np.searchsorted(self.rows[order], files, "right")
        return np.concatenate([order[a:b] for a, b in zip(first, last, strict=True)] or [np.empty(0, np.int64)])


@dataclass(frozen=True)
class Fresh:
    """Reads files and encodes them."""

    encoder: Encoder
    files: Files
    batch_size: int
    workers: int

    def batches(self, tokens: Tokens, rows: np.ndarray, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        files = Files(self.files.source, self.files.views, rows, self.files.seed)
        with evaluating(self.encoder):
            for chunk in read_views(files, batch_size=size, workers=self.workers):
                if chunk.views is not None:
                    found = [part.half().cpu() for part in encode_chunk(self.encoder, chunk, self.batch_size)]
                    different = chunk.rows[np.sort(np.unique(chunk.rows, return_index=True)[1])]
                    yield torch.cat(found), torch.from_numpy(tokens.numbers(different))


def encode_chunk(encoder: Encoder, chunk: Chunk, batch_size: int) -> Iterator[Tensor]:
    """Tokens float32 [b,N,D] of a chunk's views, `batch_size` at a time."""
    assert chunk.views is not None
    place = next(encoder.parameters()).device
    for start in range(0, len(chunk.views), batch_size):
        few = slice(start, start + batch_size)
        lengths = None if chunk.lengths is None else chunk.lengths[few].to(place)
        with torch.no_grad(), torch.autocast(place.type, enabled=False):
            yield tokens_of(encoder(chunk.views[few].to(place), lengths=lengths))


def collect_tokens(
    encoders: Sequence[Encoder],
    files: Files,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    cache: Path | None,
    limit: float,
) -> list[Tokens]:
    """Tokens of frozen encoders of one spec; files are decoded once for all of them.

    Args:
        cache: folder where memory maps are kept for the next evaluation; None for a folder that goes with the process.
        limit: most bytes that the memory maps may take; beyond it (or beyond 80 % of the free disk) tokens are computed
            whenever they are asked for.

    Raises:
        UserError: too many unreadable files, tokens that are not finite, or no room after all.
    """
    fresh = {_key(encoder, files): Fresh(encoder.to(device), files, batch_size, workers) for encoder in encoders}
    folders = {key: _folder(cache, key) for key in fresh}
    found = {key: _load(folders[key], part) for key, part in fresh.items()}
    missing = [key for key, tokens in found.items() if tokens is None]
    if missing:
        made = _compute([fresh[key] for key in missing], [folders[key] for key in missing], limit)
        found |= dict(zip(missing, made, strict=True))
    tokens = (found[_key(encoder, files)] for encoder in encoders)  # two encoders may be one and the same
    return [each for each in tokens if each is not None]


_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []
"""Folders of this process, removed when it ends."""


def _folder(cache: Path | None, key: str) -> Path:
    if cache is None:
        _TEMPORARY.append(tempfile.TemporaryDirectory(prefix="mmssl-tokens-"))
        return Path(_TEMPORARY[-1].name) / key
    return cache / "tokens" / key


def _compute(fresh: list[Fresh], folders: list[Path], limit: float) -> list[Tokens]:
    files, batch_size = fresh[0].files, fresh[0].batch_size
    most = len(files) * files.views.per_file
    maps: list[np.ndarray | None] = [None] * len(fresh)
    shapes = [(0, 0)] * len(fresh)
    rows: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    skipped: list[tuple[int, str]] = []
    done = 0
    with evaluating(*(part.encoder for part in fresh)):
        workers = fresh[0].workers
        for chunk in read_nearly_all(files, skipped, batch_size=batch_size, workers=workers, title="tokens"):
            assert chunk.views is not None
            if done == 0:  # only now is it known how many tokens there are, and how wide
                firsts = [next(encode_chunk(part.encoder, chunk, 1)) for part in fresh]
                shapes = [(first.shape[1], first.shape[2]) for first in firsts]
                maps = _maps(folders, most, shapes, limit)
            if any(kept is not None for kept in maps):
                for part, kept in zip(fresh, maps, strict=True):
                    assert kept is not None
                    at = done
                    for found in encode_chunk(part.encoder, chunk, batch_size):
                        _check_finite(found, chunk.rows[at - done :], files)
                        kept[at : at + len(found)] = found.half().cpu().numpy()
                        at += len(found)
            done += len(chunk.views)
            rows.append(chunk.rows)
            classes.append(chunk.classes)
    names = tuple((files.source.id(row), reason) for row, reason in skipped)
    table = {"rows": np.concatenate(rows), "classes": np.concatenate(classes)}
    results = []
    for part, kept, folder, shape in zip(fresh, maps, folders, shapes, strict=True):
        if kept is not None:
            kept.flush()  # type: ignore[attr-defined]
            np.savez(_part(folder) / "examples.npz", rows=table["rows"], classes=table["classes"])
            (_part(folder) / "skipped.json").write_text(json.dumps(names), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(_part(folder), folder)
        results.append(
            Tokens(table["rows"], table["classes"], names, shape, None if kept is None else kept[:done], part)
        )
    return results


def _part(folder: Path) -> Path:
    """Where this process writes what `folder` will hold."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.part")


def _maps(folders: list[Path], examples: int, shapes: list[tuple[int, int]], limit: float) -> list[np.ndarray | None]:
    """Empty memory maps, or None for each where all together would take too much."""
    wanted = sum(2 * examples * count * width for count, width in shapes)
    parent = folders[0].parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if wanted > min(limit, SPARE * shutil.disk_usage(parent).free):
            return [None] * len(folders)
        maps: list[np.ndarray | None] = []
        for folder, shape in zip(folders, shapes, strict=True):
            file = _part(folder) / "tokens.npy"
            shutil.rmtree(file.parent, ignore_errors=True)
            file.parent.mkdir(parents=True)
            maps.append(np.lib.format.open_memmap(file, "w+", np.float16, (examples, *shape)))
            with file.open("r+b") as opened:  # a disk that fills up later would end the process by a signal
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return maps
    except OSError as error:
        raise UserError(
            f"Tokens cannot be kept in {parent} ({error.strerror}): free some space there, set MMSSL_CACHE to another"
            " folder, or give --token-gib 0 to compute them whenever they are needed."
        ) from error


def _check_finite(tokens: Tensor, rows: np.ndarray, files: Files) -> None:
    finite = torch.isfinite(tokens).flatten(1).all(1)
    if not finite.all():
        first = files.source.id(int(rows[int((~finite).float().argmax())]))
        raise UserError(
            f"The encoder gives tokens that are not finite (first: {first}): its training diverged; take an earlier"
            " checkpoint."
        )


def _key(encoder: Encoder, files: Files) -> str:
    parts = (mmssl.__version__, torch.__version__, encoder_hash(encoder), files.source.fingerprint)
    digest = hashlib.sha256(repr((*parts, repr(files.views), files.seed)).encode())
    digest.update(files.rows.tobytes())
    return digest.hexdigest()


def _load(folder: Path, fresh: Fresh) -> Tokens | None:
    """What an earlier evaluation kept; None where there is nothing, or it is damaged."""
    try:
        with np.load(folder / "examples.npz", allow_pickle=False) as table:
            rows, classes = table["rows"], table["classes"]
        stored = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        skipped = json.loads((folder / "skipped.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, EOFError, KeyError):
        return None
    names = tuple((str(name), str(reason)) for name, reason in skipped)
    return Tokens(rows, classes, names, (stored.shape[1], stored.shape[2]), stored[: len(rows)], fresh)

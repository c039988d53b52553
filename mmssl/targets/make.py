"""`mmssl targets kmeans`: features of all data, clustered, and the units of every recording.

Three passes over the data in pieces, none of which is ever held as a whole: features of some frames of some recordings
are drawn and kept; k-means is fitted on them; every recording is read again, and its features become units at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mmssl.data.indexing import show_progress
from mmssl.data.sources import Source, open_source
from mmssl.errors import UserError
from mmssl.files import write_json
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import Features, feature_text
from mmssl.targets.joining import FIT, join, summary
from mmssl.targets.kmeans import fit_stream
from mmssl.targets.quality import Segments, measure
from mmssl.targets.reading import Part, counts_of, features_of_parts
from mmssl.targets.settings import KmeansSettings, key_of, open_features, pick_device
from mmssl.targets.units import ABOUT, CODEBOOK, Units, read_about
from mmssl.targets.work import Chunk, Work, chunks_of

SPREAD = 10
"""Recordings are drawn that hold so many times the frames that are asked for: a frame in ten of each is taken."""


def run_kmeans(settings: KmeansSettings, console: Console | None = None) -> Units:
    """Make units, or go on with it, or find them made; every process of a launch calls it.

    Raises:
        UserError: settings that contradict each other, too many files that cannot be read, or work or units in OUT that
            were made with other settings or data.
    """
    console = console or Console()
    features = open_features(settings)
    out = settings.out.expanduser().absolute()
    work = Work(out)
    with closing(work):
        with show_progress(Console(stderr=True)) as progress:
            source = open_source(
                settings.data,
                features.modality,
                out=out if work.main else None,
                max_bad_share=settings.max_bad_share,
                progress=progress if work.main else None,
            )
        key = key_of(settings, features, source)
        segments = None if settings.labels is None else Segments(settings.labels)
        if not work.finished and work.begin(key):
            units = _Making(settings, features, source, work, out, console).run(key)
        elif read_about(out)["key"] == key:
            units = Units.open(out)
            if work.main:
                units.verify()
        else:
            raise UserError(f"{out} holds units of other settings or data: choose another --out, or remove it.")
        if work.main:
            if "quality" not in units.about or segments is not None:
                quality = measure(units, source, segments, features.timing)
                write_json(out / ABOUT, units.about | {"quality": quality})
                units = Units.open(out)
            work.remove()
    if work.main:
        console.print(summary(units), soft_wrap=True, highlight=False, markup=False)
    return units


class _Making:
    """One process at work."""

    def __init__(
        self, settings: KmeansSettings, features: Features, source: Source, work: Work, out: Path, console: Console
    ) -> None:
        self.settings, self.source, self.work, self.out, self.console = settings, source, work, out, console
        self.device = pick_device(settings.device)
        self.features = features.to(self.device)
        self.file = out / CODEBOOK

    def run(self, key: dict[str, Any]) -> Units:
        fitted = self.settings.codebook is None
        if fitted:
            self.sample()
        if self.work.main and not self.file.exists():
            book = self.fit() if fitted else Codebook.load(self.settings.codebook / CODEBOOK)  # type: ignore[operator]
            book.save(self.file)
        self.work.wait(self.file.exists, "the main process to fit the codebook")
        book = Codebook.load(self.file)
        chunks = chunks_of(self.source, self.source.rows(None), self.features.timing)
        self.assign(book, chunks)
        if self.work.main:
            self.work.wait_for("labels", chunks)
            return join(self.work, chunks, self.source, self.features, self.settings, book, key)
        self.work.wait(lambda: self.work.finished, "the main process to join the units")
        return Units.open(self.out)

    # ------------------------------------------------------------------------------------------------------- sample

    def sample(self) -> None:
        """Draw features at random from recordings at random; chunk by chunk onto disk."""
        chunks, share = self.drawn()
        for chunk, found in self.chunks(
            "sample", chunks, f"drawing {self.settings.frames} features", random_views=True
        ):
            kept = [torch.zeros(0, self.features.width)]
            for part, x in found:
                if isinstance(x, str):
                    continue  # it is told where its units are missing
                rng = np.random.default_rng((self.settings.seed, part.row, part.number))
                keep = np.flatnonzero(rng.random(len(x)) < share)
                kept.append(x[torch.from_numpy(keep).to(x.device)].cpu())
            self.work.put("sample", chunk, {"x": torch.cat(kept).numpy()}, {})
        if self.work.main:
            self.work.wait_for("sample", chunks)

    def drawn(self) -> tuple[list[Chunk], float]:
        """The recordings that features are drawn from, and the share of their features that is taken."""
        rows = self.source.rows("train")
        rows = rows if len(rows) else self.source.rows(None)
        rows = np.random.default_rng(self.settings.seed).permutation(rows)
        counts = np.array(self.counted(rows), np.float64)
        enough = int(np.searchsorted(counts.cumsum(), SPREAD * self.settings.frames)) + 1
        rows, counts = rows[:enough], counts[:enough]
        share = min(1.0, self.settings.frames / max(counts.sum(), 1.0))
        return chunks_of(self.source, np.sort(rows), self.features.timing), share

    def counted(self, rows: np.ndarray) -> list[int]:
        """Features of each row; where nobody knows the length of a recording before it is read, as if it had 10 s."""
        timing, per_view = self.features.timing, self.features.per_view
        if per_view is not None:
            return [per_view] * len(rows)
        assert timing is not None
        guess = timing.count(10 * timing.rate)
        return [guess if count is None else count for count in counts_of(self.source, rows, timing)]

    @torch.no_grad()
    def fit(self) -> Codebook:
        chunks, _ = self.drawn()
        x = torch.cat([torch.from_numpy(self.work.get("sample", chunk, "x")[0][0]) for chunk in chunks]).to(self.device)
        if not len(x):
            raise UserError(f"Nothing in {self.settings.data} gave features: look at what `mmssl index` says of it.")
        if len(x) < self.settings.clusters:  # the stream below repeats them, and would not notice
            raise UserError(
                f"{self.settings.clusters} clusters got {len(x)} features to be fitted on: give more data, draw more "
                "features, or ask for fewer clusters."
            )
        settings, size = self.settings, min(self.settings.batch_size, len(x))
        self.console.print(f"Fitting {settings.clusters} clusters on {len(x)} features of {x.shape[1]} values.")
        rounds = torch.Generator(self.device).manual_seed(settings.seed)

        def shuffled() -> Iterator[Tensor]:
            for _ in range(settings.max_iter):
                order = torch.randperm(len(x), generator=rounds, device=self.device)
                yield from (x[places] for places in order.split(size))

        fitted = fit_stream(
            shuffled(),
            settings.clusters,
            batch_size=size,
            n_init=settings.n_init,
            max_no_improvement=settings.max_no_improvement,
            reassignment_ratio=settings.reassignment_ratio,
            seed=settings.seed,
        )
        facts = {"inertia": fitted.inertia, "updates": fitted.iterations, "features": len(x)}
        write_json(self.work.folder / FIT, facts)
        return Codebook(fitted.centroids, feature_text(self.features.describe()))

    # ------------------------------------------------------------------------------------------------------- assign

    def assign(self, book: Codebook, chunks: list[Chunk]) -> None:
        """Units of every row; chunk by chunk onto disk."""
        codes = Codebook(book.centroids.to(self.device), book.features)
        kind = np.int16 if len(book) <= np.iinfo(np.int16).max + 1 else np.int32
        for chunk, found in self.chunks("labels", chunks, "making units"):
            pieces: dict[int, dict[int, np.ndarray]] = {row: {} for row in chunk.rows}
            problems: dict[int, str] = {}
            for part, x in found:
                if isinstance(x, str):
                    problems.setdefault(part.row, x)
                elif not bool(torch.isfinite(x).all()):
                    problems.setdefault(part.row, f"{self.source.id(part.row)}: its features are not finite")
                else:
                    pieces[part.row][part.number] = codes.assign(x).cpu().numpy().astype(kind)
            rows = [row for row in chunk.rows if row not in problems]
            whole = [np.concatenate([pieces[row][number] for number in sorted(pieces[row])]) for row in rows]
            arrays = {
                "labels": np.concatenate([np.zeros(0, kind), *whole]),
                "rows": np.array(rows, np.int64),
                "counts": np.array([len(labels) for labels in whole], np.int64),
            }
            self.work.put("labels", chunk, arrays, {"problems": problems})

    def chunks(
        self, stage: str, chunks: list[Chunk], title: str, random_views: bool = False
    ) -> Iterator[tuple[Chunk, Iterator[tuple[Part, Tensor | str]]]]:
        """The chunks that this process has to make, with the features of their parts."""
        todo = self.work.mine(stage, chunks)
        if not todo:
            return
        stream = features_of_parts(
            self.source,
            [chunk.parts for chunk in todo],
            self.features,
            device=self.device,
            workers=self.settings.workers,
            timeout=self.settings.file_seconds,
            random_views=random_views,
            seed=self.settings.seed,
        )
        total = sum(len(chunk.rows) for chunk in todo)
        done = bad = 0

        def shown(chunk: Chunk) -> Iterator[tuple[Part, Tensor | str]]:
            nonlocal done, bad
            for part, x in islice(stream, len(chunk.parts)):
                done += part.last
                bad += isinstance(x, str)
                show(done, total, bad)
                yield part, x

        with show_progress(Console(stderr=True), title, f"{title}:") as show:
            for chunk in todo:
                yield chunk, shown(chunk)

"""The last step of target making: what processes made of their chunks becomes one folder of units."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from mmssl.data.sources import Source
from mmssl.errors import UserError
from mmssl.files import writing
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import Features
from mmssl.targets.settings import KmeansSettings
from mmssl.targets.units import SKIPPED, Units, write_units
from mmssl.targets.work import Chunk, Work

FIT = "fit.json"
SHOWN = 5
"""Bad files that an error names."""


def join(
    work: Work,
    chunks: list[Chunk],
    source: Source,
    features: Features,
    settings: KmeansSettings,
    book: Codebook,
    key: dict[str, Any],
) -> Units:
    """Join the chunks, of which only one is held at a time.

    Raises:
        UserError: too many files could not be read, or nothing is long enough to have units.
    """
    rows: list[int] = []
    lengths: list[np.ndarray] = []
    problems: dict[str, str] = {}
    for chunk in chunks:
        (own, length), facts = work.get("labels", chunk, "rows", "counts")
        rows += own.tolist()
        lengths.append(length)
        problems |= {source.id(int(row)): reason for row, reason in facts["problems"].items()}
    counts = np.concatenate(lengths)
    if len(problems) > settings.max_bad_share * (len(rows) + len(problems)):
        some = "; ".join(f"{id}: {reason}" for id, reason in list(problems.items())[:SHOWN])
        raise UserError(
            f"{len(problems)} of {len(rows) + len(problems)} files could not be read ({some}): mend or remove them and "
            f"choose another --out, or raise --max-bad-share ({settings.max_bad_share:g})."
        )
    if not counts.sum():
        raise UserError(f"No file in {settings.data} is as long as one window: there is nothing to label.")
    _list_skipped(work, problems)
    timing, fit = features.timing, work.folder / FIT
    about = {
        "codes": len(book),
        "codebook": book.sha256,
        "features": features.describe(),
        "encoder": features.source,
        "rate": timing and timing.rate,
        "hop": timing and timing.hop,
        "window": timing and timing.window,
        "data": settings.data,
        "source": source.fingerprint,
        "fit": json.loads(fit.read_text()) if settings.codebook is None else {"codebook": str(settings.codebook)},
        "skipped": len(problems),
        "empty": int((counts == 0).sum()),
        "key": key,
    }
    parts = (work.get("labels", chunk, "labels")[0][0] for chunk in chunks)
    return write_units(work.out, [source.id(row) for row in rows], counts, parts, about)


def _list_skipped(work: Work, problems: dict[str, str]) -> None:
    """OUT/skipped.jsonl, where something was."""
    file = work.out / SKIPPED
    lines = [json.dumps({"id": id, "reason": reason}, ensure_ascii=False) + "\n" for id, reason in problems.items()]
    with writing(file):
        file.unlink(missing_ok=True)
        if lines:
            file.write_text("".join(lines), encoding="utf-8")


def summary(units: Units) -> str:
    """What the command says in the end."""
    about, use = units.about, units.about["quality"]["codes"]
    lines = [
        f"{about['labels']} units of {about['recordings']} files, {use['use']} of {units.codes} codes in use, "
        f"perplexity {use['perplexity']:.1f}: {units.folder}"
    ]
    for what, name in (("classes", "labels of files"), ("frames", "labels of frames")):
        if found := about["quality"][what]:
            lines.append(
                f"beside {found['classes']} {name}: purity {found['purity']:.3f}, cluster purity "
                f"{found['cluster_purity']:.3f}, PNMI {found['pnmi']:.3f}"
            )
    if about["skipped"]:
        lines.append(f"{about['skipped']} files could not be read and have no units: {units.folder / SKIPPED}")
    if about["empty"]:
        lines.append(f"{about['empty']} recordings are shorter than one window and have no units")
    return "\n".join(lines)

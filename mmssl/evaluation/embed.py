"""`mmssl embed`: one vector a file, with its id, into a parquet table."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.features import Features, extract, features_cache
from mmssl.evaluation.frame import open_media
from mmssl.evaluation.subject import describe, pick_device
from mmssl.evaluation.views import evaluation_views, kind_for
from mmssl.files import writing


@dataclass(kw_only=True)
class EmbedSettings:
    """Write the features of every file, with sample ids, to parquet."""

    encoder: str
    """Folder of a run's encoder, or a Hub id."""
    data: str
    """Media: nested folders, a folder with metadata.csv, WebDataset tars, or a Hub name."""
    out: Path
    """Parquet file, one row a file: id, row, split, label, embedding."""
    clips: int = 1
    """Clips or segments of a file whose features are averaged; 1 is the middle one."""
    batch_size: int = 64
    workers: int = 2
    """Processes that decode; 0 decodes in this one."""
    device: str = "auto"
    """'auto' takes a GPU where one is at hand; else a torch device such as 'cpu' or 'cuda:1'."""
    cache: bool = True
    """Keep features on disk and use those that are already there."""


def run_embed(settings: EmbedSettings) -> pa.Table:
    """Embed as the command line does; returns the table that it writes."""
    if settings.out.is_dir():
        raise UserError(f"--out {settings.out} is a folder: name a parquet file, such as {settings.out / 'e.parquet'}.")
    encoder = Encoder.from_pretrained(settings.encoder)
    source = open_media(settings.data, kind_for(settings.data, encoder.spec))
    features = extract(
        encoder,
        source,
        source.rows(None),
        views=evaluation_views(encoder.spec, settings.clips),
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=pick_device(settings.device),
        cache=features_cache() if settings.cache else None,
    )
    facts = {**describe(encoder, settings.encoder), "clips": settings.clips, "data": source.fingerprint}
    table = embedding_table(features, source, facts)
    write_parquet(settings.out, table)
    print(f"{len(table)} embeddings of width {encoder.width} ({encoder.pooling} pooling): {settings.out}")
    for name, reason in features.skipped:
        print(f"left out: {name}: {reason}")
    return table


def embedding_table(features: Features, source: Source, facts: dict) -> pa.Table:
    """Columns id, row, split, label, embedding (fixed-size list of float32); metadata 'mmssl': `facts` as JSON."""
    split = {int(row): name for name in ("train", "validation", "test") for row in source.rows(name)}
    flat = pa.array(np.ascontiguousarray(features.x, dtype=np.float32).reshape(-1))
    # Parquet names the items 'element'; saying so here makes the table equal to what is read back.
    vector = pa.list_(pa.field("element", pa.float32()), features.x.shape[1])
    columns = {
        "id": pa.array(features.ids, pa.string()),
        "row": pa.array(features.rows, pa.int64()),
        "split": pa.array([split.get(int(row)) for row in features.rows], pa.string()),
        "label": pa.array(features.labels, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, type=vector),
    }
    return pa.table(columns).replace_schema_metadata({"mmssl": json.dumps(facts)})


def write_parquet(file: Path, table: pa.Table) -> None:
    """Write a file whole or not at all. Raises UserError where it cannot be written."""
    part = file.with_name(f".{file.name}.part")
    with writing(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, part)
            os.replace(part, file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

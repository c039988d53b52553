"""What the tests of the loader share."""

from __future__ import annotations

import torch

from mmssl.data.loader import MediaDataset
from mmssl.data.plan import Plan
from mmssl.data.sources import Source
from mmssl.data.views import ImageViews, Views
from mmssl.types import Batch

NOISE = {"mask": 5, "photometric/a": 13}


def dataset(source: Source, views: Views | None = None, seed: int = 3) -> MediaDataset:
    return MediaDataset(source, views or ImageViews(16, names=("a", "b")), seed, NOISE)


def plan(source: Source, batch_size: int = 4, per_file: int = 1) -> Plan:
    return Plan(source.rows("train"), batch_size, seed=3, per_file=per_file)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    parts = {"views": batch.views, "noise": batch.noise, "targets": batch.targets, "lengths": batch.lengths}
    named = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return {"index": batch.index, **named}


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([tensors(batch)[name] for batch in batches]) for name in tensors(batches[0])}


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    a, b = joined(one), joined(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name

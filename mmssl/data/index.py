"""The table of all media of a folder: the row number is the sample's index; every file was decoded once to its end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from mmssl.data.listing import list_media
from mmssl.data.media import Record
from mmssl.data.verify import FACTS, Verdicts, cache_folder, time_limit, verify
from mmssl.errors import UserError

Progress = Callable[[int, int, int], None]
"""Called with (files done, files in all, files with a problem)."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("frames", pa.int64()),
        pa.field("rate", pa.float64()),
        pa.field("channels", pa.int32()),
        pa.field("duration", pa.float64()),
        pa.field("backend", pa.string()),
        pa.field("motion", pa.list_(pa.float32())),
        pa.field("silence", pa.float32()),
        pa.field("clipping", pa.float32()),
        pa.field("problem", pa.string()),
    ]
)
ADDED = ("motion", "silence", "clipping")
"""Columns that tables written earlier lack."""
assert SCHEMA.names == [column.name for column in fields(Record)]


class Index:
    """A pyarrow table of Records under one root. Rows are sorted by id, so that the same folder gives the same rows."""

    def __init__(self, root: Path, table: pa.Table, ignored: dict[str, int] | None = None) -> None:
        self.root, self.table = root, table
        self.ignored = ignored or {}
        """Files that are no media of the asked kind, counted by extension."""

    @classmethod
    def build(
        cls,
        data: Path,
        kind: str | None = None,
        *,
        workers: int | None = None,
        timeout: float = 60.0,
        progress: Progress | None = None,
        cache: Path | None = None,
    ) -> Index:
        """List the media of folder `data` (of one kind, or all), and verify what the cache does not know.

        `timeout`: seconds a file, and 2 more a MiB. `workers`: child processes, by default one a core. Interrupt it at
        any time: verdicts reach `cache` (default MMSSL_CACHE or ~/.cache/mmssl) as they come, and the next call goes on
        from there. Raises UserError where `data` is no folder or a metadata file cannot be read.
        """
        root = Path(data).absolute()
        listing = list_media(root, kind)
        records = listing.records
        verdicts = Verdicts(cache or cache_folder())
        try:
            pending = []
            for number, record in enumerate(records):
                if record.problem is not None:
                    continue
                facts = verdicts.get(root, record, time_limit(record, timeout))
                if facts is None:
                    pending.append((number, record))
                else:
                    records[number] = _with_facts(record, facts)
            unknown = len(pending)
            bad = sum(record.problem is not None for record in records)
            if progress is not None:
                progress(len(records) - unknown, len(records), bad)
            with closing(
                verify(root, pending, workers=workers or len(os.sched_getaffinity(0)), timeout=timeout)
            ) as verified:
                for done, (number, facts) in enumerate(verified, start=len(records) - unknown + 1):
                    if facts.pop("keep", True):
                        verdicts.put(root, records[number], facts)
                    records[number] = _with_facts(records[number], facts)
                    bad += records[number].problem is not None
                    if progress is not None:
                        progress(done, len(records), bad)
        finally:
            verdicts.close()
        return cls.from_records(root, records, listing.ignored)

    @classmethod
    def from_records(cls, root: Path, records: list[Record], ignored: dict[str, int] | None = None) -> Index:
        return cls(root, pa.Table.from_pylist([asdict(record) for record in records], SCHEMA), ignored)

    def save(self, file: Path) -> None:
        """Write parquet, whole or not at all."""
        about = {"mmssl": json.dumps({"root": str(self.root), "ignored": self.ignored})}
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            pa.parquet.write_table(self.table.replace_schema_metadata(about), part, compression="zstd")
            os.replace(part, file)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise UserError(
                f"The index cannot be written to {file} ({error.strerror or error}): give another place."
            ) from error

    @classmethod
    def load(cls, file: Path) -> Index:
        """Raises UserError where `file` is missing or not an index."""
        try:
            table = pa.parquet.read_table(file)
            about = json.loads(table.schema.metadata[b"mmssl"])
            for name in set(ADDED) - set(table.column_names):
                table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
            table = table.select(SCHEMA.names).cast(SCHEMA)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{file} is not an index that can be read ({error}): build it with `mmssl index`."
            ) from error
        return cls(Path(about["root"]), table, about["ignored"])

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def rows(self, split: str | None = None, usable: bool = True) -> np.ndarray:
        """int64 row numbers, of one split if asked, without the files that have a problem unless `usable` is False."""
        chosen = np.ones(len(self), bool)
        if split is not None:
            chosen &= np.array([name == split for name in self.column("split")], bool)
        if usable:
            chosen &= np.array(self.table["problem"].is_null(), bool)
        return np.flatnonzero(chosen)

    def record(self, row: int) -> Record:
        values = {name: self.table[name][int(row)].as_py() for name in SCHEMA.names}
        return Record(**_frozen(values))

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self.table[name].to_pylist()
        return values

    def problems(self) -> list[tuple[str, str]]:
        """(id, problem) of every file that cannot be used."""
        bad = self.table.filter(self.table["problem"].is_valid())
        return list(zip(bad["id"].to_pylist(), bad["problem"].to_pylist(), strict=True))

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes, modification times and which files are sound: equal for equal samples by row."""
        digest = hashlib.sha256()
        for values in self.table.select(["id", "size", "mtime_ns", "problem"]).to_pylist():
            known = (values["id"], values["size"], values["mtime_ns"], values["problem"] is None)
            digest.update(json.dumps(known).encode() + b"\n")
        return digest.hexdigest()


def _with_facts(record: Record, facts: dict[str, Any]) -> Record:
    known: dict[str, Any] = {name: facts.get(name) for name in FACTS}
    return replace(record, **_frozen(known))


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    """With the list of motion as the tuple that a Record holds."""
    return values | {"motion": None if values["motion"] is None else tuple(values["motion"])}

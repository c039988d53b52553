"""Tars of prepared videos: the shards of the data written again, or new ones in WebDataset's layout."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mmssl.data.listing import split_in_name
from mmssl.data.media import Record
from mmssl.errors import UserError
from mmssl.files import sync, writing

Member = tuple[str, bytes | Path]
"""Name in the tar, and its content or the file that holds it."""


@dataclass(frozen=True)
class Output:
    """One file of the copy."""

    path: str
    """Relative to OUT."""
    rows: tuple[int, ...]
    """Of the videos in it, in this order."""
    kind: str
    """'video': the prepared video itself; 'tar': a tar of the data, written again; 'shard': a new WebDataset tar."""


def mirrored(records: list[Record]) -> list[Output]:
    """The same files as in the data."""
    tars: dict[str, list[int]] = defaultdict(list)
    outputs = []
    for row, record in enumerate(records):
        if record.member is None:
            outputs.append(Output(record.path, (row,), "video"))
        else:
            tars[record.path].append(row)
    return outputs + [Output(path, tuple(rows), "tar") for path, rows in tars.items()]


def sharded(records: list[Record], size: int) -> list[Output]:
    """New shards of `size` videos, a series for each split, in the order of the hash of their ids: as good as shuffled,
    and the same every time. What cannot be prepared leaves its shard smaller."""
    series: dict[str, list[int]] = defaultdict(list)
    for row in sorted(range(len(records)), key=lambda row: hashlib.sha256(records[row].id.encode()).digest()):
        series[records[row].split or "data"].append(row)
    outputs = []
    for name, rows in sorted(series.items()):
        if name != "data" and split_in_name(name) != name:
            raise UserError(f"--tars cannot keep the split {name!r}, which no tar can be named after: leave it away.")
        for number, start in enumerate(range(0, len(rows), size)):
            outputs.append(Output(f"{name}-{number:06d}.tar", tuple(rows[start : start + size]), "shard"))
    return outputs


def members(output: Output, records: list[Record], data: Path, videos: Mapping[int, Path]) -> Iterator[Member]:
    """What goes into a tar; `videos` holds the prepared file of each row that could be used."""
    if output.kind == "tar":
        yield from _members_again(
            data / output.path, {records[row].offset or 0: videos.get(row) for row in output.rows}
        )
        return
    for row in output.rows:
        if row in videos:
            record = records[row]
            stem = PurePosixPath(record.member or record.path).stem
            # The number makes it unique; a dot would end WebDataset's key.
            key = f"{row:08d}-{re.sub('[^A-Za-z0-9_-]', '-', stem)[:100]}"
            about = {"id": record.id} | ({} if record.label is None else {"label": record.label})
            yield f"{key}.mp4", videos[row]
            yield f"{key}.json", json.dumps(about, ensure_ascii=False).encode()


def _members_again(tar: Path, videos: Mapping[int, Path | None]) -> Iterator[Member]:
    """The members of a tar, the videos (by the offset of their bytes) replaced; None: left out, with its label."""
    with tarfile.open(tar, "r:") as source:
        files = [member for member in source if member.isfile()]
        bad = {_key(member.name) for member in files if videos.get(member.offset_data, tar) is None}
        for member in files:
            if member.offset_data in videos:
                if (video := videos[member.offset_data]) is not None:
                    yield member.name, video
            elif _key(member.name) not in bad:
                content = source.extractfile(member)
                assert content is not None  # isfile() above
                yield member.name, content.read()


def _key(name: str) -> str:
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def write_tar(path: Path, content: Iterator[Member]) -> None:
    """Whole or not at all; the same members give the same bytes."""
    part = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                with tarfile.open(fileobj=file, mode="w") as tar:
                    for name, what in content:
                        info = tarfile.TarInfo(name)  # its defaults (time 0, owner 0) make it reproducible
                        info.size = what.stat().st_size if isinstance(what, Path) else len(what)
                        with open(what, "rb") if isinstance(what, Path) else io.BytesIO(what) as stream:
                            tar.addfile(info, stream)
                file.flush()
                sync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

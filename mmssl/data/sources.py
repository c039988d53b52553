"""Where rows come from: the index of a local folder, or a data set that Hugging Face `datasets` serves."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import stat
from abc import ABC, abstractmethod
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.index import Index, Progress
from mmssl.data.listing import KINDS, SPLITS, mode_of, split_in_name
from mmssl.data.media import Media, Record
from mmssl.data.metadata import LABELS, METADATA_NAMES
from mmssl.errors import UserError

SHOWN = 5
"""Bad files that an error names."""
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<split>\w+))?")


class Source(ABC):
    """Rows of media, numbered 0..len-1. Picklable: loader workers get a copy."""

    kind: str
    """image, video or audio."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, split: str | None = None) -> np.ndarray:
        """int64: the usable rows, of one split (train, test, validation) if asked."""

    @abstractmethod
    def media(self, row: int) -> Media: ...

    @abstractmethod
    def label(self, row: int) -> str | None: ...

    @abstractmethod
    def id(self, row: int) -> str:
        """Unique and readable."""

    @abstractmethod
    def labels(self) -> list[str]:
        """Names of all classes, sorted; empty when nothing is labelled."""

    @abstractmethod
    def problems(self) -> list[tuple[str, str]]:
        """(id, reason) of the files that cannot be used."""

    def notes(self) -> list[str]:
        """What a user should know of how the rows are used, in sentences."""
        return []

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Differs when rows were added, removed, or changed."""


def open_source(
    data: str | Path,
    kind: str,
    *,
    out: Path | None = None,
    max_bad_share: float = 0.05,
    cache: Path | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    progress: Progress | None = None,
) -> Source:
    """Open `data`: a folder of media or of parquet files in Hugging Face's layout, or a Hub name `owner/name[:split]`.

    A folder of media is verified first (Index.build takes `workers`, `timeout`, `cache` and `progress`); with `out` its
    table is kept as `out`/index.parquet. Raises UserError where nothing of this kind is found, a folder may not be
    read, the data set cannot be reached, or more than `max_bad_share` of the files cannot be used.
    """
    if kind not in KINDS:
        raise UserError(f"Unknown kind of media {kind!r}: it is one of {', '.join(KINDS)}.")
    folder = Path(data).expanduser()
    mode = mode_of(folder)
    if stat.S_ISREG(mode):
        raise UserError(f"{folder} is a file: give the folder that holds it.")
    if not stat.S_ISDIR(mode):
        return _open_hub(str(data), kind)
    if parquet := _parquet_files(folder):
        return _open_parquet(folder, parquet, kind)
    index = Index.build(folder, kind, workers=workers, timeout=timeout, progress=progress, cache=cache)
    check_usable(index, kind, max_bad_share)
    file = None if out is None else Path(out) / "index.parquet"
    if file is not None:
        index.save(file)
    return LocalSource(index, kind, file)


def check_usable(index: Index, kind: str, max_bad_share: float) -> None:
    """Raise UserError where the folder holds no such media or too many bad ones."""
    if len(index) == 0:
        seen = ", ".join(f"{count} {extension}" for extension, count in sorted(index.ignored.items())) or "no files"
        raise UserError(f"{index.root} holds no {kind} files (it holds {seen}): give the folder that holds them.")
    problems = index.problems()
    if len(problems) > max_bad_share * len(index) or len(problems) == len(index):
        some = "; ".join(f"{name}: {problem}" for name, problem in problems[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{len(problems)} of {len(index)} {kind} files in {index.root} cannot be used ({some}{more}). "
            f"Mend or remove them (`mmssl index {index.root}` lists all), or raise --max-bad-share ({max_bad_share:g})."
        )


class LocalSource(Source):
    """The rows of an Index."""

    def __init__(self, index: Index, kind: str, file: Path | None = None) -> None:
        self.kind = kind
        self._file = file
        self.index = index

    @cached_property
    def index(self) -> Index:
        # Reached in a worker only: the table is read there again instead of being sent.
        assert self._file is not None
        return Index.load(self._file)

    def __getstate__(self) -> dict[str, Any]:
        kept = {"kind", "_file"} if self._file is not None else {"kind", "_file", "index"}
        return {name: value for name, value in self.__dict__.items() if name in kept}

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, split: str | None = None) -> np.ndarray:
        return self.index.rows(split)

    def media(self, row: int) -> Media:
        return Media(self.index.record(row), self.index.root)

    def label(self, row: int) -> str | None:
        return self._label_column[row]

    def id(self, row: int) -> str:
        name: str = self.index.table["id"][int(row)].as_py()
        return name

    def labels(self) -> list[str]:
        return sorted({label for label in self._label_column if label is not None})

    def problems(self) -> list[tuple[str, str]]:
        return self.index.problems()

    @cached_property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @cached_property
    def _label_column(self) -> list[str | None]:
        return self.index.column("label")


class DatasetSource(Source):
    """Rows of `datasets.Dataset`s, one a split, read as undecoded bytes. Nobody verified them: the loader replaces what
    it cannot read."""

    def __init__(self, name: str, kind: str, parts: dict[str, Any]) -> None:
        datasets = _datasets()
        self.kind = kind
        self._name = name
        features = {"image": datasets.Image, "audio": datasets.Audio, "video": datasets.Video}[kind]
        first = next(iter(parts.values())).features
        self._column = _media_column(first, features, kind, name)
        self._label = _label_column(first)
        self._parts = {
            SPLITS.get(split.lower(), split): part.cast_column(self._column, features(decode=False))
            for split, part in parts.items()
        }
        lengths = [len(part) for part in self._parts.values()]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_all_labels"}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, split: str | None = None) -> np.ndarray:
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        if split not in self._parts:
            return np.arange(0, dtype=np.int64)
        number = list(self._parts).index(split)
        return np.arange(self._starts[number], self._starts[number + 1], dtype=np.int64)

    def media(self, row: int) -> Media:
        split, position = self._place(row)
        value = self._parts[split][position][self._column] or {}
        content, path = value.get("bytes"), value.get("path")
        record = Record(id=self.id(row), kind=self.kind, label=self.label(row), split=split)
        if content is not None:
            return Media(record, data=content)
        if path is not None and Path(path).is_file():
            plain = Record(id=record.id, kind=self.kind, path=Path(path).name, label=record.label, split=split)
            return Media(plain, root=Path(path).parent)
        return Media(record)

    def label(self, row: int) -> str | None:
        return self._all_labels[row]

    def id(self, row: int) -> str:
        split, position = self._place(row)
        return f"{split}/{position}"

    def labels(self) -> list[str]:
        return sorted({label for label in self._all_labels if label is not None})

    def problems(self) -> list[tuple[str, str]]:
        return []

    @property
    def fingerprint(self) -> str:
        # The cache folder of a Hub data set is named by its revision, that of files by their sizes and times.
        known = [
            (split, len(part), [Path(file["filename"]).parts[-2:] for file in part.cache_files])
            for split, part in self._parts.items()
        ]
        return hashlib.sha256(json.dumps([self._name, known]).encode()).hexdigest()

    def _place(self, row: int) -> tuple[str, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return list(self._parts)[number], int(row - self._starts[number])

    @cached_property
    def _all_labels(self) -> list[str | None]:
        if self._label is None:
            return [None] * len(self)
        labels: list[str | None] = []
        for part in self._parts.values():
            feature = part.features[self._label]
            named = getattr(feature, "int2str", str)
            for value in part.select_columns([self._label])[:][self._label]:
                hidden = value is None or (value == -1 and named is not str)  # test sets without labels use -1
                labels.append(None if hidden else str(named(value)))
        return labels


def _datasets() -> Any:
    # By name, since type checkers take the folder `datasets/` of this repository for the library. Late, since its
    # import takes a second that folders need not wait for.
    return importlib.import_module("datasets")


def _open_hub(name: str, kind: str) -> Source:
    match = HUB_NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name} is not there: give a folder, or a Hub data set as owner/name or owner/name:split.")
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(match["name"], split=match["split"])
    except Exception as error:  # network, permission, unknown name or split: many classes, each with its own sentence
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} is neither a folder here nor a Hub data set that can be loaded ({reason}): check the spelling, "
            "the network, and `hf auth login` for private data."
        ) from error
    return DatasetSource(name, kind, {match["split"]: loaded} if match["split"] else dict(loaded))


def _parquet_files(folder: Path) -> list[Path]:
    """The parquet files of Hugging Face's layout in the folder itself or in its `data`, without metadata.parquet."""
    # Not Path.glob, which raises where a folder may not be read; the listing has a sentence for that.
    found = [place / name for place in (folder, folder / "data") for name in sorted(glob("*.parquet", root_dir=place))]
    return [file for file in found if file.name.lower() not in METADATA_NAMES]


def _open_parquet(folder: Path, files: list[Path], kind: str) -> Source:
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(split_in_name(file.stem) or "train", []).append(str(file))
    try:
        loaded = _datasets().load_dataset("parquet", data_files=splits)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"The parquet files in {folder} cannot be read ({reason}): write them again.") from error
    return DatasetSource(str(folder), kind, dict(loaded))


def _media_column(features: Any, wanted: type, kind: str, name: str) -> str:
    for column, feature in features.items():
        if isinstance(feature, wanted):
            return str(column)
    for column, feature in features.items():  # parquet without Hugging Face's own metadata
        if column.lower() == kind and isinstance(feature, dict) and {"bytes", "path"} <= set(feature):
            return str(column)
    columns = ", ".join(features)
    raise UserError(f"{name} has no {kind} column (its columns are {columns}): choose a data set or recipe that fits.")


def _label_column(features: Any) -> str | None:
    """A column with a usual name, else the first one of type ClassLabel; one value a row."""
    for column in LABELS:
        if column in features and getattr(features[column], "dtype", None) in ("int64", "int32", "string", "bool"):
            return column
    return next((str(column) for column, feature in features.items() if hasattr(feature, "int2str")), None)

"""List the media of a folder: files, members of tars, labels, splits. Only tars and metadata files are opened."""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mmssl.data.media import Record
from mmssl.data.metadata import METADATA_NAMES, label_of_json, read_metadata
from mmssl.errors import UserError

IMAGE = frozenset(
    (
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "bmp",
        "gif",
        "webp",
        "tif",
        "tiff",
        "ppm",
        "pgm",
        "pbm",
        "pnm",
        "avif",
        "jp2",
        "tga",
    )
)
VIDEO = frozenset(
    (
        "mp4",
        "m4v",
        "mov",
        "mkv",
        "webm",
        "avi",
        "mpg",
        "mpeg",
        "mpe",
        "m2v",
        "ts",
        "mts",
        "m2ts",
        "wmv",
        "flv",
        "3gp",
        "3g2",
        "ogv",
        "vob",
        "mxf",
    )
)
AUDIO = frozenset(
    (
        "wav",
        "wave",
        "flac",
        "ogg",
        "oga",
        "opus",
        "mp3",
        "aif",
        "aiff",
        "aifc",
        "au",
        "snd",
        "caf",
        "w64",
        "rf64",
        "m4a",
        "aac",
        "wma",
        "amr",
        "mka",
    )
)
KINDS = ("image", "video", "audio")

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
"""Names of folders and shards, in any case, and the split that they mean."""
CAPTION = 40
"""Characters. A `.txt` beside a WebDataset sample is taken for a label up to here, and for a caption beyond."""


@dataclass(frozen=True)
class Listing:
    records: list[Record]
    """Unverified, sorted by id: the order of rows depends on names only."""
    ignored: dict[str, int]
    """Files that are no media of the asked kind, counted by extension."""


def kind_of(name: str, asked: str | None) -> str | None:
    """The kind that a file counts as, by its extension. Asked for audio, a video counts for its sound track."""
    extension = PurePosixPath(name).suffix[1:].lower()
    kind = "image" if extension in IMAGE else "video" if extension in VIDEO else "audio" if extension in AUDIO else None
    if asked == "audio" and kind == "video":
        return "audio"
    return kind if asked in (None, kind) else None


def split_in_name(name: str) -> str | None:
    """`train` for `imagenet-train-0001.tar`, `train.parquet`, `Train`; None where no word of the name is a split."""
    for word in re.split("[^a-z]+", name.lower()):
        if word in SPLITS:
            return SPLITS[word]
    return None


def list_media(root: Path, kind: str | None = None) -> Listing:
    """Every image, video and sound below `root` (of one kind, if asked), in nested folders and tars.

    A first-level folder named train, test, val, ... gives the split, if all first-level folders with media are such, or
    train stands beside test or val (so that a class called "train" among buses stays a class). Below that, the first
    folder is the label. metadata.csv, .jsonl or .parquet in the Hugging Face folder convention overrides both.
    Hidden files and folders are skipped; a folder reached twice through links is listed once.
    Raises UserError for a metadata file that cannot be understood, and for a folder that may not be read: nobody knows
    how many files it holds, so that it cannot count as a share of bad ones.
    """
    if not stat.S_ISDIR(mode_of(root)):
        raise UserError(f"{root} is not a folder: give the folder that holds the media.")
    records: list[Record] = []
    ignored: Counter[str] = Counter()
    overrides: dict[str, tuple[str | None, str | None]] = {}
    for path in walk(root):
        name = path.relative_to(root).as_posix()
        if path.name.lower() in METADATA_NAMES:
            folder = PurePosixPath(name).parent
            for file_name, columns in read_metadata(path).items():
                overrides[os.path.normpath(folder / file_name)] = columns
        elif path.suffix.lower() == ".tar":
            records += _list_tar(path, name, kind, ignored)
        elif (found := kind_of(name, kind)) is None:
            ignored[path.suffix.lower() or "(none)"] += 1
        else:
            records.append(_plain(path, name, found))
    records += _missing(overrides, {record.path for record in records}, kind)
    records = _with_folders(records)
    for position, record in enumerate(records):
        if record.path in overrides and record.member is None:
            label, split = overrides[record.path]
            split = SPLITS.get(split.lower(), split) if split else None
            records[position] = replace(record, label=label or record.label, split=split or record.split)
    return Listing(sorted(records, key=lambda record: record.id), dict(ignored))


def mode_of(path: Path) -> int:
    """st_mode, or 0 where nothing is there. Raises UserError where nobody may look."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> UserError:
    return UserError(
        f"{error.filename} cannot be read ({error.strerror or error}): change its rights, or take it out of the data."
    )


def walk(root: Path) -> Iterator[Path]:
    """Files below `root` in sorted order; links are followed, each folder once."""

    def stop(error: OSError) -> None:
        raise _unreadable(error) from error

    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=stop):
        try:
            status = os.stat(folder)
        except OSError as error:
            raise _unreadable(error) from error
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(
            # Every disk has a lost+found that its users may not read.
            (name for name in subfolders if not name.startswith(".") and name != "lost+found"),
            key=lambda name: (os.path.islink(os.path.join(folder, name)), name),  # the real folder wins over a link
        )
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _plain(path: Path, name: str, kind: str) -> Record:
    try:
        status = path.stat()
    except OSError as error:  # a dangling link, or a file that vanished
        return Record(id=name, kind=kind, path=name, problem=f"cannot be opened: {error.strerror or error}")
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        return Record(id=name, kind=kind, path=name, problem="not a regular file")
    return Record(id=name, kind=kind, path=name, size=status.st_size, mtime_ns=status.st_mtime_ns)


def _list_tar(path: Path, name: str, asked: str | None, ignored: Counter[str]) -> list[Record]:
    """Media members of a WebDataset shard. Members that share a name up to the first dot are one sample; its label
    stands in .cls, .json or .txt. Only headers and those small members are read."""
    mtime = 0
    records: list[tuple[str, Record]] = []
    labels: dict[str, str] = {}
    try:
        mtime = path.stat().st_mtime_ns
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key, extension = f"{folder}/{stem}", extension.lower()
                kind = kind_of(member.name, asked)
                if base.startswith("."):
                    continue
                if kind is not None:
                    record = Record(
                        id=f"{name}/{member.name}",
                        kind=kind,
                        path=name,
                        member=member.name,
                        offset=member.offset_data,
                        size=member.size,
                        mtime_ns=mtime,
                        split=split_in_name(path.stem),
                    )
                    records.append((key, record))
                elif extension in ("cls", "txt", "json"):
                    content = tar.extractfile(member)
                    assert content is not None  # isfile() above
                    text = content.read().decode("utf-8", "replace").strip()
                    if extension == "json":
                        text = label_of_json(text) or ""
                    if text and (extension != "txt" or (key not in labels and len(text) <= CAPTION)):
                        labels[key] = text
                else:
                    ignored[PurePosixPath(base).suffix.lower() or "(none)"] += 1
    except (tarfile.TarError, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            problem = f"cannot be read: {error.strerror}"
        else:
            problem = f"not an uncompressed, whole tar ({error}): unpack it, or write it again without compression"
        broken = Record(id=name, kind=asked or "image", path=name, mtime_ns=mtime, problem=problem)
        return [broken, *(replace(record, label=labels.get(key)) for key, record in records)]
    return [replace(record, label=labels.get(key)) for key, record in records]


def _missing(named: dict[str, tuple[str | None, str | None]], there: set[str], asked: str | None) -> list[Record]:
    """Files that a metadata file names and that are not there: bad rows, so that they are counted and listed."""
    problem = "named in the metadata file, but no such file"
    return [
        Record(id=name, kind=kind, path=name, problem=problem)
        for name in sorted(named.keys() - there)
        if (kind := kind_of(name, asked)) is not None
    ]


def _with_folders(records: list[Record]) -> list[Record]:
    """Split and label from the folders that a file lies in. Tars keep what their own names and members say."""
    tops = {PurePosixPath(record.path).parts[0] for record in records if "/" in record.path}
    splits = {SPLITS.get(top.lower()) for top in tops}
    by_split = bool(tops) and (None not in splits or ("train" in splits and len(splits - {None}) > 1))
    placed = []
    for record in records:
        folders = PurePosixPath(record.path).parts[:-1]
        split, label = record.split, record.label
        if by_split and folders:
            split, folders = SPLITS.get(folders[0].lower(), folders[0]), folders[1:]
        if record.member is None and folders:
            label = folders[0]
        placed.append(replace(record, split=split, label=label))
    return placed

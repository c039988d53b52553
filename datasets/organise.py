"""What the scripts share that organise a large data set: they leave the user's files where they are and write a folder
of symbolic links, SPLIT/CLASS/FILE, which `mmssl pretrain`, `mmssl evaluate` and `mmssl prepare` follow. What is known
of a file beside its class, such as the words that are spoken, goes into OUT/metadata.csv."""

import csv
import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

VIDEOS = (".avi", ".mp4", ".mkv", ".webm")
RECORDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aif", ".aiff")
SHOWN = 5


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def videos(source: Path, what: str) -> list[Path]:
    """Every video below `source`, in sorted order."""
    return files(source, what, "videos", VIDEOS)


def recordings(source: Path, what: str) -> list[Path]:
    """Every recording below `source`, in sorted order."""
    return files(source, what, "recordings", RECORDINGS)


def files(source: Path, what: str, kind: str, extensions: tuple[str, ...]) -> list[Path]:
    if not source.is_dir():
        fail(f"--source {source} is not a folder: give the folder that holds {what}.")
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(source, followlinks=True)
        for name in names
        if name.lower().endswith(extensions) and not name.startswith(".")
    ]
    if not found:
        fail(f"{source} holds no {kind} ({', '.join(extensions)}): unpack the archives of {what} there.")
    return sorted(found)


def one(source: Path, name: str, what: str) -> Path:
    """The file of this name below `source`."""
    path = min((path for path in source.rglob(name) if path.is_file()), default=None)
    if path is None:
        fail(f"{source} holds no {name}: {what}.")
    return path


@dataclass
class Plan:
    """Which file is linked where, and which files of the official lists are not there."""

    what: str = "videos"
    links: dict[str, Path] = field(default_factory=dict)
    """By name below OUT."""
    missing: list[str] = field(default_factory=list)
    listed: Counter[str] = field(default_factory=Counter)
    """Files of the lists, by split."""
    found: Counter[str] = field(default_factory=Counter)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    """Columns by name below OUT."""

    def add(
        self, split: str, label: str, name: str, file: Path | None, as_name: str | None = None, **columns: str
    ) -> None:
        """`name` of a list is `file`, or is missing. The link has the name of the file, or `as_name`; an empty label
        is no folder."""
        self.listed[split] += 1
        folder = "/".join(filter(None, (split, label.replace("/", "-"))))
        if file is None:
            self.missing.append(f"{split}/{label}/{name}" if label else f"{split}/{name}")
            return
        link = f"{folder}/{as_name or file.name}"
        if link in self.links and self.links[link] != file:
            fail(f"{file} and {self.links[link]} are the same {link}: leave one of them out of --source.")
        self.found[split] += 1
        self.links[link] = file
        if columns:
            self.metadata[link] = columns

    def verify(self, split: str, official: int, lists: str) -> None:
        if self.listed[split] != official:
            fail(
                f"{lists} list {self.listed[split]:,} {split} {self.what}, not {official:,}: fetch the official "
                "lists again."
            )

    def write(self, out: Path, *, missing_is_normal: bool = False) -> None:
        """Make the folder, whole or not at all, and say what is in it and what not."""
        if out.exists():
            fail(f"--out {out} is already there: remove it, or name a new folder.")
        some = ", ".join(self.missing[:SHOWN]) + (", ..." if len(self.missing) > SHOWN else "")
        if self.missing and not missing_is_normal:
            fail(
                f"{len(self.missing):,} of {self.listed.total():,} {self.what} are missing ({some}): unpack the "
                "archive again, or go on without them by --allow-missing."
            )
        if not self.links:
            fail(f"None of the {self.listed.total():,} {self.what} of the lists is there ({some}): is --source right?")
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        for name, video in self.links.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).symlink_to(video.resolve())
        if self.missing:
            (part / "missing.txt").write_text("\n".join(self.missing) + "\n", encoding="utf-8")
        if self.metadata:
            columns = dict.fromkeys(name for known in self.metadata.values() for name in known)
            with open(part / "metadata.csv", "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, ["file_name", *columns])
                writer.writeheader()
                writer.writerows({"file_name": name, **known} for name, known in self.metadata.items())
        part.rename(out)
        for split, listed in self.listed.items():
            parts = [name.split("/") for name in self.links if name.startswith(f"{split}/")]
            classes = len({folders[1] for folders in parts if len(folders) > 2})
            has = f", {classes:,} classes" if classes else ""
            share = f", {listed - self.found[split]:,} missing ({1 - self.found[split] / listed:.1%})" * bool(
                listed - self.found[split]
            )
            print(f"{out / split}: {self.found[split]:,} {self.what}{has}{share}")
        if self.missing:
            print(f"What is missing stands in {out / 'missing.txt'}.")


def held_out(key: str, share: float = 0.25) -> bool:
    """Whether everything with this key is for testing: about `share` of all keys, and always the same ones."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) < share * 2**32


def content(path: Path) -> str:
    """SHA-256 of a file: packages carry the same recording under several names."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Videos by their lower-case name without extension, so that re-encoded copies are found too."""
    return {path.stem.lower(): path for path in paths}

"""What the scripts share that organise a large video data set: they leave the user's files where they are and write a
folder of symbolic links, SPLIT/CLASS/FILE, which `mmssl pretrain`, `mmssl evaluate` and `mmssl prepare` follow."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

VIDEOS = (".avi", ".mp4", ".mkv", ".webm")
SHOWN = 5


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def videos(source: Path, what: str) -> list[Path]:
    """Every video below `source`, in sorted order."""
    if not source.is_dir():
        fail(f"--source {source} is not a folder: give the folder that holds {what}.")
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(source, followlinks=True)
        for name in names
        if name.lower().endswith(VIDEOS) and not name.startswith(".")
    ]
    if not found:
        fail(f"{source} holds no videos ({', '.join(VIDEOS)}): unpack the archives of {what} there.")
    return sorted(found)


def one(source: Path, name: str, what: str) -> Path:
    """The file of this name below `source`."""
    path = min((path for path in source.rglob(name) if path.is_file()), default=None)
    if path is None:
        fail(f"{source} holds no {name}: {what}.")
    return path


@dataclass
class Plan:
    """Which video is linked where, and which videos of the official lists are not there."""

    links: dict[str, Path] = field(default_factory=dict)
    """By name below OUT."""
    missing: list[str] = field(default_factory=list)
    listed: Counter[str] = field(default_factory=Counter)
    """Videos of the lists, by split."""
    found: Counter[str] = field(default_factory=Counter)

    def add(self, split: str, label: str, name: str, video: Path | None) -> None:
        """`name` of a list is `video`, or is missing."""
        self.listed[split] += 1
        if video is None:
            self.missing.append(f"{split}/{label}/{name}")
        else:
            self.found[split] += 1
            self.links[f"{split}/{label.replace('/', '-')}/{video.name}"] = video

    def verify(self, split: str, official: int, lists: str) -> None:
        if self.listed[split] != official:
            fail(
                f"{lists} list {self.listed[split]:,} {split} videos, not {official:,}: fetch the official lists again."
            )

    def write(self, out: Path, *, missing_is_normal: bool = False) -> None:
        """Make the folder, whole or not at all, and say what is in it and what not."""
        if out.exists():
            fail(f"--out {out} is already there: remove it, or name a new folder.")
        some = ", ".join(self.missing[:SHOWN]) + (", ..." if len(self.missing) > SHOWN else "")
        if self.missing and not missing_is_normal:
            fail(
                f"{len(self.missing):,} of {self.listed.total():,} videos are missing ({some}): unpack the archive "
                "again, or go on without them by --allow-missing."
            )
        if not self.links:
            fail(f"None of the {self.listed.total():,} videos of the lists is there ({some}): is --source right?")
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        for name, video in self.links.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).symlink_to(video.resolve())
        if self.missing:
            (part / "missing.txt").write_text("\n".join(self.missing) + "\n", encoding="utf-8")
        part.rename(out)
        for split, listed in self.listed.items():
            classes = len({name.split("/")[1] for name in self.links if name.startswith(f"{split}/")})
            share = f", {listed - self.found[split]:,} missing ({1 - self.found[split] / listed:.1%})" * bool(
                listed - self.found[split]
            )
            print(f"{out / split}: {self.found[split]:,} videos, {classes} classes{share}")
        if self.missing:
            print(f"What is missing stands in {out / 'missing.txt'}.")


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Videos by their lower-case name without extension, so that re-encoded copies are found too."""
    return {path.stem.lower(): path for path in paths}

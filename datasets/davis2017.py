"""DAVIS-2017 (train and val at 480p) as `mmssl evaluate propagation` reads it, verified.

    python datasets/davis2017.py --source DAVIS-2017-trainval-480p.zip --out data/davis2017
    mmssl evaluate propagation --encoder RUN/encoder --data data/davis2017 --out RUN/davis.json

Card
    Content  90 videos of 25 to 104 frames, 480 pixels high, with a mask of every object on every frame.
    Source   J. Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation", arXiv:1704.00675;
             F. Perazzi et al., CVPR 2016; https://davischallenge.org/davis2017/code.html (TrainVal, 480p)
    Licence  CC BY 4.0 for what the authors own, by the README inside the archive; its SOURCES.md lists the videos of
             others, which have their own terms.
    Splits   The official ones: train 60 videos (4,209 frames), val 30 videos (1,999 frames). Counts are verified. The
             test sets come without masks beyond the first and are not read.
    Disk     About 0.8 GB, as zip and unpacked.

--source is the official zip file, or the folder that it was unpacked into. Files are linked where the file system
allows, else copied. The layout stays: JPEGImages/480p/VIDEO/00000.jpg, Annotations/480p/VIDEO/00000.png (palette PNG of
object numbers), ImageSets/2017/{train,val}.txt; a folder that is complete can be given to --data as it is.
"""

import argparse
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import NoReturn

SPLITS = {"train": (60, 4209), "val": (30, 1999)}
"""Videos and frames of each."""
PARTS = ("JPEGImages/480p", "Annotations/480p", "ImageSets/2017")


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def unpack(source: Path, out: Path) -> None:
    """The three parts of the zip file, wherever in it they lie."""
    try:
        with zipfile.ZipFile(source) as archive:
            for member in archive.infolist():
                place = next((part for part in PARTS if f"/{part}/" in f"/{member.filename}"), None)
                if place is None or member.is_dir():
                    continue
                below = f"/{member.filename}".split(f"/{place}/", 1)[1]
                target = out / place / below
                if ".." in Path(below).parts:
                    fail(f"{source} holds {member.filename}, which leads out of its folder: fetch the file again.")
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        fail(f"{source} cannot be unpacked ({error}): fetch it again.")


def link(source: Path, out: Path) -> None:
    """The three parts of an unpacked folder, or of its folder DAVIS."""
    root = next((folder for folder in (source, source / "DAVIS") if (folder / "JPEGImages").is_dir()), None)
    if root is None:
        fail(f"{source} has no JPEGImages: give the folder that DAVIS-2017-trainval-480p.zip was unpacked into.")
    for part in PARTS:
        for file in sorted((root / part).rglob("*")):
            if file.is_file():
                link_or_copy(file, out / file.relative_to(root))


def link_or_copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, target)


def verify(root: Path, source: Path) -> list[str]:
    """One line a split; ends the program with one sentence where something is missing."""
    lines = []
    for split, (videos, frames) in SPLITS.items():
        file = root / f"ImageSets/2017/{split}.txt"
        if not file.is_file():
            fail(f"{source} lacks ImageSets/2017/{split}.txt: fetch DAVIS-2017-trainval-480p.zip completely.")
        names = file.read_text().split()
        if len(names) != videos:
            fail(f"{source}: ImageSets/2017/{split}.txt lists {len(names)} videos, not {videos}: fetch it again.")
        lost = [name for name in names if not (root / "JPEGImages/480p" / name).is_dir()]
        if lost:
            fail(
                f"{source} lacks {len(lost)} of the {videos} videos of {split} ({', '.join(lost[:3])}"
                f"{', ...' if len(lost) > 3 else ''}): fetch DAVIS-2017-trainval-480p.zip completely."
            )
        found = sum(count(root, name, source) for name in names)
        if found != frames:
            fail(f"The {split} split in {source} has {found:,} frames, not {frames:,}: fetch the complete data set.")
        lines.append(f"{split}: {videos} videos, {found:,} frames with masks")
    return lines


def count(root: Path, name: str, source: Path) -> int:
    """Frames of a video, numbered from 0 without a gap, each with its mask."""
    shown = sorted(path.stem for path in (root / "JPEGImages/480p" / name).glob("*.jpg"))
    drawn = {path.stem for path in (root / "Annotations/480p" / name).glob("*.png")}
    expected = [f"{number:05d}" for number in range(len(shown))]
    odd = sorted(set(shown) ^ set(expected)) or sorted(set(shown) ^ drawn)
    if odd:
        fail(f"The video {name} in {source} has {odd[0]} as a frame or a mask, but not as both: fetch it again.")
    return len(shown)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the official zip file, or its unpacked folder")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the verified copy")
    args = parser.parse_args(argv)
    if not args.source.exists():
        fail(f"--source {args.source} is not there: give DAVIS-2017-trainval-480p.zip, or its unpacked folder.")
    if args.out.exists() and any(args.out.iterdir()):
        fail(f"--out {args.out} is not empty: remove it, or name a new folder.")
    part = args.out.with_name(f".{args.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
    part.mkdir(parents=True)
    try:
        (link if args.source.is_dir() else unpack)(args.source, part)
        lines = verify(part, args.source)
    except SystemExit:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if args.out.exists():
        args.out.rmdir()
    part.rename(args.out)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {'; '.join(lines)}; {size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()

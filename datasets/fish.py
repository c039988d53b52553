"""All clips of swimming fish that the films of idtrackerai give, with the direction in which each fish swims.

    python datasets/fish.py --source FOLDER --out data/fish

Card
    Content  1,358 clips of 10 frames, 80x80 pixels, 28 frames/s, grey, no sound, each around one fish; 8 directions.
             The clips in samples/video are a part of them: at most 100 (test: 80) a direction. What is said there about
             how they are cut, about the labels (a program's) and about the floors holds here as well.
    Source   test_A.avi and test_B.avi in the Python package idtrackerai 6.0.14; https://idtracker.ai
    Licence  GPL 3.0 or later, which the clips keep; its text is copied beside them.
    Splits   By film: A is train (713 clips), B is test (645); the commonest direction is .256 of the test
             clips.
    Disk     3.7 MB, and 12 MB for the films.

FOLDER holds, at any depth, what these commands leave:
    pip download --no-deps -d . idtrackerai==6.0.14
    python -m zipfile -e idtrackerai-6.0.14-py3-none-any.whl .
"""

import argparse
import shutil
from collections import Counter
from pathlib import Path

from make_samples import fail, fish_clips, grey_frames, write_mp4
from organise import one

FILMS = {"train": ("test_A.avi", 501), "test": ("test_B.avi", 508)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked package")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        fail(f"--source {args.source} is not a folder: give the folder that holds the unpacked package (see --help).")
    if args.out.exists():
        fail(f"--out {args.out} is already there: remove it, or name a new folder.")
    how = "get the package with the commands that --help prints"
    paths = {split: one(args.source, name, how) for split, (name, _) in FILMS.items()}
    licence = next(args.source.rglob("idtrackerai-*.dist-info/licenses/LICENSE"), None)
    if licence is None:
        fail(f"{args.source} holds no idtrackerai-*.dist-info/licenses/LICENSE, which must go with the clips: {how}.")
    part = args.out.with_name(f".{args.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
    for split, (name, frames) in FILMS.items():
        film = grey_frames(paths[split])
        if len(film) != frames:
            fail(f"{paths[split]} has {len(film)} frames, not {frames}: take version 6.0.14 of idtrackerai.")
        counts: Counter[str] = Counter()
        for direction, clip, pixels in fish_clips(film):
            counts[direction] += 1
            write_mp4(part / split / direction / f"{clip}.mp4", pixels)
        commonest, most = counts.most_common(1)[0]
        print(
            f"{args.out / split}: {counts.total():,} clips of {name}, {most / counts.total():.3f} of them {commonest}"
        )
    shutil.copyfile(licence, part / "LICENSE-GPL-3.0.txt")
    part.rename(args.out)


if __name__ == "__main__":
    main()

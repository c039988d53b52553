"""Clips of people who walk to the left or to the right, cut out of OpenCV's vtest.avi by a simple tracker.

    python datasets/pedestrians.py --source FOLDER --out data/pedestrians

Card
    Content  836 clips of 10 frames, 96x96 pixels, 10 frames/s, colour, no sound: a fixed camera looks down on a
             road, a clip is cut where somebody is in its sixth frame, and others may pass.
    Source   vtest.avi (768x576, 795 frames) in Debian's package opencv-doc 4.6.0+dfsg-12. Its size and length are those
             of sequence S2L1 of PETS 2009 (our guess).
    Licence  That of OpenCV's package, which does not speak of the film: do not pass the clips on.
    Splits   By time: frames 0 to 499 are train (509 clips), 500 to 794 test (327); no clip has frames of
             both, but the same people may walk in both. The majority, which the script prints, is .679 of
             the test clips. How somebody looks ahead tells much already: compare with one frame.
    Labels   A program's: what differs from the median of the film, blobs of a person's size, linked to the nearest in
             the next frame. Left and right are ways of at least 12 pixels that go further across than up or down; who
             stands, or walks towards the camera or away, is left out.
    Disk     8 MB (the package: 96 MB, unpacked 190 MB).

FOLDER holds, at any depth, what these commands leave (after apt-get update; no root needed):
    apt-get download opencv-doc
    dpkg -x opencv-doc_*.deb .
"""

import argparse
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from make_samples import Point, fail, link
from organise import one

from mmssl.data.video_writer import VideoWriter

FRAMES, SPLIT, RATE = 795, 500, 10
CLIP, HOP, SIDE = 10, 2, 96  # frames, frames, pixels
# The tracker looks at every second pixel; these are in its pixels.
DIFFERENT, AREA, STEP, FAR = 35, (60, 900), 8, 6  # grey levels; pixels; longest way a frame; shortest way of a clip


def colour_frames(path: Path) -> np.ndarray:
    """(frames, height, width, 3) uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def people(film: np.ndarray) -> list[list[Point]]:
    """Centres of the blobs of each frame that are as large as a person."""
    from scipy import ndimage

    ground = np.median(film[::8], axis=0).astype(np.int16)
    found = []
    for frame in film:
        changed = np.abs(frame.astype(np.int16) - ground).max(axis=-1) > DIFFERENT
        changed = ndimage.binary_closing(ndimage.binary_opening(changed), iterations=2)
        blobs, count = ndimage.label(changed)
        areas = np.bincount(blobs.ravel())[1:]
        large = [i for i in range(1, count + 1) if AREA[0] <= areas[i - 1] <= AREA[1]]
        found.append([(float(y), float(x)) for y, x in ndimage.center_of_mass(changed, blobs, large)])
    return found


def clips(film: np.ndarray) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """(split, direction, name, clip) of each piece of a track that goes left or right and whose crop fits the frame."""
    half = SIDE // 2
    for track in link(people(film[:, ::2, ::2]), STEP):
        for at in range(0, len(track) - CLIP + 1, HOP):
            piece = track[at : at + CLIP]
            (start, first), (stop, last) = piece[0], piece[-1]
            down, right = last[0] - first[0], last[1] - first[1]
            y, x = (int(2 * value) for value in piece[CLIP // 2][1])
            fits = half <= y <= film.shape[1] - half and half <= x <= film.shape[2] - half
            one_side = (start < SPLIT) == (stop < SPLIT)
            if fits and one_side and math.hypot(down, right) >= FAR and abs(right) > abs(down):
                crop = film[start : start + CLIP, y - half : y + half, x - half : x + half]
                yield (
                    "train" if stop < SPLIT else "test",
                    "right" if right > 0 else "left",
                    f"walk-{start:03d}-{x:03d}-{y:03d}",
                    crop,
                )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked package")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        fail(f"--source {args.source} is not a folder: give the folder that holds the unpacked package (see --help).")
    if args.out.exists():
        fail(f"--out {args.out} is already there: remove it, or name a new folder.")
    path = one(args.source, "vtest.avi", "get the package with the commands that --help prints")
    film = colour_frames(path)
    if len(film) != FRAMES:
        fail(f"{path} has {len(film)} frames, not {FRAMES}: it is not the film of OpenCV.")
    part = args.out.with_name(f".{args.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
    counts = {"train": Counter[str](), "test": Counter[str]()}
    for split, direction, name, clip in clips(film):
        counts[split][direction] += 1
        target = part / split / direction / f"{name}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(target, SIDE, SIDE, Fraction(RATE)) as writer:
            for frame in clip:
                writer.write(frame)
    part.rename(args.out)
    for split, count in counts.items():
        each = ", ".join(f"{number} {direction}" for direction, number in sorted(count.items()))
        majority = max(count.values()) / count.total()
        print(f"{args.out / split}: {count.total()} clips ({each}), majority {majority:.3f}")


if __name__ == "__main__":
    main()

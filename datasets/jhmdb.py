"""J-HMDB as a folder of frames and key points that `mmssl evaluate propagation` reads.

    python datasets/jhmdb.py --source FOLDER --out data/jhmdb
    mmssl evaluate propagation --encoder RUN/encoder --data data/jhmdb --split test --out RUN/jhmdb.json

Card
    Content  928 clips of HMDB51 in 21 classes, 31,838 frames (recalled) of 320x240, 15 joints of one person on each.
    Source   H. Jhuang et al., "Towards Understanding Action Recognition", ICCV 2013; http://jhmdb.is.tue.mpg.de
    Licence  Stated at the source, where you accept it; the clips are those of HMDB51. Fetch your own copy.
    Splits   One of the three official ones (--split, 1 if not given): 1 has 660 train and 268 test clips, and 268 is
             what label propagation is scored on. The number of clips is verified, and for split 1 that of both parts.
    Disk     About 5 GB of frames (PNG; recalled), linked where the file system allows; key points take some 20 MB.

FOLDER holds what the source offers as three downloads, unpacked at any depth:
    - Rename_Images/CLASS/CLIP/00001.png ...
    - joint_positions/CLASS/CLIP/joint_positions.mat
    - splits/CLASS_test_split1.txt ...

It becomes Frames/CLIP/00001.png, Keypoints/CLIP.json and ImageSets/{train,test}.txt. A place in a .mat file counts
pixels from 1; in the JSON file (0, 0) is the centre of the upper left pixel. Frames without an annotation have null.
Reading .mat files needs SciPy, which comes with scikit-learn.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np

CLIPS = 928
SPLIT_1 = {"train": 660, "test": 268}
JOINTS = (
    "neck",
    "belly",
    "face",
    "right shoulder",
    "left shoulder",
    "right hip",
    "left hip",
    "right elbow",
    "left elbow",
    "right knee",
    "left knee",
    "right wrist",
    "left wrist",
    "right ankle",
    "left ankle",
)


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def find(source: Path) -> tuple[Path, Path, Path]:
    if not source.is_dir():
        fail(f"--source {source} is not a folder: give the folder that holds the three parts of J-HMDB.")
    found = []
    for name in ("Rename_Images", "joint_positions", "splits"):
        place = source / name if (source / name).is_dir() else next(source.rglob(name), None)
        if place is None:
            fail(f"{source} has no folder {name}: fetch and unpack that part of J-HMDB as well.")
        found.append(place)
    return found[0], found[1], found[2]


def read_splits(folder: Path, number: int) -> dict[str, str]:
    """Clip -> train or test."""
    files = sorted(folder.rglob(f"*_test_split{number}.txt"))
    if not files:
        fail(f"{folder} has no file CLASS_test_split{number}.txt: give --split 1, 2 or 3, or fetch the splits again.")
    parts = {}
    for file in files:
        for line in file.read_text().splitlines():
            if line.strip():
                name, _, part = line.strip().rpartition(" ")
                if part not in ("1", "2"):
                    fail(f"{file} has the line '{line}': each names a clip and 1 (train) or 2 (test). Fetch it again.")
                parts[name.strip().removesuffix(".avi")] = "train" if part == "1" else "test"
    return parts


def read_points(file: Path) -> np.ndarray:
    """float64 [frames,15,2], pixels from 0."""
    try:
        from scipy.io import loadmat
    except ImportError:
        fail("Reading joint_positions.mat needs SciPy: pip install scipy.")
    try:
        points = np.asarray(loadmat(file, variable_names=["pos_img"])["pos_img"], np.float64)
    except Exception as error:  # SciPy raises whatever its parser raises
        fail(f"{file} cannot be read ({error}): fetch joint_positions again.")
    if points.ndim == 2:
        points = points[..., None]  # MATLAB drops the last dimension of a single frame
    if points.shape[:2] != (2, len(JOINTS)):
        fail(f"{file} has pos_img of shape {points.shape}, not 2 x {len(JOINTS)} x frames: fetch it again.")
    return points.transpose(2, 1, 0) - 1


def link_or_copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, target)


def write(images: Path, joints: Path, parts: dict[str, str], out: Path) -> int:
    """Frames, key points and lists; returns the number of frames."""
    clips = {folder.name: folder for folder in sorted(images.glob("*/*")) if folder.is_dir()}
    missing = sorted(set(parts) - set(clips))
    if missing or len(parts) != CLIPS:
        fail(
            f"{images} has {len(set(parts) & set(clips))} of the {len(parts)} clips in the splits, and J-HMDB has "
            f"{CLIPS}{'; the first that is missing: ' + missing[0] if missing else ''}: fetch the complete data set."
        )
    frames = 0
    for name in sorted(parts):
        folder = clips[name]
        file = joints / folder.parent.name / name / "joint_positions.mat"
        if not file.is_file():
            fail(f"{file} is missing: fetch joint_positions again.")
        shown = sorted(folder.glob("*.png"))
        points = read_points(file)
        if not shown or len(points) > len(shown):
            fail(f"{file} has joints of {len(points)} frames and {folder} has {len(shown)}: fetch both again.")
        for picture in shown:
            link_or_copy(picture, out / "Frames" / name / picture.name)
        rows = [[[round(x, 3), round(y, 3)] for x, y in frame] for frame in points.tolist()]
        rows += [[None] * len(JOINTS)] * (len(shown) - len(points))  # type: ignore[list-item]
        (out / "Keypoints").mkdir(exist_ok=True)
        (out / "Keypoints" / f"{name}.json").write_text(json.dumps({"joints": JOINTS, "points": rows}))
        frames += len(shown)
    (out / "ImageSets").mkdir()
    for part in SPLIT_1:
        names = sorted(name for name, where in parts.items() if where == part)
        (out / "ImageSets" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
    return frames


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds your copy of J-HMDB")
    parser.add_argument("--out", type=Path, required=True, help="new folder for Frames, Keypoints and ImageSets")
    parser.add_argument("--split", type=int, default=1, help="official split: 1, 2 or 3")
    args = parser.parse_args(argv)
    images, joints, splits = find(args.source)
    parts = read_splits(splits, args.split)
    counts = {part: sum(where == part for where in parts.values()) for part in SPLIT_1}
    if args.split == 1 and counts != SPLIT_1:
        fail(f"Split 1 in {splits} has {counts}, not {SPLIT_1}: fetch the splits again.")
    if args.out.exists() and any(args.out.iterdir()):
        fail(f"--out {args.out} is not empty: remove it, or name a new folder.")
    part = args.out.with_name(f".{args.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
    part.mkdir(parents=True)
    try:
        frames = write(images, joints, parts, part)
    except SystemExit:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if args.out.exists():
        args.out.rmdir()
    part.rename(args.out)
    print(f"{args.out}: {counts['train']} train and {counts['test']} test clips, {frames:,} frames, 15 joints")


if __name__ == "__main__":
    main()

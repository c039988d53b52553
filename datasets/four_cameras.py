"""The four-camera clip of Pose2Sim as a folder that video/tcn and `mmssl evaluate alignment` read.

    pip download pose2sim --no-deps
    python datasets/four_cameras.py --source pose2sim-*.whl --out data/four-cameras

Card
    Content  One person in a gym (and one scene of several people), each filmed by four synchronised cameras: portrait
             frames of about 1088 x 1920, 100 frames at 60 a second from each camera.
    Source   Demo_SinglePerson and Demo_MultiPerson of the Python package pose2sim (D. Pagnon et al., "Pose2Sim: an
             open-source Python package for multiview markerless kinematics", JOSS 2022); counted in release 0.10.
    Licence  BSD-3-Clause, as the package.
    Splits   None: two sequences of 1.7 s. Enough to try the reading of cameras, not to train.
    Disk     As the videos in the wheel; they are copied as they are.

--source is the wheel (.whl), or a folder that holds it unpacked or installed. Writes single_cam1.mp4 to single_cam4.mp4
and multi_cam1.mp4 to multi_cam4.mp4. Videos that are missing or have other counts of frames are named.
"""

import argparse
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

VIDEO = re.compile(r"(?:.*/)?Demo_(?P<scene>Single|Multi)Person/videos/cam0?(?P<camera>\d)\.mp4")
CAMERAS, FRAMES = (1, 2, 3, 4), 100


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def videos(source: Path) -> Iterator[tuple[str, int, bytes]]:
    """(scene, camera, content) of every video of the two demonstrations."""
    if source.is_dir():
        for path in sorted(source.rglob("*.mp4")):
            if match := VIDEO.fullmatch(path.as_posix()):
                yield match["scene"].lower(), int(match["camera"]), path.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as wheel:
            for name in sorted(wheel.namelist()):
                if match := VIDEO.fullmatch(name):
                    yield match["scene"].lower(), int(match["camera"]), wheel.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        fail(f"--source {source} is neither a folder nor a wheel that can be read ({error}): fetch pose2sim again.")


def count_frames(path: Path) -> int:
    import av

    container: Any
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except av.FFmpegError as error:
        fail(f"{path.name} cannot be decoded ({error}): fetch pose2sim again.")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the pose2sim wheel, or a folder with its content")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the videos")
    args = parser.parse_args(argv)
    if args.out.exists():
        fail(f"--out {args.out} is already there: remove it, or name a new folder.")
    part = args.out.with_name(f".{args.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
    part.mkdir(parents=True)
    for scene, camera, content in videos(args.source):
        (part / f"{scene}_cam{camera}.mp4").write_bytes(content)
    wanted = [f"{scene}_cam{camera}.mp4" for scene in ("single", "multi") for camera in CAMERAS]
    missing = [name for name in wanted if not (part / name).exists()]
    if missing:
        shutil.rmtree(part)
        fail(f"{args.source} lacks the videos of {', '.join(missing)}: give the whole wheel of pose2sim.")
    counts = {name: count_frames(part / name) for name in wanted}
    if wrong := [f"{name} {count}" for name, count in counts.items() if count != FRAMES]:
        shutil.rmtree(part)
        fail(f"Each video should have {FRAMES} frames, and these do not ({', '.join(wrong)}): fetch pose2sim again.")
    part.rename(args.out)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: 2 sequences, {len(CAMERAS)} cameras, {FRAMES} frames each, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

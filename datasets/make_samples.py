"""Rebuild the sample media in datasets/samples from the packages that carry them.

    python datasets/make_samples.py --out datasets/samples [--cache DIR] [--only image video audio]

Needs a Debian-like system with `apt-get` (after `apt-get update`) and `dpkg`, and pip; about 260 MB of downloads, which
--cache keeps. Sources, licences, counts and splits: datasets/samples/README.md. Every subset follows a fixed rule, so
two runs with the same versions of the packages and codecs give the same files.
"""

import argparse
import csv
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from fractions import Fraction
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


def pypi(name: str, version: str, cache: Path, source: bool = False) -> Path:
    """The unpacked wheel (or source archive) of a Python package; nothing in it is installed."""
    out = cache / f"{name}-{version}"
    if not out.is_dir():
        kind = ["--no-binary", name] if source else ["--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", "."]
        run(*pip, *kind, f"{name}=={version}", cwd=cache)
        part = cache / f"{name}.part"
        if source:
            shutil.unpack_archive(cache / f"{name}-{version}.tar.gz", part, filter="data")
        else:
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

SHORT_SIDE, CRF, KEY_FRAMES = 96, 33, 16
PIECE = 64  # frames a clip is meant to have; shots are divided into equal pieces near this length
CREDITS = (489.5, 580.9)  # seconds of the film that are black, or text on black


def frames(path: Path) -> tuple[list[np.ndarray], Fraction]:
    """Every frame of a video with its short side at SHORT_SIDE (RGB, even sides), and the frame rate."""
    import av
    from av.video.reformatter import Interpolation

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        scale = SHORT_SIDE / min(stream.codec_context.width, stream.codec_context.height)
        width, height = (
            2 * round(side * scale / 2) for side in (stream.codec_context.width, stream.codec_context.height)
        )
        out = [
            frame.reformat(width, height, "rgb24", interpolation=Interpolation.AREA).to_ndarray()
            for frame in container.decode(stream)
        ]
        return out, Fraction(stream.average_rate or 25)


def write_mp4(path: Path, clip: list[np.ndarray], rate: Fraction) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = clip[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = KEY_FRAMES
        # One thread and no macroblock tree: otherwise the bit stream differs from run to run.
        stream.codec_context.thread_count = 1
        x264 = "threads=1:no-mbtree=1"
        stream.options = {"crf": str(CRF), "preset": "veryslow", "flags": "+bitexact", "x264-params": x264}
        for array in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, "rgb24")))
        container.mux(stream.encode())


def shots(film: list[np.ndarray]) -> list[tuple[int, int]]:
    """(start, stop) of each shot: a cut is a frame difference that stands out of the half second around it."""
    thumbs = np.stack(film)[:, ::3, ::3].astype(np.int16)
    jump = np.abs(np.diff(thumbs, axis=0)).mean((1, 2, 3))
    cuts = [0]
    for i, value in enumerate(jump):
        around = jump[max(0, i - 6) : i + 7]
        if value > 14 and value > 4 * np.median(around) + 2 and value == around.max():
            cuts.append(i + 1)
    return list(zip(cuts, [*cuts[1:], len(film)], strict=True))


def pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    edges = np.linspace(start, stop, max(1, round((stop - start) / PIECE)) + 1).astype(int)
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)


def video(out: Path, cache: Path) -> None:
    """Big Buck Bunny cut at its shots, and a few real clips; small h264 without sound, original frame rate."""
    sources: list[tuple[str, Path, str]] = []
    inner = "docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
    sdist = pypi("moviepy", "2.2.1", cache, source=True) / "moviepy-2.2.1"
    film = cache / "bbb.mp4"
    if not film.exists():
        with zipfile.ZipFile(sdist / inner) as archive:
            film.write_bytes(archive.read("moviepy_10_minutes/resources/bbb.mp4"))
    sources.append(("bunny", film, ""))
    pose = pypi("pose2sim", "0.10.49", cache) / "Pose2Sim/Demo_SinglePerson/videos"
    sources += [(f"gym-{camera}", pose / f"{camera}.mp4", "train") for camera in ("cam01", "cam02", "cam03", "cam04")]
    kivy = debian("python-kivy-examples", cache) / "usr/share/kivy-examples/widgets"
    sources.append(("city", kivy / "cityCC0.mpg", "train"))
    sources.append(("walker", pypi("sports2d", "0.8.34", cache) / "Sports2D/Demo/demo.mp4", "test"))

    rows = []
    for name, path, fixed in sources:
        clip, rate = frames(path)
        for number, (first, last) in enumerate(shots(clip) if name == "bunny" else [(0, len(clip))]):
            seconds = float(first / rate)
            # Whole shots go to one split, by where in the film they begin: every third stretch of 40 s is held out.
            split = fixed or ("test" if int(seconds // 40) % 3 == 2 else "train")
            for start, stop in pieces(first, last):
                dark = float(np.mean(clip[(start + stop) // 2])) < 16
                credit = name == "bunny" and CREDITS[0] <= start / rate < CREDITS[1]
                if stop - start < PIECE // 2 or dark or credit:
                    continue
                file = (
                    f"{split}/{name}-{number:03d}-{start:05d}.mp4"
                    if name == "bunny"
                    else f"{split}/{name}-{start:05d}.mp4"
                )
                write_mp4(out / file, clip[start:stop], rate)
                rows.append((file, path.name, number, round(float(start / rate), 2), stop - start, f"{float(rate):g}"))
    # Not named metadata.csv: the clips carry no labels.
    with open(out / "clips.csv", "w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("file_name", "source", "shot", "start_seconds", "frames", "frames_per_second"))
        writer.writerows(sorted(rows))


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

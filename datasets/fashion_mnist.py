"""Fashion-MNIST as a folder of WebDataset shards that `mmssl pretrain --data` and `mmssl evaluate` read.

    python datasets/fashion_mnist.py --source FOLDER --out data/fashion-mnist

Card
    Content  70,000 grey pictures of clothes, 28x28; t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker,
             bag, ankle-boot.
    Source   H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017;
             https://github.com/zalandoresearch/fashion-mnist
    Licence  MIT, copyright 2017 Zalando SE.
    Splits   The official ones: train 60,000 (6,000 a class), test 10,000 (1,000 a class). Counts are verified.
    Disk     About 162 MB.

FOLDER holds the four official files, packed (.gz) or not: train-images-idx3-ubyte, train-labels-idx1-ubyte,
t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte. On Debian they come in the package dataset-fashion-mnist, which
puts them into /usr/share/datasets/fashion-mnist.
"""

import argparse
import gzip
import io
import shutil
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
PER_CLASS = {"train": 6000, "test": 1000}
STEMS = {"train": "train", "test": "t10k"}
SHARD = 10_000


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def find(source: Path) -> dict[str, tuple[Path, Path]]:
    """(pictures, labels) of each split."""
    if not source.is_dir():
        fail(f"--source {source} is not a folder: give the folder that holds the four Fashion-MNIST files.")
    found: dict[str, tuple[Path, Path]] = {}
    missing = []
    for split, stem in STEMS.items():
        pair = []
        for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
            path = next((p for p in (source / f"{name}.gz", source / name) if p.is_file()), None)
            if path is None:
                missing.append(f"{name}.gz")
            else:
                pair.append(path)
        if len(pair) == 2:
            found[split] = (pair[0], pair[1])
    if missing:
        fail(f"{source} lacks {', '.join(missing)}: put the four official files there.")
    return found


def idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of bytes: the bytes 0, 0, 8 and the number of dimensions, big-endian sizes, data."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        fail(f"{path} cannot be unpacked ({error}): fetch it again.")
    start = 4 + 4 * dimensions
    if raw[:4] != bytes((0, 0, 8, dimensions)) or len(raw) < start:
        fail(
            f"{path} is not an idx file of bytes with {dimensions} dimensions (it begins with {raw[:4].hex(' ')}): "
            "fetch it again."
        )
    shape = [int(n) for n in np.frombuffer(raw, ">u4", count=dimensions, offset=4)]
    if len(raw) - start != int(np.prod(shape)):
        fail(f"{path} announces {' x '.join(map(str, shape))} bytes and has {len(raw) - start:,}: fetch it again.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def samples(pictures: Path, labels: Path) -> Iterator[tuple[bytes, str]]:
    from PIL import Image

    pixels, classes = idx(pictures, 3), idx(labels, 1)
    if len(pixels) != len(classes):
        fail(f"{pictures} has {len(pixels):,} pictures but {labels} has {len(classes):,} labels: fetch both again.")
    for row, (picture, label) in enumerate(zip(pixels, classes, strict=True)):
        if label >= len(CLASSES):
            fail(f"Label {label} of row {row} in {labels} is none of Fashion-MNIST: expected 0 to {len(CLASSES) - 1}.")
        png = io.BytesIO()
        Image.fromarray(picture).save(png, "PNG")
        yield png.getvalue(), CLASSES[label]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults (time 0, owner 0) make the shard reproducible
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write(rows: Iterator[tuple[bytes, str]], folder: Path) -> Counter[str]:
    """Shards of key.png and key.cls, the class name; returns how many samples there are of each class."""
    folder.mkdir(parents=True)
    counts: Counter[str] = Counter()
    tar: tarfile.TarFile | None = None
    try:
        for row, (content, name) in enumerate(rows):
            if row % SHARD == 0:
                if tar:
                    tar.close()
                shard = folder / f"fashion-mnist-{row // SHARD:04d}.tar"
                tar = tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            assert tar is not None
            add(tar, f"{row:06d}.png", content)
            add(tar, f"{row:06d}.cls", name.encode())
            counts[name] += 1
    finally:
        if tar:
            tar.close()
    return counts


def verify(split: str, counts: Counter[str], source: Path) -> None:
    wrong = [f"{name} {counts[name]:,}" for name in CLASSES if counts[name] != PER_CLASS[split]]
    if wrong:
        fail(
            f"The {split} split in {source} has {counts.total():,} images, not {PER_CLASS[split] * len(CLASSES):,} ("
            f"{', '.join(wrong)}; each should have {PER_CLASS[split]:,}): fetch the complete data set."
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the four idx files")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    args = parser.parse_args(argv)
    files = find(args.source)
    for split in PER_CLASS:
        if (args.out / split).exists():
            fail(f"--out {args.out} already has a folder {split}: remove it, or name a new folder.")
    parts = {split: args.out / f".{split}.part" for split in PER_CLASS}
    for split, (pictures, labels) in files.items():
        part = parts[split]
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        verify(split, write(samples(pictures, labels), part), args.source)
    # The splits get their names only when both are complete and verified.
    for split, part in parts.items():
        target = part.rename(args.out / split)
        size = sum(shard.stat().st_size for shard in target.iterdir())
        print(f"{target}: {PER_CLASS[split] * len(CLASSES):,} images, {len(CLASSES)} classes, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

"""CIFAR-10 as a folder of WebDataset shards that `mmssl pretrain --data` and `mmssl evaluate` read.

    python datasets/cifar10.py --source FOLDER --out data/cifar10

Card
    Content  60,000 colour photographs, 32x32; airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
    Source   A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
             https://www.cs.toronto.edu/~kriz/cifar.html
    Licence  None is stated: a research data set. Fetch your own copy and do not pass it on.
    Splits   The official ones: train 50,000 (5,000 a class), test 10,000 (1,000 a class). Counts are verified.
    Disk     About 245 MB from the binary version (PNG), 155 MB from parquet files of JPEG pictures.

FOLDER is one of
    - parquet files named train*.parquet and test*.parquet, at any depth: a column `image` (or `img`) of {bytes, path}
      with PNG or JPEG files, kept byte for byte, and a column `label` (the official number, or the class name);
    - the official *binary* version, unpacked: data_batch_1.bin ... data_batch_5.bin and test_batch.bin.
The official Python version is refused: it consists of pickles, and opening a pickle can run any code.
"""

import argparse
import io
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 5000, "test": 1000}
SHARD = 10_000
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = 1 + 3 * 32 * 32  # label, then the red, green and blue planes

Sample = tuple[bytes, str, str]  # file content, extension, class


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def find(source: Path) -> tuple[str, dict[str, list[Path]]]:
    """The layout of the folder and its files for each split."""
    if not source.is_dir():
        fail(f"--source {source} is not a folder: give the folder that holds the CIFAR-10 parquet or .bin files.")
    parquet = {split: sorted(source.rglob(f"{split}*.parquet")) for split in PER_CLASS}
    if any(parquet.values()):
        for split, files in parquet.items():
            if not files:
                fail(f"{source} has no {split}*.parquet: both splits are needed.")
        return "parquet", parquet
    binary = {split: [next(source.rglob(name), source / name) for name in names] for split, names in BATCHES.items()}
    missing = [path.name for files in binary.values() for path in files if not path.is_file()]
    if not missing:
        return "binary", binary
    if len(missing) < sum(map(len, BATCHES.values())):
        fail(f"{source} lacks {', '.join(missing)}: unpack the binary version of CIFAR-10 there completely.")
    if next(source.rglob("data_batch_1"), None):
        fail(
            f"{source} holds the Python version of CIFAR-10 (data_batch_1, ...): pickles, which can run any code when "
            "opened; get the binary version (cifar-10-binary.tar.gz) and unpack it instead."
        )
    fail(
        f"{source} holds neither train*.parquet and test*.parquet nor data_batch_1.bin ... test_batch.bin: see --help."
    )


def extension(content: bytes, where: str) -> str:
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if content.startswith(b"\x89PNG"):
        return "png"
    fail(f"{where} is neither a PNG nor a JPEG file: the parquet file is not an image data set, or is damaged.")


def read_parquet(path: Path) -> Iterator[Sample]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in ("image", "img") if name in names), None)
            if column is None or "label" not in names:
                fail(f"{path} has the columns {', '.join(names)}: image (or img) and label are needed.")
            row = 0
            for batch in file.iter_batches(batch_size=1000, columns=[column, "label"]):
                for image, label in zip(batch[column].to_pylist(), batch["label"].to_pylist(), strict=True):
                    content = image.get("bytes") if isinstance(image, dict) else image
                    if not isinstance(content, bytes):
                        fail(
                            f"Row {row} of {path} has no image bytes: the column {column} must embed the picture files."
                        )
                    yield content, extension(content, f"Row {row} of {path}"), class_name(label, f"row {row} of {path}")
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        fail(f"{path} cannot be read as parquet ({str(error).splitlines()[0]}): fetch it again.")


def class_name(label: object, where: str) -> str:
    if isinstance(label, str) and label in CLASSES:
        return label
    if isinstance(label, int) and 0 <= label < len(CLASSES):
        return CLASSES[label]
    fail(f"Label {label!r} in {where} is none of CIFAR-10: expected 0 to 9, or one of {', '.join(CLASSES)}.")


def read_binary(path: Path) -> Iterator[Sample]:
    from PIL import Image

    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % RECORD:
        fail(f"{path} has {raw.size:,} bytes, no multiple of {RECORD:,} (a label and 3x32x32 pixels): unpack it again.")
    for row, record in enumerate(raw.reshape(-1, RECORD)):
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))).save(png, "PNG")
        yield png.getvalue(), "png", class_name(int(record[0]), f"record {row} of {path}")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # its defaults (time 0, owner 0) make the shard reproducible
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write(samples: Iterator[Sample], folder: Path) -> Counter[str]:
    """Shards of key.png (or .jpg) and key.cls, the class name; returns how many samples there are of each class."""
    folder.mkdir(parents=True)
    counts: Counter[str] = Counter()
    tar: tarfile.TarFile | None = None
    try:
        for row, (content, suffix, name) in enumerate(samples):
            if row % SHARD == 0:
                if tar:
                    tar.close()
                shard = folder / f"cifar10-{row // SHARD:04d}.tar"
                tar = tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            assert tar is not None
            add(tar, f"{row:06d}.{suffix}", content)
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
    parser.add_argument("--source", type=Path, required=True, help="folder that holds your copy of CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    args = parser.parse_args(argv)
    layout, files = find(args.source)
    for split in PER_CLASS:
        if (args.out / split).exists():
            fail(f"--out {args.out} already has a folder {split}: remove it, or name a new folder.")
    reader = {"parquet": read_parquet, "binary": read_binary}[layout]
    parts = {split: args.out / f".{split}.part" for split in PER_CLASS}
    for split, paths in files.items():
        part = parts[split]
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        verify(split, write((sample for path in paths for sample in reader(path)), part), args.source)
    # The splits get their names only when both are complete and verified.
    for split, part in parts.items():
        target = part.rename(args.out / split)
        size = sum(shard.stat().st_size for shard in target.iterdir())
        print(f"{target}: {PER_CLASS[split] * len(CLASSES):,} images, {len(CLASSES)} classes, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

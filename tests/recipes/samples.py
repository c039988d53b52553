"""Some of the real media of datasets/samples, and what tests of several recipes ask of a run on them."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from tests.runs import REPOSITORY, metrics, pretrain

SAMPLES = REPOSITORY / "datasets/samples"
RUN = ("--steps", "3", "--save-every", "1", "--probe-every", "2", "--base-lr", "0.01")


def sample_media(folder: Path, modality: str) -> Path:
    """Twelve pictures in folders of their classes, or six clips or recordings of each of two classes."""
    source = SAMPLES / modality / "train"
    if modality == "image":
        with tarfile.open(next(source.iterdir())) as shard:
            for number in range(12):
                picture, name = (shard.extractfile(f"{number:06d}.{end}") for end in ("png", "cls"))
                assert picture is not None
                assert name is not None
                place = folder / name.read().decode().strip().replace("/", "-") / f"{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(picture.read())
    else:
        for kind in sorted(source.iterdir())[:2]:
            (folder / kind.name).mkdir(parents=True)
            for file in sorted(kind.iterdir())[:6]:
                shutil.copy(file, folder / kind.name)
    return folder


def check_going_on(recipe: str, data: Path, out: Path, *more: str) -> None:
    """Going on from the last checkpoint but one gives the last step again."""
    lines = metrics(out)
    shutil.rmtree(out / "checkpoints" / "step-00000003")
    pretrain(recipe, data, out, *RUN, *more)
    assert [line["loss"] for line in metrics(out)] == [line["loss"] for line in lines]

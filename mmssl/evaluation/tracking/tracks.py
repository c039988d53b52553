"""A video with labels in its first frame that are to be carried through it, and the lists of such videos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.errors import UserError
from mmssl.evaluation.tracking.propagation import Protocol

PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Track(ABC):
    """One video. A prediction is what the kind of label is made of: a mask of object numbers, or points.

    Attributes:
        names: of the objects or joints, in the order of the scores.
        scored: numbers of the frames that are scored.
    """

    name: str
    frames: tuple[Path, ...]
    names: tuple[str, ...]
    scored: range

    @abstractmethod
    def truth(self, number: int) -> np.ndarray | None:
        """The labels of frame `number`, None where there are none. Frame 0 always has them."""

    @abstractmethod
    def labels(self, grid: tuple[int, int], protocol: Protocol) -> Tensor:
        """Soft labels float32 [L,h,w] of the first frame on the grid of the features."""

    @abstractmethod
    def decode(self, labels: Tensor, size: tuple[int, int], protocol: Protocol) -> np.ndarray:
        """The prediction of soft labels [L,h,w]; `size` is what the encoder saw, (height, width)."""

    @abstractmethod
    def score(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """float [len(names), ...]: the scores of one frame."""

    @abstractmethod
    def draw(self, frame: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
        """The frame uint8 [H,W,3] with the prediction in colour and, if given, the truth in white."""

    def frame(self, number: int) -> np.ndarray:
        """uint8 [H,W,3]. Raises UserError for a file that cannot be read or is of another size than the first."""
        picture = read_picture(self.frames[number])
        first = picture_size(self.frames[0])
        if picture.size != first:
            raise UserError(
                f"{self.frames[number]} has {picture.width}x{picture.height} pixels and the first frame of the video "
                f"{first[0]}x{first[1]}: all frames of a video must have one size."
            )
        return np.array(picture.convert("RGB"))


def to_tensor(frame: np.ndarray) -> Tensor:
    """uint8 [H,W,3] -> uint8 [3,H,W]."""
    return torch.from_numpy(frame).permute(2, 0, 1)


def read_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Exception as error:  # Pillow's plugins raise whatever their format's parser raises
        raise UserError(f"{path} cannot be read as a picture ({error}): fetch the file again.") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height), from the header alone."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except Exception as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): fetch the file again.") from error


def pictures(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder by name; numbers of any width sort as numbers."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    return tuple(sorted(found, key=lambda path: (len(path.stem) if path.stem.isdigit() else 0, path.stem)))


def list_videos(root: Path, frames: Path, split: str, prefer: tuple[str, ...]) -> list[str]:
    """Names of the videos of a split: the folders in `frames` that ROOT/ImageSets/**/SPLIT.txt lists.

    Args:
        split: name of a list, also with its folder ('2016/val'); 'all' is every folder.
        prefer: folders of ImageSets to take a list from first, where several have it.

    Raises:
        UserError: no such list, several, or videos in it that are not there.
    """
    present = sorted(path.name for path in frames.iterdir() if path.is_dir())
    if split == "all":
        return present
    lists = root / "ImageSets"
    found = sorted(lists.rglob(f"{split}.txt"))
    best = [path for name in prefer for path in found if path.parent.name == name]
    if not found or (len(found) > 1 and not best):
        have = sorted(path.relative_to(lists).with_suffix("").as_posix() for path in lists.rglob("*.txt"))
        raise UserError(
            f"{lists} has {'no list' if not found else 'several lists'} '{split}': give --split one of "
            f"{', '.join([*have, 'all'])}."
        )
    file = (best or found)[0]
    names: dict[str, None] = {}
    for line in file.read_text("utf-8").splitlines():
        if line.strip():
            first = Path(line.split()[0])  # DAVIS-2016 lists every frame: /JPEGImages/480p/bear/00000.jpg ...
            names[first.parent.name if first.suffix.lower() in PICTURES else first.as_posix()] = None
    absent = [name for name in names if name not in set(present)]
    if absent:
        raise UserError(
            f"{file} names {len(absent)} of {len(names)} videos that {frames} does not have ({', '.join(absent[:3])}"
            f"{', ...' if len(absent) > 3 else ''}): fetch them, or take them off the list."
        )
    if not names:
        raise UserError(f"{file} is empty: give --split another list, or all.")
    return list(names)

"""Masks in the layout of DAVIS (Perazzi et al. 2016; Pont-Tuset et al. 2017, arXiv:1704.00675).

    JPEGImages/RESOLUTION/VIDEO/00000.jpg    Annotations/RESOLUTION/VIDEO/00000.png    ImageSets/**/SPLIT.txt

A mask is a palette or grey PNG of object numbers, 0 the background. If the first mask holds 0 and 255 alone, 255 is the
one object (DAVIS-2016); elsewhere 255 is void and not scored. The objects are those of the first mask.

Masks may be of another size than the frames, of the same ratio to one pixel: labels are reduced from the mask's own
size straight to the grid, and predictions are enlarged to it and scored there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import UserError
from mmssl.evaluation.tracking.overlay import colours, outline
from mmssl.evaluation.tracking.propagation import Protocol
from mmssl.evaluation.tracking.scores import boundary_accuracy, region_similarity
from mmssl.evaluation.tracking.tracks import Track, list_videos, picture_size, pictures, read_picture

VOID = 255


@dataclass(frozen=True)
class MaskTrack(Track):
    """A video with masks. Predictions are uint8 [H,W] at the masks' size."""

    masks: tuple[Path | None, ...]
    """One a frame; None where there is none."""
    objects: tuple[int, ...]
    """Numbers of the objects in the masks."""
    size: tuple[int, int]
    """(height, width) of the masks."""

    def truth(self, number: int) -> np.ndarray | None:
        path = self.masks[number]
        if path is None:
            return None
        mask = read_mask(path)
        if mask.shape != self.size:
            raise UserError(
                f"{path} has {mask.shape[1]}x{mask.shape[0]} pixels and the first mask of the video "
                f"{self.size[1]}x{self.size[0]}: all masks of a video must have one size."
            )
        return mask

    def labels(self, grid: tuple[int, int], protocol: Protocol) -> Tensor:
        mask = self.truth(0)
        assert mask is not None
        channel = np.zeros(256, np.int64)
        channel[list(self.objects)] = np.arange(1, len(self.objects) + 1)
        number = torch.from_numpy(channel[mask])
        if protocol.reduce == "nearest":
            number = F.interpolate(number[None, None].float(), size=grid, mode="nearest-exact")[0, 0].long()
        one_hot = F.one_hot(number, len(self.objects) + 1).permute(2, 0, 1).float()
        if protocol.reduce == "nearest":
            return one_hot
        return F.interpolate(one_hot[None], size=grid, mode="bilinear", align_corners=False)[0]

    def decode(self, labels: Tensor, size: tuple[int, int], protocol: Protocol) -> np.ndarray:
        wanted = size if protocol.argmax == "input" else self.size
        soft = F.interpolate(labels[None], size=wanted, mode="bilinear", align_corners=False)[0]
        if protocol.normalise:
            soft = stretch(soft)
        number = soft.argmax(0)
        if wanted != self.size:
            number = F.interpolate(number[None, None].float(), size=self.size, mode="nearest-exact")[0, 0].long()
        return np.array([0, *self.objects], np.uint8)[number.cpu().numpy()]

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """float [objects,2]: J and F."""
        void = None if VOID in self.objects else truth == VOID
        pairs = [(truth == number, predicted == number, void) for number in self.objects]
        return np.array([(region_similarity(*pair), boundary_accuracy(*pair)) for pair in pairs])

    def draw(self, frame: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
        numbers = np.zeros(256, np.uint8)
        numbers[list(self.objects)] = np.arange(1, len(self.objects) + 1)
        inside = numbers[to_size(predicted, frame.shape[:2])]
        painted = frame.copy()
        painted[inside > 0] = (frame[inside > 0] * 0.45 + colours(256)[inside[inside > 0]] * 0.55).astype(np.uint8)
        if truth is not None:
            painted[outline(numbers[to_size(truth, frame.shape[:2])])] = 255
        return painted


def stretch(soft: Tensor) -> Tensor:
    """Every channel of [L,H,W] minus its minimum, then divided by its maximum; empty channels stay (DINO's script)."""
    low, high = soft.amin((1, 2), keepdim=True), soft.amax((1, 2), keepdim=True)
    return torch.where(high > 0, (soft - low) / (high - low).clamp_min(torch.finfo(soft.dtype).tiny), soft)


def to_size(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Nearest neighbour, at the centres of the pixels."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, mask.shape, strict=True))
    return mask[rows[:, None], columns]


def read_mask(path: Path) -> np.ndarray:
    """Object numbers uint8 [H,W]. Raises UserError for a picture in colour, or of more than 8 bits."""
    picture = read_picture(path)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode in ("P", "L"):
        return np.asarray(picture)
    values = np.asarray(picture.convert("RGB")) if picture.mode in ("RGB", "RGBA", "LA") else None
    if values is None or (values != values[..., :1]).any():
        raise UserError(
            f"{path} is a picture of mode {picture.mode}, not a mask: masks are palette or grey PNG files of 8 bits "
            "whose values are object numbers."
        )
    return values[..., 0]  # some masks of DAVIS-2016 are grey pictures stored as RGB


def davis_tracks(root: Path, split: str, resolution: str = "") -> list[MaskTrack]:
    """The videos of a split of a folder in the layout of DAVIS.

    Raises:
        UserError: what is missing or does not fit together, naming the file.
    """
    frames = _resolution(root / "JPEGImages", resolution)
    masks = _resolution(root / "Annotations", resolution)
    return [_track(frames / name, masks / name) for name in list_videos(root, frames, split, ("2017", frames.name))]


def _resolution(folder: Path, wanted: str) -> Path:
    """The folder of one resolution: the wanted one if it is there, else the only one, else 480p."""
    have = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if wanted in have:
        return folder / wanted
    if len(have) == 1:
        return folder / have[0]
    if "480p" in have and not wanted:
        return folder / "480p"
    choice = f"give --resolution one of {', '.join(have)}" if have else "give --data the folder that holds it"
    raise UserError(f"{folder} has no folder of frames of {wanted or 'one resolution, such as 480p'}: {choice}.")


def _track(frames: Path, masks: Path) -> MaskTrack:
    shown = pictures(frames)
    if len(shown) < 3:
        raise UserError(f"{frames} has {len(shown)} frames: a video needs 3, since the first and last are not scored.")
    drawn = {path.stem: path for path in pictures(masks)} if masks.is_dir() else {}
    stray = sorted(drawn.keys() - {path.stem for path in shown})
    if stray:
        raise UserError(f"{drawn[stray[0]]} belongs to no frame: {frames} has no {stray[0]}. Fetch that frame.")
    paths = tuple(drawn.get(path.stem) for path in shown)
    if paths[0] is None:
        raise UserError(f"{masks} has no mask {shown[0].stem}.png of the first frame, which is what is propagated.")
    scored = range(1, len(shown) - 1)
    if not any(paths[number] for number in scored):
        raise UserError(f"{masks} has masks of the first and last frame only, so nothing can be scored: add masks.")
    first = read_mask(paths[0])
    (width, height), (mask_height, mask_width) = picture_size(shown[0]), first.shape
    scale = mask_width / width
    if abs(mask_height - height * scale) > 2 * max(1.0, scale):
        raise UserError(
            f"{paths[0]} is {mask_width}x{mask_height} and its frame {width}x{height}: masks may be larger or smaller "
            "than frames, but of the same ratio of width to height."
        )
    values = set(np.unique(first).tolist()) - {0}
    objects = (VOID,) if values == {VOID} else tuple(sorted(values - {VOID}))
    if not objects:
        raise UserError(f"{paths[0]} is empty: the first mask must show every object that is to be followed.")
    names = ("1",) if objects == (VOID,) else tuple(map(str, objects))
    return MaskTrack(frames.name, shown, names, scored, paths, objects, first.shape)

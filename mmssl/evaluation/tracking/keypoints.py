"""Key points: one JSON file a video, beside its frames (datasets/jhmdb.py writes this from JHMDB's .mat files).

    Frames/VIDEO/*.png or *.jpg    Keypoints/VIDEO.json    ImageSets/SPLIT.txt

    {"joints": ["neck", ...], "points": [[[x, y], ...], ...]}

`points` has one list a frame, in the order of the frames' names, and in it one [x, y] a joint: pixels of the frame,
(0, 0) the centre of its upper left pixel; null where a joint is not labelled. Joints without a place in the first frame
are not followed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.evaluation.tracking.overlay import colours, dot
from mmssl.evaluation.tracking.propagation import Protocol
from mmssl.evaluation.tracking.scores import joint_errors
from mmssl.evaluation.tracking.tracks import Track, list_videos, picture_size, pictures

SIGMA = 0.5
"""Of the Gaussian that a joint starts as, in cells (CRW)."""
PEAK = 3
"""Cells of a label map whose weighted mean is the joint's place (CRW)."""


@dataclass(frozen=True, eq=False)
class JointTrack(Track):
    """A video with key points. Predictions are float64 [J,2], pixels of the frame, NaN where a joint was lost."""

    points: np.ndarray
    """float64 [frames,J,2], NaN where not labelled."""
    size: tuple[int, int]
    """(height, width) of the frames."""

    def truth(self, number: int) -> np.ndarray:
        return self.points[number]

    def labels(self, grid: tuple[int, int], protocol: Protocol) -> Tensor:
        """A Gaussian of 0.5 cells around each joint, cut off at 3 sigma; its peak lies between cells where the joint
        does (CRW rounds it to a cell)."""
        cells = torch.from_numpy(self._to_cells(self.points[0], grid)).float()  # [J,2]
        y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        distance = (x - cells[:, 0, None, None]).square() + (y - cells[:, 1, None, None]).square()
        heat = torch.exp(-distance / (2 * SIGMA**2))
        return heat.masked_fill(distance > (3 * SIGMA) ** 2, 0).nan_to_num(0)

    def decode(self, labels: Tensor, size: tuple[int, int], protocol: Protocol) -> np.ndarray:
        """The mean place of the 3 strongest cells, weighted by their labels. A joint without a label is lost."""
        h, w = labels.shape[1:]
        best, cells = labels.flatten(1).topk(min(PEAK, h * w), dim=1)
        weights = best / best.sum(1, keepdim=True)  # 0/0 = NaN: lost
        column, row = (weights * (cells % w)).sum(1), (weights * (cells // w)).sum(1)
        return self._to_pixels(torch.stack([column, row], 1).double().cpu().numpy(), (h, w))

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """float [J]: distances in units of the person's box. Only joints of the first frame count."""
        errors = joint_errors(truth, predicted)
        errors[np.isnan(self.points[0]).any(1)] = np.nan
        return errors

    def draw(self, frame: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
        painted, radius = frame.copy(), max(2, min(frame.shape[:2]) // 70)
        for number, point in enumerate(predicted):
            if truth is not None:
                dot(painted, truth[number], radius + 1, np.full(3, 255))
            dot(painted, point, radius, colours(len(predicted) + 1)[number + 1])
        return painted

    def _to_cells(self, points: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Pixels (x, y) -> columns and rows of the grid; centres of pixels and of cells are whole numbers."""
        scale = np.array([grid[1] / self.size[1], grid[0] / self.size[0]])
        return (points + 0.5) * scale - 0.5

    def _to_pixels(self, cells: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        scale = np.array([self.size[1] / grid[1], self.size[0] / grid[0]])
        return (cells + 0.5) * scale - 0.5


def joint_tracks(root: Path, split: str) -> list[JointTrack]:
    """The videos of a split of a folder with key points.

    Raises:
        UserError: what is missing or does not fit together, naming the file.
    """
    frames = root / "Frames"
    if not frames.is_dir():
        raise UserError(f"{root} has Keypoints/ and no Frames/: put the frames of each video into Frames/VIDEO/.")
    names = list_videos(root, frames, split, ())
    tracks = [_track(frames / name, root / "Keypoints" / f"{name}.json") for name in names]
    other = next((track for track in tracks if track.names != tracks[0].names), None)
    if other:
        raise UserError(
            f"The key points of {other.name} are called {', '.join(other.names)} and those of {tracks[0].name} "
            f"{', '.join(tracks[0].names)}: all videos of a split need the same joints, scored joint by joint."
        )
    return tracks


def _track(frames: Path, file: Path) -> JointTrack:
    shown = pictures(frames)
    if len(shown) < 2:
        raise UserError(f"{frames} has {len(shown)} frames: a video needs 2, since the first is not scored.")
    try:
        content = json.loads(file.read_text("utf-8"))
        names = tuple(map(str, content["joints"]))
        rows = [[(np.nan, np.nan) if point is None else point for point in row] for row in content["points"]]
        points = np.array(rows, np.float64)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: every video of {frames.parent} needs its key points there.") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{file} is no file of key points ({error}): see mmssl.evaluation.tracking.keypoints."
        ) from error
    if points.shape != (len(shown), len(names), 2):
        raise UserError(
            f"{file} has points of {len(points)} frames for {len(shown)} frames in {frames}, or not one [x, y] for "
            f"each of {len(names)} joints: write one list a frame and one point a joint."
        )
    if np.isnan(points[0]).all():
        raise UserError(f"{file} has no point in the first frame, which is what is propagated: add them.")
    width, height = picture_size(shown[0])
    return JointTrack(frames.name, shown, names, range(1, len(shown)), points, (height, width))

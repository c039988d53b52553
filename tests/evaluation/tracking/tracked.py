"""Small videos on disk with masks or key points, in the layouts that label propagation reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([(90, 110, 90), (220, 40, 40), (40, 60, 220)], np.uint8)
"""Of the ground and of two objects."""


def square_masks(frames: int = 6, height: int = 64, width: int = 96, side: int = 20, objects: int = 1) -> np.ndarray:
    """uint8 [frames,H,W]: squares that move by 4 pixels a frame, to the right, and the second one to the left."""
    masks = np.zeros((frames, height, width), np.uint8)
    for time in range(frames):
        masks[time, 8 : 8 + side, 8 + 4 * time : 8 + 4 * time + side] = 1
        if objects == 2:
            masks[time, 36 : 36 + side, 64 - 4 * time : 64 - 4 * time + side] = 2
    return masks


def paint(masks: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint8 [frames,H,W,3]: every object in its colour, with a little noise."""
    noise = np.random.default_rng(seed).integers(-6, 7, (*masks.shape, 3))
    return np.clip(COLOURS[masks] + noise, 0, 255).astype(np.uint8)


def save_palette(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * (768 - 9))
    picture.save(path)


def write_davis(
    root: Path, videos: tuple[str, ...] = ("left", "right"), objects: int = 2, split: str = "2017/val"
) -> Path:
    """Videos of moving squares in the layout of DAVIS-2017."""
    for seed, name in enumerate(videos):
        masks = square_masks(objects=objects)
        for number, (picture, mask) in enumerate(zip(paint(masks, seed), masks, strict=True)):
            frame = root / f"JPEGImages/480p/{name}/{number:05d}.jpg"
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(frame, quality=95)
            save_palette(root / f"Annotations/480p/{name}/{number:05d}.png", mask)
    write_list(root, split, videos)
    return root


def write_list(root: Path, split: str, videos: tuple[str, ...]) -> None:
    file = root / f"ImageSets/{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{name}\n" for name in videos))


def write_keypoints(root: Path, videos: tuple[str, ...] = ("walk",), frames: int = 5) -> Path:
    """The centres of two moving squares as joints; the first joint is not labelled in frame 2."""
    masks = square_masks(frames, objects=2)
    for name in videos:
        points: list = []
        for number, picture in enumerate(paint(masks)):
            frame = root / f"Frames/{name}/{number + 1}.png"
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(frame)
            places = [np.argwhere(masks[number] == k).mean(0)[::-1].tolist() for k in (1, 2)]
            points.append([None, places[1]] if number == 2 else places)
        file = root / f"Keypoints/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"joints": ["red", "blue"], "points": points}))
    write_list(root, "val", videos)
    return root

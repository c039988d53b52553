"""Where a crop lies, and how it becomes a view: geometry on uint8 pictures and clips, [...,3,H,W]."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

Box = tuple[int, int, int, int]
"""Top, left, height and width of a crop, in pixels."""


def random_resized_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The box of torchvision's RandomResizedCrop: area uniform in `scale`, aspect log-uniform in `ratio`, ten attempts,
    then the largest central box of an allowed aspect."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


MULTISCALE = (1.0, 0.875, 0.75, 0.66)


def multiscale_box(height: int, width: int, rng: np.random.Generator, size: int) -> Box:
    """The box of TSN's MultiScaleCrop as VideoMAE trains with it: sides from {1, .875, .75, .66} of the short side, the
    two at most one scale apart, placed at one of 13 fixed offsets (Wang et al. 2016, arXiv:1608.00859, section 3.2)."""
    sides = [int(min(height, width) * scale) for scale in MULTISCALE]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    sides = [min(side, height, width) for side in sides]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[rng.integers(len(pairs))]
    down, right = (height - h) // 4, (width - w) // 4
    even = [(i, j) for i in (0, 2, 4) for j in (0, 2, 4)]
    odd = [(i, j) for i in (1, 3) for j in (1, 3)]
    i, j = (even + odd)[rng.integers(13)]
    return i * down, j * right, h, w


def crop_and_resize(media: Tensor, box: Box, size: int, interpolation: str, flip: bool) -> Tensor:
    """uint8 [...,3,H,W] -> uint8 [...,3,size,size], antialiased; flipped left to right after the resize, where it is
    cheap."""
    top, left, height, width = box
    out = F.resize(
        # Contiguous, since decoders give channels last and the resize of that order takes half as long again.
        media[..., top : top + height, left : left + width].contiguous(),
        [size, size],
        interpolation=InterpolationMode(interpolation),
        antialias=True,
    )
    return (out.flip(-1) if flip else out).contiguous()


def centre_crop(media: Tensor, size: int, interpolation: str) -> Tensor:
    """uint8 [...,3,H,W] -> uint8 [...,3,size,size]: short side to `size`, centre square.

    The very pixels of a Hugging Face image processor with size={'shortest_edge': size} and a centre crop; it rounds the
    corner down, where torchvision's center_crop rounds to even.
    """
    out = F.resize(media, [size], interpolation=InterpolationMode(interpolation), antialias=True)
    top, left = (out.shape[-2] - size) // 2, (out.shape[-1] - size) // 2
    return out[..., top : top + size, left : left + size].contiguous()

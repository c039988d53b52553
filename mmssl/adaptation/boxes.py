"""Boxes of a view, one a sample, the same for all frames of a clip; of a waveform they are stretches of time.

Boxes are (top, left, bottom, right) float tensors [B] of whole numbers, the lower and right ends not counted; for
waveforms [B,S] top and bottom are 0 and 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmssl.types import Batch

Boxes = tuple[Tensor, Tensor, Tensor, Tensor]
ATTEMPTS = 10


def sides(view: Tensor) -> tuple[int, int]:
    """Height and width of images and clips; 1 and S of waveforms."""
    return (1, view.shape[1]) if view.ndim == 2 else (view.shape[-2], view.shape[-1])


def inside(view: Tensor, boxes: Boxes) -> Tensor:
    """Which places lie in the boxes: bool [B,1,H,W], [B,1,1,H,W] or [B,S]."""
    height, width = sides(view)
    top, left, bottom, right = (edge[:, None] for edge in boxes)
    rows, columns = torch.arange(height, device=view.device), torch.arange(width, device=view.device)
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    if view.ndim == 2:
        return across
    return (down[:, :, None] & across[:, None, :]).view(len(view), *[1] * (view.ndim - 3), height, width)


def box_around(view: Tensor, centre: Tensor, share: Tensor) -> Boxes:
    """Boxes of a share [B] of the view's area and its aspect around centres [B,2] (rows, columns, in [0,1)), cut off at
    the border: as torchvision's CutMix rounds them."""
    height, width = sides(view)
    y, x = (centre[:, 0] * height).floor(), (centre[:, 1] * width).floor()
    root = 0.5 * (share if view.ndim == 2 else share.sqrt())
    tall, wide = (root * height).floor(), (root * width).floor()
    if view.ndim == 2:
        tall = torch.ones_like(tall)
    return (y - tall).clamp(min=0), (x - wide).clamp(min=0), (y + tall).clamp(max=height), (x + wide).clamp(max=width)


def filled(view: Tensor, where: Tensor, fill: tuple[float, ...]) -> Tensor:
    """The view with a colour (one value a channel, in [0,1]) or a value (waveforms) where `where` is True."""
    colour = torch.tensor(fill, device=view.device)
    if not view.is_floating_point():
        colour = (colour * 255).round()
    colour = colour.to(view.dtype)
    return torch.where(where, colour.view(-1) if view.ndim == 2 else colour.view(-1, 1, 1), view)


@dataclass
class Erase:
    """Random erasing (Zhong et al. 2020, arXiv:1708.04896), with the boxes of torchvision's RandomErasing: area uniform
    in `scale`, aspect log-uniform in `ratio`, the first of ten attempts that fits.

    The box is filled with the encoder's mean colour, which it sees as zeros (our choice: MAE and VideoMAE fill it with
    noise).
    """

    fill: tuple[float, ...]
    """One value a channel in [0,1]; (0.0,) for waveforms."""
    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    name: str = "view"
    noise: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.noise = {f"erase/{self.name}": 1 + 4 * ATTEMPTS}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        view, noise = batch.views[self.name], batch.noise[f"erase/{self.name}"]
        boxes, fits = self.boxes(view, noise[:, 1:].unflatten(1, (ATTEMPTS, 4)))
        where = inside(view, boxes)
        chosen = fits & (noise[:, 0] < self.probability)
        where = where & chosen.view(-1, *[1] * (where.ndim - 1))
        return replace(batch, views={**batch.views, self.name: filled(view, where, self.fill)})

    def boxes(self, view: Tensor, noise: Tensor) -> tuple[Boxes, Tensor]:
        """Boxes, and whether any attempt fitted, bool [B]; `noise` is [B,attempts,4]."""
        height, width = sides(view)
        area, aspect, down, across = noise.unbind(2)
        area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspect = (low + aspect * (high - low)).exp()
        if view.ndim == 2:
            tall, wide = torch.ones_like(area), area.round()
            fits = wide < width
        else:
            tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
            fits = (tall < height) & (wide < width)
        top, left = (down * (height - tall + 1)).floor(), (across * (width - wide + 1)).floor()
        first = fits.float().argmax(1, keepdim=True)
        edges = (top, left, top + tall, left + wide)
        top, left, bottom, right = (edge.gather(1, first)[:, 0] for edge in edges)
        return (top, left, bottom, right), fits.any(1)


@dataclass
class Cutout:
    """A square of a fixed side around a place drawn evenly, cut off at the border (DeVries & Taylor 2017,
    arXiv:1708.04552, section 3.2), filled with the encoder's mean colour."""

    side: int
    """Pixels; samples of a waveform."""
    fill: tuple[float, ...]
    name: str = "view"
    noise: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.noise = {f"cutout/{self.name}": 2}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        view, noise = batch.views[self.name], batch.noise[f"cutout/{self.name}"]
        height, width = sides(view)
        top = (noise[:, 0] * height).floor() - (0 if view.ndim == 2 else self.side // 2)
        left = (noise[:, 1] * width).floor() - self.side // 2
        where = inside(view, (top, left, top + self.side, left + self.side))
        return replace(batch, views={**batch.views, self.name: filled(view, where, self.fill)})

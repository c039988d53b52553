"""Windows of made-up video whose order is known, for the order tasks."""

from __future__ import annotations

import torch
from torch import Tensor

SIDE = 16


def moving(batch: int, frames: int, generator: torch.Generator) -> Tensor:
    """uint8 [B,T,3,16,16]: a bright square that crosses a random background, upwards or downwards."""
    clip = (torch.rand(batch, 1, 3, SIDE, SIDE, generator=generator) * 80).expand(-1, frames, -1, -1, -1).clone()
    down = torch.rand(batch, generator=generator) < 0.5
    column = torch.randint(0, SIDE - 4, (batch,), generator=generator)
    for sample in range(batch):
        for t in range(frames):
            row = round(t * (SIDE - 4) / (frames - 1))
            row = row if down[sample] else SIDE - 4 - row
            clip[sample, t, :, row : row + 4, column[sample] : column[sample] + 4] = 220.0
    return clip.to(torch.uint8)


def static(batch: int, frames: int, generator: torch.Generator, *, flicker: bool = False) -> Tensor:
    """uint8 [B,T,3,16,16]: one random picture with a black border, shown again and again; with `flicker` under a light
    that beats with the frames, in the same phase in every window."""
    clip = (60 + torch.rand(batch, 1, 3, SIDE, SIDE, generator=generator) * 90).expand(-1, frames, -1, -1, -1).clone()
    clip[..., :2, :] = 0
    if flicker:
        clip *= 1 + 0.3 * torch.sin(torch.arange(frames) * 2 * torch.pi / 7).view(1, -1, 1, 1, 1)
    return clip.to(torch.uint8)

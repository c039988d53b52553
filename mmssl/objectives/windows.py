"""What the order tasks do with a window of a video before they ask about it: light evened out, look-alikes found."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

NO_TERMS = 1e-6
"""In place of a count of 0: where not one window of a step can be asked about, loss and gradient are then 0, not 0/0,
and beside any other step it weighs nothing."""
THUMBNAIL = 16
"""Side of the small frames that are compared, in pixels."""


def unit_floats(frames: Tensor) -> Tensor:
    """uint8 or float pictures -> float32 in [0,1]."""
    return frames.float() if frames.is_floating_point() else frames.float().div_(255)


def equalise(frames: Tensor) -> Tensor:
    """Frames [B,T,3,H,W] -> float32 in [0,1], with mean and deviation of each colour the same in all frames of a window
    (those of the window on average): neither how bright a frame is nor its contrast tells where it belongs.
    """
    pixels = unit_floats(frames)
    deviation, mean = torch.std_mean(pixels, (-2, -1), correction=0, keepdim=True)
    gain = deviation.mean(1, keepdim=True) / deviation.clamp_min(1e-3)
    return ((pixels - mean) * gain + mean.mean(1, keepdim=True)).clamp_(0, 1)


def thumbnails(frames: Tensor) -> Tensor:
    """float32 [B,T,3,16,16] in [0,1] of frames [B,T,3,H,W], one frame at a time: the window never is float at full
    size."""
    small = [adaptive_avg_pool2d(unit_floats(frames[:, t]), THUMBNAIL) for t in range(frames.shape[1])]
    return torch.stack(small, 1)


def mean_over(values: Tensor, valid: Tensor, otherwise: float) -> Tensor:
    """Mean of values [B,...] over the valid [B] samples; `otherwise` where there is none."""
    weight = valid.to(values.dtype).view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return torch.where(valid.any(), (values * weight).sum() / weight.sum().clamp_min(1), otherwise)

"""Augmentation that changes values but not geometry, batched on the device.

Pure functions of (views, noise): each sample's draws come from its own generator in the worker, so neither the batch
around it, nor the number of processes, nor the device changes what a sample becomes. Pictures are float32 in [0,1],
each operation equals torchvision's of the same name, and parameters differ from sample to sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.types import Batch

# ---------------------------------------------------------------- operations on float images [N,3,H,W], parameters [N]


def grey(images: Tensor) -> Tensor:
    """Luma [N,1,H,W] with the weights of torchvision's rgb_to_grayscale."""
    red, green, blue = images.split(1, dim=-3)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend(images: Tensor, ratio: Tensor, luma: Tensor, mean: Tensor) -> Tensor:
    """ratio * images + (1 - ratio) * base, clamped, where base = luma * grey + mean * (mean of grey).

    One formula for adjust_brightness (luma 0, mean 0), adjust_contrast (0, 1) and adjust_saturation (1, 0), so that
    every sample of a batch may be at another operation.
    """
    ratio, luma, mean = (parameter.view(-1, 1, 1, 1) for parameter in (ratio, luma, mean))
    base = grey(images)
    base = base * luma + base.mean((-3, -2, -1), keepdim=True) * mean
    return (images * ratio).addcmul_(base, 1 - ratio).clamp_(0, 1)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """torchvision's adjust_hue: `shift` in turns of the colour circle, in [-.5,.5].

    Hue without branches: the larger of green and blue, then of that and red, is swapped to the front, and each swap
    moves the sector that the angle counts from. Back to RGB by value - chroma * clamp(min(k, 4 - k), 0, 1) with k = (n
    + 6 hue) mod 6 and n = 5, 3, 1. Element-wise throughout: no gathers, which are what makes HSV slow.
    """
    red, green, blue = images.split(1, dim=-3)
    upper, lower = torch.maximum(green, blue), torch.minimum(green, blue)
    value, middle = torch.maximum(red, upper), torch.minimum(red, upper)
    chroma = value - torch.minimum(middle, lower)
    first, second = (green < blue).to(images.dtype), (red < upper).to(images.dtype)
    sector = second * (2 * first - 1 / 3) - first
    hue = (sector + (middle - lower) / (6 * chroma).clamp_(min=1e-12)).abs_().add_(shift.view(-1, 1, 1, 1))
    wave = hue + images.new_tensor([5 / 6, 3 / 6, 1 / 6]).view(3, 1, 1)
    wave = wave.sub_(wave.floor()).sub_(1 / 3).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return wave.mul_(chroma).neg_().add_(value)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """torchvision's gaussian_blur with `kernel` taps, sigma in pixels a sample, reflected borders; one direction at a
    time (torchvision convolves in two dimensions at once, kernel times the work), symmetric taps together."""
    half = kernel // 2
    taps = torch.exp(-0.5 * (torch.arange(half + 1, device=images.device) / sigma.view(-1, 1)) ** 2)
    taps = taps / (2 * taps.sum(1, keepdim=True) - taps[:, :1])
    weights = taps.T.reshape(half + 1, -1, 1, 1, 1).to(images.dtype)
    for dim, border in ((-2, (0, 0, half, half)), (-1, (half, half, 0, 0))):
        side = images.shape[dim]
        padded = torch.nn.functional.pad(images, border, mode="reflect")
        images = images * weights[0]
        for tap in range(1, half + 1):
            pair = padded.narrow(dim, half - tap, side) + padded.narrow(dim, half + tap, side)
            images.addcmul_(pair, weights[tap])
    return images


def solarize(images: Tensor, threshold: float = 0.5) -> Tensor:
    """Values from `threshold` on are inverted."""
    return torch.where(images >= threshold, 1 - images, images)


def only(chosen: Tensor, images: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """`operation` on the chosen [N] images, the others as they are.

    A CPU computes the chosen ones only. An accelerator computes all and selects, because asking it how many were chosen
    would stop the queue.
    """
    if images.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), operation(images, *parameters), images)
    rows = chosen.nonzero().flatten()
    if len(rows) == 0:
        return images
    if len(rows) == len(images):
        return operation(images, *parameters)
    return images.index_copy(0, rows, operation(images[rows], *(parameter[rows] for parameter in parameters)))


# -------------------------------------------------------------------------------------------------------- device views

CACHED = 1 << 18
"""Values a CPU augments at a time: all steps on a piece that stays in its cache."""


@dataclass
class Photometric:
    """Colour jitter, grey, blur and solarize as SimCLR and MoCo v2 use them (torchvision's ColorJitter with its order
    shuffled for every sample, RandomGrayscale, GaussianBlur, RandomSolarize, in this order).

    Takes views uint8 or float in [0,1], [B,3,H,W] or [B,T,3,H,W]; gives float32 in [0,1]. The frames of a clip share
    their draws. Defaults are MoCo v2's (Chen et al. 2020, arXiv:2003.04297); SimCLR (arXiv:2002.05709, appendix A) has
    .8, .8, .8, .2 times a strength.
    """

    names: tuple[str, ...]
    """Views that are changed."""
    brightness: float = 0.4
    """Factors are drawn from [max(0, 1 - x), 1 + x]; so for contrast and saturation."""
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    """Shift drawn from [-x, x], in turns of the colour circle; at most .5."""
    p_jitter: float = 0.8
    p_grey: float = 0.2
    p_blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels."""
    blur_kernel: int | None = None
    """Taps, odd; a tenth of the picture's side when None, as in SimCLR."""
    p_solarize: float = 0.0
    noise: dict[str, int] = field(init=False)

    DRAWS: ClassVar[int] = 13

    def __post_init__(self) -> None:
        if self.blur_kernel is not None and self.blur_kernel % 2 == 0:
            raise UserError(
                f"The blur kernel has {self.blur_kernel} taps, and a centred blur needs an odd number of them."
            )
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"The hue jitter is {self.hue}; it is a part of the colour circle, from 0 to 0.5.")
        self.noise = {f"photometric/{name}": self.DRAWS for name in self.names}

    def __call__(self, batch: Batch) -> Batch:
        changed = {name: self._augment(batch.views[name], batch.noise[f"photometric/{name}"]) for name in self.names}
        return replace(batch, views={**batch.views, **changed})

    @torch.no_grad()
    def _augment(self, view: Tensor, noise: Tensor) -> Tensor:
        images = view.flatten(0, -4)
        noise = noise.repeat_interleave(len(images) // len(noise), dim=0)
        size = len(images) if view.device.type != "cpu" else max(1, CACHED // images[0].numel())
        pieces = [self._images(*piece) for piece in zip(images.split(size), noise.split(size), strict=True)]
        return torch.cat(pieces).view(view.shape)

    def _images(self, images: Tensor, noise: Tensor) -> Tensor:
        """[N,3,H,W], [N,13] -> float32 [N,3,H,W]."""
        images = images.float() if images.is_floating_point() else images.float().div_(255)
        jitter, order, factors, grey_, blur, sigma, solar = noise.split([1, 4, 4, 1, 1, 1, 1], dim=1)
        images = self._jitter(images, jitter[:, 0] < self.p_jitter, order.argsort(dim=1), factors)
        nothing, one = torch.zeros_like(sigma[:, 0]), torch.ones_like(sigma[:, 0])
        images = only(grey_[:, 0] < self.p_grey, images, blend, nothing, one, nothing)
        kernel = self.blur_kernel or images.shape[-2] // 20 * 2 + 1
        if self.p_blur > 0 and kernel > 1:
            sigmas = self.sigma[0] + sigma[:, 0] * (self.sigma[1] - self.sigma[0])
            images = only(blur[:, 0] < self.p_blur, images, lambda x, s: gaussian_blur(x, s, kernel), sigmas)
        if self.p_solarize > 0:
            images = only(solar[:, 0] < self.p_solarize, images, solarize)
        return images

    def _jitter(self, images: Tensor, chosen: Tensor, order: Tensor, factors: Tensor) -> Tensor:
        """Operations 0-3 (brightness, contrast, saturation, hue) in each image's own order [N,4].

        Hue is the dear one, so it runs once, for all images together: each image has what its order puts before hue
        blended in before, and the rest after.
        """
        spread = factors.new_tensor([self.brightness, self.contrast, self.saturation])
        low = (1 - spread).clamp_(min=0)
        ratios = low + factors[:, :3] * (1 + spread - low)
        ratios = torch.cat([ratios, torch.ones_like(ratios[:, :1])], dim=1).gather(1, order)
        luma, mean = (order == 2).to(images.dtype), (order == 1).to(images.dtype)
        turn = (order == 3).to(order.dtype).argmax(dim=1)
        for n in range(3):
            images = only(chosen & (turn > n), images, blend, ratios[:, n], luma[:, n], mean[:, n])
        if self.hue > 0:
            images = only(chosen, images, shift_hue, (2 * factors[:, 3] - 1) * self.hue)
        for n in range(1, 4):
            images = only(chosen & (turn < n), images, blend, ratios[:, n], luma[:, n], mean[:, n])
        return images


@dataclass
class GaussianNoise:
    """White noise added to waveforms [B,S], `scale` times the root mean square of each sample's view (its padding left
    alone), or with `relative` False of the standard deviation `scale` everywhere.

    COLA (Saeed et al. 2021, arXiv:2010.10915) adds it to the positive only: 0.001 to a whole clip of unit L2 norm,
    which for its 10 s at 16 kHz is a relative scale of 0.4 (8 dB).
    """

    names: tuple[str, ...]
    scale: float
    samples: int
    """S, the length of the views."""
    relative: bool = True
    noise: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        even = self.samples + self.samples % 2
        self.noise = {f"gaussian_noise/{name}": even for name in self.names}

    def __call__(self, batch: Batch) -> Batch:
        changed = {
            name: self._add(batch.views[name], batch.noise[f"gaussian_noise/{name}"], batch.lengths.get(name))
            for name in self.names
        }
        return replace(batch, views={**batch.views, **changed})

    @torch.no_grad()
    def _add(self, wave: Tensor, noise: Tensor, lengths: Tensor | None) -> Tensor:
        length = wave.shape[1]
        radius, angle = noise.chunk(2, dim=1)  # Box and Muller 1958: two uniform draws are two normal ones
        radius, angle = torch.sqrt(-2 * torch.log1p(-radius)), 2 * math.pi * angle
        normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :length]
        if not self.relative:
            return wave + self.scale * normal
        real = torch.full_like(wave[:, 0], length) if lengths is None else lengths.to(wave.dtype)
        inside = torch.arange(length, device=wave.device) < real[:, None]
        level = (wave.square().sum(1) / real).sqrt()
        return wave + self.scale * level[:, None] * normal * inside


@dataclass
class ChannelSplit:
    """One of the three colours, drawn for each view, in the place of all of them: what a lens or a codec does to one
    colour and not to another is gone, and colour itself (Lee et al. 2017, arXiv:1708.01246, train order tasks so). The
    frames of a clip share the colour.
    """

    names: tuple[str, ...]
    share: float = 1.0
    """Of the views; the others stay as they are."""
    noise: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.noise = {f"channel_split/{name}": 2 for name in self.names}

    def __call__(self, batch: Batch) -> Batch:
        changed = {name: self._split(batch.views[name], batch.noise[f"channel_split/{name}"]) for name in self.names}
        return replace(batch, views={**batch.views, **changed})

    @torch.no_grad()
    def _split(self, view: Tensor, noise: Tensor) -> Tensor:
        own = torch.arange(3, device=view.device)
        channel = (3 * noise[:, 1:]).long().clamp_max(2)
        source = torch.where(noise[:, :1] < self.share, channel, own)  # [B,3]
        shape = (len(view), *[1] * (view.ndim - 4), 3, 1, 1)
        return view.gather(-3, source.view(shape).expand_as(view))

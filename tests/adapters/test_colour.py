"""Claim: Lab is the CIE's, as published for the corners of sRGB and as NumPy computes it in float64 by the textbook.

An encoder that is to see lightness sees exactly its L, in one channel or in several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mmssl.adapters.colour import lab_to_rgb, lightness, rgb_to_lab
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.adapters.video import VideoPixels
from mmssl.errors import UserError

PUBLISHED = {
    # sRGB -> L, a, b under D65, as colour-science tables give them (matrix digits move them by some hundredths).
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (255, 255, 255): (100.0, 0.0, 0.0),
    (119, 119, 119): (50.03, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("rgb", PUBLISHED)
def test_published_values(rgb: tuple[int, int, int]) -> None:
    lab = rgb_to_lab(torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1))
    assert_close(lab.flatten(), torch.tensor(PUBLISHED[rgb]), rtol=0, atol=0.04)


def numpy_lab(rgb: np.ndarray) -> np.ndarray:
    """[...,3] 0..255 -> Lab in float64, pixel by pixel as the standards write it."""
    value = rgb.astype(np.float64) / 255
    linear = np.piecewise(value, [value <= 0.04045], [lambda v: v / 12.92, lambda v: ((v + 0.055) / 1.055) ** 2.4])
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ matrix.T / matrix.sum(1)
    f = np.piecewise(ratio, [ratio > 216 / 24389], [np.cbrt, lambda t: (24389 / 27 * t + 16) / 116])
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def test_equals_numpy_and_comes_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 5, 40, 30, 3), dtype=np.uint8)
    rgb[0, 0, :8] //= 16  # dark ones, where the curve is a line
    view = torch.from_numpy(rgb).movedim(-1, -3)
    lab = rgb_to_lab(view)
    assert lab.dtype == torch.float32
    assert_close(lab.movedim(-3, -1).numpy(), numpy_lab(rgb), rtol=0, atol=2e-3, check_dtype=False)
    assert_close(lab_to_rgb(lab), view.float() / 255, rtol=0, atol=1e-4)
    assert_close(rgb_to_lab(view.double() / 255), torch.from_numpy(numpy_lab(rgb)).movedim(-1, -3), rtol=0, atol=1e-9)
    assert_close(lightness(view), lab[..., :1, :, :] / 100, rtol=0, atol=1e-6)


def test_autocast_leaves_it_in_fp32() -> None:
    view = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rgb_to_lab(view)
    assert_close(inside, rgb_to_lab(view), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_fronts_of_lightness(channels: int) -> None:
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.5)[:channels]
    clip = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    front = VideoPixels(VideoSpec(size=8, frames=4, mean=mean, std=std, colour="lightness"))
    pixels = front(clip)
    L = torch.from_numpy(numpy_lab(clip.movedim(2, -1).numpy())[..., 0]) / 100  # [B,T,H,W]
    expected = torch.stack([(L - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    assert_close(pixels, expected.float(), rtol=0, atol=1e-4)
    image = ImagePixels(ImageSpec(size=8, mean=mean, std=std, colour="lightness"))
    assert_close(image(clip[:, 1])[:, :, 0], pixels[:, :, 1], rtol=0, atol=0)
    shown = front.denormalise(pixels)  # the grey picture of the same lightness
    assert shown.shape == (2, 3, 4, 8, 8)
    assert_close(rgb_to_lab(shown.transpose(1, 2))[:, :, 0] / 100, L.float(), rtol=0, atol=1e-4)
    assert_close(shown[:, 0], shown[:, 2], rtol=0, atol=1e-4)


def test_patches_of_lightness_are_those_of_its_pixels() -> None:
    adapter = ImagePatches(ImageSpec(size=8, patch=4, mean=(0.5,), std=(0.2,), colour="lightness"), 6)
    view = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    keep = torch.tensor([[2, 0], [1, 3]])
    expected = adapter.patches(adapter.pixels(view)).gather(1, keep[:, :, None, None].expand(-1, -1, 16, 1))
    assert_close(adapter.targets(view, keep), expected, rtol=0, atol=1e-6)
    assert adapter(view).x.shape == (2, 4, 6)


def test_unknown_colour() -> None:
    with pytest.raises(UserError, match="no colour 'hsv'"):
        ImagePixels(ImageSpec(colour="hsv"))  # type: ignore[arg-type]

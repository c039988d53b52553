"""Claims: crops are those of torchvision's RandomResizedCrop and TSN's MultiScaleCrop; resizing is Pillow's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2.functional import pil_to_tensor

from mmssl.data.crops import crop_and_resize, multiscale_box, random_resized_box
from tests.media import make_image


@pytest.mark.parametrize(("height", "width"), [(200, 300), (90, 40), (30, 400)])
def test_random_resized_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Also for a 30 x 400 picture, where most draws fall back to the centre."""
    torch.manual_seed(0)
    scale, ratio = (0.3, 1.0), (3 / 4, 4 / 3)
    theirs = RandomResizedCrop(8, scale, ratio)
    blank = torch.empty(3, height, width)
    params = [theirs.make_params([blank]) for _ in range(3000)]
    expected = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params])
    generator = np.random.default_rng(0)
    ours = np.array([random_resized_box(height, width, generator, scale, ratio) for _ in range(3000)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for column in range(4):
        assert ks_2samp(ours[:, column], expected[:, column]).pvalue > 1e-3


def test_multiscale_boxes_are_the_crops_of_tsn() -> None:
    """All pairs of neighbouring scales, at 13 offsets: corners, edge middles, centre, and the middles between."""
    height, width, generator = 240, 320, np.random.default_rng(0)
    sides = [240, 210, 180, 158]  # int(240 * {1, .875, .75, .66})
    boxes = Counter(multiscale_box(height, width, generator, 112) for _ in range(40000))
    pairs = {(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) < 2}
    assert {(h, w) for _, _, h, w in boxes} == pairs
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]
    expected = {(y * ((height - h) // 4), x * ((width - w) // 4), h, w) for h, w in pairs for y, x in places}
    assert set(boxes) == expected
    by_pair: Counter[tuple[int, int]] = Counter()
    for (_, _, h, w), count in boxes.items():
        by_pair[h, w] += count
    assert max(by_pair.values()) < 1.12 * min(by_pair.values())  # 4,000 each; 5 sigma is 8 %


def test_a_side_close_to_the_output_is_not_resized() -> None:
    sides = {side for _ in range(300) for side in multiscale_box(130, 200, np.random.default_rng(_), 112)[2:]}
    assert 112 in sides  # int(130 * .875) = 113
    assert 113 not in sides


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resizing_is_pillows(tmp_path: Path, mode: str) -> None:
    make_image(tmp_path / "a.png", 150, 200)
    pixels = pil_to_tensor(Image.open(tmp_path / "a.png"))
    ours = crop_and_resize(pixels, (10, 20, 120, 100), 48, mode, flip=True)
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
    theirs = Image.open(tmp_path / "a.png").crop((20, 10, 120, 130)).resize((48, 48), resample)
    theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    difference = ours.permute(1, 2, 0).int() - torch.from_numpy(np.array(theirs)).int()
    assert difference.abs().max() <= 1

"""Claims: pixels arrive in the files as they were given, tiny ones enlarged without blur; clips move; spectrograms of
one row share their colours and have the low frequencies at the bottom; captions lie beside."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.report.pictures import GAP, SAMPLE_GAP, save_pictures
from mmssl.types import Picture


def load(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGBA"))


def test_an_image_grid_holds_the_pixels_given(tmp_path: Path) -> None:
    cells = [[torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8) for _ in range(3)] for _ in range(2)]
    picture = Picture("image", ("original", "masked", "reconstruction"), tuple(tuple(row) for row in cells))
    (file,) = save_pictures(tmp_path, 200, {"reconstruction": picture})
    assert file == tmp_path / "pictures" / "step-000200-reconstruction.png"
    sidecar = json.loads(file.with_suffix(".json").read_text())
    assert sidecar["columns"] == ["original", "masked", "reconstruction"]
    assert (sidecar["step"], sidecar["kind"], sidecar["layout"]) == (200, "image", "across")
    pixels, side = load(file), 120  # 40 x 3, the smallest whole multiple that reaches 96
    assert pixels.shape == (2 * side + SAMPLE_GAP, 3 * side + 2 * GAP, 4)
    assert sidecar["rows"] == [[0, side], [side + SAMPLE_GAP, 2 * side + SAMPLE_GAP]]
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            y, x = i * (side + SAMPLE_GAP), j * (side + GAP)
            shown = pixels[y : y + side, x : x + side]
            assert (shown[..., 3] == 255).all()
            # every pixel became a block of 3 x 3 equal ones
            assert (shown[::3, ::3, :3] == cell.permute(1, 2, 0).numpy()).all()
            assert (shown[2::3, 2::3, :3] == cell.permute(1, 2, 0).numpy()).all()
    assert (pixels[:, side : side + GAP, 3] == 0).all()


def test_a_clip_moves_and_has_a_strip(tmp_path: Path) -> None:
    clip = torch.stack([torch.full((3, 96, 96), 15 * t, dtype=torch.uint8) for t in range(16)])
    still, animation = save_pictures(tmp_path, 0, {"views": Picture("clip", ("a", "b"), ((clip, clip.flip(0)),))})
    with Image.open(animation) as moving:
        assert moving.n_frames == 16  # type: ignore[attr-defined]
        for t in range(16):
            moving.seek(t)
            frame = np.asarray(moving.convert("RGB")).astype(int)
            assert abs(frame[48, 48].mean() - 15 * t) < 8
            assert abs(frame[48, 96 + GAP + 48].mean() - 15 * (15 - t)) < 8
    pixels = load(still)
    assert pixels.shape[:2] == (2 * 96 + GAP, 8 * 96)
    assert pixels[48, 48::96, 0].tolist() == [15 * t for t in (0, 2, 4, 6, 9, 11, 13, 15)]
    assert json.loads(still.with_suffix(".json").read_text())["layout"] == "down"


def test_spectrograms_of_a_row_share_their_colours(tmp_path: Path) -> None:
    low, high = torch.zeros(128, 512), torch.full((128, 512), 10.0)
    low[0, :], low[5, 7] = 10.0, float("nan")
    (file,) = save_pictures(tmp_path, 1, {"s": Picture("spectrogram", ("x", "y"), ((low, high),))})
    pixels = load(file)
    top, bottom = (np.array(matplotlib.colormaps["magma"](end)[:3]) * 255 for end in (0.0, 1.0))
    assert pixels.shape[:2] == (2 * 128 + GAP, 512)
    assert np.abs(pixels[0, 0, :3] - top).max() < 2
    assert np.abs(pixels[127, 0, :3] - bottom).max() < 2  # bin 0, the lowest, is the last line
    assert np.abs(pixels[128 + GAP, 0, :3] - bottom).max() < 2  # equal values, equal colours
    assert pixels[127 - 5, 7, :3].tolist() == [128, 128, 128]


def test_pictures_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        save_pictures(tmp_path, 0, {"x": Picture("image", ("a",), ())})
    with pytest.raises(ValueError, match="unknown kind"):
        save_pictures(tmp_path, 0, {"x": Picture("mesh", ("a",), ((torch.zeros(3, 4, 4),),))})

"""Span masks: against fairseq's algorithm written once more in NumPy, on the same draws; their share against the exact
expectation (hypergeometric), against torchaudio's function, and against the published setting's 56.7 %."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from torchaudio.models.wav2vec2.components import _compute_mask_indices

from mmssl.errors import UserError
from mmssl.objectives.spans import SpanMask


def by_hand(noise: np.ndarray, frames: int, ratio: float, length: int, least: int) -> np.ndarray:
    """fairseq's compute_mask_indices (static lengths, overlaps allowed) of one sample; choosing without replacement is
    taking the places with the smallest draws."""
    spans = max(least, int(np.float32(ratio * frames / length) + np.float32(noise[0])))
    shortest = length
    if frames - shortest <= spans:
        shortest = frames - spans - 1
    starts = np.argsort(noise[1 : 1 + frames - shortest], kind="stable")[:spans]
    hidden = np.unique([start + offset for start in starts for offset in range(length)])
    mask = np.zeros(frames, bool)
    mask[hidden[hidden < frames].astype(int)] = True
    return mask


@pytest.mark.parametrize(("ratio", "length", "least"), [(0.8, 10, 2), (0.65, 10, 2), (0.5, 5, 1), (0.7, 1, 1)])
@pytest.mark.parametrize("frames", [1, 2, 3, 9, 11, 12, 13, 14, 25, 99, 781])
def test_masks_are_those_of_the_algorithm(frames: int, ratio: float, length: int, least: int) -> None:
    mask = SpanMask(ratio, length, least)
    grid = (1, 1, frames)
    noise = torch.rand(64, mask.noise(grid), generator=torch.Generator().manual_seed(frames))
    found = mask(noise, grid)
    expected = [by_hand(row, frames, ratio, length, least) for row in noise.numpy()]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def expected_share(frames: int, ratio: float, length: int) -> float:
    """A frame stays visible if all spans start elsewhere than in the `length` places before it."""
    places, mean = frames - length, ratio * frames / length
    share = 0.0
    for spans, weight in ((int(mean), 1 - mean % 1), (int(mean) + 1, mean % 1)):
        for frame in range(frames):
            covering = min(frame, places - 1) - max(0, frame - length + 1) + 1
            share += weight * (1 - comb(places - max(covering, 0), spans) / comb(places, spans)) / frames
    return share


@pytest.mark.parametrize(("ratio", "published"), [(0.80, 0.567), (0.65, 0.491)])
def test_share_of_hidden_frames(ratio: float, published: float) -> None:
    mask, grid = SpanMask(ratio), (1, 1, 781)  # 250,000 samples, HuBERT's longest crop
    noise = torch.rand(2000, mask.noise(grid), generator=torch.Generator().manual_seed(0))
    shares = mask(noise, grid).float().mean(1)
    error = shares.std().item() / 2000**0.5
    assert shares.mean().item() == pytest.approx(expected_share(781, ratio, 10), abs=4 * error)
    assert shares.mean().item() == pytest.approx(published, abs=0.005)
    torch.manual_seed(0)
    # Samples one by one: a batch is cut to the sample with the fewest masked frames.
    theirs = torch.cat([_compute_mask_indices((1, 781), None, ratio, 10, min_masks=2) for _ in range(300)])
    assert shares.mean().item() == pytest.approx(theirs.float().mean().item(), abs=0.005)
    hidden = mask(noise, grid).float().mean(0)
    np.testing.assert_allclose(hidden[10:-11].numpy(), theirs.float().mean(0)[10:-11].mean().item(), atol=0.06)
    assert hidden[-1] == 0, "as fairseq's, no span reaches the last frame"


def test_a_mask_depends_on_its_own_draws_only_and_a_shorter_view_uses_the_first_of_them() -> None:
    mask = SpanMask()
    noise = torch.rand(5, mask.noise((1, 1, 200)))
    together = mask(noise, (1, 1, 150))
    assert torch.equal(together[2:3], mask(noise[2:3], (1, 1, 150)))
    assert torch.equal(together, mask(noise[:, : mask.noise((1, 1, 150))], (1, 1, 150)))
    assert all(mask.noise((1, 1, n)) <= mask.noise((1, 1, n + 1)) for n in range(1, 300))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="200 frames and the masks were planned for fewer"):
        SpanMask()(torch.rand(2, 100), (1, 1, 200))
    with pytest.raises(UserError, match=r"the token grid is \(1, 8, 8\)"):
        SpanMask().noise((1, 8, 8))
    for wrong in ((0.0, 10, 2), (11.0, 10, 2), (0.8, 0, 2), (0.8, 10, 0)):
        with pytest.raises(UserError, match="hides nothing"):
            SpanMask(*wrong)

"""Span masks over a sequence of frames, as wav2vec 2.0 and HuBERT draw them, with static shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.objectives.masks import Grid


@dataclass(frozen=True)
class SpanMask:
    """Hide spans of `length` frames that may overlap: ratio * T / length of them a sample, rounded up or down at random
    so that their mean is that number, but no fewer than `least`; starts are drawn without replacement (Baevski et al.
    2020, wav2vec 2.0, and Hsu et al. 2021, HuBERT, as fairseq's `compute_mask_indices` draws them).

    Of a long sequence 0.80 / 10 hides about 56.7 % of the frames. As in fairseq a span starts before frame T - length,
    so the last frame is hidden only where a sequence is so short that it has no such starts to draw. Two things differ:
    fairseq rounds once a batch, and unmasks random frames until every sample has as many as the one with the fewest.
    Here a sample's mask depends on nothing but its own draws; a loss that weighs masked frames needs no equal counts.

    Raises:
        UserError: numbers that make no mask.
    """

    ratio: float = 0.80
    """Spans x length over T: what would be hidden if spans never overlapped (fairseq's mask_prob)."""
    length: int = 10
    least: int = 2

    def __post_init__(self) -> None:
        if self.length < 1 or self.least < 1 or not 0 < self.ratio <= self.length:
            raise UserError(
                f"{self} hides nothing, or more spans than frames: give a length and a least number of spans of 1 or "
                f"more, and a ratio above 0 and up to the length."
            )

    def noise(self, grid: Grid) -> int:
        """k, the uniform draws that one sample of the longest grid needs; shorter ones use the first of them."""
        return 1 + self._starts(grid)

    def __call__(self, noise: Tensor, grid: Grid) -> Tensor:
        """bool [B,N], True = masked, from `noise` float [B,k] in [0,1). Raises UserError where draws are missing."""
        frames, starts = grid[2], self._starts(grid)
        if noise.shape[1] < 1 + starts:
            raise UserError(
                f"A view has {frames} frames and the masks were planned for fewer: give the objective the longest crop."
            )
        spans = (self.ratio * frames / self.length + noise[:, :1]).long().clamp_min(self.least)  # [B,1]
        possible = torch.where(spans < frames - self.length, frames - self.length, spans + 1)
        place = torch.arange(starts, device=noise.device)
        chance = torch.where(place < possible, noise[:, 1 : 1 + starts], 2.0)
        rank = torch.argsort(torch.argsort(chance, dim=1, stable=True), dim=1)
        begun = (rank < spans).long().cumsum(1)  # [B,starts]: spans begun until here
        # A frame is hidden where a span began in the last `length` frames, itself included.
        until = torch.arange(frames, device=noise.device)
        now = begun[:, until.clamp(max=starts - 1)]
        before = begun[:, (until - self.length).clamp(0, starts - 1)] * (until >= self.length)
        return now > before

    def _starts(self, grid: Grid) -> int:
        """Places that a start is drawn from, at most."""
        if grid[0] != 1 or grid[1] != 1:
            raise UserError(f"Spans lie in a sequence, and the token grid is {grid}: choose a mask over a grid.")
        most = max(int(self.ratio * grid[2] / self.length + 1), self.least)
        return max(grid[2] - self.length, most + 1)

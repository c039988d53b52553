"""What objectives that predict patches share: picking tokens, the refusal of overlapping patches, and the picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmssl.adapters.base import Adapter, Pixels
from mmssl.errors import UserError
from mmssl.objectives.pictures import KINDS, cells
from mmssl.types import Picture


def refuse_overlap(adapter: Adapter) -> None:
    """Raises UserError where patches overlap, so that visible ones would show masked ones."""
    if adapter.stride != adapter.patch:
        raise UserError(
            f"Patches of {adapter.patch} at a distance of {adapter.stride} overlap, so visible ones would show masked "
            f"ones: set stride equal to patch."
        )


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values [B,N,...] at index [B,n] -> [B,n,...]."""
    return values.gather(1, _spread(index, values))


def reconstruction(
    adapter: Adapter, patches: Tensor, hidden: Tensor, index: Tensor, predicted: Tensor, frames: list[int] | None = None
) -> Picture:
    """Original, what the encoder saw (hidden patches in the mean colour; NaN in spectrograms, which is drawn grey,
    since no loudness means "hidden"), and the original with the predictions in place of hidden patches. Hidden patches
    without a prediction stay as the encoder saw them.

    Args:
        patches: [B,N,K,C], normalised pixels.
        hidden: bool [B,N].
        index: int64 [B,R], the tokens that `predicted` [B,R,K,C] belongs to.
        frames: those to show; all if None.
    """
    covered = hidden[:, :, None, None]
    seen = patches.masked_fill(covered, 0.0 if isinstance(adapter.front, Pixels) else math.nan)
    filled = torch.where(covered, seen.scatter(1, _spread(index, predicted), predicted), patches)
    columns = []
    for stage in (patches, seen, filled):
        pixels = adapter.unpatches(stage, adapter.grid)
        columns.append(cells(adapter.front, pixels if frames is None else pixels[:, :, frames]))
    return Picture(
        kind=KINDS[adapter.spec.modality],
        columns=("original", "masked", "reconstruction"),
        rows=tuple(zip(*columns, strict=True)),
    )


def _spread(index: Tensor, values: Tensor) -> Tensor:
    return index.view(*index.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])

"""Heads between an encoder's pooled output and a loss; they are not exported."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import nn


class Projector(nn.Sequential):
    """`layers` linear layers with ReLU between them: [B,width] -> [B,out].

    norm 'batch': batch norm after every layer, which then has no bias (SimCLR, Chen et al. 2020, appendix B.9);
    'none': biases and no norm (MoCo v2, Chen et al. 2020).
    """

    def __init__(
        self, width: int, *, hidden: int, out: int, layers: int = 2, norm: Literal["batch", "none"] = "batch"
    ) -> None:
        widths = [width] + [hidden] * (layers - 1) + [out]
        parts: list[nn.Module] = []
        for place, (fan_in, fan_out) in enumerate(pairwise(widths)):
            parts.append(nn.Linear(fan_in, fan_out, bias=norm == "none"))
            if norm == "batch":
                parts.append(nn.BatchNorm1d(fan_out))
            if place < layers - 1:
                parts.append(nn.ReLU(inplace=True))
        super().__init__(*parts)

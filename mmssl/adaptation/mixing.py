"""Samples of a batch mixed with each other, and their labels with them: mixup and cutmix, on the device, from noise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from mmssl.adaptation.boxes import box_around, inside
from mmssl.adaptation.classification import one_hot
from mmssl.types import Batch

STEPS = 4096


@cache
def _beta_table(alpha: float) -> np.ndarray:
    return stats.beta.ppf(np.linspace(0, 1, STEPS + 1), alpha, alpha).astype(np.float32)


def beta_draws(uniform: Tensor, alpha: float) -> Tensor:
    """Draws of Beta(alpha, alpha) from uniform ones [B], by its quantile function (linear between 4097 places)."""
    table = torch.from_numpy(_beta_table(alpha)).to(uniform.device)
    place = uniform * STEPS
    below = place.floor().long().clamp_(max=STEPS - 1)
    return torch.lerp(table[below], table[below + 1], place - below)


@dataclass
class Mix:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412), cutmix (Yun et al. 2019, arXiv:1905.04899) and label smoothing.

    Each sample draws which of the two it gets, its share lam from Beta(alpha, alpha), and where its box lies; its
    partner comes from one permutation of the micro-batch. All frames of a clip share them; of a waveform cutmix
    replaces a stretch of time. What remains of the sample weighs lam in the label, for cutmix by the true size of the
    box. Drawn for every sample, not once a batch (our choice; it is what timm calls 'elem').

    Writes `targets['soft']` float32 [B,classes]. Views become float32 in [0,1] where anything is mixed.

    Args:
        mixup, cutmix: alpha of the Beta distribution; 0 turns one off.
        switch: share of samples that get cutmix where both are on.
    """

    classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1
    name: str = "view"
    noise: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.noise = {"mix": 5} if self.mixup > 0 or self.cutmix > 0 else {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        soft = one_hot(batch.targets["class"], self.classes, self.smoothing)
        if not self.noise:
            return replace(batch, targets={**batch.targets, "soft": soft})
        view = batch.views[self.name]
        if not view.is_floating_point():
            view = view.float().div_(255)
        noise = batch.noise["mix"]
        partner = noise[:, 0].argsort()
        weight = self.weights(view, noise[:, 1:])
        share = weight.mean(tuple(range(1, weight.ndim)))[:, None]
        lengths = dict(batch.lengths)
        if self.name in lengths:
            lengths[self.name] = torch.maximum(lengths[self.name], lengths[self.name][partner])
        return replace(
            batch,
            views={**batch.views, self.name: torch.lerp(view[partner], view, weight)},
            targets={**batch.targets, "soft": torch.lerp(soft[partner], soft, share)},
            lengths=lengths,
        )

    def weights(self, view: Tensor, noise: Tensor) -> Tensor:
        """What each value of the sample keeps, the rest being its partner's: float32 [B,1,...,H,W] or [B,S], constant
        for mixup, 0 inside the box for cutmix. `noise` is [B,4]."""
        boxed = (noise[:, 0] < self.switch) if self.mixup > 0 else torch.ones_like(noise[:, 0], dtype=torch.bool)
        boxed = boxed & (self.cutmix > 0)
        lam = torch.where(
            boxed, beta_draws(noise[:, 1], self.cutmix or 1.0), beta_draws(noise[:, 1], self.mixup or 1.0)
        )
        box = inside(view, box_around(view, noise[:, 2:4], 1 - lam))
        shape = [len(view)] + [1] * (box.ndim - 1)
        return torch.where(boxed.view(shape), (~box).float(), lam.view(shape))

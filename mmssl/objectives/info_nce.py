"""InfoNCE: tell one's own partner from others. One function for SimCLR, MoCo and COLA."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class InfoNCE(NamedTuple):
    loss: Tensor
    """Scalar fp32, mean over anchors."""
    accuracy: Tensor
    """Detached scalar: share of anchors whose partner is more similar than every negative."""


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    candidates: Tensor,
    *,
    temperature: float,
    ignore: Tensor | None = None,
) -> InfoNCE:
    """Mean over anchors of -log( e^(a.p/t) / (e^(a.p/t) + sum over negatives of e^(a.n/t)) ), always in fp32.

    Vectors are taken as they are: normalise them first for a cosine similarity. Sources: van den Oord et al. 2018,
    equation 4; SimCLR (Chen et al. 2020), equation 1; MoCo (He et al. 2019), equation 1.

    Args:
        anchors: [A,D].
        positives: [A,D], the partner of each anchor.
        candidates: [R,D], shared by all anchors: the global batch (SimCLR) or the queue (MoCo).
        ignore: int64 [A,I], for each anchor the candidates that are no negatives of it: itself and its partner.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positives, candidates = anchors.float(), positives.float(), candidates.float()
        anchors = anchors / temperature
        positive = (anchors * positives).sum(1)  # [A]
        negative = anchors @ candidates.T  # [A,R]
        if ignore is not None:
            negative = negative.scatter_(1, ignore, float("-inf"))
        loss = (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
        accuracy = (positive.detach() > negative.detach().amax(1)).float().mean()
    return InfoNCE(loss, accuracy)

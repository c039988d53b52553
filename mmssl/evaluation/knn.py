"""Weighted nearest neighbours: Wu et al. 2018 (arXiv:1805.01978, section 3.4), as DINO uses them (arXiv:2104.14294)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
CHUNK = 1 << 26
"""Similarities held at a time (256 MiB in fp32)."""


@torch.no_grad()
def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    classes: int,
    neighbours: tuple[int, ...] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, Tensor]:
    """Predict the class of every query: its k most similar bank entries vote with weight exp(cosine / temperature).

    Args:
        bank: [N,D] training features, any scale; they are L2-normalised here.
        labels: int64 [N] in [0, classes).
        queries: [Q,D].
        neighbours: values of k; those above N become N.

    Returns:
        k -> int64 [Q], with one entry for each different k; ties go to the lower class.
    """
    used = sorted({min(k, len(bank)) for k in neighbours})
    with torch.autocast(bank.device.type, enabled=False):
        bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
        predicted: dict[int, list[Tensor]] = {k: [] for k in used}
        for part in queries.split(max(1, CHUNK // len(bank))):
            similarity, nearest = (part @ bank.T).topk(used[-1], dim=1)  # [q,k]
            # Subtracting the largest changes no vote and keeps exp() finite at low temperatures.
            weight = ((similarity - similarity[:, :1]) / temperature).exp()
            voter = labels[nearest]
            for k in used:
                votes = weight.new_zeros(len(part), classes).scatter_add_(1, voter[:, :k], weight[:, :k])
                predicted[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}

"""`mmssl evaluate knn`: weighted nearest neighbours.

Wu et al. 2018 (arXiv:1805.01978, section 3.4), as DINO uses them (arXiv:2104.14294).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.frame import Figures, run
from mmssl.evaluation.probes.probing import Answer, ProbeSettings, Sides, probe_pooled

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
CHUNK = 1 << 26
"""Similarities held at a time (256 MiB in fp32)."""


@dataclass(kw_only=True)
class KnnSettings(ProbeSettings):
    """Weighted nearest neighbours on frozen features, as DINO evaluates (arXiv:2104.14294)."""

    evaluation = "knn"

    k: int = 20
    """Neighbours of the figures in the table."""
    neighbours: tuple[int, ...] = NEIGHBOURS
    """Further values of k that are reported."""
    temperature: float = TEMPERATURE
    """T of the weight exp(cosine / T)."""

    def check(self) -> None:
        super().check()
        if min(self.k, *self.neighbours) < 1 or self.temperature <= 0:
            raise UserError("--k and --neighbours are counts of 1 or more, and --temperature is above 0.")

    def run(self) -> Figures:
        return run(self, evaluate)


def evaluate(encoders: list[Encoder], source: Source, settings: KnnSettings) -> Figures:
    return probe_pooled(encoders, source, settings, vote)


def vote(sides: Sides, settings: KnnSettings) -> Answer:
    found = knn_predict(
        sides.x,
        sides.y,
        sides.queries,
        classes=sides.classes,
        neighbours=(settings.k, *settings.neighbours),
        temperature=settings.temperature,
    )
    k = min(settings.k, len(sides.x))
    by_k = {str(n): float(np.mean(answer.cpu().numpy() == sides.truth)) for n, answer in found.items()}
    return Answer(found[k].cpu().numpy(), {"k": k, "top1_by_k": by_k})


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

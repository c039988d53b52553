"""Contrast two views of a sample with the rest of the batch: SimCLR on images and clips, COLA on recordings."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.distributed import gather, rank, world_size
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.batch_norm import group_batch_norms
from mmssl.objectives.heads import Projector
from mmssl.objectives.info_nce import info_nce
from mmssl.objectives.pictures import view_pictures
from mmssl.types import Batch, ObjectiveOutput, Picture


def partner_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine of partners; near 1 from the first steps on, it means collapse."""
    return F.cosine_similarity(a, b, dim=1).mean()


class Contrastive(Objective):
    """SimCLR (Chen et al. 2020, section 2) and COLA (Saeed et al. 2020, section 2).

    SimCLR: cosine, symmetric: every view is an anchor, the other views of the global batch are negatives.
    COLA: bilinear, not symmetric: the first views are anchors, the second views of other samples negatives; similarity
    a^T W p of projections after layer norm (Keras' epsilon, 0.001) and tanh; layers=1, norm='none', out=512,
    temperature=1.

    Args:
        names: the two views.
        hidden, out, layers, norm: of the projector, which is not exported.
        negatives: 'global': from the batches of all processes; 'process': from this process's own.
        norm_group: samples over which a batch norm (in the encoder or the projector) normalises in training; None: over
            the batch of all processes, as in SimCLR. Both give on many processes what one process gives.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        names: tuple[str, str] = ("a", "b"),
        hidden: int = 2048,
        out: int = 128,
        layers: int = 2,
        norm: Literal["batch", "none"] = "batch",
        temperature: float = 0.1,
        similarity: Literal["cosine", "bilinear"] = "cosine",
        symmetric: bool = True,
        negatives: Literal["global", "process"] = "global",
        norm_group: int | None = None,
    ) -> None:
        super().__init__(encoder)
        self.views = names
        self.temperature = temperature
        self.symmetric = symmetric
        self.negatives = negatives
        self.projector: nn.Module = Projector(encoder.width, hidden=hidden, out=out, layers=layers, norm=norm)
        self.bilinear: nn.Linear | None = None
        if similarity == "bilinear":
            self.projector = nn.Sequential(self.projector, nn.LayerNorm(out, eps=1e-3), nn.Tanh())
            self.bilinear = nn.Linear(out, out, bias=False)
            nn.init.normal_(self.bilinear.weight, std=0.05)
        group_batch_norms(self, norm_group)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        first, second = (batch.views[name] for name in self.views)
        if len(first) * (world_size() if self.negatives == "global" else 1) < 2:
            raise UserError(
                "A contrastive step needs at least 2 samples, since the others are the negatives: raise the batch size."
            )
        lengths = torch.cat([batch.lengths[name] for name in self.views]) if batch.lengths else None
        pooled = self.encoder(torch.cat([first, second]), lengths=lengths).pooled
        projected = self.projector(pooled).float()  # [2B,out], all first views before all second
        if self.bilinear is None:
            projected = F.normalize(projected, dim=1)
        shared = self.negatives == "global"
        everybody = gather(projected) if shared else projected  # [world*2B,out], the one collective of the step
        size, device, place = len(first), projected.device, rank() if shared else 0
        own = torch.arange(2 * size, device=device) + place * 2 * size  # where this process stands in `everybody`
        partner = own.roll(size)
        if self.symmetric:
            anchors, positives, candidates, ignore = (
                projected,
                projected.roll(size, 0),
                everybody,
                torch.stack([own, partner], 1),
            )
        else:
            anchors, positives = projected.chunk(2)
            candidates = everybody.unflatten(0, (-1, 2, size))[:, 1].flatten(0, 1)  # second views only
            ignore = (torch.arange(size, device=device) + place * size).unsqueeze(1)
        if self.bilinear is not None:
            with torch.autocast(device.type, enabled=False):
                anchors = F.linear(anchors, self.bilinear.weight.float())
        result = info_nce(anchors, positives, candidates, temperature=self.temperature, ignore=ignore)
        return ObjectiveOutput(
            loss=result.loss,
            count=torch.full((), float(len(anchors)), device=device),
            metrics={"accuracy": result.accuracy, "similarity": partner_similarity(*projected.detach().chunk(2))},
        )

    def pictures(self, batch: Batch) -> dict[str, Picture]:
        return view_pictures(self.encoder, batch, self.views)

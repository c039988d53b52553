"""MoCo v2: contrast with a queue of keys that a slowly moving teacher made in earlier steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.distributed import gather, rank
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.batch_norm import group_batch_norms, has_batch_norm
from mmssl.objectives.contrastive import partner_similarity
from mmssl.objectives.heads import Projector
from mmssl.objectives.info_nce import info_nce
from mmssl.objectives.pictures import view_pictures
from mmssl.objectives.teacher import ema_update, make_teacher, rising_momentum
from mmssl.types import Batch, ObjectiveOutput, Picture


class MoCo(Objective):
    """MoCo (He et al. 2019, algorithm 1) with the head of MoCo v2 (Chen et al. 2020).

    Queries come from the first view, keys from the second.

    The keys of a step enter the queue after it, so that no positive is among its own negatives. The teacher is an
    average of the parameters; its batch norms keep running statistics of their own, from the keys they see.

    Batch norm would give the game away if query and key were normalised with the same samples (He et al., section 3.3).
    Both run over groups of `norm_group` samples, and the keys are shuffled over the batch of all processes first, in an
    order that follows from one draw a sample: the same on any number of processes. Encoders without batch norm are not
    shuffled.

    Args:
        names: the two views.
        queue: K, keys kept; a multiple of the global batch.
        momentum: of the teacher, a step.
        last_momentum: what that rises to by the end of the run, along a half cosine; it is constant if None.
        hidden, out: widths of the head, Linear-ReLU-Linear.
        norm_group: samples over which a batch norm of the encoder normalises in training (the paper: 32, the batch of
            one GPU).
        symmetric: each view is query and key in turn; the keys of the second view enter the queue.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        names: tuple[str, str] = ("a", "b"),
        queue: int = 65536,
        momentum: float = 0.999,
        last_momentum: float | None = None,
        temperature: float = 0.2,
        hidden: int = 2048,
        out: int = 128,
        norm_group: int = 32,
        symmetric: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.views = names
        self.momentum = momentum
        self.last_momentum = momentum if last_momentum is None else last_momentum
        self.temperature = temperature
        self.norm_group = norm_group
        self.symmetric = symmetric
        self.shuffles = has_batch_norm(encoder)
        if self.shuffles:
            self.noise["shuffle"] = 1
        group_batch_norms(encoder, norm_group)
        self.projector = Projector(encoder.width, hidden=hidden, out=out, norm="none")
        self.teacher = make_teacher(nn.ModuleDict({"encoder": encoder, "projector": self.projector}))
        # From a generator of its own, since every process must start from the same queue.
        start = torch.randn(queue, out, generator=torch.Generator().manual_seed(0))
        self.register_local_buffer("queue", F.normalize(start, dim=1))
        self.register_local_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._keys: list[Tensor] = []

    def check(self, global_batch: int) -> None:
        size = len(self.queue)
        if size % global_batch:
            nearest = max(round(size / global_batch), 1) * global_batch
            raise UserError(
                f"A queue of {size} keys is not a multiple of the {global_batch} samples of a step over all "
                f"processes: set queue to {nearest}."
            )

    def loss(self, batch: Batch) -> ObjectiveOutput:
        first, second = self.views
        order = self._shuffled_order(batch) if self.shuffles else None
        pairs = [(self._queries(batch, first), self._make_keys(batch, second, order))]  # [B,out] each
        if self.training and torch.is_grad_enabled():
            self._keys.append(pairs[0][1])
        if self.symmetric:
            pairs.append((self._queries(batch, second), self._make_keys(batch, first, order)))
        queries, keys = torch.cat([query for query, _ in pairs]), torch.cat([key for _, key in pairs])
        result = info_nce(queries, keys, self.queue, temperature=self.temperature)
        return ObjectiveOutput(
            loss=result.loss,
            count=torch.full((), float(len(queries)), device=queries.device),
            metrics={"accuracy": result.accuracy, "similarity": partner_similarity(queries.detach(), keys)},
        )

    def _queries(self, batch: Batch, name: str) -> Tensor:
        return F.normalize(self.projector(self.embed(batch, name)).float(), dim=1)

    @torch.no_grad()
    def _make_keys(self, batch: Batch, name: str, order: Tensor | None) -> Tensor:
        """Keys [B,out] of the samples of this process, made on whichever process the shuffle sent them to."""
        view, lengths = batch.views[name], batch.lengths.get(name)
        start, stop = rank() * len(view), (rank() + 1) * len(view)
        if order is not None:
            view = gather(view)[order[start:stop]]
            lengths = None if lengths is None else gather(lengths)[order[start:stop]]
        pooled = self.teacher["encoder"](view, lengths=lengths).pooled
        keys = F.normalize(self.teacher["projector"](pooled).float(), dim=1)
        return keys if order is None else gather(keys)[order.argsort()[start:stop]]

    def _shuffled_order(self, batch: Batch) -> Tensor:
        """int64 [world*B], a permutation of the samples of all processes that each of them derives alike."""
        draws = gather(batch.noise["shuffle"][:, 0])
        if len(draws) <= self.norm_group:
            raise UserError(
                f"Batch norm over groups of {self.norm_group} samples with {len(draws)} samples at once leaves "
                f"queries and keys the same group, which gives the positive away: set norm_group to "
                f"{max(len(draws) // 8, 2)}, or raise the batch size."
            )
        return draws.argsort(stable=True)

    @torch.no_grad()
    def after_step(self, step: int, total: int, applied: Tensor) -> None:
        keys = gather(torch.cat(self._keys))  # the same rows in the same order on every process
        self._keys.clear()
        self.check(len(keys))
        momentum = rising_momentum(step, total, self.momentum, self.last_momentum)
        ema_update(self.teacher["encoder"], self.encoder, momentum, applied)
        ema_update(self.teacher["projector"], self.projector, momentum, applied)
        places = self.pointer + torch.arange(len(keys), device=keys.device)
        self.queue[places] = torch.where(applied, keys, self.queue[places])
        self.pointer.copy_(torch.where(applied, (self.pointer + len(keys)) % len(self.queue), self.pointer))

    def pictures(self, batch: Batch) -> dict[str, Picture]:
        return view_pictures(self.encoder, batch, self.views)

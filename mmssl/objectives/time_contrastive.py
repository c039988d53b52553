"""Time-contrastive networks: frames of one instant attract, those of other instants repel (Sermanet et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from mmssl.distributed import gather, rank
from mmssl.encoders.base import Encoder
from mmssl.encoders.headed import HeadedEncoder, HeadSettings, build_head
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.batch_norm import group_batch_norms
from mmssl.objectives.windows import NO_TERMS
from mmssl.types import Batch, ObjectiveOutput, Picture

ROUNDING = 1e-3
"""Seconds by which float32 times of long videos may be off."""

# -------------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Loss:
    loss: Tensor
    """Scalar fp32, mean over `count` terms; 0 where there is none."""
    count: Tensor
    """Scalar fp32."""
    active: Tensor
    """Detached scalar: share of the terms that still push (triplets inside the margin; anchors, for n-pairs, to whom
    some negative is more similar than their positives on average)."""


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 of a [...,A,D] and b [...,C,D]: fp32 [...,A,C]."""
    lengths = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * a @ b.transpose(-1, -2)).clamp_min(0)


def semihard_triplets(anchors: Tensor, others: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Loss:
    """Mean over positive pairs (a,p) of max(0, margin + D_ap - D_an), always in fp32; D is the squared L2 distance, and
    n the negative with the smallest D_an > D_ap, else the one with the largest D_an.

    Vectors are taken as they are: normalise them first. Sources: Schroff et al. 2015 (arXiv:1503.03832);
    official TCN code, svtcn_loss.py.

    Args:
        anchors: [...,A,D]. others: [...,C,D].
        positive, negative: bool [...,A,C]; pairs that are neither take no part, nor do anchors without a negative.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        distance = squared_distances(anchors.float(), others.float())
        far = distance.masked_fill(~negative, torch.inf).sort(-1).values  # negatives first, nearest first
        found = negative.sum(-1, keepdim=True)
        place = torch.searchsorted(far.detach().contiguous(), distance.detach().contiguous(), right=True)
        chosen = far.gather(-1, torch.minimum(place, found - 1).clamp_min(0))  # [...,A,C], one for each positive
        valid = positive & (found > 0)
        terms = torch.where(valid, (margin + distance - chosen).relu(), 0.0)
        count = valid.sum().float()
        active = ((terms.detach() > 0).sum() / count.clamp_min(1)).float()
        return Loss(terms.sum() / count.clamp_min(1), count, active)


def n_pairs(anchors: Tensor, others: Tensor, positive: Tensor, negative: Tensor, *, l2: float) -> Loss:
    """Mean over anchors of the cross-entropy between softmax_j(a . o_j) over positives and negatives, and the even
    share of its positives; plus l2/4 (mean |a|^2 + mean |o|^2). Always in fp32; vectors are not normalised.

    Sources: Sohn 2016 (improved deep metric learning with multi-class N-pair loss objective); penalty and
    even shares as npairs_loss of TensorFlow's metric_learning, which the official TCN code calls.

    Args:
        anchors: [...,A,D]. others: [...,C,D].
        positive, negative: bool [...,A,C]; pairs that are neither take no part, nor do anchors without both.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        a, o = anchors.float(), others.float()
        similarity = a @ o.transpose(-1, -2)
        out = torch.finfo(similarity.dtype).min
        log_share = similarity.masked_fill(~(positive | negative), out).log_softmax(-1)
        own = torch.where(positive, log_share, 0.0).sum(-1) / positive.sum(-1).clamp_min(1)
        valid = positive.any(-1) & negative.any(-1)
        count = valid.sum().float()
        loss = torch.where(valid, -own, 0.0).sum() / count.clamp_min(1)
        worst = log_share.detach().masked_fill(~negative, -torch.inf).amax(-1)
        active = ((valid & (worst >= own.detach())).sum() / count.clamp_min(1)).float()
        penalty = 0.25 * l2 * (a.square().sum(-1).mean() + o.square().sum(-1).mean())
        return Loss(loss + penalty, count, active)


# ------------------------------------------------------------------------------------------------------ who is what


@dataclass(frozen=True)
class Frames:
    """What is known of frames, each [...,A]: it decides who attracts whom."""

    sequence: Tensor
    """int64: row of the video, or of the synchronised cameras."""
    sample: Tensor
    """int64: which sample of the global batch."""
    camera: Tensor
    """int64: place of the view among the objective's views."""
    place: Tensor
    """int64: place of the frame in its view."""
    time: Tensor
    """float32: seconds, on the clock of the sequence."""

    def each(self, act: Callable[[Tensor], Tensor]) -> Frames:
        return Frames(*(act(getattr(self, field.name)) for field in fields(self)))


def _pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.unsqueeze(-1), b.unsqueeze(-2)


def same(a: Tensor, b: Tensor) -> Tensor:
    """bool [...,A,C]."""
    x, y = _pairs(a, b)
    return x == y


def apart(a: Frames, b: Frames) -> Tensor:
    """|t_a - t_b|, seconds [...,A,C]."""
    x, y = _pairs(a.time, b.time)
    return (x - y).abs()


def views_of_one_instant(a: Frames, b: Frames, gap: float) -> tuple[Tensor, Tensor]:
    """Multi-view: positive is the other camera's frame of the same instant; negative every frame, of any camera, of
    another sequence or more than `gap` seconds away. So another sample of the same sequence never gives the same
    instant as a negative. bool [...,A,C] twice."""
    positive = same(a.sample, b.sample) & same(a.place, b.place) & ~same(a.camera, b.camera)
    negative = ~same(a.sequence, b.sequence) | (apart(a, b) > gap + ROUNDING)
    return positive, negative & ~positive


def neighbours_in_time(a: Frames, b: Frames, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Single view: positive are other frames of the sequence at most `near` seconds away; negative those more than
    `far` seconds away, and every frame of another sequence. bool [...,A,C] twice."""
    sequence, seconds = same(a.sequence, b.sequence), apart(a, b)
    itself = same(a.sample, b.sample) & same(a.place, b.place)
    positive = sequence & (seconds <= near + ROUNDING) & ~itself
    return positive, ~sequence | (seconds > far + ROUNDING)


# ----------------------------------------------------------------------------------------------------------- objective


class TimeContrastive(Objective):
    """TCN on synchronised cameras (two views, [B,n,3,H,W], of the same n instants) or on windows of one video (one
    view). The encoder, any one of images, sees each frame alone; targets "time" float32 [B,n] are seconds on the clock
    of the sequence, and `Batch.index` is the sequence.

    Published values: margin 0.2, embeddings of 32 numbers, positives within 0.2 s and negatives beyond 0.4 s of the
    single view (official code, configs/tcn_default.yml and svtcn_loss.py: 6 and 12 frames at 29 frames/s). What else
    stands here (gap, the head on token encoders, negatives from one sample by default) is our choice.

    Args:
        names: two views for cameras, one for windows.
        loss: 'triplet' (semi-hard, embeddings of length one) or 'npairs' (free length, with penalty `l2`).
        negatives: 'sample': other instants of the same sample; 'batch': also those of the other samples of the global
            batch, whatever their sequence.
        gap: multi-view: seconds within which another instant is no negative.
        near, far: single view, seconds; see `neighbours_in_time`.
        norm_group: frames over which batch norms normalise in training; None: all of the step, on all processes.

    Raises:
        UserError: another number of views, an encoder of other media, or `far` below `near`.
    """

    targets = ("time",)

    def __init__(
        self,
        encoder: Encoder,
        head: HeadSettings,
        *,
        names: tuple[str, ...] = ("a", "b"),
        loss: Literal["triplet", "npairs"] = "triplet",
        margin: float = 0.2,
        l2: float = 0.002,
        negatives: Literal["sample", "batch"] = "sample",
        gap: float = 0.2,
        near: float = 0.2,
        far: float = 0.4,
        norm_group: int | None = None,
    ) -> None:
        super().__init__(encoder)
        if len(names) not in (1, 2):
            raise UserError(f"TimeContrastive compares 1 or 2 views, and got {len(names)}: {', '.join(names)}.")
        if encoder.spec.modality != "image":
            raise UserError(
                f"TimeContrastive encodes single frames, and this encoder takes {encoder.spec.modality}: give one of "
                "images."
            )
        if far < near or near <= 0 or gap < 0 or margin <= 0:
            raise UserError(
                f"Positives within {near:g} s, negatives beyond {far:g} s, gap {gap:g} s and margin {margin:g} make no "
                "sense together: near and margin are above 0, gap is 0 or more, and far is at least near."
            )
        self.views, self.kind, self.margin, self.l2 = names, loss, margin, l2
        self.negatives, self.gap, self.near, self.far = negatives, gap, near, far
        self.head = build_head(encoder, replace(head, normalise=loss == "triplet"))
        group_batch_norms(self, norm_group)

    def embed(self, batch: Batch, name: str) -> Tensor:
        """The embeddings [B,out] of images, or of the first frames of clips: what collapses if anything does."""
        view = batch.views[name]
        return self.embedding(view if view.ndim == 4 else view[:, 0])

    def embedding(self, images: Tensor) -> Tensor:
        """[N,3,H,W] -> fp32 [N,out]."""
        embedding: Tensor = self.head(self.encoder(images))
        return embedding

    def exports(self) -> dict[str, Encoder]:
        """The trunk, and the trunk with its head, which is what alignment is measured on."""
        return {"encoder": self.encoder, "embedding": HeadedEncoder(self.encoder, self.head)}

    def loss(self, batch: Batch) -> ObjectiveOutput:
        embeddings, frames = self._embed_all(batch)
        anchors, others, positive, negative = self._pairs(embeddings, frames)
        if self.kind == "triplet":
            result = semihard_triplets(anchors, others, positive, negative, margin=self.margin)
        else:
            result = n_pairs(anchors, others, positive, negative, l2=self.l2)
        metrics = {"active": result.active, "accuracy": retrieval(anchors, others, positive, negative)}
        return ObjectiveOutput(result.loss, result.count.clamp_min(NO_TERMS), metrics)

    def _embed_all(self, batch: Batch) -> tuple[Tensor, Frames]:
        """Embeddings [B,v*n,D] of all frames of each sample, view after view, and what is known of them [B,v*n]."""
        clips = torch.stack([batch.views[name] for name in self.views], 1)  # [B,v,n,3,H,W]
        B, v, n = clips.shape[:3]
        embeddings = self.embedding(clips.flatten(0, 2)).unflatten(0, (B, v * n))
        device = embeddings.device
        one = torch.ones(B, v, n, dtype=torch.int64, device=device)
        frames = Frames(
            sequence=batch.index.to(device).view(B, 1, 1) * one,
            sample=(rank() * B + torch.arange(B, device=device)).view(B, 1, 1) * one,
            camera=torch.arange(v, device=device).view(1, v, 1) * one,
            place=torch.arange(n, device=device) * one,
            time=batch.targets["time"].to(device).view(B, 1, n) * one,
        )
        return embeddings, frames.each(lambda x: x.flatten(1))

    def _pairs(self, embeddings: Tensor, frames: Frames) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Anchors [G,A,D], others [G,C,D] and who attracts and repels whom [G,A,C]; G groups know nothing of each other
        (B samples, or 1 for the whole batch)."""
        half = embeddings.shape[1] // 2
        first = slice(half) if len(self.views) == 2 and self.kind == "npairs" else slice(None)
        second = slice(half, None) if len(self.views) == 2 and self.kind == "npairs" else slice(None)
        # N-pairs compares cameras: anchors of the first, the rest of the second (as the official code does). Triplets
        # take negatives of the anchor's own camera too: they look most alike, and so teach what differs.
        anchors, others = embeddings[:, first], embeddings[:, second]
        a, b = frames.each(lambda x: x[:, first]), frames.each(lambda x: x[:, second])
        if self.negatives == "batch":
            anchors, others = anchors.flatten(0, 1).unsqueeze(0), gather(others.flatten(0, 1)).unsqueeze(0)
            a = a.each(lambda x: x.flatten().unsqueeze(0))
            b = b.each(lambda x: gather(x.flatten()).unsqueeze(0))
        if len(self.views) == 2:
            positive, negative = views_of_one_instant(a, b, self.gap)
        else:
            positive, negative = neighbours_in_time(a, b, self.near, self.far)
        return anchors, others, positive, negative

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """Instants of the first sample: the frame, one that should be near, and the nearest of those that should be
        far."""
        embeddings, frames = self._embed_all(batch)
        one, known = embeddings[:1], frames.each(lambda x: x[:1])
        if len(self.views) == 2:
            positive, negative = views_of_one_instant(known, known, self.gap)
        else:
            positive, negative = neighbours_in_time(known, known, self.near, self.far)
        distance = squared_distances(one, one)
        near = positive.float().argmax(-1)[0].tolist()
        far = distance.masked_fill(~negative, torch.inf).argmin(-1)[0].tolist()
        images = torch.cat([batch.views[name][0] for name in self.views]).cpu()  # [v*n,3,H,W]
        if images.is_floating_point():
            images = images.mul(255).round().to(torch.uint8)
        rows = tuple(
            (images[i], images[near[i]], images[far[i]]) for i in range(min(6, batch.targets["time"].shape[1]))
        )
        return {"triplets": Picture("image", ("frame", "same instant", "nearest other instant"), rows)}


def retrieval(anchors: Tensor, others: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Detached scalar: share of the anchors, of those that have a positive and a negative, whose nearest other is a
    positive. Shapes as for the losses."""
    with torch.autocast(anchors.device.type, enabled=False):
        distance = squared_distances(anchors.detach().float(), others.detach().float())
    near = distance.masked_fill(~positive, torch.inf).amin(-1)
    far = distance.masked_fill(~negative, torch.inf).amin(-1)
    valid = positive.any(-1) & negative.any(-1)
    return ((near < far) & valid).sum() / valid.sum().clamp_min(1)

"""Are these three in order? Temporal order verification (Misra et al. 2016, Shuffle and Learn, arXiv:1603.08561,
section 3) of frames, of clips, and of segments of sound."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.adapters.specs import SoundSpec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.batch_norm import group_batch_norms
from mmssl.objectives.heads import Projector
from mmssl.objectives.pictures import view_pictures
from mmssl.objectives.windows import NO_TERMS, equalise, mean_over, thumbnails
from mmssl.types import Batch, ObjectiveOutput, Picture

A, B, C, D, E = range(5)
TUPLES = ((B, C, D), (D, C, B), (B, A, D), (D, A, B), (B, E, D), (D, E, B))
"""What is asked of each five-tuple a < b < c < d < e: two tuples in order, then four that are not. Only the middle
differs; each stands beside its reversal."""
IN_ORDER = 2
"""How many of them, from the first on, are in order."""
DRAWS = 4
"""A candidate: the pair (b,d), then a, c and e."""


def admissible_pairs(window: int, tau_max: int, tau_min: int) -> Tensor:
    """int64 [P,2]: all places (b,d) that leave room for a, c and e in a window; sorted by d."""
    return torch.tensor(
        [(b, d) for d in range(tau_min + 2, window - tau_min) for b in range(max(tau_min, d - tau_max), d - 1)],
        dtype=torch.int64,
    ).view(-1, 2)


def draw_tuples(noise: Tensor, real: Tensor, pairs: Tensor, tau_min: int) -> Tensor:
    """Candidates a < b < c < d < e with b - a >= tau_min and e - d >= tau_min, from uniform draws.

    (b,d) is uniform over the pairs that fit into the real part of a window, then a, c and e are uniform over what they
    leave.

    Args:
        noise: [B,K,4] in [0,1).
        real: int64 [B], places of each window that are no padding. Where nothing fits the candidates mean nothing.
        pairs: of `admissible_pairs`.

    Returns:
        int64 [B,K,5].
    """
    last = (real - 1)[:, None]

    def pick(draw: Tensor, count: Tensor) -> Tensor:
        return torch.minimum((draw * count).long(), count - 1).clamp_min(0)

    fitting = torch.searchsorted(pairs[:, 1].contiguous(), last - tau_min, right=True)  # [B,1]
    b, d = pairs[pick(noise[..., 0], fitting)].unbind(-1)
    a = pick(noise[..., 1], b - tau_min + 1)
    c = b + 1 + pick(noise[..., 2], d - b - 1)
    e = d + tau_min + pick(noise[..., 3], last - d - tau_min + 1)
    return torch.stack([a, b, c, d, e], -1)


def likeness(looks: Tensor, tuples: Tensor) -> Tensor:
    """[B,K]: mean squared difference of c to a or to e, whichever is smaller. looks [B,T,F], tuples [B,K,5]."""
    rows = torch.arange(len(looks), device=looks.device)[:, None]
    middle, before, after = (looks[rows, tuples[..., place]] for place in (C, A, E))
    return torch.minimum((middle - before).square().mean(-1), (middle - after).square().mean(-1))


def order_loss(logits: Tensor, negative_share: float) -> Tensor:
    """[B]: expected cross-entropy of one tuple a window, not in order with probability `negative_share`, either
    negative and either direction equally likely. logits [B,6,2] of TUPLES, class 1 = in order."""
    negatives = len(TUPLES) - IN_ORDER
    target = torch.tensor([1] * IN_ORDER + [0] * negatives, device=logits.device)
    weight = torch.tensor(
        [(1 - negative_share) / IN_ORDER] * IN_ORDER + [negative_share / negatives] * negatives, device=logits.device
    )
    with torch.autocast(logits.device.type, enabled=False):
        terms = F.cross_entropy(logits.float().flatten(0, 1), target.repeat(len(logits)), reduction="none")
        return (terms.view(-1, len(TUPLES)) * weight).sum(1)


def pairwise_auc(positive: Tensor, negative: Tensor, valid: Tensor) -> Tensor:
    """Share of pairs of a positive and a negative of valid [B] windows whose scores [B,p] and [B,n] stand in the right
    order, ties counting half: the area under the ROC curve. 0.5 where there is no pair."""
    above = positive.flatten()[:, None] - negative.flatten()
    right = (above > 0).float() + 0.5 * (above == 0).float()
    weight = valid.float()
    weight = weight.repeat_interleave(positive.shape[1])[:, None] * weight.repeat_interleave(negative.shape[1])
    return torch.where(valid.any(), (right * weight).sum() / weight.sum().clamp_min(1), 0.5)


def balanced_accuracy(score: Tensor, valid: Tensor, negative_share: float) -> Tensor:
    """Mean recall of both classes over valid [B] windows; 0.5 where there is none. score [B,6]: log odds of 'in order'
    of TUPLES, cut where they equal those of the share that the classifier was trained at: at 0 a classifier that knows
    little of three negatives in four never says 'in order', however well it ranks."""
    above = score > math.log((1 - negative_share) / negative_share)
    recalls = [mean_over(hit.float(), valid, 0.5) for hit in (above[:, :IN_ORDER], ~above[:, IN_ORDER:])]
    return torch.stack(recalls).mean()


class TemporalOrder(Objective):
    """Shuffle and Learn (Misra et al. 2016): tell (b,c,d) from (b,a,d) and (b,e,d), places a < b < c < d < e of one
    window, by a siamese encoder, concatenated features and a classifier.

    The view is a window of `window` places: frames uint8 [B,T,3,H,W] for an encoder of images, T clips one after the
    other [B,T*frames,3,H,W] for one of clips, and for one of sound a waveform [B,S], cut into T equal parts of which
    each shows its beginning (what is left over keeps the segments apart). One crop serves a whole window, so that
    positions and frame borders say nothing.

    The five places are encoded once, and all three questions with both directions (TUPLES) are asked of them; the loss
    is their expectation over classes at `negative_share`, so the share is exact and nothing more has to be drawn. The
    paper draws one tuple at a time, which is the same on average.

    Of `candidates` five-tuples the first is taken whose c is not alike a or e; a window without one weighs nothing.
    Where the light flickers alike frames look different: hence `equalise`.

    A linear head (the paper's) adds up what three frames say one by one and cannot compare them; `hidden` can.

    Args:
        window: T.
        tau_max: largest distance from b to d.
        tau_min: smallest distance from a to b and from d to e.
        negative_share: of the tuples; the paper found .75 best.
        alike: mean squared difference below which two places look alike: of RGB in [0,1] on frames of 16x16 pixels,
            or of log10 energy in eighths of a segment. -1 turns it off. Our choice: key frames make up to 2e-4 of a
            still picture, and fish that swim through half a window 2e-3 to 7e-3.
        equalise: give all frames of a window the same mean and contrast (frames only). Ours, against flicker.
        hidden: width of a layer with ReLU between features and classifier; the paper has none.
        norm_group: frames over which a batch norm of the encoder normalises in training; None: over all processes.

    Raises:
        UserError: a window too short for its gaps.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        name: str = "window",
        window: int,
        tau_max: int,
        tau_min: int,
        negative_share: float = 0.75,
        candidates: int = 8,
        alike: float = 1e-3,
        equalise: bool = True,
        hidden: int | None = None,
        norm_group: int | None = None,
    ) -> None:
        super().__init__(encoder)
        if tau_min < 1 or tau_max < 2 or window < 2 * tau_min + 3:
            raise UserError(
                f"Five places in order need a window of 2 tau_min + 3 = {2 * max(tau_min, 1) + 3} or more, tau_min of "
                f"1 or more and tau_max of 2 or more; they are {window}, {tau_min} and {tau_max}: change one of them."
            )
        if not 0 < negative_share < 1:
            raise UserError(
                f"negative_share is {negative_share}: both classes are needed, give a share between 0 and 1."
            )
        self.views = (name,)
        self.noise["order"] = DRAWS * candidates
        self.window, self.tau_min, self.negative_share = window, tau_min, negative_share
        self.alike, self.equalise = alike, equalise
        self.pairs: Tensor
        self.register_buffer("pairs", admissible_pairs(window, tau_max, tau_min), persistent=False)
        layers = 1 if hidden is None else 2
        self.head = Projector(3 * encoder.width, hidden=hidden or 0, out=2, layers=layers, norm="none")
        group_batch_norms(encoder, norm_group)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        places, valid = self.five_places(batch)
        features = self.encoder(places.flatten(0, 1)).pooled.unflatten(0, (-1, 5))  # [B,5,D]
        tuples = features[:, torch.tensor(TUPLES, device=features.device)].flatten(2)  # [B,6,3D]
        logits = self.head(tuples).float()
        terms = order_loss(logits, self.negative_share)
        count = valid.sum().float().clamp_min(NO_TERMS)
        score = (logits[..., 1] - logits[..., 0]).detach()
        return ObjectiveOutput(
            loss=(terms * valid).sum() / count,
            count=count,
            metrics={
                "balanced_accuracy": balanced_accuracy(score, valid, self.negative_share),
                "auc": pairwise_auc(score[:, :IN_ORDER], score[:, IN_ORDER:], valid),
                "usable": valid.float().mean(),
            },
        )

    def five_places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the encoder is shown of the places a to e, [B,5,...], and which windows have such places, bool [B]."""
        view = batch.views[self.views[0]]
        places = self._places(view)
        real = torch.full((len(view),), self.window, device=view.device)
        if self.views[0] in batch.lengths:
            real = batch.lengths[self.views[0]] // (view.shape[1] // self.window)
        noise = batch.noise["order"].unflatten(1, (-1, DRAWS))
        candidates = draw_tuples(noise, real, self.pairs, self.tau_min)
        different = likeness(self._looks(places), candidates) > self.alike
        chosen = different.float().argmax(1)  # the first that is
        rows = torch.arange(len(view), device=view.device)
        found = places[rows[:, None], candidates[rows, chosen]]
        if self.equalise and view.ndim > 2:
            flat = equalise(found if found.ndim == 5 else found.flatten(1, 2))
            found = flat.view(found.shape)
        return found, different.any(1) & (real >= 2 * self.tau_min + 3)

    def _places(self, view: Tensor) -> Tensor:
        """A window as [B,T,...], each place as the encoder takes it."""
        spec = self.encoder.spec
        size = view.shape[1] // self.window
        wanted = spec.samples if isinstance(spec, SoundSpec) else spec.frames if isinstance(spec, VideoSpec) else 1
        if size * self.window != view.shape[1] or size < wanted or (size > wanted and view.ndim > 2):
            raise UserError(
                f"A window of {view.shape[1]} frames or samples does not make {self.window} places of {wanted}: give "
                f"views of {self.window * wanted}."
            )
        if isinstance(spec, SoundSpec):
            return view.unflatten(1, (self.window, size))[..., :wanted]
        return view.unflatten(1, (self.window, size)) if isinstance(spec, VideoSpec) else view

    def _looks(self, places: Tensor) -> Tensor:
        """[B,T,F]: by what places are told from each other."""
        if places.ndim == 3:
            parts = places[..., : places.shape[-1] // 8 * 8].unflatten(2, (8, -1))
            return parts.square().mean(-1).clamp_min(1e-10).log10()
        frames = places if places.ndim == 5 else places.flatten(1, 2)
        small = thumbnails(frames)
        small = equalise(small) if self.equalise else small
        return small.unflatten(1, (self.window, -1)).flatten(2)

    def embed(self, batch: Batch, name: str) -> Tensor:
        """Of a window, the features of its middle place."""
        if name != self.views[0]:
            return super().embed(batch, name)
        return self.encoder(self._places(batch.views[name])[:, self.window // 2]).pooled

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """The five places that the questions are made of."""
        places, _ = self.five_places(batch)
        views = dict(zip("abcde", places.unbind(1), strict=True))
        shown = view_pictures(self.encoder, Batch(views, batch.index), tuple(views))
        return {"places": shown["views"]} if shown else {}

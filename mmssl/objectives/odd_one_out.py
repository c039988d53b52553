"""Which clip has its frames in a wrong order? Odd-one-out networks (Fernando et al. 2017, O3N, arXiv:1611.06646)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.specs import VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.batch_norm import group_batch_norms
from mmssl.objectives.pictures import SAMPLES, view_pictures
from mmssl.objectives.windows import NO_TERMS, equalise, mean_over, thumbnails
from mmssl.types import Batch, ObjectiveOutput, Picture

Sampling = Literal["consecutive", "random"]
Fusion = Literal["difference", "concat"]


def draw_clips(noise: Tensor, real: Tensor, frames: int, sampling: Sampling) -> Tensor:
    """Frames of each clip in their order, int64 [B,N,frames].

    'consecutive': a run of frames that begins anywhere in the real part of the window; 'random': any frames of it.

    Args:
        noise: [B,N,T] in [0,1); 'consecutive' uses the first draw of each clip.
        real: int64 [B], frames of each window that are no padding; below `frames` the clips mean nothing.
    """
    if sampling == "consecutive":
        starts = torch.minimum((noise[..., 0] * (real[:, None] - frames + 1)).long(), real[:, None] - frames)
        return starts.clamp_min(0)[..., None] + torch.arange(frames, device=noise.device)
    padding = torch.arange(noise.shape[-1], device=noise.device) >= real[:, None, None]
    return noise.masked_fill(padding, 2.0).argsort(dim=-1, stable=True)[..., :frames].sort(-1).values


def wrong_order(noise: Tensor) -> Tensor:
    """A permutation of W frames that is never the identity, int64 [B,W], from draws [B,W]; where the draws are in order
    the first frame goes last, which is that permutation's one chance in W! more than the others have."""
    order = noise.argsort(dim=-1, stable=True)
    right = torch.arange(noise.shape[-1], device=noise.device)
    return torch.where((order == right).all(-1, keepdim=True), order.roll(-1, -1), order)


def sum_of_differences(features: Tensor) -> Tensor:
    """o_i = sum over j of (v_i - v_j), [B,N,D] -> [B,N,D]: permuted as the clips are, zero where all are equal."""
    return features * features.shape[1] - features.sum(1, keepdim=True)


class OddOneOut(Objective):
    """O3N (Fernando et al. 2017): of `clips` clips of one window all show their frames in order but one, at a uniform
    place among them; say which.

    The view is a window uint8 [B,T,3,H,W]; clips have the W = spec.frames frames that the encoder takes, and may
    overlap. A window little longer than a clip constrains them to one moment, a long one takes them from anywhere in
    it. How a clip becomes pixels (stack of differences, sum of differences, plain frames) is the encoder's own matter:
    `VideoSpec.stack`, or any encoder of clips.

    Features are projected to `width` with a ReLU, fused, and scored by a layer with ReLU and a linear one.
    'difference': sums of differences, one score a clip by the same layers, so that nothing depends on the order of
    clips. 'concat': all clips side by side. Beyond the question, its fusions and its encodings the paper's values are
    not known to us: widths, counts and the shape of this classifier are our choice.

    A window in which nothing moves has no order, and weighs nothing: one whose neighbouring frames differ by less than
    `alike` on average (mean square of RGB in [0,1] on frames of 16x16 pixels; -1 turns it off; key frames make up to
    4e-5 of a still picture, the slowest of the sample films' fish 5e-5). Light that flickers is taken away first
    (`equalise`: all frames of a window get the same mean and contrast), or the beat alone would show which clip is out
    of order. Both are ours.

    Args:
        window: T.
        clips: N + 1.
        sampling: see `draw_clips`.
        norm_group: clips over which a batch norm of the encoder normalises in training; None: over all processes.

    Raises:
        UserError: the encoder takes no clips, or there is nothing to choose from.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        name: str = "window",
        window: int,
        clips: int = 6,
        sampling: Sampling = "consecutive",
        fusion: Fusion = "difference",
        width: int = 128,
        alike: float = 5e-5,
        equalise: bool = True,
        norm_group: int | None = None,
    ) -> None:
        super().__init__(encoder)
        spec = encoder.spec
        if not isinstance(spec, VideoSpec):
            raise UserError(f"OddOneOut shows clips, and this encoder takes {spec.modality}: choose one for video.")
        if clips < 3 or spec.frames < 2 or window < spec.frames:
            raise UserError(
                f"Odd one out needs 3 clips or more, of 2 frames or more, in a window of no fewer; it has {clips} of "
                f"{spec.frames} in {window}: change one of them."
            )
        self.views = (name,)
        self.window, self.clips, self.frames = window, clips, spec.frames
        self.sampling, self.fusion = sampling, fusion
        self.alike, self.equalise = alike, equalise
        self.noise["clips"] = clips * (1 if sampling == "consecutive" else window)
        self.noise["wrong_order"] = spec.frames
        self.noise["odd"] = 1
        self.project = nn.Sequential(nn.Linear(encoder.width, width), nn.ReLU(inplace=True))
        fan_in, out = (width, 1) if fusion == "difference" else (clips * width, clips)
        self.score = nn.Sequential(nn.Linear(fan_in, width), nn.ReLU(inplace=True), nn.Linear(width, out))
        group_batch_norms(encoder, norm_group)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        clips, odd, valid = self.question(batch)
        logits = self.answer(self.encoder(clips.flatten(0, 1)).pooled.unflatten(0, (-1, self.clips)))
        with torch.autocast(logits.device.type, enabled=False):
            terms = F.cross_entropy(logits.float(), odd, reduction="none")
        count = valid.sum().float().clamp_min(NO_TERMS)
        hit = (logits.detach().argmax(1) == odd).float()
        return ObjectiveOutput(
            loss=(terms * valid).sum() / count,
            count=count,
            metrics={"accuracy": mean_over(hit, valid, 1 / self.clips), "usable": valid.float().mean()},
        )

    def answer(self, features: Tensor) -> Tensor:
        """Scores [B,clips] of features [B,clips,D]."""
        features = self.project(features)
        if self.fusion == "difference":
            return self.score(sum_of_differences(features)).squeeze(-1)
        return self.score(features.flatten(1))

    def question(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Clips [B,clips,W,3,H,W], which one is odd, int64 [B], and which windows can be asked about, bool [B]."""
        view = batch.views[self.views[0]]
        if view.ndim != 5 or view.shape[1] != self.window:
            raise UserError(f"A window of {view.shape[1]} frames came where {self.window} were expected: match them.")
        real = torch.full((len(view),), self.window, device=view.device)
        real = batch.lengths.get(self.views[0], real)
        places = draw_clips(batch.noise["clips"].unflatten(1, (self.clips, -1)), real, self.frames, self.sampling)
        odd = torch.minimum((batch.noise["odd"][:, 0] * self.clips).long(), real.new_tensor(self.clips - 1))
        rows = torch.arange(len(view), device=view.device)
        places[rows, odd] = places[rows, odd].gather(1, wrong_order(batch.noise["wrong_order"]))
        shown = equalise(view) if self.equalise else view
        return shown[rows[:, None, None], places], odd, self._moves(view, real) & (real >= self.frames)

    def _moves(self, view: Tensor, real: Tensor) -> Tensor:
        small = thumbnails(view)
        small = equalise(small) if self.equalise else small
        steps = (small[:, 1:] - small[:, :-1]).square().mean((2, 3, 4))  # [B,T-1]
        inside = torch.arange(1, self.window, device=view.device) < real[:, None]
        return (steps * inside).sum(1) / inside.sum(1).clamp_min(1) > self.alike

    def embed(self, batch: Batch, name: str) -> Tensor:
        """Of a window, the features of the clip that it begins with."""
        if name != self.views[0]:
            return super().embed(batch, name)
        return self.encoder(batch.views[name][:, : self.frames]).pooled

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """The odd clip beside one that is in order."""
        clips, odd, _ = self.question(batch)
        rows = torch.arange(len(odd), device=odd.device)
        views = {"odd": clips[rows, odd][:SAMPLES], "in order": clips[rows, (odd + 1) % self.clips][:SAMPLES]}
        shown = view_pictures(self.encoder, Batch(views, batch.index[:SAMPLES]), tuple(views))
        return {"odd_one_out": shown["views"]} if shown else {}

"""Colour a grey frame by pointing at coloured ones: tracking emerges (Vondrick et al. 2018, arXiv:1806.09594)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.adapters.colour import lab_to_rgb, rgb_to_lab
from mmssl.encoders.base import Encoder
from mmssl.encoders.dense import DenseEncoder
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.batch_norm import group_batch_norms
from mmssl.objectives.pictures import SAMPLES
from mmssl.targets.codebook import Codebook
from mmssl.targets.kmeans import assign, fit_stream
from mmssl.types import Batch, ObjectiveOutput, Picture

CELLS = 256
"""Cells of a clip that the colours are fitted on, drawn at random: neighbours say the same."""


def cell_colours(clip: Tensor, stride: int) -> Tensor:
    """Mean a and b of CIE Lab of each cell of stride x stride pixels: fp32 [B,T,N,2] of clips [B,T,3,H,W]."""
    ab = rgb_to_lab(clip)[:, :, 1:].flatten(0, 1)
    cells = F.avg_pool2d(ab, stride).flatten(2).transpose(1, 2)
    return cells.unflatten(0, clip.shape[:2])


def pointing(target: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits fp32 [B,N,M] of how much each target place [B,N,C] points at each reference place [B,M,C]: inner products
    over the temperature (section 3.1, equation 2), not of unit vectors."""
    with torch.autocast(target.device.type, enabled=False):
        return target.float() @ reference.float().transpose(1, 2) / temperature


def mixture_nll(logits: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """-log sum_j A_ij [c_j = c_i] with A = softmax(logits): the negative log-likelihood of the target's colour under
    the mixture that pointing copies. The mixture is a distribution already: a softmax over it would be wrong.

    Computed as a difference of two log-sum-exps, which no small A can underflow. A place whose colour no reference has
    cannot be pointed at: it counts 0 (in log(mixture + eps) it would be a constant without a gradient).

    Args:
        logits: [B,N,M]. reference: int64 [B,M] colour classes. target: int64 [B,N].

    Returns:
        fp32 [B,N].
    """
    same = reference.unsqueeze(1) == target.unsqueeze(2)
    absent = ~same.any(2, keepdim=True)
    matching = logits.masked_fill(~(same | absent), -torch.inf)
    return logits.logsumexp(2) - matching.logsumexp(2)


class Colourisation(Objective):
    """Video colourisation: the encoder sees the lightness of all frames of a clip; every place of the last frame points
    softly at all places of the frames before it, and the mixture of their colour classes must hold its own.

    Colour classes are clusters of the mean (a, b) of a cell (averaged first, then quantised: our choice), fitted on the
    data before the first step. Batch norm runs over the frames of all processes (our choice).

    Metrics beside the loss: `uniform_loss`, that of pointing everywhere alike; `accuracy` of the likeliest class, and
    beside it `majority`, that of the references' most frequent class, and `same_place`, that of copying the same place
    of the last reference; `absent`, the share of places whose class no reference has.

    Args:
        encoder: sees lightness only.
        clusters: colour classes.
        temperature: of pointing.
        fit_samples: clips that the classes are fitted on.

    Raises:
        UserError: an encoder without embeddings of places, one that sees colour, or a clip that cannot be used.
    """

    views = ("clip",)
    codebook = "colours"
    centroids: Tensor

    def __init__(
        self, encoder: Encoder, *, clusters: int = 16, temperature: float = 1.0, fit_samples: int = 2048
    ) -> None:
        super().__init__(encoder)
        if not isinstance(encoder, DenseEncoder):
            raise UserError(f"Colourisation points from place to place, which {type(encoder).__name__} does not embed.")
        spec, stride = encoder.spec, encoder.stride
        if spec.colour != "lightness":
            raise UserError(f"An encoder that sees {spec.colour} has nothing to learn from: set colour='lightness'.")
        if spec.frames < 2 or spec.size % stride:
            raise UserError(
                f"Clips of {spec.frames} frames of {spec.size} pixels: give 2 frames or more (the last is the target), "
                f"and a size that is a multiple of {stride}, the pixels a place."
            )
        if clusters < 2 or temperature <= 0:
            raise UserError(f"{clusters} colours at a temperature of {temperature}: give 2 or more, and one above 0.")
        self.stride = stride
        self.temperature = temperature
        self.fit_samples = fit_samples
        # Not saved: the run's codebook is the one place where they are kept.
        self.register_buffer("centroids", torch.zeros(clusters, 2), persistent=False)
        group_batch_norms(self, None)

    def fit(self, batches: Iterator[Batch]) -> Codebook:
        """Colour classes from random cells of all frames. Raises UserError where there are too few cells."""
        generator: torch.Generator | None = None

        def colours() -> Iterator[Tensor]:
            nonlocal generator
            for batch in batches:
                cells = cell_colours(batch.views["clip"], self.stride).flatten(1, 2)
                if generator is None:
                    generator = torch.Generator(cells.device).manual_seed(0)
                drawn = torch.rand(cells.shape[:2], generator=generator, device=cells.device).argsort(1)[:, :CELLS]
                yield cells.gather(1, drawn.unsqueeze(2).expand(-1, -1, 2)).flatten(0, 1)

        found = fit_stream(colours(), len(self.centroids), batch_size=4096, n_init=5, max_no_improvement=None)
        return Codebook(found.centroids, f"mean a, b of CIE Lab over cells of {self.stride} x {self.stride} pixels")

    def adopt(self, codebook: Codebook) -> None:
        if codebook.centroids.shape != self.centroids.shape:
            raise UserError(
                f"The codebook has {len(codebook)} colours ({codebook.features}), and this run {len(self.centroids)}."
            )
        self.centroids.copy_(codebook.centroids)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        clip = batch.views["clip"]
        logits = self.point(clip)
        labels = assign(cell_colours(clip, self.stride), self.centroids)  # [B,T,N]
        reference, target = labels[:, :-1].flatten(1), labels[:, -1]
        terms = mixture_nll(logits, reference, target)
        return ObjectiveOutput(
            loss=terms.mean(),
            count=torch.full((), float(terms.numel()), device=terms.device),
            metrics=self.metrics(logits.detach(), reference, target, labels[:, -2]),
        )

    @torch.no_grad()
    def metrics(self, logits: Tensor, reference: Tensor, target: Tensor, last: Tensor) -> dict[str, Tensor]:
        """Of classes int64: reference [B,M], target [B,N], and the last reference frame's [B,N]."""
        one_hot = F.one_hot(reference, len(self.centroids)).float()  # [B,M,k]
        with torch.autocast(logits.device.type, enabled=False):
            mixture = logits.softmax(2) @ one_hot  # [B,N,k]
        shares = one_hot.mean(1)  # [B,k]: what pointing everywhere alike copies
        share = shares.gather(1, target)
        return {
            "uniform_loss": torch.where(share > 0, -share.log(), 0.0).mean(),
            "accuracy": (mixture.argmax(2) == target).float().mean(),
            "majority": (shares.argmax(1, keepdim=True) == target).float().mean(),
            "same_place": (last == target).float().mean(),
            "absent": (share == 0).float().mean(),
        }

    def point(self, clip: Tensor) -> Tensor:
        """Logits [B,N,(T-1)N] from the places of the last frame to those of all before it."""
        maps = self.encoder(clip).feature_map  # [B,C,T,h,w]
        assert maps is not None
        places = maps.permute(0, 2, 3, 4, 1).flatten(2, 3)  # [B,T,N,C]
        return pointing(places[:, -1], places[:, :-1].flatten(1, 2), self.temperature)

    def pictures(self, batch: Batch) -> dict[str, Picture]:
        clip = batch.views["clip"][:SAMPLES]
        lab = rgb_to_lab(clip[:, -1])
        cells = cell_colours(clip, self.stride)  # [B,T,N,2]
        copied = self.point(clip).softmax(2) @ cells[:, :-1].flatten(1, 2)
        columns = (
            as_uint8(rgb_to_lab(clip[:, -2])),
            as_uint8(lab),
            as_uint8(torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], dim=1)),
            as_uint8(coloured(lab, copied, self.stride)),
            as_uint8(coloured(lab, cells[:, -2], self.stride)),
        )
        names = (
            "last reference",
            "target",
            "what the encoder sees",
            "colours by pointing",
            "colours of the same place",
        )
        return {"colours": Picture("image", names, tuple(zip(*columns, strict=True)))}


def coloured(lab: Tensor, ab: Tensor, stride: int) -> Tensor:
    """The lightness of pictures [B,3,H,W] with the colours of cells [B,N,2]."""
    size = lab.shape[2:]
    cells = ab.transpose(1, 2).unflatten(2, (size[0] // stride, size[1] // stride))
    return torch.cat([lab[:, :1], F.interpolate(cells, size=size, mode="bilinear")], dim=1)


def as_uint8(lab: Tensor) -> list[Tensor]:
    return list(lab_to_rgb(lab).mul(255).round().to(torch.uint8).cpu())

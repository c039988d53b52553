"""COLA (Saeed et al. 2021, arXiv:2010.10915) to the letter of its official code, cola/network.py and contrastive.py."""

from __future__ import annotations

from typing import Literal

from torch import nn

from mmssl.adapters.base import Front
from mmssl.adapters.cola import LogMagnitude
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.errors import UserError
from mmssl.objectives.contrastive import Contrastive
from mmssl.types import Batch, ObjectiveOutput


class COLA(Contrastive):
    """Softmax cross-entropy over the similarities of every anchor with the positives of the batch, in one direction.

    Head: one linear layer (Glorot uniform, no bias at the start, as Keras' Dense). 'bilinear': layer norm and tanh
    after it, similarity a^T W p with W normal of std 0.05, no temperature. 'cosine': the cosine over a temperature.
    The official code takes negatives from the process's own batch; 'global' is our addition.

    Views are segments of clips of unit L2 norm: they are read at the level they come at, while `embed` and the exported
    encoder give every view unit norm, as the official probe does.

    Raises:
        UserError: an encoder of another front end.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        out: int = 512,
        similarity: Literal["bilinear", "cosine"] = "bilinear",
        temperature: float = 0.2,
        negatives: Literal["process", "global"] = "process",
        norm_group: int | None = None,
    ) -> None:
        front = cola_front(encoder)
        super().__init__(
            encoder,
            out=out,
            layers=1,
            norm="none",
            temperature=temperature if similarity == "cosine" else 1.0,
            similarity=similarity,
            symmetric=False,
            negatives=negatives,
            norm_group=norm_group,
        )
        self._fronts = (front,)  # not a submodule of its own: the encoder holds it
        for module in self.projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        with self._fronts[0].taken_as_given():
            return super().loss(batch)


def cola_front(encoder: Encoder) -> LogMagnitude:
    """The front end of an encoder. Raises UserError where it is not COLA's."""
    front: Front | None = (
        encoder.adapter.front if isinstance(encoder, TokenEncoder) else getattr(encoder, "front", None)
    )
    if not isinstance(front, LogMagnitude):
        raise UserError(
            "COLA reads log-mel magnitudes of clips of unit energy, and this encoder has another front end: set "
            "--input.front cola, or train it with the recipe audio/contrastive."
        )
    return front

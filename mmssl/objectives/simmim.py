"""SimMIM: replace masked patches by a learned token and predict their pixels with one linear layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoders.base import Encoder
from mmssl.encoders.vit import initialise
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.masks import Mask, MaskMaker
from mmssl.objectives.patches import pick, reconstruction, refuse_overlap
from mmssl.objectives.pictures import SAMPLES
from mmssl.types import Batch, ObjectiveOutput, Picture


class SimMIM(Objective):
    """SimMIM (Xie et al. 2022, arXiv 2111.09886) on images, clips and spectrograms.

    The encoder sees every token, the masked ones as the mask token with their positions. Targets are normalised pixels
    as they are; the loss is their mean absolute error over the values of masked patches.

    Args:
        view: name of the view.
        mask: what is replaced; SimMIM: `CoarseMask`.
    """

    def __init__(self, encoder: Encoder, *, mask: MaskMaker, view: str = "view") -> None:
        super().__init__(encoder)
        adapter = self.require_tokens().adapter
        refuse_overlap(adapter)
        self.views = (view,)
        self.mask, self.grid = mask, adapter.grid
        self.noise["mask"] = mask.noise(self.grid)
        self.mask_token = nn.Parameter(torch.empty(encoder.width))
        self.head = nn.Linear(encoder.width, adapter.values)
        self.head.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        view, lengths = batch.views[self.views[0]], batch.lengths.get(self.views[0])
        mask = self.mask(batch.noise["mask"], self.grid)
        prediction = self._predict(view, mask, lengths)
        with torch.autocast(view.device.type, enabled=False):
            target = self.require_tokens().adapter.targets(view, mask.masked, lengths).flatten(2)  # [B,M,K*C]
            loss = F.l1_loss(prediction.float(), target.float())
        return ObjectiveOutput(loss=loss, count=torch.full((), float(mask.masked.numel()), device=loss.device))

    def _predict(self, view: Tensor, mask: Mask, lengths: Tensor | None) -> Tensor:
        """Predicted values [B,M,K*C] of the masked tokens."""
        encoder = self.require_tokens()
        tokens = encoder.tokenize(view, lengths=lengths)
        if tokens.grid != self.grid:
            raise UserError(
                f"The view has a token grid of {tokens.grid} and the encoder was built for {self.grid}: make the "
                f"sizes equal."
            )
        encoded = encoder.encode(tokens, mask=mask.boolean(), mask_token=self.mask_token)
        assert encoded.tokens is not None
        return self.head(pick(encoded.tokens, mask.masked))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        adapter, name = self.require_tokens().adapter, self.views[0]
        view, lengths = batch.views[name][:SAMPLES], batch.lengths.get(name)
        lengths = None if lengths is None else lengths[:SAMPLES]
        mask = self.mask(batch.noise["mask"][:SAMPLES], self.grid)
        patches = adapter.patches(adapter.pixels(view, lengths))  # [B,N,K,C]
        predicted = self._predict(view, mask, lengths).float().unflatten(2, patches.shape[2:])
        return {"reconstruction": reconstruction(adapter, patches, mask.boolean(), mask.masked, predicted)}

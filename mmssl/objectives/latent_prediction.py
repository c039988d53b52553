"""Latent prediction: from some tokens of a clip, predict what a slow teacher makes of the others (V-JEPA 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.base import Pixels
from mmssl.distributed import gather
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.encoders.positions import rope_3d
from mmssl.encoders.vit import Block, ViT, fixed_positions, gather_rope, initialise_truncated
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.masks import Mask, MaskMaker
from mmssl.objectives.pictures import KINDS, SAMPLES, cells
from mmssl.objectives.teacher import ema_update, make_teacher
from mmssl.types import Batch, ObjectiveOutput, Picture


def latent_targets(features: Tensor) -> Tensor:
    """Teacher's tokens [B,N,D] -> fp32 targets, each token with mean 0 and variance 1 over its channels."""
    return F.layer_norm(features.float(), features.shape[-1:])


def latent_loss(predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Mean absolute error in fp32 (Bardes et al. 2024, V-JEPA, arXiv:2404.08471, and V-JEPA 2): over the tokens
    and channels of a kind of mask, then over the kinds, so that each weighs the same whatever it hides.

    Args:
        predictions, targets: for each kind [B,M,D], M its own.
    """
    errors = [F.l1_loss(guess.float(), truth.float()) for guess, truth in zip(predictions, targets, strict=True)]
    return torch.stack(errors).mean()


class Predictor(nn.Module):
    """A narrow transformer over the context tokens and one mask token for each token to predict.

    With a trunk that has rotary positions it has them, too, and is V-JEPA 2's predictor (the same function as that of
    transformers' VJEPA2Model). With any other trunk, fixed sin-cos positions are added: over the flat token number for
    clips, over rows and columns else (V-JEPA 1 adds 3-D ones; this is our choice, as VideoMAE's decoder has them).

    Args:
        kinds: kinds of masks, each with a mask token of its own, zero at the start.
    """

    table: Tensor

    def __init__(self, encoder: TokenEncoder, *, width: int, depth: int, heads: int, kinds: int) -> None:
        super().__init__()
        grid = encoder.adapter.grid
        self.rotary = isinstance(encoder, ViT) and encoder.settings.positions == "rope3d"
        kind = "sincos1d" if encoder.spec.modality == "video" else "sincos"
        table = rope_3d(grid, width // heads) if self.rotary else fixed_positions(kind, grid, width)
        self.register_buffer("table", table, persistent=False)
        self.embed = nn.Linear(encoder.width, width)
        self.mask_tokens = nn.Parameter(torch.zeros(kinds, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, encoder.width)
        initialise_truncated(self, self.blocks)

    def forward(self, context: Tensor, mask: Mask, kind: int) -> Tensor:
        """Predicted tokens [B,M,D] at mask.masked from context [B,V,D] at mask.visible."""
        guess = self.mask_tokens[kind].expand(*mask.masked.shape, -1)
        x = torch.cat([self.embed(context), guess.to(context.dtype)], dim=1)  # the order means nothing to the blocks
        where = torch.cat([mask.visible, mask.masked], dim=1)
        rope = gather_rope(self.table, where) if self.rotary else None
        if rope is None:
            x = x + _pick(self.table.to(self.mask_tokens.dtype).expand(len(x), -1, -1), where)
        for block in self.blocks:
            x = block(x, rope)
        return self.head(self.norm(x[:, -mask.masked.shape[1] :]))


class LatentPrediction(Objective):
    """V-JEPA (Bardes et al. 2024, arXiv:2404.08471) and V-JEPA 2 (Assran et al. 2025, arXiv:2506.09985).

    For each kind of mask the encoder sees the visible tokens and a predictor guesses the targets of the hidden ones:
    the tokens, normalised, that a teacher makes of the whole clip. The teacher is an average of the encoder's
    parameters and, being what the method is judged by, also what 'embed' looks at and what the run writes. Prefix
    tokens are neither predicted nor shown to the predictor.

    Metrics tell a collapse, in which all targets become one and the loss goes to 0: `target_std`, spread of the targets
    over the tokens of a clip, and `clip_std`, that of their means over clips (1 at most, 0 when collapsed);
    `mean_error`, the loss of one who knows the mean of each clip's targets and nothing else.

    Args:
        masks: one maker for each kind of mask; every step has all kinds.
        momentum: of the teacher, a step (V-JEPA 2: constant).
        view: name of the view.

    Raises:
        UserError: the encoder has no tokens, or its patches overlap.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        masks: Sequence[MaskMaker],
        predictor_width: int = 384,
        predictor_depth: int = 12,
        predictor_heads: int = 12,
        momentum: float = 0.99925,
        view: str = "view",
    ) -> None:
        super().__init__(encoder)
        tokens = self.require_tokens()
        if tokens.adapter.stride != tokens.adapter.patch:
            raise UserError(
                f"Patches of {tokens.adapter.patch} at a distance of {tokens.adapter.stride} overlap, so visible ones "
                f"would show hidden ones: set stride equal to patch."
            )
        self.views = (view,)
        self.masks, self.momentum = tuple(masks), momentum
        self.grid = tokens.adapter.grid
        self.noise |= {f"mask {kind}": mask.noise(self.grid) for kind, mask in enumerate(self.masks)}
        self.predictor = Predictor(
            tokens, width=predictor_width, depth=predictor_depth, heads=predictor_heads, kinds=len(self.masks)
        )
        self.teacher = make_teacher(tokens)
        for block in self.teacher.modules():
            if isinstance(block, Block):
                block.drop_rate = 0.0  # a target is what the whole teacher says

    def loss(self, batch: Batch) -> ObjectiveOutput:
        view, lengths = batch.views[self.views[0]], batch.lengths.get(self.views[0])
        masks = self._masks(batch.noise)
        targets = self._targets(view, lengths)
        predictions = [self._predict(view, lengths, mask, kind) for kind, mask in enumerate(masks)]
        with torch.autocast(view.device.type, enabled=False):
            loss = latent_loss(predictions, [_pick(targets, mask.masked) for mask in masks])
        return ObjectiveOutput(loss, torch.full((), float(len(view)), device=loss.device), self._signs(targets))

    def _masks(self, noise: dict[str, Tensor]) -> list[Mask]:
        return [maker(noise[f"mask {kind}"], self.grid) for kind, maker in enumerate(self.masks)]

    @torch.no_grad()
    def _targets(self, view: Tensor, lengths: Tensor | None) -> Tensor:
        """fp32 [B,N,D]."""
        encoded = self.teacher(view, lengths=lengths)
        if encoded.grid != self.grid:
            raise UserError(
                f"The view has a token grid of {encoded.grid} and the encoder was built for {self.grid}: make the "
                f"sizes equal."
            )
        with torch.autocast(view.device.type, enabled=False):
            return latent_targets(encoded.tokens)

    def _predict(self, view: Tensor, lengths: Tensor | None, mask: Mask, kind: int) -> Tensor:
        """[B,M,D]."""
        encoder = self.require_tokens()
        context = encoder.encode(encoder.tokenize(view, keep=mask.visible, lengths=lengths)).tokens
        assert context is not None
        return self.predictor(context, mask, kind)

    @torch.no_grad()
    def _signs(self, targets: Tensor) -> dict[str, Tensor]:
        mean = targets.mean(1, keepdim=True)
        return {
            "target_std": targets.std(1, correction=0).mean(),
            "clip_std": gather(mean[:, 0]).std(0, correction=0).mean(),
            "mean_error": (targets - mean).abs().mean(),
        }

    @torch.no_grad()
    def after_step(self, step: int, total: int, applied: Tensor) -> None:
        ema_update(self.teacher, self.encoder, self.momentum, applied)

    def embed(self, batch: Batch, name: str) -> Tensor:
        return self.teacher(batch.views[name], lengths=batch.lengths.get(name)).pooled

    def exports(self) -> dict[str, Encoder]:
        return {"encoder": self.teacher}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """For each kind of mask what the encoder saw, and how far off the prediction of each hidden token is: black for
        no error, white for `mean_error` and above; what was seen is black."""
        adapter, name = self.require_tokens().adapter, self.views[0]
        view, lengths = batch.views[name][:SAMPLES], batch.lengths.get(name)
        lengths = None if lengths is None else lengths[:SAMPLES]
        targets = self._targets(view, lengths)
        patches = adapter.patches(adapter.pixels(view, lengths))  # [B,N,K,C]
        captions, columns = ["original"], [cells(adapter.front, adapter.unpatches(patches, self.grid))]
        for kind, mask in enumerate(self._masks({name: draws[:SAMPLES] for name, draws in batch.noise.items()})):
            fill = 0.0 if isinstance(adapter.front, Pixels) else math.nan
            seen = patches.masked_fill(mask.boolean()[:, :, None, None], fill)
            error = (self._predict(view, lengths, mask, kind).float() - _pick(targets, mask.masked)).abs().mean(2)
            share = (error / self._signs(targets)["mean_error"]).clamp(max=1)  # [B,M]
            whole = torch.zeros_like(targets[..., 0]).scatter(1, mask.masked, share)
            captions += [f"seen {kind + 1}", f"error {kind + 1}"]
            columns += [cells(adapter.front, adapter.unpatches(seen, self.grid)), self._maps(whole)]
        rows = tuple(zip(*columns, strict=True))
        return {"prediction": Picture(KINDS[adapter.spec.modality], tuple(captions), rows)}

    def _maps(self, values: Tensor) -> list[Tensor]:
        """One value a token [B,N] in [0,1] as cells of the size of the view."""
        adapter = self.require_tokens().adapter
        for dim, size in enumerate(adapter.patch, start=1):
            values = values.view(-1, *self.grid) if dim == 1 else values
            values = values.repeat_interleave(size, dim)  # [B,T,H,W] in the end
        if adapter.spec.modality == "audio":
            return list(values[:, 0].cpu())
        grey = values.mul(255).round().to(torch.uint8).cpu().unsqueeze(2).expand(-1, -1, 3, -1, -1)
        return list(grey if adapter.spec.modality == "video" else grey[:, 0])


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values [B,N,D] at index [B,n] -> [B,n,D]."""
    return values.gather(1, index.unsqueeze(2).expand(-1, -1, values.shape[2]))

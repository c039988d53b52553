"""Masked autoencoding: encode visible tokens only, predict the pixels of masked ones (MAE, VideoMAE, Audio-MAE)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.base import Pixels
from mmssl.encoders.base import Encoder
from mmssl.encoders.vit import Bias, Block, fixed_positions, initialise
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.masks import Mask, MaskMaker
from mmssl.objectives.pictures import KINDS, SAMPLES, cells
from mmssl.types import Batch, ObjectiveOutput, Picture

Target = Literal["patch_norm_joint", "patch_norm_channel", "pixels"]


def patch_statistics(patches: Tensor, target: Target, unit: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Centre and scale of each patch; the target of a patch is (patch - centre) / scale.

    'patch_norm_joint': over all K*C values, scale sqrt(var + 1e-6) (He et al. 2021, section 3).
    'patch_norm_channel': over the K values of each channel, scale std + 1e-6 in units of [0,1] pixels (VideoMAE).
    'pixels': 0 and 1. Variances are unbiased.

    Args:
        patches: [B,M,K,C], normalised pixels.
        unit: [C], how many [0,1] units one unit of `patches` is; for 'patch_norm_channel'.

    Returns:
        Two tensors that broadcast with [B,M,K,C].
    """
    if target == "patch_norm_joint":
        mean, deviation = _moments(patches, (-2, -1))
        return mean, (deviation.square() + 1e-6).sqrt()
    if target == "patch_norm_channel":
        mean, deviation = _moments(patches, (-2,))
        # (x/u - m/u) / (s/u + 1e-6) with the u divided out, which saves a pass over the pixels.
        return mean, deviation + 1e-6 / (1.0 if unit is None else unit)
    return patches.new_zeros(()), patches.new_ones(())


def _moments(patches: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over `dims`, kept; in two passes, which CPUs do far faster than std_mean."""
    mean = patches.mean(dims, keepdim=True)
    terms = math.prod(patches.shape[dim] for dim in dims)
    norm = torch.linalg.vector_norm(patches - mean, dim=dims, keepdim=True)
    return mean, norm / math.sqrt(terms - 1)


def reconstruction_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean squared error, first over the values of a patch, then over patches, in fp32.

    Args:
        prediction, target: [B,M,K*C].
        weight: [B,M], 0 for patches that do not count; all count if None.

    Returns:
        The loss, and the number of patches that it averages.
    """
    prediction, target = prediction.float(), target.float()
    if weight is None:  # patches have equally many values, so that the mean of means is the mean
        return F.mse_loss(prediction, target), torch.full((), float(target[..., 0].numel()), device=target.device)
    error = (prediction - target).square().mean(-1)
    count = weight.sum(dtype=torch.float32)
    return (error * weight).sum() / count.clamp(min=1), count


class MaskedAutoencoder(Objective):
    """MAE (He et al. 2021, arXiv 2111.06377, section 3), VideoMAE (Tong et al. 2022, 2203.12602), VideoMAE V2 (Wang et
    al. 2023, 2303.16727, with `decoder_mask`) and Audio-MAE (Huang et al. 2022, 2207.06405).

    The decoder's positions are fixed sin-cos tables: over rows and columns for images and spectrograms (zero for prefix
    tokens), over the flat token number for clips.

    Args:
        view: name of the view.
        mask: what the encoder does not see.
        target: see `patch_statistics`; MAE and Audio-MAE: 'patch_norm_joint', VideoMAE: 'patch_norm_channel'.
        decoder_bias: of queries, keys and values; VideoMAE: 'qv'.
        projection_bias: of the layer from the encoder's to the decoder's width; VideoMAE has none.
        decoder_mask: its visible tokens are decoded, the others skipped; decoded tokens that the encoder saw do not
            count in the loss.
    """

    positions: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        mask: MaskMaker,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_bias: Bias = "full",
        projection_bias: bool = True,
        target: Target = "patch_norm_joint",
        decoder_mask: MaskMaker | None = None,
        view: str = "view",
    ) -> None:
        super().__init__(encoder)
        adapter = self.require_tokens().adapter
        if adapter.stride != adapter.patch:
            raise UserError(
                f"Patches of {adapter.patch} at a distance of {adapter.stride} overlap, so visible ones would show "
                f"masked ones: set stride equal to patch."
            )
        if target == "patch_norm_channel" and not isinstance(adapter.front, Pixels):
            raise UserError(
                "target='patch_norm_channel' is for images and clips: choose 'patch_norm_joint' for spectrograms."
            )
        self.views = (view,)
        self.mask, self.decoder_mask, self.target = mask, decoder_mask, target
        self.grid = adapter.grid
        self.noise["mask"] = mask.noise(self.grid)
        if decoder_mask is not None:
            self.noise["decoder_mask"] = decoder_mask.noise(self.grid)
        self.projection = nn.Linear(encoder.width, decoder_width, bias=projection_bias)
        self.mask_token = nn.Parameter(torch.empty(decoder_width))
        kind = "sincos1d" if adapter.spec.modality == "video" else "sincos"
        self.register_buffer("positions", fixed_positions(kind, self.grid, decoder_width), persistent=False)
        self.decoder = nn.ModuleList(
            Block(decoder_width, decoder_heads, bias=decoder_bias) for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.head = nn.Linear(decoder_width, adapter.values)
        for module in (self.projection, self.decoder, self.norm, self.head):
            module.apply(initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        view, lengths = batch.views[self.views[0]], batch.lengths.get(self.views[0])
        mask, decoded, weight = self._masks(batch.noise)
        prediction = self._predict(view, mask.visible, decoded, lengths)
        with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            patches = self.require_tokens().adapter.targets(view, decoded, lengths)  # [B,R,K,C]
            centre, scale = self._statistics(patches)
            target = ((patches - centre) / scale).flatten(2)
        with torch.autocast(view.device.type, enabled=False):
            loss, count = reconstruction_loss(prediction, target, weight)
        return ObjectiveOutput(loss=loss, count=count)

    def _masks(self, noise: dict[str, Tensor]) -> tuple[Mask, Tensor, Tensor | None]:
        """The encoder's mask, the tokens to decode [B,R], and which of them count [B,R] (all if None)."""
        mask = self.mask(noise["mask"], self.grid)
        if self.decoder_mask is None:
            return mask, mask.masked, None
        decoded = self.decoder_mask(noise["decoder_mask"], self.grid).visible
        return mask, decoded, mask.boolean().gather(1, decoded)

    def _predict(self, view: Tensor, visible: Tensor, decoded: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Predicted values [B,R,K*C] of the tokens `decoded` [B,R] from the tokens `visible` [B,V]."""
        encoder = self.require_tokens()
        tokens = encoder.tokenize(view, keep=visible, lengths=lengths)
        if tokens.grid != self.grid:
            raise UserError(
                f"The view has a token grid of {tokens.grid} and the encoder was built for {self.grid}: make the "
                f"sizes equal."
            )
        encoded = encoder.encode(tokens)
        assert encoded.tokens is not None
        positions = self.positions.to(self.mask_token.dtype).expand(len(view), -1, -1)  # [B,N,W], W the decoder's width
        sequence = [
            self.projection(encoded.tokens) + _pick(positions, visible),
            self.mask_token + _pick(positions, decoded),
        ]
        if encoded.prefix is not None:
            sequence.insert(0, self.projection(encoded.prefix))
        x = torch.cat(sequence, dim=1)  # [B,P+V+R,W]; the order means nothing to the blocks
        for block in self.decoder:
            x = block(x)
        return self.head(self.norm(x[:, -decoded.shape[1] :]))

    def _statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        front = self.require_tokens().adapter.front
        return patch_statistics(patches, self.target, front.std.flatten() if isinstance(front, Pixels) else None)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """Original, what the encoder saw (masked patches in the mean colour; NaN in spectrograms, which is drawn grey,
        since no loudness means "hidden"), and the reconstruction.

        A prediction is shown with the mean and deviation of the original patch, which its target is without.
        """
        adapter, name = self.require_tokens().adapter, self.views[0]
        view, lengths = batch.views[name][:SAMPLES], batch.lengths.get(name)
        lengths = None if lengths is None else lengths[:SAMPLES]
        mask, decoded, _ = self._masks({name: draws[:SAMPLES] for name, draws in batch.noise.items()})
        patches = adapter.patches(adapter.pixels(view, lengths))  # [B,N,K,C]
        hidden = mask.boolean()[:, :, None, None]
        centre, scale = self._statistics(_pick(patches, decoded))
        predicted = self._predict(view, mask.visible, decoded, lengths).float()
        predicted = predicted.unflatten(2, patches.shape[2:]) * scale + centre
        seen = patches.masked_fill(hidden, 0.0 if isinstance(adapter.front, Pixels) else math.nan)
        filled = torch.where(hidden, seen.scatter(1, _index(decoded, predicted), predicted), patches)
        columns = [cells(adapter.front, adapter.unpatches(stage, self.grid)) for stage in (patches, seen, filled)]
        picture = Picture(
            kind=KINDS[adapter.spec.modality],
            columns=("original", "masked", "reconstruction"),
            rows=tuple(zip(*columns, strict=True)),
        )
        return {"reconstruction": picture}


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values [B,N,...] at index [B,n] -> [B,n,...]."""
    return values.gather(1, _index(index, values))


def _index(index: Tensor, values: Tensor) -> Tensor:
    return index.view(*index.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])

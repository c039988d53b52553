"""Masked autoencoding: encode visible tokens only, predict the pixels of masked ones (MAE, VideoMAE, MAE-ST,
Audio-MAE)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.base import Pixels
from mmssl.encoders.base import Encoder
from mmssl.encoders.positions import join_separable
from mmssl.encoders.vit import Bias, Block, fixed_positions, initialise
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.masks import Mask, MaskMaker
from mmssl.objectives.patches import pick, reconstruction, refuse_overlap
from mmssl.objectives.pictures import SAMPLES
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


def predicted_frames(times: int, tubelet: int, count: int) -> list[int]:
    """`count` of the times x tubelet frames of a clip, from the first to the last at equal distances, rounded down
    (MAE-ST predicts 8 of 16: 0 2 4 6 8 10 12 15). Each of `count` equal runs of frames holds one of them.

    Raises:
        UserError: tubelets would have different numbers of predicted frames.
    """
    fitting = [times * n for n in range(1, tubelet + 1) if tubelet % n == 0]
    if count not in fitting:
        raise UserError(
            f"{count} predicted frames do not fit {times} tubelets of {tubelet} frames: choose "
            f"{' or '.join(map(str, fitting))}."
        )
    return [k * (times * tubelet - 1) // max(count - 1, 1) for k in range(count)]


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
    al. 2023, 2303.16727, with `decoder_mask`), MAE-ST (Feichtenhofer et al. 2022, 2205.09113, with `decoder_positions`
    and `frames`) and Audio-MAE (Huang et al. 2022, 2207.06405).

    Prefix tokens go through the decoder like visible ones, as in MAE; MAE-ST's decoder has a CLS token of its own.

    Args:
        view: name of the view.
        mask: what the encoder does not see.
        target: see `patch_statistics`; MAE, MAE-ST and Audio-MAE: 'patch_norm_joint', VideoMAE: 'patch_norm_channel'.
        decoder_bias: of queries, keys and values; VideoMAE: 'qv'.
        decoder_positions: 'fixed': sin-cos tables, over rows and columns for images and spectrograms (zero for prefix
            tokens), over the flat token number for clips. 'separable': the sum of a learned table over rows and columns
            and a learned table over time.
        frames: how many frames of the clip are predicted (MAE-ST: 8 of 16, see `predicted_frames`), a multiple of the
            grid's times; a token predicts those that lie in its tubelet. All if None.
        projection_bias: of the layer from the encoder's to the decoder's width; VideoMAE has none.
        decoder_mask: its visible tokens are decoded, the others skipped; decoded tokens that the encoder saw do not
            count in the loss.
    """

    positions: Tensor | None
    chosen: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        mask: MaskMaker,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_bias: Bias = "full",
        decoder_positions: Literal["fixed", "separable"] = "fixed",
        projection_bias: bool = True,
        frames: int | None = None,
        target: Target = "patch_norm_joint",
        decoder_mask: MaskMaker | None = None,
        view: str = "view",
    ) -> None:
        super().__init__(encoder)
        adapter = self.require_tokens().adapter
        refuse_overlap(adapter)
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
        T, H, W = self.grid
        if decoder_positions == "separable":
            self.positions = None
            self.positions_space = nn.Parameter(torch.empty(1, H * W, decoder_width))
            self.positions_time = nn.Parameter(torch.empty(1, T, decoder_width))
        else:
            kind = "sincos1d" if adapter.spec.modality == "video" else "sincos"
            self.register_buffer("positions", fixed_positions(kind, self.grid, decoder_width), persistent=False)
        self.decoder = nn.ModuleList(
            Block(decoder_width, decoder_heads, bias=decoder_bias) for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(decoder_width, eps=1e-6)
        total = T * adapter.patch[0]
        self.frames = predicted_frames(T, adapter.patch[0], total if frames is None else frames)
        self.run = total // len(self.frames)
        # [T,u], which frame of its run each of the predicted ones is.
        self.register_buffer("chosen", torch.tensor(self.frames).view(T, -1) % self.run, persistent=False)
        self.head = nn.Linear(decoder_width, adapter.values // self.run)
        for module in (self.projection, self.decoder, self.norm, self.head):
            module.apply(initialise)
        for parameter in self.parameters(recurse=False):  # the mask token and learned positions
            nn.init.normal_(parameter, std=0.02)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        view, lengths = batch.views[self.views[0]], batch.lengths.get(self.views[0])
        mask, decoded, weight = self._masks(batch.noise)
        prediction = self._predict(view, mask.visible, decoded, lengths)
        with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            patches = self.require_tokens().adapter.targets(view, decoded, lengths)  # [B,R,K,C]
            patches = self._of_frames(patches, decoded)
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
        positions = self.positions
        if positions is None:
            positions = join_separable(self.positions_space, self.positions_time)
        positions = positions.to(self.mask_token.dtype).expand(len(view), -1, -1)  # [B,N,W], W the decoder's width
        sequence = [
            self.projection(encoded.tokens) + pick(positions, visible),
            self.mask_token + pick(positions, decoded),
        ]
        if encoded.prefix is not None:
            sequence.insert(0, self.projection(encoded.prefix))
        x = torch.cat(sequence, dim=1)  # [B,P+V+R,W]; the order means nothing to the blocks
        for block in self.decoder:
            x = block(x)
        return self.head(self.norm(x[:, -decoded.shape[1] :]))

    def _of_frames(self, patches: Tensor, decoded: Tensor) -> Tensor:
        """What is predicted of the patches [B,R,K,C] of the tokens `decoded` [B,R]: [B,R,K/run,C]."""
        if self.run == 1:
            return patches
        places = self.chosen[decoded // (self.grid[1] * self.grid[2])]  # [B,R,u]
        runs = patches.unflatten(2, (places.shape[2], self.run, -1))  # [B,R,u,run,h*w,C]
        return runs.take_along_dim(places[..., None, None, None], 3).flatten(2, 4)

    def _statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        front = self.require_tokens().adapter.front
        return patch_statistics(patches, self.target, front.std.flatten() if isinstance(front, Pixels) else None)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """See `reconstruction`; of a clip only the frames that are predicted. A prediction is shown with the mean and
        deviation of the original patch, which its target is without."""
        adapter, name = self.require_tokens().adapter, self.views[0]
        view, lengths = batch.views[name][:SAMPLES], batch.lengths.get(name)
        lengths = None if lengths is None else lengths[:SAMPLES]
        mask, decoded, _ = self._masks({name: draws[:SAMPLES] for name, draws in batch.noise.items()})
        patches = adapter.patches(adapter.pixels(view, lengths))  # [B,N,K,C]
        originals = self._of_frames(pick(patches, decoded), decoded)  # [B,R,K/run,C]
        centre, scale = self._statistics(originals)
        predicted = self._predict(view, mask.visible, decoded, lengths).float().view_as(originals) * scale + centre
        # Repeated over the frames of its run, which are not shown, a prediction has the shape of the patches.
        whole = predicted.unflatten(2, (self.chosen.shape[1], -1)).repeat_interleave(self.run, 2).flatten(2, 3)
        return {"reconstruction": reconstruction(adapter, patches, mask.boolean(), decoded, whole, self.frames)}

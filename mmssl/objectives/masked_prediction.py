"""Masked prediction of discrete codes: HuBERT and WavLM over units of sound, BEiT over the codes of a tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.waveform import WaveformFrames
from mmssl.encoders.base import Encoder
from mmssl.encoders.speech import SpeechEncoder
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.masks import Grid, Mask, MaskMaker
from mmssl.objectives.patches import refuse_overlap
from mmssl.objectives.pictures import KINDS, SAMPLES, cells
from mmssl.objectives.spans import SpanMask
from mmssl.targets.codebook import Codebook
from mmssl.types import Batch, ObjectiveOutput, Picture, Tokens

MEL_SHIFT = 0.010
"""Seconds from one column of a log-mel picture to the next."""


def cosine_logits(x: Tensor, codes: Tensor, temperature: float = 0.1) -> Tensor:
    """Cosine of every vector x [...,d] with every code [C,d], over the temperature: fp32 [...,C].

    As one matrix product. fairseq (Hsu et al. 2021, HuBERT) puts the right code before all codes, whose copy among them
    then gets -inf; the softmax over that is the same as over these.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, codes = F.normalize(x.float(), dim=-1), F.normalize(codes.float(), dim=-1)
        return x @ codes.T / temperature


def weighted_cross_entropy(logits: Tensor, units: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of weight x cross-entropy over the terms that weigh anything, divided by how many they are, and that number:
    fairseq's HuBERT criterion. Without any the mean is 0.

    Args:
        logits: [...,C]. units: int64 [...], ignored where the weight is 0. weights: [...], 0 or more.
    """
    with torch.autocast(logits.device.type, enabled=False):
        count = (weights > 0).sum().float()
        target = torch.where(weights > 0, units, 0)
        terms = F.cross_entropy(logits.float().flatten(0, -2), target.flatten(), reduction="none")
        return (terms * weights.flatten().float()).sum() / count.clamp_min(1.0), count


def feature_square(features: Tensor, padding: Tensor | None, terms: Tensor) -> Tensor:
    """Mean square of features [B,N,C], each sample's over its real frames, the samples weighed by `terms` [B].

    fairseq takes the mean over a process's batch times its masked frames, of which its samples have equal numbers.
    Weighed by its own terms, a sample counts the same on however many processes; where the numbers are equal, this is
    fairseq's penalty.
    """
    with torch.autocast(features.device.type, enabled=False):
        squares = features.float().square().mean(2)
        if padding is not None:
            squares = squares * ~padding
        real = squares.shape[1] if padding is None else (~padding).sum(1)
        return (squares.sum(1) / real * terms).sum() / terms.sum().clamp_min(1)


class CosineHead(nn.Module):
    """Tokens [B,N,D] -> logits fp32 [B,N,C]: a projection to `width` values, compared with a learned vector a code."""

    def __init__(self, encoder_width: int, codes: int, *, width: int = 256, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature
        self.project = nn.Linear(encoder_width, width)
        self.codes = nn.Parameter(torch.rand(codes, width))

    def forward(self, x: Tensor) -> Tensor:
        return cosine_logits(self.project(x), self.codes, self.temperature)


class LinearHead(nn.Linear):
    """Tokens [B,N,D] -> logits [B,N,C] by a plain classifier, as BEiT has it (Bao et al. 2022, arXiv:2106.08254)."""

    def __init__(self, encoder_width: int, codes: int) -> None:
        super().__init__(encoder_width, codes)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class MaskedPrediction(Objective):
    """HuBERT (Hsu et al. 2021, arXiv:2106.07447), and with its encoder and views WavLM (Chen et al. 2022,
    arXiv:2110.13900), BEiT (Bao et al. 2022, arXiv:2106.08254) and masked models of spectrograms and clips.

    The encoder sees every token, the masked ones as the mask token; a head tells the code of each. The codes are
    `Batch.targets['units']` int64 [B,N] (-1 = no label), made offline, or what the frozen tokenizer makes of the same
    view. All tokens go through the head and are weighed by the mask, so that shapes do not depend on it.

    Metrics beside the loss: `masked_loss`, the cross-entropy without penalty and unmasked terms; `masked_accuracy` and
    `unmasked_accuracy`; `majority`, the accuracy of always saying the batch's most frequent code; `code_perplexity`,
    how many codes the batch uses evenly; `masked`, the share of masked tokens; and `feature_penalty` where it counts.
    Over several processes and micro-batches they are averaged by masked tokens, as the loss is.

    Args:
        codebook: what the codes are numbers of; kept with the run, which goes on with no other.
        mask: what is replaced; HuBERT: `SpanMask`.
        tokenizer: [B,...] views and their lengths -> int64 [B,N]; None where the codes come with the batch.
        head: 'cosine' (HuBERT) or 'linear' (BEiT).
        head_width: values that the cosine is taken of (256 for BASE, 768 for LARGE).
        unmasked_weight: of the terms of visible tokens (HuBERT: 0).
        feature_penalty: factor of the mean square of the adapter's features (HuBERT: 10).
        grid: of the longest view, where views are of several lengths; the adapter's if None.
        view: name of the view.

    Raises:
        UserError: an encoder without tokens, patches that overlap, or settings that do not go together.
    """

    codebook = "units"

    def __init__(
        self,
        encoder: Encoder,
        *,
        codebook: Codebook,
        mask: MaskMaker | SpanMask,
        tokenizer: nn.Module | None = None,
        head: Literal["cosine", "linear"] = "cosine",
        head_width: int = 256,
        temperature: float = 0.1,
        unmasked_weight: float = 0.0,
        feature_penalty: float = 0.0,
        grid: Grid | None = None,
        view: str = "view",
    ) -> None:
        super().__init__(encoder)
        adapter = self.require_tokens().adapter
        if tokenizer is not None:
            refuse_overlap(adapter)
        if len(codebook) < 2 or temperature <= 0 or unmasked_weight < 0 or feature_penalty < 0:
            raise UserError(
                f"{len(codebook)} codes, a temperature of {temperature}, weights of {unmasked_weight} and "
                f"{feature_penalty}: give 2 codes or more, a temperature above 0, and no weight below 0."
            )
        self.views, self.targets = (view,), () if tokenizer is not None else ("units",)
        self.known, self.tokenizer, self.mask = codebook, tokenizer, mask
        self.grid = adapter.grid if grid is None else grid
        self.noise["mask"] = mask.noise(self.grid)
        self.unmasked_weight, self.feature_penalty = unmasked_weight, feature_penalty
        self.head: nn.Module
        if head == "cosine":
            self.head = CosineHead(encoder.width, len(codebook), width=head_width, temperature=temperature)
        else:
            self.head = LinearHead(encoder.width, len(codebook))
        self.mask_token: nn.Parameter | None = None
        if isinstance(encoder, SpeechEncoder):  # a part of its file, from which others go on
            encoder.learn_mask_token()
        else:
            self.mask_token = nn.Parameter(torch.empty(encoder.width))
            nn.init.normal_(self.mask_token, std=0.02)
        if tokenizer is not None:
            tokenizer.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MaskedPrediction:
        super().train(mode)
        if self.tokenizer is not None:
            self.tokenizer.eval()  # a target is what the whole tokenizer says
        return self

    def fit(self, batches: Iterator[Batch]) -> Codebook:
        return self.known

    def adopt(self, codebook: Codebook) -> None:
        if codebook.sha256 != self.known.sha256:
            raise UserError(
                f"The run began with {len(codebook)} codes of {codebook.features}, and its units are now of another "
                f"codebook ({len(self.known)} codes of {self.known.features}): name the units that it began with, or "
                "choose another --out."
            )

    def loss(self, batch: Batch) -> ObjectiveOutput:
        units = self.units(batch)
        tokens, mask, logits = self.predict(batch, units)
        labelled = units >= 0
        weights = torch.where(mask, 1.0, self.unmasked_weight) * labelled
        loss, count = weighted_cross_entropy(logits, units, weights)
        metrics = self.metrics(logits.detach(), units, mask & labelled, ~mask & labelled)
        if self.feature_penalty:
            if tokens.features is None:
                raise UserError(
                    f"{type(self.encoder).__name__} has no features before its tokens to penalise: give a feature "
                    "penalty of 0."
                )
            penalty = feature_square(tokens.features, tokens.padding, (weights > 0).sum(1))
            loss = loss + self.feature_penalty * penalty
            metrics["feature_penalty"] = penalty.detach()
        return ObjectiveOutput(loss, count, metrics)

    def units(self, batch: Batch) -> Tensor:
        """The codes int64 [B,N], -1 where there is none."""
        name = self.views[0]
        if self.tokenizer is None:
            if "units" not in batch.targets:
                raise UserError("The views cut no units: give the recipe's views the folder of units.")
            return batch.targets["units"]
        # In fp32, as the codebook was made: rounding features moves them into other clusters.
        with torch.no_grad(), torch.autocast(batch.views[name].device.type, enabled=False):
            codes: Tensor = self.tokenizer(batch.views[name], batch.lengths.get(name))
        return codes

    def predict(self, batch: Batch, units: Tensor) -> tuple[Tokens, Tensor, Tensor]:
        """Tokens before masking, which were masked (bool [B,N]), and logits [B,N,C]."""
        encoder, name = self.require_tokens(), self.views[0]
        tokens = encoder.tokenize(batch.views[name], lengths=batch.lengths.get(name))
        count = math.prod(tokens.grid)
        if units.shape[1] != count:
            raise UserError(
                f"A view has {count} tokens and {units.shape[1]} units: make units at the encoder's rate (hop and "
                "window of its frames, or its patches) from the data that you train on."
            )
        mask = self.draw(batch.noise["mask"], tokens)
        encoded = encoder.encode(tokens, mask=mask, mask_token=self.mask_token)
        assert encoded.tokens is not None
        return tokens, mask, self.head(encoded.tokens)

    def draw(self, noise: Tensor, tokens: Tokens) -> Tensor:
        """bool [B,N], True = masked; padding never is."""
        if isinstance(self.mask, SpanMask):
            mask = self.mask(noise, tokens.grid)
        else:
            if tokens.grid != self.grid:
                raise UserError(
                    f"The view has a token grid of {tokens.grid} and the encoder was built for {self.grid}: make the "
                    "sizes equal."
                )
            made: Mask = self.mask(noise, tokens.grid)
            mask = made.boolean()
        return mask if tokens.padding is None else mask & ~tokens.padding

    @torch.no_grad()
    def metrics(self, logits: Tensor, units: Tensor, masked: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """Of logits [B,N,C], units int64 [B,N], and the labelled tokens of both kinds, bool [B,N]."""
        right = logits.argmax(2) == units
        cross_entropy, count = weighted_cross_entropy(logits, units, masked.float())
        codes = torch.zeros(logits.shape[2], device=logits.device)
        codes = codes.scatter_add(0, units.clamp_min(0).flatten(), masked.flatten().float())
        shares = codes / count.clamp_min(1.0)
        return {
            "masked_loss": cross_entropy,
            "masked_accuracy": (right & masked).sum() / count.clamp_min(1.0),
            "unmasked_accuracy": (right & visible).sum() / visible.sum().clamp_min(1),
            "majority": shares.max(),
            "code_perplexity": torch.special.entr(shares).sum().exp(),
            "masked": masked.sum() / (masked | visible).sum().clamp_min(1),
        }

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """What the encoder saw (hidden places grey), and the probability that it gave to the right code of each token:
        black for 0 and where there is no code, white for 1."""
        adapter, name = self.require_tokens().adapter, self.views[0]
        few = Batch(
            {name: batch.views[name][:SAMPLES]},
            batch.index[:SAMPLES],
            {"mask": batch.noise["mask"][:SAMPLES]},
            {target: batch.targets[target][:SAMPLES] for target in self.targets},
            {name: batch.lengths[name][:SAMPLES]} if name in batch.lengths else {},
        )
        units = self.units(few)
        tokens, mask, logits = self.predict(few, units)
        right = logits.float().softmax(2).gather(2, units.clamp_min(0).unsqueeze(2))[..., 0] * (units >= 0)
        original = cells(adapter.front, adapter.pixels(few.views[name], few.lengths.get(name)))
        kind, rows = KINDS[adapter.spec.modality], []
        for cell, hidden, sure in zip(original, mask.float().cpu(), right.cpu(), strict=True):
            there, shade = (self.spread(values, tokens.grid, cell) for values in (hidden, sure))
            sound = kind == "spectrogram"
            seen = cell.masked_fill(there > 0, math.nan if sound else 127)
            rows.append((cell, seen, shade if sound else shade.mul(255).round().to(torch.uint8)))
        return {"prediction": Picture(kind, ("original", "seen", "probability of the right code"), tuple(rows))}

    def spread(self, values: Tensor, grid: Grid, cell: Tensor) -> Tensor:
        """One value a token [N], as a tensor like a cell of a picture."""
        adapter = self.require_tokens().adapter
        if isinstance(adapter, WaveformFrames):  # a frame is some columns of the log-mel picture
            columns = values.repeat_interleave(round(adapter.spec.hop / adapter.spec.rate / MEL_SHIFT))
            columns = F.pad(columns, (0, max(cell.shape[1] - len(columns), 0)))
            return columns[: cell.shape[1]].expand_as(cell)
        values = values.view(grid)
        for dim, size in enumerate(adapter.patch):
            values = values.repeat_interleave(size, dim)  # [T,H,W] in the end
        return values[0] if cell.ndim == 2 else values.unsqueeze(1).expand(-1, 3, -1, -1).reshape(cell.shape)

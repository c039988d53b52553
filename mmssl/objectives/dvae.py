"""A discrete variational autoencoder: every patch of a view becomes one of C codes, from which it is drawn again."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoders.vit import Block, fixed_positions, initialise
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.patches import refuse_overlap
from mmssl.objectives.pictures import KINDS, SAMPLES, cells
from mmssl.targets.dvae import CodeViT
from mmssl.types import Batch, ObjectiveOutput, Picture

BITS = 23
"""Of a uniform draw: half a step more than their fraction is exact in fp32, and never 0 or 1."""


def uniform(seeds: Tensor, count: int) -> Tensor:
    """Independent uniform draws in (0,1), fp32 [B,count], made of the two draws [B,2] of each sample: a mixing of 32
    bits of (seed, position), the same on every device. Relaxed codes want N x C draws a sample, too many to carry."""
    high, low = (seeds.float() * 2**16).to(torch.int32).unbind(1)
    seed = _mix(((high << 16) | low).unsqueeze(1))
    bits = _mix(_mix(torch.arange(count, dtype=torch.int32, device=seeds.device)) ^ seed)  # [B,count]
    return (((bits >> (32 - BITS)) & (2**BITS - 1)).float() + 0.5) / 2**BITS


def _mix(x: Tensor) -> Tensor:
    """A bijection of int32 in which each bit of x moves each bit of the result: two rounds of xor-shift and
    multiplication (the constants are those that C. Wellons's search for little bias found)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x = (x ^ ((x >> shift) & (2 ** (32 - shift) - 1))) * factor
    return x ^ ((x >> 16) & 0xFFFF)


def relaxed_codes(logits: Tensor, draws: Tensor, temperature: Tensor) -> Tensor:
    """Softmax of (logits + Gumbel noise) / temperature, fp32 [B,N,C], from uniform draws of the same shape (Jang et al.
    2017, arXiv:1611.01144, equation 2): near one code each at a low temperature."""
    with torch.autocast(logits.device.type, enabled=False):
        gumbel = -(-draws.log()).log()
        return ((logits.float() + gumbel) / temperature).softmax(-1)


def divergence(logits: Tensor) -> Tensor:
    """KL divergence [B,N], in nats, of the codes' distribution from the even one: log C less its entropy."""
    with torch.autocast(logits.device.type, enabled=False):
        log_share = logits.float().log_softmax(-1)
        return (log_share.exp() * log_share).sum(-1) + math.log(logits.shape[-1])


def cosine_temperature(step: int, anneal: int, first: float, last: float) -> float:
    """From `first` before step 0 to `last` after `anneal` steps, along half a cosine, and `last` from then on."""
    if step >= anneal:
        return last
    return last + (first - last) * (1 + math.cos(math.pi * step / anneal)) / 2


class DiscreteVAE(Objective):
    """A discrete VAE with relaxed codes, as DALL-E trains its tokenizer (Ramesh et al. 2021, arXiv:2102.12092, section
    2.1), over the patches of any modality.

    The decoder is shown, for each patch, the mean of the codes' vectors weighed by the relaxed code. The loss is the
    mean squared error of normalised pixels plus `divergence_weight` times the divergence of a patch's codes from even
    use. Ours, where DALL-E differs: ViTs instead of convolutions, squared error instead of a logit-Laplace likelihood,
    codes by distance, a constant weight.

    Metrics beside the loss: `error`, the squared error alone; `divergence`, in nats; `code_perplexity`, how many codes
    the most likely ones of this batch use evenly, and `codes_used`, the share of all codes among them (a batch of n
    patches can use n): one of 1 and the other near 0 tell of a collapse; `temperature`.

    Args:
        encoder: gives tokens their codes.
        temperature: of the relaxed codes, before the first step and after `anneal` of the run (DALL-E: 1 and 1/16).
        anneal: share of the run.
        divergence_weight: in squared errors a nat.

    Raises:
        UserError: patches that overlap, or settings that cannot be.
    """

    positions: Tensor
    temperature: Tensor
    encoder: CodeViT

    def __init__(
        self,
        encoder: CodeViT,
        *,
        decoder_width: int = 192,
        decoder_depth: int = 4,
        decoder_heads: int = 3,
        temperature: tuple[float, float] = (1.0, 1 / 16),
        anneal: float = 0.5,
        divergence_weight: float = 1e-3,
        view: str = "view",
    ) -> None:
        super().__init__(encoder)
        adapter = encoder.adapter
        refuse_overlap(adapter)
        if min(temperature) <= 0 or not 0 <= anneal <= 1 or divergence_weight < 0:
            raise UserError(
                f"Temperatures of {temperature}, falling over {anneal} of the run, and a weight of {divergence_weight}:"
                " give temperatures above 0, a share from 0 to 1, and no weight below 0."
            )
        self.views = (view,)
        self.noise["codes"] = 2
        self.range, self.anneal, self.divergence_weight = temperature, anneal, divergence_weight
        self.register_local_buffer("temperature", torch.tensor(temperature[0] if anneal else temperature[1]))
        kind = "sincos1d" if adapter.spec.modality == "video" else "sincos"
        self.register_buffer("positions", fixed_positions(kind, adapter.grid, decoder_width), persistent=False)
        self.project = nn.Linear(encoder.width, decoder_width)
        self.decoder = nn.ModuleList(Block(decoder_width, decoder_heads) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.head = nn.Linear(decoder_width, adapter.values)
        for module in (self.project, self.decoder, self.norm, self.head):
            module.apply(initialise)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        view, lengths = batch.views[self.views[0]], batch.lengths.get(self.views[0])
        adapter = self.encoder.adapter
        logits = self.logits(view, lengths)
        draws = uniform(batch.noise["codes"], logits[0].numel()).view_as(logits)
        predicted = self.draw(relaxed_codes(logits, draws, self.temperature))
        with torch.autocast(view.device.type, enabled=False):
            target = adapter.patches(adapter.pixels(view, lengths)).flatten(2)  # [B,N,K*C]
            error = F.mse_loss(predicted.float(), target.float())
            divergent = divergence(logits).mean()
            loss = error + self.divergence_weight * divergent
        return ObjectiveOutput(
            loss,
            torch.full((), float(logits[..., 0].numel()), device=loss.device),
            {"error": error.detach(), "divergence": divergent.detach(), **self.use(logits.detach())}
            | {"temperature": self.temperature.clone()},
        )

    def logits(self, view: Tensor, lengths: Tensor | None) -> Tensor:
        """Of the codes, fp32 [B,N,C]."""
        tokens = self.encoder.tokenize(view, lengths=lengths)
        if tokens.grid != self.encoder.adapter.grid:
            raise UserError(
                f"The view has a token grid of {tokens.grid} and the encoder was built for {self.encoder.adapter.grid}:"
                " make the sizes equal."
            )
        encoded = self.encoder.encode(tokens)
        assert encoded.tokens is not None
        return self.encoder.logits(encoded.tokens)

    def draw(self, shares: Tensor) -> Tensor:
        """Values [B,N,K*C] of the patches from shares [B,N,C] of the codes."""
        x = self.project((shares.to(self.encoder.codes.dtype) @ self.encoder.codes).to(self.project.weight.dtype))
        x = x + self.positions.to(x.dtype)
        for block in self.decoder:
            x = block(x)
        values: Tensor = self.head(self.norm(x))
        return values

    @torch.no_grad()
    def use(self, logits: Tensor) -> dict[str, Tensor]:
        codes = logits.argmax(-1).flatten()
        counts = codes.new_zeros(logits.shape[-1]).index_add_(0, codes, torch.ones_like(codes))
        perplexity = torch.special.entr(counts.float() / len(codes)).sum().exp()
        return {"code_perplexity": perplexity, "codes_used": (counts > 0).float().mean()}

    @torch.no_grad()
    def after_step(self, step: int, total: int, applied: Tensor) -> None:
        self.temperature.fill_(cosine_temperature(step + 1, round(self.anneal * total), *self.range))

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Picture]:
        """Views, and what the decoder draws of the one most likely code of each patch."""
        adapter, name = self.encoder.adapter, self.views[0]
        view = batch.views[name][:SAMPLES]
        lengths = batch.lengths[name][:SAMPLES] if name in batch.lengths else None
        logits = self.logits(view, lengths)
        shares = F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        pixels = adapter.pixels(view, lengths)
        patches = self.draw(shares).float().unflatten(2, (-1, adapter.front.channels))
        drawn = adapter.unpatches(patches, adapter.grid)
        columns = [cells(adapter.front, stage) for stage in (pixels, drawn)]
        rows = tuple(zip(*columns, strict=True))
        return {"reconstruction": Picture(KINDS[adapter.spec.modality], ("original", "from one code a patch"), rows)}

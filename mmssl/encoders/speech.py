"""HuBERT (Hsu et al. 2021, arXiv:2106.07447) and WavLM (Chen et al. 2022, arXiv:2110.13900) as one encoder.

The modules are our own, under the names that Hub files carry, and their outputs, hidden states and gradients are those
of transformers' HubertModel and WavLMModel. transformers' own cannot train a HuBERT: they skip layers process by
process, which stops DDP, scale no gradient, and WavLM's attention has no fused kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.specs import WaveformSpec
from mmssl.adapters.waveform import ConvLayer, WaveformFrames
from mmssl.encoders.base import TokenEncoder
from mmssl.errors import UserError
from mmssl.types import Encoded, Tokens


@dataclass(frozen=True)
class SpeechSettings:
    """The trunk; `WaveformSpec` has the convolutions. Defaults are HuBERT BASE's."""

    arch: Literal["hubert", "wavlm"] = "hubert"
    """WavLM's attention adds a relative position bias, gated by what a frame holds."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    pre_norm: bool = False
    """Norms before attention and MLP, and one at the end (LARGE), or behind each and one at the start (BASE)."""
    dropout: float = 0.1
    """After attention and MLP, and where the blocks begin."""
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    """Inside the MLP."""
    input_dropout: float = 0.1
    """After the projection of the convolutions' features."""
    layer_drop: float = 0.05
    """Probability that a step leaves a block out (Fan et al. 2019, LayerDrop)."""
    feature_gradient: float = 0.1
    """Factor on the gradient of the convolutions."""
    position_kernel: int = 128
    """Frames under the convolution that tells positions."""
    position_groups: int = 16
    projection_norm: bool = True
    """Layer norm before the projection; every released HuBERT and WavLM has it."""
    buckets: int = 320
    """Of WavLM's relative positions, both directions together."""
    max_distance: int = 800
    """Frames from which on all distances share WavLM's last bucket."""
    norm_eps: float = 1e-5


def speech_preset(name: str, arch: Literal["hubert", "wavlm"] = "hubert") -> tuple[WaveformSpec, SpeechSettings]:
    """Input and trunk of the published sizes: 94, 315 and 962 million parameters. LARGE and X-LARGE are pre-trained
    without dropout and layer drop, and with the whole gradient of the convolutions."""
    if name == "base":
        return WaveformSpec(), SpeechSettings(arch=arch)
    shapes = {"large": (1024, 24, 16, 4.0), "xlarge": (1280, 48, 16, 4.0)}
    if name not in shapes:
        raise UserError(f"There is no speech encoder of size '{name}': choose base, large or xlarge.")
    width, depth, heads, ratio = shapes[name]
    return WaveformSpec(norm="layer", normalise=True), SpeechSettings(
        arch=arch,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=ratio,
        pre_norm=True,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
        feature_gradient=1.0,
    )


class PositionConv(nn.Module):
    """What a frame's neighbourhood tells of its position [B,N,D] -> [B,N,D]: a convolution, whose weight has a learned
    norm for each place under the kernel (Salimans & Kingma 2016), and GELU."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight_v, std=math.sqrt(4 / (width * kernel)))
        with torch.no_grad():
            self.weight_g.copy_(self.weight_v.norm(dim=(0, 1), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight_v.shape[2]
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        moved = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=kernel // 2, groups=self.groups)
        return F.gelu(moved[:, :, : x.shape[1]].transpose(1, 2))  # an even kernel gives one place more


class Attention(nn.Module):
    """Multi-head self-attention [B,N,D] -> [B,N,D]; `gated` for WavLM's."""

    def __init__(self, width: int, heads: int, *, dropout: float, gated: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        if gated:
            self.gru_rel_pos_const = nn.Parameter(torch.ones(1, heads, 1, 1))
            self.gru_rel_pos_linear = nn.Linear(width // heads, 8)

    def forward(self, x: Tensor, padding: Tensor | None, bias: Tensor | None) -> Tensor:
        mask = None if padding is None else ~padding[:, None, None]
        q, k, v = (self._split(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if bias is not None:
            bias = (self.gate(x) * bias).to(q.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def gate(self, x: Tensor) -> Tensor:
        """[B,heads,N,1]: how much of the position bias each query takes, as its frame says (WavLM, equation 4 and the
        next ones in the form of the released code)."""
        a, b = self.gru_rel_pos_linear(self._split(x)).unflatten(3, (2, 4)).sum(4).sigmoid().chunk(2, dim=3)
        return a * (b * self.gru_rel_pos_const - 1) + 2

    def _split(self, x: Tensor) -> Tensor:
        """[B,N,D] -> [B,heads,N,D/heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, *, inner: float, dropout: float) -> None:
        super().__init__()
        self.intermediate_dropout = nn.Dropout(inner)
        self.intermediate_dense = nn.Linear(width, hidden)
        self.output_dense = nn.Linear(hidden, width)
        self.output_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.intermediate_dropout(F.gelu(self.intermediate_dense(x)))
        return self.output_dropout(self.output_dense(x))


class Block(nn.Module):
    """Transformer block [B,N,D] -> [B,N,D] with its norms before (`pre_norm`) or behind attention and MLP.

    It has the name of the ViT's: by that name FSDP finds what to shard by.
    """

    def __init__(self, settings: SpeechSettings) -> None:
        super().__init__()
        width, eps = settings.width, settings.norm_eps
        self.pre_norm = settings.pre_norm
        self.attention = Attention(
            width, settings.heads, dropout=settings.attention_dropout, gated=settings.arch == "wavlm"
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.layer_norm = nn.LayerNorm(width, eps=eps)
        self.feed_forward = MLP(
            width, round(width * settings.mlp_ratio), inner=settings.activation_dropout, dropout=settings.dropout
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, padding: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """padding bool [B,N], True = padding; bias [heads,N,N] of WavLM."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.layer_norm(x), padding, bias))
            return x + self.feed_forward(self.final_layer_norm(x))
        x = self.layer_norm(x + self.dropout(self.attention(x, padding, bias)))
        return self.final_layer_norm(x + self.feed_forward(x))


class SpeechEncoder(TokenEncoder):
    """HuBERT or WavLM over waveforms [B,S].

    `mask_token` [D] is a buffer that is read from and written to files (transformers' masked_spec_embed), so that a
    public checkpoint's goes on being used; `learn_mask_token` makes it a parameter, for an objective that masks.

    Raises:
        UserError: a width that is no multiple of the heads or of the groups of the position convolution.
    """

    adapter: WaveformFrames
    spec: WaveformSpec
    mask_token: Tensor
    pooling = "mean"

    def __init__(self, spec: WaveformSpec, settings: SpeechSettings) -> None:
        super().__init__()
        for what, count in (("heads", settings.heads), ("position groups", settings.position_groups)):
            if settings.width % count:
                raise UserError(f"A width of {settings.width} is not a multiple of {count} {what}: change one of them.")
        self.spec, self.settings, self.width = spec, settings, settings.width
        self.adapter = WaveformFrames(
            spec,
            settings.width,
            gradient=settings.feature_gradient,
            norm=settings.projection_norm,
            eps=settings.norm_eps,
            dropout=settings.input_dropout,
        )
        self.register_buffer("mask_token", torch.empty(settings.width))
        self.position = PositionConv(settings.width, settings.position_kernel, settings.position_groups)
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_eps)
        self.dropout = nn.Dropout(settings.dropout)
        self.relative = nn.Embedding(settings.buckets, settings.heads) if settings.arch == "wavlm" else None
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.depth))
        self.apply(initialise)
        nn.init.uniform_(self.mask_token)

    def learn_mask_token(self) -> nn.Parameter:
        """Make `mask_token` a parameter, from the value it has; the caller must use it in every step."""
        token = nn.Parameter(self.mask_token.detach().clone())
        del self.mask_token
        self.register_parameter("mask_token", token)
        return token

    def tokenize(self, view: Tensor, *, keep: Tensor | None = None, lengths: Tensor | None = None) -> Tokens:
        """Frames of waveforms, `features` [B,N,C] beside them; raises UserError for `keep`."""
        return self.adapter(view, keep, lengths)

    def encode(
        self,
        tokens: Tokens,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        hidden: bool = False,
    ) -> Encoded:
        """As `TokenEncoder.encode`; `mask_token` is the encoder's own if None, and `pooled` leaves padding out.

        `hidden`: what enters the first block, then what each block gives, before the final norm of a pre-norm trunk
        (transformers' output_hidden_states).
        """
        if keep is not None:
            raise UserError("A speech encoder adds positions by a convolution over all frames: it encodes all of them.")
        settings, x, padding = self.settings, tokens.x, tokens.padding
        if mask is not None:
            token = self.mask_token if mask_token is None else mask_token
            x = torch.where(mask[..., None], token.to(x.dtype), x)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        x = x + self.position(x)
        if not settings.pre_norm:
            x = self.norm(x)
        x = self.dropout(x)
        bias = None if self.relative is None else self.position_bias(self.relative, x.shape[1])
        dropped = None
        if self.training and settings.layer_drop:
            # All blocks run, so that every process has a gradient for every weight and nobody waits for the draw.
            dropped = torch.rand(len(self.blocks), device=x.device) < settings.layer_drop
        states = [x]
        for number, block in enumerate(self.blocks):
            y = block(x, padding, bias)
            x = y if dropped is None else torch.where(dropped[number], x, y)
            if hidden:
                states.append(x)
        if settings.pre_norm:
            x = self.norm(x)
        return Encoded(
            pooled=_mean_of_real(x, padding), tokens=x, grid=tokens.grid, hidden=tuple(states) if hidden else None
        )

    def position_bias(self, relative: nn.Embedding, frames: int) -> Tensor:
        """WavLM's bias [heads,N,N] of key minus query position, not gated."""
        distance = torch.arange(1 - frames, frames, device=relative.weight.device)
        values = relative(bucket(distance, self.settings.buckets, self.settings.max_distance))  # [2N-1,heads]
        return values.T.unfold(1, frames, 1).flip(1)  # row i of the windows begins at -i once they are turned round


def bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """T5's buckets of signed distances, int64 of the same shape (Raffel et al. 2020, arXiv:1910.10683): half of them
    for each direction; of these the first half one distance each, the others ever wider up to `max_distance`."""
    half, size = buckets // 2, distance.abs()
    exact = half // 2
    wide = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    wide = (exact + wide).long().clamp(max=half - 1)
    return (distance > 0) * half + torch.where(size < exact, size, wide)


def initialise(module: nn.Module) -> None:
    """The start that torchaudio's HuBERTPretrainModel describes: convolutions by He et al. 2015, linear layers of the
    blocks and the table of distances normal with deviation 0.02, zero biases; the projection of features as PyTorch."""
    if isinstance(module, ConvLayer):
        nn.init.kaiming_normal_(module.conv.weight)
    elif isinstance(module, Attention | MLP):
        for part in module.children():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def _mean_of_real(x: Tensor, padding: Tensor | None) -> Tensor:
    """Mean [B,D] over the frames [B,N,D] that are no padding."""
    if padding is None:
        return x.mean(1)
    real = (~padding).unsqueeze(2).float()  # bf16 cannot count beyond 256
    return ((x * real).sum(1) / real.sum(1)).to(x.dtype)

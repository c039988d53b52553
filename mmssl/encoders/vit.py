"""The transformer trunk of every modality: a ViT that knows tokens, not media (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.adapters.base import Adapter
from mmssl.encoders.base import TokenEncoder
from mmssl.encoders.positions import Grid, interpolate, join_separable, rope_3d, sincos_1d, sincos_2d, turn
from mmssl.errors import UserError
from mmssl.types import Encoded, Tokens

Bias = Literal["full", "qv", "none"]
Positions = Literal["sincos", "learned", "sincos1d", "separable", "rope3d"]
Initial = Literal["xavier", "truncated"]


@dataclass(frozen=True)
class ViTSettings:
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    prefix: int = 1
    """Prefix tokens: 0, 1 (CLS) or 2 (CLS and distillation, as AST has them)."""
    positions: Positions = "sincos"
    """'sincos': MAE's fixed table over rows and columns; 'sincos1d': VideoMAE's over the flat token number;
    'separable': MAE-ST's sum of a learned table over rows and columns and a learned table over time;
    'rope3d': V-JEPA 2's, nothing is added and every block turns its queries and keys by frame, row and column."""
    drop_path: float = 0.0
    """Share of samples that skip the last block; it grows linearly from 0 at the first block (Huang et al. 2016)."""
    layer_scale: float | None = None
    """Initial value of a learned factor a channel on every branch (Touvron et al. 2021, CaiT); None for none. A file
    for transformers has the factors in the weights before them, and is read as an encoder without layer scale."""
    qkv_bias: Bias = "full"
    """'qv' leaves out the bias of the keys, as VideoMAE and BEiT do."""
    norm_eps: float = 1e-6
    pooling: Literal["mean", "cls", "prefix"] = "mean"
    """What `Encoded.pooled` is: mean over patch tokens, the first prefix token, or the mean of the prefix tokens."""
    final_norm: bool = True
    initial: Initial = "xavier"
    """How weights start: 'xavier' as MAE's and VideoMAE's, 'truncated' as V-JEPA's and BEiT's."""


def vit_preset(name: Literal["tiny", "small", "base", "large", "huge"]) -> tuple[int, int, int]:
    """(width, depth, heads) of the common sizes: 5.4, 21, 85, 303 and 630 million parameters in the blocks."""
    presets = {
        "tiny": (192, 12, 3),
        "small": (384, 12, 6),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
    }
    if name not in presets:
        raise UserError(f"There is no ViT size '{name}': choose one of {', '.join(presets)}.")
    return presets[name]


def drop_path(branch: Tensor, rate: float) -> Tensor:
    """Zero the branch [B,...] of a random share `rate` of the samples and scale the others up to the same mean."""
    kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= rate
    return branch * (kept / (1 - rate)).to(branch.dtype)


class Attention(nn.Module):
    """Multi-head self-attention [B,N,D] -> [B,N,D] with one matrix for queries, keys and values, which `rope`
    [1 or B,N,2,D/heads] turns where it is given."""

    def __init__(self, width: int, heads: int, *, bias: Bias = "full") -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"A width of {width} is not a multiple of {heads} heads: change one of them.")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias == "full")
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if bias == "qv" else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        B, N, D = x.shape
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).view(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = turn(q, rope), turn(k, rope)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block [B,N,D] -> [B,N,D]: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        bias: Bias = "full",
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.drop_rate = drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, bias=bias)
        self.scale1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = MLP(width, round(width * mlp_ratio))
        self.scale2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        x = x + self._branch(self.attn(self.norm1(x), rope), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)

    def _branch(self, branch: Tensor, scale: Tensor | None) -> Tensor:
        if scale is not None:
            branch = branch * scale
        if self.drop_rate and self.training:
            branch = drop_path(branch, self.drop_rate)
        return branch


def initialise(module: nn.Module) -> None:
    """Weights as MAE and VideoMAE start them, for `nn.Module.apply`: xavier-uniform matrices, zero biases, unit norms.

    The patch projection is drawn as the matrix it is, not as a convolution.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def initialise_truncated(module: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Weights as V-JEPA 2's code starts them: normal matrices of deviation 0.02, zero biases, unit norms; what the two
    branches of `blocks`, some of the submodules, put out is scaled by 1 / sqrt(2 n) in the n-th."""
    for part in module.modules():
        initialise(part)
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=0.02)
    with torch.no_grad():
        for number, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            for branch in (block.attn.proj, block.mlp.fc2):
                branch.weight.div_(math.sqrt(2 * number))


class ViT(TokenEncoder):
    """A vision transformer over the tokens of any adapter.

    The learned position of a prefix token is part of the token itself; fixed tables have zero there.

    Args:
        adapter: raw media -> tokens; its width must be settings.width.
        settings: see ViTSettings.

    Raises:
        UserError: settings that contradict each other or the adapter.
    """

    pos: Tensor | None
    """[1,N,D] of the nominal grid; None where `pos_space` [1,H*W,D] and `pos_time` [1,T,D] make it up ('separable'),
    or where there is none ('rope3d')."""
    rope: Tensor

    def __init__(self, adapter: Adapter, settings: ViTSettings) -> None:
        super().__init__()
        _check(adapter, settings)
        self.adapter = adapter
        self.settings = settings
        self.spec = adapter.spec
        self.width = settings.width
        self.pooling = settings.pooling
        self.prefix = nn.Parameter(torch.zeros(1, settings.prefix, self.width)) if settings.prefix else None
        T, H, W = adapter.grid
        if settings.positions == "separable":
            self.register_parameter("pos", None)
            self.pos_space = nn.Parameter(torch.zeros(1, H * W, self.width))
            self.pos_time = nn.Parameter(torch.zeros(1, T, self.width))
        elif settings.positions == "rope3d":
            self.register_parameter("pos", None)
            self.register_buffer("rope", rope_3d(adapter.grid, self.width // settings.heads), persistent=False)
        elif settings.positions == "learned":
            self.pos = nn.Parameter(torch.zeros(1, T * H * W, self.width))
        else:
            self.register_buffer("pos", fixed_positions(settings.positions, adapter.grid, self.width), persistent=False)
        rates = [settings.drop_path * i / max(settings.depth - 1, 1) for i in range(settings.depth)]
        self.blocks = nn.ModuleList(
            Block(
                self.width,
                settings.heads,
                mlp_ratio=settings.mlp_ratio,
                bias=settings.qkv_bias,
                norm_eps=settings.norm_eps,
                drop_path=rate,
                layer_scale=settings.layer_scale,
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(self.width, eps=settings.norm_eps) if settings.final_norm else nn.Identity()
        if settings.initial == "xavier":
            self.apply(initialise)
        else:
            initialise_truncated(self, self.blocks)
        for parameter in self.parameters(recurse=False):  # prefix tokens and learned positions
            nn.init.normal_(parameter, std=0.02)

    def tokenize(self, view: Tensor, *, keep: Tensor | None = None, lengths: Tensor | None = None) -> Tokens:
        tokens = self.adapter(view, keep, lengths)
        if self.settings.positions == "rope3d":
            same = tokens.grid == self.adapter.grid
            rope = self.rope if same else rope_3d(tokens.grid, self.rope.shape[3], tokens.x.device)
            return Tokens(x=tokens.x, grid=tokens.grid, rope=rope if keep is None else gather_rope(rope, keep))
        pos = interpolate(self.position_table(), self.adapter.grid, tokens.grid)
        if keep is not None:
            pos = _gather(pos.expand(len(keep), -1, -1), keep)
        return Tokens(x=tokens.x, grid=tokens.grid, pos=pos)

    def position_table(self) -> Tensor:
        """The added positions [1,N,D] of the nominal grid; 'rope3d' has none."""
        return join_separable(self.pos_space, self.pos_time) if self.pos is None else self.pos

    def encode(
        self,
        tokens: Tokens,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        hidden: bool = False,
    ) -> Encoded:
        x = tokens.x
        if mask is not None:
            if mask_token is None:
                raise ValueError("encode(mask=...) needs a mask_token of shape [D]")
            x = torch.where(mask[..., None], mask_token.to(x.dtype), x)
        if tokens.pos is not None:
            # Follows the parameters, not x: the residual stream is fp32 under autocast, and bf16 under FSDP in bf16.
            x = x + tokens.pos.to(self.adapter.projection.weight.dtype)
        rope = tokens.rope
        if keep is not None:
            x = _gather(x, keep)
            rope = None if rope is None else gather_rope(rope, keep)
        if self.prefix is not None:
            x = torch.cat([self.prefix.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        states = [x]
        for block in self.blocks:
            x = block(x, rope)
            if hidden:
                states.append(x)
        x = self.norm(x)
        prefix, patches = x[:, : self.settings.prefix], x[:, self.settings.prefix :]
        pooled = {"mean": patches, "cls": prefix[:, :1], "prefix": prefix}[self.pooling].mean(1)
        return Encoded(
            pooled=pooled,
            tokens=patches,
            prefix=prefix if self.prefix is not None else None,
            grid=tokens.grid,
            hidden=tuple(states) if hidden else None,
        )


def fixed_positions(positions: str, grid: Grid, width: int) -> Tensor:
    """The fixed table [1,N,D] of a token grid."""
    T, H, W = grid
    table = sincos_1d(T * H * W, width) if positions == "sincos1d" else sincos_2d(H, W, width)
    return table[None]


def gather_rope(rope: Tensor, keep: Tensor) -> Tensor:
    """rope [1 or B,N,2,E] of the tokens keep [B,V]: [B,V,2,E]."""
    return _gather(rope.flatten(2).expand(len(keep), -1, -1), keep).unflatten(2, (2, -1))


def _gather(x: Tensor, keep: Tensor) -> Tensor:
    """Tokens [B,V,D] of x [B,N,D] at the indices keep [B,V]."""
    return x.gather(1, keep[..., None].expand(-1, -1, x.shape[2]))


def _check(adapter: Adapter, settings: ViTSettings) -> None:
    if adapter.width != settings.width:
        raise UserError(
            f"The adapter makes tokens of width {adapter.width} and the ViT takes {settings.width}: make them equal."
        )
    if settings.prefix not in (0, 1, 2):
        raise UserError(f"prefix={settings.prefix} tokens: choose 0, 1 (CLS) or 2 (CLS and distillation).")
    if settings.positions == "rope3d" and settings.prefix:
        raise UserError("positions='rope3d' turns every token by its place, and a prefix token has none: set prefix=0.")
    if settings.pooling != "mean" and not settings.prefix:
        raise UserError(f"pooling='{settings.pooling}' needs a prefix token: set prefix=1 or pooling='mean'.")
    if settings.positions == "sincos" and adapter.grid[0] > 1:
        raise UserError(
            "positions='sincos' covers rows and columns only: choose 'sincos1d', 'separable', 'learned' or 'rope3d' "
            "for clips."
        )
    if not 0 <= settings.drop_path < 1:
        raise UserError(f"drop_path={settings.drop_path} must lie in [0, 1).")

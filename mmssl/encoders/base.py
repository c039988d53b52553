"""The one call that every encoder has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mmssl.adapters.specs import Spec
from mmssl.types import Encoded, Tokens

if TYPE_CHECKING:
    from mmssl.adapters.base import Adapter


class Encoder(nn.Module, ABC):
    """A view of raw media in, `Encoded` out.

    Attributes:
        width: D, the width of `pooled` and of the tokens.
        spec: what the encoder takes (size, frames, rate, mean and std).
        pooling: how `pooled` is made: 'mean' (over patch tokens or the feature map), 'max' (over the feature map),
            'cls', or 'prefix' (mean of the prefix tokens).
    """

    width: int
    spec: Spec
    pooling: str

    @abstractmethod
    def forward(self, view: Tensor, *, lengths: Tensor | None = None, hidden: bool = False) -> Encoded:
        """Encode views [B,3,H,W], [B,T,3,H,W] or [B,S]; `hidden` adds the states of every layer."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, weights, preprocessor_config.json and README.md in this encoder's Hugging Face layout."""
        from mmssl.encoders.files import save_encoder

        save_encoder(self, folder)

    @staticmethod
    def from_pretrained(name: str | Path) -> Encoder:
        """Load an encoder from a folder or a Hub id: our runs, and ViT, ViTMAE, VideoMAE, AST, HuBERT,
        WavLM and ResNet checkpoints.

        Only safetensors files are read. Raises UserError naming missing or unexpected weights.
        """
        from mmssl.encoders.files import load_encoder

        return load_encoder(name)


class TokenEncoder(Encoder):
    """An encoder over tokens; masked objectives need this kind."""

    adapter: Adapter

    @abstractmethod
    def tokenize(self, view: Tensor, *, keep: Tensor | None = None, lengths: Tensor | None = None) -> Tokens:
        """Adapter output with the positions of its grid filled in (not added).

        With `keep` (int64 [B,V]) only those patches are projected: `encode(tokenize(view, keep=keep))` equals
        `encode(tokenize(view), keep=keep)` and costs less.
        """

    @abstractmethod
    def encode(
        self,
        tokens: Tokens,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        hidden: bool = False,
    ) -> Encoded:
        """Replace masked tokens, add positions, gather `keep`, prepend prefix tokens, run blocks and final norm.

        Args:
            keep: int64 [B,V], the tokens to encode, in this order; all of them if None.
            mask: bool [B,N], True = replaced by `mask_token` before positions are added.
            mask_token: [D].
        """

    def forward(self, view: Tensor, *, lengths: Tensor | None = None, hidden: bool = False) -> Encoded:
        return self.encode(self.tokenize(view, lengths=lengths), hidden=hidden)

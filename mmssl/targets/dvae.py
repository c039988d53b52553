"""The encoder of a discrete VAE: a ViT whose tokens are compared with learned codes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from mmssl.adapters.base import Adapter
from mmssl.encoders.build import build_adapter
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import LayerFeatures, feature_text, features_from
from mmssl.targets.tokenizer import Tokenizer

CODES = "codes.safetensors"


class CodeViT(ViT):
    """A ViT with `codes` [C,D]. The logit of code c for a token x is -|x - c|^2 / 2, less a term that all codes share:
    the most likely code is the nearest one, and so encoder and codes are a `Tokenizer` as k-means makes them.

    What it writes is the plain ViT, and CODES beside it.

    Args:
        settings: the last state is compared as it is, so that there is no final norm.

    Raises:
        UserError: fewer than two codes, or settings with a final norm.
    """

    def __init__(self, adapter: Adapter, settings: ViTSettings, codes: int) -> None:
        super().__init__(adapter, settings)
        if codes < 2 or settings.final_norm:
            raise UserError(
                f"{codes} codes, final_norm={settings.final_norm}: give 2 codes or more, and no norm after the last "
                "block (final_norm=False)."
            )
        # Of about unit length, as far from all tokens at the start: logits differ by about 1.
        self.codes = nn.Parameter(torch.randn(codes, self.width) / self.width**0.5)

    def logits(self, tokens: Tensor) -> Tensor:
        """fp32 [B,N,C] of tokens [B,N,D]."""
        with torch.autocast(tokens.device.type, enabled=False):
            codes = self.codes.float()
            return tokens.float() @ codes.T - codes.square().sum(1) / 2

    def save_pretrained(self, folder: str | Path) -> None:
        plain = ViT(build_adapter(self.spec, self.width), self.settings)
        state = {name: tensor.detach().float() for name, tensor in self.state_dict().items()}
        codes = state.pop("codes")
        plain.load_state_dict(state)
        plain.save_pretrained(folder)
        features = LayerFeatures(plain, self.settings.depth)
        Codebook(codes, feature_text(features.describe())).save(Path(folder) / CODES)


def load_dvae(folder: Path) -> Tokenizer:
    """The tokenizer that a run of a discrete VAE has left in OUT/encoder.

    Raises:
        UserError: the codes are of another encoder, or either is damaged.
    """
    codebook = Codebook.load(folder / CODES)
    try:
        description = json.loads(codebook.features)
    except ValueError as error:
        raise UserError(f"{folder / CODES} tells no features: name the encoder of a discrete VAE.") from error
    return Tokenizer(features_from(description, folder), codebook)

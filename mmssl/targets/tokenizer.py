"""A frozen tokenizer: raw views in, codes out, on the device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import Features, feature_text, features_from
from mmssl.targets.units import CODEBOOK, read_about


class Tokenizer(nn.Module):
    """Features and the codebook that was made of them. Nothing in it is trained, and it stays in evaluation mode.

    Attributes:
        features: what is made of a view.
    """

    centroids: Tensor

    def __init__(self, features: Features, codebook: Codebook) -> None:
        super().__init__()
        if codebook.features != feature_text(features.describe()):
            raise UserError(
                f"The codebook is of {codebook.features}, and the features are {feature_text(features.describe())}: "
                "name the folder that holds both."
            )
        self.features = features
        self.name = codebook.features
        self.register_buffer("centroids", codebook.centroids.float(), persistent=False)
        self.requires_grad_(False).eval()

    @property
    def codes(self) -> int:
        """Number of codes; those that `forward` gives lie in [0, codes)."""
        return len(self.centroids)

    def train(self, mode: bool = True) -> Tokenizer:
        return super().train(False)

    @torch.no_grad()
    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes int64 [B,N] of views of raw media ([B,3,H,W], [B,T,3,H,W] or [B,S]), in token order.

        Args:
            lengths: int64 [B], real samples of padded waveforms.
        """
        return Codebook(self.centroids, self.name).assign(self.features(view, lengths))


def load_tokenizer(folder: str | Path, encoder: str | Path | None = None) -> Tokenizer:
    """The tokenizer that target making has left in a folder of units.

    Args:
        encoder: where the encoder lies that it looks through, if no longer where it was then.

    Raises:
        UserError: there is none, or the encoder that it looks through is gone or another one.
    """
    folder = Path(folder)
    about = read_about(folder)
    return Tokenizer(features_from(about["features"], encoder or about["encoder"]), Codebook.load(folder / CODEBOOK))

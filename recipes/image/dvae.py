"""Discrete VAE: a tokenizer for image/beit, trained on one's own pictures.

paper      Ramesh et al. 2021, Zero-Shot Text-to-Image Generation (DALL-E), arXiv:2102.12092, section 2.1; BEiT (Bao et
           al. 2022, arXiv:2106.08254) takes its codes
command    mmssl pretrain image/dvae --data DIR --out TOKENIZER
           mmssl pretrain image/beit --data DIR --units TOKENIZER --out DIR
hardware   none stated; the logits of 64 pictures take 0.4 GB, and a step holds several copies: raise --accumulate
published  none for a tokenizer alone
ours       not measured yet
difference 8192 codes on 14 x 14 places of 112 pixels are BEiT's, codes relaxed by a temperature that falls along a
           cosine from 1 to 1/16 are DALL-E's (as we recall its appendix); all else is our choice: ViTs in place of
           convolutions, squared error, rates and times
           DALL-E's own tokenizer is not trained here: see image/beit
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import ImageSpec
from mmssl.data.views import ImageViews
from mmssl.encoders.build import build_adapter
from mmssl.encoders.vit import ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.dvae import DiscreteVAE
from mmssl.targets.dvae import CodeViT
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(frozen=True)
class Decoder:
    width: int = 256
    depth: int = 4
    heads: int = 4


@dataclass(kw_only=True)
class Settings(Common):
    """Discrete VAE (as in DALL-E, Ramesh et al. 2021): one of 8192 codes a patch, and the picture drawn from them."""

    input: ImageSpec = field(default_factory=lambda: ImageSpec(size=112, patch=8))
    encoder: ViTSettings = field(
        default_factory=lambda: ViTSettings(width=256, depth=4, heads=4, prefix=0, final_norm=False)
    )
    decoder: Decoder = field(default_factory=Decoder)
    codes: int = 8192
    temperature: tuple[float, float] = (1.0, 1 / 16)
    """Of the relaxed codes, at the beginning and after `anneal`."""
    anneal: float = 0.5
    """Share of the run in which the temperature falls."""
    divergence_weight: float = 1e-3
    """Squared error that a nat between a patch's codes and even use of all is worth."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a crop covers."""

    epochs: float = 50
    batch_size: int = 512
    base_lr: float = 5e-4
    lr_per: int = 512
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0


def build(settings: Settings) -> Parts:
    if settings.init is not None:
        raise UserError(f"--init {settings.init}: a discrete VAE is trained from the beginning; leave it out.")
    adapter = build_adapter(settings.input, settings.encoder.width)
    objective = DiscreteVAE(
        CodeViT(adapter, settings.encoder, settings.codes),
        decoder_width=settings.decoder.width,
        decoder_depth=settings.decoder.depth,
        decoder_heads=settings.decoder.heads,
        temperature=settings.temperature,
        anneal=settings.anneal,
        divergence_weight=settings.divergence_weight,
    )
    return Parts(objective, ImageViews(settings.input.size, scale=settings.scale))


if __name__ == "__main__":
    main(Settings, build)

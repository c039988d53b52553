"""Masked autoencoder on images.

paper      He et al. 2021, Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377
command    mmssl pretrain image/mae --data DIR --out DIR
           accelerate launch recipes/image/mae.py --data DIR --out DIR
hardware   paper: ViT-L, 800 epochs of ImageNet-1k, about 42 h on 64 V100
published  ImageNet-1k, ViT-B, 1600 epochs: 83.6 % fine-tuned, 67.8 % linear
ours       not at this scale; the demo (ViT 128 x 6, 2,000 pictures of clothes): 78.5 % linear, untrained 70.5 %
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import ImageSpec
from mmssl.data.views import ImageViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import RandomMask
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(frozen=True)
class Decoder:
    width: int = 512
    depth: int = 8
    heads: int = 16


@dataclass(kw_only=True)
class Settings(Common):
    """MAE (He et al. 2021): hide 75 % of an image's patches, encode the rest, predict the hidden pixels."""

    input: ImageSpec = field(default_factory=ImageSpec)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """ViT-B."""
    decoder: Decoder = field(default_factory=Decoder)
    mask_ratio: float = 0.75
    """Share of the patches that the encoder does not see."""
    norm_pixels: bool = True
    """Predict each patch normalised by its own mean and deviation."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the picture's area that a crop covers."""

    epochs: float = 800
    batch_size: int = 4096
    base_lr: float = 1.5e-4
    warmup: float = 0.05  # 40 of 800 epochs
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, ImageSpec)
    objective = MaskedAutoencoder(
        encoder,
        mask=RandomMask(settings.mask_ratio),
        decoder_width=settings.decoder.width,
        decoder_depth=settings.decoder.depth,
        decoder_heads=settings.decoder.heads,
        target="patch_norm_joint" if settings.norm_pixels else "pixels",
    )
    return Parts(objective, ImageViews(size=spec.size, scale=settings.scale))


if __name__ == "__main__":
    main(Settings, build)

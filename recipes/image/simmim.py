"""SimMIM on images.

paper      Xie et al. 2022, SimMIM: A Simple Framework for Masked Image Modeling, arXiv:2111.09886
command    mmssl pretrain image/simmim --data DIR --out DIR
hardware   authors: batches of 128 on each of 16 V100
published  ImageNet-1k, ViT-B, 800 epochs, fine-tuned: 83.8 %
ours       not measured yet
difference the authors' ViT has relative positions shared by its layers and layer scale 0.1, and its rate falls to a
           tenth at epoch 700; here it has fixed sin-cos positions, so that transformers' ViTModel loads it, and the
           rate follows a cosine down to that tenth
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import ImageSpec
from mmssl.data.views import ImageViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masks import CoarseMask
from mmssl.objectives.simmim import SimMIM
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """SimMIM (Xie et al. 2022): replace 60 % of an image by a mask token, predict its pixels with a linear layer."""

    input: ImageSpec = field(default_factory=ImageSpec)
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(drop_path=0.1))
    """ViT-B."""
    mask_ratio: float = 0.6
    """Share of the mask units that are hidden."""
    mask_unit: int = 2
    """Side of a mask unit, in patches: 32 pixels with patches of 16."""
    scale: tuple[float, float] = (0.67, 1.0)
    """Share of the picture's area that a crop covers."""

    epochs: float = 800
    batch_size: int = 2048
    base_lr: float = 1e-4
    lr_per: int = 512
    min_lr: float = 1e-5
    warmup: float = 10 / 800
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 5.0


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, ImageSpec)
    objective = SimMIM(encoder, mask=CoarseMask(settings.mask_ratio, (1, settings.mask_unit, settings.mask_unit)))
    return Parts(objective, ImageViews(size=spec.size, scale=settings.scale, interpolation="bilinear"))


if __name__ == "__main__":
    main(Settings, build)

"""SimCLR on images.

paper      Chen et al. 2020, A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709
command    mmssl pretrain image/simclr --data DIR --out DIR
           small images: --encoder.arch resnet18 --encoder.stem cifar --input.size 32 --blur 0 --strength 0.5
                         --temperature 0.5
hardware   paper: 100 epochs of ImageNet-1k about 6 h on 32 TPU v3
published  ImageNet-1k, ResNet-50, linear: 64.5 % (100 epochs), 69.3 % (1000 epochs)
ours       not at this scale; ResNet-18, 10,000 pictures of CIFAR-10, 5 epochs: kNN .359 over 3 seeds, lightly .358
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import ImageSpec
from mmssl.data.device_views import Photometric
from mmssl.data.views import ImageViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.contrastive import Contrastive
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """SimCLR (Chen et al. 2020): two augmented views of an image attract, those of other images of the batch repel."""

    input: ImageSpec = field(default_factory=ImageSpec)
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(arch="resnet50"))
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    out_width: int = 128
    """Width of the projection that the loss compares."""
    temperature: float = 0.1
    norm_group: int | None = None
    """Samples over which batch norm normalises; over the batch of all processes if not given, as in the paper."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a crop covers."""
    strength: float = 1.0
    """Of the colour jitter (brightness, contrast, saturation .8, hue .2)."""
    grey: float = 0.2
    """Share of views without colour."""
    blur: float = 0.5
    """Share of blurred views."""

    epochs: float = 100
    batch_size: int = 4096
    optimizer: Literal["adamw", "sgd", "lars"] = "lars"
    base_lr: float = 0.3
    warmup: float = 0.1  # 10 epochs
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, ImageSpec)
    objective = Contrastive(
        encoder,
        hidden=settings.hidden,
        out=settings.out_width,
        temperature=settings.temperature,
        norm_group=settings.norm_group,
    )
    colour = Photometric(
        names=objective.views,
        brightness=0.8 * settings.strength,
        contrast=0.8 * settings.strength,
        saturation=0.8 * settings.strength,
        hue=0.2 * settings.strength,
        p_grey=settings.grey,
        p_blur=settings.blur,
    )
    views = ImageViews(size=spec.size, names=objective.views, scale=settings.scale)
    return Parts(objective, views, [colour])


if __name__ == "__main__":
    main(Settings, build)

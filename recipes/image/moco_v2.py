"""MoCo v2 on images, on any number of devices from one on.

paper      Chen et al. 2020, Improved Baselines with Momentum Contrastive Learning, arXiv:2003.04297
command    mmssl pretrain image/moco_v2 --data DIR --out DIR
           small images: --encoder.arch resnet18 --encoder.stem cifar --input.size 32 --blur 0 --queue 4096
                         --momentum 0.99
hardware   paper: 200 epochs of ImageNet-1k in 53 h on 8 V100
published  ImageNet-1k, ResNet-50, 200 epochs, linear: 67.5 %
ours       not at this scale; ResNet-18, 10,000 pictures of CIFAR-10, 5 epochs: kNN .279 over 3 seeds, lightly .272
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import ImageSpec
from mmssl.data.device_views import Photometric
from mmssl.data.views import ImageViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.moco import MoCo
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """MoCo v2 (Chen et al. 2020): contrast with a queue of keys from a slowly moving copy of the encoder."""

    input: ImageSpec = field(default_factory=ImageSpec)
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(arch="resnet50"))
    queue: int = 65536
    """Keys kept; a multiple of the batch size."""
    momentum: float = 0.999
    """Of the copy, a step."""
    last_momentum: float | None = None
    """What that rises to by the end of the run, along a half cosine (1 in BYOL); constant if not given."""
    temperature: float = 0.2
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    out_width: int = 128
    """Width of the projection that the loss compares."""
    norm_group: int = 32
    """Samples over which batch norm normalises: the batch of one GPU in the paper."""
    symmetric: bool = False
    """Each view is query and key in turn."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the picture's area that a crop covers."""
    grey: float = 0.2
    """Share of views without colour."""
    blur: float = 0.5
    """Share of blurred views."""

    epochs: float = 200
    batch_size: int = 256
    optimizer: Literal["adamw", "sgd", "lars"] = "sgd"
    base_lr: float = 0.03
    warmup: float = 0.0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, ImageSpec)
    objective = MoCo(
        encoder,
        queue=settings.queue,
        momentum=settings.momentum,
        last_momentum=settings.last_momentum,
        temperature=settings.temperature,
        hidden=settings.hidden,
        out=settings.out_width,
        norm_group=settings.norm_group,
        symmetric=settings.symmetric,
    )
    colour = Photometric(names=objective.views, p_grey=settings.grey, p_blur=settings.blur)  # jitter .4, .4, .4, .1
    views = ImageViews(size=spec.size, names=objective.views, scale=settings.scale)
    return Parts(objective, views, [colour])


if __name__ == "__main__":
    main(Settings, build)

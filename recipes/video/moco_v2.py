"""MoCo v2 on two clips of a video, each at its own time: the objective of image/moco_v2 with another adapter.

paper      Chen et al. 2020, MoCo v2, arXiv:2003.04297, on clips as Feichtenhofer et al. 2021 (arXiv:2104.14558), from
           whose released settings temperature, colour, crops and the rising momentum of the teacher come; encoder and
           optimiser are our choice
command    mmssl pretrain video/moco_v2 --data DIR --out DIR
hardware   not stated for this encoder
published  none for this encoder; with a 3-D ResNet-50 (Slow 8 x 8, two clips, 200 epochs) Kinetics-400 linear 66.6 %,
           UCF101 fine-tuned 91.3 %
ours       not measured yet
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.device_views import Photometric
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.moco import MoCo
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """MoCo v2 on video: two clips of a video attract; a queue of other videos' clips, from a slow copy, repels."""

    input: VideoSpec = field(default_factory=VideoSpec)
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(prefix=0, positions="sincos1d", qkv_bias="qv")
    )
    """ViT-B over tubelets."""
    queue: int = 65536
    """Keys kept; a multiple of the batch size."""
    momentum: float = 0.994
    """Of the copy, a step."""
    last_momentum: float | None = 1.0
    """What that rises to by the end of the run, along a half cosine; constant if None."""
    temperature: float = 0.1
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    out_width: int = 128
    """Width of the projection that the loss compares."""
    symmetric: bool = False
    """Each clip is query and key in turn."""
    scale: tuple[float, float] = (0.2, 0.766)
    """Share of the picture's area that a crop covers."""
    flip: bool = True
    """Mirror half of the clips."""
    jitter: float = 0.6
    """Of brightness, contrast and saturation; of hue a quarter of it."""
    grey: float = 0.2
    """Share of clips without colour."""
    blur: float = 0.5
    """Share of blurred clips."""
    interval: float | None = None
    """Seconds from one frame of a clip to the next, in place of input.stride."""

    epochs: float = 200
    batch_size: int = 512
    base_lr: float = 1.5e-4
    warmup: float = 35 / 200
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
    objective = MoCo(
        encoder,
        queue=settings.queue,
        momentum=settings.momentum,
        last_momentum=settings.last_momentum,
        temperature=settings.temperature,
        hidden=settings.hidden,
        out=settings.out_width,
        symmetric=settings.symmetric,
    )
    colour = Photometric(
        names=objective.views,
        brightness=settings.jitter,
        contrast=settings.jitter,
        saturation=settings.jitter,
        hue=settings.jitter / 4,
        p_grey=settings.grey,
        p_blur=settings.blur,
    )
    views = VideoViews(
        size=spec.size,
        frames=spec.frames,
        stride=spec.stride,
        interval=settings.interval,
        names=objective.views,
        crop="random_resized",
        scale=settings.scale,
        flip=settings.flip,
    )
    return Parts(objective, views, [colour])


if __name__ == "__main__":
    main(Settings, build)

"""SimCLR on two clips of a video, each at its own time.

paper      Chen et al. 2020, SimCLR, arXiv:2002.05709, on clips as Feichtenhofer et al. 2021 (arXiv:2104.14558) and
           Qian et al. 2021 (CVRL, arXiv:2008.03800) do; colour is drawn once a clip, so that its frames agree
command    mmssl pretrain video/simclr --data DIR --out DIR
hardware   not stated for this encoder
published  none for this encoder: the papers train 3-D ResNets, and clips go through a ViT here
ours       the demo (ViT 128 x 4, 633 clips of fish, 150 steps): 69.7 % linear over 8 ways to swim, untrained 58.6 %
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.device_views import Photometric
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.contrastive import Contrastive
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """SimCLR on video: two clips of a video attract, those of all other videos of the batch repel."""

    input: VideoSpec = field(default_factory=VideoSpec)
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(prefix=0, positions="sincos1d", qkv_bias="qv")
    )
    """ViT-B over tubelets."""
    hidden: int = 2048
    """Width of the projector's hidden layer."""
    out_width: int = 128
    """Width of the projection that the loss compares."""
    temperature: float = 0.1
    norm_group: int | None = None
    """Samples over which the projector's batch norm normalises; over the batch of all processes if not given."""
    scale: tuple[float, float] = (0.3, 1.0)
    """Share of the picture's area that a crop covers."""
    flip: bool = True
    """Mirror half of the clips."""
    strength: float = 1.0
    """Of the colour jitter (brightness, contrast, saturation .8, hue .2)."""
    grey: float = 0.2
    """Share of clips without colour."""
    blur: float = 0.5
    """Share of blurred clips."""
    interval: float | None = None
    """Seconds from one frame of a clip to the next, in place of input.stride."""

    epochs: float = 200
    batch_size: int = 1024
    base_lr: float = 1.5e-4
    warmup: float = 0.1
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
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

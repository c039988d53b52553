"""SimMIM on clips: the objective of image/simmim with another adapter and another mask.

paper      Xie et al. 2022, SimMIM, arXiv:2111.09886, is about images; what clips add is our choice: mask units reach
           through the whole clip, since a patch hidden for a moment is copied from its neighbours in time, and three
           quarters of them are hidden; encoder and clips are those of video/videomae
command    mmssl pretrain video/simmim --data DIR --out DIR
hardware   none stated: all tokens go through the encoder, about ten times VideoMAE's share
published  none
ours       not measured yet
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masks import CoarseMask
from mmssl.objectives.simmim import SimMIM
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """SimMIM on video: replace 75 % of a clip's tubes by a mask token, predict their pixels with a linear layer."""

    input: VideoSpec = field(default_factory=VideoSpec)
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(prefix=0, positions="sincos1d", qkv_bias="qv", drop_path=0.1)
    )
    """ViT-B without CLS token."""
    mask_ratio: float = 0.75
    """Share of the mask units that are hidden."""
    mask_unit: int = 2
    """Side of a mask unit, in patches: 32 pixels with patches of 16. It reaches through the whole clip."""
    clips: int = 1
    """Clips cut from one decode of a file (repeated sampling)."""
    interval: float | None = None
    """Seconds from one frame of a clip to the next, in place of input.stride."""

    epochs: float = 800
    batch_size: int = 1024
    base_lr: float = 1e-4
    lr_per: int = 512
    min_lr: float = 1e-5
    warmup: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 5.0


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
    unit = (spec.frames // spec.tubelet, settings.mask_unit, settings.mask_unit)
    objective = SimMIM(encoder, view="clip", mask=CoarseMask(settings.mask_ratio, unit))
    views = VideoViews(
        size=spec.size, frames=spec.frames, stride=spec.stride, interval=settings.interval, per_file=settings.clips
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

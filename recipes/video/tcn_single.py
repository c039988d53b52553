"""TCN of a single camera: frames close in time attract, those further away repel.

paper      Sermanet et al. 2018, Time-contrastive networks, arXiv:1704.06888; official code tensorflow/models,
           research/tcn (svtcn_loss.py and configs/tcn_default.yml): positives within 6 frames of 29 a second (0.2 s),
           negatives more than 12 away (0.4 s), semi-hard triplets with margin 0.2, Adam 1e-3, l2 1e-6, 1,000,000 steps
           of 36 frames, embeddings of 32. Ours: ResNet-50 at 224 in place of a pre-trained Inception-v3 at 299; windows
           of 36 frames 0.1 s apart; warm-up and cosine; crops and colour drawn once a window
command    mmssl pretrain video/tcn_single --data DIR --out DIR
hardware   not stated
published  none for this trunk and data: the paper measures its own pouring videos
ours       not measured yet
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import ImageSpec
from mmssl.data.camera_views import WindowViews
from mmssl.data.device_views import Photometric
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.headed import HeadSettings
from mmssl.errors import UserError
from mmssl.objectives.time_contrastive import ROUNDING, TimeContrastive
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """TCN, single view: time alone teaches, on any videos."""

    input: ImageSpec = field(default_factory=ImageSpec)
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(arch="resnet50"))
    head: HeadSettings = field(default_factory=HeadSettings)
    """The embedding network; --head.normalise follows from --loss."""
    loss: Literal["triplet", "npairs"] = "triplet"
    margin: float = 0.2
    """Of the triplets, in squared distance."""
    l2: float = 0.002
    """Weight of the squared lengths, of n-pairs."""
    negatives: Literal["sample", "batch"] = "sample"
    """'batch' also takes frames of the other samples of the step."""
    near: float = 0.2
    """Seconds within which frames attract."""
    far: float = 0.4
    """Seconds beyond which frames repel."""
    frames: int = 36
    """Of one window."""
    interval: float = 0.1
    """Seconds from one frame to the next."""
    windows: int = 1
    """Samples cut from one decode of a video."""
    norm_group: int | None = None
    """Frames over which batch norms normalise; over all of the step, on all processes, if not given."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that a crop covers."""
    strength: float = 0.5
    """Of the colour jitter (brightness, contrast, saturation .8, hue .2)."""

    steps: int | None = 1_000_000
    batch_size: int = 1
    """Samples, that is windows, of one optimiser step."""
    base_lr: float = 1e-3
    lr_per: int = 1
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    span = (settings.frames - 1) * settings.interval
    if settings.negatives == "sample" and span <= settings.far + ROUNDING:
        raise UserError(
            f"A window of {settings.frames} frames, {settings.interval:g} s apart, spans {span:g} s, and only frames "
            f"more than {settings.far:g} s apart repel: raise --frames or --interval, lower --far, or take --negatives "
            "batch."
        )
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    objective = TimeContrastive(
        encoder,
        settings.head,
        names=("window",),
        loss=settings.loss,
        margin=settings.margin,
        l2=settings.l2,
        negatives=settings.negatives,
        near=settings.near,
        far=settings.far,
        norm_group=settings.norm_group,
    )
    spec = encoder.spec
    assert isinstance(spec, ImageSpec)
    views = WindowViews(
        size=spec.size,
        frames=settings.frames,
        interval=settings.interval,
        names=("window",),
        per_file=settings.windows,
        scale=settings.scale,
    )
    # Neither grey nor blur, since colour and detail tell states apart.
    strength = settings.strength
    colour = Photometric(
        names=objective.views,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        p_grey=0.0,
        p_blur=0.0,
    )
    return Parts(objective, views, [colour] if strength else [])


if __name__ == "__main__":
    main(Settings, build)

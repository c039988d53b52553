"""TCN: what two cameras see at one instant attracts, other instants of the sequence repel.

paper      Sermanet et al. 2018, Time-contrastive networks, arXiv:1704.06888; official code tensorflow/models,
           research/tcn (configs/tcn_default.yml): Adam 1e-3, l2 1e-6, 1,000,000 steps of 36 pairs of frames, drawn from
           windows of 20 s, pictures of 299, embeddings of 32, semi-hard triplets with margin 0.2, the embedding network
           of model.py. Ours: ResNet-50 at 224 in place of an Inception-v3 pre-trained on ImageNet (--init takes a
           checkpoint); 36 pairs as 4 windows of 9 instants, with negatives from the own window; warm-up and cosine;
           crops, and colour drawn once a camera and window
command    mmssl pretrain video/tcn --data DIR --out DIR; then
           mmssl evaluate alignment --encoder OUT/embedding --data DIR --out FILE
           DIR holds SEQUENCE_cam1.mp4, SEQUENCE_cam2.mp4, ... (or cameras.csv: see mmssl/data/cameras.py)
hardware   not stated
published  none for this trunk and data: the paper measures its own pouring videos
ours       not at this size; rendered robot arm, minutes on a CPU: alignment error .079, .191, .061 over 3 seeds,
           untrained .327 (docs/results.md)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import ImageSpec
from mmssl.data.camera_views import CameraViews
from mmssl.data.device_views import Photometric
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.headed import HeadSettings
from mmssl.objectives.time_contrastive import TimeContrastive
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """TCN, multi-view: synchronised cameras teach what stays the same between them and changes in time."""

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
    """'batch' also takes instants of the other samples of the step."""
    gap: float = 0.2
    """Seconds within which another instant is no negative."""
    instants: int = 9
    """Of one sample, in both cameras."""
    window: float = 20.0
    """Seconds that the instants of a sample are drawn from."""
    windows: int = 1
    """Samples cut from one decode of a sequence."""
    norm_group: int | None = None
    """Frames over which batch norms normalise; over all of the step, on all processes, if not given."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that a crop covers."""
    strength: float = 0.5
    """Of the colour jitter (brightness, contrast, saturation .8, hue .2)."""

    steps: int | None = 1_000_000
    batch_size: int = 4
    """Samples, that is windows with `instants` pairs of frames, of one optimiser step."""
    base_lr: float = 1e-3
    lr_per: int = 4
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    objective = TimeContrastive(
        encoder,
        settings.head,
        loss=settings.loss,
        margin=settings.margin,
        l2=settings.l2,
        negatives=settings.negatives,
        gap=settings.gap,
        norm_group=settings.norm_group,
    )
    spec = encoder.spec
    assert isinstance(spec, ImageSpec)
    views = CameraViews(
        size=spec.size,
        instants=settings.instants,
        window=settings.window,
        names=objective.views,
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

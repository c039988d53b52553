"""Tracking emerges by colourising videos: point at coloured frames to colour a grey one.

paper      Vondrick et al. 2018, arXiv:1806.09594. From the abstract, public lists of results and re-implementations:
           Kinetics, colours copied by soft pointing from 3 reference frames to a target, 16 clusters of a and b,
           temperature 1 in training, inner products of 64 values. Recalled from the paper: 256 x 256 pixels, a 32 x 32
           grid, 6 frames/s, ResNet-18 and five layers of 3-D convolution, Adam at 1e-3 (1e-4 after 60,000 steps),
           batch 32, 400,000 steps. Ours: the cosine schedule, the crop, batch norm over the whole batch, the stages of
           the ResNet that keep their resolution (no dilation), colours averaged over a cell before they are quantised
command    mmssl pretrain video/colourisation --data DIR --out DIR
           a ViT: --encoder.arch vit --encoder.width 384 --encoder.heads 6 --head.layers 0 (linear, patches of 8)
           judge: mmssl evaluate propagation
hardware   not stated
published  JHMDB PCK@.1 45.2, @.2 69.6; DAVIS 2017 J 34.6, F 32.7 (recalled), copying the first frame's masks 22.1, 23.6
ours       not at this scale; five minutes on a CPU: ten sequences of DAVIS, J .52 over 3 seeds, untrained .47
           (docs/results.md)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings
from mmssl.encoders.dense import DenseSettings, build_dense
from mmssl.objectives.colourisation import Colourisation
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """Video colourisation: every place of a grey frame points at the places of coloured frames before it."""

    input: VideoSpec = field(
        default_factory=lambda: VideoSpec(
            size=256, frames=4, patch=8, tubelet=1, mean=(0.5,), std=(0.25,), colour="lightness"
        )
    )
    """The last frame is coloured, those before it are the references. patch is a ViT's; a ResNet has output_stride."""
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(arch="resnet18", output_stride=8))
    """Of each frame by itself."""
    head: DenseSettings = field(default_factory=DenseSettings)
    """From the maps of the frames to the embeddings."""
    interval: float | None = 1 / 6
    """Seconds from one frame of a clip to the next; None for input.stride."""
    clusters: int = 16
    """Colour classes."""
    colour_samples: int = 2048
    """Clips that the colour classes are fitted on, before the first step."""
    temperature: float = 1.0
    """Of pointing."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that a crop covers."""
    flip: bool = True
    """Mirror half of the clips."""
    motion: bool = False
    """Prefer clips in which much moves: where nothing does, the same place has the colour."""

    steps: int | None = 400_000
    batch_size: int = 32
    base_lr: float = 1e-3
    lr_per: int = 32
    min_lr: float = 1e-5
    warmup: float = 0.0025
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_dense(settings.input, settings.encoder, settings.head, settings.init)
    objective = Colourisation(
        encoder,
        clusters=settings.clusters,
        temperature=settings.temperature,
        fit_samples=settings.colour_samples,
    )
    spec = encoder.spec
    views = VideoViews(
        size=spec.size,
        frames=spec.frames,
        stride=spec.stride,
        interval=settings.interval,
        names=objective.views,
        crop="random_resized",
        scale=settings.scale,
        flip=settings.flip,
        motion=settings.motion,
        needed=spec.frames,  # a target that repeats its reference would be copied from the same place
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

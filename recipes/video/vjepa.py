"""V-JEPA 2 on clips: predict in latent space what a slow teacher makes of the hidden blocks.

paper      Assran et al. 2025, V-JEPA 2, arXiv:2506.09985; Bardes et al. 2024, V-JEPA, arXiv:2404.08471
command    mmssl pretrain video/vjepa --data DIR --out DIR
           accelerate launch recipes/video/vjepa.py --data DIR --out DIR
values     of facebookresearch/vjepa2, configs/train. Different here: the rate starts at 0 (there at 1e-4), masks have
           fixed counts (see MultiBlockMask), and there is one stage, without the cool-down on 64 frames.
advice     give footage of little contrast its own --input.mean and --input.std: under ImageNet's, its targets collapse
published  frozen attentive probe, ViT-L: Something-Something v2 73.7 %, Diving48 89.0 %; ViT-g, 384 px: 77.3 %, 90.2 %
ours       not at this scale; 633 clips of fish, 600 steps: no collapse, a gain at one seed of three (docs/results.md)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.latent_prediction import LatentPrediction
from mmssl.objectives.masks import MultiBlockMask
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(frozen=True)
class Predictor:
    width: int = 384
    depth: int = 12
    heads: int = 12


@dataclass(frozen=True)
class Blocks:
    """One kind of mask."""

    count: int
    scale: float
    """Share of the frame that one block covers."""
    visible: float
    """Share of the frame that stays visible; blocks overlap."""


@dataclass(kw_only=True)
class Settings(Common):
    """V-JEPA 2 (Assran et al. 2025): predict a slow teacher's features of hidden blocks from the rest of the clip."""

    input: VideoSpec = field(default_factory=lambda: VideoSpec(size=256, stride=7))
    """Evaluation takes every 7th frame, a quarter of a second of 30 a second."""
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(
            width=1024, depth=24, heads=16, prefix=0, positions="rope3d", initial="truncated"
        )
    )
    """ViT-L with rotary positions over time, rows and columns."""
    predictor: Predictor = field(default_factory=Predictor)
    small: Blocks = field(default_factory=lambda: Blocks(8, 0.15, 0.38))
    large: Blocks = field(default_factory=lambda: Blocks(2, 0.7, 0.19))
    momentum: float = 0.99925
    """Of the teacher, a step. Runs of few steps need less: 0.99925 averages over 1,300 steps."""
    interval: float | None = 0.25
    """Seconds from one frame of a clip to the next; input.stride counts if not given."""
    scale: tuple[float, float] = (0.3, 1.0)
    """Share of the frame's area that a crop covers."""
    ratio: tuple[float, float] = (0.75, 1.35)
    """Width / height of a crop."""
    flip: bool = True

    epochs: float = 33  # our choice: about its 240,000 steps of 3,072 clips, if 22 million videos are the data
    batch_size: int = 3072
    lr_per: int = 3072
    base_lr: float = 5.25e-4
    min_lr: float = 5.25e-4
    """As base_lr: the rate stays at its peak."""
    warmup: float = 0.05  # 40 of 800 of its epochs
    weight_decay: float = 0.04
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
    predictor = settings.predictor
    objective = LatentPrediction(
        encoder,
        view="clip",
        masks=[MultiBlockMask(kind.count, kind.scale, kind.visible) for kind in (settings.small, settings.large)],
        predictor_width=predictor.width,
        predictor_depth=predictor.depth,
        predictor_heads=predictor.heads,
        momentum=settings.momentum,
    )
    views = VideoViews(
        size=spec.size,
        frames=spec.frames,
        stride=spec.stride,
        interval=settings.interval,
        crop="random_resized",
        scale=settings.scale,
        ratio=settings.ratio,
        flip=settings.flip,
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

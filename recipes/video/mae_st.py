"""MAE-ST: a masked autoencoder on clips that knows nothing of space and time beyond its positions.

paper      Feichtenhofer et al. 2022, Masked Autoencoders As Spatiotemporal Learners, arXiv:2205.09113
command    mmssl pretrain video/mae_st --data DIR --out DIR
           ViT-B: --encoder.width 768 --encoder.depth 12 --encoder.heads 12
           pictures to look at: --no-norm-pixels
hardware   not stated here; the authors' command has 2 videos (8 clips) a GPU
published  Kinetics-400, ViT-L, 400 passes over the videos of 4 clips each, fine-tuned: 84.4 % (84.35 in the released
           code's notes)
ours       not at this scale; minutes on two cores gave no gain over the untrained encoder (docs/results.md)
difference the encoder's CLS token goes through the decoder as in MAE, where theirs has a CLS token of its own; the
           batch of 512 clips is our choice, since their command does not fix the number of GPUs
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import RandomMask
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(frozen=True)
class Decoder:
    width: int = 512
    depth: int = 4
    heads: int = 16


@dataclass(kw_only=True)
class Settings(Common):
    """MAE-ST (Feichtenhofer et al. 2022): hide 90 % of a clip's patches, anywhere; encode the rest, predict them."""

    input: VideoSpec = field(default_factory=lambda: VideoSpec(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)))
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(width=1024, depth=24, heads=16, positions="separable")
    )
    """ViT-L with CLS token."""
    decoder: Decoder = field(default_factory=Decoder)
    mask_ratio: float = 0.9
    """Share of the patches that the encoder does not see."""
    predicted: int | None = 8
    """Frames of a clip that are predicted; all if None."""
    norm_pixels: bool = True
    """Predict each patch normalised by its own mean and deviation."""
    clips: int = 4
    """Clips cut from one decode of a file (repeated sampling)."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that a crop covers."""
    flip: bool = True
    """Mirror half of the clips."""
    interval: float | None = None
    """Seconds from one frame of a clip to the next, in place of input.stride."""

    epochs: float = 100
    batch_size: int = 512  # 128 files
    base_lr: float = 1.6e-3
    lr_per: int = 1024  # the authors count 256 files; four clips of a file raise no rate
    warmup: float = 0.05  # 5 of 100 epochs
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 0.02


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
    objective = MaskedAutoencoder(
        encoder,
        view="clip",
        mask=RandomMask(settings.mask_ratio),
        decoder_width=settings.decoder.width,
        decoder_depth=settings.decoder.depth,
        decoder_heads=settings.decoder.heads,
        decoder_positions="separable",
        frames=settings.predicted,
        target="patch_norm_joint" if settings.norm_pixels else "pixels",
    )
    views = VideoViews(
        size=spec.size,
        frames=spec.frames,
        stride=spec.stride,
        interval=settings.interval,
        per_file=settings.clips,
        crop="random_resized",
        scale=settings.scale,
        flip=settings.flip,
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

"""VideoMAE V2: VideoMAE whose decoder, too, sees a part of the tokens only.

paper      Wang et al. 2023, VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking, arXiv:2303.16727
command    mmssl pretrain video/videomae_v2 --data DIR --out DIR
           SSv2: --input.stride 2
hardware   authors: ViT-B on 32 GPUs, ViT-g on 64 A100
published  ViT-g on the authors' own mixture of videos, fine-tuned: Kinetics-400 87.2 %, SSv2 77.0 %
ours       not measured yet
difference the four samples of a file are clips at different times here, and crops of one clip there
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import RunningCellMask, TubeMask
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(frozen=True)
class Decoder:
    width: int = 384
    depth: int = 4
    heads: int = 6
    skipped: float = 0.5
    """Share of the tokens that the decoder skips, in running cells."""


@dataclass(kw_only=True)
class Settings(Common):
    """VideoMAE V2 (Wang et al. 2023): VideoMAE that predicts half of the tokens, so that the decoder is cheaper."""

    input: VideoSpec = field(default_factory=VideoSpec)
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(prefix=0, positions="sincos1d", qkv_bias="qv")
    )
    """ViT-B without CLS token."""
    decoder: Decoder = field(default_factory=Decoder)
    mask_ratio: float = 0.9
    """Share of the tubes that the encoder does not see."""
    clips: int = 4
    """Clips cut from one decode of a file (repeated sampling)."""
    interval: float | None = None
    """Seconds from one frame of a clip to the next, in place of input.stride."""

    epochs: float = 200
    batch_size: int = 4096  # 1024 files
    base_lr: float = 1e-3
    lr_per: int = 1024  # the authors count 256 files; four clips of a file raise no rate
    min_lr: float = 1e-5
    warmup: float = 0.1  # the authors: 30 of 300 epochs of ViT-L
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
    decoder = settings.decoder
    objective = MaskedAutoencoder(
        encoder,
        view="clip",
        mask=TubeMask(settings.mask_ratio),
        decoder_width=decoder.width,
        decoder_depth=decoder.depth,
        decoder_heads=decoder.heads,
        decoder_bias="qv",
        projection_bias=False,
        target="patch_norm_channel",
        decoder_mask=RunningCellMask(decoder.skipped),
    )
    views = VideoViews(
        size=spec.size, frames=spec.frames, stride=spec.stride, interval=settings.interval, per_file=settings.clips
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

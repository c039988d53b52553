"""VideoMAE on clips.

paper      Tong et al. 2022, VideoMAE: Masked Autoencoders are Data-Efficient Learners, arXiv:2203.12602
command    mmssl pretrain video/videomae --data DIR --out DIR
           accelerate launch recipes/video/videomae.py --data DIR --out DIR
           SSv2: --input.stride 2 --epochs 2400; UCF101: the recipe video/videomae_ucf101
hardware   paper: ViT-B, 800 epochs of Kinetics-400 in 27 h on 64 V100
published  Kinetics-400, ViT-B, 1600 epochs, fine-tuned: 81.5 %; SSv2, ViT-B, 2400 epochs, fine-tuned: 70.8 %
ours       not at this scale; fish, 2,000 steps on a CPU: directions, linear, 63 % over 3 seeds, untrained 52 %
           (docs/results.md)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import TubeMask
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(frozen=True)
class Decoder:
    width: int = 384
    depth: int = 4
    heads: int = 6


@dataclass(kw_only=True)
class Settings(Common):
    """VideoMAE (Tong et al. 2022): hide 90 % of a clip in tubes through time, encode the rest, predict the hidden."""

    input: VideoSpec = field(default_factory=VideoSpec)
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(prefix=0, positions="sincos1d", qkv_bias="qv")
    )
    """ViT-B without CLS token."""
    decoder: Decoder = field(default_factory=Decoder)
    mask_ratio: float = 0.9
    """Share of the tubes that the encoder does not see."""
    norm_pixels: bool = True
    """Predict each cube normalised by its own mean and deviation, channel by channel."""
    clips: int = 1
    """Clips cut from one decode of a file (repeated sampling)."""
    interval: float | None = None
    """Seconds from one frame of a clip to the next, in place of input.stride."""

    epochs: float = 800
    batch_size: int = 2048
    base_lr: float = 1.5e-4
    min_lr: float = 1e-5
    warmup: float = 0.05  # 40 of 800 epochs
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
        target="patch_norm_channel" if settings.norm_pixels else "pixels",
    )
    views = VideoViews(
        size=spec.size, frames=spec.frames, stride=spec.stride, interval=settings.interval, per_file=settings.clips
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

"""Masked autoencoder on spectrograms.

paper      Huang et al. 2022, Masked Autoencoders that Listen (Audio-MAE), arXiv:2207.06405
command    mmssl pretrain audio/mae --data DIR --out DIR
           whole rows and columns: --mask time-frequency
hardware   paper: 33 epochs of AudioSet-2M on 64 V100
published  AudioSet-2M fine-tuned 47.3 mAP, AudioSet-20k 37.1, ESC-50 94.1, Speech Commands v2 98.3 %
ours       three small seeds (ViT 128 x 4, 800 steps of 64): ten digits of speakers left out 41.8, 42.7
           and 43.8 %, untrained 30.9, 31.6 and 32.2 % (docs/results.md)
difference the paper's decoder attends in shifted local windows and its spectrograms are rolled and scaled at random;
           here the decoder attends globally, a view is a random segment of the recording, and AST's two prefix tokens
           stand in place of one, so that transformers' ASTModel loads the encoder
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import AudioSpec
from mmssl.data.audio_views import AudioViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import MaskMaker, RandomMask, TimeFrequencyMask
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(frozen=True)
class Decoder:
    width: int = 512
    depth: int = 8
    heads: int = 16


@dataclass(kw_only=True)
class Settings(Common):
    """Audio-MAE (Huang et al. 2022): hide 80 % of a spectrogram's patches, encode the rest, predict the hidden."""

    input: AudioSpec = field(default_factory=AudioSpec)
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(prefix=2))
    """ViT-B with AST's two prefix tokens."""
    decoder: Decoder = field(default_factory=Decoder)
    mask: Literal["random", "time-frequency"] = "random"
    """Hide patches anywhere, or whole rows and columns."""
    mask_ratio: float = 0.8
    """Share of the patches that the encoder does not see."""
    time_ratio: float = 0.6
    """Share of the columns hidden by 'time-frequency'."""
    frequency_ratio: float = 0.5
    """Share of the rows hidden by 'time-frequency'."""
    norm_pixels: bool = True
    """Predict each patch normalised by its own mean and deviation."""
    short: Literal["pad", "loop"] = "pad"
    """A recording shorter than a view is followed by zeros, or repeated."""

    epochs: float = 33
    batch_size: int = 512
    base_lr: float = 2e-4
    warmup: float = 3 / 33
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, AudioSpec)
    mask: MaskMaker = RandomMask(settings.mask_ratio)
    if settings.mask == "time-frequency":
        mask = TimeFrequencyMask(settings.time_ratio, settings.frequency_ratio)
    objective = MaskedAutoencoder(
        encoder,
        mask=mask,
        decoder_width=settings.decoder.width,
        decoder_depth=settings.decoder.depth,
        decoder_heads=settings.decoder.heads,
        target="patch_norm_joint" if settings.norm_pixels else "pixels",
    )
    return Parts(objective, AudioViews(rate=spec.rate, samples=spec.samples, short=settings.short))


if __name__ == "__main__":
    main(Settings, build)

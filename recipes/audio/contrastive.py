"""Contrast two segments of a recording with those of other recordings (COLA's task).

paper      Saeed et al. 2021, Contrastive Learning of General-Purpose Audio Representations, arXiv:2010.10915
command    mmssl pretrain audio/contrastive --data DIR --out DIR
           convolutional: --encoder.arch resnet18
           SimCLR's head and loss: --layers 2 --norm batch --similarity cosine --temperature 0.2 --symmetric
hardware   paper: 500 epochs of AudioSet on TPUs
published  Speech Commands v2 (35 classes), linear: 62.4 % (EfficientNet-B0, AudioSet)
ours       the demo (ViT 128 x 6, tokens of all 16 bands, SimCLR's head, segments apart, no noise, 729 prompts): 87.5,
           87.3 and 88.4 % linear over 5 languages (3 seeds), untrained 74.8, 70.5 and 77.3 %
difference audio/cola is the paper to the letter (64 log-mel bands, EfficientNet-B0, maximum pooling); here it is AST's
           128-band front end with a ViT or a ResNet, and mean pooling
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import AudioSpec
from mmssl.data.audio_views import AudioViews
from mmssl.data.device_views import GaussianNoise
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.contrastive import Contrastive
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """COLA (Saeed et al. 2021): two segments of a recording attract, those of other recordings of the batch repel."""

    input: AudioSpec = field(default_factory=lambda: AudioSpec(frames=96))
    """Segments of about one second."""
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(width=384, heads=6, prefix=2))
    """ViT-S with AST's two prefix tokens."""
    out_width: int = 512
    """Width of the projection that the loss compares, and of its hidden layers."""
    layers: int = 1
    """Layers of the projector: COLA has one, SimCLR two."""
    norm: Literal["none", "batch"] = "none"
    """Batch norm in the projector, as SimCLR has it; a ViT without it may not leave the uniform solution."""
    similarity: Literal["bilinear", "cosine"] = "bilinear"
    temperature: float = 1.0
    """The paper has none with the bilinear similarity, and 0.2 with the cosine."""
    symmetric: bool = False
    """Both segments are anchors, as in SimCLR; COLA has the first only."""
    noise: float = 0.4
    """Noise added to the second segment, over its loudness (the paper's 0.001 of a whole 10 s clip); 0 for none."""
    short: Literal["pad", "loop"] = "pad"
    """A recording shorter than a segment is followed by zeros, or repeated."""
    apart: bool = False
    """The two segments share no instant where the recording is long enough; COLA lets them overlap, and what they then
    share, noise for one, can be matched without hearing what it is."""

    epochs: float = 500
    batch_size: int = 1024
    base_lr: float = 1e-4
    lr_per: int = 1024
    warmup: float = 0.05
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, AudioSpec)
    objective = Contrastive(
        encoder,
        out=settings.out_width,
        hidden=settings.out_width,
        layers=settings.layers,
        norm=settings.norm,
        temperature=settings.temperature,
        similarity=settings.similarity,
        symmetric=settings.symmetric,
    )
    views = AudioViews(
        rate=spec.rate, samples=spec.samples, names=objective.views, short=settings.short, apart=settings.apart
    )
    noise = GaussianNoise(names=objective.views[1:], scale=settings.noise, samples=spec.samples)
    return Parts(objective, views, [noise] if settings.noise > 0 else [])


if __name__ == "__main__":
    main(Settings, build)

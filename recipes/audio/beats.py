"""Masked prediction of codes on spectrograms, in the manner of BEATs: hide most patches, predict their codes.

paper      Chen et al. 2022, BEATs: Audio Pre-Training with Acoustic Tokenizers, arXiv:2212.09058, whose training code
           was never released; its values are recalled: 75 % of the patches hidden, 1024 codes, 400,000 steps, rate 5e-4
command    mmssl pretrain audio/beats --data DIR --out DIR
           two iterations: patches -> 1024 clusters -> training -> layer 9 -> 1024 clusters -> training anew;
           encoders in OUT/iteration-1/encoder and OUT/iteration-2/encoder
           one iteration on clusters that stand: --units FOLDER, after mmssl targets kmeans --features patches|layer ...
hardware   none stated
published  BEATs (third iteration): AudioSet-2M fine-tuned 48.0 mAP, AudioSet-20k 38.3, ESC-50 95.6, Speech Commands v2
           98.3 %
ours       not measured yet
difference codes are clusters of patches, and later of a layer, in place of BEATs' random projection and, later, a
           tokenizer distilled from the model; the encoder sees hidden patches as the mask token, as BEiT's does, where
           BEATs' sees the others only and a second network predicts; it is AST's ViT, so that transformers' ASTModel
           loads it; batch size, decay and warm-up are our choice
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mmssl.adapters.specs import AudioSpec
from mmssl.data.audio_views import AudioViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.objectives.masks import RandomMask
from mmssl.targets.views import open_tokenizer
from mmssl.training.iterations import SettingsByIterations as Common
from mmssl.training.recipe import Parts, main


@dataclass(kw_only=True)
class Settings(Common):
    """BEATs-like (Chen et al. 2022): hide 75 % of a spectrogram's patches, predict their codes."""

    input: AudioSpec = field(default_factory=AudioSpec)
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(prefix=2))
    """ViT-B with AST's two prefix tokens."""
    clusters: tuple[int, ...] = (1024, 1024)
    layer: int = 9
    first_share: float = 1.0
    mask_ratio: float = 0.75
    """Share of the patches that are hidden."""
    short: Literal["pad", "loop"] = "loop"
    """A recording shorter than a view is followed by zeros, whose codes tell nothing, or repeated."""

    steps: int | None = 400_000
    batch_size: int = 512
    base_lr: float = 5e-4
    lr_per: int = 512
    warmup: float = 0.08
    schedule: Literal["cosine", "linear"] = "linear"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float | None = 1.0

    def first_features(self) -> dict[str, Any]:
        return {"features": "patches", "input": self.input}


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, AudioSpec)
    tokenizer = open_tokenizer(settings.units, encoder)
    objective = MaskedPrediction(
        encoder,
        codebook=tokenizer.codebook,
        tokenizer=tokenizer,
        mask=RandomMask(settings.mask_ratio),
        head="linear",
    )
    return Parts(objective, AudioViews(rate=spec.rate, samples=spec.samples, short=settings.short))


if __name__ == "__main__":
    main(Settings, build)

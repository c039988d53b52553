"""HuBERT LARGE: the objective of audio/hubert with 24 layers, layer norms in every convolution, and no dropout.

paper      Hsu et al. 2021, HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units,
           arXiv:2106.07447; values of fairseq's configuration hubert_large_librivox
command    mmssl targets kmeans --features layer --layer 9 --encoder ENCODER --clusters 500 --data DIR --out UNITS
           mmssl pretrain audio/hubert_large --units UNITS --data DIR --out DIR
           where ENCODER is that of a second iteration of audio/hubert; without --units both iterations are LARGE
hardware   paper: 400,000 steps of 7,200 s of audio on 128 GPUs
published  LibriSpeech test-clean / test-other, fine-tuned on 100 h, without a language model: WER 2.9 / 6.0 %
           (pre-trained on 60,000 h of Libri-Light)
ours       not measured yet
difference those of audio/hubert
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import WaveformSpec
from mmssl.encoders.build import build_speech
from mmssl.encoders.speech import SpeechSettings, speech_preset
from mmssl.errors import UserError
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.objectives.spans import SpanMask
from mmssl.targets.codebook import Codebook
from mmssl.targets.units import CODEBOOK, Units
from mmssl.training.iterations import SettingsByIterations
from mmssl.training.recipe import Parts, main
from mmssl.training.seconds import SettingsBySeconds


@dataclass(kw_only=True)
class Settings(SettingsBySeconds, SettingsByIterations):
    """HuBERT LARGE (Hsu et al. 2021): hide spans of a recording, predict the units of the hidden frames."""

    input: WaveformSpec = field(default_factory=lambda: speech_preset("large")[0])
    encoder: SpeechSettings = field(default_factory=lambda: speech_preset("large")[1])
    head_width: int = 768
    """Values that a frame and a unit are compared by."""
    temperature: float = 0.1
    mask_ratio: float = 0.8
    """Spans x length over frames; spans overlap, so that about 57 % of the frames are hidden."""
    mask_length: int = 10
    """Frames of a span."""
    unmasked_weight: float = 0.0
    """Of frames that are not hidden, in the loss."""
    feature_penalty: float = 10.0
    """Factor of the mean square of the convolutions' features."""

    steps: int | None = 400_000
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    base_lr: float = 1.5e-3
    batch_seconds: float = 7200.0
    lr_per: int = 7200
    warmup: float = 0.08
    schedule: Literal["cosine", "linear"] = "linear"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip: float | None = 1.0


def build(settings: Settings) -> Parts:
    if settings.units is None:
        raise UserError("A model is built for the units that it predicts: name their folder by --units.")
    encoder = build_speech(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    views = settings.views(Units.open(settings.units), spec.rate, spec.hop, spec.window)
    objective = MaskedPrediction(
        encoder,
        codebook=Codebook.load(settings.units / CODEBOOK),
        mask=SpanMask(settings.mask_ratio, settings.mask_length),
        head_width=settings.head_width,
        temperature=settings.temperature,
        unmasked_weight=settings.unmasked_weight,
        feature_penalty=settings.feature_penalty,
        grid=(1, 1, views.max_frames),
    )
    return Parts(objective, views, plan=settings.plan(views))


if __name__ == "__main__":
    main(Settings, build)

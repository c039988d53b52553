"""WavLM BASE: HuBERT's task on recordings that others talk into, with attention that knows how far frames are apart.

paper      Chen et al. 2022, WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing,
           arXiv:2110.13900; its training was never released. Mixing as in the authors' data code (microsoft/UniSpeech),
           all else as in HuBERT BASE
command    mmssl pretrain audio/wavlm --data DIR --out DIR
           with noises: --noises DIR
           one iteration on units that stand: --units UNITS (the paper: layer 6 of a first HuBERT iteration, 500 units)
hardware   paper: 400,000 steps
published  SUPERB, frozen BASE: speaker identification 84.51 %, phone recognition PER 4.84 %, ASR WER 6.21 %,
           diarisation DER 4.83 % (6.03 % without mixing)
ours       three small seeds (settings of audio/hubert, 2,500 steps of 16 s on units of HuBERT's first iteration): ten
           digits of speakers left out 55.3, 50.7 and 49.5 %, untrained 34.9, 35.3 and 34.7 % (docs/results.md)
difference shares of 0.2 for mixing and 0.1 for noises are our choice; an utterance meets another of its micro-batch,
           never itself; without --units a first iteration of the same model on clusters of MFCC comes before; and what
           audio/hubert lists
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import WaveformSpec
from mmssl.data.crops_audio import AudioCrops
from mmssl.data.mixing import Mixing, NoisyCrops
from mmssl.data.sources import open_source
from mmssl.encoders.build import build_speech
from mmssl.encoders.speech import SpeechSettings
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
    """WavLM (Chen et al. 2022): predict the units of hidden frames while others talk into the recording."""

    input: WaveformSpec = field(default_factory=WaveformSpec)
    encoder: SpeechSettings = field(default_factory=lambda: SpeechSettings(arch="wavlm"))
    mixing: float = 0.2
    """Share of the recordings that get a part of another one, or of a noise, added."""
    noises: str | None = None
    """Folder of recordings of noise to mix in; other utterances only if not given."""
    noise_share: float = 0.1
    """Share of the recordings that meet a noise instead of an utterance."""
    head_width: int = 256
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
    base_lr: float = 5e-4
    warmup: float = 0.08
    schedule: Literal["cosine", "linear"] = "linear"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip: float | None = 10.0


def build(settings: Settings) -> Parts:
    if settings.units is None:
        raise UserError("A model is built for the units that it predicts: name their folder by --units.")
    encoder = build_speech(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    views: AudioCrops = settings.views(Units.open(settings.units), spec.rate, spec.hop, spec.window)
    if settings.noises is not None:
        noises = open_source(settings.noises, "audio", max_bad_share=settings.max_bad_share)
        views = NoisyCrops.of(views, noises, settings.noise_share)
    mixing = Mixing(settings.mixing, noise_view=None if settings.noises is None else "noise")
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
    return Parts(objective, views, [mixing], plan=settings.plan(views))


if __name__ == "__main__":
    main(Settings, build)

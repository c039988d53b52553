"""HuBERT BASE: predict which unit each masked frame of speech has, in two iterations.

paper      Hsu et al. 2021, HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units,
           arXiv:2106.07447; values of fairseq's configuration hubert_base_librispeech
command    mmssl pretrain audio/hubert --data DIR --out DIR
           both iterations: 39 MFCC values -> 100 units -> training -> layer 6 -> 500 units -> training anew;
           encoders in OUT/iteration-1/encoder and OUT/iteration-2/encoder
           one iteration on units that stand: --units UNITS, after mmssl targets kmeans --data DIR --out UNITS
hardware   paper: 400,000 steps of 2,800 s of audio on 32 GPUs; first iteration 250,000
published  LibriSpeech test-clean / test-other, fine-tuned on 100 h, without a language model: WER 6.3 / 13.2 %
           sanity: masked accuracy of the second iteration 0.417 after 400,000 steps on 8 GPUs (a user of fairseq)
ours       three small seeds (width 128, 3 blocks, 16 s a step, --unmasked-weight 1, minutes on a CPU): ten digits of
           speakers left out 52.6, 48.8 and 49.0 % after 3,750 steps, untrained 34.9, 33.4 and 30.6 %; a second
           iteration of 6,000 steps is better on consonants, and by 1.3 points over all questions (docs/results.md)
difference batches are cropped to the shortest of a bucket of lengths; masks are not cut to the sample of a batch with
           the fewest masked frames; biases, norms and mask token are not decayed; bf16 where fairseq has fp16; a step
           with other --batch-seconds has its rate in proportion
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import WaveformSpec
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
    """HuBERT (Hsu et al. 2021): hide spans of a recording, predict the units of the hidden frames."""

    input: WaveformSpec = field(default_factory=WaveformSpec)
    encoder: SpeechSettings = field(default_factory=SpeechSettings)
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

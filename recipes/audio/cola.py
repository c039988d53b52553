"""COLA to the letter of its official code: contrast two seconds of a recording with those of other recordings.

paper      Saeed et al. 2021, Contrastive Learning of General-Purpose Audio Representations, arXiv:2010.10915; the
           defaults are the flags of google-research/google-research, cola/main.py (64 clips a step, Adam at a constant
           1e-3, 100 epochs of 1000 steps)
command    mmssl pretrain audio/cola --data DIR --out DIR
           cosine similarity: --similarity cosine; negatives of all processes: --negatives global
           a ViT or a ResNet: --encoder.arch vit --input.frames 96, --encoder.arch resnet18
           recordings of different lengths: --unit segment
hardware   not stated in the code
published  linear probe, EfficientNet-B0 trained on AudioSet: Speech Commands v2 (35 classes) 62.4 %, VoxCeleb1 29.9 %
ours       three seeds of a small ViT (16 bands, half seconds, --unit segment, --noise 0, minutes on a CPU): who speaks
           in a dialogue 84.4, 84.0 and 82.2 %, untrained 78.6, 79.0 and 78.3 % (docs/results.md)
choice     a recording longer than --clip seconds gives a random part of that length as the clip; the official data sets
           have clips of 10 s (AudioSet) or sentences. The spectrogram is divided by 255 at the entrance of the network,
           as Keras' EfficientNet divides every input (--input.std 0.5 for no division)
probe      mmssl evaluate windows, the official protocol
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import AudioSpec
from mmssl.data.clip_segments import ClipSegments
from mmssl.data.device_views import GaussianNoise
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError
from mmssl.objectives.cola import COLA
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """COLA (Saeed et al. 2021): two segments of a recording attract, those of other recordings of the batch repel."""

    input: AudioSpec = field(default_factory=lambda: AudioSpec(front="cola", mels=64, frames=98, mean=0.0, std=127.5))
    """One second is 98 frames."""
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(arch="efficientnet_b0", pool="max", drop_path=0.2, prefix=0)
    )
    seconds: float = 1.0
    """Length of a segment."""
    clip: float = 30.0
    """Seconds of a recording that are normalised together and that both segments come from."""
    unit: Literal["clip", "segment"] = "clip"
    """What has unit L2 norm. Where recordings have different lengths, 'segment' keeps the level of a segment from
    telling which recording it is of."""
    out_width: int = 512
    """Width of the projection that the loss compares."""
    similarity: Literal["bilinear", "cosine"] = "bilinear"
    temperature: float = 0.2
    """Of the cosine; the bilinear similarity has none."""
    negatives: Literal["process", "global"] = "process"
    """From the batch of the own process, as the official code, or of all processes."""
    norm_group: int | None = None
    """Samples over which batch norms normalise, anchors and positives counted; over all processes if not given (the
    official code: over those of one)."""
    noise: float = 0.001
    """Standard deviation of the noise on the second segment, whose level --unit decides; 0 for none."""

    steps: int | None = 100_000
    batch_size: int = 64
    base_lr: float = 1e-3
    min_lr: float = 1e-3
    lr_per: int = 64
    warmup: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, AudioSpec)
    objective = COLA(
        encoder,
        out=settings.out_width,
        similarity=settings.similarity,
        temperature=settings.temperature,
        negatives=settings.negatives,
        norm_group=settings.norm_group,
    )
    samples = round(settings.seconds * spec.rate)
    if samples < spec.samples or settings.clip < settings.seconds:
        raise UserError(
            f"--seconds {settings.seconds:g} gives fewer than the {spec.frames} frames of --input.frames "
            f"({spec.samples / spec.rate:.3f} s), or --clip {settings.clip:g} is shorter than a segment: change one."
        )
    views = ClipSegments(spec.rate, samples, settings.clip, settings.unit, names=objective.views)
    noise = GaussianNoise(names=objective.views[1:], scale=settings.noise, samples=samples, relative=False)
    return Parts(objective, views, [noise] if settings.noise > 0 else [])


if __name__ == "__main__":
    main(Settings, build)

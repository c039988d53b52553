"""Are these three segments of a recording in order? Shuffle and Learn's question, asked of sound.

paper      Misra et al. 2016, Shuffle and Learn, arXiv:1603.08561, is about video; the transfer to sound is ours, with
           the same objective
command    mmssl pretrain audio/temporal_order --data DIR --out DIR
hardware   any
published  none
ours       telephone prompts, a minute on a CPU: AUC .667 (docs/results.md)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmssl.adapters.specs import AudioSpec
from mmssl.data.audio_views import AudioViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.temporal_order import TemporalOrder
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """Temporal order of sound: tell segments in order from segments of which the middle one is out of place."""

    input: AudioSpec = field(default_factory=lambda: AudioSpec(frames=32))
    """Segments of about a third of a second."""
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(width=384, heads=6, prefix=2))
    """ViT-S with AST's two prefix tokens."""
    window: int = 9
    """Segments from which tuples are drawn."""
    gap: float = 0.05
    """Seconds left out between two segments, so that they cannot be told by how one goes on in the other."""
    tau_max: int = 5
    """Largest distance of the first and the last segment of a tuple."""
    tau_min: int = 1
    """Smallest distance from a tuple to the segment that replaces its middle one."""
    negative_share: float = 0.75
    """Share of tuples out of order."""
    candidates: int = 8
    """Tuples tried until one does not sound the same twice."""
    alike: float = 1e-2
    """Mean squared difference of log10 energy (in eighths of a segment) below which two sound the same: 1 dB; -1 for
    never."""
    hidden: int | None = 512
    """Width of the layer before the classifier."""
    norm_group: int | None = None
    """Segments over which batch norm normalises; over the batch of all processes if not given."""

    epochs: float = 100
    batch_size: int = 128
    base_lr: float = 1e-4
    lr_per: int = 128
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, AudioSpec)
    objective = TemporalOrder(
        encoder,
        window=settings.window,
        tau_max=settings.tau_max,
        tau_min=settings.tau_min,
        negative_share=settings.negative_share,
        candidates=settings.candidates,
        alike=settings.alike,
        hidden=settings.hidden,
        norm_group=settings.norm_group,
    )
    part = spec.samples + round(settings.gap * spec.rate)
    views = AudioViews(
        rate=spec.rate,
        samples=settings.window * part,
        names=objective.views,
        needed=(2 * settings.tau_min + 3) * part,
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

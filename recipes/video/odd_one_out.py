"""Odd-one-out networks (O3N): which of six clips has its frames in a wrong order?

paper      Fernando et al. 2017, Self-Supervised Video Representation Learning With Odd-One-Out Networks,
           arXiv:1611.06646
command    mmssl pretrain video/odd_one_out --data DIR --out DIR
           a ViT over clips: --encoder.arch vit --input.stack none --input.tubelet 1 --encoder.positions sincos1d
hardware   not stated
published  fine-tuned, AlexNet, UCF101 only: UCF101 60.3 %, HMDB51 32.5 %
ours       not at this scale; fish, minutes on a CPU: arrow of time, linear, 80 % over 3 seeds, untrained 62 %
           (docs/results.md)
difference there is no code of the paper. Its abstract has the question and the figures; six clips of six frames, the
           window of half as many frames again, stacks of differences, 128 features, sums of differences, optimiser and
           length of training are our choice, after what others report of it; a ResNet stands for AlexNet
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.odd_one_out import Fusion, OddOneOut, Sampling
from mmssl.training.recipe import Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """O3N (Fernando et al. 2017): of some clips of a video, find the one whose frames are in a wrong order."""

    input: VideoSpec = field(default_factory=lambda: VideoSpec(frames=6, stride=1, stack="differences"))
    """The clips: as many frames, and how they are stacked for the encoder."""
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(arch="resnet18"))
    window: int = 9
    """Frames from which all clips are cut. Little more than a clip constrains them to one moment."""
    clips: int = 6
    """To choose from."""
    sampling: Sampling = "consecutive"
    """A clip is a run of frames of the window, or any of them in their order ('random')."""
    fusion: Fusion = "difference"
    """How the features of the clips meet: sums of differences, or side by side."""
    width: int = 128
    """Of the features that meet."""
    alike: float = 5e-5
    """Mean squared difference of neighbouring small frames, RGB in [0,1], below which nothing moves; -1 for never."""
    equalise: bool = True
    """Give the frames of a window the same brightness and contrast, so that a flickering light tells nothing."""
    norm_group: int | None = None
    """Clips over which batch norm normalises; over the batch of all processes if not given."""
    motion: bool = True
    """Draw windows in proportion to the motion in them."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that the crop of a window covers."""
    flip: bool = True
    """Mirror half of the windows."""

    epochs: float = 200
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd", "lars"] = "sgd"
    base_lr: float = 1e-3
    lr_per: int = 128
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
    objective = OddOneOut(
        encoder,
        window=settings.window,
        clips=settings.clips,
        sampling=settings.sampling,
        fusion=settings.fusion,
        width=settings.width,
        alike=settings.alike,
        equalise=settings.equalise,
        norm_group=settings.norm_group,
    )
    views = VideoViews(
        size=spec.size,
        frames=settings.window,
        stride=spec.stride,
        names=objective.views,
        crop="random_resized",
        scale=settings.scale,
        flip=settings.flip,
        needed=spec.frames,
        motion=settings.motion,
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

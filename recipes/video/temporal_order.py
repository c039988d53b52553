"""Shuffle and Learn: are these three frames of a video in order?

paper      Misra et al. 2016, Shuffle and Learn: Unsupervised Learning using Temporal Order Verification,
           arXiv:1603.08561; solver and network as in github.com/imisra/shuffle-tuple
command    mmssl pretrain video/temporal_order --data DIR --out DIR
           small videos: --encoder.stem cifar --input.size 64 --window 9 --stride 1 --tau-max 4 --tau-min 1 --hidden 256
           clips for frames: --frames 6 --stack differences --stride 1, or a ViT over clips: --frames 4 --encoder.arch
           vit --encoder.prefix 0 --encoder.positions sincos1d (our extension)
hardware   not stated
published  fine-tuned, CaffeNet, UCF101 only: UCF101 50.2 %, HMDB51 18.1 % (means of three splits)
ours       not at this scale; fish, minutes on a CPU: AUC .74 on other films over 3 seeds (docs/results.md)
difference a ResNet for CaffeNet; the rate falls by a cosine, where theirs drops at steps 80,000 and 100,000 (their last
           step is not known to us: the epochs here make 112,000 on UCF101); windows are drawn by frame differences from
           the index, where theirs come from optical flow; gaps of 60 and 15 frames and everything about look-alikes and
           light are our choice
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmssl.adapters.specs import ImageSpec, Stack, VideoSpec
from mmssl.data.device_views import ChannelSplit, Photometric
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.temporal_order import TemporalOrder
from mmssl.training.recipe import DeviceView, Parts, main
from mmssl.training.settings import Settings as Common


@dataclass(kw_only=True)
class Settings(Common):
    """Shuffle and Learn (Misra et al. 2016): tell frames in order from frames of which the middle one is out of
    place."""

    input: ImageSpec = field(default_factory=ImageSpec)
    encoder: EncoderSettings = field(default_factory=lambda: EncoderSettings(arch="resnet18"))
    frames: int = 1
    """Of each of the three that are compared; above 1 they are clips, and the encoder takes clips."""
    stack: Stack = "none"
    """Of a clip: how its frames are stacked for a ResNet."""
    window: int = 19
    """Frames (clips) from which tuples are drawn."""
    stride: int = 5
    """Frames of the file from one frame of the window to the next."""
    interval: float | None = None
    """Seconds from one frame of the window to the next, in place of `stride`."""
    tau_max: int = 12
    """Largest distance of the first and the last frame of a tuple, in frames of the window: 60 of the file."""
    tau_min: int = 3
    """Smallest distance from a tuple to the frame that replaces its middle one, in frames of the window."""
    negative_share: float = 0.75
    """Share of tuples out of order."""
    candidates: int = 8
    """Tuples tried until one does not show the same thing twice."""
    alike: float = 1e-3
    """Mean squared difference of small frames, RGB in [0,1], below which two show the same; -1 for never."""
    equalise: bool = True
    """Give the frames of a tuple the same brightness and contrast, so that a flickering light tells nothing."""
    hidden: int | None = None
    """Width of a layer before the classifier, so that it can compare frames; the paper has none."""
    norm_group: int | None = None
    """Frames over which batch norm normalises; over the batch of all processes if not given."""
    motion: bool = True
    """Draw windows in proportion to the motion in them."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the picture's area that the crop of a window covers."""
    flip: bool = True
    """Mirror half of the windows."""
    strength: float = 0.0
    """Of the colour jitter (brightness, contrast, saturation .8, hue .2), the same for a whole window."""
    split: float = 0.0
    """Share of windows in one colour for all three."""

    epochs: float = 1500
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd", "lars"] = "sgd"
    base_lr: float = 1e-3
    lr_per: int = 128
    warmup: float = 0.0
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)


def shown(settings: Settings) -> ImageSpec | VideoSpec:
    """What the encoder takes."""
    given = settings.input
    if settings.frames == 1:
        return given
    return VideoSpec(
        size=given.size,
        frames=settings.frames,
        stride=settings.stride,
        patch=given.patch,
        tubelet=1,
        mean=given.mean,
        std=given.std,
        colour=given.colour,
        stack=settings.stack,
    )


def build(settings: Settings) -> Parts:
    encoder = build_encoder(shown(settings), settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, ImageSpec | VideoSpec)
    frames = spec.frames if isinstance(spec, VideoSpec) else 1
    objective = TemporalOrder(
        encoder,
        window=settings.window,
        tau_max=settings.tau_max,
        tau_min=settings.tau_min,
        negative_share=settings.negative_share,
        candidates=settings.candidates,
        alike=settings.alike,
        equalise=settings.equalise,
        hidden=settings.hidden,
        norm_group=settings.norm_group,
    )
    views = VideoViews(
        size=spec.size,
        frames=settings.window * frames,
        stride=settings.stride,
        interval=settings.interval,
        names=objective.views,
        crop="random_resized",
        scale=settings.scale,
        flip=settings.flip,
        needed=(2 * settings.tau_min + 3) * frames,
        motion=settings.motion,
    )
    device_views: list[DeviceView] = []
    if settings.strength > 0:
        parts = (0.8 * settings.strength, 0.8 * settings.strength, 0.8 * settings.strength, 0.2 * settings.strength)
        device_views.append(Photometric(objective.views, *parts, p_grey=0.0, p_blur=0.0))
    if settings.split > 0:
        device_views.append(ChannelSplit(objective.views, settings.split))
    return Parts(objective, views, device_views)


if __name__ == "__main__":
    main(Settings, build)

"""BEiT on clips: the objective of image/beit with another adapter, and blocks that reach through the whole clip.

paper      Bao et al. 2022, BEiT, arXiv:2106.08254, is about images; what clips add is our choice: a code for each tube,
           and blocks over all times, since a patch hidden for a moment is copied from its neighbours in time; encoder
           and clips are those of video/videomae, initial weights and layer scale those of image/beit
command    mmssl pretrain video/beit --data DIR --out DIR
           clusters tubes first (OUT/units), then trains on the clusters; with --clusters 8192 8192 once more, on
           clusters of layer 9 of what the first training gave
           on clusters that stand: --units FOLDER, after mmssl targets kmeans --features patches|layer ...
hardware   none stated: all tokens go through the encoder, about ten times VideoMAE's share
published  none
ours       not measured yet
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mmssl.adapters.specs import VideoSpec
from mmssl.data.views import VideoViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.blocks import BlockMask
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.targets.views import open_tokenizer
from mmssl.training.iterations import SettingsByIterations as Common
from mmssl.training.recipe import Parts, main


@dataclass(kw_only=True)
class Settings(Common):
    """BEiT on video: hide 40 % of a clip in blocks through all its frames, predict the codes of the hidden tubes."""

    input: VideoSpec = field(default_factory=VideoSpec)
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(
            prefix=0, positions="sincos1d", qkv_bias="qv", drop_path=0.1, layer_scale=0.1, initial="truncated"
        )
    )
    """ViT-B without CLS token."""
    clusters: tuple[int, ...] = (8192,)
    layer: int = 9
    first_share: float = 1.0
    mask_ratio: float = 0.4
    """Share of the tubes that are hidden."""
    mask_block: int = 16
    """Patches of the smallest block, in a frame."""
    clips: int = 1
    """Clips cut from one decode of a file (repeated sampling)."""
    interval: float | None = None
    """Seconds from one frame of a clip to the next, in place of input.stride."""

    epochs: float = 800
    batch_size: int = 1024
    base_lr: float = 1.5e-3
    lr_per: int = 2048
    min_lr: float = 1e-5
    warmup: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 3.0

    def first_features(self) -> dict[str, Any]:
        """Tubes of the clip at half its size, as image/beit does."""
        spec = self.input
        if spec.size % 2 == spec.patch % 2 == 0:
            spec = replace(spec, size=spec.size // 2, patch=spec.patch // 2)
        return {"features": "patches", "input": spec}


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, VideoSpec)
    tokenizer = open_tokenizer(settings.units, encoder)
    objective = MaskedPrediction(
        encoder,
        codebook=tokenizer.codebook,
        tokenizer=tokenizer,
        mask=BlockMask(settings.mask_ratio, settings.mask_block),
        head="linear",
        view="clip",
    )
    views = VideoViews(
        size=spec.size, frames=spec.frames, stride=spec.stride, interval=settings.interval, per_file=settings.clips
    )
    return Parts(objective, views)


if __name__ == "__main__":
    main(Settings, build)

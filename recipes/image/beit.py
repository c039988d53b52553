"""BEiT: hide blocks of an image, predict the code of each hidden patch.

paper      Bao et al. 2022, BEiT: BERT Pre-Training of Image Transformers, arXiv:2106.08254; values of the official code
command    mmssl pretrain image/beit --data DIR --out DIR
           clusters patches first (OUT/units), then trains on the clusters; with --clusters 8192 8192 once more, on
           clusters of layer 9 of what the first training gave
           on codes that stand, with --units FOLDER:
             a discrete VAE of one's own    mmssl pretrain image/dvae --data DIR --out FOLDER
             clusters                       mmssl targets kmeans --data DIR --out FOLDER --features patches|layer ...
             DALL-E's, which the paper takes: transformers' FlavaImageCodebook, config.json and model.safetensors
hardware   paper: 800 epochs of ImageNet-1k, five days on 16 V100
published  ImageNet-1k, ViT-B, 300 epochs, fine-tuned: 83.1 % (OpenMMLab's reproduction, with DALL-E's codes)
ours       not measured yet
difference the authors' ViT has relative positions shared by its layers; here it has learned absolute positions, and
           layer scale is written into the weights, so that transformers' ViTModel loads it; every image has the same
           number of masked patches (78 of 196; official code: at most 75); the tokenizer sees the encoder's view,
           resized, where theirs sees a second resampling of the same crop
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mmssl.adapters.specs import ImageSpec
from mmssl.data.device_views import Photometric
from mmssl.data.views import ImageViews
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.objectives.blocks import BlockMask
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.targets.views import open_tokenizer
from mmssl.training.iterations import SettingsByIterations as Common
from mmssl.training.recipe import Parts, main


@dataclass(kw_only=True)
class Settings(Common):
    """BEiT (Bao et al. 2022): hide 40 % of an image in blocks, predict the codes of the hidden patches."""

    input: ImageSpec = field(default_factory=lambda: ImageSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    encoder: EncoderSettings = field(
        default_factory=lambda: EncoderSettings(
            positions="learned", drop_path=0.1, layer_scale=0.1, initial="truncated"
        )
    )
    """ViT-B. Layer scale is 1e-5 for BEiT's ViT-L."""
    clusters: tuple[int, ...] = (8192,)
    layer: int = 9
    first_share: float = 1.0
    mask_ratio: float = 0.4
    """Share of the patches that are hidden."""
    mask_block: int = 16
    """Patches of the smallest block."""
    jitter: float = 0.4
    """Strength of brightness, contrast and saturation, of what encoder and tokenizer see; 0 for none."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a crop covers."""

    epochs: float = 800
    batch_size: int = 2048
    base_lr: float = 1.5e-3
    lr_per: int = 2048
    min_lr: float = 1e-5
    warmup: float = 10 / 800
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 3.0

    def first_features(self) -> dict[str, Any]:
        """Patches of the view at half its size, 112 for 224, as BEiT shows it to its tokenizer."""
        spec = self.input
        if spec.size % 2 == spec.patch % 2 == 0:
            spec = replace(spec, size=spec.size // 2, patch=spec.patch // 2)
        return {"features": "patches", "input": spec}


def build(settings: Settings) -> Parts:
    encoder = build_encoder(settings.input, settings.encoder, settings.init)
    spec = encoder.spec
    assert isinstance(spec, ImageSpec)
    tokenizer = open_tokenizer(settings.units, encoder)
    objective = MaskedPrediction(
        encoder,
        codebook=tokenizer.codebook,
        tokenizer=tokenizer,
        mask=BlockMask(settings.mask_ratio, settings.mask_block),
        head="linear",
    )
    jitter = Photometric(
        ("view",),
        brightness=settings.jitter,
        contrast=settings.jitter,
        saturation=settings.jitter,
        hue=0.0,
        p_jitter=1.0,
        p_grey=0.0,
        p_blur=0.0,
    )
    return Parts(objective, ImageViews(spec.size, scale=settings.scale), (jitter,) if settings.jitter else ())


if __name__ == "__main__":
    main(Settings, build)

"""A tokenizer for the views of an encoder: found in a folder of any kind, checked against the encoder's grid, shown the
same crop at its own resolution."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, resize

from mmssl.adapters.base import Adapter
from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, VideoSpec
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.targets.dalle import MODEL_TYPE, STRIDE, DalleTokenizer
from mmssl.targets.dvae import CODES, load_dvae
from mmssl.targets.features import Features, LayerFeatures, PatchFeatures
from mmssl.targets.tokenizer import Tokenizer, load_tokenizer


class ViewTokenizer(nn.Module):
    """Views of an encoder -> codes int64 [B,N], one a token.

    Pictures and clips of another size are resized on the device (bicubic, antialiased; BEiT crops twice, the second
    time with Lanczos): the tokenizer sees the crop that the encoder sees.

    Args:
        tokenizer: takes views of `spec`.
        codebook: what its codes are numbers of.
    """

    def __init__(self, tokenizer: Tokenizer | DalleTokenizer, spec: Spec, codebook: Codebook) -> None:
        super().__init__()
        self.tokenizer, self.spec, self.codebook = tokenizer, spec, codebook

    @torch.no_grad()
    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        if isinstance(self.spec, ImageSpec | VideoSpec) and view.shape[-1] != self.spec.size:
            pixels = view if view.is_floating_point() else view.float() / 255
            size = [self.spec.size, self.spec.size]
            view = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        codes: Tensor = self.tokenizer(view, lengths)
        return codes


def open_tokenizer(folder: Path | None, encoder: Encoder) -> ViewTokenizer:
    """The tokenizer in `folder` for the views of `encoder`: units of `mmssl targets kmeans`, a run of a discrete VAE
    (OUT or OUT/encoder), or DALL-E's as transformers holds it (FlavaImageCodebook).

    Raises:
        UserError: none is named or found, it is of another modality, or its codes lie on another grid.
    """
    if not isinstance(encoder, TokenEncoder):
        raise UserError(f"Codes are predicted for tokens, and {type(encoder).__name__} has none: choose a ViT encoder.")
    if folder is None:
        raise UserError(
            "The model predicts codes, and no tokenizer is named: make one with `mmssl targets kmeans --features "
            "patches` or `mmssl pretrain image/dvae`, and name its folder by --units."
        )
    spec, grid = encoder.spec, encoder.adapter.grid
    place = next((found for found in (folder / "encoder", folder) if (found / CODES).is_file()), None)
    if place is None and _model_type(folder) == MODEL_TYPE:
        if not isinstance(spec, ImageSpec):
            raise UserError(f"The tokenizer in {folder} is for images, and the encoder for {spec.modality}.")
        dalle = DalleTokenizer(folder, STRIDE * grid[1])
        return ViewTokenizer(dalle, dalle.spec, dalle.codebook)
    tokenizer = load_tokenizer(folder) if place is None else load_dvae(place)
    features = tokenizer.features
    adapter = _adapter_of(features)
    if adapter is None:
        raise UserError(
            f"The codes of {folder} are one each {features.timing.hop if features.timing else 0} samples of whole "
            "recordings, and no token of an encoder of patches: cluster 'patches', or a layer of such an encoder."
        )
    own = adapter.spec
    if own.modality != spec.modality:
        raise UserError(f"The tokenizer in {folder} is for {own.modality}, and the encoder for {spec.modality}.")
    if adapter.grid != grid or not _same_extent(own, spec):
        raise UserError(
            f"The tokenizer in {folder} gives a grid of {adapter.grid} codes ({_text(own)}), and the encoder has "
            f"{grid} tokens ({_text(spec)}): make a tokenizer with as many patches a view, such as "
            "patches of 8 pixels and a size of 112 for 16 and 224, or change --input."
        )
    return ViewTokenizer(tokenizer, own, Codebook(tokenizer.centroids, tokenizer.name))


def _adapter_of(features: Features) -> Adapter | None:
    """What cuts the views that the features are of; None where they are of whole recordings."""
    if isinstance(features, PatchFeatures):
        return features.adapter
    if isinstance(features, LayerFeatures) and features.timing is None and isinstance(features.encoder, TokenEncoder):
        return features.encoder.adapter
    return None


def _same_extent(own: Spec, spec: Spec) -> bool:
    """Whether two grids of the same shape lie over the same part of a view; pictures are resized to fit."""
    if isinstance(own, VideoSpec) and isinstance(spec, VideoSpec):
        return own.frames == spec.frames and own.tubelet == spec.tubelet
    if isinstance(own, AudioSpec) and isinstance(spec, AudioSpec):
        return (own.rate, own.samples) == (spec.rate, spec.samples)
    return True


def _text(spec: Spec) -> str:
    if isinstance(spec, ImageSpec):
        return f"patches of {spec.patch} of {spec.size} pixels"
    if isinstance(spec, VideoSpec):
        return f"tubes of {spec.tubelet} x {spec.patch} of {spec.frames} frames of {spec.size} pixels"
    if isinstance(spec, AudioSpec):
        return f"patches of {spec.patch} of {spec.mels} mels and {spec.frames} frames at {spec.rate} Hz"
    return spec.modality


def _model_type(folder: Path) -> str | None:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = content.get("model_type") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None

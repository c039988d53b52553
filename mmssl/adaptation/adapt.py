"""A pre-trained encoder made ready for fine-tuning: pooling, norms and stochastic depth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmssl.adaptation.classification import Head, block_names
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import build_adapter, build_front
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.encoders.speech import SpeechEncoder
from mmssl.encoders.vit import ViT, drop_path
from mmssl.errors import UserError

Pooling = Literal["mean", "cls", "prefix"]
VIDEOMAE_EPS = 1e-5
"""Of fc_norm in transformers' VideoMAEForVideoClassification, whatever the encoder's."""


def adapted(encoder: Encoder, *, drop: float = 0.0, pooling: Pooling | None = None) -> Encoder:
    """A copy of the encoder to fine-tune, in training mode.

    A ViT whose features are a mean over patches leaves its final norm to the head, which has one after the pooling, as
    MAE and VideoMAE fine-tune (but not images without a prefix token, where I-JEPA's class keeps it).

    Args:
        drop: rate of stochastic depth at the last block; it grows linearly from 0 at the first (ViT), or from one part
            of it (ResNet: Huang et al. 2016, arXiv:1603.09382, equation 4). Of a speech encoder: its layer drop, the
            same for all blocks. Of an EfficientNet: its drop-connect.
        pooling: of a ViT, or 'mean' of an EfficientNet; the encoder's own if None.

    Raises:
        UserError: encoders that `block_names` does not know, or a pooling that this one cannot have.
    """
    if isinstance(encoder, ViT):
        settings = replace(encoder.settings, drop_path=drop, pooling=pooling or encoder.settings.pooling)
        keeps = settings.pooling != "mean" or (encoder.spec.modality == "image" and not settings.prefix)
        settings = replace(settings, final_norm=settings.final_norm and keeps)
        made: Encoder = ViT(build_adapter(encoder.spec, encoder.width), settings)
        state = {name: tensor for name, tensor in encoder.state_dict().items() if keeps or not name.startswith("norm.")}
        made.load_state_dict(state)
        return made.train()
    if isinstance(encoder, SpeechEncoder):
        if pooling not in (None, "mean"):
            raise UserError(f"--pooling {pooling}: a speech encoder has no prefix tokens, leave it out.")
        speech = SpeechEncoder(encoder.spec, replace(encoder.settings, layer_drop=drop))
        speech.load_state_dict(encoder.state_dict())
        return speech.train()
    names = block_names(encoder)
    assert isinstance(encoder, ConvEncoder | EfficientNet)
    if pooling not in (None, "mean"):
        kind = f"a {encoder.arch}" if isinstance(encoder, ConvEncoder) else "an EfficientNet"
        raise UserError(f"--pooling {pooling} is about tokens, and {kind} has a feature map: leave it out.")
    if isinstance(encoder, EfficientNet):
        own = replace(encoder.settings, drop_connect=drop, pooling=pooling or encoder.settings.pooling)
        net = EfficientNet(build_front(encoder.spec), own)
        net.load_state_dict(encoder.state_dict())
        return net.train()
    copied = ConvEncoder(type(encoder.front)(encoder.spec), encoder.arch, encoder.stem, encoder.output_stride)
    copied.load_state_dict(encoder.state_dict())
    for number, name in enumerate(names if drop else ()):
        block: Any = copied.get_submodule(name)
        last = block.bn3 if hasattr(block, "bn3") else block.bn2
        _drop_after(last, drop * (number + 1) / len(names))
    return copied.train()


def make_head(encoder: Encoder, classes: int, *, dropout: float = 0.0) -> Head:
    """A head for an encoder from `adapted`: with a layer norm where the encoder has none, or where AST's class has two.
    The others have none."""
    norm: float | None = None
    if isinstance(encoder, ViT) and (not encoder.settings.final_norm or encoder.pooling == "prefix"):
        video = encoder.spec.modality == "video" and not encoder.settings.prefix
        norm = VIDEOMAE_EPS if video else encoder.settings.norm_eps
    return Head(encoder.width, classes, norm=norm, dropout=dropout)


def _drop_after(module: nn.Module, rate: float) -> None:
    """Drop a residual branch where it ends: before it is added to what skips it."""

    def hook(norm: nn.Module, _: tuple[Tensor, ...], branch: Tensor) -> Tensor:
        return drop_path(branch, rate) if norm.training else branch

    module.register_forward_hook(hook)


def on_meta(encoder: ViT, **changes: Any) -> ViT:
    """An encoder of the same settings but for `changes`, without weights."""
    with torch.device("meta"):
        return ViT(build_adapter(encoder.spec, encoder.width), replace(encoder.settings, **changes))

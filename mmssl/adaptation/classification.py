"""Supervised classification as an objective, so that fine-tuning is a run like any other: checkpoints, devices, log."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.encoders.speech import SpeechEncoder
from mmssl.encoders.vit import ViT
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.types import Batch, ObjectiveOutput


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over B of -sum_c target_c log softmax(logits)_c, in fp32; logits and target are [B,classes]."""
    with torch.autocast(logits.device.type, enabled=False):
        return -(target.float() * logits.float().log_softmax(1)).sum(1).mean()


def one_hot(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """int64 [B] -> float32 [B,classes]: 1 - smoothing at the label, plus smoothing / classes everywhere (Szegedy et al.
    2016, Inception v3, section 7)."""
    hard = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return hard * (1 - smoothing) + smoothing / classes


def block_names(encoder: Encoder) -> list[str]:
    """Names of the residual blocks of an encoder, from the input to the output.

    Raises UserError for encoders other than a ViT, a HuBERT, a WavLM, a ResNet or an EfficientNet.
    """
    if isinstance(encoder, ViT | SpeechEncoder):
        return [f"blocks.{number}" for number in range(len(encoder.blocks))]
    if isinstance(encoder, ConvEncoder):
        stages = [(stage, getattr(encoder, stage)) for stage in ("layer1", "layer2", "layer3", "layer4")]
        return [f"{stage}.{number}" for stage, blocks in stages for number in range(len(blocks))]
    if isinstance(encoder, EfficientNet):
        return [f"net.encoder.blocks.{number}" for number in range(len(encoder.net.encoder.blocks))]
    raise UserError(
        "Fine-tuning knows the blocks of a ViT, a SpeechEncoder, a ConvEncoder and an EfficientNet, and this is a "
        f"{type(encoder).__name__}: choose another encoder."
    )


def layer_numbers(encoder: Encoder) -> dict[str, int]:
    """Parameter name -> layer: 0 for what makes the tokens (projection, positions, prefix; the stem of a ResNet or an
    EfficientNet; the convolutions of a speech encoder), b + 1 for block b, and the number of blocks + 1 for a final
    norm or an EfficientNet's last convolution, as for the head."""
    blocks = block_names(encoder)
    ends = not isinstance(encoder, SpeechEncoder) or encoder.settings.pre_norm  # else the norm is before the blocks
    found = {}
    for name, _ in encoder.named_parameters():
        inside = [number for number, block in enumerate(blocks) if name.startswith(f"{block}.")]
        last = len(blocks) + 1 if ends and re.match(r"norm\.|net\.encoder\.top_", name) else 0
        found[name] = inside[0] + 1 if inside else last
    return found


class Head(nn.Module):
    """Pooled features [B,D] -> logits [B,classes]: layer norm (VideoMAE's fc_norm) if wanted, dropout, linear.

    The linear layer starts so near zero (std 2e-5, our choice) that the first loss is ln(classes).
    """

    def __init__(self, width: int, classes: int, *, norm: float | None, dropout: float = 0.0) -> None:
        """`norm` is the epsilon of the layer norm; None for none."""
        super().__init__()
        self.norm = nn.Identity() if norm is None else nn.LayerNorm(width, eps=norm)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=2e-5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.dropout(self.norm(pooled)))


class Classification(Objective):
    """Cross-entropy of a head on pooled features, with every weight of the encoder trained along.

    Args:
        classes: names; `Batch.targets['class']` holds their numbers.
        layer_decay: the learning rate of layer l is multiplied by layer_decay ** (blocks + 1 - l), with the layers of
            `layer_numbers`; the head has 1 (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT).

    The targets are `Batch.targets['soft']` [B,classes] where a device view made them (`Mix`), else the labels.
    """

    views = ("view",)
    targets = ("class",)

    def __init__(self, encoder: Encoder, head: Head, classes: tuple[str, ...], *, layer_decay: float = 1.0) -> None:
        super().__init__(encoder)
        self.head = head
        self.classes = classes
        self.layer_decay = layer_decay

    def loss(self, batch: Batch) -> ObjectiveOutput:
        target = batch.targets.get("soft")
        if target is None:
            target = one_hot(batch.targets["class"], len(self.classes))
        logits = self.head(self.embed(batch, "view"))
        loss = soft_cross_entropy(logits, target)
        right = (logits.argmax(1) == target.argmax(1)).float().mean()
        return ObjectiveOutput(loss, loss.new_tensor(len(batch)), {"accuracy": right.detach()})

    def param_groups(self) -> list[dict[str, Any]]:
        layers = {f"encoder.{name}": layer for name, layer in layer_numbers(self.encoder).items()}
        last = len(block_names(self.encoder)) + 1
        split: dict[tuple[int, bool], dict[str, Any]] = {}
        for group in super().param_groups():
            for name, parameter in group["params"]:
                layer = layers.get(name, last)
                fresh = {"params": [], "lr_scale": self.layer_decay ** (last - layer), "decay": group["decay"]}
                split.setdefault((layer, group["decay"]), fresh)["params"].append((name, parameter))
        return [split[key] for key in sorted(split)]

    def exports(self) -> dict[str, Encoder]:
        return {}  # what fine-tuning writes is the classifier: see classifier.py

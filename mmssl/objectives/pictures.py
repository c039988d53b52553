"""Cells of pictures for the report, from views of raw media."""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl.adapters.base import Front
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.types import Batch, Picture

SAMPLES = 4
"""Rows of a picture."""

KINDS = {"image": "image", "video": "clip", "audio": "spectrogram"}
"""`Picture.kind` by modality."""


def cells(front: Front, pixels: Tensor) -> list[Tensor]:
    """One CPU tensor a sample, as `Picture` wants it, of normalised pixels [B,C,T,H,W]."""
    media = front.denormalise(pixels).cpu()
    if front.spec.modality == "audio":
        return list(media[:, 0, 0])  # [F,T]
    frames = media.mul(255).round().to(torch.uint8).transpose(1, 2)  # [B,T,C,H,W]
    return list(frames if front.spec.modality == "video" else frames[:, 0])


@torch.no_grad()
def view_pictures(encoder: Encoder, batch: Batch, names: tuple[str, ...]) -> dict[str, Picture]:
    """The first samples of a batch, one column a view; nothing for encoders whose input is unknown here."""
    if isinstance(encoder, TokenEncoder):
        front = encoder.adapter.front
    elif isinstance(encoder, ConvEncoder | EfficientNet):
        front = encoder.front
    else:
        return {}
    columns = []
    for name in names:
        lengths = batch.lengths[name][:SAMPLES] if name in batch.lengths else None
        columns.append(cells(front, front(batch.views[name][:SAMPLES], lengths)))
    return {"views": Picture(KINDS[encoder.spec.modality], names, tuple(zip(*columns, strict=True)))}

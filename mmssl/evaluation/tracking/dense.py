"""Dense features of one frame: what label propagation compares. h, w is the grid of the features."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.adapters.colour import rgb_to_lab
from mmssl.adapters.specs import SoundSpec, VideoSpec
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.dense import DenseEncoder
from mmssl.encoders.headed import HeadedEncoder
from mmssl.errors import UserError
from mmssl.types import Encoded


class DenseFeatures:
    """An encoder's features of every cell of a frame, of unit length.

    - Transformers over images: patch tokens of the last block after the final norm, without prefix tokens; positions
      are those of the frame's grid.
    - Transformers over clips see the frame as the ONE tubelet in the middle of an otherwise hidden clip: it is repeated
      over the clip, and only the middle tubelet's tokens are encoded, at their own place in time. Masked encoders learn
      from few visible tokens, and no other frame leaks in (our choice: no protocol says how).
    - Convolutional nets over images: the feature map.
    - Encoders with a map a frame of a clip: the frame repeated over the clip, and the middle map (our choice).

    Of an encoder with a head, whose embedding has no places, the trunk is taken.

    Args:
        layer: 0 for the output; k for the state after block k (of a transformer, before the final norm) or the map of
            stage k (of a ResNet: layer1 to layer4).

    Raises:
        UserError: an encoder of sound or of stacked clips, one without dense features, or a layer that it has not.
    """

    def __init__(self, encoder: Encoder, layer: int = 0) -> None:
        if isinstance(encoder.spec, SoundSpec):
            raise UserError("Label propagation needs an encoder of images or video, and this one takes sound.")
        if isinstance(encoder.spec, VideoSpec) and encoder.spec.stack != "none":
            raise UserError(
                f"Label propagation needs features of one frame, and this encoder sees a clip as a stack "
                f"({encoder.spec.stack}): give an encoder of images or of plain clips."
            )
        if isinstance(encoder, HeadedEncoder):
            encoder = encoder.trunk
        self.encoder = encoder
        self.convolutional = isinstance(encoder, ConvEncoder)
        self.layer = layer
        trunk = getattr(encoder, "trunk", encoder)
        self.patch = trunk.adapter.patch[-1] if isinstance(trunk, TokenEncoder) else 1
        """Sides of a frame must be multiples of this."""

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Tensor:
        """float32 [C,h,w], unit length over C, of a frame uint8 [3,H,W] (H and W multiples of `patch`)."""
        encoded = self._encode(frame)
        out = encoded.tokens if encoded.tokens is not None else encoded.feature_map
        if out is None:
            raise UserError(f"{type(self.encoder).__name__} gives neither tokens nor a feature map.")
        if self.layer:
            states = encoded.hidden or ()
            if self.layer >= len(states):
                raise UserError(
                    f"--layer {self.layer}: this encoder has the layers 1 to {max(0, len(states) - 1)}, and 0 for its "
                    "output."
                )
            out = states[self.layer]
        out = out[0].float()
        if encoded.tokens is not None:
            h, w = frame.shape[1] // self.patch, frame.shape[2] // self.patch
            out = out[-h * w :].T.unflatten(1, (h, w))  # prefix tokens come first
        elif out.ndim == 4:
            out = out[:, out.shape[1] // 2]
        return F.normalize(out, dim=0)

    def _encode(self, frame: Tensor) -> Encoded:
        spec, hidden = self.encoder.spec, self.layer > 0
        if not isinstance(spec, VideoSpec):
            return self.encoder(frame[None], hidden=hidden)
        if isinstance(self.encoder, DenseEncoder) and not hidden:  # its trunk need not run for every copy
            embedded = self.encoder.still(frame[None])
            return Encoded(pooled=embedded.mean((2, 3)), feature_map=embedded)
        clip = frame.expand(1, spec.frames, -1, -1, -1)
        if not isinstance(self.encoder, TokenEncoder):
            return self.encoder(clip, hidden=hidden)
        cells = (frame.shape[1] // self.patch) * (frame.shape[2] // self.patch)
        middle = spec.frames // spec.tubelet // 2 * cells
        keep = torch.arange(middle, middle + cells, device=frame.device)[None]
        return self.encoder.encode(self.encoder.tokenize(clip, keep=keep), hidden=hidden)


LAB_RANGE = (50.0, 128.0, 128.0)
"""Largest |L - 50|, |a| and |b|."""


def lab_patches(frame: Tensor, grid: tuple[int, int]) -> Tensor:
    """The baseline without a network: the Lab values of all pixels of a cell, as unit vectors [C,h,w].

    A plain cosine of Lab values would not see how bright they are. So each vector of (L - 50, a, b) is divided by the
    largest possible length R, and one more coordinate s makes its length 1: then cosine = 1 - (distance / R)^2 / 2 -
    (difference of s)^2 / 2, whose last part is small, and cells are ordered by Euclidean distance in Lab. R is so large
    that the weights of the k nearest differ little: nearly a plain k-nearest-neighbour mean.

    Args:
        frame: uint8 [3,H,W].
        grid: (h, w) of the features that the baseline stands beside.
    """
    h, w = grid
    side = max(1, min(frame.shape[1] // h, frame.shape[2] // w))
    pixels = F.interpolate(frame[None].float() / 255, size=(h * side, w * side), mode="bilinear", antialias=True)
    lab = rgb_to_lab(pixels[0].clamp(0, 1))  # [3,h*side,w*side]
    lab = torch.stack([lab[0] - 50, lab[1], lab[2]])
    cells = (
        lab.unflatten(2, (w, side)).unflatten(1, (h, side)).permute(0, 2, 4, 1, 3).flatten(0, 2)
    )  # [3*side*side,h,w]
    cells = cells / (side * math.hypot(*LAB_RANGE))
    return torch.cat([cells, (1 - cells.square().sum(0, keepdim=True)).clamp_min(0).sqrt()])

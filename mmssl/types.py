"""The contracts between the rooms: data -> adapters -> encoders -> objectives -> training.

Shape legend, used in every docstring of the project:

    B  samples of the micro-batch on this process     T  frames, or time positions of a token grid
    N  tokens of one sample, N = T*H*W of the grid    H  rows (image: height, spectrogram: mel patches)
    V  visible (kept) tokens of one sample            W  columns (image: width, spectrogram: time patches)
    M  masked tokens of one sample                    S  audio samples of a waveform
    P  prefix tokens (CLS, distillation)              D  width of the encoder
    K  values of one patch and channel                C  channels

Masks are boolean with True = masked, everywhere. Token grids are flattened row-major: (T, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of raw media on one process. Adapters normalise; nobody before them does."""

    views: dict[str, Tensor]
    """By name: images uint8 [B,3,H,W], clips uint8 [B,T,3,H,W], waveforms float32 [B,S] in [-1,1].
    After a device view, images and clips may also be float32 in [0,1]."""
    index: Tensor
    """int64 [B]: row of each sample in its index (PIRL's bank needs it)."""
    noise: dict[str, Tensor] = field(default_factory=dict)
    """By name: float32 [B,k], uniform in [0,1), drawn from each sample's own generator."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """By name, first dimension B: class, units, times (seconds), sequence and view ids."""
    lengths: dict[str, Tensor] = field(default_factory=dict)
    """By view name: int64 [B] valid frames or samples, where a view is padded."""
    skipped: tuple[tuple[int, str], ...] = ()
    """(row, reason) of files that could not be read and were replaced while this batch was made."""

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Batch:
        """Copy every tensor to `device`, without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy every tensor to page-locked memory; the loader's pinning thread calls it by this name."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, act: Callable[[Tensor], Tensor]) -> Batch:
        def all_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: act(tensor) for name, tensor in tensors.items()}

        return replace(
            self,
            views=all_of(self.views),
            index=act(self.index),
            noise=all_of(self.noise),
            targets=all_of(self.targets),
            lengths=all_of(self.lengths),
        )


@dataclass(frozen=True)
class Tokens:
    """What an adapter makes of one view."""

    x: Tensor
    """[B,N,D], positions NOT added."""
    grid: tuple[int, int, int]
    """(T,H,W) that N came from, row-major; image T=1; spectrogram (1, mel patches, time patches)."""
    pos: Tensor | None = None
    """[1,N,D] position embeddings of the N tokens, filled in by the encoder; None if the trunk adds none."""
    rope: Tensor | None = None
    """[1 or B,N,2,E] cosines and sines that turn queries and keys of E channels a head, filled in by the encoder; None
    if the trunk turns none."""
    padding: Tensor | None = None
    """bool [B,N], True = padding; None if every token is real."""
    features: Tensor | None = None
    """Adapter output before projection, where an objective needs it (HuBERT's feature penalty)."""


@dataclass(frozen=True)
class Encoded:
    """What every encoder returns."""

    pooled: Tensor
    """[B,D]: the one vector a sample, pooled as the encoder's settings say (mean over patches, CLS, ...)."""
    tokens: Tensor | None = None
    """[B,N or V,D] patch tokens in the order they were given; None for convolutional nets."""
    prefix: Tensor | None = None
    """[B,P,D] prefix tokens; None if the trunk has none."""
    grid: tuple[int, int, int] | None = None
    """Token grid of the whole view, also when only some tokens were kept."""
    feature_map: Tensor | None = None
    """One vector a place, for dense tasks, at any size of view: [B,C,H,W] of an encoder of images or spectrograms,
    [B,C,T,H,W] (one map a frame of the view) of an encoder of clips. A convolutional net's last map, or the embedding
    of a DenseEncoder, whose C need not be D; None for a ViT, whose map is `tokens` on `grid`."""
    hidden: tuple[Tensor, ...] | None = None
    """On request: states as transformers' output_hidden_states defines them (embeddings, then every block)."""


@dataclass(frozen=True)
class Picture:
    """One figure for the report: rows of samples, columns of stages."""

    kind: str
    """'image': uint8 [3,H,W] a cell; 'clip': uint8 [T,3,H,W] a cell; 'spectrogram': float [F,T] a cell."""
    columns: tuple[str, ...]
    """Caption of each column, such as ('original', 'masked', 'reconstruction')."""
    rows: tuple[tuple[Tensor, ...], ...]
    """CPU tensors, one tuple a sample, one tensor a column."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns for what='loss' (and, with `pictures` alone, for what='pictures')."""

    loss: Tensor
    """Scalar fp32: a mean over `count` terms of this process."""
    count: Tensor
    """Scalar float: how many terms the mean averages (masked tokens, anchors). The step back-propagates loss x count
    and divides the gradients by the count summed over micro-batches and processes."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars, each a mean over the same `count` terms; never `.item()` inside a step."""

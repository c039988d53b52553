"""Label propagation: the first frame's labels carried through a video by the likeness of its features.

Every cell of a new frame takes the mean of the labels of the k context cells that look most like it. Nothing is
trained, so the result says how well the features find the same thing again (Vondrick et al. 2018, arXiv:1806.09594).
The protocols follow the released code of CRW (Jabri et al. 2020, arXiv:2006.14613) and of DINO (Caron et al. 2021,
arXiv:2104.14294).
h, w is the grid of the dense features, L the number of label channels (background and objects, or joints).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmssl.errors import UserError

Window = Literal["square", "disc"]

CHUNK = 1 << 23
"""About how many affinities are held at once (32 MiB); rows of queries are taken in as many parts as that needs."""


@dataclass(frozen=True)
class Protocol:
    """The numbers of one published evaluation. Results of different protocols are not comparable."""

    size: int
    """Short side of the frames that the encoder sees, in pixels; 0 keeps the frames as they are."""
    multiple: int
    """The long side is cut down to a multiple of this (where the patch divides it, else of the patch)."""
    layer: int
    """Stage of a convolutional net whose map is used; 0 is its last. Transformers always give their last block."""
    previous: int
    """Context frames right before the current one; the first frame is always in the context as well."""
    repeat_first: bool
    """Fill the context with copies of the first frame until there are `previous` frames before the current one."""
    top_k: int
    """Context cells that a cell takes its label from."""
    temperature: float
    """T of the weights exp(cosine / T), which are divided by their sum over the top k: a softmax over them."""
    radius: float
    """How far away, in cells, a context cell may lie; 0 is no limit."""
    window: Window
    """'square': both offsets at most the radius. 'disc': Euclidean distance below the radius."""
    restrict_first: bool
    """The limit also holds for the first frame."""
    reduce: Literal["nearest", "bilinear"]
    """How the first mask becomes labels of the grid."""
    normalise: bool
    """Stretch every enlarged label channel to [0,1] before the argmax."""
    argmax: Literal["input", "mask"]
    """'input': at the size the encoder saw, then nearest neighbour to the mask's; 'mask': at the mask's own size."""


PROTOCOLS = {
    "dino": Protocol(
        size=480,
        multiple=64,
        layer=0,
        previous=7,
        repeat_first=False,
        top_k=5,
        temperature=0.1,
        radius=12,
        window="square",
        restrict_first=True,
        reduce="nearest",
        normalise=True,
        argmax="input",
    ),
    "crw": Protocol(
        size=0,
        multiple=1,
        layer=3,
        previous=20,
        repeat_first=True,
        top_k=10,
        temperature=0.05,
        radius=12,
        window="disc",
        restrict_first=False,
        reduce="bilinear",
        normalise=False,
        argmax="mask",
    ),
}
"""'dino' is DINO's eval_video_segmentation.py, 'crw' is test.py of CRW (videowalk), each with its published options."""


def check_protocol(protocol: Protocol) -> None:
    """Raise UserError for numbers that make no propagation."""
    for name, least in (("size", 0), ("multiple", 1), ("layer", 0), ("previous", 0), ("top_k", 1), ("radius", 0)):
        if getattr(protocol, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(protocol, name)}: give {least} or more.")
    if not protocol.temperature > 0:
        raise UserError(f"--temperature is {protocol.temperature}: give a number above 0.")


def input_size(height: int, width: int, protocol: Protocol, patch: int) -> tuple[int, int]:
    """(height, width) at which an encoder with this patch sees a frame.

    The short side is `protocol.size`, the long side keeps the ratio and is floored to `protocol.multiple`: 854x480 at
    480 and 64 becomes 832x480, as in DINO. Where the patch does not divide these, both are floored to the patch (ours).

    Raises:
        UserError: the frame is smaller than one patch.
    """
    short, long = min(height, width), max(height, width)
    if protocol.size:
        short, long = protocol.size, protocol.size * long // short
    multiple = protocol.multiple if protocol.multiple % patch == 0 else patch
    short, long = short // patch * patch, long // multiple * multiple
    if not short or not long:
        raise UserError(
            f"Frames of {width}x{height} pixels are smaller than one patch of {patch} (or --multiple {multiple}) at "
            f"--size {protocol.size}: raise --size."
        )
    return (short, long) if height <= width else (long, short)


class Context(NamedTuple):
    """One frame that labels are taken from."""

    features: Tensor
    """float32 [C,h,w], unit length over C."""
    labels: Tensor
    """float32 [L,h,w]."""


class Propagation:
    """Carries labels from frame to frame and holds only the context, however long the video.

    Args:
        features: float32 [C,h,w] of the first frame, unit length over C.
        labels: float32 [L,h,w], its (soft) labels.
    """

    def __init__(self, protocol: Protocol, features: Tensor, labels: Tensor) -> None:
        self.protocol = protocol
        self.first = Context(features, labels)
        self.recent: deque[Context] = deque(maxlen=protocol.previous)
        if protocol.repeat_first:
            self.recent.extend([self.first] * protocol.previous)

    @torch.no_grad()
    def step(self, features: Tensor) -> Tensor:
        """Soft labels [L,h,w] of the next frame from its features [C,h,w]; both enter the context."""
        p = self.protocol
        free = [] if p.restrict_first else [self.first]
        near = [self.first, *self.recent] if p.restrict_first else list(self.recent)
        labels = propagate(
            features, free, near, top_k=p.top_k, temperature=p.temperature, radius=p.radius, window=p.window
        )
        self.recent.append(Context(features, labels))
        return labels


def propagate(
    query: Tensor,
    free: Sequence[Context],
    near: Sequence[Context],
    *,
    top_k: int,
    temperature: float,
    radius: float = 0,
    window: Window = "square",
    chunk: int = CHUNK,
) -> Tensor:
    """Labels [L,h,w] of a frame with the features `query` [C,h,w].

    The k context cells of the largest cosine, over all context frames together, give their labels with the weights
    exp(cosine / temperature), divided by their sum.

    Args:
        free: context frames all of whose cells may be taken.
        near: context frames of which only cells within `radius` may be taken (0: all).
        chunk: about how many affinities are held at once.
    """
    _, h, w = query.shape
    if radius == 0:
        free, near = [*free, *near], []
    reach = h if not near else math.floor(radius)
    band = min(h, 2 * reach + 1)  # rows of a near frame that one row of queries can reach
    rows = max(1, min(h, chunk // (w * w * (len(free) * h + len(near) * band))))
    out = query.new_empty(len((*free, *near)[0].labels), h, w)
    for top in range(0, h, rows):
        bottom = min(h, top + rows)
        low, high = max(0, top - reach), min(h, bottom + reach)
        queries = query[:, top:bottom].flatten(1).T  # [Q,C]
        far = _far((top, bottom), (low, high), w, radius, window, query.device) if near else None
        cosines = [queries @ frame.features.flatten(1) for frame in free]
        for frame in near:
            cosine = queries @ frame.features[:, low:high].flatten(1)
            cosines.append(cosine if far is None else cosine.masked_fill_(far, -torch.inf))
        labels = [frame.labels.flatten(1) for frame in free] + [frame.labels[:, low:high].flatten(1) for frame in near]
        cosine = torch.cat(cosines, 1)
        best, cells = cosine.topk(min(top_k, cosine.shape[1]), dim=1)  # [Q,k]
        weights = (best / temperature).softmax(1)
        taken = torch.cat(labels, 1)[:, cells]  # [L,Q,k]
        out[:, top:bottom] = (taken * weights).sum(2).view(-1, bottom - top, w)
    return out


def _far(
    rows: tuple[int, int], band: tuple[int, int], width: int, radius: float, window: Window, device: torch.device
) -> Tensor:
    """bool [Q,K], True = out of reach: queries are the cells of `rows`, context cells those of the rows `band`."""
    down = (torch.arange(*rows, device=device)[:, None] - torch.arange(*band, device=device)).abs()  # [q,k]
    across = torch.arange(width, device=device)
    across = (across[:, None] - across).abs()  # [w,w]
    down, across = down[:, None, :, None], across[None, :, None, :]
    square = (down > radius) | (across > radius)
    far = square if window == "square" else down.square() + across.square() >= radius**2
    return far.flatten(2).flatten(0, 1)

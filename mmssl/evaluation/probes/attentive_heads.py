"""Attentive probes in parallel: J of them, one a pair of learning rate and weight decay, as tensors [J,...]."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-8
PLACES = 1 << 25
"""Attention weights computed at a time (128 MiB in fp32)."""

State = dict[str, Tensor]
NOT_DECAYED = ("query", "bias", "scale", "shift")
"""Endings of names that take no weight decay."""


def new_heads(width: int, classes: int, count: int, seed: int, ratio: float = 4.0) -> State:
    """`count` equal heads: one learned query, cross-attention over the tokens, an MLP, a linear classifier.

    The block of V-JEPA's attentive pooler (Bardes et al. 2024, arXiv:2404.08471, appendix) with one query:
    q + attention(q, norm(x)), then q + mlp(norm(q)). V-JEPA 2 puts three blocks of self-attention before it, which are
    left out here. Weights start normal with std 0.02, truncated, biases at zero; the bias of the keys is left out: it
    changes no softmax. (Output projection, initial values and what decays are our choice.)
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = round(width * ratio)
    shapes = {
        "query": (width,),
        **{f"{name}.weight": (width, width) for name in ("q", "k", "v", "out")},
        "fc1.weight": (width, hidden),
        "fc2.weight": (hidden, width),
        "linear.weight": (width, classes),
    }
    heads = {}
    for name, shape in shapes.items():
        one = torch.nn.init.trunc_normal_(torch.empty(shape), std=0.02, generator=generator)
        heads[name] = one.expand(count, *shape).clone()
    zeros = {"q.bias": width, "v.bias": width, "out.bias": width, "fc1.bias": hidden, "fc2.bias": width}
    zeros |= {"linear.bias": classes, "norm1.shift": width, "norm2.shift": width}
    heads |= {name: torch.zeros(count, size) for name, size in zeros.items()}
    return heads | {f"{norm}.scale": torch.ones(count, width) for norm in ("norm1", "norm2")}


def logits_of(heads: State, x: Tensor, attention: int) -> Tensor:
    """Tokens x [B,N,D], standardised, -> logits float32 [B,J,classes], with `attention` heads in the cross-attention.

    A query that is the same for every sample turns the keys' matrix into one vector a head, and the values' matrix acts
    on the attended mean: the tokens are touched by two thin products instead of two [D,D] ones.
    """
    J, D = heads["query"].shape
    x = x.float()
    q = torch.einsum("ji,jio->jo", heads["query"], heads["q.weight"]) + heads["q.bias"]
    k = heads["k.weight"].view(J, D, attention, -1)
    probe = torch.einsum("jhd,jihd->jhi", q.view(J, attention, -1), k) / math.sqrt(D // attention)
    probe = probe * heads["norm1.scale"][:, None]  # the norm's shift adds the same to every token
    weight = (x @ probe.flatten(0, 1).T).softmax(1)  # [B,N,J*heads]
    mean = (weight.transpose(1, 2) @ x).view(len(x), J, attention, D)
    mean = mean * heads["norm1.scale"][:, None] + heads["norm1.shift"][:, None]
    v = torch.einsum("bjhi,jihd->bjhd", mean, heads["v.weight"].view(J, D, attention, -1)).flatten(2) + heads["v.bias"]
    y = heads["query"] + torch.einsum("bji,jio->bjo", v, heads["out.weight"]) + heads["out.bias"]
    z = F.layer_norm(y, (D,)) * heads["norm2.scale"] + heads["norm2.shift"]
    z = F.gelu(torch.einsum("bji,jio->bjo", z, heads["fc1.weight"]) + heads["fc1.bias"])
    y = y + torch.einsum("bji,jio->bjo", z, heads["fc2.weight"]) + heads["fc2.bias"]
    return torch.einsum("bji,jio->bjo", y, heads["linear.weight"]) + heads["linear.bias"]


def train_heads(
    heads: State,
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]],
    labels: Tensor,
    *,
    attention: int,
    rates: Tensor,
    decays: Tensor,
    steps: int,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Train all heads in place on the same batches: cross-entropy, AdamW (Loshchilov & Hutter 2019), rates [J] falling
    by a half cosine to 0, decays [J].

    A head shares nothing with the others: one that diverges leaves them as they are. AdamW is written out because the
    optimisers of PyTorch know no rate a row.

    Args:
        batches: epoch -> (tokens [b,N,D], example numbers [b]) of one pass over the examples.
        labels: int64 [E] by example number.
        tick: called after every step.
    """
    device = heads["query"].device
    first, second = ({name: torch.zeros_like(t) for name, t in heads.items()} for _ in range(2))
    rates, decays = rates.to(device), decays.to(device)
    step, epoch = 0, 0
    while step < steps:
        for tokens, numbers in batches(epoch):
            gradients = gradients_of(heads, tokens.to(device), labels[numbers].to(device), attention)
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            step += 1
            for name, gradient in gradients.items():
                shape = (-1, *[1] * (gradient.ndim - 1))
                rate = (rates * cosine).view(shape)
                first[name].lerp_(gradient, 1 - BETAS[0])
                second[name].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                if not name.endswith(NOT_DECAYED):
                    heads[name] -= rate * decays.view(shape) * heads[name]
                spread = (second[name] / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
                heads[name] -= rate * (first[name] / (1 - BETAS[0] ** step)) / spread
            tick()
            if step == steps:
                break
        epoch += 1


def gradients_of(heads: State, tokens: Tensor, target: Tensor, attention: int) -> State:
    """Gradients of each head's mean cross-entropy on tokens [b,N,D] with labels [b], a few samples at a time."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in heads.items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in heads.items()}
    size = samples_at_once(heads, tokens.shape[1], attention)
    with torch.enable_grad(), torch.autocast(tokens.device.type, enabled=False):
        for x, y in zip(tokens.split(size), target.split(size), strict=True):
            logits = logits_of(leaves, x, attention)
            losses = F.cross_entropy(logits.flatten(0, 1), y.repeat_interleave(logits.shape[1]), reduction="sum")
            found = torch.autograd.grad(losses / len(tokens), list(leaves.values()))
            for name, gradient in zip(leaves, found, strict=True):
                total[name] += gradient
    return total


def samples_at_once(heads: State, count: int, attention: int) -> int:
    return max(1, PLACES // (len(heads["query"]) * attention * count))

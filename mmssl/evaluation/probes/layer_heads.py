"""Heads on a softmax-weighted sum of layers (SUPERB: Yang et al. 2021, arXiv:2105.01051), of several rates at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import UserError
from mmssl.evaluation.features import standardisation
from mmssl.evaluation.labels import held_out
from mmssl.evaluation.probes.linear import Trial

LEAST_STEPS = 1000


@dataclass(frozen=True)
class LayerProbe:
    """A head on L layers and how its learning rate was chosen."""

    mean: Tensor
    """[L,D] of the training features."""
    scale: Tensor
    """[L,D]: standard deviation of the training features."""
    mix: Tensor
    """[L]: share of each layer, their sum is 1."""
    weight: Tensor
    """[D,classes]."""
    bias: Tensor
    """[classes]."""
    rate: float
    trials: tuple[Trial, ...]

    def predict(self, x: Tensor) -> Tensor:
        """States [Q,L,D] -> classes int64 [Q]."""
        found = []
        for part in x.split(4096):
            mixed = torch.einsum("l,bld->bd", self.mix, (part.float() - self.mean) / self.scale)
            found.append((mixed @ self.weight + self.bias).argmax(1))
        return torch.cat(found)


def layer_probe(
    x: Tensor,
    labels: Tensor,
    *,
    classes: int,
    groups: np.ndarray,
    rates: tuple[float, ...],
    epochs: int,
    batch: int,
    seed: int,
) -> LayerProbe:
    """Choose the learning rate by top-1 on a fifth of the training files, then train one head on all of them.

    SUPERB projects every frame to 256 dimensions, takes the mean over time and classifies: all of that is linear, so
    one matrix on the mean over time has the same answers to give. Nothing but the rate is tuned, as SUPERB demands.
    Each layer is standardised first, so that one grid of rates fits layers, encoders and untrained twins (our choice;
    SUPERB takes states as they are and trains for 200,000 steps).

    Args:
        x: [N,L,D] training states. labels: int64 [N].
        groups: [N], the file of every example: no file is on both sides of the validation split.

    Raises:
        UserError: when no class has two files to split.
    """
    validation = torch.from_numpy(held_out(groups.tolist(), labels.cpu().numpy(), share=0.2, seed=seed)).to(x.device)
    if not validation.any() or validation.all():
        raise UserError(
            f"A probe chooses its learning rate on a part of the training data, and {len(x)} training examples with at "
            "most one file a class cannot be split: add labelled files."
        )
    fit = ~validation
    mean, scale = _standard(x[fit])
    z, held, answer = (x[fit] - mean) / scale, (x[validation] - mean) / scale, labels[validation]
    mix, weight, bias = train_heads(
        z, labels[fit], classes=classes, rates=torch.tensor(rates), epochs=epochs, batch=batch, seed=seed
    )
    trials = []
    for rate, shares, w, b in zip(rates, mix, weight, bias, strict=True):
        logits = torch.einsum("l,bld->bd", shares, held) @ w + b
        top1 = float((logits.argmax(1) == answer).float().mean())
        trials.append(Trial(rate, 0.0, top1, float(F.cross_entropy(logits, answer))))
    best = max(trials, key=lambda t: (math.isfinite(t.validation_loss), t.validation_top1, -t.validation_loss))
    mean, scale = _standard(x)
    mix, weight, bias = train_heads(
        (x - mean) / scale,
        labels,
        classes=classes,
        rates=torch.tensor([best.rate]),
        epochs=epochs,
        batch=batch,
        seed=seed,
    )
    return LayerProbe(mean, scale, mix[0], weight[0], bias[0], best.rate, tuple(trials))


def train_heads(
    x: Tensor, labels: Tensor, *, classes: int, rates: Tensor, epochs: int, batch: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Train J heads at once by Adam with a cosine learning rate; the weights of the layers and of the head start at
    zero, so `seed` only orders the mini-batches.

    Args:
        x: [N,L,D] standardised states. labels: int64 [N]. rates: [J].

    Returns:
        shares of the layers [J,L], weights [J,D,classes] and biases [J,classes].
    """
    n, layers, width = x.shape
    heads = [
        [torch.zeros(shape, device=x.device, requires_grad=True) for shape in ((layers,), (width, classes), (classes,))]
        for _ in rates
    ]
    optimizer = torch.optim.Adam([{"params": head} for head in heads])
    batch = min(batch, n)
    steps = max(LEAST_STEPS, epochs * (n // batch))
    generator = torch.Generator().manual_seed(seed)
    order, position = torch.randperm(n, generator=generator), 0
    with torch.autocast(x.device.type, enabled=False):
        for step in range(steps):
            if position + batch > n:
                order, position = torch.randperm(n, generator=generator), 0
            few = order[position : position + batch].to(x.device)
            position += batch
            shares, weight, bias = (torch.stack(parts) for parts in zip(*heads, strict=True))
            mixed = torch.einsum("jl,bld->jbd", shares.softmax(1), x[few])
            logits = torch.baddbmm(bias[:, None], mixed, weight)  # [J,b,classes]
            loss = F.cross_entropy(logits.flatten(0, 1), labels[few].repeat(len(heads)), reduction="sum") / batch
            for group, rate in zip(optimizer.param_groups, rates.tolist(), strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    shares, weight, bias = (torch.stack(parts).detach() for parts in zip(*heads, strict=True))
    return shares.softmax(1), weight, bias


def _standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale [L,D] of states [N,L,D], each dimension by itself."""
    mean, scale = standardisation(x.flatten(1))
    return mean.view(x.shape[1:]), scale.view(x.shape[1:])

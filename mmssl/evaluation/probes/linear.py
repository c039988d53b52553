"""`mmssl evaluate linear`: a probe whose learning rate and weight decay are chosen on a part of the training data.

Never on the test.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.features import standardisation
from mmssl.evaluation.frame import Figures, run
from mmssl.evaluation.labels import held_out
from mmssl.evaluation.probes.probing import Answer, ProbeSettings, Sides, probe_pooled

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)
MOMENTUM = 0.9


@dataclass(kw_only=True)
class LinearSettings(ProbeSettings):
    """A linear probe on frozen, standardised features; rate and decay are chosen on a fifth of the training files."""

    evaluation = "linear"

    rates: tuple[float, ...] = RATES
    """Learning rates to choose from."""
    decays: tuple[float, ...] = DECAYS
    """Weight decays to choose from."""
    epochs: int = 100
    """Passes over the training examples (and at least 1,000 steps)."""
    probe_batch_size: int = 256
    """Examples of one step of the probe."""

    def check(self) -> None:
        super().check()
        check_grid(self.rates, self.decays)
        if min(self.epochs, self.probe_batch_size) < 1:
            raise UserError("--epochs and --probe-batch-size are 1 or more.")

    def run(self) -> Figures:
        return run(self, evaluate)


def check_grid(rates: Sequence[float], decays: Sequence[float]) -> None:
    """Raise UserError where there is nothing to choose from."""
    if not rates or not decays or min(rates) <= 0 or min(decays) < 0:
        raise UserError("--rates needs one or more values above 0, and --decays one or more of 0 or above.")


def evaluate(encoders: list[Encoder], source: Source, settings: LinearSettings) -> Figures:
    return probe_pooled(encoders, source, settings, probe)


def probe(sides: Sides, settings: LinearSettings) -> Answer:
    head = fit(sides.x, sides.y, sides.groups, sides.classes, settings)
    return Answer(head.predict(sides.queries).cpu().numpy(), head.chosen)


def fit(x: Tensor, y: Tensor, groups: np.ndarray, classes: int, settings: LinearSettings) -> Probe:
    """The probe that the settings ask for; see `linear_probe`."""
    return linear_probe(
        x,
        y,
        classes=classes,
        groups=groups,
        rates=settings.rates,
        decays=settings.decays,
        epochs=settings.epochs,
        batch=settings.probe_batch_size,
        seed=settings.seed,
    )


@dataclass(frozen=True)
class Trial:
    rate: float
    decay: float
    validation_top1: float
    validation_loss: float


def tried(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Trials as JSON holds them, which has no infinity."""
    found = [dataclasses.asdict(trial) for trial in trials]
    for trial in found:
        trial["validation_loss"] = trial["validation_loss"] if np.isfinite(trial["validation_loss"]) else None
    return found


@dataclass(frozen=True)
class Probe:
    """A trained head and how it was chosen."""

    mean: Tensor
    """[D] of the training features."""
    scale: Tensor
    """[D]: standard deviation of the training features."""
    weight: Tensor
    """[D,classes]."""
    bias: Tensor
    """[classes]."""
    rate: float
    decay: float
    trials: tuple[Trial, ...]
    """Validation figures of the whole grid."""

    @property
    def chosen(self) -> dict[str, Any]:
        """What was chosen, of what, for the JSON file."""
        return {"rate": self.rate, "decay": self.decay, "validation": tried(self.trials)}

    def logits(self, x: Tensor) -> Tensor:
        """Features [Q,D] -> float32 [Q,classes]."""
        return ((x.float() - self.mean) / self.scale) @ self.weight + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """Features [Q,D] -> classes int64 [Q]."""
        return self.logits(x).argmax(1)


@torch.no_grad()
def train_heads(
    x: Tensor, labels: Tensor, *, classes: int, rates: Tensor, decays: Tensor, steps: int, batch: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Train J softmax heads at once: SGD with momentum, cosine learning rate, one matrix product for all heads.

    The loss is convex and the heads start at zero, so `seed` only orders the mini-batches (epochs without replacement).
    The gradient of softmax cross-entropy, (p - onehot) x, is written out because autograd would be the slowest part.

    Args:
        x: [N,D] standardised features. labels: int64 [N]. rates, decays: [J]; the bias is not decayed.

    Returns:
        weights [J,D,classes] and biases [J,classes].
    """
    n, heads = len(x), len(rates)
    weight = x.new_zeros(x.shape[1], heads * classes)
    bias = x.new_zeros(heads * classes)
    speed_weight, speed_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    rate, decay = rates.to(x).repeat_interleave(classes), decays.to(x).repeat_interleave(classes)
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, n)
    order, position = torch.randperm(n, generator=generator), 0
    with torch.autocast(x.device.type, enabled=False):
        for step in range(steps):
            if position + batch > n:
                order, position = torch.randperm(n, generator=generator), 0
            rows = order[position : position + batch].to(x.device)
            position += batch
            part, target = x[rows], labels[rows]
            error = torch.addmm(bias, part, weight).view(batch, heads, classes).softmax(-1)
            error[torch.arange(batch, device=x.device), :, target] -= 1.0
            error = error.view(batch, heads * classes) / batch
            speed_weight.mul_(MOMENTUM).addmm_(part.T, error).addcmul_(weight, decay)
            speed_bias.mul_(MOMENTUM).add_(error.sum(0))
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            weight.addcmul_(speed_weight, rate, value=-cosine)
            bias.addcmul_(speed_bias, rate, value=-cosine)
    return weight.view(-1, heads, classes).transpose(0, 1).contiguous(), bias.view(heads, classes)


def linear_probe(
    x: Tensor,
    labels: Tensor,
    *,
    classes: int,
    groups: np.ndarray,
    rates: tuple[float, ...] = RATES,
    decays: tuple[float, ...] = DECAYS,
    epochs: int = 100,
    batch: int = 256,
    seed: int = 0,
) -> Probe:
    """Choose (rate, decay) by top-1 on a fifth of the training files, then train one head on all of them.

    Args:
        x: [N,D] training features on any device. labels: int64 [N].
        groups: [N], the file of every example: no file is on both sides of the validation split.
        epochs: passes over the data; at least 1,000 steps are made, since small sets need them.

    Raises:
        UserError: when no class has two files to split.
    """
    target = labels.cpu().numpy()
    validation = torch.from_numpy(held_out(groups.tolist(), target, share=0.2, seed=seed)).to(x.device)
    if not validation.any() or validation.all():
        raise UserError(
            f"A linear probe chooses its learning rate on a part of the training data, and {len(x)} training examples"
            " with at most one file a class cannot be split: add labelled files, or use mmssl evaluate knn."
        )
    grid = list(itertools.product(rates, decays))
    every_rate, every_decay = torch.tensor([r for r, _ in grid]), torch.tensor([d for _, d in grid])

    fit = ~validation
    mean, scale = standardisation(x[fit])
    z, held = (x[fit].float() - mean) / scale, (x[validation].float() - mean) / scale
    weight, bias = train_heads(
        z,
        labels[fit],
        classes=classes,
        rates=every_rate,
        decays=every_decay,
        steps=steps_for(len(z), batch, epochs),
        batch=batch,
        seed=seed,
    )
    answer = labels[validation]
    trials = []
    for (rate, decay), w, b in zip(grid, weight, bias, strict=True):
        logits = torch.addmm(b, held, w)
        top1 = (logits.argmax(1) == answer).float().mean()
        trials.append(Trial(rate, decay, float(top1), float(F.cross_entropy(logits, answer))))
    # Small validation sets tie often; the loss separates heads of equal accuracy. A diverged head never wins.
    best = max(trials, key=lambda t: (math.isfinite(t.validation_loss), t.validation_top1, -t.validation_loss))

    mean, scale = standardisation(x)
    weight, bias = train_heads(
        (x.float() - mean) / scale,
        labels,
        classes=classes,
        rates=torch.tensor([best.rate]),
        decays=torch.tensor([best.decay]),
        steps=steps_for(len(x), batch, epochs),
        batch=batch,
        seed=seed,
    )
    return Probe(mean, scale, weight[0], bias[0], best.rate, best.decay, tuple(trials))


def steps_for(n: int, batch: int, epochs: int) -> int:
    return max(1000, epochs * max(1, n // batch))

"""The one function that calls backward and step: pre-training, probes and fine-tuning all use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree

from mmssl.training.momentum import local, whole
from mmssl.types import Batch, ObjectiveOutput

# FSDP2 finds the tensors of an output through PyTorch's tree registry, to hook its backward; unregistered dataclasses
# are leaves to it, and the root's parameters would not be gathered. Batch stays a leaf: its views cross uncast.
_pytree.register_dataclass(ObjectiveOutput)


@dataclass(frozen=True)
class StepOutput:
    """What a step left behind: tensors on the device, the same on every process except `metrics`."""

    loss: Tensor
    """Mean over all terms of the step, over micro-batches and processes."""
    count: Tensor
    """How many terms that mean averages."""
    grad_norm: Tensor
    """Of the mean loss's gradient, before clipping."""
    applied: Tensor
    """bool: False where loss or gradient were not finite and parameters, optimiser and objective kept their state."""
    metrics: dict[str, tuple[Tensor, Tensor]]
    """name -> (sum over this process's terms, terms); reduced over processes at log steps only."""


class LossScale:
    """Dynamic loss scale of fp16, without the look at the device that GradScaler.step takes: halved after an overflow,
    doubled after 2000 steps without one (Micikevicius et al. 2018, section 3.2). Accelerate's scaler holds it."""

    def __init__(self, scaler: torch.amp.GradScaler, device: torch.device, growth_interval: int = 2000) -> None:
        self.scaler, self.growth_interval = scaler, growth_interval
        self.good = torch.zeros((), device=device)

    @property
    def value(self) -> Tensor:
        return cast(Tensor, self.scaler.scale(torch.ones((), device=self.good.device)))

    def update(self, applied: Tensor) -> None:
        good = torch.where(applied, self.good + 1, 0.0)
        grow = good >= self.growth_interval
        value = self.value
        self.scaler.update(torch.where(applied, torch.where(grow, value * 2, value), value / 2))
        self.good.copy_(torch.where(grow, 0.0, good))

    def state(self) -> dict[str, Tensor]:
        return {"scale": self.value.cpu(), "good": self.good.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        _ = self.value  # GradScaler makes its tensor on first use
        self.scaler.update(state["scale"].to(self.good.device))
        self.good.copy_(state["good"])


def train_step(
    accelerator: Accelerator,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    micro_batches: int,
    step: int,
    total: int,
    clip: float | None = None,
    scale: LossScale | None = None,
) -> StepOutput:
    """One optimiser step over `micro_batches` batches, on all processes together; never waits for the device.

    Each micro-batch back-propagates loss x count. The gradients, averaged over processes by DDP or FSDP, are then
    divided by the count of the whole step over the number of processes: every term weighs the same, whatever its
    micro-batch.

    Args:
        objective: as prepared by `accelerator`; called as objective(batch, what="loss").
        step: from 0. total: steps of the run; both are handed to `after_step`.
        clip: largest norm of the gradient of the mean loss.
        scale: of the loss, under fp16.
    """
    device = accelerator.device
    statistics = running_statistics(objective)
    before = [buffer.clone() for buffer in statistics]
    exact = wide(device)
    sums = torch.zeros(2, dtype=exact, device=device)  # loss x count, count
    metrics: dict[str, tuple[Tensor, Tensor]] = {}
    iterator = iter(batches)
    for i in range(micro_batches):
        last = i == micro_batches - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(objective):
            output: ObjectiveOutput = objective(next(iterator), what="loss")
            count = output.count.detach().to(device)
            accelerator.backward(output.loss * count)
        sums += torch.stack([output.loss.detach().to(exact) * count, count.to(exact)])
        for name, value in output.metrics.items():
            value = value.detach().to(exact)
            total_value, total_count = metrics.get(name, (torch.zeros_like(value), torch.zeros_like(sums[1])))
            metrics[name] = (total_value + value * count, total_count + count)
    world = accelerator.num_processes
    if world > 1:
        dist.all_reduce(sums)
    loss, terms = sums[0] / sums[1], sums[1]
    divide = (world / terms).float() if scale is None else (world / (terms * scale.value)).float()
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(grads)) * divide
    applied = torch.isfinite(norm) & torch.isfinite(loss)
    factor = divide if clip is None else divide * (clip / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        local(grad).mul_(factor)
    apply(optimizer, applied)
    for buffer, old in zip(statistics, before, strict=True):
        buffer.copy_(torch.where(applied, buffer, old))
    optimizer.zero_grad(set_to_none=True)
    if scale is not None:
        scale.update(applied)
    after_step = getattr(accelerator.unwrap_model(objective), "after_step", None)
    if after_step is not None:
        after_step(step, total, applied)
    return StepOutput(loss, terms, norm, applied, metrics)


def wide(device: torch.device) -> torch.dtype:
    """The dtype that sums are kept in; Apple's devices have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def apply(optimizer: torch.optim.Optimizer, applied: Tensor) -> None:
    """Step the optimiser where `applied`; elsewhere it leaves everything as it was, decided on the device."""
    cast(Any, optimizer).found_inf = 1.0 - applied.float()
    try:
        optimizer.step()
    finally:
        cast(Any, optimizer).found_inf = None


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Buffers that a forward pass moves: one bad batch must not leave NaN in them for good."""
    norms = (part for part in module.modules() if isinstance(part, _BatchNorm))
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


def reduced(accelerator: Accelerator, metrics: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Count-weighted means over all processes. Collective, and it waits for the device: for log steps only."""
    if not metrics:
        return {}
    table = torch.stack([torch.stack(pair) for pair in metrics.values()])
    if accelerator.num_processes > 1:
        dist.all_reduce(table)
    means = (table[:, 0] / table[:, 1]).tolist()
    return dict(zip(metrics, means, strict=True))

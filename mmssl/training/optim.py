"""The optimiser of a run, from an objective's parameter groups. All of them honour `found_inf` on the device."""

from __future__ import annotations

from typing import Any

import torch

from mmssl.objectives.base import Objective
from mmssl.training.lars import LARS
from mmssl.training.settings import Settings


def build_optimizer(objective: Objective, settings: Settings) -> torch.optim.Optimizer:
    """AdamW (fused), SGD (fused) or LARS over `objective.param_groups()`; undecayed groups take no weight decay."""
    # LARS leaves undecayed parameters out of the adaptation too, which None says.
    spared = None if settings.optimizer == "lars" else 0.0
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for _, parameter in group["params"]],
            "lr_scale": group.get("lr_scale", 1.0),
            "weight_decay": settings.weight_decay if group.get("decay", True) else spared,
        }
        for group in objective.param_groups()
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.betas[0], fused=True)
    return LARS(groups, lr=settings.lr, momentum=settings.betas[0])


def prime(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD its momentum buffers before the first step.

    PyTorch's fused SGD takes uninitialised memory for them when its very first step is skipped through `found_inf`.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if group["momentum"] and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

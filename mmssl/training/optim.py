"""The optimiser of a run, from an objective's parameter groups. All of them honour `found_inf` on the device."""

from __future__ import annotations

from typing import Any

import torch

from mmssl.objectives.base import Objective
from mmssl.training.momentum import LARS, SGD
from mmssl.training.settings import Settings


def build_optimizer(objective: Objective, settings: Settings) -> torch.optim.Optimizer:
    """AdamW (fused), SGD or LARS over `objective.param_groups()`; undecayed groups take no weight decay."""
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
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    if settings.optimizer == "sgd":
        return SGD(groups, lr=settings.lr, momentum=settings.betas[0])
    return LARS(groups, lr=settings.lr, momentum=settings.betas[0])


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

"""A teacher: a copy of a module that follows it slowly."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy of `student` whose parameters take no gradient."""
    return deepcopy(student).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float, applied: Tensor) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for parameters only; buffers are the teacher's own.

    Args:
        applied: bool scalar on the device; where it is False nothing changes.
    """
    slow = [parameter.detach() for parameter in teacher.parameters()]
    fast = [parameter.detach() for parameter in student.parameters()]
    steps = torch._foreach_sub(fast, slow)
    torch._foreach_mul_(steps, (1 - momentum) * applied.to(slow[0].dtype))
    torch._foreach_add_(slow, steps)


def rising_momentum(step: int, total: int, first: float, last: float) -> float:
    """Momentum of a teacher that follows ever more slowly: `first` at step 0, then along a half cosine towards `last`,
    which step `total` would have (BYOL, Grill et al. 2020, arXiv:2006.07733, implementation details, with `last` 1).
    """
    return last - (last - first) * (math.cos(math.pi * step / total) + 1) / 2

"""SGD and LARS with momentum, for whole and for sharded parameters, skipping a step without a look from the host.

PyTorch's own SGD can skip on the device only when fused, and its fused kernel knows no sharded parameters (DTensor).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class SGD(torch.optim.Optimizer):
    """v = momentum * v + g + decay * w;  w = w - lr * v (as torch.optim.SGD).

    Where `found_inf` is set by the step function to a tensor 1.0, parameters and velocities stay as they are (the
    convention of PyTorch's fused optimisers).
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity, move = self.update(parameter, state["velocity"], group)
                self.assign(local(state["velocity"]), velocity)
                self.assign(local(parameter), local(parameter) - move)

    def update(self, parameter: Tensor, velocity: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The new velocity, and what is taken from the parameter; both of the part that this process holds."""
        assert parameter.grad is not None
        decayed = local(parameter.grad) + group["weight_decay"] * local(parameter)
        moved = group["momentum"] * local(velocity) + decayed
        return moved, group["lr"] * moved

    def assign(self, old: Tensor, new: Tensor) -> None:
        old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))


class LARS(SGD):
    """v = momentum * v + lr * trust * |w| / |g + decay * w| * (g + decay * w);  w = w - v.

    You et al. 2017 as SimCLR has it, with the rate inside the velocity. Groups whose `weight_decay` is None (biases and
    norms) take part in neither decay nor adaptation.
    """

    TRUST = 1e-3

    def update(self, parameter: Tensor, velocity: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert parameter.grad is not None
        gradient = parameter.grad
        factor: Tensor | float = 1.0
        if group["weight_decay"] is not None:
            gradient = gradient + group["weight_decay"] * parameter
            size, slope = norm(parameter), norm(gradient)
            factor = torch.where((size > 0) & (slope > 0), self.TRUST * size / slope, 1.0)
        moved = group["momentum"] * local(velocity) + group["lr"] * factor * local(gradient)
        return moved, moved


def norm(tensor: Tensor) -> Tensor:
    return whole(torch.linalg.vector_norm(tensor))


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

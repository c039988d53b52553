"""LARS (You et al. 2017) as SimCLR uses it: layer-wise rates, momentum with the rate inside the velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """v = momentum * v + lr * trust * |w| / |g + decay * w| * (g + decay * w);  w = w - v.

    Groups whose `weight_decay` is None (biases and norms) take part in neither decay nor adaptation: their factor is 1.
    Where `found_inf` is set by the step function to a tensor 1.0, parameters and velocities stay as they are, without
    a look at the tensor from the host (the convention of PyTorch's fused optimisers).
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)

    def update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        if group["weight_decay"] is not None:
            gradient = gradient + group["weight_decay"] * parameter
            size, slope = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(gradient)
            factor = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, 1.0)
            gradient = gradient * factor
        velocity = group["momentum"] * state["velocity"] + group["lr"] * gradient
        if self.found_inf is None:
            state["velocity"].copy_(velocity)
            parameter.sub_(velocity)
        else:
            skip = self.found_inf > 0
            state["velocity"].copy_(torch.where(skip, state["velocity"], velocity))
            parameter.copy_(torch.where(skip, parameter, parameter - velocity))

"""Batch normalisation over a stated set of samples, so that the result does not depend on the number of processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmssl.distributed import all_reduce_sum, world_size
from mmssl.errors import UserError


class GroupedBatchNorm(_BatchNorm):
    """BatchNorm1d or 2d that in training normalises over `group` consecutive samples, or, with None, over the batches
    of all processes.

    Groups of a fixed size give the same result on any number of processes, on a device that holds a multiple of them,
    at no communication (MoCo needs groups smaller than the batch; its paper had 32 samples a GPU). None is SimCLR's
    global batch norm.

    Running statistics move once a batch, to the mean over its groups (None: over all processes), and never to values
    that are not finite; in evaluation they are used as ever. State names are those of nn.BatchNorm.
    """

    def __init__(
        self,
        features: int,
        group: int | None = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__(features, eps=eps, momentum=momentum, affine=affine)
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected [B,C] or [B,C,H,W], got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B,C] or [B,C,H,W]. Raises UserError where B is no multiple of the group."""
        if not self.training:
            assert self.running_mean is not None
            assert self.running_var is not None
            return self._normalise(input, self.running_mean, self.running_var)
        if self.group is None and world_size() > 1:
            return self._global(input)
        return self._grouped(input, self.group or len(input))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"

    def _grouped(self, x: Tensor, group: int) -> Tensor:
        if len(x) % group:
            raise UserError(
                f"Batch norm runs over groups of {group} samples, and a process holds {len(x)} a step: "
                f"make the batch of each process a multiple of {group}, or change norm_group."
            )
        assert self.running_mean is not None
        assert self.running_var is not None
        parts, means, variances = [], [], []
        for part in x.split(group):
            # With momentum 1 these receive the statistics of this group, the variance unbiased.
            mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            parts.append(self._normalise(part, mean, variance))
            means.append(mean)
            variances.append(variance)
        self._move(torch.stack(means).mean(0), torch.stack(variances).mean(0))
        return torch.cat(parts)

    def _normalise(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        # FSDP hands out bf16 weights and leaves statistics in fp32; batch_norm wants the two alike.
        weight, bias = (None if factor is None else factor.to(mean.dtype) for factor in (self.weight, self.bias))
        return nn.functional.batch_norm(x, mean, variance, weight, bias, self.training, 1.0, self.eps)

    def _global(self, x: Tensor) -> Tensor:
        """Statistics over the equally large batches of all processes; gradients flow through them, across processes."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            variance, mean = torch.var_mean(wide, axes, correction=0)
            # Means and mean squares of deviations, not of values: the difference of large squares would cancel.
            centre = all_reduce_sum(mean) / world_size()
            spread = all_reduce_sum(variance + (mean - centre).square()) / world_size()
            scale = (spread + self.eps).rsqrt()
            if self.weight is not None:
                scale = scale * self.weight
            shift = -centre * scale if self.bias is None else self.bias - centre * scale
            count = x.numel() // self.num_features * world_size()
            self._move(centre.detach(), spread.detach() * count / max(count - 1, 1))
            return (wide * scale.view(shape) + shift.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked
        # The step of a batch that overflowed is skipped, but nobody would undo what it did here.
        finite = mean.isfinite() & variance.isfinite()
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(torch.where(finite, value.to(running.dtype), running), weight)


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def group_batch_norms(module: nn.Module, group: int | None) -> nn.Module:
    """Replace every BatchNorm in `module` by a GroupedBatchNorm holding the same tensors.

    Returns `module`, or its replacement where it is a BatchNorm itself.
    """
    if isinstance(module, _BatchNorm):
        norm = GroupedBatchNorm(module.num_features, group, module.eps, module.momentum, module.affine)
        norm.weight, norm.bias = module.weight, module.bias
        norm.running_mean, norm.running_var = module.running_mean, module.running_var
        norm.num_batches_tracked = module.num_batches_tracked
        return norm.train(module.training)
    for name, child in module.named_children():
        replacement = group_batch_norms(child, group)
        if replacement is not child:
            setattr(module, name, replacement)
    return module

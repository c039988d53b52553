"""The step function against plain PyTorch: gradients of micro-batches with unequal counts equal those of one large
batch, clipping acts on the gradient of the mean, a batch that gives NaN changes nothing (parameters, optimiser, batch
norm, queue), and the fp16 loss scale halves and doubles as its paper says."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.training.optim import build_optimizer
from mmssl.training.settings import Settings
from mmssl.training.step import LossScale, StepOutput, reduced, train_step
from mmssl.types import Batch, ObjectiveOutput


class Toy(Objective):
    """A mean over the samples whose first value is above 0: another count in every micro-batch."""

    steps: Tensor

    def __init__(self, norm: bool = False) -> None:
        super().__init__(cast(nn.Module, nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4) if norm else nn.Tanh())))  # type: ignore[arg-type]
        self.head = nn.Linear(4, 1)
        self.register_buffer("steps", torch.zeros(()))

    def loss(self, batch: Batch) -> ObjectiveOutput:
        x = batch.views["view"]
        weight = (x[:, 0] > 0).float()
        error = self.head(self.encoder(x)).squeeze(1).square()
        return ObjectiveOutput(
            (error * weight).sum() / weight.sum(),
            weight.sum(),
            {"twice": 2 * (error * weight).sum().detach() / weight.sum()},
        )

    def after_step(self, step: int, total: int, applied: Tensor) -> None:
        self.steps.add_(applied.float())


def toy(norm: bool = False) -> tuple[Accelerator, Toy, torch.optim.Optimizer]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = Toy(norm)
    settings = Settings(data="", out=Path(), base_lr=0.1, lr_per=1, batch_size=1, optimizer="sgd", weight_decay=0.0)
    return accelerator, accelerator.prepare(model), build_optimizer(model, settings)


def batch(x: Tensor) -> Batch:
    return Batch({"view": x}, torch.arange(len(x)))


def one_step(parts: list[Tensor], clip: float | None = None) -> tuple[Toy, StepOutput]:
    accelerator, model, optimizer = toy()
    output = train_step(
        accelerator, model, optimizer, map(batch, parts), micro_batches=len(parts), step=0, total=1, clip=clip
    )
    return model, output


@pytest.mark.parametrize("clip", [None, 1e-2])
def test_unequal_counts(clip: float | None) -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    x[:, 0] = torch.tensor([1, 2, -1, 3, 1, 1, 1, -1, 1, 1, -1, 1])
    parts = [x[:3], x[3:4], x[4:]]  # 2, 1 and 6 terms
    whole = torch.cat(parts)
    counts = {int((part[:, 0] > 0).sum()) for part in parts}
    assert len(counts) == 3  # otherwise a mean of means would pass too
    many, output = one_step(parts, clip)
    # The reference: one plain backward over everything.
    _, plain, _ = toy()
    result = plain.loss(batch(whole))
    result.loss.backward()
    gradients = [cast(Tensor, p.grad) for p in plain.parameters()]
    norm = torch.nn.utils.get_total_norm(gradients)
    factor = 1.0 if clip is None else float(clip / norm)
    for after, before, gradient in zip(many.parameters(), plain.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.1 * factor * gradient, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(output.loss.float(), result.loss)
    torch.testing.assert_close(output.grad_norm, norm)
    assert output.count == result.count
    assert output.loss.dtype == torch.float64
    assert reduced(Accelerator(cpu=True), output.metrics)["twice"] == pytest.approx(2 * float(result.loss), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_leaves_no_trace(bad: float) -> None:
    accelerator, model, optimizer = toy(norm=True)
    good = torch.randn(6, 4).abs()
    spoilt = good.clone()
    spoilt[2, 1] = bad
    train_step(accelerator, model, optimizer, [batch(good)], micro_batches=1, step=0, total=3)
    before = {name: value.clone() for name, value in model.state_dict().items() if "num_batches" not in name}
    momentum = [state["velocity"].clone() for state in optimizer.state.values()]
    output = train_step(accelerator, model, optimizer, map(batch, [good, spoilt]), micro_batches=2, step=1, total=3)
    assert not output.applied
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    for old, state in zip(momentum, optimizer.state.values(), strict=True):
        assert torch.equal(old, state["velocity"])
    assert train_step(accelerator, model, optimizer, [batch(good)], micro_batches=1, step=2, total=3).applied
    assert model.steps == 2


def test_loss_scale() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scale = LossScale(scaler, torch.device("cpu"), growth_interval=2)
    yes, no = torch.tensor(True), torch.tensor(False)
    seen = []
    for applied in (no, yes, yes, yes, no, yes, yes):
        scale.update(applied)
        seen.append(float(scale.value))
    assert seen == [512, 512, 1024, 1024, 512, 512, 1024]
    fresh = LossScale(torch.amp.GradScaler("cpu"), torch.device("cpu"), growth_interval=2)
    fresh.load(scale.state())
    assert fresh.value == 1024


def test_loss_scale_cancels() -> None:
    """Scaled or not, the update is the same; an overflow only halves the scale."""
    x = torch.randn(6, 4).abs()
    accelerator, plain, optimizer = toy()
    train_step(accelerator, plain, optimizer, [batch(x)], micro_batches=1, step=0, total=1)
    accelerator, scaled, optimizer = toy()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    scale = LossScale(accelerator.scaler, accelerator.device)
    output = train_step(accelerator, scaled, optimizer, [batch(x)], micro_batches=1, step=0, total=1, scale=scale)
    assert output.applied
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_an_objective_with_a_codebook_and_no_fit_is_refused_in_a_sentence() -> None:
    toy = Toy()
    toy.codebook = "colours"
    with pytest.raises(UserError, match=r"Toy asks for a codebook of colours .* give the class a method fit"):
        toy.fit(iter(()))

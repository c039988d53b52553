"""LARS equals a float64 NumPy recomputation of SimCLR's update over several steps with a changing rate, and
lightly's LARS where the two agree by definition; SGD equals PyTorch's; groups follow the objective; a step with
`found_inf` changes nothing, also the very first one; the schedule has the values that the formula gives by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.utils.lars import LARS as LightlyLARS
from torch import Tensor, nn

from mmssl.objectives.base import Objective
from mmssl.training.momentum import LARS, SGD
from mmssl.training.optim import build_optimizer, set_lr
from mmssl.training.schedule import SCHEDULES, warmup_cosine, warmup_linear
from mmssl.training.settings import Settings
from mmssl.types import Batch, ObjectiveOutput


def test_lars_is_simclrs_update() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((4, 3)), rng.standard_normal(4)
    w, b = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))
    ours = LARS([{"params": [w], "weight_decay": 0.1}, {"params": [b], "weight_decay": None}], lr=0.0, momentum=0.9)
    v_weight, v_bias = np.zeros_like(weight), np.zeros_like(bias)
    for lr in (0.5, 2.0, 0.1):
        g_weight, g_bias = rng.standard_normal((4, 3)), rng.standard_normal(4)
        decayed = g_weight + 0.1 * weight
        trust = 1e-3 * np.linalg.norm(weight) / np.linalg.norm(decayed)
        v_weight = 0.9 * v_weight + lr * trust * decayed
        v_bias = 0.9 * v_bias + lr * g_bias
        weight, bias = weight - v_weight, bias - v_bias
        w.grad, b.grad = torch.tensor(g_weight), torch.tensor(g_bias)
        for group in ours.param_groups:
            group["lr"] = lr
        ours.step()
        np.testing.assert_allclose(w.detach().numpy(), weight, rtol=1e-12)
        np.testing.assert_allclose(b.detach().numpy(), bias, rtol=1e-12)


def test_lars_is_lightlys_where_they_agree() -> None:
    """At a constant rate the rate may stand in- or outside the velocity; lightly's |g| + decay |w| is |g + decay w|
    where g is parallel to w, as it is here."""
    start = torch.randn(5, 4, dtype=torch.float64)
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = LARS([a], lr=3.0, momentum=0.9, weight_decay=0.01)
    theirs = LightlyLARS([b], lr=3.0, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        a.grad, b.grad = 2 * a.detach().clone(), 2 * b.detach().clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(a, b, rtol=1e-7, atol=0)


def test_sgd_is_pytorchs() -> None:
    start = torch.randn(5, 4, dtype=torch.float64)
    a, b = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours, theirs = SGD([a], lr=0.1, weight_decay=0.01), torch.optim.SGD([b], lr=0.1, momentum=0.9, weight_decay=0.01)
    for lr in (0.1, 0.5, 0.2):
        a.grad = torch.randn_like(start)
        b.grad = a.grad.clone()
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = lr
        ours.step()
        theirs.step()
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


class Model(Objective):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4))  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def loss(self, batch: Batch) -> ObjectiveOutput:
        features = self.norm(self.encoder(batch.views["x"]))
        return ObjectiveOutput(features.square().mean(), torch.tensor(float(len(batch))))


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_groups_and_skipped_steps(name: str) -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = build_optimizer(
        model,
        Settings(data="", out=Path(), optimizer=name, weight_decay=0.1, base_lr=0.1),  # type: ignore[arg-type]
    )
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.encoder.weight)] == 0.1
    assert not decays[id(model.encoder.bias)]
    assert not decays[id(model.norm.weight)]
    assert id(model.frozen.weight) not in decays
    set_lr(optimizer, 0.1)

    def step(found: float, gradient: float) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.found_inf = torch.tensor(found)  # type: ignore[attr-defined]
        optimizer.step()

    def snapshot() -> list[Tensor]:
        return [p.detach().clone() for p in model.parameters()]

    before = snapshot()
    step(1.0, float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(), strict=True))
    step(0.0, 1.0)
    first = snapshot()
    step(1.0, float("inf"))
    assert all(torch.equal(a, b) for a, b in zip(first, snapshot(), strict=True))
    step(0.0, 1.0)
    # The same two good steps without the bad ones in between end in the same place.
    torch.manual_seed(0)
    twin = Model()
    model, skipped = twin, model
    optimizer = build_optimizer(
        twin,
        Settings(data="", out=Path(), optimizer=name, weight_decay=0.1, base_lr=0.1),  # type: ignore[arg-type]
    )
    set_lr(optimizer, 0.1)
    step(0.0, 1.0)
    step(0.0, 1.0)
    for a, b in zip(skipped.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(before[0], next(skipped.parameters()))


def test_schedule() -> None:
    def lr(step: int) -> float:
        return warmup_cosine(step, total=101, warmup=20, peak=2.0, last=0.5)

    assert lr(0) == 0
    assert lr(10) == pytest.approx(1.0)
    assert lr(20) == pytest.approx(2.0)
    assert lr(60) == pytest.approx(1.25)  # half-way down
    assert lr(100) == pytest.approx(0.5)
    rates = [lr(step) for step in range(20, 101)]
    assert rates == sorted(rates, reverse=True)
    assert warmup_cosine(0, total=1, warmup=0, peak=2.0) == 2.0


def test_the_rate_goes_by_the_global_batch() -> None:
    """Goyal et al. 2017: 1.5e-4 for 256 samples is 2.4e-3 for MAE's 4096, however they are shared out."""
    settings = Settings(data="", out=Path(), base_lr=1.5e-4, lr_per=256, batch_size=4096, min_lr=1e-6, accumulate=8)
    assert settings.lr == pytest.approx(2.4e-3)
    assert settings.last_lr == pytest.approx(1.6e-5)


def test_linear_schedule_is_the_polynomial_of_power_1() -> None:
    """fairseq's: (peak - last) * (1 - share of the steps after warm-up that are done) ** 1 + last."""
    rates = [warmup_linear(step, total=101, warmup=20, peak=2.0, last=0.5) for step in range(101)]
    assert rates[:3] == pytest.approx([0, 0.1, 0.2])
    expected = [(2.0 - 0.5) * (1 - done / 80) + 0.5 for done in range(81)]
    assert rates[20:] == pytest.approx(expected)
    assert warmup_linear(0, total=1, warmup=0, peak=2.0) == 2.0
    assert set(SCHEDULES) == {"cosine", "linear"}


def test_adamw_takes_its_epsilon() -> None:
    """With a tiny gradient g the first step is lr * g / (|g| + eps): half of lr where both are equal."""
    objective = Model()
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    optimizer = build_optimizer(
        objective, Settings(data="", out=Path(), base_lr=0.1, batch_size=256, weight_decay=0.0, eps=1e-3)
    )
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    for old, new in zip(before, trained, strict=True):
        torch.testing.assert_close(old - new, torch.full_like(old, 0.05), rtol=1e-3, atol=1e-6)

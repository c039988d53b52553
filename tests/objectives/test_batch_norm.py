"""Grouped batch norm equals torch's own BatchNorm run on each group alone, and keeps its state names; what overflowed
leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mmssl.errors import UserError
from mmssl.objectives.batch_norm import GroupedBatchNorm, group_batch_norms, has_batch_norm


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 3, 4)])
def test_each_group_is_normalised_as_torch_does_it_alone(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) * 3 + 1
    grouped = GroupedBatchNorm(5, group=4)
    plain = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5)
    with torch.no_grad():
        for norm in (grouped, plain):
            assert norm.weight is not None
            norm.weight.copy_(torch.arange(1.0, 6.0))
            norm.bias.copy_(torch.arange(5.0))
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    statistics = []
    outputs = []
    for part in right.split(4):
        plain.running_mean, plain.running_var = torch.zeros(5), torch.ones(5)
        outputs.append(plain(part))
        statistics.append((plain.running_mean, plain.running_var))
    actual, expected = grouped(left), torch.cat(outputs)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn(shape)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(left.grad, right.grad)
    torch.testing.assert_close(grouped.weight.grad, plain.weight.grad)
    torch.testing.assert_close(grouped.running_mean, torch.stack([mean for mean, _ in statistics]).mean(0))
    torch.testing.assert_close(grouped.running_var, torch.stack([variance for _, variance in statistics]).mean(0))


def test_one_group_or_none_is_plain_batch_norm_over_steps() -> None:
    torch.manual_seed(0)
    plain, none, whole = nn.BatchNorm2d(3), GroupedBatchNorm(3), GroupedBatchNorm(3, group=6)
    for _ in range(4):
        x = torch.randn(6, 3, 4, 4) + 2
        expected = plain(x)
        torch.testing.assert_close(none(x), expected)
        torch.testing.assert_close(whole(x), expected)
    for norm in (none, whole):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(norm.state_dict()[name], value, msg=name)
        torch.testing.assert_close(norm.eval()(x), plain.eval()(x))
        plain.train()


def test_conversion_keeps_names_tensors_and_evaluation() -> None:
    torch.manual_seed(0)
    net = resnet18()
    before = dict(net.state_dict())
    x = torch.randn(4, 3, 32, 32)
    expected = net.eval()(x)
    converted = group_batch_norms(net.train(), 2)
    assert {name: value.data_ptr() for name, value in converted.state_dict().items()} == {
        name: value.data_ptr() for name, value in before.items()
    }
    assert not any(type(part) is nn.BatchNorm2d for part in converted.modules())
    torch.testing.assert_close(converted.eval()(x), expected)
    assert has_batch_norm(net)
    assert not has_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_values_that_are_not_finite_do_not_enter_the_running_statistics() -> None:
    norm = GroupedBatchNorm(2, group=2)
    norm(torch.randn(4, 2))
    before = {name: value.clone() for name, value in norm.state_dict().items() if name.startswith("running")}
    norm(torch.full((4, 2), float("nan")))
    for name, value in before.items():
        assert torch.equal(norm.state_dict()[name], value)


def test_a_batch_that_is_no_multiple_of_the_group_is_refused() -> None:
    with pytest.raises(UserError, match="groups of 4 samples, and a process holds 6"):
        GroupedBatchNorm(2, group=4)(torch.randn(6, 2))

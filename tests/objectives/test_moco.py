"""MoCo's rules that its numbers do not show: what forward may change, what DDP must leave alone, and what does not
fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import ImageSpec
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.moco import MoCo
from mmssl.objectives.teacher import ema_update, rising_momentum
from mmssl.types import Batch


def vit_moco(**options: object) -> MoCo:
    encoder = ViT(ImagePatches(ImageSpec(size=16, patch=8), 32), ViTSettings(width=32, depth=1, heads=2))
    return MoCo(encoder, **{"queue": 16, "hidden": 32, "out": 16, **options})  # type: ignore[arg-type]


def conv_moco(**options: object) -> MoCo:
    encoder = ConvEncoder(ImagePixels(ImageSpec(size=16)), stem="cifar")
    return MoCo(encoder, **{"queue": 16, "hidden": 32, "out": 16, "norm_group": 2, **options})  # type: ignore[arg-type]


def a_batch(objective: MoCo, batch: int = 4) -> Batch:
    def view() -> Tensor:
        return torch.randint(0, 256, (batch, 3, 16, 16), dtype=torch.uint8)

    noise = {name: torch.rand(batch, k) for name, k in objective.noise.items()}
    return Batch({"a": view(), "b": view()}, torch.arange(batch), noise)


def test_forward_changes_no_state_and_after_step_does() -> None:
    torch.manual_seed(0)
    objective = vit_moco()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    batch = a_batch(objective)
    first, second = objective(batch), objective(batch)
    assert first.loss.item() == second.loss.item()
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    objective.after_step(0, 1, torch.tensor(True))
    assert objective.pointer.item() == 8, "the keys of both micro-batches"
    assert torch.equal(objective.queue[8:], before["queue"][8:])


def test_a_skipped_step_leaves_everything_even_when_keys_and_weights_are_not_finite() -> None:
    torch.manual_seed(0)
    objective = vit_moco()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    batch = a_batch(objective)
    objective(Batch({name: view * float("nan") for name, view in batch.views.items()}, batch.index, batch.noise))
    objective.after_step(0, 1, torch.tensor(False))
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    objective(batch)
    objective.after_step(1, 2, torch.tensor(True))
    assert objective.pointer.item() == 4, "the keys of the skipped step are forgotten"
    assert objective.queue.isfinite().all()


def test_evaluation_and_pictures_enqueue_nothing() -> None:
    objective = vit_moco()
    objective.eval()(a_batch(objective))
    objective.train()
    with torch.no_grad():
        objective(a_batch(objective))
    objective(a_batch(objective), what="pictures")
    objective(a_batch(objective), what="embed")
    assert objective._keys == []


def test_the_queue_is_saved_but_not_broadcast_and_the_teacher_is_not_trained() -> None:
    objective = conv_moco()
    assert {"queue", "pointer"} <= set(objective.state_dict())
    assert objective._ddp_params_and_buffers_to_ignore == ["queue", "pointer"]
    trained = {name for group in objective.param_groups() for name, _ in group["params"]}
    assert trained
    assert not any(name.startswith("teacher") for name in trained)
    assert objective.exports() == {"encoder": objective.encoder}
    assert torch.equal(objective.queue, conv_moco().queue), "every process starts from the same queue"


def test_a_wrap_around_overwrites_the_oldest_keys() -> None:
    objective = vit_moco(queue=8)
    made = []
    for step in range(3):
        objective(a_batch(objective))
        made.append(objective._keys[0])
        objective.after_step(step, 3, torch.tensor(True))
    assert torch.equal(objective.queue, torch.cat([made[2], made[1]]))


def test_a_query_is_not_told_apart_by_its_batch_norm_group() -> None:
    """With shuffling, the samples that a key is normalised with are others than those of its query, in most cases; the
    order is a permutation that every process derives alike, and only batch norms need it."""
    torch.manual_seed(0)
    objective = conv_moco()
    order = objective._shuffled_order(a_batch(objective, 16))
    assert order.sort().values.tolist() == list(range(16))
    same_group = sum(order[i].item() // 2 == order[i + 1].item() // 2 for i in range(0, 16, 2))
    assert same_group <= 3
    assert vit_moco().noise == {}


def test_keys_come_back_in_the_order_of_their_samples() -> None:
    """In evaluation batch norm mixes no samples, so shuffled keys must equal unshuffled ones, row by row."""
    torch.manual_seed(0)
    objective = conv_moco().eval()
    batch = a_batch(objective, 8)
    shuffled = objective._make_keys(batch, "b", objective._shuffled_order(batch))
    torch.testing.assert_close(shuffled, objective._make_keys(batch, "b", None))


def test_symmetric_loss_counts_both_directions() -> None:
    torch.manual_seed(0)
    objective = vit_moco(symmetric=True)
    batch = a_batch(objective)
    turned = Batch({"a": batch.views["b"], "b": batch.views["a"]}, batch.index, batch.noise)
    both = objective(batch)
    assert both.count.item() == 8
    objective.symmetric = False
    halves = [objective(one).loss.item() for one in (batch, turned)]
    assert both.loss.item() == pytest.approx(sum(halves) / 2, rel=1e-6)


def test_loss_against_a_queue_of_equal_keys_is_log_n() -> None:
    objective = vit_moco(queue=32)
    batch = a_batch(objective)
    objective.get_parameter("projector.2.weight").data.zero_()
    objective.get_parameter("projector.2.bias").data.fill_(1)
    objective.teacher.load_state_dict(
        {
            f"{part}.{name}": value
            for part in ("encoder", "projector")
            for name, value in getattr(objective, part).state_dict().items()
        }
    )
    objective.queue.fill_(1 / 4)  # sixteen equal values of length 1
    assert objective(batch).loss.item() == pytest.approx(math.log(33), rel=1e-5)


def test_ema_moves_parameters_only() -> None:
    teacher, student = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    with torch.no_grad():
        student.weight.fill_(2.0)
        assert student.running_mean is not None
        student.running_mean.fill_(5.0)
    ema_update(teacher, student, 0.75, torch.tensor(False))
    assert teacher.weight.tolist() == [1.0] * 3
    ema_update(teacher, student, 0.75, torch.tensor(True))
    assert teacher.weight.tolist() == [1.25] * 3
    assert teacher.running_mean is not None
    assert teacher.running_mean.tolist() == [0.0] * 3


def test_momentum_rises_along_byols_half_cosine() -> None:
    """tau = 1 - (1 - base) (cos(pi k / K) + 1) / 2, recomputed for every step."""
    rates = [rising_momentum(step, 100, 0.99, 1.0) for step in range(101)]
    expected = 1 - (1 - 0.99) * (np.cos(np.pi * np.arange(101) / 100) + 1) / 2
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert rates[50] == pytest.approx(0.995)
    assert {rising_momentum(step, 100, 0.99, 0.99) for step in range(101)} == {0.99}


def test_the_teacher_follows_the_schedule_of_the_run() -> None:
    """Of four steps towards 1, the third (2 of 4 done) has momentum 1 - (1 - 0.5) / 2."""
    objective = vit_moco(momentum=0.5, last_momentum=1.0)
    objective(a_batch(objective))
    slow = objective.teacher["encoder"].get_parameter("norm.bias")
    with torch.no_grad():
        objective.encoder.get_parameter("norm.bias").fill_(8.0)
    objective.after_step(2, 4, torch.tensor(True))
    assert slow.tolist() == pytest.approx([0.25 * 8.0] * 32)


def test_what_does_not_fit_is_refused_with_a_size_that_does() -> None:
    with pytest.raises(UserError, match=r"queue of 65536 keys is not a multiple of the 96 .* set queue to 65568"):
        vit_moco(queue=65536).check(96)
    vit_moco(queue=65536).check(256)
    objective = conv_moco(queue=64, norm_group=16)
    with pytest.raises(UserError, match="set norm_group to 2"):
        objective(a_batch(objective, 16))

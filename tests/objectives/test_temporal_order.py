"""Claims: tuples keep the paper's order and gaps and are uniform; the loss equals a recomputation in NumPy float64 that
draws tuples one by one; AUC equals the Mann-Whitney statistic; what does not move, also under a flickering light, is
not asked about and teaches nothing; order in what moves is learned; frames, clips and sounds go through one objective.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import LogMel, SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.temporal_order import (
    TUPLES,
    TemporalOrder,
    admissible_pairs,
    balanced_accuracy,
    draw_tuples,
    order_loss,
    pairwise_auc,
)
from mmssl.types import Batch, ObjectiveOutput
from tests.objectives.windows import SIDE, moving, static

WINDOW, TAU_MAX, TAU_MIN = 9, 4, 2


def image_encoder() -> Encoder:
    return ViT(ImagePatches(ImageSpec(size=SIDE, patch=8), 32), ViTSettings(width=32, depth=1, heads=2))


def objective(encoder: Encoder | None = None, **options: object) -> TemporalOrder:
    given: dict = {"window": WINDOW, "tau_max": TAU_MAX, "tau_min": TAU_MIN, **options}
    return TemporalOrder(encoder or image_encoder(), **given)


def batch_of(view: Tensor, task: TemporalOrder, generator: torch.Generator, **more: Any) -> Batch:
    noise = {name: torch.rand(len(view), k, generator=generator) for name, k in task.noise.items()}
    return Batch({"window": view}, torch.arange(len(view)), noise, **more)


# ------------------------------------------------------------------------------------------------------------- tuples


@pytest.mark.parametrize("real", [WINDOW, 8, 7])
def test_tuples_keep_order_and_gaps_and_are_uniform(real: int) -> None:
    noise = torch.rand(4000, 5, 4, generator=torch.Generator().manual_seed(0))
    pairs = admissible_pairs(WINDOW, TAU_MAX, TAU_MIN)
    drawn = draw_tuples(noise, torch.full((4000,), real), pairs, TAU_MIN).flatten(0, 1).numpy()
    a, b, c, d, e = drawn.T
    assert np.all((a >= 0) & (b - a >= TAU_MIN) & (c > b) & (d > c) & (e - d >= TAU_MIN) & (e < real))
    assert np.all(d - b <= TAU_MAX)
    every = [
        places
        for places in itertools.combinations(range(real), 5)
        if places[1] - places[0] >= TAU_MIN and places[3] - places[1] <= TAU_MAX and places[4] - places[3] >= TAU_MIN
    ]
    assert {tuple(row) for row in drawn.tolist()} == set(every), "every admissible tuple comes, and no other"
    # Pairs (b,d) are equally likely, and what lies between and beyond is, given the pair.
    by_pair: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for places in every:
        by_pair.setdefault((places[1], places[3]), []).append(places)
    expected = {places: 1 / len(by_pair) / len(same) for same in by_pair.values() for places in same}
    found = dict.fromkeys(every, 0)
    for row in drawn.tolist():
        found[tuple(row)] += 1
    _, p = stats.chisquare([found[k] for k in every], [expected[k] * len(drawn) for k in every])
    assert len(every) == 1 or p > 1e-3


@pytest.mark.parametrize(("window", "tau_max", "tau_min"), [(6, 4, 2), (9, 1, 2), (9, 4, 0)])
def test_a_window_too_short_for_its_gaps_is_refused(window: int, tau_max: int, tau_min: int) -> None:
    with pytest.raises(UserError, match="Five places in order need a window of"):
        objective(window=window, tau_max=tau_max, tau_min=tau_min)


def test_a_view_of_another_length_is_refused() -> None:
    task, generator = objective(), torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match="A window of 8 frames or samples does not make 9 places"):
        task(batch_of(moving(2, 8, generator), task, generator))


# --------------------------------------------------------------------------------------------------------------- loss


def by_hand(task: TemporalOrder, batch: Batch) -> tuple[float, int]:
    """Loss and usable windows, one tuple after another, in float64."""
    view = batch.views["window"].numpy().astype(np.float64) / 255
    total, usable = 0.0, 0
    s = task.negative_share
    for clip, noise, real in zip(view, batch.noise["order"].numpy(), batch.lengths["window"].tolist(), strict=True):
        pairs = [
            (b, d)
            for d in range(WINDOW)
            for b in range(WINDOW)
            if b >= TAU_MIN and 2 <= d - b <= TAU_MAX and d + TAU_MIN <= real - 1
        ]
        small = clip  # frames are thumbnails already
        mean, deviation = small.mean((2, 3), keepdims=True), small.std((2, 3), keepdims=True)
        small = (small - mean) * deviation.mean(0) / deviation + mean.mean(0)
        chosen = None
        for u, v, w, x in noise.reshape(-1, 4):
            if not pairs:
                break
            b, d = pairs[int(u * len(pairs))]
            a, c = int(v * (b - TAU_MIN + 1)), b + 1 + int(w * (d - b - 1))
            e = d + TAU_MIN + int(x * (real - d - TAU_MIN))
            apart = min(np.mean((small[c] - small[a]) ** 2), np.mean((small[c] - small[e]) ** 2))
            if apart > task.alike:
                chosen = (a, b, c, d, e)
                break
        if chosen is None:
            continue
        usable += 1
        frames = clip[list(chosen)]
        mean, deviation = frames.mean((2, 3), keepdims=True), frames.std((2, 3), keepdims=True)
        frames = np.clip((frames - mean) * deviation.mean(0) / deviation + mean.mean(0), 0, 1)
        with torch.no_grad():
            features = task.encoder(torch.from_numpy(frames)).pooled.double().numpy()
        weight, bias = (parameter.detach().double().numpy() for parameter in task.head[0].parameters())
        for names, in_order, share in [
            ("bcd", 1, (1 - s) / 2), ("dcb", 1, (1 - s) / 2), ("bad", 0, s / 4), ("dab", 0, s / 4),
            ("bed", 0, s / 4), ("deb", 0, s / 4),
        ]:  # fmt: skip
            logits = weight @ np.concatenate([features["abcde".index(name)] for name in names]) + bias
            total += share * (np.log(np.exp(logits).sum()) - logits[in_order])
    return total / usable, usable


def test_the_loss_equals_a_recomputation_one_tuple_at_a_time() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    task = objective(alike=0.02, negative_share=0.6).double()
    view = moving(12, WINDOW, generator)
    view[3] = view[3, :1]  # does not move
    real = torch.tensor([9, 9, 9, 9, 7, 8, 6, 9, 9, 9, 9, 2])
    batch = batch_of(view, task, generator, lengths={"window": real})
    output: ObjectiveOutput = task(batch)
    expected, usable = by_hand(task, batch)
    assert 0 < usable < 10, "some windows are refused for what they show"
    assert output.count.item() == usable
    assert output.metrics["usable"].item() == pytest.approx(usable / 12)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_mean_over_tuples_drawn_one_by_one() -> None:
    logits = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    negative = rng.random(200_000) < 0.75
    kind = np.where(negative, rng.integers(2, 6, len(negative)), rng.integers(0, 2, len(negative)))
    log_p = logits[0].double().log_softmax(1).numpy()
    drawn = -log_p[kind, (~negative).astype(int)]
    assert order_loss(logits, 0.75).item() == pytest.approx(drawn.mean(), abs=5 * drawn.std() / math.sqrt(len(drawn)))


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = objective(alike=0.02)
    whole = batch_of(moving(8, WINDOW, generator), task, generator)
    expected = task(whole)
    parts = [
        task(Batch({"window": whole.views["window"][part]}, whole.index[part], {"order": whole.noise["order"][part]}))
        for part in (slice(0, 3), slice(3, 8))
    ]
    counts = torch.stack([part.count for part in parts])
    assert counts.sum() == expected.count
    losses = torch.stack([part.loss for part in parts])
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), expected.loss)


def test_auc_is_the_mann_whitney_statistic() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randint(0, 9, (20, 2), generator=generator).float()  # with ties
    negative = torch.randint(-3, 7, (20, 4), generator=generator).float()
    valid = torch.rand(20, generator=generator) < 0.7
    u = stats.mannwhitneyu(positive[valid].flatten(), negative[valid].flatten()).statistic
    expected = u / (2 * valid.sum() * 4 * valid.sum())
    assert pairwise_auc(positive, negative, valid).item() == pytest.approx(float(expected), rel=1e-6)
    assert pairwise_auc(positive, negative, torch.zeros(20, dtype=torch.bool)).item() == 0.5


def test_balanced_accuracy_cuts_at_the_odds_of_the_share() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(30, 6, generator=generator) - 1
    valid = torch.rand(30, generator=generator) < 0.6
    probability = 1 / (1 + np.exp(-score[valid].double().numpy()))
    said = probability > 0.25  # three negatives in four
    expected = (said[:, :2].mean() + (~said[:, 2:]).mean()) / 2
    assert balanced_accuracy(score, valid, 0.75).item() == pytest.approx(expected, rel=1e-6)
    assert balanced_accuracy(torch.full((4, 6), -0.9), torch.ones(4, dtype=torch.bool), 0.75).item() == 0.5
    assert balanced_accuracy(score, torch.zeros(30, dtype=torch.bool), 0.75).item() == 0.5


def test_tuples_are_those_of_the_paper() -> None:
    named = ["".join("abcde"[place] for place in places) for places in TUPLES]
    assert named == ["bcd", "dcb", "bad", "dab", "bed", "deb"]


# ---------------------------------------------------------------------------------------------------------- shortcuts


@pytest.mark.parametrize("flicker", [False, True])
def test_what_does_not_move_weighs_nothing(flicker: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    task = objective()
    output = task(batch_of(static(6, WINDOW, generator, flicker=flicker), task, generator))
    (output.loss * output.count).backward()
    assert output.loss.item() == 0
    assert output.count.item() == pytest.approx(0, abs=1e-5)
    assert {name: value.item() for name, value in output.metrics.items()} == {
        "balanced_accuracy": 0.5, "auc": 0.5, "usable": 0.0,
    }  # fmt: skip
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in task.parameters())


def trained_auc(flicker: bool, options: dict, steps: int = 120, motion: bool = False) -> float:
    """AUC on windows that were not trained on."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = objective(hidden=64, **options)
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)

    def windows(count: int) -> Batch:
        view = moving(count, WINDOW, generator) if motion else static(count, WINDOW, generator, flicker=flicker)
        return batch_of(view, task, generator)

    for _ in range(steps):
        output = task(windows(24))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    with torch.no_grad():
        return task.eval()(windows(200)).metrics["auc"].item()


def test_order_of_what_moves_is_learned() -> None:
    assert trained_auc(False, {}, motion=True) > 0.85


def test_a_flickering_light_solves_the_task_unless_it_is_evened_out() -> None:
    """With look-alikes let through, so that the encoder is asked about static windows at all. Their borders, their
    codec-free pixels and the places in the window say nothing; the beat does, until frames are equalised."""
    let_through = {"alike": -1.0}
    assert trained_auc(True, {**let_through, "equalise": False}) > 0.8, "a control that could not fail shows nothing"
    assert trained_auc(True, let_through) == pytest.approx(0.5, abs=0.06)
    assert trained_auc(False, {**let_through, "equalise": False}, steps=40) == pytest.approx(0.5, abs=0.06)


# ----------------------------------------------------------------------------------------------------------- encoders

CLIP = VideoSpec(size=SIDE, frames=2, patch=8)
SOUND = AudioSpec(mels=16, frames=16, patch=8, stride=8)


def sound(batch: int, generator: torch.Generator, gap: int = 160) -> Tensor:
    """Tones that rise through the window."""
    length = WINDOW * (SOUND.samples + gap)
    time = torch.arange(length) / SOUND.rate
    loud = torch.linspace(0.1, 0.8, length) * (1 + 0.5 * torch.sin(40 * time))
    pitch = 300 + 200 * torch.rand(batch, 1, generator=generator)
    return loud * torch.sin(2 * torch.pi * (pitch * time + 800 * time**2))


ENCODERS = {
    "vit": image_encoder,
    "resnet": lambda: ConvEncoder(ImagePixels(ImageSpec(size=SIDE)), stem="cifar"),
    "clips": lambda: ViT(VideoTubelets(CLIP, 32), ViTSettings(width=32, depth=1, heads=2, positions="sincos1d")),
    "sound": lambda: ViT(SpectrogramPatches(SOUND, 32), ViTSettings(width=32, depth=1, heads=2)),
    "sound, resnet": lambda: ConvEncoder(LogMel(SOUND), stem="cifar"),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_any_encoder_takes_part(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    task = objective(ENCODERS[kind]())
    view = sound(4, generator) if "sound" in kind else moving(4, WINDOW * (2 if kind == "clips" else 1), generator)
    batch = batch_of(view, task, generator)
    output = task(batch)
    output.loss.backward()
    assert output.count.item() == 4
    assert 0.2 < output.loss.item() < 2
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in task.parameters())
    assert task(batch, what="embed").shape == (4, task.encoder.width)
    (picture,) = task(batch, what="pictures").values()
    assert picture.columns == ("a", "b", "c", "d", "e")


def test_order_of_sounds_is_learned() -> None:
    """Tones that rise in pitch and loudness, which is what order sounds like."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = objective(ENCODERS["sound"](), hidden=64)
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    for _ in range(60):
        output = task(batch_of(sound(16, generator), task, generator))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert task.eval()(batch_of(sound(100, generator), task, generator)).metrics["auc"] > 0.85


def test_sounds_are_cut_at_the_beginning_of_equal_parts_and_padding_is_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    task = objective(ENCODERS["sound"]())
    slot = SOUND.samples + 160
    ramp = torch.arange(WINDOW * slot, dtype=torch.float32).expand(3, -1)
    batch = batch_of(ramp, task, generator, lengths={"window": torch.tensor([9, 8, 6]) * slot + 5})
    places, valid = task.five_places(batch)
    assert places.shape == (3, 5, SOUND.samples)
    assert (places[..., 0] % slot == 0).all()
    numbers = (places[..., 0] / slot).long()
    assert (numbers[:2].diff(dim=1) > 0).all()
    assert numbers[1].max() <= 7
    assert valid.tolist() == [True, True, False]


def test_silence_and_a_steady_tone_cannot_be_asked_about() -> None:
    generator = torch.Generator().manual_seed(0)
    task = objective(ENCODERS["sound"]())
    length = WINDOW * SOUND.samples
    steady = torch.sin(2 * torch.pi * 1000 * torch.arange(length) / SOUND.rate)
    view = torch.stack([torch.zeros(length), steady])
    assert task(batch_of(view, task, generator)).metrics["usable"].item() == 0


def test_the_loss_is_fp32_under_autocast() -> None:
    logits = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = order_loss(logits, 0.75)
    assert under.dtype == torch.float32
    assert torch.equal(under, order_loss(logits.float(), 0.75))

"""Claims: clips are runs or sorted picks of frames, the odd one is never in order and uniformly placed; fusion by sums
of differences is permuted as the clips are and zero for equal ones; the loss equals a recomputation in NumPy float64
and starts at ln(N+1); what does not move, also under a flickering light, teaches nothing; wrong order is found in what
moves.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.base import Encoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.odd_one_out import OddOneOut, Sampling, draw_clips, sum_of_differences, wrong_order
from mmssl.types import Batch
from tests.objectives.windows import SIDE, moving, static

WINDOW, FRAMES = 6, 4


def encoder(frames: int = FRAMES) -> Encoder:
    spec = VideoSpec(size=SIDE, frames=frames, patch=8, tubelet=1)
    return ViT(VideoTubelets(spec, 32), ViTSettings(width=32, depth=1, heads=2, prefix=0, positions="sincos1d"))


def objective(**options: object) -> OddOneOut:
    given: dict = {"window": WINDOW, "clips": 4, "width": 32, **options}
    return OddOneOut(encoder(), **given)


def batch_of(view: Tensor, task: OddOneOut, generator: torch.Generator, real: Tensor | None = None) -> Batch:
    noise = {name: torch.rand(len(view), k, generator=generator) for name, k in task.noise.items()}
    return Batch({"window": view}, torch.arange(len(view)), noise, lengths={} if real is None else {"window": real})


# ----------------------------------------------------------------------------------------------------------- sampling


def test_consecutive_clips_begin_anywhere_and_stay_in_the_real_frames() -> None:
    noise = torch.rand(500, 4, 1, generator=torch.Generator().manual_seed(0))
    for real, starts in ((6, 3), (5, 2), (4, 1)):
        clips = draw_clips(noise, torch.full((500,), real), FRAMES, "consecutive")
        assert (clips.diff(dim=-1) == 1).all()
        counts = clips[..., 0].flatten().bincount(minlength=starts)
        assert len(counts) == starts
        assert starts == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_random_clips_are_sorted_picks_and_equally_likely() -> None:
    noise = torch.rand(2000, 4, WINDOW, generator=torch.Generator().manual_seed(0))
    for real in (6, 5):
        clips = draw_clips(noise, torch.full((2000,), real), FRAMES, "random")
        assert (clips.diff(dim=-1) > 0).all()
        assert clips.max() < real
        names, counts = np.unique(clips.flatten(0, 1).numpy(), axis=0, return_counts=True)
        assert len(names) == math.comb(real, FRAMES)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_the_wrong_order_is_every_permutation_but_the_identity() -> None:
    orders = wrong_order(torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)))
    names, counts = np.unique(orders.numpy(), axis=0, return_counts=True)
    assert [0, 1, 2] not in names.tolist()
    assert len(names) == 5
    share = dict(zip(map(tuple, names.tolist()), counts / 20_000, strict=True))
    assert share.pop((1, 2, 0)) == pytest.approx(2 / 6, abs=0.02)
    assert list(share.values()) == pytest.approx([1 / 6] * 4, abs=0.015)
    torch.testing.assert_close(wrong_order(torch.tensor([[0.1, 0.1, 0.1]])), torch.tensor([[1, 2, 0]]))


@pytest.mark.parametrize("sampling", ["consecutive", "random"])
def test_one_clip_at_a_uniform_place_is_out_of_order(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    task = objective(sampling=sampling, equalise=False)
    numbered = torch.arange(WINDOW, dtype=torch.uint8).view(1, -1, 1, 1, 1).expand(1200, -1, 3, SIDE, SIDE)
    clips, odd, _ = task.question(batch_of(numbered, task, generator))
    shown = clips[..., 0, 0, 0].int()  # [B,clips,frames]
    wrong = ~(shown.diff(dim=-1) > 0).all(-1)
    assert (wrong.sum(1) == 1).all()
    assert torch.equal(wrong.int().argmax(1), odd)
    assert stats.chisquare(odd.bincount(minlength=4).numpy()).pvalue > 1e-3


# ------------------------------------------------------------------------------------------------------ loss and head


def test_sums_of_differences_follow_their_clips_and_vanish_for_equal_ones() -> None:
    features = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = sum_of_differences(features)
    looped = torch.stack([sum(features[:, i] - features[:, j] for j in range(5)) for i in range(5)], 1)  # type: ignore[misc]
    torch.testing.assert_close(fused, looped)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(sum_of_differences(features[:, order]), fused[:, order])
    assert sum_of_differences(features[:, :1].expand(-1, 5, -1)).abs().max() < 1e-12


def test_scores_by_differences_follow_their_clips_and_concatenation_does_not() -> None:
    torch.manual_seed(0)
    features, order = torch.randn(3, 4, 32), torch.tensor([2, 0, 3, 1])
    for fusion, follows in (("difference", True), ("concat", False)):
        answer = objective(fusion=fusion).answer
        assert torch.allclose(answer(features[:, order]), answer(features)[:, order], atol=1e-6) == follows


@pytest.mark.parametrize("fusion", ["difference", "concat"])
def test_the_loss_equals_a_recomputation_and_starts_at_ln_of_the_clips(fusion: str) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = objective(fusion=fusion).double()
    view = moving(40, WINDOW, generator)
    view[3] = view[3, :1]  # does not move
    real = torch.full((40,), WINDOW)
    real[5], real[6] = FRAMES - 1, FRAMES
    batch = batch_of(view, task, generator, real)
    output = task(batch)
    project, bias = (task.get_parameter(f"project.0.{name}").detach().numpy() for name in ("weight", "bias"))
    (first, first_bias), (last, last_bias) = (
        tuple(task.get_parameter(f"score.{n}.{name}").detach().numpy() for name in ("weight", "bias")) for n in (0, 2)
    )
    terms = []
    for sample in range(40):
        if sample in (3, 5):
            continue
        clip = view[sample].numpy() / 255
        mean, deviation = clip.mean((2, 3), keepdims=True), clip.std((2, 3), keepdims=True)
        clip = np.clip((clip - mean) * deviation.mean(0) / deviation + mean.mean(0), 0, 1)
        draws = {name: noise[sample].numpy() for name, noise in batch.noise.items()}
        free = int(real[sample]) - FRAMES + 1
        places = [int(draw * free) + np.arange(FRAMES) for draw in draws["clips"]]
        odd = int(draws["odd"][0] * 4)
        shuffle = np.argsort(draws["wrong_order"])
        places[odd] = places[odd][shuffle if (shuffle != np.arange(FRAMES)).any() else np.roll(shuffle, -1)]
        with torch.no_grad():
            features = task.encoder(torch.from_numpy(np.stack([clip[place] for place in places]))).pooled.numpy()
        v = np.maximum(features @ project.T + bias, 0)
        fused = (
            np.stack([sum(v[i] - v[j] for j in range(4)) for i in range(4)]) if fusion == "difference" else v.ravel()
        )
        scores = (np.maximum(fused @ first.T + first_bias, 0) @ last.T + last_bias).ravel()
        terms.append(np.log(np.exp(scores).sum()) - scores[odd])
    assert output.count.item() == len(terms) == 38
    assert output.loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert output.loss.item() == pytest.approx(math.log(4), abs=0.1)


# ---------------------------------------------------------------------------------------------------------- shortcuts


@pytest.mark.parametrize("flicker", [False, True])
def test_what_does_not_move_weighs_nothing(flicker: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    task = objective()
    output = task(batch_of(static(6, WINDOW, generator, flicker=flicker), task, generator))
    (output.loss * output.count).backward()
    assert output.loss.item() == 0
    assert {name: value.item() for name, value in output.metrics.items()} == {"accuracy": 0.25, "usable": 0.0}
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in task.parameters())


def trained_accuracy(motion: bool, options: dict, steps: int) -> float:
    """Of 4 clips, on windows that were not trained on."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = objective(**options)
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)

    def windows(count: int) -> Batch:
        view = moving(count, WINDOW, generator) if motion else static(count, WINDOW, generator, flicker=True)
        return batch_of(view, task, generator)

    for _ in range(steps):
        output = task(windows(24))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    with torch.no_grad():
        return task.eval()(windows(300)).metrics["accuracy"].item()


def test_wrong_order_is_found_where_something_moves() -> None:
    assert trained_accuracy(True, {}, 150) > 0.6


def test_a_flickering_light_gives_it_away_unless_it_is_evened_out() -> None:
    let_through = {"alike": -1.0}
    assert trained_accuracy(False, {**let_through, "equalise": False}, 150) > 0.6
    assert trained_accuracy(False, let_through, 100) == pytest.approx(0.25, abs=0.09)


# ------------------------------------------------------------------------------------------------------------- bad use


def test_images_and_short_windows_are_refused() -> None:
    images = ViT(ImagePatches(ImageSpec(size=SIDE, patch=8), 32), ViTSettings(width=32, depth=1, heads=2))
    with pytest.raises(UserError, match="shows clips, and this encoder takes image"):
        OddOneOut(images, window=9)
    with pytest.raises(UserError, match="it has 4 of 4 in 3"):
        objective(window=3)
    task, generator = objective(), torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match="A window of 5 frames came where 6 were expected"):
        task(batch_of(moving(2, 5, generator), task, generator))


def test_embedding_and_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    task = objective()
    batch = batch_of(moving(5, WINDOW, generator), task, generator)
    assert task(batch, what="embed").shape == (5, 32)
    picture = task(batch, what="pictures")["odd_one_out"]
    assert picture.columns == ("odd", "in order")
    assert [cell.shape for cell in picture.rows[0]] == [(FRAMES, 3, SIDE, SIDE)] * 2
    assert len(picture.rows) == 4

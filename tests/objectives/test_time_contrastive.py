"""Time-contrastive losses against a plain NumPy float64 re-computation (loops, no sorting), at points whose value is
known, and who attracts and repels whom: no frame of the same instant of a sequence is ever a negative."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.headed import HeadedEncoder, HeadSettings, build_head, spatial_softmax
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.time_contrastive import (
    Frames,
    TimeContrastive,
    n_pairs,
    neighbours_in_time,
    semihard_triplets,
    views_of_one_instant,
)
from mmssl.types import Batch

SMALL = HeadSettings(hidden=32, channels=16, out=8)


def vit() -> Encoder:
    return ViT(ImagePatches(ImageSpec(size=16, patch=8), 32), ViTSettings(width=32, depth=1, heads=2))


def resnet() -> Encoder:
    return ConvEncoder(ImagePixels(ImageSpec(size=64)), "resnet18")


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def triplets_in_numpy(
    a: np.ndarray, o: np.ndarray, positive: np.ndarray, negative: np.ndarray, margin: float
) -> tuple[float, int]:
    terms = []
    for i in range(len(a)):
        distance = ((a[i] - o) ** 2).sum(1)
        far = distance[negative[i]]
        if not len(far):
            continue
        for p in np.flatnonzero(positive[i]):
            beyond = far[far > distance[p]]
            terms.append(max(0.0, margin + distance[p] - (beyond.min() if len(beyond) else far.max())))
    return float(np.mean(terms)), len(terms)


def n_pairs_in_numpy(a: np.ndarray, o: np.ndarray, positive: np.ndarray, negative: np.ndarray, l2: float) -> float:
    terms = []
    for i in range(len(a)):
        if not positive[i].any() or not negative[i].any():
            continue
        similarity = o @ a[i]
        total = np.exp(similarity[positive[i] | negative[i]]).sum()
        terms.append(-np.mean(np.log(np.exp(similarity[positive[i]]) / total)))
    return float(np.mean(terms) + l2 / 4 * ((a**2).sum(1).mean() + (o**2).sum(1).mean()))


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_those_of_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, o = unit(rng, 7, 5), unit(rng, 11, 5)
    positive = rng.random((7, 11)) < 0.3
    negative = (rng.random((7, 11)) < 0.5) & ~positive
    negative[0], positive[1] = False, False  # an anchor without negatives, one without positives
    given = [torch.from_numpy(x).float() for x in (a, o)] + [torch.from_numpy(x) for x in (positive, negative)]
    expected, count = triplets_in_numpy(a, o, positive, negative, 0.5)
    found = semihard_triplets(*given, margin=0.5)
    assert found.loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert found.count.item() == count
    assert n_pairs(*given, l2=0.01).loss.item() == pytest.approx(
        n_pairs_in_numpy(a, o, positive, negative, 0.01), rel=1e-5
    )


def test_groups_are_separate_problems() -> None:
    rng = np.random.default_rng(0)
    a, o = torch.from_numpy(unit(rng, 2, 6, 4)).float(), torch.from_numpy(unit(rng, 2, 6, 4)).float()
    positive = torch.eye(6, dtype=torch.bool).expand(2, 6, 6)
    for loss in (lambda *x: semihard_triplets(*x, margin=0.2), lambda *x: n_pairs(*x, l2=0.0)):
        both = loss(a, o, positive, ~positive)
        each = [loss(a[g], o[g], positive[g], ~positive[g]) for g in range(2)]
        assert both.loss.item() == pytest.approx(sum(one.loss.item() for one in each) / 2, rel=1e-5)
        assert both.count.item() == 12


def test_known_values() -> None:
    """All frames alike: the triplet loss is the margin, n-pairs ln of the candidates. Instants at right angles: the
    triplet loss is 0, since negatives are at a squared distance of 2."""
    alike, eye = torch.ones(6, 4) / 2, torch.eye(6)
    positive = torch.eye(6, dtype=torch.bool)
    assert semihard_triplets(alike, alike, positive, ~positive, margin=0.2).loss.item() == pytest.approx(0.2)
    assert n_pairs(alike, alike, positive, ~positive, l2=0.0).loss.item() == pytest.approx(np.log(6))
    apart = semihard_triplets(eye, eye, positive, ~positive, margin=0.2)
    assert (apart.loss.item(), apart.active.item()) == (0, 0)
    assert semihard_triplets(alike, alike, positive, ~positive, margin=0.2).active.item() == 1


def test_nothing_to_compare_gives_zero_and_finite_gradients() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    none = torch.zeros(4, 4, dtype=torch.bool)
    for positive, negative in ((none, none), (~none, none), (none, ~none)):
        for result in (
            semihard_triplets(x, x, positive, negative, margin=0.2),
            n_pairs(x, x, positive, negative, l2=0.0),
        ):
            (gradient,) = torch.autograd.grad(result.loss, x)
            assert result.loss.item() == 0
            assert result.count.item() == 0
            assert torch.equal(gradient, torch.zeros_like(x))


def test_losses_are_fp32_under_autocast() -> None:
    x = torch.nn.functional.normalize(torch.randn(8, 16) + 3, dim=1)
    eye = torch.eye(8, dtype=torch.bool)
    for loss in (lambda: semihard_triplets(x, x.roll(1, 1), eye, ~eye, margin=0.2).loss,
                 lambda: n_pairs(x, x.roll(1, 1), eye, ~eye, l2=0.1).loss):  # fmt: skip
        exact = loss()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(loss(), exact)


# ------------------------------------------------------------------------------------------------------ who is what


def frames(sequence: list[int], times: list[list[float]], cameras: int) -> Frames:
    """B samples of n instants, flat: sample after sample, camera after camera."""
    B, n = len(sequence), len(times[0])
    one = torch.ones(B, cameras, n, dtype=torch.int64)
    return Frames(
        sequence=torch.tensor(sequence).view(B, 1, 1) * one,
        sample=torch.arange(B).view(B, 1, 1) * one,
        camera=torch.arange(cameras).view(1, -1, 1) * one,
        place=torch.arange(n) * one,
        time=torch.tensor(times).view(B, 1, n) * one,
    ).each(torch.flatten)


def test_the_same_instant_of_a_sequence_is_never_a_negative() -> None:
    """Samples 0 and 1 are windows of one sequence that share the instants 1.0 and 1.1 s; sample 2 is another one with
    the very same times."""
    known = frames([7, 7, 8], [[0.0, 1.0], [1.1, 3.0], [0.0, 1.0]], cameras=2)
    positive, negative = views_of_one_instant(known, known, gap=0.2)
    where = list(zip(*(x.tolist() for x in (known.sequence, known.sample, known.camera, known.place, known.time)),
                     strict=True))  # fmt: skip
    for i, (seq, sample, camera, place, time) in enumerate(where):
        for j, (seq2, sample2, camera2, place2, time2) in enumerate(where):
            mates = sample == sample2 and place == place2
            assert positive[i, j] == (mates and camera != camera2)
            assert negative[i, j] == (seq != seq2 or abs(time - time2) > 0.201)
    assert not (positive & negative).any()
    assert not negative[where.index((7, 0, 0, 1, 1.0)), [i for i, w in enumerate(where) if w[0] == 7 and w[3:] in
                                                         ((1, 1.0), (0, pytest.approx(1.1)))]].any()  # fmt: skip


def test_neighbours_in_time() -> None:
    """The official radii: 6 frames of 29 a second attract, more than 12 repel, those between do neither."""
    known = frames([0, 1], [[n / 29 for n in range(20)]] * 2, cameras=1)
    positive, negative = neighbours_in_time(known, known, 6 / 29, 12 / 29)
    i = np.arange(20)
    distance = np.abs(i[:, None] - i)
    np.testing.assert_array_equal(positive[:20, :20].numpy(), (distance <= 6) & (distance > 0))
    np.testing.assert_array_equal(negative[:20, :20].numpy(), distance > 12)
    assert negative[:20, 20:].all()
    assert not positive[:20, 20:].any()


# ----------------------------------------------------------------------------------------------------------- objective


def clips(samples: int, n: int, size: int, views: tuple[str, ...] = ("a", "b")) -> Batch:
    shown = {name: torch.randint(0, 256, (samples, n, 3, size, size), dtype=torch.uint8) for name in views}
    return Batch(shown, torch.arange(samples), targets={"time": torch.arange(n).float().expand(samples, n) * 0.3})


@pytest.mark.parametrize("loss", ["triplet", "npairs"])
@pytest.mark.parametrize("negatives", ["sample", "batch"])
@pytest.mark.parametrize("names", [("a", "b"), ("window",)])
def test_objective_is_the_loss_of_its_embeddings(loss: str, negatives: str, names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"loss": loss, "negatives": negatives, "near": 0.3, "far": 0.6}
    objective = TimeContrastive(vit(), SMALL, names=names, **options).eval()
    batch = clips(3, 4, 16, names)
    output = objective(batch)
    flat = torch.stack([batch.views[name] for name in names], 1).flatten(0, 2)
    embedded = objective.exports()["embedding"](flat).pooled.detach().double().numpy()
    known = frames([0, 1, 2], batch.targets["time"].tolist(), cameras=len(names))
    if len(names) == 2:
        positive, negative = views_of_one_instant(known, known, 0.2)
    else:
        positive, negative = neighbours_in_time(known, known, 0.3, 0.6)
    if negatives == "sample":
        negative &= known.sample.unsqueeze(1) == known.sample
    rows = np.arange(len(flat))
    columns = rows
    if loss == "npairs" and len(names) == 2:
        rows, columns = (np.flatnonzero(known.camera.numpy() == camera) for camera in range(2))
    attracts, repels = (mask.numpy()[np.ix_(rows, columns)] for mask in (positive, negative))
    if loss == "triplet":
        expected, count = triplets_in_numpy(embedded[rows], embedded[columns], attracts, repels, 0.2)
        assert output.count.item() == count
        assert count == {2: 24, 1: 18 if negatives == "batch" else 6}[len(names)]
    else:
        expected = n_pairs_in_numpy(embedded[rows], embedded[columns], attracts, repels, 0.002)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_every_parameter_takes_part() -> None:
    maps = replace(SMALL, kind="spatial_softmax")
    for encoder, head, size in ((vit(), SMALL, 16), (vit(), maps, 16), (resnet(), SMALL, 64)):
        objective = TimeContrastive(encoder, head)
        objective(clips(2, 3, size)).loss.backward()
        assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_where_no_other_instant_is_far_enough_a_step_weighs_nothing() -> None:
    objective, batch = TimeContrastive(vit(), SMALL, gap=5.0), clips(2, 4, 16)
    output = objective(batch)
    assert output.loss.item() == 0
    assert 0 < output.count.item() < 1e-5, "not 0/0 where a whole step is so"


def test_training_aligns_two_views_of_one_scene() -> None:
    """Camera b shows what camera a shows, upside down and inverted: learning finds what they share."""
    torch.manual_seed(0)
    objective = TimeContrastive(vit(), SMALL)
    a = torch.randint(0, 256, (2, 8, 3, 2, 2), dtype=torch.uint8).repeat_interleave(8, 3).repeat_interleave(8, 4)
    batch = Batch({"a": a, "b": 255 - a.flip(3)}, torch.arange(2), targets={"time": torch.arange(8.0).expand(2, 8)})
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-3)
    found = []
    for _ in range(60):
        output = objective(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found.append(output)
    assert found[0].metrics["accuracy"].item() < 0.5
    assert found[-1].metrics["accuracy"].item() > 0.9
    assert found[-1].loss.item() < 0.3 * found[0].loss.item()


def test_pictures_show_frame_mate_and_nearest_negative() -> None:
    batch = clips(2, 4, 16)
    picture = TimeContrastive(vit(), SMALL)(batch, what="pictures")["triplets"]
    assert picture.kind == "image"
    assert len(picture.rows) == 4
    for i, (frame, mate, _) in enumerate(picture.rows):
        assert torch.equal(frame, batch.views["a"][0, i])
        assert torch.equal(mate, batch.views["b"][0, i])


def test_what_makes_no_sense_is_refused() -> None:
    clip = ViT(VideoTubelets(VideoSpec(size=16, frames=4, patch=8), 32), ViTSettings(width=32, depth=1, heads=2,
                                                                                     positions="sincos1d"))  # fmt: skip
    with pytest.raises(UserError, match="encodes single frames"):
        TimeContrastive(clip, SMALL)
    with pytest.raises(UserError, match="far is at least near"):
        TimeContrastive(vit(), SMALL, near=0.5, far=0.4)
    with pytest.raises(UserError, match="reads maps of images"):
        build_head(clip, HeadSettings(kind="spatial_softmax"))
    with pytest.raises(UserError, match="pictures of 32 pixels is a single place"):
        TimeContrastive(ConvEncoder(ImagePixels(ImageSpec(size=32)), "resnet18"), SMALL)
    with pytest.raises(UserError, match="1 or 2 views"):
        TimeContrastive(vit(), SMALL, names=("a", "b", "c"))


# ---------------------------------------------------------------------------------------------------------------- head


def test_spatial_softmax_finds_the_place() -> None:
    """A channel that is hot in one cell gives that cell's coordinates; an even one gives the middle."""
    maps = torch.zeros(1, 3, 5, 9)
    maps[0, 0, 1, 6] = 100
    maps[0, 1, 4, 0] = 100
    expected = torch.tensor([[0.5, -1.0, 0.0, -0.5, 1.0, 0.0]])
    torch.testing.assert_close(spatial_softmax(maps), expected, rtol=0, atol=1e-5)


def test_an_embedding_is_as_long_as_the_loss_wants() -> None:
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    for normalise in (True, False):
        trunk = resnet()
        encoder = HeadedEncoder(trunk, build_head(trunk, HeadSettings(normalise=normalise, channels=16))).eval()
        lengths: Tensor = encoder(images).pooled.norm(dim=1)
        assert encoder(images).pooled.shape == (4, 32)
        assert bool(torch.allclose(lengths, torch.ones(4), atol=1e-5)) == normalise

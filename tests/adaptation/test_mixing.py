"""Claims: mixup and cutmix are torchvision's transforms for the same share, box and partner, on images, clips and
labels; shares follow the Beta distribution; label smoothing is PyTorch's; erased boxes are those of torchvision's rule
in NumPy; cutout covers the square of the paper; waveforms are mixed and erased along time; RandAugment treats all
frames of a clip alike and takes its draws from the sample's generator only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms.v2 import CutMix, MixUp
from torchvision.tv_tensors import Video

from mmssl.adaptation.boxes import Cutout, Erase
from mmssl.adaptation.classification import one_hot, soft_cross_entropy
from mmssl.adaptation.mixing import Mix, beta_draws
from mmssl.adaptation.rand_augment import RandAugmented
from mmssl.data.media import Media, Record
from mmssl.data.views import Sample, Views
from mmssl.types import Batch

VIEWS = {"image": (6, 3, 20, 28), "clip": (6, 4, 3, 20, 28)}


def batch(view: torch.Tensor, part: Any, seed: int = 0, classes: int = 5, **noise: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(len(view), k, generator=generator) for name, k in part.noise.items()}
    labels = torch.arange(len(view)) % classes
    return Batch({"view": view}, torch.arange(len(view)), noise=drawn | noise, targets={"class": labels})


def rolled(mixed: Batch) -> Batch:
    """With draws whose order makes sample i's partner sample i - 1, as torchvision rolls."""
    count = len(mixed)
    mixed.noise["mix"][:, 0] = (torch.arange(count).float() + 1) / (count + 1)
    mixed.noise["mix"][0, 0] = 0.999  # argsort now is 1, 2, ..., 0: sample i gets i + 1
    return mixed


def pair_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    pair = torch.stack([a, b])
    return Video(pair) if pair.ndim == 5 else pair


@pytest.mark.parametrize("shape", VIEWS.values(), ids=VIEWS)
def test_mixup_is_torchvisions(shape: tuple[int, ...]) -> None:
    view = torch.rand(shape)
    mix = Mix(classes=5, mixup=0.8, cutmix=0, smoothing=0)
    given = rolled(batch(view, mix))
    out = mix(given)
    lam = beta_draws(given.noise["mix"][:, 2], 0.8)
    theirs = MixUp(num_classes=5)
    partner = given.noise["mix"][:, 0].argsort()
    assert sorted(partner.tolist()) == list(range(6))
    for i in range(6):
        pair = pair_of(view[i], view[partner[i]])  # roll(1) of two is the other one
        labels = given.targets["class"][[i, int(partner[i])]]
        params = {"labels": labels, "batch_size": 2, "lam": float(lam[i])}
        torch.testing.assert_close(
            out.views["view"][i], torch.Tensor(theirs.transform(pair, params))[0], rtol=0, atol=1e-6
        )
        torch.testing.assert_close(out.targets["soft"][i], theirs.transform(labels, params)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", VIEWS.values(), ids=VIEWS)
def test_cutmix_is_torchvisions(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    view = torch.rand(shape)
    mix = Mix(classes=5, mixup=0, cutmix=1.0, smoothing=0)
    given = batch(view, mix, seed=3)
    out = mix(given)
    partner = given.noise["mix"][:, 0].argsort()
    theirs = CutMix(num_classes=5)
    for i in range(6):
        lam, y, x = (float(value) for value in given.noise["mix"][i, 2:])  # Beta(1, 1) is uniform
        place = iter([torch.tensor([int(x * 28)]), torch.tensor([int(y * 20)])])  # torchvision draws x first
        monkeypatch.setattr(theirs, "_dist", type("Fixed", (), {"sample": lambda self, _, lam=lam: lam})())
        monkeypatch.setattr(torch, "randint", lambda *_, place=place, **__: next(place))
        pair = pair_of(view[i], view[partner[i]])
        labels = given.targets["class"][[i, int(partner[i])]]
        params = theirs.make_params([pair]) | {"labels": labels, "batch_size": 2}
        torch.testing.assert_close(
            out.views["view"][i], torch.Tensor(theirs.transform(pair, params))[0], rtol=0, atol=0
        )
        torch.testing.assert_close(out.targets["soft"][i], theirs.transform(labels, params)[0], rtol=0, atol=1e-6)


def test_each_sample_gets_one_of_the_two() -> None:
    view = torch.randint(0, 256, (400, 3, 8, 8), dtype=torch.uint8)
    mix = Mix(classes=5, switch=0.25)
    given = batch(view, mix)
    weights = mix.weights(view, given.noise["mix"][:, 1:])
    binary = ((weights == 0) | (weights == 1)).flatten(1).all(1)
    assert binary.float().mean() == pytest.approx(0.25, abs=0.06)
    assert (given.noise["mix"][:, 1] < 0.25).eq(binary).all()
    out = mix(given)
    assert out.views["view"].dtype == torch.float32
    assert 0 <= float(out.views["view"].min()) <= float(out.views["view"].max()) <= 1
    torch.testing.assert_close(out.targets["soft"].sum(1), torch.ones(400))
    again = mix(given)
    assert torch.equal(out.views["view"], again.views["view"]), "a pure function of views and noise"


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    draws = beta_draws(torch.rand(20_000, generator=torch.Generator().manual_seed(0)), alpha)
    # For small alpha fp32 has 1.0 for many of the largest draws, which the statistic counts as one jump.
    assert stats.kstest(draws.double().numpy(), stats.beta(alpha, alpha).cdf).statistic < 0.02
    assert float(beta_draws(torch.tensor([0.0]), alpha)) == 0.0


def test_soft_cross_entropy_with_smoothing_is_pytorchs() -> None:
    logits, labels = torch.randn(7, 5), torch.randint(5, (7,))
    ours = soft_cross_entropy(logits, one_hot(labels, 5, 0.1))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=0.1))
    # And in NumPy, for mixed labels.
    x, t = logits.double().numpy(), np.random.default_rng(0).dirichlet(np.ones(5), 7)
    expected = -(t * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum(1).mean()
    assert float(soft_cross_entropy(logits, torch.from_numpy(t))) == pytest.approx(expected, abs=1e-6)


def test_smoothing_alone_leaves_the_views_as_they_are() -> None:
    view = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mix = Mix(classes=5, mixup=0, cutmix=0, smoothing=0.1)
    assert mix.noise == {}
    out = mix(batch(view, mix))
    assert out.views["view"] is view
    torch.testing.assert_close(out.targets["soft"], one_hot(torch.arange(4), 5, 0.1))


@pytest.mark.parametrize("shape", [(40, 3, 20, 28), (40, 4, 3, 20, 28)], ids=["image", "clip"])
def test_erased_boxes_in_numpy(shape: tuple[int, ...]) -> None:
    view = torch.randint(1, 255, shape, dtype=torch.uint8)
    erase = Erase((0.0, 1.0, 0.5), probability=0.6)
    given = batch(view, erase)
    out = erase(given).views["view"].numpy()
    drawn = given.noise["erase/view"].double().numpy()
    chosen = 0
    for i in range(len(view)):
        expected = view[i].numpy().copy()
        for area, aspect, down, across in drawn[i, 1:].reshape(10, 4) if drawn[i, 0] < 0.6 else ():
            size = 20 * 28 * (0.02 + area * (0.33 - 0.02))
            ratio = math.exp(math.log(0.3) + aspect * (math.log(3.3) - math.log(0.3)))
            h, w = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if h < 20 and w < 28:
                top, left = int(down * (20 - h + 1)), int(across * (28 - w + 1))
                for channel, value in enumerate((0, 255, 128)):
                    expected[..., channel, top : top + h, left : left + w] = value
                chosen += 1
                break
        np.testing.assert_array_equal(out[i], expected)
    assert 15 <= chosen <= 33


def test_cutout_covers_one_square_cut_off_at_the_border() -> None:
    view = torch.ones(200, 3, 10, 12)
    cutout = Cutout(4, (0.0, 0.0, 0.0))
    given = batch(view, cutout)
    gone = (cutout(given).views["view"] == 0).all(1)
    for i in range(200):
        y, x = int(given.noise["cutout/view"][i, 0] * 10), int(given.noise["cutout/view"][i, 1] * 12)
        expected = torch.zeros(10, 12, dtype=torch.bool)
        expected[max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = True
        assert torch.equal(gone[i], expected)


def test_waveforms_are_mixed_and_erased_along_time() -> None:
    wave = torch.rand(8, 1000) + 1
    mix = Mix(classes=5, mixup=0, cutmix=1.0, smoothing=0)
    given = batch(wave, mix)
    given.lengths["view"] = torch.arange(8) * 100
    out = mix(given)
    partner = given.noise["mix"][:, 0].argsort()
    for i in range(8):
        own = out.views["view"][i] == wave[i]
        other = out.views["view"][i] == wave[partner[i]]
        assert (own | other).all()
        changes = int((own[1:] != own[:-1]).sum())
        assert changes <= 2 or partner[i] == i, "one stretch"
        if partner[i] != i and partner[i] % 5 != i % 5:
            assert float(out.targets["soft"][i, i % 5]) == pytest.approx(float(own.float().mean()), abs=1e-5)
    assert torch.equal(out.lengths["view"], torch.maximum(given.lengths["view"], given.lengths["view"][partner]))
    erase = Erase((0.0,), probability=1.0)
    gone = erase(batch(wave, erase)).views["view"] == 0
    share = gone.float().mean(1)
    assert float(share.min()) >= 0.019
    assert float(share.max()) <= 0.331
    assert ((gone[:, 1:] != gone[:, :-1]).sum(1) <= 2).all()


class Still(Views):
    """Clips of one frame repeated."""

    names, per_file = ("view",), 2

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        frame = torch.from_numpy(np.random.default_rng(7).integers(0, 256, (3, 16, 16), dtype=np.uint8))
        return [Sample({"view": frame.repeat(5, 1, 1, 1)}, lengths={"view": 5}) for _ in range(2)]

    def centre(self) -> Views:
        return self


def test_randaugment_treats_frames_alike_and_draws_from_the_sample_only() -> None:
    media = Media(Record(id="x", kind="video", path="x"))
    views = RandAugmented(Still(), 2, 9, (0.5, 0.5, 0.5))
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        samples = views(media, np.random.default_rng(seed % 6))
        assert torch.equal(torch.get_rng_state(), before), "dropout's generator is left alone"
        for sample in samples:
            clip = sample.views["view"]
            assert clip.dtype == torch.uint8
            assert torch.equal(clip, clip[:1].expand_as(clip))
        assert not torch.equal(samples[0].views["view"], samples[1].views["view"]) or seed
        found.append(samples[0].views["view"])
    assert all(torch.equal(a, b) for a, b in zip(found[:6], found[6:], strict=True))
    plain = Still()(media, np.random.default_rng(0))[0].views["view"]
    assert sum(not torch.equal(clip, plain) for clip in found[:6]) >= 4

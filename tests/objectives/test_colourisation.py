"""Claim: the colourisation loss is the negative log-likelihood of the copied mixture, and what surrounds it is fitted,
told and drawn as it says.

References: a loop in NumPy float64; the entropy that uniform attention must give; the mixture's own logarithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from mmssl.adapters.colour import rgb_to_lab
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.dense import DenseEncoder, DenseSettings, build_dense
from mmssl.errors import UserError
from mmssl.objectives.colourisation import Colourisation, cell_colours, coloured, mixture_nll, pointing
from mmssl.targets.codebook import Codebook
from mmssl.types import Batch

GREY = VideoSpec(size=16, frames=3, patch=4, tubelet=1, mean=(0.5,), std=(0.25,), colour="lightness")
TINY = EncoderSettings(width=16, depth=1, heads=2)


def objective(**settings: float) -> Colourisation:
    torch.manual_seed(0)
    made = Colourisation(build_dense(GREY, TINY, DenseSettings(out=8, layers=0)), clusters=4, **settings)  # type: ignore[arg-type]
    made.adopt(Codebook(torch.tensor([[0.0, 0.0], [60.0, 40.0], [-50.0, 40.0], [30.0, -60.0]]), "of a test"))
    return made


def batch(clips: Tensor) -> Batch:
    return Batch({"clip": clips}, torch.arange(len(clips)))


def clips(count: int = 2, seed: int = 0) -> Tensor:
    """Squares of strong colours that move from frame to frame."""
    rng = np.random.default_rng(seed)
    clip = np.full((count, 3, 3, 16, 16), 128, np.uint8)
    for b in range(count):
        for colour in ((220, 30, 30), (30, 200, 40), (40, 60, 230)):
            y, x = rng.integers(0, 9, 2)
            for t in range(3):
                clip[b, t, :, y + t : y + t + 5, x : x + 5] = np.array(colour)[:, None, None]
    return torch.from_numpy(clip)


def numpy_loss(target: np.ndarray, reference: np.ndarray, colours: np.ndarray, own: np.ndarray, t: float) -> np.ndarray:
    """-log of the copied share of each place's own colour, place by place in float64; 0 where nobody has it."""
    losses = np.zeros(own.shape)
    for b in range(len(own)):
        for i in range(own.shape[1]):
            weights = [np.exp(np.dot(target[b, i], reference[b, j]) / t) for j in range(reference.shape[1])]
            copied = sum(w for w, c in zip(weights, colours[b], strict=True) if c == own[b, i]) / sum(weights)
            losses[b, i] = -np.log(copied) if copied > 0 else 0.0
    return losses


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_equals_numpy(temperature: float) -> None:
    rng = np.random.default_rng(1)
    target, reference = rng.normal(size=(2, 6, 4)), rng.normal(size=(2, 10, 4))
    colours, own = rng.integers(0, 3, (2, 10)), rng.integers(0, 4, (2, 6))  # class 3 is nowhere to be copied
    own[0, 0] = 3
    logits = pointing(torch.from_numpy(target), torch.from_numpy(reference), temperature)
    found = mixture_nll(logits, torch.from_numpy(colours), torch.from_numpy(own))
    expected = numpy_loss(target, reference, colours, own, temperature)
    assert_close(found.numpy(), expected, check_dtype=False, rtol=1e-5, atol=1e-6)
    assert found[0, 0] == 0


def test_uniform_attention_gives_the_entropy_of_the_colours() -> None:
    """The published check: with target and reference of one histogram, pointing everywhere alike costs its entropy."""
    colours = torch.tensor([[0] * 8 + [1] * 4 + [2] * 4])
    found = mixture_nll(torch.zeros(1, 16, 16), colours, colours.flip(1)).mean()
    entropy = -sum(p * np.log(p) for p in (0.5, 0.25, 0.25))
    assert float(found) == pytest.approx(entropy, rel=1e-6)
    other = torch.tensor([[0] * 4 + [1] * 12])  # and against another histogram, the cross-entropy
    found = mixture_nll(torch.zeros(1, 16, 16), colours, other).mean()
    assert float(found) == pytest.approx(-0.25 * np.log(0.5) - 0.75 * np.log(0.25), rel=1e-6)


def test_it_is_no_softmax_over_the_mixture() -> None:
    """The trap of a popular port: a softmax over shares in [0,1] could never give less than -log(e / (e + k - 1))."""
    logits = torch.full((1, 1, 4), -30.0)
    logits[..., 2] = 30.0
    assert float(mixture_nll(logits, torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2]]))) < 1e-6


def test_small_attention_does_not_underflow() -> None:
    """A softmax in fp32 is exactly 0 at a distance of 200, and its logarithm has no gradient any more."""
    logits = torch.tensor([[[0.0, -200.0]]], requires_grad=True)
    found = mixture_nll(logits, torch.tensor([[0, 1]]), torch.tensor([[1]]))
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(200.0)
    assert_close(logits.grad, torch.tensor([[[1.0, -1.0]]]))


def test_a_colour_that_nobody_has_moves_nothing() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    mixture_nll(logits, torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]])).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0] == 0).all()
    assert (logits.grad[0, 1] != 0).any()


def test_cells() -> None:
    clip = clips()
    found = cell_colours(clip, 4)
    assert found.shape == (2, 3, 16, 2)
    lab = rgb_to_lab(clip)
    assert_close(found[1, 2, 4 * 1 + 3], lab[1, 2, 1:, 4:8, 12:16].mean((1, 2)), rtol=1e-5, atol=1e-4)


def test_the_objectives_loss_is_put_together_right() -> None:
    made = objective(temperature=0.7).eval()
    clip = clips()
    out = made(batch(clip))
    maps = made.encoder(clip).feature_map.flatten(3).permute(0, 2, 3, 1).double().detach()  # [B,T,N,C]
    cells = cell_colours(clip, 4)
    labels = torch.cdist(cells.double(), made.centroids.double()).argmin(-1).numpy()
    reference = maps[:, :2].flatten(1, 2).numpy()
    expected = numpy_loss(maps[:, 2].numpy(), reference, labels[:, :2].reshape(2, -1), labels[:, 2], 0.7)
    assert float(out.loss.detach()) == pytest.approx(expected.mean(), rel=1e-4)
    assert float(out.count) == 2 * 16
    # The floors, counted.
    references, target = labels[:, :2].reshape(2, -1), labels[:, 2]
    shares = np.stack([np.bincount(row, minlength=4) / 32 for row in references])
    own = np.take_along_axis(shares, target, 1)
    with np.errstate(divide="ignore"):
        uniform = np.where(own > 0, -np.log(own), 0.0)
    found = {name: float(value) for name, value in out.metrics.items()}
    assert found["uniform_loss"] == pytest.approx(uniform.mean(), rel=1e-5)
    assert found["majority"] == pytest.approx((shares.argmax(1)[:, None] == target).mean())
    assert found["same_place"] == pytest.approx((labels[:, 1] == target).mean())
    assert found["absent"] == pytest.approx((own == 0).mean())
    assert 0 < found["majority"] < 1


def test_accuracy_is_of_the_likeliest_copied_colour() -> None:
    made = objective()
    reference, target = torch.tensor([[0, 1, 2, 1]]), torch.tensor([[1, 2, 0]])
    logits = torch.tensor([[[1.0, 0.7, 0.0, 0.7], [1.0, 0.0, 0.9, 0.0], [3.0, 0.0, 0.0, 0.0]]])
    # Place 0: two of class 1 outweigh the single strongest; 1: class 0 is likelier than the true 2; 2: right.
    assert float(made.metrics(logits, reference, target, target)["accuracy"]) == pytest.approx(2 / 3)


def test_it_never_sees_colour() -> None:
    """Clips of one lightness and other colours have one embedding."""
    made = objective().eval()
    red = torch.tensor([[200, 0, 0]]).view(1, 1, 3, 1, 1)
    lightness = rgb_to_lab(red.to(torch.uint8))[0, 0, 0, 0, 0]
    greys = rgb_to_lab(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1))[:, 0, 0, 0]
    grey = int((greys - lightness).abs().argmin())
    flat = torch.full((1, 3, 3, 16, 16), grey, dtype=torch.uint8)
    patch = flat.clone()
    patch[..., 4:12, 4:12] = red.to(torch.uint8)
    assert_close(made.encoder(patch).feature_map, made.encoder(flat).feature_map, rtol=0, atol=0.05)
    patch[..., 4:12, 4:12] = 255
    assert (made.encoder(patch).feature_map - made.encoder(flat).feature_map).abs().max() > 0.2


@pytest.mark.parametrize("arch", ["vit", "resnet18"])
def test_every_parameter_learns(arch: str) -> None:
    torch.manual_seed(0)
    settings = TINY if arch == "vit" else EncoderSettings(arch="resnet18", output_stride=4)
    head = DenseSettings(out=8, hidden=8, layers=0 if arch == "vit" else 2)
    made = Colourisation(build_dense(GREY, settings, head), clusters=4)
    made.adopt(objective_codebook())
    made(batch(clips())).loss.backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def objective_codebook() -> Codebook:
    return Codebook(torch.tensor([[0.0, 0.0], [60.0, 40.0], [-50.0, 40.0], [30.0, -60.0]]), "of a test")


def test_it_learns_to_point() -> None:
    """A few steps on moving squares: below uniform attention and above the majority's colour."""
    torch.manual_seed(0)
    made = Colourisation(build_dense(GREY, TINY, DenseSettings(out=16, layers=0)), clusters=4)
    made.adopt(objective_codebook())
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for step in range(60):
        out = made(batch(clips(8, step)))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    out = made.eval()(batch(clips(32, 10_000)))
    assert float(out.loss) < 0.8 * float(out.metrics["uniform_loss"])
    assert float(out.metrics["accuracy"]) > float(out.metrics["majority"]) + 0.05


def test_colours_are_fitted_on_cells() -> None:
    made = objective()
    codebook = made.fit(iter([batch(clips(16, seed)) for seed in range(8)]))
    assert codebook.centroids.shape == (4, 2)
    assert codebook.features == "mean a, b of CIE Lab over cells of 4 x 4 pixels"
    assert codebook.centroids.norm(dim=1).min() < 8  # the grey ground
    again = made.fit(iter([batch(clips(16, seed)) for seed in range(8)]))
    assert codebook.sha256 == again.sha256
    made.adopt(codebook)
    assert_close(made.centroids, codebook.centroids)
    assert "centroids" not in made.state_dict()
    with pytest.raises(UserError, match="has 3 colours"):
        made.adopt(Codebook(torch.zeros(3, 2), "others"))


def test_pictures() -> None:
    made = objective().eval()
    clip = clips(6)
    with torch.no_grad():
        picture = made(batch(clip), what="pictures")["colours"]
    assert len(picture.rows) == 4
    reference, target, grey, pointed, same = picture.rows[0]
    assert_close(reference.int(), clip[0, 1].int(), rtol=0, atol=1)
    assert_close(target.int(), clip[0, 2].int(), rtol=0, atol=1)
    assert (grey[0].int() - grey[2].int()).abs().max() <= 1
    for cell in (grey, pointed, same):
        assert cell.dtype == torch.uint8
        assert cell.shape == (3, 16, 16)
    lab = rgb_to_lab(clip[:1, 2])
    exact = coloured(lab, F.avg_pool2d(lab[:, 1:], 1).flatten(2).transpose(1, 2), 1)  # its own colours, cell by pixel
    assert_close(exact, lab)


def test_what_cannot_be_is_refused() -> None:
    picture = ImageSpec(size=16, patch=4)
    with pytest.raises(UserError, match="ViT does not embed"):
        Colourisation(build_encoder(picture, TINY))
    coloured_spec = VideoSpec(size=16, frames=3, patch=4, tubelet=1)
    with pytest.raises(UserError, match="sees rgb has nothing to learn from"):
        Colourisation(build_dense(coloured_spec, TINY, DenseSettings(layers=0)))
    for spec in (
        VideoSpec(size=16, frames=1, patch=4, mean=(0.5,), std=(1.0,), colour="lightness"),
        VideoSpec(size=18, frames=3, patch=4, mean=(0.5,), std=(1.0,), colour="lightness"),
    ):
        encoder = DenseEncoder(build_encoder(ImageSpec(size=16, patch=4), TINY), spec, DenseSettings(layers=0))
        with pytest.raises(UserError, match="2 frames or more"):
            Colourisation(encoder)
    with pytest.raises(UserError, match="give 2 or more, and one above 0"):
        objective(temperature=0.0)

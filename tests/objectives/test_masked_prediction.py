"""Masked prediction: logits, loss and gradients against torchaudio's own head (the right code against all codes, as
fairseq has it) on equal weights, and against float64 in NumPy; what the mask hides; that the shared objective works
on pictures, clips, spectrograms and waveforms; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models.wav2vec2.components import LogitGenerator

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec, WaveformSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.base import Objective
from mmssl.objectives.masked_prediction import (
    CosineHead,
    MaskedPrediction,
    cosine_logits,
    feature_square,
    weighted_cross_entropy,
)
from mmssl.objectives.masks import CoarseMask, RandomMask, TubeMask
from mmssl.objectives.spans import SpanMask
from mmssl.targets.codebook import Codebook
from mmssl.training.momentum import SGD
from mmssl.training.step import train_step
from mmssl.types import Batch

CODES = 20
SMALL = ViTSettings(width=32, depth=2, heads=4)


class FirstValue(nn.Module):
    """A tokenizer: the number of the interval that the mean of a patch falls into."""

    def __init__(self, encoder: ViT) -> None:
        super().__init__()
        self.adapter = encoder.adapter
        self.noisy = nn.Dropout(0.5)

    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        mean = self.noisy(self.adapter.patches(self.adapter.pixels(view, lengths)).mean((2, 3)))
        return ((mean + 2) * CODES / 4).long().clamp(0, CODES - 1)


def codebook(codes: int = CODES) -> Codebook:
    return Codebook(torch.randn(codes, 3, generator=torch.Generator().manual_seed(0)), "three values")


def images() -> MaskedPrediction:
    encoder = ViT(ImagePatches(ImageSpec(size=32, patch=4), 32), SMALL)
    tokenizer = FirstValue(encoder)
    mask = CoarseMask(0.4, (1, 2, 2))
    return MaskedPrediction(encoder, codebook=codebook(), tokenizer=tokenizer, mask=mask, head="linear")


def clips() -> MaskedPrediction:
    settings = replace(SMALL, prefix=0, positions="sincos1d", qkv_bias="qv")
    encoder = ViT(VideoTubelets(VideoSpec(size=32, frames=4, patch=8), 32), settings)
    return MaskedPrediction(encoder, codebook=codebook(), tokenizer=FirstValue(encoder), mask=TubeMask(0.75))


def spectrograms() -> MaskedPrediction:
    spec = AudioSpec(mels=32, frames=64, patch=8, stride=8)
    encoder = ViT(SpectrogramPatches(spec, 32), replace(SMALL, prefix=2))
    return MaskedPrediction(encoder, codebook=codebook(), tokenizer=FirstValue(encoder), mask=RandomMask(0.75))


def waveforms(**settings: float) -> MaskedPrediction:
    spec = WaveformSpec(seconds=1.0, channels=(16,) * 7)
    trunk = SpeechSettings(width=32, depth=2, heads=4, position_kernel=16, position_groups=4)
    given: dict[str, float] = {"head_width": 16, "feature_penalty": 10.0, **settings}
    return MaskedPrediction(SpeechEncoder(spec, trunk), codebook=codebook(), mask=SpanMask(), **given)  # type: ignore[arg-type]


ALL = [images, clips, spectrograms, waveforms]


def a_batch(objective: Objective, batch: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    spec = objective.encoder.spec
    if isinstance(spec, AudioSpec | WaveformSpec):
        view = torch.randn(batch, spec.samples, generator=generator) * 0.1
    else:
        shape = (spec.frames, 3, 32, 32) if isinstance(spec, VideoSpec) else (3, 32, 32)
        view = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)
    targets = {}
    if objective.targets:
        frames = objective.require_tokens().adapter.grid[2]
        targets["units"] = torch.randint(0, CODES, (batch, frames), generator=generator)
    noise = {"mask": torch.rand(batch, objective.noise["mask"], generator=generator)}
    return Batch({"view": view}, torch.arange(batch), noise, targets)


# ------------------------------------------------------------------------------------------------------------- the head


def test_logits_loss_and_gradients_are_torchaudios() -> None:
    """On equal weights: theirs is the cross-entropy against class 0 of (right code, all codes without the right one),
    summed over masked frames."""
    torch.manual_seed(0)
    theirs = LogitGenerator(48, CODES, 16, skip_masked=False, skip_nomask=False)
    ours = CosineHead(48, CODES, width=16)
    ours.load_state_dict(
        {
            "project.weight": theirs.final_proj.weight,
            "project.bias": theirs.final_proj.bias,
            "codes": theirs.label_embeddings,
        }
    )
    x, units = torch.randn(4, 30, 48), torch.randint(0, CODES, (4, 30))
    mask = torch.rand(4, 30) < 0.6
    theirs_x, ours_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    masked, unmasked = theirs(theirs_x, units, mask, ~mask)
    their_loss = F.cross_entropy(masked, torch.zeros(len(masked), dtype=torch.long), reduction="sum") / mask.sum()
    their_loss += (
        0.3 * F.cross_entropy(unmasked, torch.zeros(len(unmasked), dtype=torch.long), reduction="sum") / mask.sum()
    )
    their_loss.backward()

    logits = ours(ours_x)
    weights = torch.where(mask, 1.0, 0.3)
    loss, count = weighted_cross_entropy(logits, units, weights)
    assert count == 120, "fairseq counts unmasked terms as soon as they weigh anything"
    (loss * count / mask.sum()).backward()
    right = logits.gather(2, units[..., None])[..., 0]
    torch.testing.assert_close(right[mask], masked[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logits[mask][masked[:, 1:] > -1e9], masked[:, 1:][masked[:, 1:] > -1e9], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(loss * count / mask.sum(), their_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours_x.grad, theirs_x.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.codes.grad, theirs.label_embeddings.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.project.weight.grad, theirs.final_proj.weight.grad, rtol=1e-4, atol=1e-7)


def test_loss_equals_float64_numpy() -> None:
    rng = np.random.default_rng(0)
    x, codes = rng.standard_normal((2, 9, 8)), rng.random((CODES, 8))
    units, weights = rng.integers(0, CODES, (2, 9)), rng.choice([0.0, 0.2, 1.0], (2, 9))
    units[0, 0], weights[0, 0] = -1, 0.0
    logits = np.einsum("bnd,cd->bnc", x, codes) / np.linalg.norm(x, axis=2)[..., None] / np.linalg.norm(codes, axis=1)
    logits /= 0.07
    terms = np.log(np.exp(logits).sum(2)) - np.take_along_axis(logits, units.clip(0)[..., None], 2)[..., 0]
    found = cosine_logits(torch.from_numpy(x), torch.from_numpy(codes), 0.07)
    loss, count = weighted_cross_entropy(found, torch.from_numpy(units), torch.from_numpy(weights))
    assert found.dtype == torch.float32
    assert count.item() == (weights > 0).sum()
    assert loss.item() == pytest.approx((terms * weights).sum() / (weights > 0).sum(), rel=1e-5)
    nothing, none = weighted_cross_entropy(found, torch.from_numpy(units), torch.zeros(2, 9))
    assert (nothing.item(), none.item()) == (0, 0)


# -------------------------------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("make", ALL)
def test_every_parameter_gets_a_gradient_and_counts_are_masked_tokens(make: Callable[[], MaskedPrediction]) -> None:
    torch.manual_seed(0)
    objective = make()
    batch = a_batch(objective)
    output = objective(batch)
    output.loss.backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []
    mask = objective.draw(batch.noise["mask"], objective.require_tokens().tokenize(batch.views["view"]))
    assert output.count.item() == mask.sum()
    assert output.metrics["masked"].item() == pytest.approx(mask.float().mean().item())
    assert 0.3 < output.metrics["masked"].item() < 0.9


@pytest.mark.parametrize("make", ALL)
def test_it_is_fp32_under_autocast_and_codes_are_learned(make: Callable[[], MaskedPrediction]) -> None:
    torch.manual_seed(0)
    objective = make().eval()  # no dropout
    batch = a_batch(objective)
    exact, logits = objective(batch), []
    hook = objective.head.register_forward_hook(lambda *call: logits.append(call[2].detach().double()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(batch)
        units = objective.units(batch)
    hook.remove()
    assert torch.equal(units, objective.units(batch)), "autocast moves no code"
    assert rough.loss.dtype == torch.float32
    # What bf16 makes of the logits depends on the machine's kernels; the loss of these logits does not.
    mask = objective.draw(batch.noise["mask"], objective.require_tokens().tokenize(batch.views["view"]))
    counted = mask & (units >= 0)
    cross_entropy = torch.nn.functional.cross_entropy(logits[0][counted], units[counted])
    assert rough.metrics["masked_loss"].item() == pytest.approx(cross_entropy.item(), rel=1e-5)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch).loss.backward()
        optimizer.step()
    after = objective(batch)
    assert after.metrics["masked_loss"] < 0.7 * exact.metrics["masked_loss"]
    assert after.metrics["masked_accuracy"] > exact.metrics["masked_accuracy"]


@pytest.mark.parametrize("make", [images, clips, spectrograms])
def test_hidden_pixels_cannot_reach_the_prediction(make: Callable[[], MaskedPrediction]) -> None:
    torch.manual_seed(0)
    objective = make().eval()
    batch = a_batch(objective)
    adapter = objective.require_tokens().adapter
    units = objective.units(batch)
    patches = adapter.patches(adapter.pixels(batch.views["view"]))
    mask = objective.draw(batch.noise["mask"], objective.require_tokens().tokenize(batch.views["view"]))
    noisy = torch.where(mask[:, :, None, None], torch.randn_like(patches), patches)

    def logits(patches: Tensor) -> Tensor:
        given = adapter.unpatches(patches, objective.grid)
        adapter.front.raw = lambda view, lengths=None: given  # type: ignore[method-assign]
        adapter.front.normalise = lambda raw, channel: raw  # type: ignore[method-assign]
        return objective.predict(batch, units)[2]

    assert (noisy - patches).abs().max() > 0.5
    torch.testing.assert_close(logits(patches), logits(noisy), rtol=0, atol=0)


def test_metrics_are_what_they_are_called() -> None:
    objective = waveforms(unmasked_weight=0.5)
    batch = a_batch(objective)
    units = batch.targets["units"]
    units[0, :5] = -1
    logits = torch.randn(3, units.shape[1], CODES)
    mask = torch.rand(units.shape) < 0.5
    labelled = units >= 0
    found = objective.metrics(logits, units, mask & labelled, ~mask & labelled)
    right = (logits.argmax(2) == units).numpy()
    hidden, seen, known = (mask & labelled).numpy(), (~mask & labelled).numpy(), units.numpy()
    counts = np.bincount(known[hidden], minlength=CODES) / hidden.sum()
    entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    assert found["masked_accuracy"].item() == pytest.approx(right[hidden].mean(), rel=1e-6)
    assert found["unmasked_accuracy"].item() == pytest.approx(right[seen].mean(), rel=1e-6)
    assert found["majority"].item() == pytest.approx(counts.max(), rel=1e-5)
    assert found["code_perplexity"].item() == pytest.approx(np.exp(entropy), rel=1e-5)
    assert found["masked"].item() == pytest.approx(hidden.sum() / labelled.sum().item(), rel=1e-6)
    expected = F.cross_entropy(logits[mask & labelled], units[mask & labelled]).item()
    assert found["masked_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_loss_is_masked_terms_weighted_unmasked_ones_and_the_penalty() -> None:
    torch.manual_seed(0)
    objective = waveforms(unmasked_weight=0.5, feature_penalty=10.0).eval()
    batch = a_batch(objective)
    output = objective(batch)
    tokens, mask, logits = objective.predict(batch, batch.targets["units"])
    terms = F.cross_entropy(logits.transpose(1, 2), batch.targets["units"], reduction="none")
    assert tokens.features is not None
    expected = (terms * torch.where(mask, 1.0, 0.5)).mean() + 10 * tokens.features.square().mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.count.item() == mask.numel()


def test_the_penalty_weighs_samples_by_their_terms_and_leaves_padding_out() -> None:
    rng = np.random.default_rng(0)
    features, terms = rng.standard_normal((3, 10, 4)) * np.array([1, 2, 3])[:, None, None], np.array([2, 0, 7])
    real = np.array([10, 4, 6])
    expected = sum(t * (f[:n] ** 2).mean() for f, n, t in zip(features, real, terms, strict=True)) / 9
    padding = torch.arange(10) >= torch.from_numpy(real)[:, None]
    found = feature_square(torch.from_numpy(features), padding, torch.from_numpy(terms))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    equal = feature_square(torch.from_numpy(features), None, torch.tensor([5, 5, 5]))
    assert equal.item() == pytest.approx((features**2).mean(), rel=1e-6), "fairseq's, where all have as many"


def test_a_step_over_uneven_micro_batches_is_the_step_over_all() -> None:
    """Masked frames of the whole step share one weight: counts differ by chance, by length and by missing labels."""
    accelerator = Accelerator(cpu=True)
    whole: dict[int, list[Tensor]] = {}
    for parts in (1, 2):
        torch.manual_seed(0)
        objective = waveforms().eval()
        batch = a_batch(objective, 4)
        batch.targets["units"][0, 5:] = -1  # the first half has fewer terms
        pieces = [
            Batch(
                {"view": batch.views["view"][rows]},
                batch.index[rows],
                {"mask": batch.noise["mask"][rows]},
                {"units": batch.targets["units"][rows]},
            )
            for rows in torch.arange(4).chunk(parts)
        ]
        optimizer = SGD(objective.parameters(), lr=1.0, momentum=0.0)
        before = [p.detach().clone() for p in objective.parameters()]
        output = train_step(accelerator, objective, optimizer, pieces, micro_batches=parts, step=0, total=1)
        assert output.count.item() == sum(objective(piece).count.item() for piece in pieces)
        whole[parts] = [old - new.detach() for old, new in zip(before, objective.parameters(), strict=True)]
    for one, two in zip(whole[1], whole[2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)


def test_views_of_several_lengths_and_padding() -> None:
    torch.manual_seed(0)
    objective = waveforms().eval()
    batch = a_batch(objective)
    shorter = Batch(
        {"view": batch.views["view"][:, :9680]}, batch.index, batch.noise, {"units": batch.targets["units"][:, :30]}
    )
    assert objective(shorter).loss.isfinite()
    padded = replace(shorter, lengths={"view": torch.tensor([9680, 5000, 3000])})
    tokens, mask, _ = objective.predict(padded, padded.targets["units"])
    assert tokens.padding is not None
    assert tokens.padding.sum() > 0
    assert not (mask & tokens.padding).any()


@pytest.mark.parametrize("make", ALL)
def test_pictures_show_what_was_seen_and_how_sure_the_model_is(make: Callable[[], MaskedPrediction]) -> None:
    torch.manual_seed(0)
    objective = make().eval()
    batch = a_batch(objective)
    units = objective.units(batch)
    perfect = F.one_hot(units, CODES).float() * 100
    tokens, mask, _ = objective.predict(batch, units)
    objective.predict = lambda batch, units: (tokens, mask, perfect)  # type: ignore[method-assign]
    picture = objective(batch, what="pictures")["prediction"]
    original, seen, sure = (torch.stack(column).float() for column in zip(*picture.rows, strict=True))
    share = (seen.isnan() if picture.kind == "spectrogram" else seen != original).float().mean().item()
    assert share == pytest.approx(mask.float().mean().item(), abs=0.03)
    assert (sure >= (1 if picture.kind == "spectrogram" else 255)).float().mean() > 0.98
    assert seen.shape == original.shape == sure.shape


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_a_run_goes_on_with_its_codebook_only() -> None:
    objective = waveforms()
    kept = objective.fit(iter(()))
    objective.adopt(kept)
    with pytest.raises(UserError, match="its units are now of another codebook"):
        objective.adopt(Codebook(kept.centroids + 1, kept.features))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="choose a ViT"):
        MaskedPrediction(ConvEncoder(ImagePixels(ImageSpec(size=32))), codebook=codebook(), mask=RandomMask(0.5))
    overlapping = ViT(SpectrogramPatches(AudioSpec(mels=32, frames=64, patch=8, stride=4), 32), SMALL)
    with pytest.raises(UserError, match="overlap"):
        MaskedPrediction(overlapping, codebook=codebook(), tokenizer=FirstValue(overlapping), mask=RandomMask(0.5))
    with pytest.raises(UserError, match="1 codes"):
        MaskedPrediction(images().encoder, codebook=codebook(1), mask=RandomMask(0.5))
    objective = waveforms()
    batch = a_batch(objective)
    with pytest.raises(UserError, match="A view has 49 tokens and 25 units"):
        objective(replace(batch, targets={"units": batch.targets["units"][:, ::2]}))
    with pytest.raises(UserError, match="views cut no units"):
        objective(replace(batch, targets={}))
    plain = images()
    plain.feature_penalty = 1.0
    with pytest.raises(UserError, match="no features before its tokens"):
        plain(a_batch(plain))

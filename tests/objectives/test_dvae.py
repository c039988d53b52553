"""The discrete VAE: draws against a NumPy version of their mixing and the laws that they shall follow; relaxed codes,
divergence and loss against float64 in NumPy; a temperature that falls as written; that it learns to draw pictures from
codes alone; that a collapse of the codes shows; and that the tokenizer it leaves gives the codes that it was trained
with."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, VideoSpec
from mmssl.encoders.build import build_adapter
from mmssl.encoders.vit import ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.dvae import DiscreteVAE, cosine_temperature, divergence, relaxed_codes, uniform
from mmssl.targets.dvae import CODES, CodeViT, load_dvae
from mmssl.types import Batch
from tests.media import pixels

SMALL = ViTSettings(width=32, depth=2, heads=4, prefix=0, final_norm=False)
SPECS: dict[str, Spec] = {
    "image": ImageSpec(size=16, patch=4),
    "video": VideoSpec(size=16, frames=4, patch=8),
    "audio": AudioSpec(mels=16, frames=32, patch=8, stride=8),
}


def make(spec: Spec, codes: int = 16, **settings: float) -> DiscreteVAE:
    torch.manual_seed(0)
    positions = "sincos1d" if spec.modality == "video" else "sincos"
    trunk = ViTSettings(width=32, depth=2, heads=4, prefix=0, final_norm=False, positions=positions)  # type: ignore[arg-type]
    encoder = CodeViT(build_adapter(spec, 32), trunk, codes)
    return DiscreteVAE(encoder, decoder_width=32, decoder_depth=1, decoder_heads=2, **settings)  # type: ignore[arg-type]


def a_batch(spec: Spec, batch: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    noise = {"codes": torch.rand(batch, 2, generator=generator)}
    if isinstance(spec, AudioSpec):
        view = torch.randn(batch, spec.samples, generator=generator) * 0.1
    else:
        pictures = [torch.from_numpy(pixels(16, 16, seed)).permute(2, 0, 1) for seed in range(batch)]
        view = torch.stack(pictures)
        if isinstance(spec, VideoSpec):
            view = view.unsqueeze(1).expand(-1, spec.frames, -1, -1, -1)
    return Batch({"view": view}, torch.arange(batch), noise)


# ---------------------------------------------------------------------------------------------------------- the draws


def mixed(x: np.ndarray) -> np.ndarray:
    """The mixing in unsigned 32 bits, as it was published."""
    x = x.astype(np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def test_draws_are_the_published_mixing_and_uniform() -> None:
    seeds = torch.tensor([[0.0, 0.0], [0.25, 0.5], [0.25, 0.5 + 2**-16], [1 - 2**-24, 1 - 2**-24]])
    found = uniform(seeds, 200_000)
    words = (np.floor(seeds.numpy().astype(np.float64) * 2**16)).astype(np.uint32)
    seed = mixed((words[:, 0] << np.uint32(16)) | words[:, 1])
    bits = mixed(mixed(np.arange(200_000))[None] ^ seed[:, None])
    np.testing.assert_array_equal(found.numpy(), ((bits >> 9).astype(np.float64) + 0.5) / 2**23)
    assert found.min() > 0
    assert found.max() < 1
    for row in found.numpy()[1:]:
        assert stats.kstest(row, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 0.01
    across = np.corrcoef(found.numpy()[1:])
    assert np.abs(across - np.eye(3)).max() < 0.01, "samples whose seeds differ in a bit have nothing in common"


def test_relaxed_codes_are_gumbel_softmax() -> None:
    rng = np.random.default_rng(0)
    logits, draws = rng.standard_normal((2, 3, 5)), rng.random((2, 3, 5))
    z = (logits - np.log(-np.log(draws))) / 0.3
    expected = np.exp(z - z.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    found = relaxed_codes(torch.from_numpy(logits), torch.from_numpy(draws), torch.tensor(0.3))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
    # The largest one is a sample of softmax(logits): Gumbel's maximum.
    logits_5 = torch.tensor([1.0, 0.0, -1.0, 0.5, 2.0])
    draw = uniform(torch.rand(1, 2, generator=torch.Generator().manual_seed(0)), 5 * 40_000).view(1, -1, 5)
    picked = relaxed_codes(logits_5.expand_as(draw), draw, torch.tensor(1 / 16)).argmax(-1)
    counts = torch.bincount(picked[0], minlength=5).numpy()
    assert stats.chisquare(counts, logits_5.double().softmax(0).numpy() * 40_000).pvalue > 1e-3


def test_divergence_and_temperature() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 3, 7)) * 3
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (p * np.log(p * 7)).sum(-1)
    np.testing.assert_allclose(divergence(torch.from_numpy(logits)).numpy(), expected, rtol=1e-5)
    assert divergence(torch.zeros(1, 1, 7)).item() == pytest.approx(0, abs=1e-6)
    assert [cosine_temperature(step, 4, 1.0, 0.2) for step in (0, 2, 4, 9)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert cosine_temperature(0, 0, 1.0, 0.2) == 0.2


# -------------------------------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("modality", SPECS)
def test_loss_is_error_and_divergence_and_reaches_every_parameter(modality: str) -> None:
    spec = SPECS[modality]
    objective, batch = make(spec, divergence_weight=0.1), a_batch(spec)
    output = objective(batch)
    output.loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    adapter, codes = objective.encoder.adapter, objective.encoder.codes.detach().double().numpy()
    with torch.no_grad():
        tokens = objective.encoder(batch.views["view"]).tokens
        assert tokens is not None
        x = tokens.double().numpy()
        distances = ((x[:, :, None] - codes) ** 2).sum(-1)
        logits = -distances / 2
        draws = uniform(batch.noise["codes"], logits[0].size).double().numpy().reshape(logits.shape)
        z = logits - np.log(-np.log(draws))
        shares = np.exp(z - z.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        drawn = objective.draw(torch.from_numpy(shares).float())
        patches = adapter.patches(adapter.pixels(batch.views["view"])).flatten(2)
    log_share = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_share -= logits.max(-1, keepdims=True)
    nats = (np.exp(log_share) * log_share).sum(-1).mean() + math.log(16)
    error = ((drawn - patches).double().numpy() ** 2).mean()
    assert output.metrics["error"].item() == pytest.approx(error, rel=1e-4)
    assert output.metrics["divergence"].item() == pytest.approx(nats, rel=1e-3)
    assert output.loss.item() == pytest.approx(error + 0.1 * nats, rel=1e-4)
    assert output.count.item() == distances[..., 0].size
    _, counts = np.unique(distances.argmin(-1), return_counts=True)
    share = counts / counts.sum()
    assert output.metrics["code_perplexity"].item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert output.metrics["codes_used"].item() == pytest.approx(len(counts) / 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(batch)
    assert rough.loss.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(output.loss.item(), rel=0.05)


def train(objective: DiscreteVAE, batch: Batch, steps: int) -> None:
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        noise = {"codes": torch.rand(len(batch), 2, generator=generator)}
        optimizer.zero_grad()
        objective(Batch(batch.views, batch.index, noise)).loss.backward()
        optimizer.step()
        objective.after_step(step, steps, torch.tensor(True))


def test_it_learns_to_draw_from_one_code_a_patch(tmp_path: Path) -> None:
    """From hard codes, better than the best single colour of each picture; and what it writes gives these codes."""
    spec = SPECS["image"]
    objective, batch = make(spec, codes=32), a_batch(spec, 8)
    adapter = objective.encoder.adapter
    patches = adapter.patches(adapter.pixels(batch.views["view"]))

    def hard() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            codes = objective.logits(batch.views["view"], None).argmax(-1)
            drawn = objective.draw(torch.nn.functional.one_hot(codes, 32).float())
        return codes, (drawn - patches.flatten(2)).square().mean()

    before = hard()[1]
    train(objective, batch, 300)
    codes, after = hard()
    assert objective.temperature.item() == pytest.approx(1 / 16)
    flat = (patches - patches.mean((1, 2), keepdim=True)).square().mean()
    assert after < 0.5 * flat < before
    metrics = objective(batch).metrics
    assert metrics["code_perplexity"] > 8, "codes are used"
    objective.encoder.save_pretrained(tmp_path)
    assert torch.equal(load_dvae(tmp_path)(batch.views["view"]), codes)
    picture = objective(batch, what="pictures")["reconstruction"]
    assert len(picture.rows) == 4
    assert picture.rows[0][1].shape == (3, 16, 16)


def test_a_collapse_of_codes_shows() -> None:
    spec = SPECS["image"]
    objective, batch = make(spec), a_batch(spec)
    with torch.no_grad():
        objective.encoder.codes[1:] += 100
    metrics = objective(batch).metrics
    assert metrics["code_perplexity"].item() == pytest.approx(1)
    assert metrics["codes_used"].item() == pytest.approx(1 / 16)


def test_refusals(tmp_path: Path) -> None:
    spec = SPECS["image"]
    adapter = build_adapter(spec, 32)
    with pytest.raises(UserError, match="final_norm=False"):
        CodeViT(adapter, ViTSettings(width=32, depth=1, heads=4), 16)
    with pytest.raises(UserError, match="2 codes or more"):
        CodeViT(adapter, SMALL, 1)
    with pytest.raises(UserError, match="temperatures above 0"):
        make(spec, temperature=(1.0, 0.0))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="make the sizes equal"):
        make(spec)(Batch({"view": torch.zeros(2, 3, 32, 32)}, torch.arange(2), a_batch(spec, 2).noise))
    make(spec).encoder.save_pretrained(tmp_path / "one")
    other = make(spec)
    with torch.no_grad():
        other.encoder.blocks[0].mlp.fc1.weight.add_(1)  # type: ignore[operator, union-attr]
    other.encoder.save_pretrained(tmp_path / "two")
    (tmp_path / "one" / CODES).replace(tmp_path / "two" / CODES)
    with pytest.raises(UserError, match="is another one"):
        load_dvae(tmp_path / "two")

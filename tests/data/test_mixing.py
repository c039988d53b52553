"""WavLM's mixing: every sample against a loop in NumPy; energies within the published ranges; nobody meets itself,
labels stay, and nothing changes but where something was added. Noises are read from real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.data.crops_audio import AudioCrops
from mmssl.data.loader import MediaDataset
from mmssl.data.mixing import Mixing, NoisyCrops, partners
from mmssl.data.plan import Cut, Draw
from mmssl.data.sources import open_source
from mmssl.errors import UserError
from mmssl.types import Batch
from tests.media import make_audio

S = 4000


def a_batch(samples: int = 200, seed: int = 0, noisy: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    loud = 10 ** torch.empty(samples, 1).uniform_(-2, 0, generator=generator)
    views = {"view": loud * torch.randn(samples, S, generator=generator)}
    noise = 0.1 * torch.randn(samples, S, generator=generator)
    views["noise"] = noise * (torch.rand(samples, 1, generator=generator) < noisy)
    draws = {"mixing": torch.rand(samples, 6, generator=generator)}
    return Batch(
        views, torch.arange(samples), draws, {"units": torch.randint(0, 9, (samples, 12), generator=generator)}
    )


def by_hand(batch: Batch, mixing: Mixing, lengths: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, float]]]:
    """Sample by sample; and (sample, partner, dB) of the mixed ones, partner -1 for noise."""
    view, noise = (batch.views[name].double().numpy() for name in ("view", "noise"))
    index, out, found = batch.index.numpy(), view.copy(), []
    for n, draws in enumerate(batch.noise["mixing"].double().numpy()):
        others = [m for m in range(len(view)) if index[m] != index[n]]
        is_noise = mixing.noise_view is not None and noise[n].any()
        if draws[0] >= mixing.share or not (is_noise or others):
            continue
        partner = -1 if is_noise else others[int(draws[1] * len(others))]
        other = noise[n] if is_noise else view[partner, : lengths[partner]]
        low, high = mixing.noise_db if is_noise else mixing.utterance_db
        decibel = low + draws[2] * (high - low)
        own = view[n, : lengths[n]]
        count = min(int(draws[3] * (len(own) // 2 + 1)), len(other))
        begin, at = int(draws[4] * (len(other) - count + 1)), int(draws[5] * (len(own) - count + 1))
        power = (own**2).mean() / (other**2).mean()
        out[n, at : at + count] += np.sqrt(power / 10 ** (decibel / 10)) * other[begin : begin + count]
        found.append((n, partner, decibel))
    return out, found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("noise", [None, "noise"])
def test_every_sample_is_what_a_loop_makes_of_it(noise: str | None, padded: bool) -> None:
    batch = a_batch(noisy=0.3)
    lengths = torch.full((200,), S)
    if padded:
        lengths = torch.randint(500, S, (200,), generator=torch.Generator().manual_seed(3))
        batch.views["view"].masked_fill_(torch.arange(S) >= lengths[:, None], 0.0)
        batch = replace(batch, lengths={"view": lengths})
    mixing = Mixing(share=0.5, noise_view=noise)
    expected, found = by_hand(batch, mixing, lengths.numpy())
    mixed = mixing(batch)
    np.testing.assert_allclose(mixed.views["view"].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert 60 < len(found) < 140
    assert any(partner < 0 for _, partner, _ in found) == (noise is not None)
    assert all(n != partner for n, partner, _ in found)
    assert torch.equal(mixed.targets["units"], batch.targets["units"])


def decibels(before: Tensor, after: Tensor, other: Tensor) -> tuple[float, float]:
    """Power of an utterance over that of what was added if all of it had been, in dB; and the share of its samples that
    changed. The factor is found by least squares, from the result alone, at the delay that fits best."""
    added = (after - before).double().numpy()
    places = np.flatnonzero(added)
    length = len(places)
    spectrum = np.fft.irfft(np.fft.rfft(added, 2 * S) * np.fft.rfft(other.double().numpy(), 2 * S).conj(), 2 * S)
    delay = int(np.abs(spectrum).argmax())
    delay = delay - 2 * S if delay > S else delay
    source = other.double().numpy()[places - delay]
    factor = (added[places] @ source) / (source @ source)
    np.testing.assert_allclose(added[places], factor * source, atol=1e-4)
    power = before.square().mean().item() / (factor**2 * other.square().mean().item())
    return 10 * np.log10(power), length / S


def test_energies_lengths_and_shares_are_the_published_ones() -> None:
    batch = a_batch(400, noisy=0.5)
    mixing = Mixing(noise_view="noise", share=0.2)
    mixed = mixing(batch).views["view"]
    partner, _ = partners(batch.index, batch.noise["mixing"][:, 1])
    changed = (mixed != batch.views["view"]).any(1)
    assert changed.float().mean().item() == pytest.approx(0.2, abs=0.06)
    spread: dict[bool, list[float]] = {True: [], False: []}
    lengths = []
    for n in changed.nonzero().flatten().tolist():
        noisy = bool(batch.views["noise"][n].any())
        other = batch.views["noise"][n] if noisy else batch.views["view"][partner[n]]
        if (mixed[n] != batch.views["view"][n]).sum() < 20:
            continue
        decibel, length = decibels(batch.views["view"][n], mixed[n], other)
        spread[noisy].append(decibel)
        lengths.append(length)
    for noisy, (low, high) in ((False, (-5, 5)), (True, (-5, 20))):
        found = np.array(spread[noisy])
        assert len(found) > 20
        assert found.min() > low - 0.1
        assert found.max() < high + 0.1
        assert found.mean() == pytest.approx((low + high) / 2, abs=0.2 * (high - low))
        assert np.ptp(found) > 0.7 * (high - low)
    assert max(lengths) <= 0.5
    assert np.mean(lengths) == pytest.approx(0.25, abs=0.05)


def test_nobody_meets_itself_or_another_crop_of_itself() -> None:
    index = torch.tensor([7, 3, 7, 7, 5, 3])
    seen = set()
    for draw in torch.linspace(0, 0.999, 50):
        partner, met = partners(index, draw.expand(6))
        assert met.all()
        assert (index[partner] != index).all()
        seen |= {(n, int(p)) for n, p in enumerate(partner)}
    assert seen == {(n, m) for n in range(6) for m in range(6) if index[n] != index[m]}, "all others are met"
    alone = Batch({"view": torch.randn(3, S)}, torch.tensor([4, 4, 4]), {"mixing": torch.rand(3, 6) * 0.1})
    assert torch.equal(Mixing()(alone).views["view"], alone.views["view"])


def test_silence_stays_finite() -> None:
    batch = a_batch(20)
    batch.views["view"][:10] = 0
    mixed = Mixing(share=1.0)(batch).views["view"]
    assert mixed.isfinite().all()
    assert not mixed[:10].any(), "what has no power gets none"


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noises")
    make_audio(folder / "long.wav", seconds=3.0, hertz=900.0, rate=8000, seed=50)
    make_audio(folder / "short.wav", seconds=0.3, hertz=2000.0, channels=2, seed=51)
    return folder


def test_noises_are_read_beside_the_crops(noises: Path, tmp_path: Path) -> None:
    for number in range(6):
        make_audio(tmp_path / f"{number}.wav", seconds=1.0 + 0.2 * number, seed=number)
    source, noise = open_source(str(tmp_path), "audio"), open_source(str(noises), "audio")
    plain = AudioCrops(min_seconds=0.5, max_seconds=0.8)
    views = NoisyCrops.of(plain, noise, 0.5)
    assert views == NoisyCrops(min_seconds=0.5, max_seconds=0.8, noise=noise, noise_share=0.5)
    draws = [Draw(epoch, row, Cut(30)) for epoch in range(8) for row in range(6)]
    batch = MediaDataset(source, views, 0).batch(draws)
    assert torch.equal(batch.views["view"], MediaDataset(source, plain, 0).batch(draws).views["view"]), "the same crops"
    noisy = batch.views["noise"].any(1)
    assert batch.views["noise"].shape == batch.views["view"].shape == (48, 29 * 320 + 400)
    assert 12 < noisy.sum() < 36
    peaks = torch.fft.rfft(batch.views["noise"][noisy]).abs().argmax(1) * 16000 / batch.views["noise"].shape[1]
    assert {peak > 1000 for peak in peaks.tolist()} == {True, False}, "both of 900 Hz and of 2000 and 4000 Hz"
    assert torch.equal(batch.views["noise"], MediaDataset(source, views, 0).batch(draws).views["noise"])
    assert (batch.views["noise"][noisy, -100:].abs() > 0).any(1).all(), "a short noise is repeated"


def test_what_cannot_work_is_refused(noises: Path) -> None:
    with pytest.raises(UserError, match="no noises to mix in"):
        NoisyCrops(noise=None)
    with pytest.raises(UserError, match=r"share of 1\.5"):
        Mixing(share=1.5)
    noise = open_source(str(noises), "audio")
    with pytest.raises(UserError, match=r"share of 7 of the recordings .* from 0 to 1"):
        NoisyCrops(noise=noise, noise_share=7)
    views = NoisyCrops(min_seconds=0.1, max_seconds=0.5, noise=noise, noise_share=1.0)
    for file in noises.iterdir():
        file.rename(file.with_suffix(".gone"))
    with pytest.raises(UserError, match="10 noises in a row could not be read"):
        views._draw(100, np.random.default_rng(0))

"""Claims: COLA's segments are parts of a clip that has unit L2 norm as a whole, short clips have equal silence on both
sides, long ones are read in part, and segments of unit energy do not tell how long their recording is; the noise on the
positive is normal of the given deviation, on silence too. Lengths and energies are computed from the file by
soundfile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl.data import clip_segments
from mmssl.data.clip_segments import ClipSegments
from mmssl.data.device_views import GaussianNoise
from mmssl.data.media import Media, Record, UnreadableMedia
from mmssl.types import Batch

RATE = 16000


def media(folder: Path, wave: np.ndarray, verified: bool = True) -> Media:
    soundfile.write(folder / "a.wav", wave, RATE, subtype="FLOAT")
    known = {"frames": len(wave), "rate": float(RATE), "backend": "soundfile"} if verified else {}
    return Media(Record("a.wav", "audio", "a.wav", **known), folder)  # type: ignore[arg-type]


def noise_wave(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.mark.parametrize("verified", [True, False])
def test_segments_are_parts_of_the_normalised_clip(verified: bool, tmp_path: Path) -> None:
    wave = noise_wave(3.0)
    wave[:RATE] *= 10  # so that a segment's own norm would be another one
    given = media(tmp_path, wave, verified)
    sample = ClipSegments(RATE, RATE)(given, np.random.default_rng(1))[0]
    whole = wave.astype(np.float64) / np.linalg.norm(wave.astype(np.float64))
    starts = (sample.targets["start"] * RATE).round().int().tolist()
    assert starts[0] != starts[1]
    for name, start in zip(("a", "b"), starts, strict=True):
        np.testing.assert_allclose(sample.views[name].numpy(), whole[start : start + RATE], rtol=1e-4, atol=1e-7)
    again = ClipSegments(RATE, RATE)(given, np.random.default_rng(1))[0]
    assert torch.equal(again.views["a"], sample.views["a"])


def test_a_short_clip_has_silence_before_and_after(tmp_path: Path) -> None:
    wave = noise_wave(0.25)
    sample = ClipSegments(RATE, RATE)(media(tmp_path, wave), np.random.default_rng(0))[0]
    expected = np.pad(wave / np.linalg.norm(wave), (6000, 6000))
    for view in sample.views.values():
        np.testing.assert_allclose(view.numpy(), expected, rtol=1e-4, atol=1e-7)
    silent = ClipSegments(RATE, RATE)(media(tmp_path, np.zeros(100, np.float32)), np.random.default_rng(0))[0]
    assert (silent.views["a"] == 0).all()
    with pytest.raises(UnreadableMedia, match="no sound"):
        ClipSegments(RATE, RATE)(media(tmp_path, noise_wave(0), verified=False), np.random.default_rng(0))


def test_of_a_long_recording_one_part_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = clip_segments.read_audio

    def spy(*args: object, **options: object) -> torch.Tensor:
        read.append(original(*args, **options))  # type: ignore[arg-type]
        return read[-1]

    monkeypatch.setattr(clip_segments, "read_audio", spy)
    given = media(tmp_path, noise_wave(20.0))
    firsts = [ClipSegments(RATE, RATE, clip=2.0)(given, np.random.default_rng(n))[0].views["a"] for n in range(5)]
    assert {len(part) for part in read} == {2 * RATE}
    assert len({float(view[0]) for view in firsts}) == 5
    # Two seconds of unit energy: half of it in one second, of noise.
    assert firsts[0].square().sum().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("seconds", [0.25, 1.0, 4.0])
def test_with_segments_of_unit_energy_the_level_does_not_tell_the_length(seconds: float, tmp_path: Path) -> None:
    wave = 7 * noise_wave(seconds)  # equally loud from end to end
    views = ClipSegments(RATE, RATE, unit="segment")(media(tmp_path, wave), np.random.default_rng(0))[0].views
    assert all(view.square().sum().item() == pytest.approx(1.0, abs=0.05) for view in views.values())
    start = int(np.random.default_rng(0).integers(max(len(wave) - RATE, 0) + 1))
    heard = views["a"].numpy()[:RATE][views["a"].numpy() != 0]
    scale = np.linalg.norm(wave) * np.sqrt(min(1.0, RATE / len(wave)))
    np.testing.assert_allclose(heard, wave[start : start + RATE] / scale, rtol=1e-4, atol=1e-7)


def test_noise_has_the_given_deviation_on_silence_too() -> None:
    view = GaussianNoise(("b",), 0.001, RATE, relative=False)
    draws = torch.rand(2, view.noise["gaussian_noise/b"], generator=torch.Generator().manual_seed(0))
    waves = {"a": torch.zeros(2, RATE), "b": torch.stack([torch.zeros(RATE), torch.ones(RATE)])}
    out = view(Batch(waves, torch.arange(2), {"gaussian_noise/b": draws}, lengths={"b": torch.tensor([10, 10])}))
    assert out.views["a"] is waves["a"]
    for added in out.views["b"] - waves["b"]:
        assert added.mean().abs() < 4 * 0.001 / RATE**0.5
        assert added.std().item() == pytest.approx(0.001, rel=0.03)
        assert (added / 0.001).pow(4).mean().item() == pytest.approx(3, abs=0.3), "of a normal"

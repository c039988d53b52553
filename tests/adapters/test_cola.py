"""Claim: LogMagnitude makes the log-mel magnitudes of COLA's official code. Checked on real telephone recordings
against a float64 re-computation from the definitions (a written-out Fourier sum, triangles in mel by interpolation)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl.adapters.cola import LogMagnitude, mel_bands
from mmssl.adapters.specs import AudioSpec
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError

SAMPLES = sorted((Path(__file__).resolve().parents[2] / "datasets/samples/audio").rglob("*.ogg"))
SPEC = AudioSpec(front="cola", mels=64, frames=98, mean=0.0, std=0.5)  # nothing subtracted, divided by 1


def definition(wave: np.ndarray) -> np.ndarray:
    """float64 [T,64] of 16 kHz sound [S]."""
    n = np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)
    fourier = np.exp(-2j * np.pi * np.outer(n, np.arange(513)) / 1024)
    mel = 1127 * np.log(1 + np.arange(513) * 16000 / 1024 / 700)
    low, high = (1127 * np.log(1 + hertz / 700) for hertz in (60.0, 7800.0))
    edges = low + (high - low) * np.arange(66) / 65
    bands = np.stack([np.interp(mel, edges[m : m + 3], [0, 1, 0], 0, 0) for m in range(64)], 1)
    bands[0] = 0
    frames = np.stack([wave[at : at + 400] for at in range(0, len(wave) - 399, 160)])
    return np.log(np.clip(np.abs((frames * window) @ fourier) @ bands, 1e-5, 1e8))


def recording(number: int) -> np.ndarray:
    """A second in which somebody speaks, at 16 kHz (each sample of the 8 kHz recordings twice)."""
    wave, rate = soundfile.read(SAMPLES[number], dtype="float32", always_2d=True)
    wave = wave.mean(1).repeat(2 if rate == 8000 else 1)
    wave = np.resize(wave, max(len(wave), 16000))
    loudest = max(range(0, len(wave) - 15999, 1600), key=lambda at: float(np.square(wave[at : at + 16000]).sum()))
    return wave[loudest : loudest + 16000]


def test_a_second_is_98_by_64_and_equals_the_definition() -> None:
    front = LogMagnitude(SPEC)
    for number in range(3):
        wave = recording(number)
        assert np.square(wave).sum() > 1, "the recording is not silent"
        given = torch.from_numpy(wave)[None]
        with front.taken_as_given():
            raw = front(given)[0, 0, 0].T.numpy()
        assert raw.shape == (98, 64)
        np.testing.assert_allclose(raw, definition(wave.astype(np.float64)), rtol=0, atol=2e-4)
        unit = front(given)[0, 0, 0].T.numpy()
        np.testing.assert_allclose(unit, definition(wave.astype(np.float64) / np.linalg.norm(wave)), rtol=0, atol=2e-3)
        assert np.abs(unit - raw).max() > 0.1, "the level of the view matters"


def test_views_of_any_level_are_equal_and_silence_is_the_floor() -> None:
    front, wave = LogMagnitude(SPEC), torch.from_numpy(recording(0))[None]
    torch.testing.assert_close(front(0.01 * wave), front(wave), rtol=0, atol=1e-3)
    np.testing.assert_allclose(front(torch.zeros(1, 16000)).numpy(), np.log(1e-5), rtol=1e-6)
    short = LogMagnitude(SPEC, fill=True)(wave[:, :8000])[0, 0, 0]
    torch.testing.assert_close(short[:, :48], front(wave[:, :8000])[0, 0, 0])
    assert (short[:, 48:] == np.float32(np.log(1e-5))).all()  # (8000 - 400) // 160 + 1 frames are sound
    assert (short[:, 47] > np.log(1e-5)).any()


def test_bands_are_straight_in_mel() -> None:
    """Not torchaudio's and librosa's, which are straight in Hz: the low, narrow bands differ."""
    import torchaudio

    ours = mel_bands(64, 513, 16000)
    theirs = torchaudio.functional.melscale_fbanks(513, 60.0, 7800.0, 64, 16000, norm=None, mel_scale="htk").numpy()
    assert np.abs(ours - theirs).max() > 0.003
    assert np.abs(ours - theirs).max() < 0.1
    assert (ours[0] == 0).all()


def test_what_it_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match="rate to 15600"):
        LogMagnitude(AudioSpec(front="cola", rate=8000, mels=64))
    with pytest.raises(UserError, match="narrow"):
        LogMagnitude(AudioSpec(front="cola", mels=512))
    with pytest.raises(UserError, match="shorter than one 25 ms window"):
        LogMagnitude(SPEC)(torch.zeros(1, 300))


def test_every_encoder_can_have_this_front() -> None:
    wave = torch.from_numpy(recording(1))[None]
    for settings, spec in (
        (EncoderSettings(width=32, depth=1, heads=2), AudioSpec(front="cola", mels=64, frames=96)),
        (EncoderSettings(arch="resnet18"), SPEC),
        (EncoderSettings(arch="efficientnet_b0"), SPEC),
    ):
        encoder = build_encoder(spec, settings).eval()
        torch.testing.assert_close(encoder(0.1 * wave).pooled, encoder(wave).pooled, rtol=1e-3, atol=1e-3)

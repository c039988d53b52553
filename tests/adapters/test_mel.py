"""Claim: LogMelPower makes librosa's log-mel values, on real recordings at two rates, checked against transformers'
NumPy implementation of spectrogram and bands (the one behind WhisperFeatureExtractor)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmssl.adapters.mel import LogMelPower
from mmssl.adapters.specs import AudioSpec
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.errors import UserError

SAMPLES = sorted((Path(__file__).resolve().parents[2] / "datasets/samples/audio").rglob("*.ogg"))


@pytest.mark.parametrize(("rate", "mels"), [(16000, 80), (8000, 40)])
def test_equals_transformers(rate: int, mels: int) -> None:
    length, shift = round(0.025 * rate), round(0.010 * rate)
    spec = AudioSpec(rate=rate, front="mel", mels=mels, frames=98, mean=0.0, std=0.5)
    bands = mel_filter_bank(length // 2 + 1, mels, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    for file in SAMPLES[:3]:
        wave = soundfile.read(file, dtype="float32", always_2d=True)[0].mean(1)
        wave = np.resize(wave, rate + 37)
        raw = LogMelPower(spec)(torch.from_numpy(wave)[None])[0, 0, 0].numpy()
        assert raw.shape == (mels, 98)
        expected = spectrogram(
            wave[: spec.samples].astype(np.float64),
            window_function(length, "hann"),
            length,
            shift,
            power=2.0,
            center=False,
            mel_filters=bands,
            mel_floor=1e-10,
        )
        expected = np.log(expected)
        loud = expected > -18  # below, single precision rounds
        assert loud.mean() > 0.3
        np.testing.assert_allclose(raw[loud], expected[loud], rtol=0, atol=2e-3)


def test_a_vit_on_it_trains_and_is_saved_whole(tmp_path: Path) -> None:
    from mmssl import Encoder

    spec = AudioSpec(front="mel", mels=80, frames=96, mean=-9.0, std=4.0)
    encoder = build_encoder(spec, EncoderSettings(width=32, depth=1, heads=2)).eval()
    view = torch.randn(2, 9000) * 0.1  # shorter than the view: silence follows
    encoder.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(Encoder.from_pretrained(tmp_path).eval()(view).pooled, encoder(view).pooled)
    encoder(view).pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters() if parameter.requires_grad)


def test_what_cannot_be_made_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"--input.mels 128 makes bands so narrow"):
        LogMelPower(AudioSpec(rate=8000, front="mel", mels=128))
    with pytest.raises(UserError, match="300 samples is shorter"):
        LogMelPower(AudioSpec(front="mel", mels=80))(torch.zeros(1, 300))

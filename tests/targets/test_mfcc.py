"""Claim: the 39 values are those of fairseq's dump_mfcc_feature, which calls torchaudio recording by recording, on real
recordings, alone and in padded batches; and frames match those of HuBERT's convolutions for every length."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio.compliance import kaldi
from torchaudio.functional import compute_deltas

from mmssl.data.audio import resample
from mmssl.errors import UserError
from mmssl.targets.features import MfccFeatures
from mmssl.targets.mfcc import Mfcc

SAMPLES = Path(__file__).resolve().parents[2] / "datasets/samples/audio"


def recordings(count: int = 12) -> list[Tensor]:
    files = sorted(SAMPLES.rglob("*.ogg"))[:: len(list(SAMPLES.rglob("*.ogg"))) // count][:count]
    sounds = []
    for file in files:
        sound, rate = soundfile.read(file, dtype="float32", always_2d=True)
        sounds.append(resample(torch.from_numpy(sound.mean(1)), rate, 16000))
    return sounds


def published(sound: Tensor) -> Tensor:
    """What dump_mfcc_feature.py does with one recording: [N,39]."""
    cepstra = kaldi.mfcc(sound[None], sample_frequency=16000, use_energy=False).T
    deltas = compute_deltas(cepstra)
    return torch.cat([cepstra, deltas, compute_deltas(deltas)]).T


def test_each_recording_alone() -> None:
    mfcc = Mfcc()
    for sound in recordings():
        expected = published(sound)
        assert expected.std() > 1  # not silence
        torch.testing.assert_close(mfcc(sound[None])[0], expected, rtol=1e-4, atol=2e-3)


def test_a_padded_batch() -> None:
    sounds = [sound[: 16000 - 777 * number] for number, sound in enumerate(recordings())]
    sounds += [sounds[0][:length] for length in (400, 559, 560, 1040)]
    lengths = torch.tensor([len(sound) for sound in sounds])
    found = Mfcc()(pad_sequence(sounds, batch_first=True), lengths)
    for row, sound in zip(found, sounds, strict=True):
        expected = published(sound)
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-4, atol=2e-3)


def test_not_in_half_precision() -> None:
    sound = recordings(1)[0][None]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Mfcc()(sound), Mfcc()(sound.clone()))
        assert Mfcc()(sound).dtype == torch.float32


def test_frames_are_those_of_hubert() -> None:
    timing = MfccFeatures.timing
    assert timing is not None
    for samples in (0, 399, *range(400, 60_001), 250_000):
        frames = samples
        for kernel, stride in ((10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2):  # convolutions one after the other
            frames = max((frames - kernel) // stride + 1, 0)
        assert (timing.count(samples) + 1) // 2 == frames
        if timing.count(samples):
            assert timing.samples(timing.count(samples)) <= samples < timing.samples(timing.count(samples) + 1)
    assert (timing.count(16000), timing.count(400), timing.count(399)) == (98, 1, 0)
    for samples in (400, 559, 560, 16000):
        assert Mfcc()(torch.rand(1, samples)).shape[1] == timing.count(samples)


def test_shorter_than_a_window() -> None:
    with pytest.raises(UserError, match="399 samples is shorter than one window"):
        Mfcc()(torch.zeros(1, 399))

"""Claim: waveforms become frames as HuBERT counts them, for every length, and as Wav2Vec2FeatureExtractor and torch's
group norm normalise them; too short ones end in one sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close
from transformers.models.hubert.modeling_hubert import HubertPreTrainedModel

from mmssl.adapters.specs import AudioSpec, WaveformSpec
from mmssl.adapters.spectrogram import LogMel
from mmssl.adapters.waveform import Waveform, WaveformFrames, norm_over_real
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.errors import UserError
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import RandomMask

SPEC = WaveformSpec(channels=(8,) * 7)


def test_frames_of_every_length_are_those_of_hubert() -> None:
    lengths = torch.arange(400, 60001)
    spec = WaveformSpec()
    assert (spec.window, spec.hop) == (400, 320)
    expected = (lengths - 400) // 320 + 1
    assert torch.equal(spec.frames_of(lengths), expected)
    assert [spec.frames_of(length) for length in lengths.tolist()] == expected.tolist()
    counting = HubertPreTrainedModel(transformers.HubertConfig())
    assert torch.equal(counting._get_feat_extract_output_lengths(lengths), expected)  # type: ignore[arg-type]
    assert spec.frames_of(16000) == 49
    assert spec.frames_of(250000) == 781


@pytest.mark.parametrize("strides", [(5, 2, 2, 2, 2, 2, 2), (4, 3, 2, 1, 2, 2, 2)])
def test_the_convolutions_give_that_many(strides: tuple[int, ...]) -> None:
    adapter = WaveformFrames(replace(SPEC, strides=strides), 16).to("meta")
    spec = adapter.spec
    edges = [spec.window + k * spec.hop + d for k in (0, 1, 7, 150) for d in (-1, 0, 1)]
    for samples in [*(n for n in edges if n >= spec.window), 16000, 32000, 59999]:
        tokens = adapter(torch.empty(1, samples, device="meta"))
        assert tokens.x.shape == (1, spec.frames_of(samples), 16), samples
        assert tokens.grid == (1, 1, spec.frames_of(samples))
        assert tokens.features is not None
        assert tokens.features.shape == (1, spec.frames_of(samples), 8)
    assert adapter.grid == (1, 1, spec.frames_of(160000))


def test_recordings_are_normalised_as_wav2vec2_feature_extractor_does() -> None:
    generator = np.random.default_rng(0)
    waves = [generator.normal(0.2, 0.1 * k, 4000 * k).astype(np.float32) for k in (1, 3)] + [np.zeros(700, np.float32)]
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor(waves, sampling_rate=16000, padding=True, return_tensors="pt").input_values
    batch = nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True)
    front = Waveform(replace(SPEC, normalise=True))
    lengths = torch.tensor([len(wave) for wave in waves])
    assert_close(front.waveform(batch, lengths), expected, rtol=0, atol=1e-5)
    assert_close(front.waveform(batch[1:2]), expected[1:2], rtol=0, atol=1e-5)
    assert torch.equal(Waveform(SPEC).waveform(batch, lengths), batch)


def test_the_norm_over_time_leaves_padding_out() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 30, requires_grad=True)
    real = torch.arange(30) < torch.tensor([[30], [11]])
    mine = norm_over_real(x, real, norm)
    for number, length in enumerate((30, 11)):
        alone = norm(x[number : number + 1, :, :length])
        assert_close(mine[number : number + 1, :, :length], alone)
        given = torch.randn_like(alone)
        (expected,) = torch.autograd.grad((alone * given).sum(), x, retain_graph=True)
        (found,) = torch.autograd.grad((mine[number : number + 1, :, :length] * given).sum(), x, retain_graph=True)
        assert_close(found, expected)


def test_what_cannot_be_ends_in_one_sentence() -> None:
    adapter = WaveformFrames(SPEC, 16)
    with pytest.raises(UserError, match=r"399 samples is shorter than one frame .*shorter than 0.025 s"):
        adapter(torch.zeros(1, 399))
    assert adapter(torch.zeros(1, 400)).x.shape == (1, 1, 16)
    with pytest.raises(UserError, match="none can be left out"):
        adapter(torch.zeros(1, 4000), keep=torch.zeros(1, 1, dtype=torch.int64))
    settings = SpeechSettings(width=24, depth=1, heads=3, position_kernel=8, position_groups=4)
    with pytest.raises(UserError, match="overlap"):
        MaskedAutoencoder(SpeechEncoder(SPEC, settings), mask=RandomMask(0.5))


def test_pictures_of_waveforms_are_their_log_mel_values() -> None:
    wave = torch.randn(2, 8000) * 0.1
    front = Waveform(SPEC)
    picture = front.denormalise(front(wave))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(front.denormalise(front(wave)), picture, rtol=0, atol=0)
    assert_close(picture[:, 0, 0].transpose(1, 2), LogMel(AudioSpec(mels=80, frames=2000)).fbank(wave))

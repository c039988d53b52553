"""Claim: our speech encoder IS transformers' HubertModel and WavLMModel.

With random weights in transformers' own files, tokens, hidden states and gradients are equal, in the BASE and the LARGE
variant; padded recordings give what each gives alone; and sizes, weights at the start, layer drop and the gradient of
the convolutions are as stated.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from mmssl import Encoder
from mmssl.encoders.speech import SpeechEncoder, bucket, speech_preset
from mmssl.errors import UserError
from tests.encoders.speech import SETTINGS, SPEC, both, near, ours, read, sizes, theirs, waves

exact = partial(assert_close, rtol=1e-7, atol=1e-9)
"""In fp64: where a gradient is zero but for rounding, as that of the keys' biases, fp32 has nothing to compare."""


def spelt(name: str) -> str:
    """A parameter of ours as transformers has it in memory."""
    for old, new in {
        "adapter.": "",
        "position.weight_g": "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "position.weight_v": "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "position.bias": "encoder.pos_conv_embed.conv.bias",
        "relative.": "encoder.layers.0.attention.rel_attn_embed.",
        "blocks.": "encoder.layers.",
        "norm.": "encoder.layer_norm.",
    }.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise AssertionError(name)


@both
@sizes
def test_tokens_hidden_states_and_gradients_are_those_of_transformers(tmp_path: Path, arch: str, large: bool) -> None:
    model = theirs(arch, large)
    encoder = read(model, tmp_path).double()
    model.double()
    wave = torch.from_numpy(np.stack(waves(1.3, 1.3))).double()
    mine = encoder(wave, hidden=True)
    other = model(wave, output_hidden_states=True)
    exact(mine.tokens, other.last_hidden_state)
    exact(mine.pooled, other.last_hidden_state.mean(1))
    assert mine.grid == (1, 1, 64)
    assert mine.hidden is not None
    assert len(mine.hidden) == 4
    for state, expected in zip(mine.hidden, other.hidden_states, strict=True):
        exact(state, expected)

    weight = torch.randn(other.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
    (mine.tokens * weight).sum().backward()
    (other.last_hidden_state * weight).sum().backward()
    expected = dict(model.named_parameters())
    seen = set()
    for name, parameter in encoder.named_parameters():
        gradient = expected[spelt(name)].grad
        assert gradient is not None
        assert gradient.abs().max() > 0, name
        assert parameter.grad is not None
        exact(parameter.grad, gradient, msg=name)
        seen.add(spelt(name))
    assert seen == set(expected) - {"masked_spec_embed"}


@both
@sizes
def test_masked_frames_are_those_of_transformers(tmp_path: Path, arch: str, large: bool) -> None:
    model = theirs(arch, large)
    encoder = read(model, tmp_path)
    wave = torch.from_numpy(np.stack(waves(1.0, 1.0)))
    mask = torch.rand(2, 49, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = model(wave, mask_time_indices=mask).last_hidden_state
    tokens = encoder.tokenize(wave)
    near(encoder.encode(tokens, mask=mask).tokens, expected)
    near(encoder.encode(tokens, mask=mask, mask_token=model.get_parameter("masked_spec_embed")).tokens, expected)
    bare = encoder.encode(tokens).tokens
    assert bare is not None
    assert not torch.allclose(bare, expected, atol=0.1)


@both
@sizes
def test_padded_recordings_give_what_each_gives_alone(arch: str, large: bool) -> None:
    encoder = ours(arch, large)
    alone = waves(0.7, 1.3, 0.03)
    lengths = torch.tensor([len(wave) for wave in alone])
    batch = torch.zeros(3, 25000)
    for row, wave in zip(batch, alone, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
        row[len(wave) :] = 0.3  # what stands behind the end must not matter
    tokens = encoder.tokenize(batch, lengths=lengths)
    together = encoder.encode(tokens, hidden=True)
    assert tokens.padding is not None
    assert together.tokens is not None
    assert together.hidden is not None
    for number, wave in enumerate(alone):
        single = encoder(torch.from_numpy(wave)[None], hidden=True)
        frames = single.tokens.shape[1]
        assert int((~tokens.padding[number]).sum()) == frames == (len(wave) - 400) // 320 + 1
        near(together.pooled[number], single.pooled[0])
        near(together.tokens[number, :frames], single.tokens[0])
        for state, expected in zip(together.hidden, single.hidden, strict=True):
            near(state[number, :frames], expected[0])


@both
def test_padded_recordings_of_a_large_model_are_those_of_transformers(tmp_path: Path, arch: str) -> None:
    encoder = ours(arch, large=True)
    encoder.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    alone = waves(0.7, 1.3)
    given = extractor(alone, sampling_rate=16000, padding=True, return_tensors="pt")
    expected = model(**given).last_hidden_state
    batch = nn.utils.rnn.pad_sequence([torch.from_numpy(wave) for wave in alone], batch_first=True)
    lengths = torch.tensor([len(wave) for wave in alone])
    mine = encoder(batch, lengths=lengths)
    near(mine.tokens[0, :34], expected[0, :34])
    near(mine.tokens[1], expected[1])


def test_the_gradient_of_the_convolutions_alone_is_scaled() -> None:
    whole, tenth = ours("hubert", large=False), ours("hubert", large=False)
    tenth.adapter.gradient = 0.1
    whole.adapter.gradient = 1.0
    wave = torch.from_numpy(waves(0.5)[0])[None]
    for encoder in (whole, tenth):
        tokens = encoder.tokenize(wave)
        assert tokens.features is not None
        (encoder.encode(tokens).pooled.square().sum() + tokens.features.square().mean()).backward()
    for (name, one), other in zip(whole.named_parameters(), tenth.parameters(), strict=True):
        factor = 0.1 if "feature_extractor" in name else 1.0
        assert one.grad is not None
        assert_close(other.grad, one.grad * factor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layer_drop_leaves_blocks_out_and_every_weight_its_gradient(pre_norm: bool) -> None:
    torch.manual_seed(0)
    rates: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layer_drop": 0.5}
    encoder = SpeechEncoder(SPEC, replace(SETTINGS, depth=6, pre_norm=pre_norm, **rates))
    wave = torch.from_numpy(waves(0.5)[0])[None]
    left = 0
    for _ in range(40):
        states = encoder(wave, hidden=True).hidden
        left += sum(torch.equal(before, after) for before, after in pairwise(states))
    assert abs(left / 240 - 0.5) < 0.12  # 4 standard deviations
    encoder(wave).tokens.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    encoder.eval()
    states = encoder(wave, hidden=True).hidden
    assert not any(torch.equal(before, after) for before, after in pairwise(states))


def test_the_mask_token_is_learned_where_an_objective_asks(tmp_path: Path) -> None:
    encoder = ours("hubert", large=False)
    before = encoder.mask_token.clone()
    names = set(encoder.state_dict())
    token = encoder.learn_mask_token()
    assert set(encoder.state_dict()) == names
    assert dict(encoder.named_parameters())["mask_token"] is token
    with torch.no_grad():
        token.add_(1)
    encoder.save_pretrained(tmp_path)
    assert_close(transformers.AutoModel.from_pretrained(tmp_path).masked_spec_embed.detach(), before + 1)
    assert_close(Encoder.from_pretrained(tmp_path).get_buffer("mask_token"), before + 1)


def test_the_published_sizes_have_the_published_numbers_of_parameters() -> None:
    """transformers' HubertModel of the same settings, on the meta device."""
    for size, stated in {"base": 94.4e6, "large": 315.4e6, "xlarge": 962.5e6}.items():
        with torch.device("meta"):
            encoder = SpeechEncoder(*speech_preset(size))
            wave = torch.zeros(1, 16000)
            assert encoder(wave).pooled.shape == (1, encoder.width)
        count = sum(parameter.numel() for parameter in encoder.parameters())
        assert abs(count - stated) < 0.1e6
    with pytest.raises(UserError, match="no speech encoder of size 'tiny'"):
        speech_preset("tiny")


def test_buckets_of_distances_are_those_of_transformers() -> None:
    attention = transformers.models.wavlm.modeling_wavlm.WavLMAttention(24, 3)
    distance = torch.arange(-2000, 2001)
    assert torch.equal(bucket(distance, 320, 800), attention._relative_positions_bucket(distance))


def test_weights_start_as_stated() -> None:
    torch.manual_seed(0)
    settings = replace(SETTINGS, arch="wavlm", width=96, position_kernel=32)
    encoder = SpeechEncoder(replace(SPEC, channels=(64,) * 7), settings)
    state = encoder.state_dict()
    deviation = {
        "blocks.1.attention.q_proj.weight": 0.02,
        "blocks.2.feed_forward.output_dense.weight": 0.02,
        "relative.weight": 0.02,
        "adapter.feature_extractor.conv_layers.1.conv.weight": (2 / (64 * 3)) ** 0.5,
        "adapter.feature_projection.projection.weight": (1 / (3 * 64)) ** 0.5,
        "position.weight_v": (4 / (96 * 32)) ** 0.5,
    }
    for name, expected in deviation.items():
        assert abs(state[name].std() / expected - 1) < 0.05, name
    near(state["position.weight_g"], state["position.weight_v"].square().sum((0, 1), keepdim=True).sqrt())
    assert 0 <= state["mask_token"].min() < 0.1
    assert 0.9 < state["mask_token"].max() <= 1
    assert torch.equal(state["blocks.0.attention.gru_rel_pos_const"], torch.ones(1, 3, 1, 1))


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="25 is not a multiple of 3 heads"):
        SpeechEncoder(SPEC, replace(SETTINGS, width=25))
    with pytest.raises(UserError, match="27 is not a multiple of 4 position groups"):
        SpeechEncoder(SPEC, replace(SETTINGS, width=27))

"""Claim: speech encoders are read from transformers' files and written as such.

What we write loads by AutoModel with the same features, where mmssl cannot be imported, too, and comes back bit for
bit; heads, older names and a missing mask token do not hinder reading; a run goes on from a checkpoint; and what does
not fit is refused.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from mmssl import Encoder
from mmssl.adapters.specs import AudioSpec, WaveformSpec
from mmssl.encoders.build import EncoderSettings, build_encoder, build_speech
from mmssl.encoders.files import save_encoder
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.errors import UserError
from tests.encoders.speech import CONV, SETTINGS, SPEC, TRUNK, both, near, ours, read, sizes, theirs, waves

CLASSES = {"hubert": transformers.HubertModel, "wavlm": transformers.WavLMModel}
WITHOUT_MMSSL = """
import sys, torch
sys.modules["mmssl"] = None
import transformers
for folder in sys.argv[1:]:
    model, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    wave = torch.load(folder + "/wave.pt")
    given = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    torch.save(model.eval()(**given).last_hidden_state, folder + "/out.pt")
    print(type(model).__name__)
"""


def test_what_we_write_are_models_of_transformers(tmp_path: Path) -> None:
    made = {arch: ours(arch, large=arch == "wavlm") for arch in CLASSES}
    wave = torch.from_numpy(waves(1.1)[0])
    for arch, encoder in made.items():
        assert save_encoder(encoder, tmp_path / arch).reason is None
        torch.save(wave, tmp_path / arch / "wave.pt")
    command = [sys.executable, "-c", WITHOUT_MMSSL, *(str(tmp_path / arch) for arch in made)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split() == [kind.__name__ for kind in CLASSES.values()]
    for arch, encoder in made.items():
        near(torch.load(tmp_path / arch / "out.pt"), encoder(wave[None]).tokens)


@both
@sizes
def test_what_we_write_is_read_back_bit_for_bit(tmp_path: Path, arch: str, large: bool) -> None:
    encoder = ours(arch, large)
    save_encoder(encoder, tmp_path, card={"recipe": "audio/hubert"})
    assert "weight_g" in "".join(load_file(tmp_path / "model.safetensors"))
    again = Encoder.from_pretrained(tmp_path)
    assert isinstance(again, SpeechEncoder)
    assert (again.spec, again.settings) == (encoder.spec, encoder.settings)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    card = (tmp_path / "README.md").read_text()
    assert ("unit variance" in card) == large
    assert "at least 400 samples" in card


@pytest.mark.parametrize(
    ("arch", "head"),
    [("hubert", "ForCTC"), ("hubert", "ForSequenceClassification"), ("wavlm", "ForCTC"), ("wavlm", "ForXVector")],
)
def test_heads_and_older_names_do_not_hinder_reading(tmp_path: Path, arch: str, head: str) -> None:
    model = theirs(arch, large=False, head=head)
    encoder = read(model, tmp_path)
    wave = torch.from_numpy(waves(0.5)[0])[None]
    expected = getattr(model, arch)(wave).last_hidden_state
    near(encoder(wave).tokens, expected)

    weights = load_file(tmp_path / "model.safetensors")
    older = {
        name.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        ): tensor
        for name, tensor in weights.items()
        if not name.endswith("masked_spec_embed")
    }
    assert set(older) != set(weights)
    save_file(older, tmp_path / "model.safetensors")
    near(Encoder.from_pretrained(tmp_path)(wave).tokens, expected)


def test_a_checkpoint_goes_on_with_its_shape_and_the_recipes_rates(tmp_path: Path) -> None:
    encoder = ours("hubert", large=True)
    encoder.save_pretrained(tmp_path)
    wanted = SpeechSettings(dropout=0.3, layer_drop=0.4, feature_gradient=0.2)
    made = build_speech(WaveformSpec(), wanted, str(tmp_path))
    assert made.settings == replace(
        encoder.settings,
        dropout=0.3,
        attention_dropout=0.1,
        activation_dropout=0.0,
        input_dropout=0.1,
        layer_drop=0.4,
        feature_gradient=0.2,
    )
    assert torch.equal(made.mask_token, encoder.mask_token)
    assert {module.p for module in made.modules() if isinstance(module, nn.Dropout)} == {0.0, 0.1, 0.3}
    with pytest.raises(UserError, match="is a hubert, and this run trains a wavlm"):
        build_speech(WaveformSpec(), replace(wanted, arch="wavlm"), str(tmp_path))


def test_a_recipe_for_spectrograms_refuses_a_checkpoint_for_waveforms(tmp_path: Path) -> None:
    ours("hubert", large=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes waveforms, and this recipe trains on spectrograms"):
        build_encoder(AudioSpec(), EncoderSettings(), str(tmp_path))


@both
def test_features_projected_without_a_norm(tmp_path: Path, arch: Any) -> None:
    """DistilHuBERT has none; transformers' WavLMModel cannot."""
    torch.manual_seed(0)
    encoder = SpeechEncoder(SPEC, replace(SETTINGS, arch=arch, projection_norm=False)).eval()
    layout = save_encoder(encoder, tmp_path)
    wave = torch.from_numpy(waves(0.5)[0])[None]
    expected = encoder(wave).tokens
    near(Encoder.from_pretrained(tmp_path)(wave).tokens, expected)
    if arch == "hubert":
        near(transformers.AutoModel.from_pretrained(tmp_path).eval()(wave).last_hidden_state, expected)
    else:
        assert layout.reason is not None
        assert "a norm before the projection" in layout.reason


def test_what_transformers_can_have_and_we_cannot_is_refused(tmp_path: Path) -> None:
    config = transformers.HubertConfig(**CONV, **TRUNK, conv_pos_batch_norm=True)
    with pytest.raises(UserError, match="conv_pos_batch_norm"):
        read(transformers.HubertModel(config), tmp_path)

"""Claim: units of a layer of HuBERT and WavLM are the nearest codes of what transformers' own models give for each
recording alone, also in padded batches and in parts; their frames are those that training predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

from mmssl.data.audio import read_audio
from mmssl.data.sources import open_source
from mmssl.targets import reading
from mmssl.targets.make import run_kmeans
from mmssl.targets.settings import KmeansSettings
from mmssl.targets.tokenizer import load_tokenizer
from tests.targets.making import speech

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LAYER = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for number, file in enumerate(speech(8, skip=3)):
        sound, rate = soundfile.read(file, dtype="float32")
        soundfile.write(folder / f"{number}.wav", sound[: rate * (1 + number % 3)], rate)
    return folder


@pytest.mark.parametrize("kind", ["hubert", "wavlm", "hubert_large"])
def test_layer_as_transformers_gives_it(data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    if kind == "wavlm":
        theirs: torch.nn.Module = WavLMModel(WavLMConfig(**SIZES))
    else:
        large: dict[str, Any] = (
            {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if kind == "hubert_large" else {}
        )
        theirs = HubertModel(HubertConfig(**SIZES, **large))
    theirs.eval().save_pretrained(tmp_path / "model")  # type: ignore[operator]
    given: dict[str, Any] = {
        "features": "layer",
        "encoder": str(tmp_path / "model"),
        "layer": LAYER,
        "clusters": 8,
        "frames": 400,
    }
    fit: dict[str, Any] = {"batch_size": 100, "n_init": 1, "max_iter": 3, "workers": 0}
    units = run_kmeans(KmeansSettings(data=str(data), out=tmp_path / "units", **given, **fit))
    assert (units.hop, units.window, units.rate_in) == (320, 400, 16000)
    assert units.about["quality"]["codes"]["use"] > 3
    source, tokenizer = open_source(data, "audio"), load_tokenizer(units.folder)
    normalised = tokenizer.features.encoder.spec.normalise  # type: ignore[union-attr]
    labels = agreeing = 0
    for row in source.rows():
        sound = read_audio(source.media(row), 16000)
        expected = sound if not normalised else (sound - sound.mean()) / torch.sqrt(sound.var(correction=0) + 1e-7)
        with torch.no_grad():
            state = theirs(expected[None], output_hidden_states=True).hidden_states[LAYER][0]
        codes = torch.from_numpy(units.of(source.id(row)).copy()).long()
        assert len(codes) == len(state) == (len(sound) - 400) // 320 + 1
        nearest = torch.cdist(state.double(), tokenizer.centroids.double()).argmin(1)
        labels += len(codes)
        agreeing += int((nearest == codes).sum())
        assert (tokenizer(sound[None])[0] == codes).float().mean() > 0.99
    assert agreeing >= 0.995 * labels  # rounding between equally near codes
    assert labels > 300
    monkeypatch.setattr(reading, "PART_SECONDS", 0.5)  # the context covers all of these recordings
    cut = run_kmeans(KmeansSettings(data=str(data), out=tmp_path / "cut", codebook=units.folder, workers=0))
    pairs = [(cut.of(source.id(row)), units.of(source.id(row))) for row in source.rows()]
    assert all(len(a) == len(b) for a, b in pairs)
    assert sum((a != b).sum() for a, b in pairs) <= 0.005 * labels

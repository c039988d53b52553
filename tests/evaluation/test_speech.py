"""Claim: speech encoders go through the evaluations as every other encoder.

`mmssl embed` gives what transformers' extractor and model give for each file alone, whatever else is in its batch; a
recording of 0.1 s, of 8 kHz or in stereo is embedded, and one too short for a frame left out with one sentence; kNN and
linear probe tell two pitches apart; the clips of a long recording are averaged.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import torchaudio
import transformers

from mmssl.adapters.specs import WaveformSpec
from mmssl.cli import main
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.errors import UserError
from mmssl.evaluation.probes.attentive import AttentiveSettings
from mmssl.evaluation.probes.knn import KnnSettings
from mmssl.evaluation.probes.linear import LinearSettings
from mmssl.evaluation.subject import encoder_hash, untrained
from tests.evaluation.standins import write_tones
from tests.media import make_audio

SAMPLES = Path(__file__).parents[2] / "datasets" / "samples" / "audio"
SETTINGS = SpeechSettings(width=24, depth=2, heads=3, mlp_ratio=2, position_kernel=8, position_groups=4)
BASE = WaveformSpec(channels=(16,) * 7, seconds=1.0)
LARGE = WaveformSpec(channels=(16,) * 7, seconds=1.0, norm="layer", normalise=True)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def write_encoder(folder: Path, spec: WaveformSpec) -> SpeechEncoder:
    torch.manual_seed(0)
    encoder = SpeechEncoder(spec, SETTINGS)
    encoder.save_pretrained(folder)
    return encoder


@pytest.mark.parametrize("spec", [BASE, LARGE], ids=["base", "large"])
def test_embed_equals_processor_and_model_on_each_recording_alone(
    tmp_path: Path, spec: WaveformSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    write_encoder(tmp_path / "encoder", spec)
    seconds = (0.1, 0.4, 1.0, 1.7)
    for number, length in enumerate((*seconds, 0.02)):
        make_audio(tmp_path / "data" / f"{length}.wav", seconds=length, rate=16000, hertz=440.0, seed=number)
    files = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / 'features.parquet'}"
    main(["embed", *files.split(), "--workers", "0"])
    assert "0.02.wav: too short: 0.02 s, and 0.025 s are needed" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "features.parquet").to_pydict()
    assert sorted(table["id"]) == [f"{length}.wav" for length in seconds]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "encoder")
    model = transformers.AutoModel.from_pretrained(tmp_path / "encoder").eval()
    for name, ours in zip(table["id"], table["embedding"], strict=True):
        wave, rate = soundfile.read(tmp_path / "data" / name, dtype="float32")
        skipped = max(len(wave) - 16000, 0) // 2  # the middle second
        inputs = extractor(wave[skipped : skipped + 16000], sampling_rate=rate, return_tensors="pt")
        with torch.no_grad():
            theirs = model(**inputs).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(torch.tensor(ours), theirs, rtol=0, atol=2e-5)


def test_embed_of_telephone_prompts_equals_model_on_resampled_ones(tmp_path: Path) -> None:
    """Real recordings of 8 kHz, one of them made stereo, resampled by torchaudio for transformers."""
    write_encoder(tmp_path / "encoder", replace(LARGE, seconds=30.0))
    data = tmp_path / "data"
    data.mkdir()
    for number, file in enumerate(sorted(SAMPLES.rglob("*.ogg"))[:6]):
        wave, rate = soundfile.read(file, dtype="float32")
        wave = np.stack([wave, wave * 0.5], axis=1) if number == 3 else wave
        soundfile.write(data / f"{file.stem}.wav", wave, rate, subtype="FLOAT")
    files = f"--encoder {tmp_path / 'encoder'} --data {data} --out {tmp_path / 'features.parquet'}"
    main(["embed", *files.split(), "--workers", "0"])
    table = pq.read_table(tmp_path / "features.parquet").to_pydict()
    assert len(table["id"]) == 6
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "encoder")
    model = transformers.AutoModel.from_pretrained(tmp_path / "encoder").eval()
    for name, ours in zip(table["id"], table["embedding"], strict=True):
        wave, rate = soundfile.read(data / name, dtype="float32", always_2d=True)
        assert rate == 8000
        sound = torchaudio.functional.resample(torch.from_numpy(wave.mean(1)), rate, 16000)
        with torch.no_grad():
            theirs = model(**extractor(sound.numpy(), sampling_rate=16000, return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(torch.tensor(ours), theirs.mean(1)[0], rtol=0, atol=1e-4)


def test_clips_of_a_long_recording_are_averaged(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", BASE).eval()
    make_audio(tmp_path / "data" / "long.wav", seconds=4, rate=16000, hertz=300.0, seed=0)
    make_audio(tmp_path / "data" / "short.wav", seconds=0.3, rate=16000, hertz=300.0, seed=1)
    files = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / 'features.parquet'}"
    main(["embed", *files.split(), "--workers", "0", "--clips", "2"])
    table = pq.read_table(tmp_path / "features.parquet").to_pydict()
    for name, ours in zip(table["id"], table["embedding"], strict=True):
        wave = torch.from_numpy(soundfile.read(tmp_path / "data" / name, dtype="float32")[0])[None]
        parts = [wave[:, start : start + 16000] for start in ((12000, 36000) if name == "long.wav" else (0,))]
        with torch.no_grad():
            expected = torch.cat([encoder(part).pooled for part in parts]).mean(0)
        torch.testing.assert_close(torch.tensor(ours), expected, rtol=0, atol=2e-5)


def test_probes_tell_two_pitches_apart(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder", BASE)
    write_tones(tmp_path / "tones")
    common: dict[str, Any] = {"encoder": str(tmp_path / "encoder"), "data": str(tmp_path / "tones"), "workers": 0}
    knn = KnnSettings(**common, out=tmp_path / "knn.json", neighbours=(1,), k=1, shuffle_labels=True).run()
    assert knn["trained"]["top1"] == 1.0
    assert knn["encoder"]["class"] == "SpeechEncoder"
    assert knn["encoder"]["settings"]["arch"] == "hubert"
    linear = LinearSettings(**common, out=tmp_path / "linear.json", epochs=2).run()
    assert linear["trained"]["top1"] == 1.0
    with pytest.raises(UserError, match="gives as many as the recording is long"):
        AttentiveSettings(**common, out=tmp_path / "attentive.json").run()


def test_the_untrained_twin_is_a_build_at_that_seed(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", LARGE)
    twin = untrained(encoder, 0)
    assert encoder_hash(twin) == encoder_hash(encoder.eval())
    assert encoder_hash(untrained(encoder, 1)) != encoder_hash(encoder)
    wave = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 8000)).astype(np.float32))
    assert torch.equal(twin(wave).pooled, encoder(wave).pooled)

"""A recording shorter than a view gives the same features by every road: `mmssl embed` from the file, and transformers'
extractor and model from the same file in an encoder folder that mmssl wrote."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import soundfile
import torch
import transformers

from mmssl.adapters.specs import AudioSpec
from mmssl.cli import main
from mmssl.encoders.build import EncoderSettings, build_encoder
from tests.media import make_audio


def test_embed_equals_processor_and_model_on_short_and_long_recordings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = AudioSpec(mels=32, frames=64, patch=8, stride=8)
    small = EncoderSettings(width=32, depth=2, heads=2, prefix=2, pooling="mean")
    build_encoder(spec, small, None).save_pretrained(tmp_path / "encoder")
    for seconds in (0.2, 0.401, 0.655):  # spec.samples is 0.655 s
        make_audio(tmp_path / "data" / f"{seconds}.wav", seconds=seconds, rate=16000, hertz=440.0, seed=1)
    files = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / 'features.parquet'}"
    main(["embed", *files.split(), "--workers", "0"])
    table = pq.read_table(tmp_path / "features.parquet").to_pydict()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "encoder")
    model = transformers.AutoModel.from_pretrained(tmp_path / "encoder").eval()
    assert len(table["id"]) == 3
    for name, ours in zip(table["id"], table["embedding"], strict=True):
        wave, rate = soundfile.read(tmp_path / "data" / name, dtype="float32")
        inputs = extractor(wave, sampling_rate=rate, return_tensors="pt").input_values
        with torch.no_grad():
            theirs = model(inputs).last_hidden_state[:, 2:].mean(1)[0]
        torch.testing.assert_close(torch.tensor(ours), theirs, rtol=0, atol=2e-5)

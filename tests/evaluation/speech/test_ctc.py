"""Claims: the loss is torch's CTC over each transcript's length; a recogniser of tone sequences learns to spell them,
frozen and fine-tuned; what fine-tuning writes is transformers' HubertForCTC or WavLMForCTC with a processor, of equal
logits and transcripts; training sees each recording once an epoch. Real sound files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from transformers import AutoModelForCTC, AutoProcessor

from mmssl import cli
from mmssl.adapters.specs import AudioSpec, WaveformSpec
from mmssl.data.sources import open_source
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.errors import UserError
from mmssl.evaluation.frame import with_twins
from mmssl.evaluation.speech.ctc import CtcSettings, commonest, examine, recognise, show
from mmssl.evaluation.speech.ctc_decoding import error_rates
from mmssl.evaluation.speech.ctc_model import FrozenCTC, TunedCTC, ctc_loss
from mmssl.evaluation.speech.ctc_training import gather, pace, training_rows
from mmssl.evaluation.speech.transcripts import Vocabulary
from mmssl.report.reading import read_evaluations

pytest.importorskip("jiwer")
PITCH = {"a": 300.0, "b": 800.0, "c": 2000.0, "d": 4500.0}


def speech(arch: str = "hubert", **more: object) -> SpeechEncoder:
    torch.manual_seed(0)
    small: dict = {"width": 48, "depth": 1, "heads": 2, "mlp_ratio": 2.0, "position_groups": 2}
    settings = SpeechSettings(arch=arch, **small, **more)  # type: ignore[arg-type]
    return SpeechEncoder(WaveformSpec(seconds=1.0, channels=(24,) * 7), settings).eval()


def write_spelled(root: Path, count: int = 40) -> Path:
    """Recordings of 2 to 4 tones of 0.12 s with pauses, and what they spell in metadata.csv."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    lines = ["file_name,text"]
    for number in range(count):
        text = "".join(rng.choice(list(PITCH), rng.integers(2, 5)))
        parts = [np.zeros(800)]
        for char in text:
            time = np.arange(1920) / 16000
            parts += [0.4 * np.sin(2 * np.pi * PITCH[char] * time + rng.uniform(0, 6)), np.zeros(960)]
        wave = np.concatenate(parts) + rng.normal(0, 0.003, sum(map(len, parts)))
        soundfile.write(root / f"{number:02d}.wav", wave, 16000)
        lines.append(f"{number:02d}.wav,{text}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def given(tmp_path: Path, **more: object) -> CtcSettings:
    values: dict = {"encoder": "x", "data": str(tmp_path / "data"), "out": tmp_path / "c.json", "workers": 0}
    return CtcSettings(**(values | {"batch_size": 8, "beam": 4} | more))


def test_loss_is_torchs_over_each_length() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 9, 5)
    frames, sizes = torch.tensor([9, 7, 2]), torch.tensor([3, 2, 4])
    targets = torch.tensor([[1, 2, 2, 0], [3, 4, 0, 0], [1, 2, 3, 4]])  # the last has more symbols than frames
    found = ctc_loss(logits, frames, targets, sizes)
    for head in range(2):
        losses = []
        for row in range(2):
            log_probs = logits[head, row, : frames[row]].log_softmax(-1)[:, None]
            own = slice(row, row + 1)
            losses.append(F.ctc_loss(log_probs, targets[own, : sizes[row]], frames[own], sizes[own]))
        assert found[head].item() == pytest.approx(float(sum(losses) / 3), rel=1e-5)


def test_frozen_heads_learn_and_the_better_rate_is_taken(tmp_path: Path) -> None:
    source = open_source(write_spelled(tmp_path / "data", 100), "audio")
    result = recognise(with_twins(speech(), 0, 1), source, given(tmp_path, rates=(1e-5, 3e-2), steps=60))
    trained = result["trained"]
    assert trained["rate"] == 3e-2, "1e-5 learns nothing"
    assert trained["validation"][1]["validation_cer"] < trained["validation"][0]["validation_cer"]
    assert trained["cer_interval"][0] <= trained["cer"] <= trained["cer_interval"][1]
    assert result["data"]["files"] == {"train": 72, "validation": 8, "test": 20}
    assert trained["examples"][0]["said"]
    assert sum(trained["layer_shares"]) == pytest.approx(1)
    assert set(result["difference"]) == {"wer", "wer_interval", "cer", "cer_interval"}


def fine_tuned(tmp_path: Path, count: int, **more: object) -> tuple[dict, float]:
    """Figures of one encoder, and the character error rate of the most frequent transcript."""
    settings = given(tmp_path, tune=True, rates=(3e-3,), **more)
    encoder = speech(dropout=0.0, attention_dropout=0.0, input_dropout=0.0, layer_drop=0.0)
    data = gather(encoder.spec, open_source(write_spelled(tmp_path / "data", count), "audio"), settings)  # type: ignore[arg-type]
    figures, _ = examine(encoder, data, settings, save=True)
    texts = [data.texts[int(row)] for row in data.test]
    return figures, error_rates(texts, [commonest(texts)] * len(texts), 0).cer


def test_fine_tuning_writes_a_model(tmp_path: Path) -> None:
    figures, _ = fine_tuned(tmp_path, 20, steps=2)
    assert figures["model"] == str(tmp_path / "c")
    assert type(AutoModelForCTC.from_pretrained(tmp_path / "c")).__name__ == "HubertForCTC"
    again, _ = fine_tuned(tmp_path / "again", 20, steps=2)
    assert again["cer"] == figures["cer"]


def test_what_cannot_be_read_is_told_and_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(write_spelled(tmp_path / "data", 40), "audio")
    settings = given(tmp_path, rates=(1e-2,), steps=2)
    test = gather(speech().spec, source, settings).test  # type: ignore[arg-type]
    name = source.id(int(test[0]))
    (tmp_path / "data" / name).write_bytes(b"no sound")
    result = recognise([speech()], source, settings)
    assert [[id, name in reason] for id, reason in result["trained"]["skipped"]] == [[name, True]]
    show(result | {"untrained": result["trained"]})
    assert (
        f"note: 1 test recording(s) could not be read and count as unheard, such as {name}" in capsys.readouterr().out
    )
    for row in test:
        (tmp_path / "data" / source.id(int(row))).write_bytes(b"no sound")
    with pytest.raises(UserError, match="files could not be read, more than"):
        recognise([speech()], source, settings)


@pytest.mark.heavy
def test_fine_tuning_learns_to_spell_tones(tmp_path: Path) -> None:
    figures, chance = fine_tuned(tmp_path, 150, steps=300)
    assert figures["cer"] < 0.5 * chance
    assert figures["cer"] <= figures["greedy"]["cer"] + 0.02
    # Frozen, that encoder's layers spell better than those of an untrained one.
    encoder, source = Encoder.from_pretrained(tmp_path / "c"), open_source(tmp_path / "data", "audio")
    result = recognise(with_twins(encoder, 0, 1), source, given(tmp_path, rates=(3e-2, 1e-2), steps=150))
    assert result["trained"]["cer"] < 0.5 * result["untrained"]["cer"]
    assert result["difference"]["cer_interval"][1] < 0


@pytest.mark.parametrize("arch", ["hubert", "wavlm"])
def test_a_tuned_model_is_transformers(arch: str, tmp_path: Path) -> None:
    words = Vocabulary.of(["ab ba"])
    model = TunedCTC(speech(arch), len(words)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    model.save_pretrained(tmp_path, words, {"data": "x"})
    theirs, info = AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == {"hubert": "HubertForCTC", "wavlm": "WavLMForCTC"}[arch]
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    wave = torch.randn(1, 12000)
    with torch.no_grad():
        expected = theirs.eval()(wave).logits
        found = model(wave, torch.tensor([12000]))[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    processor = AutoProcessor.from_pretrained(tmp_path)
    numbers = words.encode("ab ba")
    assert processor.decode([n for number in numbers for n in (number, number, 0)]) == "ab ba"
    again = Encoder.from_pretrained(tmp_path)
    assert isinstance(again, SpeechEncoder)
    torch.testing.assert_close(again(wave).pooled, model.encoder(wave).pooled)


def test_heads_see_frozen_states_and_convolutions_stay() -> None:
    frozen = FrozenCTC(speech(dropout=0.5), 5, 2).train()
    assert not frozen.encoder.training
    logits = frozen(torch.randn(2, 8000), torch.tensor([8000, 8000]))
    assert logits.shape == (2, 2, 24, 5)
    logits.sum().backward()
    assert all(p.grad is None for p in frozen.encoder.parameters())
    assert all(share.grad is not None for share in frozen.shares)
    tuned = TunedCTC(speech(), 5)
    assert not any(p.requires_grad for p in tuned.encoder.adapter.feature_extractor.parameters())
    assert any(p.requires_grad for p in tuned.encoder.blocks.parameters())


def test_an_epoch_sees_every_recording_once_in_batches_of_similar_length(tmp_path: Path) -> None:
    source = open_source(write_spelled(tmp_path / "data", 40), "audio")
    settings = given(tmp_path, steps=14, batch_size=4)
    data = gather(speech().spec, source, settings)  # type: ignore[arg-type]
    rows = training_rows(data, settings)
    assert len(rows) == 14 * 4
    assert sorted(rows[:28]) == sorted(data.train)
    assert sorted(rows[28:]) == sorted(data.train)
    length = np.array([source.media(int(row)).record.duration for row in rows]).reshape(14, 4)
    assert np.ptp(length, axis=1).mean() < 0.5 * np.ptp(length)
    assert not set(data.train) & set(data.test)
    assert [round(pace(step, 100), 3) for step in (0, 9, 30, 50, 75, 99)] == [0.1, 1, 1, 1, 0.5, 0.02]


def test_command_and_what_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_spelled(tmp_path / "data", 12)
    speech().save_pretrained(tmp_path / "encoder")
    options = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / 'c.json'} --workers 0"
    cli.main(["evaluate", "ctc", *options.split(), "--steps", "2", "--rates", "0.01"])
    assert "of characters (lr 0.01)" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text())["chance"]["wer"] > 0
    (read,) = read_evaluations(tmp_path)
    assert [one.measure for one in read.results] == ["WER", "CER"]
    vit = build_encoder(AudioSpec(mels=16, frames=64, patch=8, stride=8), EncoderSettings(width=16, depth=1, heads=2))
    source = open_source(tmp_path / "data", "audio")
    with pytest.raises(UserError, match="HuBERT or WavLM encoder"):
        recognise([vit], source, given(tmp_path))
    with pytest.raises(UserError, match="give --tune, too"):
        given(tmp_path, model=tmp_path / "m").check()
    for out in (tmp_path / "bare", tmp_path / "c.json.json"):
        with pytest.raises(UserError, match=r"which is a file: give --out FILE\.json, or --model"):
            given(tmp_path, tune=True, out=out).check()
    with pytest.raises(UserError, match="for choosing the rate"):
        gather(speech().spec, source, given(tmp_path, max_seconds=0.3))  # type: ignore[arg-type]

"""Claims: heads on a weighted sum of layers train as torch's Adam trains each alone, find the layer that holds the
label, and choose their learning rate on training files; states are those of transformers' model; frames get the unit of
their own moment; the command writes figures of every layer and a picture. Real sound files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from transformers import AutoModel

from mmssl import cli
from mmssl.adapters.specs import AudioSpec, WaveformSpec
from mmssl.data.media import Record
from mmssl.data.sources import open_source
from mmssl.encoders.build import EncoderSettings, build_encoder
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.errors import UserError
from mmssl.evaluation.layer_states import Frames, collect_states, frame_middles
from mmssl.evaluation.probes import layer_heads
from mmssl.evaluation.probes.layer_chart import layer_chart
from mmssl.evaluation.probes.layer_heads import layer_probe, train_heads
from mmssl.evaluation.probes.layers import LayersSettings
from mmssl.evaluation.reading import Files
from mmssl.evaluation.views import evaluation_views
from mmssl.report.reading import read_evaluations
from mmssl.targets.quality import Segments
from mmssl.targets.units import Units
from tests.evaluation.standins import write_tones

SPECTROGRAM = AudioSpec(mels=16, frames=64, patch=8, stride=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "cache"))


def test_heads_in_parallel_are_torchs_adam_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_heads, "LEAST_STEPS", 25)
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, 6), torch.randint(0, 4, (40,))
    rates = (0.1, 0.003)
    mix, weight, bias = train_heads(x, y, classes=4, rates=torch.tensor(rates), epochs=1, batch=40, seed=0)
    for head, rate in enumerate(rates):
        shares, layer = torch.nn.Parameter(torch.zeros(3)), torch.nn.Linear(6, 4)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.Adam([shares, *layer.parameters()], lr=rate)
        for step in range(25):
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / 25))
            mixed = sum(share * x[:, number] for number, share in enumerate(shares.softmax(0)))
            optimizer.zero_grad()
            F.cross_entropy(layer(mixed), y).backward()
            optimizer.step()
        torch.testing.assert_close(mix[head], shares.softmax(0).detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(weight[head].T, layer.weight.data, rtol=1e-2, atol=2e-4)
        torch.testing.assert_close(bias[head], layer.bias.data, rtol=1e-2, atol=2e-4)


def test_the_layer_that_holds_the_label_gets_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_heads, "LEAST_STEPS", 150)
    torch.manual_seed(0)
    y = torch.randint(0, 3, (300,))
    x = torch.randn(300, 4, 8)
    x[:, 2] += 2.0 * F.one_hot(y, 8)
    options: dict = {"classes": 3, "rates": (1e-1, 1e-2, 1e-4), "epochs": 1, "batch": 100, "seed": 0}
    probe = layer_probe(x[:200], y[:200], groups=np.arange(200), **options)
    assert probe.mix.argmax().item() == 2
    assert probe.mix[2] > 0.5
    assert (probe.predict(x[200:]) == y[200:]).float().mean() > 0.7
    assert [trial.rate for trial in probe.trials] == [1e-1, 1e-2, 1e-4]
    assert probe.rate == max(probe.trials, key=lambda t: (t.validation_top1, -t.validation_loss)).rate
    other = layer_probe(x[:200, :1], y[:200], groups=np.arange(200), **options)
    assert (other.predict(x[200:, :1]) == y[200:]).float().mean() < 0.55
    shuffled = y[:200][torch.randperm(200)]
    control = layer_probe(x[:200], shuffled, groups=np.arange(200), **options)
    assert (control.predict(x[200:]) == y[200:]).float().mean() < 0.5
    with pytest.raises(UserError, match="cannot be split"):
        layer_probe(x[:2], torch.tensor([0, 1]), groups=np.arange(2), **options)


def speech(norm: str = "group") -> SpeechEncoder:
    torch.manual_seed(0)
    spec = WaveformSpec(seconds=0.8, channels=(16,) * 7, norm=norm)  # type: ignore[arg-type]
    return SpeechEncoder(spec, SpeechSettings(width=32, depth=3, heads=2, mlp_ratio=2.0, position_groups=2)).eval()


def test_states_are_those_of_transformers_and_leave_padding_out(tmp_path: Path) -> None:
    write_tones(tmp_path / "data", per_class=2)
    short = sorted((tmp_path / "data").rglob("*.wav"))[0]
    wave, rate = soundfile.read(short)
    soundfile.write(short, wave[:7000], rate)
    encoder = speech()
    encoder.save_pretrained(tmp_path / "encoder")
    model = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    source = open_source(tmp_path / "data", "audio")
    files = Files(source, evaluation_views(encoder.spec), source.rows(None), 0)
    (found,) = collect_states([encoder], files, batch_size=4, workers=0, device=torch.device("cpu"), cache=None)
    assert found.x.shape == (4, 4, 32)
    for x, row in zip(found.x, found.rows, strict=True):
        wave, _ = soundfile.read(tmp_path / "data" / source.id(int(row)), dtype="float32")
        start = max(len(wave) - 12800, 0) // 2
        with torch.no_grad():
            states = model(torch.from_numpy(wave[None, start : start + 12800]), output_hidden_states=True).hidden_states
        expected = torch.stack(states).mean(2)[:, 0].numpy()
        np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4)


class Ramp(Units):
    """Units whose label tells the moment: label n of a recording is n."""

    def __init__(self) -> None:
        super().__init__(Path("units"), {"codes": 1000, "hop": 160, "window": 400, "rate": 16000, "sha256": "ramp"})

    def of(self, name: str) -> np.ndarray:
        return np.arange(200, dtype=np.int16)

    def __contains__(self, name: str) -> bool:
        return name != "missing"


def test_frames_get_the_unit_of_their_own_moment() -> None:
    units = Ramp()
    record = Record("a.wav", "audio", "a.wav", frames=32400, rate=16000.0)  # 2.025 s: 201 labels of 10 ms
    encoder = speech()
    frames = Frames(units, 1000)
    numbers, codes = frames.of(encoder, record, "a.wav", 12800, 0)
    start = (32400 - 12800) // 2
    # Frame k covers samples start + 320 k ... + 400, label n samples 160 n ... + 400.
    exact = (start + 320 * numbers) / 160
    assert len(numbers) == encoder.spec.frames_of(12800) == 39  # type: ignore[union-attr]
    assert np.abs(codes - exact).max() <= 0.5
    few, _ = Frames(units, 7).of(encoder, record, "a.wav", 12800, 0)
    assert len(few) == len(np.unique(few)) == 7
    some, _ = frames.of(encoder, record, "a.wav", 6400, 0)
    assert some.max() == (6400 - 400) // 320, "whole frames only"
    # Spectrogram patches of 8 frames of 10 ms, the middle of the first at (7 x 10 + 25) / 2 ms.
    vit = build_encoder(SPECTROGRAM, EncoderSettings(width=16, depth=1, heads=2))
    np.testing.assert_allclose(frame_middles(vit)[:2], [760, 760 + 1280])
    numbers, codes = frames.of(vit, record, "a.wav", SPECTROGRAM.samples, 0)
    start = (32400 - SPECTROGRAM.samples) // 2
    np.testing.assert_allclose(codes * 160 + 200, start + 760 + 1280 * numbers, atol=80)


def test_frames_get_the_label_of_their_own_moment(tmp_path: Path) -> None:
    """Labels of a table: 'b' from second 0.9 to 1.1, 'a' before it, none behind it; none of another recording."""
    (tmp_path / "phones.csv").write_text("id,start,end,label\na.wav,0,0.9,a\na.wav,0.9,1.1,b\n")
    table = Segments(tmp_path / "phones.csv")
    record = Record("a.wav", "audio", "a.wav", frames=32400, rate=16000.0)
    encoder = speech()
    numbers, codes = Frames(table, 1000).of(encoder, record, "a.wav", 12800, 0)
    middles = ((32400 - 12800) // 2 + 320 * np.arange(39) + 200) / 16000
    assert numbers.tolist() == np.flatnonzero(middles < 1.1).tolist()
    assert 10 < len(numbers) < 39
    assert codes.tolist() == (middles[numbers] >= 0.9).astype(int).tolist()
    assert [len(part) for part in Frames(table, 1000).of(encoder, record, "b.wav", 12800, 0)] == [0, 0]


def test_command_tells_labelled_frames_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layer_heads, "LEAST_STEPS", 60)
    rng, lines = np.random.default_rng(0), ["id,start,end,label"]
    (tmp_path / "data").mkdir()
    for number in range(10):  # a low and a high tone, one after the other; the last recording has no labels
        time = np.arange(6400) / 16000
        tones = [0.3 * np.sin(2 * np.pi * hertz * time) for hertz in (300, 3000)]
        soundfile.write(tmp_path / f"data/{number}.wav", np.concatenate(tones) + rng.normal(0, 0.01, 12800), 16000)
        lines += [f"{number}.wav,0,0.4,low", f"{number}.wav,0.4,0.8,high"] if number < 9 else []
    (tmp_path / "phones.csv").write_text("\n".join(lines))
    speech().save_pretrained(tmp_path / "encoder")
    options = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / 'a.json'} --workers 0"
    command = ["evaluate", "layers", *options.split(), "--epochs", "1", "--frame-labels", str(tmp_path / "phones.csv")]
    cli.main(command)
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["evaluation"] == "layers (frames)"
    assert result["trained"]["top1"] > 0.9 > 0.6 > result["chance"]["majority"]
    capsys.readouterr()
    for table, said in (
        ("id,start,end,label\nother.wav,0,1,low\nother.wav,1,2,high", "its column id must hold the ids of the data"),
        ("id,start,end,label\n0.wav,0,1,low", "There is one label of frames, low"),
    ):
        (tmp_path / "phones.csv").write_text(table)
        with pytest.raises(SystemExit):
            cli.main(command)
        assert said in capsys.readouterr().err


def test_command_writes_every_layer_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layer_heads, "LEAST_STEPS", 30)
    write_tones(tmp_path / "data", per_class=6)
    torch.manual_seed(0)
    vit = build_encoder(SPECTROGRAM, EncoderSettings(width=16, depth=2, heads=2, prefix=2))
    vit.save_pretrained(tmp_path / "encoder")
    options = f"--encoder {tmp_path / 'encoder'} --data {tmp_path / 'data'} --out {tmp_path / 'a.json'} --workers 0"
    cli.main(["evaluate", "layers", *options.split(), "--epochs", "1", "--shuffle-labels"])
    result = json.loads((tmp_path / "a.json").read_text())
    assert [row["layer"] for row in result["layers"]["trained"][0]] == [0, 1, 2]
    assert len(result["layers"]["untrained"]) == 1
    assert sum(result["trained"]["layer_shares"]) == pytest.approx(1)
    assert len(result["trained"]["validation"]) == 4
    assert result["chance"]["majority"] == 0.5
    picture = ElementTree.parse(tmp_path / "a.svg").getroot()
    dots = [one for one in picture.iter() if one.tag.endswith("circle")]
    assert len(dots) == 6
    (read,) = read_evaluations(tmp_path)
    assert [one.evaluation for one in read.results] == ["layers", "layers"]
    capsys.readouterr()
    build_encoder(SPECTROGRAM, EncoderSettings(arch="resnet18")).save_pretrained(tmp_path / "conv")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "layers", *options.replace(str(tmp_path / "encoder"), str(tmp_path / "conv")).split()])
    assert "layers have one width" in capsys.readouterr().err


def test_kept_states_are_used_again_and_belong_to_their_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tones(tmp_path / "data", per_class=2)
    source = open_source(tmp_path / "data", "audio")
    encoder = speech()
    files = Files(source, evaluation_views(encoder.spec), source.rows(None), 0)
    units = Ramp()
    frames = Frames(units, 5)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    options: dict = {"batch_size": 3, "workers": 0, "device": cpu, "cache": tmp_path / "kept"}
    (first,) = collect_states([encoder], files, frames=frames, **options)
    assert first.x.shape == (20, 4, 32)
    assert (np.bincount(first.rows) == 5).all()
    (again,) = collect_states([encoder], files, frames=frames, **options)
    np.testing.assert_array_equal(first.x, again.x)
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 1
    (whole,) = collect_states([encoder], files, **options)
    assert len(whole.x) == 4
    assert (whole.codes == -1).all()


def test_the_picture_shows_shares_at_their_height() -> None:
    root = ElementTree.fromstring(layer_chart("a & b", [("one", [0.0, 0.5, 1.0])], [("chance", 0.25)]))
    heights = [float(one.attrib["cy"]) for one in root.iter() if one.tag.endswith("circle")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[0] > heights[2]
    (dashed,) = [one for one in root.iter() if "stroke-dasharray" in one.attrib]
    assert float(dashed.attrib["y1"]) == pytest.approx(heights[0] - (heights[0] - heights[2]) / 4, abs=0.2)


def test_settings_that_make_no_probe_are_refused(tmp_path: Path) -> None:
    given: dict = {"encoder": "a", "data": "b", "out": tmp_path / "c.json"}
    for more, message in (({"rates": ()}, "--rates"), ({"clips": 2}, "--clips"), ({"frames": 0}, "--frames")):
        with pytest.raises(UserError, match=message):
            LayersSettings(**given, **more).check()
    with pytest.raises(UserError, match="both tell frames apart"):
        LayersSettings(**given, units=tmp_path, frame_labels=tmp_path).check()

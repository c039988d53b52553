"""HuBERT and WavLM, as the command line runs them on real files: one command makes both iterations and goes on in the
stage where it was stopped; one iteration alone runs on units that stand; transformers loads what they write, and gives
the same features; two processes do what one does; and what does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, HubertModel, WavLMModel

import mmssl.targets.make as making
from mmssl.cli import main
from mmssl.data.audio import read_audio
from mmssl.data.mixing import Mixing, NoisyCrops
from mmssl.data.sources import open_source
from mmssl.encoders.base import Encoder
from mmssl.encoders.speech import SpeechEncoder
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.targets.codebook import Codebook
from mmssl.targets.units import Units
from mmssl.training.recipe import load_recipe
from tests.media import make_audio
from tests.runs import metrics, options, pretrain, side_by_side, trace

RUN = ("--steps", "4", "--save-every", "1", "--base-lr", "0.003")
STEPS = (*RUN, "--clusters", "8", "12")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve recordings of two classes, of 0.8 to 1.4 s; one at 8 kHz, one in stereo."""
    folder = tmp_path_factory.mktemp("speech")
    for number in range(12):
        kind = {3: {"rate": 8000}, 4: {"channels": 2}}.get(number, {})
        place = folder / f"class{number % 2}" / f"{number}.wav"
        make_audio(place, seconds=0.8 + 0.2 * (number % 4), hertz=200.0 + 40 * number, seed=number, **kind)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both iterations of HuBERT."""
    out = tmp_path_factory.mktemp("hubert") / "run"
    pretrain("audio/hubert", data, out, *STEPS, "--probe-every", "2")
    return out


def test_both_iterations(whole: Path, data: Path) -> None:
    first, second = whole / "iteration-1", whole / "iteration-2"
    assert [len(metrics(out)) for out in (first, second)] == [2, 4], "250,000 of 400,000 steps, rounded"
    for out in (first, second):
        assert all(np.isfinite(line["loss"]) for line in metrics(out))
        assert all(line["skipped_files"] == line["skipped_steps"] == 0 for line in metrics(out))
        assert (out / "report.html").stat().st_size > 10_000
        assert list((out / "pictures").glob("*prediction*.png"))
    one, two = Units.open(first / "units"), Units.open(second / "units")
    assert (one.codes, one.hop, one.about["features"]["kind"]) == (8, 160, "mfcc")
    assert (two.codes, two.hop, two.about["features"]["layer"]) == (12, 320, 1)
    assert two.about["encoder"] == str(first / "encoder")
    assert json.loads((second / "recipe.json").read_text())["settings"]["units"] == str(second / "units")
    kept = Codebook.load(second / "encoder/units.safetensors")
    assert kept.sha256 == two.about["codebook"], "the codebook travels with the encoder"
    weights = [Encoder.from_pretrained(out / "encoder").state_dict() for out in (first, second)]
    assert not torch.equal(
        weights[0]["blocks.0.attention.q_proj.weight"], weights[1]["blocks.0.attention.q_proj.weight"]
    )


def test_transformers_gives_the_same_features(whole: Path, data: Path) -> None:
    folder = whole / "iteration-2/encoder"
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, HubertModel)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = Encoder.from_pretrained(folder).eval()
    source = open_source(str(data), "audio")
    view = read_audio(source.media(0), 16000)[None]
    with torch.no_grad():
        theirs = model.eval()(view, output_hidden_states=True)
        found = ours(view, hidden=True)
    torch.testing.assert_close(found.tokens, theirs.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert found.hidden is not None
    for state, other in zip(found.hidden, theirs.hidden_states, strict=True):
        torch.testing.assert_close(state, other, rtol=1e-4, atol=1e-5)


def test_finished_it_changes_nothing(whole: Path, data: Path) -> None:
    files = [
        path
        for path in sorted(whole.rglob("*"))
        if path.suffix in (".npy", ".jsonl") or path.name == "model.safetensors"
    ]
    before = {path: path.read_bytes() for path in files}
    pretrain("audio/hubert", data, whole, *STEPS, "--probe-every", "2")
    assert {path: path.read_bytes() for path in files} == before


class Stopped(Exception):
    """Stands for a killed process: nothing catches it."""


@pytest.mark.parametrize(
    "stage", ["steps 1", "units 2", *(pytest.param(stage, marks=pytest.mark.heavy) for stage in ("units 1", "steps 2"))]
)
def test_it_goes_on_in_the_stage_where_it_was_killed(
    stage: str, whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run so far, cut at each stage as a killed process leaves it, becomes the same units and losses again."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    what, number = stage.split()
    for later in range(int(number) + 1, 3):
        shutil.rmtree(out / f"iteration-{later}")
    here = out / f"iteration-{number}"
    if what == "units":
        shutil.rmtree(here)
        with monkeypatch.context() as patch:
            # Features were drawn and the codebook written; no recording has its units.
            patch.setattr(making._Making, "assign", lambda *_: (_ for _ in ()).throw(Stopped))
            with pytest.raises(Stopped):
                pretrain("audio/hubert", data, out, *STEPS, "--probe-every", "2")
        assert (here / "units/codebook.safetensors").exists()
        assert not (here / "units/units.json").exists()
    else:
        steps = len(metrics(here))
        shutil.rmtree(here / "encoder")
        shutil.rmtree(here / "checkpoints" / f"step-{steps:08d}")
    # Units that later iterations took from an encoder are made of the same one again: iteration 2 follows in OUT.
    pretrain("audio/hubert", data, out, *STEPS, "--probe-every", "2")
    for name in ("iteration-1", "iteration-2"):
        assert trace(out / name) == trace(whole / name)
        labels = [np.load(folder / name / "units/units.npy") for folder in (out, whole)]
        np.testing.assert_array_equal(*labels)


def test_ctrl_c_while_units_are_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making._Making, "assign", pressed)
    with pytest.raises(SystemExit) as ended:
        pretrain("audio/hubert", data, tmp_path / "run", *STEPS)
    assert ended.value.code == 130
    assert "the same command goes on with it" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- one iteration, and WavLM


def test_wavlm_with_noises_on_units_that_stand(whole: Path, data: Path, tmp_path: Path) -> None:
    make_audio(tmp_path / "noises/hum.wav", seconds=2.0, hertz=50.0, seed=99)
    units, out = whole / "iteration-2/units", tmp_path / "run"
    more = ("--units", str(units), "--noises", str(tmp_path / "noises"), *STEPS)
    pretrain("audio/wavlm", data, out, *more)
    lines = metrics(out)
    assert len(lines) == 4
    assert all(np.isfinite(line["loss"]) for line in lines)
    model, report = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert isinstance(model, WavLMModel)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = Encoder.from_pretrained(out / "encoder").eval()
    view = read_audio(open_source(str(data), "audio").media(0), 16000)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(view).tokens, model.eval()(view).last_hidden_state, rtol=1e-4, atol=1e-5)
    shutil.rmtree(out / "checkpoints/step-00000004")
    pretrain("audio/wavlm", data, out, *more)
    assert trace(out) == trace(out)[:4] == [{k: v for k, v in line.items() if k in trace(out)[0]} for line in lines]


@pytest.mark.heavy
def test_two_processes_do_what_one_does(whole: Path, data: Path, tmp_path: Path) -> None:
    """Masked frames differ from process to process, and every one weighs the same. Dropout is off: its draws differ."""
    rates = ("dropout", "attention-dropout", "input-dropout", "layer-drop")
    plain = [word for rate in rates for word in (f"--encoder.{rate}", "0")]
    # SGD, since Adam makes a step of the sign of what is rounding.
    more = ("--units", str(whole / "iteration-1/units"), *plain, *RUN[:4], "--optimizer", "sgd", "--base-lr", "0.1")
    pretrain("audio/hubert", data, tmp_path / "one", *more)
    assert side_by_side(2, 29671, options("audio/hubert", data, tmp_path / "two", *more)) == [0, 0]
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for name in ("loss", "grad_norm", "masked_accuracy"):
        np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=1e-4, err_msg=name)


@pytest.mark.heavy
def test_two_processes_make_both_iterations(whole: Path, data: Path, tmp_path: Path) -> None:
    """Units are the same ones, and so are the first losses: the recordings of a batch are shared out."""
    assert side_by_side(2, 29672, options("audio/hubert", data, tmp_path / "two", *STEPS)) == [0, 0]
    labels = [np.load(folder / "iteration-1/units/units.npy") for folder in (whole, tmp_path / "two")]
    np.testing.assert_array_equal(*labels)
    for number, steps in ((1, 2), (2, 4)):
        out = tmp_path / f"two/iteration-{number}"
        assert len(metrics(out)) == steps
        assert Encoder.from_pretrained(out / "encoder").width == 32
    assert Units.open(tmp_path / "two/iteration-2/units").about["encoder"] == str(tmp_path / "two/iteration-1/encoder")


def test_init_goes_on_from_a_checkpoint(whole: Path, data: Path, tmp_path: Path) -> None:
    start = whole / "iteration-2/encoder"
    more = ("--units", str(whole / "iteration-2/units"), "--init", str(start), "--base-lr", "0", "--steps", "1")
    pretrain("audio/hubert", data, tmp_path / "run", *more)
    before, after = (Encoder.from_pretrained(folder).state_dict() for folder in (start, tmp_path / "run/encoder"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, msg=name)


# -------------------------------------------------------------------------------------------------------- what is wrong


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_what_does_not_belong_together(
    whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    out = tmp_path / "run"
    one, two = (str(whole / f"iteration-{number}/units") for number in (1, 2))
    pretrain("audio/hubert", data, out, *STEPS, "--units", one)
    # A run goes on with its own codebook only.
    shutil.rmtree(out / "checkpoints/step-00000004")
    said = refused(capsys, *options("audio/hubert", data, out, *STEPS, "--units", two))
    assert "began with 8 codes" in said
    assert "now of another codebook (12 codes" in said
    # Units of other recordings, and none at all.
    other = tmp_path / "other"
    shutil.copytree(data, other)
    for number in (0, 1):  # longer than what was labelled
        make_audio(other / f"class{number}" / f"{number}.wav", seconds=1.9, seed=7)
    said = refused(capsys, *options("audio/hubert", other, tmp_path / "longer", *STEPS, "--units", one))
    assert "units and should have" in said
    said = refused(capsys, *options("audio/hubert", data, tmp_path / "none", *STEPS, "--units", str(tmp_path)))
    assert "units.json" in said
    said = refused(capsys, *options("audio/hubert", data, tmp_path / "dry", *STEPS, "--dry-run"))
    assert "--dry-run takes units that stand" in said
    # Before any units are made: more seconds than there are, recordings that are too short, and no known lengths.
    rows = pa.table(
        {"audio": [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(data.rglob("*.wav"))]}
    )
    (tmp_path / "parquet/data").mkdir(parents=True)
    pq.write_table(rows, tmp_path / "parquet/data/train-00000-of-00001.parquet")
    for place, more, words in (
        (data, ("--batch-seconds", "2800"), "--batch-seconds 2800 over 1 micro-batch(es) is more than the data has"),
        (data, ("--min-seconds", "5", "--max-seconds", "9"), "No usable recording is at least 5 s long"),
        (tmp_path / "parquet", (), "save the recordings as files in a folder"),
    ):
        said = refused(capsys, *options("audio/hubert", place, tmp_path / "early", *STEPS, *more))
        assert words in said
        assert not (tmp_path / "early/iteration-1").exists()
    said = refused(capsys, *options("audio/hubert", data, tmp_path / "few", *STEPS, "--layer", "3"))
    assert "clusters layer 3, and --encoder.depth is 2: give a --layer from 1 to 2" in said
    assert not (tmp_path / "few/iteration-1").exists()
    said = refused(capsys, *options("audio/hubert", data, tmp_path / "few", *RUN, "--clusters", "1"))
    assert "clusters of 2 or more" in said
    said = refused(capsys, *options("audio/hubert", data, whole, *RUN, "--probe-every", "2", "--clusters", "8", "9"))
    assert "holds units of other settings or data" in said


# ----------------------------------------------------------------------------------------------------- published values


def test_defaults_are_published_ones() -> None:
    """fairseq's hubert_base_librispeech: rate, betas, epsilon, decay, clipping, warm-up over 32,000 of 400,000 steps,
    32 processes of 1.4 million samples, crops of 2 to 15.625 s."""
    settings = load_recipe("audio/hubert").Settings(data="x", out=Path("y"))
    found = (
        settings.optimizer, settings.base_lr, settings.lr, settings.betas, settings.eps, settings.weight_decay,
        settings.clip, settings.steps, settings.warmup, settings.schedule, settings.max_seconds, settings.min_seconds,
        settings.clusters, settings.layer, settings.feature_penalty, settings.mask_ratio, settings.mask_length,
    )  # fmt: skip
    assert found == (
        "adamw", 5e-4, 5e-4, (0.9, 0.98), 1e-6, 0.01, 10.0, 400_000, 32 / 400, "linear", 250_000 / 16000, 2.0,
        (100, 500), 6, 10.0, 0.8, 10,
    )  # fmt: skip
    assert settings.batch_seconds == pytest.approx(32 * 1.4e6 / 16000)
    assert round(settings.steps * settings.first_share) == 250_000


def test_defaults_of_large() -> None:
    """fairseq's hubert_large_librivox: 128 processes of 900,000 samples, no dropout, clipped at 1."""
    settings = load_recipe("audio/hubert_large").Settings(data="x", out=Path("y"))
    assert (settings.lr, settings.clip, settings.head_width, settings.steps) == (1.5e-3, 1.0, 768, 400_000)
    assert settings.batch_seconds == pytest.approx(128 * 9e5 / 16000)
    encoder = settings.encoder
    assert (encoder.dropout, encoder.layer_drop, encoder.feature_gradient, encoder.pre_norm) == (0, 0, 1, True)
    assert (settings.input.normalise, settings.input.norm) == (True, "layer")


def test_defaults_build(whole: Path) -> None:
    """94 million parameters of BASE, and 316 of LARGE, whose rate is another one for other steps."""
    for name, millions in (("audio/hubert", 94.4), ("audio/wavlm", 94.4), ("audio/hubert_large", 315.4)):
        recipe = load_recipe(name)
        settings = recipe.Settings(data="x", out=Path("y"), units=whole / "iteration-1/units")
        with torch.device("meta"):
            parts = recipe.build(settings)
        assert isinstance(parts.objective, MaskedPrediction)
        assert isinstance(parts.objective.encoder, SpeechEncoder)
        count = sum(p.numel() for p in parts.objective.encoder.parameters()) / 1e6
        assert count == pytest.approx(millions, abs=0.4)
        assert not isinstance(parts.views, NoisyCrops)
        assert [type(view) for view in parts.device_views] == ([Mixing] if name == "audio/wavlm" else [])
        if name == "audio/wavlm":
            assert parts.objective.encoder.settings.arch == "wavlm"
            assert (parts.device_views[0].share, settings.noise_share) == (0.2, 0.1)

"""HuBERT, WavLM, COLA and the masked autoencoder learn from recordings, in minutes and from 157 minutes of sound.

Claims, each for seeds 0, 1 and 2 on held-out files, the probe's settings chosen on training files alone:
- HuBERT, WavLM and the masked autoencoder answer the four questions of `sound.py` better on average than untrained, and
  the 95 % interval of the paired difference excludes zero on the digits, which were not trained on, of speakers the
  probe has not heard;
- HuBERT's second iteration tells consonants better than its first; over all questions it is better for seeds 1 and 2,
  and an expected failure for seed 0 (docs/results.md);
- units of its first iteration's layers tell more of which digit is spoken than units of MFCC do (PNMI), both clustered
  on other recordings;
- COLA keeps what lasts through a recording: it tells who speaks in dialogues better than untrained, with an interval
  above zero, and gains on average over this and the four questions, although words lose; from recordings whose samples
  were shuffled it gains nothing there.

What simple statistics of log-mel bands and MFCC reach is printed beside; nothing is claimed of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.cli import main as mmssl
from mmssl.encoders.base import Encoder
from mmssl.evaluation.subject import untrained
from tests.proofs.sound import (
    Answers,
    Gain,
    ask,
    ask_cola,
    floors,
    folder,
    gains,
    recordings_to_train_on,
    shuffled,
)
from tests.runs import metrics

pytestmark = pytest.mark.heavy

RUN = "--workers 1 --probe-every 0 --log-every 50 --save-every 1000"
SPEECH = (
    "--input.channels 32 32 64 64 64 64 64 --encoder.width 128 --encoder.depth 3 --encoder.heads 4 "
    "--encoder.position-kernel 32 --encoder.layer-drop 0 --encoder.dropout 0.05 --encoder.attention-dropout 0 "
    "--encoder.input-dropout 0 --encoder.feature-gradient 1 --batch-seconds 16 --lr-per 16 --base-lr 1e-3 "
    "--min-seconds 0.3 --max-seconds 4 --buckets 8 --unmasked-weight 1"
)
"""Without a term for visible frames the convolutions take several times as many steps to leave their first plateau."""
ITERATIONS = "--steps 6000 --clusters 100 100 --layer 2 --fit-frames 200000"
"""The first iteration has 3,750 of the steps."""
COLA = (
    "--input.mels 16 --input.frames 48 --input.patch 16 --input.stride 8 --input.mean 0 --input.std 2 --seconds 0.5 "
    "--unit segment --noise 0 --encoder.arch vit --encoder.width 128 --encoder.depth 4 --encoder.heads 4 "
    "--batch-size 64 --lr-per 64 --base-lr 1e-3 --min-lr 0 --warmup 0.1 --steps 3000"
)
"""A ViT whose tokens are 0.16 s of all bands, since a step of EfficientNet-B0 takes ten times as long."""
MAE = (
    "--input.mels 64 --input.frames 96 --encoder.width 128 --encoder.depth 4 --encoder.heads 4 --decoder.width 64 "
    "--decoder.depth 2 --decoder.heads 2 --batch-size 64 --lr-per 64 --base-lr 1e-3 --warmup 0.1 --steps 800"
)
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings_to_train_on(tmp_path_factory.mktemp("sound"))


def pretrained(recipe: str, data: Path, out: Path, seed: int, options: str) -> None:
    mmssl(
        ["pretrain", recipe, "--data", str(data), "--out", str(out), "--seed", str(seed), *f"{RUN} {options}".split()]
    )


def told(name: str, seed: int, found: dict[str, Gain]) -> None:
    """Print a row of the table, and the mean over questions."""
    row = ", ".join(f"{question} {gain}" for question, gain in found.items())
    print(f"\n{name}, seed {seed}: {row}, mean {np.mean([gain.trained for gain in found.values()]):.3f}", flush=True)


def beats_untrained(found: dict[str, Gain], on: str = "digits") -> bool:
    """On average over the questions, and surely on one."""
    average = np.mean([gain.trained - gain.untrained for gain in found.values()])
    return bool(average > 0 and found[on].low > 0)


def pnmi(units: Path, out: Path) -> float:
    """How much the units that the codebook of other recordings gives tell of which digit is spoken."""
    options = ["--data", str(folder("digits")), "--out", str(out), "--codebook", str(units), "--workers", "1"]
    mmssl(["targets", "kmeans", *options])
    return json.loads((out / "units.json").read_text(encoding="utf-8"))["quality"]["classes"]["pnmi"]


def learned(
    recipe: str, options: str, seed: int, data: Path, out: Path, asked: Callable[[Encoder], Answers] = ask
) -> dict[str, Gain]:
    pretrained(recipe, data, out, seed, options)
    encoder = Encoder.from_pretrained(out / "encoder")
    found = gains(asked(encoder), asked(untrained(encoder, seed)))
    told(recipe, seed, found)
    return found


def test_floors() -> None:
    for question, found in floors().items():
        print(f"\n{question}: " + ", ".join(f"{name} {top1:.3f}" for name, top1 in found.items()))
        assert all(0 < top1 < 1 for top1 in found.values())


@dataclass(frozen=True)
class Iterations:
    """Both of a seed."""

    run: Path
    first: dict[str, Gain]
    second: dict[str, Gain]


@pytest.fixture(scope="module")
def iterations(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Iterations]:
    """By seed, each trained once."""

    @cache
    def of(seed: int) -> Iterations:
        run = tmp_path_factory.mktemp("hubert")
        pretrained("audio/hubert", data, run, seed, f"{SPEECH} {ITERATIONS}")
        one, two = (Encoder.from_pretrained(run / f"iteration-{number}/encoder") for number in (1, 2))
        plain = ask(untrained(one, seed))
        found = Iterations(run, gains(ask(one), plain), gains(ask(two), plain))
        told("HuBERT, iteration 1", seed, found.first)
        told("HuBERT, iteration 2", seed, found.second)
        return found

    return of


COPIES = pytest.mark.xfail(raises=AssertionError, strict=True, reason="not better over all: docs/results.md, open")


@pytest.mark.parametrize("seed", [pytest.param(0, marks=COPIES), 1, 2])
def test_second_iteration_is_better(seed: int, iterations: Callable[[int], Iterations]) -> None:
    found = iterations(seed)
    first, second = (np.mean([gain.trained for gain in one.values()]) for one in (found.first, found.second))
    assert second > first


@pytest.mark.parametrize("seed", SEEDS)
def test_hubert_and_wavlm(seed: int, iterations: Callable[[int], Iterations], data: Path, tmp_path: Path) -> None:
    found = iterations(seed)
    run = found.run
    for number, one in ((1, found.first), (2, found.second)):
        last = metrics(run / f"iteration-{number}")[-1]
        print(f"masked accuracy {last['masked_accuracy']:.3f}, the commonest unit {last['majority']:.3f}")
        assert last["masked_accuracy"] > last["majority"]
        assert beats_untrained(one)
    assert found.second["mandarin"].trained > found.first["mandarin"].trained

    units = run / "iteration-2/units"
    of_mfcc, of_layer = pnmi(run / "iteration-1/units", tmp_path / "mfcc"), pnmi(units, tmp_path / "layer")
    print(f"PNMI of 100 units with the digits: MFCC {of_mfcc:.3f}, layer 2 of the first iteration {of_layer:.3f}")
    assert of_layer > of_mfcc

    assert beats_untrained(
        learned("audio/wavlm", f"{SPEECH} --steps 2500 --units {units}", seed, data, tmp_path / "wavlm")
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_autoencoder(seed: int, data: Path, tmp_path: Path) -> None:
    assert beats_untrained(learned("audio/mae", MAE, seed, data, tmp_path / "run"))


@pytest.mark.parametrize("seed", SEEDS)
def test_cola(seed: int, data: Path, tmp_path: Path) -> None:
    assert beats_untrained(learned("audio/cola", COLA, seed, data, tmp_path / "run", ask_cola), on="fillets")


def test_cola_gains_nothing_on_who_speaks_from_shuffled_samples(data: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(data.rglob("*.wav")):
        sound, rate = soundfile.read(path)
        out = tmp_path / "shuffled" / path.relative_to(data)
        out.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out, shuffled(sound, rng), rate, subtype="PCM_16")
    found = learned("audio/cola", COLA, 0, tmp_path / "shuffled", tmp_path / "run", ask_cola)
    assert found["fillets"].low <= 0

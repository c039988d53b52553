"""Questions about recordings, and how well features answer them: what the proofs of learning from sound share.

The recordings are the user's: MMSSL_SOUND is a folder in which the scripts of datasets/ have written fillets, mandarin
(mandarin_syllables.py), voices (character_voices.py), drums (drum_kits.py) and digits (spoken_digits.py, without
--test-speaker).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.stats import norm
from torchaudio.compliance.kaldi import fbank

from mmssl.data.audio import read_audio
from mmssl.data.sources import Source, open_source
from mmssl.encoders.base import Encoder
from mmssl.evaluation.features import extract
from mmssl.evaluation.labels import Task, file_labels
from mmssl.evaluation.layer_states import collect_states
from mmssl.evaluation.metrics import difference
from mmssl.evaluation.probes.layer_heads import layer_probe
from mmssl.evaluation.probes.linear import DECAYS, RATES, linear_probe
from mmssl.evaluation.reading import Files
from mmssl.evaluation.results import encode
from mmssl.evaluation.views import evaluation_views
from mmssl.targets.mfcc import Mfcc

TRAINED_ON = ("fillets", "mandarin", "voices", "drums")
"""What encoders are trained on: the train parts of these, 157 minutes. The digits are never trained on."""
RATE = 16000


def folder(name: str) -> Path:
    path = Path(os.environ.get("MMSSL_SOUND", "")) / name
    if "MMSSL_SOUND" not in os.environ or not path.is_dir():
        pytest.skip(f"MMSSL_SOUND names no folder that holds {name}: see tests/proofs/sound.py")
    return path


def recordings_to_train_on(out: Path) -> Path:
    """All of `TRAINED_ON` as 16 kHz wav, 300 MB: unpacking ogg would cost more than these small models."""
    for name in TRAINED_ON:
        source = open_source(folder(name), "audio")
        for row in source.rows("train").tolist():
            wave = read_audio(source.media(row), RATE).numpy().clip(-1, 1)
            path = out / "train" / name / f"{row}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, RATE, subtype="PCM_16")
    return out


def shuffled(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The samples [S] of a recording in another order, then bent into a normal distribution by their ranks: shuffling
    leaves loudness and the share of silence, which tell voices apart."""
    ranks = rng.permutation(sound).argsort(kind="stable").argsort()
    return 0.05 * norm.ppf((ranks + 0.5) / len(ranks))


@dataclass(frozen=True)
class Question:
    """What is asked of frozen features."""

    name: str
    source: Source
    folds: tuple[Task, ...]
    """The test files of all folds together are what is answered."""

    @property
    def rows(self) -> np.ndarray:
        return np.unique(np.concatenate([np.concatenate([task.train, task.test]) for task in self.folds]))

    @property
    def tested(self) -> np.ndarray:
        return np.concatenate([task.test for task in self.folds])

    @property
    def truth(self) -> np.ndarray:
        return encode([self.source.label(int(row)) for row in self.tested], self.folds[0].classes)


@cache
def questions() -> tuple[Question, ...]:
    """Which digit, of a speaker who was left out, six times; which of 22 first consonants of a Mandarin syllable, of
    syllables left out; which of 15 voices, in lines left out; which of six sorts of drum, of kits left out."""
    digits = open_source(folder("digits"), "audio")
    rows = digits.rows(None)
    speakers = np.array([Path(digits.id(int(row))).name.split("_")[1] for row in rows])
    classes = tuple(str(digit) for digit in range(10))
    folds = [
        Task(classes, rows[speakers != one], rows[speakers == one], {}, f"{one} left out") for one in set(speakers)
    ]
    spoken = Question("digits", digits, tuple(sorted(folds, key=lambda task: task.split)))
    return (spoken, *(held_out(name) for name in TRAINED_ON[1:]))


@cache
def who_speaks() -> Question:
    """Which of six voices says a line of a dialogue, of levels of the game left out: one fish, the other or anybody
    else, in Czech or in Dutch. It lasts through a recording, as what COLA keeps does."""
    return held_out("fillets")


def held_out(name: str) -> Question:
    """By the labels and the test split of a folder."""
    source = open_source(folder(name), "audio")
    task = file_labels(source, 0)
    train, test = (long_enough(source, side) for side in (task.train, task.test))
    return Question(name, source, (replace(task, train=train, test=test),))


def long_enough(source: Source, rows: np.ndarray) -> np.ndarray:
    """Without the recordings that are shorter than a window of 25 ms (one drum)."""
    return rows[[(source.media(int(row)).record.duration or 0.0) > 0.03 for row in rows]]


Predict = Callable[[Task], np.ndarray]
"""Classes of a fold's test files."""


def answers(question: Question, predict: Predict) -> np.ndarray:
    """Classes int64 [Q], in the order of `question.tested`."""
    return np.concatenate([predict(task) for task in question.folds])


def by_layers(question: Question, encoder: Encoder) -> np.ndarray:
    """SUPERB's probe, a weighted sum of layers."""
    files = Files(question.source, evaluation_views(encoder.spec), question.rows, 0)
    (states,) = collect_states([encoder], files, batch_size=8, workers=1, device=torch.device("cpu"), cache=None)
    at = {int(row): n for n, row in enumerate(states.rows)}

    def predict(task: Task) -> np.ndarray:
        train, test = ([at[int(row)] for row in side] for side in (task.train, task.test))
        labels = encode([question.source.label(int(row)) for row in task.train], task.classes)
        head = layer_probe(
            torch.from_numpy(states.x[train]),
            torch.from_numpy(labels),
            classes=len(task.classes),
            groups=task.train,
            rates=(1e-1, 1e-2, 1e-3),
            epochs=50,
            batch=256,
            seed=0,
        )
        return head.predict(torch.from_numpy(states.x[test])).numpy()

    return answers(question, predict)


def by_vectors(question: Question, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A linear probe of one vector a file, x [N,D] of `rows`."""
    at = {int(row): n for n, row in enumerate(rows)}

    def predict(task: Task) -> np.ndarray:
        train, test = ([at[int(row)] for row in side] for side in (task.train, task.test))
        labels = encode([question.source.label(int(row)) for row in task.train], task.classes)
        head = linear_probe(
            torch.from_numpy(x[train]),
            torch.from_numpy(labels),
            classes=len(task.classes),
            groups=task.train,
            rates=RATES,
            decays=DECAYS,
            epochs=50,
            batch=256,
            seed=0,
        )
        return head.predict(torch.from_numpy(x[test])).numpy()

    return answers(question, predict)


def by_pooled(question: Question, encoder: Encoder) -> np.ndarray:
    """A linear probe of what an encoder says of the middle of a recording."""
    views = evaluation_views(encoder.spec)
    features = extract(encoder, question.source, question.rows, views=views, batch_size=8, workers=1)
    return by_vectors(question, features.x, features.rows)


Answers = dict[str, np.ndarray]
"""By question: classes int64 [Q]."""


def ask(encoder: Encoder) -> Answers:
    """The four questions."""
    return {question.name: by_layers(question, encoder) for question in questions()}


def ask_cola(encoder: Encoder) -> Answers:
    """The four questions and who speaks, of what the encoder puts out, as COLA's paper asks."""
    return {question.name: by_pooled(question, encoder) for question in (*questions(), who_speaks())}


@dataclass(frozen=True)
class Gain:
    """Trained beside untrained, on one question."""

    trained: float
    untrained: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.trained:.3f} ({self.untrained:.3f}, {self.low:+.3f} to {self.high:+.3f})"


def gains(trained: Answers, plain: Answers) -> dict[str, Gain]:
    """Over the same encoder untrained, on every question asked; intervals are those of the paired difference over test
    files, 95 %."""
    found = {}
    for question in (question for question in (*questions(), who_speaks()) if question.name in trained):
        one, other, truth = trained[question.name], plain[question.name], question.truth
        edges = difference(truth, one, other, question.tested).top1_interval
        found[question.name] = Gain(float((one == truth).mean()), float((other == truth).mean()), *edges)
    return found


def floors() -> dict[str, dict[str, float]]:
    """What needs no encoder: mean and deviation over time of 40 log-mel bands, and of HuBERT's 39 MFCC values."""
    mfcc = Mfcc()
    found: dict[str, dict[str, float]] = {}
    for question in (*questions(), who_speaks()):
        simple: dict[str, list[torch.Tensor]] = {"log-mel": [], "MFCC": []}
        for row in question.rows:
            wave = read_audio(question.source.media(int(row)), RATE)[None]
            wave = torch.nn.functional.pad(wave, (0, max(0, 1200 - wave.shape[1])))
            simple["log-mel"].append(fbank(wave, num_mel_bins=40, sample_frequency=RATE))
            simple["MFCC"].append(mfcc(wave)[0])
        found[question.name] = {}
        for name, frames in simple.items():
            x = torch.stack([torch.cat([one.mean(0), one.std(0)]) for one in frames]).numpy()
            predicted = by_vectors(question, x, question.rows)
            found[question.name][name] = float((predicted == question.truth).mean())
    return found

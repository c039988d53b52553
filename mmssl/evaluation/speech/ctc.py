"""`mmssl evaluate ctc`: recognition of what is said, by CTC on a frozen or a fine-tuned speech encoder."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.encoders.speech import SpeechEncoder
from mmssl.errors import UserError
from mmssl.evaluation.frame import Figures, Settings, at_least, beside, open_media, run
from mmssl.evaluation.speech.ctc_decoding import edits, error_rates, interval, rate_difference
from mmssl.evaluation.speech.ctc_model import FrozenCTC, TunedCTC
from mmssl.evaluation.speech.ctc_training import Recordings, decode, gather, train
from mmssl.evaluation.subject import pick_device

FROZEN_RATES = (1e-2, 3e-3, 1e-3, 3e-4)
TUNED_RATES = (1e-4,)
SHOWN = 5

Answer = tuple[Figures, tuple[np.ndarray, np.ndarray]]
"""Figures of an encoder, and the edits of words and of characters by recording."""


@dataclass(kw_only=True)
class CtcSettings(Settings):
    """Word and character error rates of CTC on the characters: a linear head on a softmax-weighted sum of the frozen
    layers, or (--tune) all of the encoder but its convolutions fine-tuned; only the learning rate is chosen, on a tenth
    of the training recordings."""

    evaluation = "ctc"

    encoder: str
    """Folder of a run's encoder, or a Hub id: HuBERT or WavLM."""
    data: str
    """Folder of recordings with a metadata.csv of the columns file_name and text (or transcription)."""
    transcripts: Literal["metadata", "label"] = "metadata"
    """'label': the label of a file is the word that is said."""
    tune: bool = False
    """Fine-tune the encoder, too, and write it as transformers' HubertForCTC or WavLMForCTC."""
    model: Path | None = None
    """Folder of the fine-tuned model; OUT without its ending, if not given."""
    rates: tuple[float, ...] | None = None
    """Learning rates to choose from; 0.01, 0.003, 0.001, 0.0003, or 0.0001 for fine-tuning, if not given."""
    steps: int = 2000
    """Optimiser steps: a tenth of them warms up, the last half decays linearly to 0."""
    batch_size: int = 16
    """Recordings of one step."""
    beam: int = 10
    """Prefixes that the beam search keeps."""
    max_seconds: float = 30.0
    """Longer recordings are left out."""
    workers: int = 2
    """Processes that decode; 0 decodes in this one."""

    @property
    def name(self) -> str:
        return "ctc (fine-tuned)" if self.tune else "ctc"

    def check(self) -> None:
        super().check()
        at_least(self, steps=1, batch_size=1, beam=1, workers=0)
        if self.max_seconds <= 0 or (self.rates is not None and (not self.rates or min(self.rates) <= 0)):
            raise UserError("--max-seconds is above 0, and --rates has one or more values above 0.")
        if self.model is not None and not self.tune:
            raise UserError("--model is where a fine-tuned model is written: give --tune, too.")
        if self.tune and (self.folder == self.out or self.folder.is_file()):
            raise UserError(
                f"The model cannot be written to {self.folder}, which is a file: give --out FILE.json, or --model."
            )

    @property
    def folder(self) -> Path:
        """Of the fine-tuned model."""
        return self.model or self.out.with_suffix("")

    @property
    def grid(self) -> tuple[float, ...]:
        return self.rates or (TUNED_RATES if self.tune else FROZEN_RATES)

    def run(self) -> Figures:
        edits(["a"], ["a"])  # before hours of training: says what to install
        return run(self, recognise, show, lambda settings, _: open_media(settings.data, "audio"))


def recognise(encoders: list[Encoder], source: Source, settings: CtcSettings) -> Figures:
    """The encoder, its untrained twins, and what one transcript for all recordings gives.

    Raises:
        UserError: no transcripts, too few recordings, recordings that cannot be read, or another kind of encoder.
    """
    encoder, seed = encoders[0], settings.seed
    if not isinstance(encoder, SpeechEncoder):
        raise UserError(f"CTC reads frames of a HuBERT or WavLM encoder, and this is a {type(encoder).__name__}.")
    data = gather(encoder.spec, source, settings)
    references = [data.texts[int(row)] for row in data.test]
    answers = []
    for one in encoders:
        assert isinstance(one, SpeechEncoder)
        found, spelled = examine(one, data, settings, save=one is encoder)
        answers.append((found, edits(references, spelled)))

    def gain(answer: Answer, twin: Answer) -> Figures:
        (found, counts), (other, others) = answer, twin
        gains: Figures = {name: found[name] - other[name] for name in ("wer", "cer")}
        for name, mine, theirs in zip(("wer", "cer"), counts, others, strict=True):
            gains[f"{name}_interval"] = rate_difference(mine, theirs, seed)
        return gains

    words, chars = edits(references, [commonest([data.texts[int(row)] for row in data.train])] * len(references))
    return {
        "data": {
            "path": settings.data,
            "fingerprint": source.fingerprint,
            "symbols": list(data.vocabulary.symbols),
            "split": data.split,
            "files": {name: len(getattr(data, name)) for name in ("train", "validation", "test")},
            "notes": list(data.notes),
        },
        **beside(answers, lambda answer: answer[0], gain, seed),
        "chance": {
            "what": "the most frequent training transcript for every recording",
            "wer": float(words[:, 0].sum() / words[:, 1].sum()),
            "wer_interval": interval(words, seed),
            "cer": float(chars[:, 0].sum() / chars[:, 1].sum()),
            "cer_interval": interval(chars, seed),
        },
    }


def show(result: Figures) -> None:
    for name in ("trained", "untrained", "chance"):
        found = result[name]
        chosen = f" (lr {found['rate']:g})" if "rate" in found else ""
        print(f"{name}: {100 * found['wer']:.1f} % of words wrong, {100 * found['cer']:.1f} % of characters{chosen}")
    for note in result["data"]["notes"]:
        print(f"note: {note}")
    if missing := result["trained"]["skipped"]:
        print(f"note: {len(missing)} test recording(s) could not be read and count as unheard, such as {missing[0][1]}")
    if "model" in result["trained"]:
        print(f"Model: {result['trained']['model']}")


def examine(
    encoder: SpeechEncoder, data: Recordings, settings: CtcSettings, *, save: bool
) -> tuple[dict[str, Any], list[str]]:
    """Train at every rate, choose by the characters wrong in the validation recordings, decode the test recordings:
    figures, and the transcripts of the beam search."""
    device, grid = pick_device(settings.device), settings.grid
    models: list[FrozenCTC | TunedCTC] = []
    for rates in [(rate,) for rate in grid] if settings.tune else [grid]:
        own, symbols = copy.deepcopy(encoder), len(data.vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            models.append(TunedCTC(own, symbols) if settings.tune else FrozenCTC(own, symbols, len(rates)))
        train(models[-1].to(device), rates, data, settings)
    trials = []
    truth = [data.texts[int(row)] for row in data.validation]
    for number, rate in enumerate(grid):
        spelled = decode(*head_of(models, number), data, data.validation, settings)["greedy"]
        trials.append({"rate": rate, "validation_cer": error_rates(truth, spelled, settings.seed).cer})
    best = min(range(len(grid)), key=lambda number: trials[number]["validation_cer"])
    model, head = head_of(models, best)
    skipped: list[tuple[int, str]] = []
    found = decode(model, head, data, data.test, settings, width=settings.beam, skipped=skipped)
    references = [data.texts[int(row)] for row in data.test]
    scores = {
        name: dataclasses.asdict(error_rates(references, spelled, settings.seed)) for name, spelled in found.items()
    }
    figures: dict[str, Any] = scores["beam"] | {"greedy": scores["greedy"], "rate": grid[best], "validation": trials}
    figures["skipped"] = [[data.files.source.id(row), reason] for row, reason in skipped]
    figures["examples"] = [
        {"said": a, "heard": b} for a, b in list(zip(references, found["beam"], strict=True))[:SHOWN]
    ]
    if isinstance(model, FrozenCTC):
        figures["layer_shares"] = model.shares[head].softmax(0).tolist()
    elif save:
        shown = {name: f"{100 * figures[name]:.2f} %" for name in ("wer", "cer")}
        model.save_pretrained(settings.folder, data.vocabulary, {"data": settings.data, **shown})
        figures["model"] = str(settings.folder)
    return figures, found["beam"]


def head_of(models: Sequence[FrozenCTC | TunedCTC], number: int) -> tuple[FrozenCTC | TunedCTC, int]:
    """The model trained at the `number`-th rate, and which of its heads that is."""
    return (models[0], number) if len(models) == 1 else (models[number], 0)


def commonest(texts: list[str]) -> str:
    names, counts = np.unique(texts, return_counts=True)
    return str(names[counts.argmax()])

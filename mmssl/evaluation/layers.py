"""`mmssl evaluate layers`: what each layer of a frozen encoder holds, and a softmax-weighted sum of them all.

SUPERB (Yang et al. 2021, arXiv:2105.01051) judges speech encoders so. Labels of files make it a classification of
recordings (of speakers, where the labels are speakers), images or clips; with --units, frames of sound are told apart.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from mmssl.data.indexing import show_progress
from mmssl.data.sources import Source, open_source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.command import Answer, EvaluateSettings, Probing, compare
from mmssl.evaluation.features import features_cache
from mmssl.evaluation.labels import Task, file_labels, split_rows
from mmssl.evaluation.layer_chart import layer_chart
from mmssl.evaluation.layer_heads import layer_probe
from mmssl.evaluation.layer_states import Frames, LayerStates, collect_states
from mmssl.evaluation.metrics import balanced_accuracy
from mmssl.evaluation.reading import Files
from mmssl.evaluation.results import check_file, data_of, encode, settings_of, versions, write_result
from mmssl.evaluation.subject import describe, pick_device, untrained
from mmssl.evaluation.table import print_table
from mmssl.evaluation.views import evaluation_views, kind_for
from mmssl.files import writing
from mmssl.targets.units import Units


@dataclass(kw_only=True)
class LayersSettings(EvaluateSettings):
    """SUPERB's probe: a softmax-weighted sum of all layers and a linear head, and each layer by itself, with a picture;
    only the learning rate is chosen, on a fifth of the training files."""

    rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Learning rates to choose from (the range that SUPERB allows)."""
    epochs: int = 100
    """Passes over the training examples (and at least 1,000 steps)."""
    probe_batch_size: int = 256
    """Examples of one step of the probe."""
    units: Path | None = None
    """Units of the same data (`mmssl targets kmeans`): tell frames of sound apart by them, in place of files."""
    frames: int = 50
    """Frames of one file that are taken with --units."""
    each: bool = True
    """Also probe every layer by itself."""
    picture: Path | None = None
    """SVG of accuracy over layers; beside --out if not given."""

    @property
    def name(self) -> str:
        return "layers" if self.units is None else "layers (units)"

    def check(self) -> None:
        super().check()
        if self.labels != "data" or self.clips != 1:
            raise UserError("A probe of layers takes the labels of the data: leave out --labels and --clips.")
        if not self.rates or min(self.rates) <= 0:
            raise UserError("--rates needs one or more values above 0.")
        if min(self.epochs, self.probe_batch_size, self.frames) < 1:
            raise UserError("--epochs, --probe-batch-size and --frames are 1 or more.")

    def run(self) -> dict[str, Any]:
        return run_layers(self)


def run_layers(settings: LayersSettings) -> dict[str, Any]:
    """Evaluate as the command line does: load, compute, print the table, write the files; returns all figures."""
    settings.check()
    check_file(settings.out)
    encoder = Encoder.from_pretrained(settings.encoder)
    with show_progress(Console(stderr=True)) as progress:
        source = open_source(settings.data, kind_for(settings.data, encoder.spec), progress=progress)
    result = evaluate_layers(encoder, source, settings)
    write_result(settings.out, result)
    print_table(result)
    if settings.each:
        picture = settings.picture or settings.out.with_suffix(".svg")
        with writing(picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_text(chart_of(result), encoding="utf-8")
        print(f"Layer by layer: {picture}")
    print(f"All figures: {settings.out}")
    return result


def evaluate_layers(encoder: Encoder, source: Source, settings: LayersSettings) -> dict[str, Any]:
    """All figures: the encoder, its untrained twins and chance, on the same files; of the weighted sum under the usual
    keys, of each layer under 'layers'.

    Raises:
        UserError: no labels, too few classes or files, files that cannot be read, or an encoder whose layers have
            different widths.
    """
    settings.check()
    begin = time.monotonic()
    units = None if settings.units is None else Units.open(settings.units)
    task = file_labels(source, settings.seed) if units is None else unit_task(source, units, settings.seed)
    views = evaluation_views(encoder.spec)
    twins = [untrained(encoder, seed) for seed in range(settings.seed, settings.seed + settings.seeds)]
    found, *others = collect_states(
        [encoder, *twins],
        Files(source, views, np.concatenate([task.train, task.test]), settings.seed),
        frames=None if units is None else Frames(units, settings.frames),
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=pick_device(settings.device),
        cache=features_cache() if settings.cache else None,
    )
    probe = LayerProbing(task, settings, source, found)
    counts = (len(probe.known), len(probe.truth))
    layers = probe.each([found, *others]) if settings.each else None
    return {
        "evaluation": settings.name,
        "settings": settings_of(settings),
        "encoder": describe(encoder, settings.encoder),
        "data": data_of(settings.data, settings.labels, source, task, views, examples=counts, skipped=found.skipped),
        **compare(probe, found, others, settings),
        "layers": layers,
        "versions": versions(),
        "device": str(pick_device(settings.device)),
        "seconds": round(time.monotonic() - begin, 3),
    }


def unit_task(source: Source, units: Units, seed: int) -> Task:
    """Telling apart the codes of frames; recordings are on one side each."""
    rows = source.rows(None)
    train, test, split = split_rows(source, rows, np.zeros(len(rows), np.int64), seed)
    if not len(train) or not len(test):
        raise UserError(f"All {len(rows)} recordings are on one side ({split}): add recordings to the other.")
    return Task(tuple(str(code) for code in range(units.codes)), train, test, {}, split)


class LayerProbing(Probing):
    """Probes of layers, trained and scored alike for every encoder."""

    settings: LayersSettings  # type: ignore[assignment]

    def __init__(self, task: Task, settings: LayersSettings, source: Source, states: LayerStates) -> None:
        self.task, self.settings = task, settings  # type: ignore[assignment]
        labels = states.codes
        if settings.units is None:
            labels = encode([source.label(int(row)) for row in states.rows], task.classes)
        self.train, self.test = (np.flatnonzero(np.isin(states.rows, side)) for side in (task.train, task.test))
        self.known, self.truth, self.groups = labels[self.train], labels[self.test], states.rows[self.test]
        if not len(self.known) or not len(self.truth):
            raise UserError("No training file, or no test file, could be read: run `mmssl index` on the data.")

    def __call__(self, features: Any, shuffle: int | None = None) -> Answer:
        return self.probe(features, slice(None), shuffle)

    def probe(self, states: LayerStates, layers: slice, shuffle: int | None = None) -> Answer:
        """A probe on the weighted sum of some layers."""
        settings, device = self.settings, pick_device(self.settings.device)
        labels = self.known if shuffle is None else np.random.default_rng(shuffle).permutation(self.known)
        head = layer_probe(
            torch.from_numpy(states.x[self.train][:, layers]).to(device),
            torch.from_numpy(labels).to(device),
            classes=len(self.task.classes),
            groups=states.rows[self.train],
            rates=settings.rates,
            epochs=settings.epochs,
            batch=settings.probe_batch_size,
            seed=settings.seed,
        )
        predicted = head.predict(torch.from_numpy(states.x[self.test][:, layers]).to(device)).cpu().numpy()
        trials = [dataclasses.asdict(trial) for trial in head.trials]
        for trial in trials:  # JSON has no infinity
            trial["validation_loss"] = trial["validation_loss"] if np.isfinite(trial["validation_loss"]) else None
        return Answer(predicted, {"rate": head.rate, "layer_shares": head.mix.tolist(), "validation": trials})

    def each(self, encoders: Sequence[LayerStates]) -> dict[str, list[list[dict[str, Any]]]]:
        """Figures of every layer by itself: of the encoder, and of each untrained twin."""
        found = []
        for states in encoders:
            rows = []
            for layer in range(states.x.shape[1]):
                answer = self.probe(states, slice(layer, layer + 1))
                rows.append(
                    {
                        "layer": layer,
                        "top1": float((answer.predicted == self.truth).mean()),
                        "balanced": balanced_accuracy(self.truth, answer.predicted),
                        "rate": answer.details["rate"],
                    }
                )
            found.append(rows)
        return {"trained": found[:1], "untrained": found[1:]}


def chart_of(result: dict[str, Any]) -> str:
    """The picture of a result."""
    layers = result["layers"]
    curves = [("trained", [row["top1"] for row in layers["trained"][0]])]
    twins = np.array([[row["top1"] for row in rows] for rows in layers["untrained"]])
    curves.append(("untrained", twins.mean(0).tolist()))
    levels = [("weighted sum", result["trained"]["top1"]), ("chance", result["chance"]["majority"])]
    return layer_chart(f"{result['evaluation']}: top-1 by layer", curves, levels)

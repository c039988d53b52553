"""`mmssl evaluate layers`: what each layer of a frozen encoder holds, and a softmax-weighted sum of them all.

SUPERB (Yang et al. 2021, arXiv:2105.01051) judges speech encoders so. Labels of files make it a classification of
recordings (of speakers, where the labels are speakers), images or clips; with --frame-labels (phones, say) or --units,
frames of sound are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.frame import Figures, run
from mmssl.evaluation.labels import Task, file_labels, split_rows
from mmssl.evaluation.layer_states import Frames, LayerStates, collect_states
from mmssl.evaluation.metrics import balanced_accuracy
from mmssl.evaluation.probes.layer_chart import layer_chart
from mmssl.evaluation.probes.layer_heads import layer_probe
from mmssl.evaluation.probes.linear import tried
from mmssl.evaluation.probes.probing import Answer, Examples, ProbeSettings, compare
from mmssl.evaluation.reading import Files
from mmssl.evaluation.results import encode
from mmssl.evaluation.subject import pick_device
from mmssl.evaluation.table import print_table
from mmssl.evaluation.views import evaluation_views
from mmssl.files import writing
from mmssl.targets.quality import Segments
from mmssl.targets.units import Units


@dataclass(kw_only=True)
class LayersSettings(ProbeSettings):
    """SUPERB's probe: a softmax-weighted sum of all layers and a linear head, and each layer by itself, with a picture;
    only the learning rate is chosen, on a fifth of the training files."""

    evaluation = "layers"

    rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    """Learning rates to choose from (the range that SUPERB allows)."""
    epochs: int = 100
    """Passes over the training examples (and at least 1,000 steps)."""
    probe_batch_size: int = 256
    """Examples of one step of the probe."""
    units: Path | None = None
    """Units of the same data (`mmssl targets kmeans`): tell frames of sound apart by them, in place of files."""
    frame_labels: Path | None = None
    """CSV or parquet with columns id, start, end (seconds), label: tell frames of sound apart by them (phones, say), in
    place of files."""
    frames: int = 50
    """Frames of one file that are taken with --units or --frame-labels."""
    each: bool = True
    """Also probe every layer by itself."""
    picture: Path | None = None
    """SVG of accuracy over layers; beside --out if not given."""

    @property
    def name(self) -> str:
        if self.frame_labels is not None:
            return "layers (frames)"
        return "layers" if self.units is None else "layers (units)"

    def check(self) -> None:
        super().check()
        if self.labels != "data" or self.clips != 1:
            raise UserError("A probe of layers takes the labels of the data: leave out --labels and --clips.")
        if self.units is not None and self.frame_labels is not None:
            raise UserError("--units and --frame-labels both tell frames apart: leave out one of them.")
        if not self.rates or min(self.rates) <= 0:
            raise UserError("--rates needs one or more values above 0.")
        if min(self.epochs, self.probe_batch_size, self.frames) < 1:
            raise UserError("--epochs, --probe-batch-size and --frames are 1 or more.")

    def run(self) -> Figures:
        return run(self, evaluate, lambda result: show(result, self))


def evaluate(encoders: list[Encoder], source: Source, settings: LayersSettings) -> Figures:
    """The encoder, its untrained twins and chance, on the same files; figures of the weighted sum under the usual keys,
    of each layer under 'layers'.

    Raises:
        UserError: no labels, too few classes or files, files that cannot be read, or an encoder whose layers have
            different widths.
    """
    units: Units | Segments | None = None
    if settings.frame_labels is not None:
        units = Segments(settings.frame_labels)
    elif settings.units is not None:
        units = Units.open(settings.units)
    task = file_labels(source, settings.seed) if units is None else frame_task(source, units, settings.seed)
    views = evaluation_views(encoders[0].spec)
    files = Files(source, views, np.concatenate([task.train, task.test]), settings.seed)
    frames = None if units is None else Frames(units, settings.frames)
    found = collect_states(encoders, files, frames=frames, **settings.reading())
    probe = LayerProbe(task, settings, source, found[0])
    layers = probe.each(found) if settings.each else None
    figures = compare(probe, found, settings, source, views, probe.examples, found[0].skipped)
    return figures | {"layers": layers}


def show(result: Figures, settings: LayersSettings) -> None:
    """The table, and the picture of all layers as a file."""
    print_table(result)
    if settings.each:
        picture = settings.picture or settings.out.with_suffix(".svg")
        with writing(picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_text(chart_of(result), encoding="utf-8")
        print(f"Layer by layer: {picture}")


def frame_task(source: Source, units: Units | Segments, seed: int) -> Task:
    """Telling apart the codes or labels of frames; recordings are on one side each."""
    rows = source.rows(None)
    train, test, split = split_rows(source, rows, np.zeros(len(rows), np.int64), seed)
    if not len(train) or not len(test):
        raise UserError(f"All {len(rows)} recordings are on one side ({split}): add recordings to the other.")
    names = units.names if isinstance(units, Segments) else [str(code) for code in range(units.codes)]
    if len(names) < 2:
        raise UserError(f"There is one label of frames, {names[0]}: a probe tells two or more apart.")
    return Task(tuple(names), train, test, {}, split)


class LayerProbe:
    """Probes of layers, trained and scored alike for every encoder."""

    def __init__(self, task: Task, settings: LayersSettings, source: Source, states: LayerStates) -> None:
        self.settings = settings
        labels = states.codes
        if settings.units is None and settings.frame_labels is None:
            labels = encode([source.label(int(row)) for row in states.rows], task.classes)
        self.train, self.test = (np.flatnonzero(np.isin(states.rows, side)) for side in (task.train, task.test))
        if settings.frame_labels is not None and not (len(self.train) and len(self.test)):
            raise UserError(
                f"{settings.frame_labels} labels {len(self.train)} frames for training and {len(self.test)} for the "
                f"test: its column id must hold the ids of the data ({source.id(0)}, ...), and its times must lie "
                "within the recordings."
            )
        self.examples = Examples(task, labels[self.train], labels[self.test], states.rows[self.test])

    def __call__(self, features: Any, shuffle: int | None = None) -> Answer:
        return self.probe(features, slice(None), shuffle)

    def probe(self, states: LayerStates, layers: slice, shuffle: int | None = None) -> Answer:
        """A probe on the weighted sum of some layers."""
        settings, device = self.settings, pick_device(self.settings.device)
        head = layer_probe(
            torch.from_numpy(states.x[self.train][:, layers]).to(device),
            torch.from_numpy(self.examples.labels(shuffle)).to(device),
            classes=len(self.examples.task.classes),
            groups=states.rows[self.train],
            rates=settings.rates,
            epochs=settings.epochs,
            batch=settings.probe_batch_size,
            seed=settings.seed,
        )
        predicted = head.predict(torch.from_numpy(states.x[self.test][:, layers]).to(device)).cpu().numpy()
        shares = head.mix.tolist()
        return Answer(predicted, {"rate": head.rate, "layer_shares": shares, "validation": tried(head.trials)})

    def each(self, encoders: Sequence[LayerStates]) -> dict[str, list[list[dict[str, Any]]]]:
        """Figures of every layer by itself: of the encoder, and of each untrained twin."""
        found, truth = [], self.examples.truth
        for states in encoders:
            rows = []
            for layer in range(states.x.shape[1]):
                answer = self.probe(states, slice(layer, layer + 1))
                rows.append(
                    {
                        "layer": layer,
                        "top1": float((answer.predicted == truth).mean()),
                        "balanced": balanced_accuracy(truth, answer.predicted),
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

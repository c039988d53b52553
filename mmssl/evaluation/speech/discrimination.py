"""`mmssl evaluate discrimination`: ABX error and nearest neighbours of labelled files, without any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.adapters.specs import AudioSpec, WaveformSpec
from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.frame import Figures, Settings, at_least, beside, run
from mmssl.evaluation.labels import Task
from mmssl.evaluation.layer_states import frame_middles, states_of
from mmssl.evaluation.metrics import chance, difference, score
from mmssl.evaluation.reading import Files, read_nearly_all
from mmssl.evaluation.results import data_of, encode
from mmssl.evaluation.speech.abx import abx, abx_errors, dtw_distances, nearest, pooled_distances
from mmssl.evaluation.subject import evaluating, pick_device
from mmssl.evaluation.table import print_table
from mmssl.evaluation.views import evaluation_views
from mmssl.types import Encoded

MOST_FRAMES = 200
RESAMPLES = 1000


@dataclass(kw_only=True)
class DiscriminationSettings(Settings):
    """ABX: how often is a file nearer to one of another class than to one of its own? Labels are classes (words,
    syllables, speakers); top-1 is that of the nearest other file."""

    evaluation = "discrimination"

    distance: Literal["auto", "dtw", "mean"] = "auto"
    """'dtw': along frames by dynamic time warping; 'mean': between means over time. 'auto': the first for sound of at
    most 200 frames, else the second."""
    layer: int | None = None
    """State to compare: 0 enters the first block, 1 is what that gives, and so on; the output if not given."""
    items: int = 20
    """Files of a class that are taken, drawn at random."""
    batch_size: int = 64
    workers: int = 2
    """Processes that decode; 0 decodes in this one."""

    def check(self) -> None:
        super().check()
        at_least(self, items=2, batch_size=1, workers=0)

    def run(self) -> Figures:
        return run(self, discriminate, show)


def discriminate(encoders: list[Encoder], source: Source, settings: DiscriminationSettings) -> Figures:
    """The encoder, its untrained twins and chance, on the same files.

    Raises:
        UserError: fewer than two classes with two files, files that cannot be read, or a layer that is not there.
    """
    rows, names = draw_items(source, settings)
    spec = encoders[0].spec
    views = evaluation_views(spec)
    found, kept, skipped = collect_items(encoders, Files(source, views, rows, settings.seed), settings)
    labels = encode([source.label(int(row)) for row in kept], names)
    how, longest = settings.distance, max(map(len, found[0]))
    if how == "auto":
        how = "dtw" if spec.modality == "audio" and longest <= MOST_FRAMES else "mean"
    if how == "dtw" and longest > MOST_FRAMES:
        raise UserError(
            f"Warping compares every frame with every other, and a file has {longest} of them, more than {MOST_FRAMES}:"
            " give --distance mean, or shorter files."
        )

    def figures(answer: Discrimination) -> Figures:
        low, high = abx_interval([answer.errors], labels, settings.seed)
        found = dataclasses.asdict(score(labels, answer.predicted, names, kept, settings.seed))
        return found | {"abx_error": abx(answer.errors, labels), "abx_error_interval": [low, high]}

    def gain(answer: Discrimination, twin: Discrimination) -> Figures:
        low, high = abx_interval([twin.errors, answer.errors], labels, settings.seed)
        less = {"abx_error": abx(answer.errors, labels) - abx(twin.errors, labels), "abx_error_interval": [low, high]}
        return dataclasses.asdict(difference(labels, answer.predicted, twin.predicted, kept, settings.seed)) | less

    measure = dtw_distances if how == "dtw" else pooled_distances
    answers = [Discrimination(measure(items), labels) for items in found]
    counts = {"test": {name: int((labels == number).sum()) for number, name in enumerate(names)}}
    task = Task(names, np.empty(0, np.int64), rows, {"train": {}, **counts}, "no training; every file is compared")
    return {
        "data": data_of(settings.data, "data", source, task, views, examples=(0, len(labels)), skipped=skipped),
        "distance": how,
        **beside(answers, figures, gain, settings.seed),
        "shuffled": None,
        "chance": dataclasses.asdict(chance(labels, labels)) | {"abx_error": 0.5},
    }


def show(result: Figures) -> None:
    print_table(result)
    for name in ("trained", "untrained"):
        low, high = result[name]["abx_error_interval"]
        print(f"ABX error, {name}: {100 * result[name]['abx_error']:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    print("ABX error, chance: 50 %")


class Discrimination:
    """What a matrix of distances says."""

    def __init__(self, distances: np.ndarray, labels: np.ndarray) -> None:
        self.errors = abx_errors(distances, labels)
        """float64 [N]: error of every item as X."""
        self.predicted = nearest(distances, labels)
        """int64 [N]: class of its nearest neighbour."""


def abx_interval(errors: Sequence[np.ndarray], labels: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of an error, or of the second error minus the first, by resampling the items of every class."""
    rng = np.random.default_rng(seed)
    values = errors[0] if len(errors) == 1 else errors[1] - errors[0]
    means = []
    for name in np.unique(labels):
        own = values[(labels == name) & ~np.isnan(values)]
        if len(own):
            means.append(own[rng.integers(len(own), size=(RESAMPLES, len(own)))].mean(1))
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return float(low), float(high)


def draw_items(source: Source, settings: DiscriminationSettings) -> tuple[np.ndarray, tuple[str, ...]]:
    """Rows of the files that are compared, and the classes, which have two or more of them each."""
    by_class: dict[str, list[int]] = {}
    for row in source.rows(None).tolist():
        if (label := source.label(row)) is not None:
            by_class.setdefault(label, []).append(row)
    enough = {name: rows for name, rows in sorted(by_class.items()) if len(rows) > 1}
    if len(enough) < 2:
        raise UserError(
            f"Discrimination needs two or more classes with two or more files each, and the data has {len(enough)}: "
            "put files into one folder a class, or add a metadata.csv with the column 'label'."
        )
    rng = np.random.default_rng(settings.seed)
    drawn = [np.sort(rng.permutation(rows)[: settings.items]) for rows in enough.values()]
    return np.concatenate(drawn).astype(np.int64), tuple(enough)


@torch.no_grad()
def collect_items(
    encoders: list[Encoder], files: Files, settings: DiscriminationSettings
) -> tuple[list[list[np.ndarray]], np.ndarray, list[tuple[str, str]]]:
    """Frames float32 [T,D] of every file by encoder, the rows that could be read, and what could not."""
    device = pick_device(settings.device)
    found: list[list[np.ndarray]] = [[] for _ in encoders]
    rows: list[int] = []
    skipped: list[tuple[int, str]] = []
    with evaluating(*(encoder.to(device) for encoder in encoders)):
        size, workers = settings.batch_size, settings.workers
        for chunk in read_nearly_all(files, skipped, batch_size=size, workers=workers, title="items"):
            assert chunk.views is not None
            rows += chunk.rows.tolist()
            lengths = None if chunk.lengths is None else chunk.lengths.to(device)
            for encoder, items in zip(encoders, found, strict=True):
                with torch.autocast(device.type, enabled=False):
                    encoded = encoder(chunk.views.to(device), lengths=lengths, hidden=settings.layer is not None)
                frames = frames_of(encoded, settings.layer).cpu().numpy()
                real = [None] * len(frames) if chunk.lengths is None else chunk.lengths.tolist()
                items += [one[: count_frames(encoder, len(one), n)] for one, n in zip(frames, real, strict=True)]
    return found, np.array(rows, np.int64), [(files.source.id(row), reason) for row, reason in skipped]


def frames_of(encoded: Encoded, layer: int | None) -> Tensor:
    """One vector a moment, float32 [B,T,D]: of the encoder's output, or of a layer."""
    if layer is not None:
        states = states_of(encoded)
        if not 0 <= layer < states.shape[1]:
            raise UserError(f"--layer is {layer}, and the encoder has states 0 to {states.shape[1] - 1}.")
        return states[:, layer].mean(2)
    if encoded.tokens is not None and encoded.grid is not None:
        return states_of(dataclasses.replace(encoded, hidden=(encoded.tokens,)))[:, 0].mean(2)
    if encoded.feature_map is not None and encoded.feature_map.ndim == 4:
        return encoded.feature_map.float().mean(2).transpose(1, 2)  # columns are moments of a spectrogram
    return encoded.pooled.float()[:, None]


def count_frames(encoder: Encoder, frames: int, samples: int | None) -> int:
    """How many of a view's frames are of real sound."""
    spec = encoder.spec
    if samples is None or not isinstance(spec, AudioSpec | WaveformSpec):
        return frames
    if isinstance(spec, WaveformSpec):
        return max(1, min(frames, spec.frames_of(samples)))
    middles = frame_middles(encoder)
    if len(middles) != frames:  # a convolutional net: its columns share the view equally
        middles = (np.arange(frames) + 0.5) * spec.samples / frames
    return max(1, int((middles < samples).sum()))

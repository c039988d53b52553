"""`mmssl evaluate alignment`: does an encoder see one moment in two cameras as the same, and the state of the scene?

Alignment error (Sermanet et al. 2018; official code, alignment.py): for every instant i of one camera, the
nearest instant j of another camera in embedding space (L2) is |i - j| / T away, T being the instants of the sequence;
mean over instants and ordered pairs of cameras. 0 is perfect; embeddings that say nothing give (T^2 - 1) / (3 T^2), or
1/3. State labels, where the data has them, are regressed by ridge on the frozen embeddings (`states.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmssl.data.cameras import CameraMedia, CameraSource, read_at
from mmssl.data.crops import centre_crop
from mmssl.data.media import UnreadableMedia
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.cameras.states import States, read_states, regress
from mmssl.evaluation.cameras.strip import draw_strip
from mmssl.evaluation.frame import Figures, Settings, at_least, by_name, open_media, run
from mmssl.evaluation.metrics import percentiles
from mmssl.evaluation.reading import show
from mmssl.evaluation.subject import evaluating, pick_device
from mmssl.files import writing

PIXELS = 32
"""Side of the pictures that 'pixels' compares."""
RESAMPLES = 2000


def alignment_errors(a: Tensor, b: Tensor) -> Tensor:
    """Embeddings [T,D] of the same instants in two cameras -> float64 [T]: |i - NN_b(i)| / T of each instant of `a`."""
    nearest = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return (nearest - torch.arange(len(a), device=a.device)).abs().double() / len(a)


def random_error(instants: int) -> float:
    """What embeddings that say nothing give: the mean of |i - j| / T over all pairs."""
    return (instants**2 - 1) / (3 * instants**2)


@dataclass(kw_only=True)
class AlignmentSettings(Settings):
    """Do two cameras agree on the moment? Alignment error between views, beside untrained, raw pixels and random."""

    evaluation = "alignment"

    encoder: str
    """Folder of an image encoder, such as OUT/embedding of video/tcn, or a Hub id."""
    data: str
    """Folder of synchronised cameras (SEQUENCE_cam1.mp4, SEQUENCE_cam2.mp4, ... or cameras.csv); with labels.csv or
    labels.npz (sequence, time, one column a label) states are regressed as well."""
    rate: float = 10.0
    """Instants a second that are compared; the rate of the slowest camera where that is lower."""
    batch_size: int = 64
    max_bad_share: float = 0.05
    """Stop when more than this share of files or sequences cannot be used."""

    def check(self) -> None:
        super().check()
        at_least(self, batch_size=1)
        if self.rate <= 0:
            raise UserError(f"--rate is {self.rate}: give a number above 0.")

    def run(self) -> Figures:
        """Also draws the nearest frames of one sequence, into a .png beside --out."""
        return run(self, align, print_figures, cameras, f"\nNearest frames: {self.out.with_suffix('.png')}")


def cameras(settings: AlignmentSettings, encoder: Encoder) -> CameraSource:
    if encoder.spec.modality != "image":
        raise UserError(
            f"{settings.encoder} takes {encoder.spec.modality}, and alignment compares single frames: give an encoder "
            "of images."
        )
    return CameraSource(
        open_media(settings.data, "video", max_bad_share=settings.max_bad_share), settings.max_bad_share
    )


@dataclass(frozen=True)
class Sequence:
    """What every subject makes of one sequence."""

    id: str
    times: np.ndarray
    """float64 [T]: seconds of the sequence's clock."""
    features: dict[str, Tensor]
    """By subject: float32 [cameras,T,D]."""
    thumbnails: Tensor
    """uint8 [cameras,T,3,h,h]."""


def align(encoders: list[Encoder], source: CameraSource, settings: AlignmentSettings) -> Figures:
    """The encoder, its untrained twins, raw pixels and random guesses, on the same instants.

    Raises:
        UserError: labels that do not fit the data, or no sequence that can be read.
    """
    for note in source.notes():
        print(note)
    train, test = source.rows("train"), source.rows("test")
    split = "of the data"
    if not len(test):  # every sequence is compared; states need some that the regression has not seen
        rows = np.random.default_rng(settings.seed).permutation(source.rows(None))
        test, train, split = np.sort(rows[: -(-len(rows) // 3)]), np.sort(rows[-(-len(rows) // 3) :]), "by seed"
    compared = test if split == "of the data" else source.rows(None)
    root = source.files.index.root if hasattr(source.files, "index") else None
    states = None if root is None else read_states(root, [source.id(row) for row in range(len(source))])
    subjects = by_name(encoders, settings.seed)
    wanted = np.union1d(compared, train) if states is not None else compared
    skipped: list[dict[str, str]] = []
    found = dict(read(subjects, source, wanted, settings, skipped))
    shown = [found[row] for row in compared.tolist() if row in found]
    if not shown:
        raise UserError(f"No sequence of {settings.data} could be read (first: {skipped[0]['reason']}).")
    known, held = ([found[row] for row in side.tolist() if row in found] for side in (train, test))
    figures = {
        "data": {
            "path": settings.data,
            "fingerprint": source.fingerprint,
            "split": split,
            "sequences": [one.id for one in shown],
            "instants": [len(one.times) for one in shown],
            "cameras": [len(one.thumbnails) for one in shown],
            "notes": source.notes(),
            "skipped": skipped,
        },
        "alignment": compare(shown, settings.seed),
        "states": None if states is None else regress_states(states, known, held, settings.seed),
    }
    draw(shown[0], settings.out.with_suffix(".png"))
    return figures


def draw(one: Sequence, file: Path) -> None:
    """The frames of the second camera that lie nearest to those of the first, by subject."""
    nearest = {
        name: torch.cdist(maps[0].double(), maps[1].double()).argmin(1).numpy() for name, maps in one.features.items()
    }
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_strip(one.thumbnails[0].numpy(), one.thumbnails[1].numpy(), nearest, one.times).save(file)


def read(
    subjects: dict[str, Encoder],
    source: CameraSource,
    rows: np.ndarray,
    settings: AlignmentSettings,
    skipped: list[dict[str, str]],
) -> Iterator[tuple[int, Sequence]]:
    """Every sequence that can be read, each camera decoded once for all subjects; the others go into `skipped`."""
    device = pick_device(settings.device)
    for encoder in subjects.values():
        encoder.to(device)
    for row in show(rows.tolist(), "sequences", len(rows)):
        media = source.media(row)
        start, end = media.span
        # No faster than the slowest camera: frames that are shown twice cannot be told apart.
        rate = min([settings.rate, *(camera.media.record.rate or settings.rate for camera in media.cameras)])
        times = start + np.arange(int((end - start) * rate + 1e-6) + 1) / rate
        try:
            yield row, embed(subjects, source.id(row), media, times, settings.batch_size, device)
        except (UnreadableMedia, OSError, ValueError) as error:
            skipped.append({"id": source.id(row), "reason": str(error)})


@torch.no_grad()
def embed(
    subjects: dict[str, Encoder], name: str, media: CameraMedia, times: np.ndarray, batch: int, device: torch.device
) -> Sequence:
    size = next(iter(subjects.values())).spec.size  # type: ignore[union-attr]
    parts: dict[str, list[Tensor]] = {subject: [] for subject in [*subjects, "pixels"]}
    thumbnails = []
    for camera in media.cameras:
        for first in range(0, len(times), batch):
            images = centre_crop(read_at(camera, times[first : first + batch]), size, "bicubic")
            small = F.adaptive_avg_pool2d(images.float() / 255, PIXELS)
            parts["pixels"].append(small.flatten(1))
            thumbnails.append(F.interpolate(images.float(), (64, 64), mode="area").round().to(torch.uint8))
            for subject, encoder in subjects.items():
                with evaluating(encoder), torch.autocast(device.type, enabled=False):
                    parts[subject].append(encoder(images.to(device)).pooled.float().cpu())
    shape = (len(media.cameras), len(times))
    features = {subject: torch.cat(found).unflatten(0, shape) for subject, found in parts.items()}
    if not all(torch.isfinite(x).all() for x in features.values()):
        raise UserError(f"The encoder gives features that are not finite for {name}: its training diverged.")
    return Sequence(name, times, features, torch.cat(thumbnails).unflatten(0, shape))


# ------------------------------------------------------------------------------------------------------------- figures


def compare(sequences: list[Sequence], seed: int) -> dict[str, Any]:
    """Alignment error of every subject; intervals (95 %) resample sequences."""
    errors = {
        name: np.array([sequence_error(one.features[name]) for one in sequences]) for name in sequences[0].features
    }
    times = np.random.default_rng(seed).multinomial(
        len(sequences), np.full(len(sequences), 1 / len(sequences)), RESAMPLES
    )

    def figure(values: np.ndarray) -> dict[str, Any]:
        low, high = percentiles(times @ values / len(values))
        return {"error": float(values.mean()), "interval": [low, high], "each": values.tolist()}

    return {
        "subjects": {name: figure(values) for name, values in errors.items()},
        "trained_minus": {
            name: figure(errors["trained"] - values) for name, values in errors.items() if name != "trained"
        },
        "random": float(np.mean([random_error(len(one.times)) for one in sequences])),
    }


def sequence_error(features: Tensor) -> float:
    """[cameras,T,D] -> mean over instants and ordered pairs of cameras."""
    pairs = [(i, j) for i in range(len(features)) for j in range(len(features)) if i != j]
    return float(torch.stack([alignment_errors(features[i], features[j]).mean() for i, j in pairs]).mean())


def regress_states(states: States, train: list[Sequence], test: list[Sequence], seed: int) -> dict[str, Any] | None:
    """R2 a label on the held-out sequences, for every subject; all cameras of a sequence go through one regression."""
    train = [one for one in train if one.id in states.table]
    test = [one for one in test if one.id in states.table]
    if len(train) < 2 or not test:
        raise UserError(
            f"{states.file} labels {len(train)} training and {len(test)} held-out sequences, and a regression needs 2 "
            "and 1: label more of them, or take the file away."
        )
    r2 = {}
    for name in train[0].features:
        sides = []
        for side in (train, test):
            x = [one.features[name].flatten(0, 1) for one in side]
            y = [np.tile(states.at(one.id, one.times), (len(one.thumbnails), 1)) for one in side]
            sides.append(
                (torch.cat(x).numpy(), np.concatenate(y), np.repeat(np.arange(len(side)), [len(p) for p in x]))
            )
        r2[name] = regress(*sides, seed=seed)
    return {
        "labels": list(states.names),
        "sequences": {"train": len(train), "test": len(test)},
        "r2": {name: dict(zip(states.names, values.tolist(), strict=True)) for name, values in r2.items()},
        "mean": {name: float(values.mean()) for name, values in r2.items()},
    }


def print_figures(result: dict[str, Any], console: Console | None = None) -> None:
    console = console or Console()
    figures, states, data = result["alignment"], result["states"], result["data"]
    table = Table(title=f"alignment error, {len(data['sequences'])} sequences, {sum(data['instants'])} instants")
    for column in ("subject", "error", "95 %", "trained minus it"):
        table.add_column(column, justify="left" if column == "subject" else "right", no_wrap=True)
    for name, one in figures["subjects"].items():
        gain = figures["trained_minus"].get(name)
        less = "" if gain is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(gain["error"], *gain["interval"])
        table.add_row(name, f"{one['error']:.3f}", "{:.3f} to {:.3f}".format(*one["interval"]), less)
    table.add_row("random", f"{figures['random']:.3f}", "", "")
    console.print(table)
    if states is not None:
        counts = states["sequences"]
        table = Table(title=f"R2 of states, {counts['test']} held-out sequences (ridge on {counts['train']})")
        table.add_column("label")
        for name in states["r2"]:
            table.add_column(name, justify="right")
        for label in states["labels"]:
            table.add_row(label, *(f"{values[label]:.2f}" for values in states["r2"].values()))
        table.add_row("mean", *(f"{mean:.2f}" for mean in states["mean"].values()))
        console.print(table)

"""`mmssl evaluate retrieval`: test clips look for their like among the training clips (R@k), without any training.

The protocol of video self-supervision (Büchler et al. 2018; Xu et al. 2019, VCOP, section 4.3): a query is right at k
where one of its k most similar training examples, by cosine, is of its class. Images and recordings work alike.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy.special import gammaln
from torch import Tensor

from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.features import Features
from mmssl.evaluation.frame import Figures, beside, run
from mmssl.evaluation.metrics import difference, score
from mmssl.evaluation.probes.knn import CHUNK
from mmssl.evaluation.probes.probing import Examples, ProbeSettings, pooled_features, task_for
from mmssl.evaluation.results import data_of
from mmssl.evaluation.subject import pick_device
from mmssl.evaluation.table import CLASSES_SHOWN

RANKS = (1, 5, 10)
NAMES = tuple(f"recall_at_{rank}" for rank in RANKS)


@dataclass(kw_only=True)
class RetrievalSettings(ProbeSettings):
    """Nearest training examples of every test example: R@1, R@5 and R@10, beside the untrained encoder and chance."""

    evaluation = "retrieval"

    def check(self) -> None:
        super().check()
        if self.shuffle_labels:
            raise UserError("--shuffle-labels trains a probe on shuffled labels, and retrieval trains none: leave it.")

    def run(self) -> Figures:
        return run(self, retrieve, print_recalls)


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, k: int) -> Tensor:
    """Indices int64 [Q,k] of the rows of bank [N,D] most similar to queries [Q,D] by cosine, the nearest first."""
    with torch.autocast(bank.device.type, enabled=False):
        bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
        parts = queries.split(max(1, CHUNK // len(bank)))
        return torch.cat([(part @ bank.T).topk(min(k, len(bank)), dim=1).indices for part in parts])


def chance_of_hit(train: np.ndarray, test: np.ndarray, k: int) -> float:
    """Expected R@k of k training examples drawn blindly without repetition: the mean over test examples of
    1 - C(N - n, k) / C(N, k), with n of the N training examples of their class (labels int64 [N], [Q])."""
    total, k = len(train), min(k, len(train))
    same = np.array([(train == label).sum() for label in test])
    others = total - same
    with np.errstate(invalid="ignore"):
        miss = np.exp(_log_choose(others, k) - _log_choose(np.array(total), k))
    return float(np.mean(1 - np.where(others >= k, miss, 0.0)))


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    return gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(np.maximum(n - k, 0) + 1.0)


def retrieve(encoders: list[Encoder], source: Source, settings: RetrievalSettings) -> Figures:
    """The encoder, its untrained twins and chance. Raises UserError where the data have no labels or too few files."""
    task, views = task_for(settings, source, encoders[0].spec)
    features = pooled_features(encoders, source, task, views, settings)
    search = Search(Examples.of(features[0], task), settings)
    known, truth = search.examples.known, search.examples.truth
    counts, skipped = (len(known), len(truth)), features[0].skipped
    return {
        "data": data_of(settings.data, settings.labels, source, task, views, examples=counts, skipped=skipped),
        **beside([search(one) for one in features], search.figures, search.gain, settings.seed),
        "chance": {name: chance_of_hit(known, truth, rank) for name, rank in zip(NAMES, RANKS, strict=True)},
    }


class Search:
    """Test examples among the training examples, alike for every encoder."""

    def __init__(self, examples: Examples, settings: RetrievalSettings) -> None:
        self.examples, self.settings = examples, settings

    def __call__(self, features: Features) -> np.ndarray:
        """Classes of the nearest training examples, int64 [Q,10]."""
        task, device = self.examples.task, pick_device(self.settings.device)
        bank, queries = (torch.from_numpy(features.at(side).x).to(device) for side in (task.train, task.test))
        return self.examples.known[nearest(bank, queries, RANKS[-1]).cpu().numpy()]

    def hits(self, found: np.ndarray, rank: int) -> np.ndarray:
        """int64 [Q]: 1 where one of the first `rank` is of the right class."""
        return (found[:, :rank] == self.examples.truth[:, None]).any(1).astype(np.int64)

    def figures(self, found: np.ndarray) -> dict[str, Any]:
        truth, groups, seed = self.examples.truth, self.examples.groups, self.settings.seed
        figures: dict[str, Any] = {"n": len(truth)}
        for name, rank in zip(NAMES, RANKS, strict=True):
            hits = self.hits(found, rank)
            share = score(np.ones_like(hits), hits, ("missed", "hit"), groups, seed)
            figures |= {name: share.top1, f"{name}_interval": share.top1_interval}
        # By class: recall is R@1, precision that of naming the nearest one's class.
        named = score(truth, found[:, 0], self.examples.task.classes, groups, seed)
        return figures | {"per_class": dataclasses.asdict(named)["per_class"]}

    def gain(self, found: np.ndarray, twin: np.ndarray) -> dict[str, Any]:
        gains: dict[str, Any] = {}
        for name, rank in zip(NAMES, RANKS, strict=True):
            ours, theirs = self.hits(found, rank), self.hits(twin, rank)
            gain = difference(np.ones_like(ours), ours, theirs, self.examples.groups, self.settings.seed)
            gains |= {name: gain.top1, f"{name}_interval": gain.top1_interval}
        return gains


def print_recalls(result: dict[str, Any]) -> None:
    """The figures of a retrieval as a table on the terminal."""
    console, data = Console(), result["data"]
    table = Table(
        title=f"{result['evaluation']}: {data['examples']['test']} queries, {data['examples']['train']} known"
    )
    table.add_column("encoder", no_wrap=True)
    for rank in RANKS:
        table.add_column(f"R@{rank}", justify="right")
        table.add_column("95 %", justify="right")

    def row(title: str, figures: dict[str, Any]) -> None:
        cells = []
        for name in NAMES:
            low, high = figures.get(f"{name}_interval", (None, None))
            cells += [f"{100 * figures[name]:.1f}", "" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"]
        table.add_row(title, *cells)

    row("trained", result["trained"])
    for twin in (result["untrained"], *result["further_untrained"]):
        row(f"untrained (seed {twin['seed']})", twin)
    row("chance", result["chance"])
    console.print(table)
    classes = Table(title="trained, by class")
    for column in ("class", "n", "R@1"):
        classes.add_column(column, justify="left" if column == "class" else "right")
    for entry in result["trained"]["per_class"][:CLASSES_SHOWN]:
        recall = "-" if entry["recall"] is None else f"{100 * entry['recall']:.1f}"
        classes.add_row(entry["name"], str(entry["n"]), recall)
    console.print(classes)
    if len(result["trained"]["per_class"]) > CLASSES_SHOWN:
        console.print(f"... and {len(result['trained']['per_class']) - CLASSES_SHOWN} more classes in the file.")
    for note in (data["split"], *data["notes"]):
        console.print(f"note: {note}", style="dim", highlight=False)

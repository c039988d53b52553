"""`mmssl evaluate attentive`: a probe that chooses what to look at among all tokens of a frozen encoder.

Masked prediction leaves the information in the tokens and not in their mean; V-JEPA therefore judges by a learned query
that attends to them (Bardes et al. 2024, arXiv:2404.08471), with several learning rates and weight decays in parallel.
Here they are chosen on a part of the training files, never on the test.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.adapters.specs import WaveformSpec
from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.frame import Figures, run
from mmssl.evaluation.labels import Task, held_out
from mmssl.evaluation.probes.attentive_heads import State, logits_of, new_heads, samples_at_once, train_heads
from mmssl.evaluation.probes.linear import Trial, check_grid, tried
from mmssl.evaluation.probes.probing import Answer, Examples, ProbeSettings, compare, task_for
from mmssl.evaluation.probes.tokens import Tokens, collect_tokens
from mmssl.evaluation.reading import Files
from mmssl.evaluation.results import encode
from mmssl.evaluation.subject import pick_device

LEAST_STEPS = 500


@dataclass(kw_only=True)
class AttentiveSettings(ProbeSettings):
    """An attentive probe on frozen tokens; rate and decay are chosen on a fifth of the training files."""

    evaluation = "attentive"

    rates: tuple[float, ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
    """Learning rates to choose from (V-JEPA 2's)."""
    decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    """Weight decays to choose from (V-JEPA 2's)."""
    heads: int = 16
    """Heads of the cross-attention; the largest divisor of the encoder's width up to this."""
    epochs: int = 20
    """Passes over the training examples (and at least 500 steps, which small sets need)."""
    probe_batch_size: int = 256
    """Examples of one step of the probe."""
    token_gib: float = 50.0
    """Most disk for tokens in fp16, in GiB; beyond it, they are computed anew in every epoch."""

    def check(self) -> None:
        super().check()
        check_grid(self.rates, self.decays)
        if min(self.epochs, self.probe_batch_size, self.heads) < 1 or self.token_gib < 0:
            raise UserError("--epochs, --probe-batch-size and --heads are 1 or more, --token-gib 0 or more.")

    def run(self) -> Figures:
        return run(self, attentive)


def attentive(encoders: list[Encoder], source: Source, settings: AttentiveSettings) -> Figures:
    """The encoder, its untrained twins and chance, on the same files.

    Raises:
        UserError: no labels, too few classes or files, files that cannot be read, or an encoder of waveforms.
    """
    spec = encoders[0].spec
    if isinstance(spec, WaveformSpec):
        raise UserError(
            "An attentive probe takes equally many tokens of every file, and a speech encoder gives as many as the "
            "recording is long: use `mmssl evaluate linear`."
        )
    task, views = task_for(settings, source, spec)
    files = Files(source, views, np.concatenate([task.train, task.test]), settings.seed)
    found = collect_tokens(encoders, files, limit=settings.token_gib * 2**30, **settings.reading())
    probe = AttentiveProbe(task, settings, source, found[0])
    figures = compare(probe, found, settings, source, views, probe.examples, found[0].skipped)
    figures["data"] |= {"tokens": list(found[0].shape), "tokens_kept": found[0].stored is not None}
    return figures


class AttentiveProbe:
    """Attentive probes, trained and scored alike for every encoder. The clips of a file with a label of its own are
    examples of it in training; in testing their logits are averaged."""

    def __init__(self, task: Task, settings: AttentiveSettings, source: Source, tokens: Tokens) -> None:
        self.task, self.settings = task, settings
        self.by_file = settings.labels == "data"
        if self.by_file:
            named = {int(row): source.label(int(row)) for row in np.unique(tokens.rows)}
            self.labels = encode([named[int(row)] for row in tokens.rows], task.classes)
        else:
            self.labels = tokens.classes
        train, test = (self.counted(tokens, side) for side in (task.train, task.test))
        self.examples = Examples(task, self.labels[train], self.labels[test], tokens.rows[test])

    def counted(self, tokens: Tokens, files: np.ndarray) -> np.ndarray:
        """Numbers of the examples that count: one a file where the label is the file's."""
        numbers = tokens.numbers(files)
        if self.by_file:
            numbers = numbers[np.sort(np.unique(tokens.rows[numbers], return_index=True)[1])]
        return numbers

    def __call__(self, features: Any, shuffle: int | None = None) -> Answer:
        settings, tokens, task = self.settings, features, self.task
        labels = self.labels if shuffle is None else self.shuffled(tokens, shuffle)
        train = task.train[np.isin(task.train, tokens.rows)]
        strata = labels[self.counted(tokens, train)] if self.by_file else np.zeros(len(train), np.int64)
        held = held_out(train.tolist(), strata, share=0.2, seed=settings.seed)
        if not held.any() or held.all():
            raise UserError(
                f"An attentive probe chooses its learning rate on a part of the training data, and {len(train)}"
                " training files with at most one a class cannot be split: add labelled files, or use mmssl evaluate"
                " knn."
            )
        target = torch.from_numpy(labels)
        grid = list(itertools.product(settings.rates, settings.decays))
        heads = self.train(tokens, train[~held], target, grid, "choosing")
        trials = []
        logits, truth = self.test(heads, tokens, train[held], target)
        for (rate, decay), own in zip(grid, logits.unbind(1), strict=True):
            top1 = float((own.argmax(1) == truth).float().mean())
            trials.append(Trial(rate, decay, top1, float(F.cross_entropy(own, truth))))
        best = max(trials, key=lambda t: (math.isfinite(t.validation_loss), t.validation_top1, -t.validation_loss))
        heads = self.train(tokens, train, target, [(best.rate, best.decay)], "probe")
        logits, _ = self.test(heads, tokens, task.test[np.isin(task.test, tokens.rows)], target)
        details = {"rate": best.rate, "decay": best.decay, "heads": self.attention(tokens), "validation": tried(trials)}
        return Answer(logits[:, 0].argmax(1).numpy(), details)

    def attention(self, tokens: Tokens) -> int:
        width = tokens.shape[1]
        return max(count for count in range(1, min(self.settings.heads, width) + 1) if width % count == 0)

    def shuffled(self, tokens: Tokens, seed: int) -> np.ndarray:
        """Labels of the training files (or of their examples) permuted; those of the others stay."""
        rng, labels = np.random.default_rng(seed), self.labels.copy()
        train = tokens.numbers(self.task.train[np.isin(self.task.train, tokens.rows)])
        if not self.by_file:
            labels[train] = rng.permutation(labels[train])
            return labels
        rows, place = np.unique(tokens.rows[train], return_inverse=True)
        first = np.unique(place, return_index=True)[1]
        labels[train] = rng.permutation(labels[train][first])[place] if len(rows) else labels[train]
        return labels

    def train(
        self, tokens: Tokens, files: np.ndarray, labels: Tensor, grid: list[tuple[float, float]], title: str
    ) -> State:
        """Heads of every (rate, decay), trained on the examples of some files."""
        settings, device = self.settings, pick_device(self.settings.device)
        heads = new_heads(tokens.shape[1], len(self.task.classes), len(grid), settings.seed)
        heads = {name: tensor.to(device) for name, tensor in heads.items()}
        size = min(settings.probe_batch_size, len(tokens.numbers(files)))
        steps = max(LEAST_STEPS, settings.epochs * (len(tokens.numbers(files)) // size))

        def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            order = np.random.default_rng((settings.seed, epoch)).permutation(files)
            return tokens.batches(order, size)

        train_heads(
            heads,
            batches,
            labels,
            attention=self.attention(tokens),
            rates=torch.tensor([rate for rate, _ in grid]),
            decays=torch.tensor([decay for _, decay in grid]),
            steps=steps,
            tick=ticker(title, steps),
        )
        return heads

    @torch.no_grad()
    def test(self, heads: State, tokens: Tokens, files: np.ndarray, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [Q,J,classes] of the examples of some files (of the files, where the label is theirs), and
        their classes int64 [Q]; on the CPU."""
        device, attention = heads["query"].device, self.attention(tokens)
        found, numbers = [], []
        size = samples_at_once(heads, tokens.shape[0], attention)
        for x, number in tokens.batches(files, self.settings.probe_batch_size):
            found += [logits_of(heads, few.to(device), attention).cpu() for few in x.split(size)]
            numbers.append(number)
        logits, number = torch.cat(found), torch.cat(numbers)
        if not self.by_file:
            return logits, labels[number]
        rows = tokens.rows[number.numpy()]
        _, first, place = np.unique(rows, return_index=True, return_inverse=True)
        where = torch.from_numpy(place)
        mean = logits.new_zeros(len(first), *logits.shape[1:]).index_add_(0, where, logits)
        mean /= where.bincount()[:, None, None]
        order = torch.from_numpy(np.argsort(first))  # as the files were given
        return mean[order], labels[number[torch.from_numpy(first)]][order]


def ticker(title: str, total: int, interval: float = 30.0) -> Callable[[], None]:
    """Says on stderr, every `interval` seconds, how many steps are done."""
    done, last = 0, time.monotonic()

    def tick() -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last > interval:
            last = time.monotonic()
            print(f"{title}: {done}/{total} steps", file=sys.stderr, flush=True)

    return tick

"""The settings that every recipe shares; a recipe subclasses them with its paper's values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmssl.errors import UserError

FREE = frozenset(
    {
        "out",
        "workers",
        "file_seconds",
        "log_every",
        "save_every",
        "keep",
        "probe_every",
        "max_bad_share",
        "tensorboard",
        "dry_run",
        "progress_seconds",
        "units",  # their codebook is compared
    }
)
"""Settings that may change between a run and its continuation, because the result does not depend on them."""


@dataclass(kw_only=True)
class Settings:
    """What every run needs. The learning rate is base_lr * batch_size / lr_per."""

    data: str
    """Folder of media, folder with metadata.csv, WebDataset tars, or a Hub data set name."""
    out: Path
    """Folder of the run. The same command again goes on where it stopped."""
    init: str | None = None
    """Start from this Hugging Face checkpoint (Hub id or folder). Its architecture wins over the encoder's settings."""

    epochs: float = 100.0
    """Passes over the data (clips cut from one file by repeated sampling count as one pass)."""
    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    batch_size: int = 256
    """Samples of one optimiser step, over all processes and micro-batches."""
    accumulate: int = 1
    """Micro-batches of one optimiser step."""
    seed: int = 0
    """Fixes initial weights, order, crops, masks and augmentation."""

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    base_lr: float = 1.5e-4
    lr_per: int = 256
    """Global batch size that base_lr is meant for."""
    min_lr: float = 0.0
    """Learning rate at the last step, scaled by the batch as base_lr is."""
    warmup: float = 0.05
    """Share of the run in which the learning rate grows from 0."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after that."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW; SGD and LARS use the first as momentum."""
    eps: float = 1e-8
    """Of AdamW."""
    clip: float | None = None
    """Largest norm of the gradient; none if not given."""

    precision: Literal["no", "bf16", "fp16"] | None = None
    """Mixed precision; Accelerate's own configuration decides if not given."""
    compile: bool = False
    """Compile the transformer blocks one by one; a CPU needs a C++ compiler for it, and a minute at the first step."""
    workers: int = field(default_factory=lambda: min(4, len(os.sched_getaffinity(0))))
    """Processes a device that read and decode, by default one a core and at most 4; 0 reads in the training process."""
    file_seconds: float = 120.0
    """Seconds that a worker may take for one file before the run stops and names it."""

    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    save_every: int = 1000
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    probe_every: int | None = None
    """Steps between two probes (nearest neighbours, signs of collapse) and pictures; a tenth of the run if not given,
    0 for never."""
    max_bad_share: float = 0.05
    """The run stops when more than this share of the files it tried cannot be read."""
    tensorboard: bool = False
    """Also write TensorBoard files into OUT/tensorboard."""
    progress_seconds: float = 10.0
    """Seconds between two lines of progress where no terminal is attached."""
    dry_run: bool = False
    """Print settings, sizes, expected time and memory, write the first batch's pictures, and stop."""

    @property
    def lr(self) -> float:
        return self.base_lr * self.batch_size / self.lr_per

    @property
    def last_lr(self) -> float:
        return self.min_lr * self.batch_size / self.lr_per

    def runs(self, device: str) -> Iterator[Settings]:
        """The runs that one command makes, one after the other, on `device`: this one, unless a recipe's method takes
        several. What has to stand before a run is made before it is yielded, on every process."""
        yield self

    def check(self, world: int) -> None:
        """Raise UserError for values that cannot work together on `world` processes."""
        for name in ("batch_size", "accumulate", "log_every", "save_every", "keep", "lr_per"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give 1 or more.")
        for name in ("workers", "probe_every", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give 0 or more.")
        if (self.steps is not None and self.steps < 1) or self.epochs <= 0:
            raise UserError("The run has no steps: give --steps of 1 or more, or --epochs above 0.")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup is {self.warmup}, but it is a share of the run: give 0 to 1.")
        if self.file_seconds <= 0:
            raise UserError(f"--file-seconds is {self.file_seconds:g}: give a number above 0.")
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"--clip is {self.clip}: give a norm above 0, or leave it out for no clipping.")
        self.check_batch(world)

    def check_batch(self, world: int) -> None:
        """Raise UserError for a batch that cannot be shared out."""
        if self.batch_size % (world * self.accumulate):
            raise UserError(
                f"--batch-size {self.batch_size} does not divide into {world} process(es) x {self.accumulate} "
                f"micro-batch(es): give a multiple of {world * self.accumulate}."
            )

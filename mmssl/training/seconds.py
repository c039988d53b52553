"""Settings of recipes whose batches are limited by seconds of audio instead of a number of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from rich.console import Console

from mmssl.data.buckets import BucketPlan
from mmssl.data.crops_audio import AudioCrops, Labels
from mmssl.data.indexing import show_progress
from mmssl.data.plan import Plan
from mmssl.data.sources import Source, open_source
from mmssl.distributed import rank, world_size
from mmssl.errors import UserError
from mmssl.training.settings import Settings


@dataclass(kw_only=True)
class SettingsBySeconds(Settings):
    """The learning rate is base_lr * batch_seconds / lr_per: it goes by the limit, not by what a step happens to hold.
    Steps differ in recordings and frames, and every frame of a step weighs the same in its loss (`count`)."""

    batch_size: int = field(default=1, init=False)
    """Not a setting here: the limit is in seconds."""
    batch_seconds: float = 2800.0
    """Seconds of audio of one optimiser step at most, over all processes and micro-batches."""
    lr_per: int = 2800
    """Seconds of audio of a step that base_lr is meant for."""
    min_seconds: float = 2.0
    """Recordings below are left out."""
    max_seconds: float = 15.625
    """Longest crop."""
    buckets: int = 16
    """Lengths of crops: one shape of micro-batch each."""
    short: Literal["crop", "pad"] = "crop"
    """Whether the recordings of a bucket are cropped to its shortest or padded to its longest."""

    @property
    def lr(self) -> float:
        return self.base_lr * self.batch_seconds / self.lr_per

    @property
    def last_lr(self) -> float:
        return self.min_lr * self.batch_seconds / self.lr_per

    def check_batch(self, world: int) -> None:
        if self.batch_seconds <= 0 or self.buckets < 1:
            raise UserError(
                f"--batch-seconds is {self.batch_seconds:g} and --buckets {self.buckets}: both must be above 0."
            )

    def check_data(self) -> None:
        """What the plan of batches refuses: unknown lengths, recordings that are all too short, too little sound. By
        default hop and window: others change no more than the last digit of a length.
        """
        with show_progress(Console(stderr=True)) as progress:
            source = open_source(
                self.data, "audio", max_bad_share=self.max_bad_share, progress=progress if rank() == 0 else None
            )
        rows = source.rows("train")
        plan = self.plan(self.views())(source, rows if len(rows) else source.rows(None))
        plan.micro_batches(0, world=world_size())

    def views(self, units: Labels | None = None, rate: int = 16000, hop: int = 320, window: int = 400) -> AudioCrops:
        """The crops that these settings ask for, with `units` cut alongside."""
        return AudioCrops(
            rate=rate,
            units=units,
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            short="skip" if self.short == "crop" else "pad",
            hop=hop,
            window=window,
        )

    def plan(self, views: AudioCrops) -> Callable[[Source, np.ndarray], Plan]:
        """What a recipe gives as `Parts.plan`."""
        return partial(
            BucketPlan.of,
            views=views,
            seed=self.seed,
            batch_seconds=self.batch_seconds,
            accumulate=self.accumulate,
            buckets=self.buckets,
        )

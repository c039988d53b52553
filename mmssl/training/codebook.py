"""What an objective fits on the data before the first step: OUT/codebook.safetensors, the one place where it is kept.

The main process fits and writes it when a run begins; every process reads it then and whenever the run goes on.
Checkpoints hold its hash only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmssl.data.loader import make_loader
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.training.checkpoint import Saved, agree
from mmssl.training.progress import Display
from mmssl.types import Batch

if TYPE_CHECKING:
    from mmssl.training.loop import Run

FILE = "codebook.safetensors"


def settle_codebook(run: Run, saved: Saved | None, display: Display) -> Codebook | None:
    """The codebook of the run, fitted where it begins, handed to the objective; None where that asks for none.

    Collective. Raises UserError where the run goes on and the file is missing or another one.
    """
    objective, file = run.objective, run.settings.out / FILE
    if objective.codebook is None:
        return None
    problem: UserError | None = None
    if run.accelerator.is_main_process:
        try:
            if saved is None:
                fit(run, display).save(file)
            codebook = read(file, saved)
        except UserError as error:
            problem = error
    agree(run.accelerator, problem, f"{file} could not be made or read by the main process, which says why.")
    if not run.accelerator.is_main_process:
        codebook = read(file, saved)
    objective.adopt(codebook)
    return codebook


def read(file: Path, saved: Saved | None) -> Codebook:
    """The codebook of a run; of one that goes on (`saved`) only that which it began with."""
    if saved is not None and not file.is_file():
        raise UserError(
            f"{file} is missing, and the run in {file.parent} was trained with it: put it back (OUT/encoder of a "
            "finished run has a copy), or choose another --out."
        )
    codebook = Codebook.load(file)
    if saved is not None and saved.state.get("codebook") != codebook.sha256:
        raise UserError(
            f"{file} is not the codebook that the run in {file.parent} was trained with: put that back, or choose "
            "another --out."
        )
    return codebook


@torch.no_grad()
def fit(run: Run, display: Display | None = None) -> Codebook:
    """Fit on the first samples of the plan, as this process alone would read them."""
    with closing(samples(run, display)) as batches:
        return run.objective.fit(batches)


def samples(run: Run, display: Display | None) -> Generator[Batch]:
    """Micro-batches on the device up to `fit_samples` or the end of the run; says now and then how far it is."""
    settings, objective = run.settings, run.objective
    steps = min(run.total, math.ceil(objective.fit_samples / settings.batch_size))
    total, done, last = steps * settings.batch_size, 0, time.monotonic()
    if display is not None:
        display.say(f"Fitting the {objective.codebook} on {total} samples.")
    loader = make_loader(
        run.dataset,
        run.plan,
        start_step=0,
        stop_step=steps,
        accumulate=settings.accumulate * run.accelerator.num_processes,
        workers=settings.workers,
        timeout=settings.file_seconds,
    )
    for batch in loader:
        yield run.on_device(batch)
        done += len(batch)
        if display is not None and time.monotonic() - last > settings.progress_seconds:
            last = time.monotonic()
            display.say(f"Fitting the {objective.codebook}: {done} of {total} samples.")

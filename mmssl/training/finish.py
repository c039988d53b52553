"""The end of a run: encoders in the Hugging Face layout, pictures, neighbours, and the report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.files import writing
from mmssl.objectives.base import Objective
from mmssl.report.build import write_report
from mmssl.report.neighbours import collect
from mmssl.training.checkpoint import WHOLE, agree
from mmssl.training.progress import Display

if TYPE_CHECKING:
    from mmssl.training.loop import Run


def finish(run: Run, display: Display) -> None:
    """Export and report; every process calls it, the main one writes. Raises UserError where OUT cannot be written."""
    run.watch.pictures(run.step)
    encoders = exported(run)
    problem: UserError | None = None
    if run.accelerator.is_main_process:
        out = run.settings.out
        try:
            for name, encoder in encoders.items():
                export(partial(save, run, encoder), out / name)
            first = next(iter(encoders.values())).to(run.accelerator.device).eval()
            # Eagerly: files come in batches of another size than the blocks may be compiled for.
            with writing(out / "report.html"), torch.compiler.set_stance("force_eager"):
                collect(out, first, run.source, seed=run.settings.seed, workers=run.settings.workers)
                report = write_report(out)
            display.say(f"Encoder: {', '.join(str(out / name) for name in encoders)}\nReport:  {report}")
        except UserError as error:
            problem = error
    agree(run.accelerator, problem, f"{run.settings.out} could not be finished by the main process, which says why.")


def exported(run: Run) -> dict[str, Encoder]:
    """The run's encoders with whole weights; empty on other processes under FSDP."""
    objective = whole_objective(run)
    return {} if objective is None else objective.exports()


def whole_objective(run: Run) -> Objective | None:
    """The run's objective with whole weights; None on other processes under FSDP. Collective."""
    if getattr(run.accelerator.state, "fsdp_plugin", None) is None:
        return run.objective
    state = get_model_state_dict(run.model, options=WHOLE)  # collective; whole on the main process only
    if not run.accelerator.is_main_process:
        return None
    with torch.random.fork_rng():
        fresh = run.build(run.settings).objective  # the trained one holds shards only
    fresh.load_state_dict(state)
    return fresh


def save(run: Run, encoder: Encoder, folder: Path) -> None:
    """Write an encoder, and what was fitted for it beside it."""
    encoder.save_pretrained(folder)
    if run.codebook is not None:
        run.codebook.save(folder / f"{run.objective.codebook}.safetensors")


def export(save: Callable[[Path], Any], folder: Path) -> None:
    """Write a model beside with `save(folder)`, then put it in place, so that the folder is never half written."""
    part = folder.with_name(f".{folder.name}.part")
    with writing(folder):
        shutil.rmtree(part, ignore_errors=True)
        try:
            save(part)
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

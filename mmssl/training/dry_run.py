"""--dry-run: what a run would be, without making one."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from mmssl.files import writing
from mmssl.report.pictures import save_pictures
from mmssl.training.progress import duration
from mmssl.training.start import as_json, device_name
from mmssl.training.step import train_step
from mmssl.training.watch import SHOWN, first_batch

if TYPE_CHECKING:
    from mmssl.training.loop import Run

TIMED = 2


def dry_run(run: Run, recipe: str) -> None:
    """Print settings, parameters, first batch, expected time and memory; pictures go to OUT/dry-run/pictures."""
    settings, accelerator = run.settings, run.accelerator
    say = print if accelerator.is_main_process else lambda *_: None
    say(f"recipe {recipe}\nsettings {json.dumps(as_json(settings), indent=1)}")
    encoder = parameters(run.objective.encoder)
    say(f"parameters: encoder {encoder:,}, heads and others {parameters(run.objective) - encoder:,}")
    say(f"data: {len(run.plan.rows):,} files, {run.plan.steps_per_epoch:,.0f} steps an epoch, {run.total:,} steps")
    micro_batches = run.micro_batches()
    batch = next(micro_batches)
    for kind, tensors in (("view", batch.views), ("draws", batch.noise), ("target", batch.targets)):
        for name, tensor in tensors.items():
            say(f"first micro-batch: {kind} {name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}")
    run.model.eval()
    with torch.no_grad():
        if run.objective.codebook is not None:  # fitted on one batch: enough to see and to time
            run.objective.adopt(run.objective.fit(iter([batch])))
        pictures = run.model(first_batch(run, SHOWN), what="pictures")
    run.model.train()
    if accelerator.is_main_process:
        with writing(settings.out / "dry-run"):
            written = save_pictures(settings.out / "dry-run", 0, pictures)
        for path in written:
            say(f"picture: {path}")
    times = []
    for _ in range(1 + TIMED):  # the first step also allocates and compiles
        began = time.perf_counter()
        train_step(
            accelerator,
            run.model,
            run.optimizer,
            [batch] * settings.accumulate,
            micro_batches=settings.accumulate,
            step=0,
            total=run.total,
            clip=settings.clip,
            scale=run.scale,
        )
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize(accelerator.device)
        times.append(time.perf_counter() - began)
    step = statistics.mean(times[1:])
    began = time.perf_counter()
    few = run.plan.first(SHOWN)
    run.dataset.batch(few)
    # Read here one after the other; a run reads in its workers side by side.
    files = run.plan.files_per_step / accelerator.num_processes / max(settings.workers, 1)
    reading = (time.perf_counter() - began) / len(few) * files
    say(f"a step takes {step:.3g} s on {device_name(accelerator.device)}, reading its data about {reading:.3g} s")
    say(f"expected time: {duration(max(step, reading) * run.total)} for {run.total:,} steps")
    say(f"peak memory a process: {peak_memory(accelerator.device) / 2**30:.2f} GiB")


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""The training loop: a recipe's parts, a plan of batches, the one step function, and what a run leaves behind."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from mmssl.data.buckets import BucketPlan
from mmssl.data.indexing import show_progress
from mmssl.data.loader import MediaDataset, make_loader
from mmssl.data.plan import Plan
from mmssl.data.sources import open_source
from mmssl.encoders.layouts import layout_of
from mmssl.errors import UserError
from mmssl.files import writing
from mmssl.objectives.base import Objective
from mmssl.training.checkpoint import Checkpoints, Saved, agree
from mmssl.training.codebook import FILE, read, settle_codebook
from mmssl.training.dry_run import dry_run
from mmssl.training.finish import finish
from mmssl.training.interrupt import Interrupt
from mmssl.training.log import JsonLines, Value
from mmssl.training.optim import build_optimizer, set_lr
from mmssl.training.progress import Display
from mmssl.training.recipe import Parts, check_parts, needed_noise
from mmssl.training.schedule import SCHEDULES
from mmssl.training.settings import Settings
from mmssl.training.start import check_out, compile_blocks, make_accelerator, write_recipe
from mmssl.training.step import LossScale, StepOutput, reduced, train_step, wide
from mmssl.training.watch import Watch
from mmssl.types import Batch

S = TypeVar("S", bound=Settings)
BAD_IN_A_ROW = 50
"""Steps without a finite gradient after which a run is not worth going on."""
FEW = 20
"""Files tried before the share of bad ones means anything."""


def train(settings: S, build: Callable[[S], Parts], *, recipe: str, command: str) -> None:
    """Train a recipe from its beginning or from where OUT stopped, and leave OUT behind as the README describes.

    Raises UserError for everything a user can mend; exits with status 130 after Ctrl-C or SIGTERM, everything saved.
    """
    accelerator = make_accelerator(settings)
    settings.check(accelerator.num_processes)
    finished = True
    for own in settings.runs(str(accelerator.device)):
        if own is not settings:
            accelerator = make_accelerator(own)
        finished = carry_out(accelerator, cast(S, own), build, recipe=recipe, command=command)
        if not finished:
            break
    accelerator.end_training()
    if not finished:
        sys.exit(130)


def carry_out(
    accelerator: Accelerator,
    settings: S,
    build: Callable[[S], Parts],
    *,
    recipe: str,
    command: str,
    end: Callable[[Run, Display], None] = finish,
) -> bool:
    """`train` for one of several runs of a process: its end is `end(run, display)`; False if it was interrupted."""
    settings.check(accelerator.num_processes)
    on_main(accelerator, lambda: None if settings.dry_run else check_out(settings, recipe))
    run = Run(settings, build, accelerator)
    for name, encoder in run.objective.exports().items():
        reason = layout_of(encoder).reason
        if reason is not None and accelerator.is_main_process:
            print(f"{settings.out / name}: only mmssl.Encoder will load it ({reason}).", file=sys.stderr, flush=True)
    if settings.dry_run:
        dry_run(run, recipe)
        return True
    on_main(accelerator, lambda: write_recipe(settings, recipe, command, accelerator))
    finished = run.train(end)
    if not finished and accelerator.is_main_process:
        # Options of a launcher are not among the arguments of its processes.
        again = command if accelerator.num_processes == 1 else "the command that launched these processes, once more"
        print(f"Saved after step {run.step} of {run.total}. To go on:\n  {again}", file=sys.stderr, flush=True)
    return finished


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do something on the main process only; where it cannot be done, every process raises UserError."""
    problem: UserError | None = None
    if accelerator.is_main_process:
        try:
            action()
        except UserError as error:
            problem = error
    agree(accelerator, problem, "The main process stopped, and says why.")


class Run:
    """One start of a run. Everything here is the same on every process but the slice of each batch."""

    def __init__(self, settings: Any, build: Callable[[Any], Parts], accelerator: Accelerator) -> None:
        self.settings, self.build, self.accelerator = settings, build, accelerator
        torch.manual_seed(settings.seed)
        parts = build(settings)
        self.parts, self.objective = parts, parts.objective
        self.encoder_spec = parts.objective.encoder.spec
        check_parts(parts)
        self.objective.check(settings.batch_size)
        with accelerator.main_process_first(), show_progress(Console(stderr=True)) as progress:
            files = open_source(
                settings.data,
                parts.views.kind or self.encoder_spec.modality,
                out=settings.out if accelerator.is_main_process and not settings.dry_run else None,
                max_bad_share=settings.max_bad_share,
                progress=progress if accelerator.is_main_process else None,
            )
        self.source = parts.views.arrange(files, settings.max_bad_share)
        rows = self.source.rows("train")
        self.rows = rows if len(rows) else self.source.rows(None)
        if parts.plan is None:
            self.plan = Plan(self.rows, settings.batch_size, settings.seed, parts.views.per_file)
        else:
            self.plan = parts.plan(self.source, self.rows)
        self.total = settings.steps or max(1, round(settings.epochs * self.plan.steps_per_epoch))
        self.dataset = MediaDataset(self.source, parts.views, settings.seed, needed_noise(parts), self.rows)
        self.model, self.optimizer = self.prepare(parts.objective)
        self.scale = None if accelerator.scaler is None else LossScale(accelerator.scaler, accelerator.device)
        self.step = 0
        self.waited = 0.0
        self.counts: dict[str, float] = {"files": 0, "skipped_files": 0, "skipped_steps": 0, "bad_in_a_row": 0}

    def prepare(self, objective: Objective) -> tuple[nn.Module, torch.optim.Optimizer]:
        if self.settings.compile:
            compile_blocks(objective, self.accelerator.device, self.plan.shapes)
        optimizer = build_optimizer(objective, self.settings)
        with warnings.catch_warnings():
            # Its successor in DDP cannot be reached through Accelerate yet.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            model, wrapped = self.accelerator.prepare(objective, optimizer)
        return model, cast(torch.optim.Optimizer, wrapped.optimizer)  # step() needs no wrapper

    # ------------------------------------------------------------------------------------------------------ training

    def train(self, end: Callable[[Run, Display], None] = finish) -> bool:
        """Train to the last step, then `end`; False if the run was interrupted (it is saved)."""
        settings, accelerator = self.settings, self.accelerator
        self.checkpoints = Checkpoints(settings.out, accelerator, settings.keep)
        self.metrics = JsonLines(settings.out / "metrics.jsonl")
        self.skips = JsonLines(settings.out / "skipped.jsonl")
        saved = self.resume()
        if settings.tensorboard:
            with writing(
                settings.out / "tensorboard"
            ):  # purge_step hides what a killed run logged beyond its checkpoint
                accelerator.init_trackers("", init_kwargs={"tensorboard": {"purge_step": self.step + 1}})
        if self.step == 0:
            self.list_problems()
            for note in self.source.notes() + self.plan.notes() if accelerator.is_main_process else []:
                print(note, file=sys.stderr, flush=True)
        self.watch = Watch(self)
        display = Display(
            total=self.total, done=self.step, every=settings.progress_seconds, shown=accelerator.is_main_process
        )
        if saved is not None:
            display.say(f"Going on after step {self.step} of {self.total}, from {saved.folder}.")
        self.codebook = settle_codebook(self, saved, display)
        with Interrupt(accelerator) as interrupt, display:
            finished = self.train_steps(saved, interrupt, display)
        if finished:
            end(self, display)
        return finished

    def resume(self) -> Saved | None:
        saved = self.checkpoints.newest()
        if saved is not None:
            if saved.state["rows"] != len(self.rows):
                raise UserError(
                    f"{self.settings.data} has {len(self.rows)} usable files to train on, and the run in "
                    f"{self.settings.out} began with {saved.state['rows']}: bring the data back to what it was, or "
                    "choose another --out."
                )
            if self.objective.codebook is not None:  # another one may have other sizes, too
                self.objective.adopt(read(self.settings.out / FILE, saved))
            self.checkpoints.load(saved, self.model, self.optimizer, self.scale)
            self.step = saved.step
            self.counts = dict(saved.state["counts"])
            if not self.accelerator.is_main_process:  # sums over processes were saved
                self.counts["files"] = self.counts["skipped_files"] = 0
        if self.accelerator.is_main_process:
            self.metrics.cut(self.step)
            self.skips.cut(self.step if self.step else -1)
        self.accelerator.wait_for_everyone()
        return saved

    def train_steps(self, saved: Saved | None, interrupt: Interrupt, display: Display) -> bool:
        settings, device = self.settings, self.accelerator.device
        self.waited, self.since = 0.0, time.perf_counter()
        self.logged = self.step
        (self.files_logged,) = self.summed([self.counts["files"]])
        self.bad = torch.tensor([self.counts["skipped_steps"], self.counts["bad_in_a_row"]], device=device)
        if self.step == self.total:
            return True
        micro_batches = self.micro_batches()
        micro_batches = chain_first(next(micro_batches), micro_batches)
        # Last, since making loaders draws from the global generator; processes differ in their dropout.
        if saved is None:
            torch.manual_seed(settings.seed + 1_000_003 * (1 + self.accelerator.process_index))
        else:
            self.checkpoints.restore_random(saved)
        self.model.train()
        warmup, decay = round(settings.warmup * self.total), SCHEDULES[settings.schedule]
        while self.step < self.total:
            lr = decay(self.step, total=self.total, warmup=warmup, peak=settings.lr, last=settings.last_lr)
            set_lr(self.optimizer, lr)
            output = train_step(
                self.accelerator,
                self.model,
                self.optimizer,
                micro_batches,
                micro_batches=settings.accumulate,
                step=self.step,
                total=self.total,
                clip=settings.clip,
                scale=self.scale,
            )
            self.step += 1
            missed = (~output.applied).float()
            self.bad = torch.stack([self.bad[0] + missed, (self.bad[1] + 1) * missed])
            stop = interrupt.stop()
            last = self.step == self.total
            probe = self.watch.due(self.step)
            if self.step % settings.log_every == 0 or last or probe or stop:
                self.log(output, lr, display, self.probe(output) if probe else {})
            else:
                display.advance(self.step)
            if self.step % settings.save_every == 0 or last or stop:
                self.save()
            if stop and not last:
                return False
        return True

    def probe(self, output: StepOutput) -> dict[str, float]:
        """Figures of the probe; the time that it takes is no part of the speed of training."""
        output.loss.item()  # what is queued on the device belongs to the steps
        began = time.perf_counter()
        figures = self.watch.measure(self.step)
        self.since += time.perf_counter() - began
        return figures

    def micro_batches(self) -> Iterator[Batch]:
        """Micro-batches on the device, augmented, from the first step of this start on; counts time and bad files."""
        loader = make_loader(
            self.dataset,
            self.plan,
            start_step=self.step,
            stop_step=self.total,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            accumulate=self.settings.accumulate,
            workers=self.settings.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            timeout=self.settings.file_seconds,
        )
        iterator = iter(loader)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            self.counts["files"] += len(batch) // self.plan.per_file
            for row, reason in batch.skipped:
                self.counts["skipped_files"] += 1
                self.skips.append({"step": self.step + 1, "file": self.source.id(row), "reason": reason})
            yield self.on_device(batch)

    @torch.no_grad()
    def on_device(self, batch: Batch) -> Batch:
        batch = replace(batch, skipped=()).to(self.accelerator.device)
        for view in self.parts.device_views:
            batch = view(batch)
        return batch

    # ----------------------------------------------------------------------------------------- what a run leaves behind

    def log(self, output: StepOutput, lr: float, display: Display, probe: dict[str, float]) -> None:
        """One line of metrics.jsonl; the only place of the loop that waits for the device."""
        averages = reduced(self.accelerator, output.metrics)
        figures = torch.stack([output.loss, output.grad_norm.to(output.loss), *self.bad.to(output.loss)]).tolist()
        loss, norm, skipped_steps, in_a_row = figures
        files, skipped_files, waited = self.summed([self.counts["files"], self.counts["skipped_files"], self.waited])
        now = time.perf_counter()
        passed = now - self.since
        speed = (files - self.files_logged) * self.plan.per_file / passed
        audio: dict[str, Value] = {}
        if isinstance(self.plan, BucketPlan):
            audio["audio_s_per_s"] = sum(map(self.plan.seconds, range(self.logged, self.step))) / passed
        share = waited / self.accelerator.num_processes / passed
        self.waited, self.since, self.logged, self.files_logged = 0.0, now, self.step, files
        self.counts["skipped_steps"], self.counts["bad_in_a_row"] = skipped_steps, in_a_row
        entry: dict[str, Value] = {
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": norm,
            **averages,
            "epoch": self.step / self.plan.steps_per_epoch,
            "samples_per_s": speed,
            **audio,
            "data_wait": min(share, 1.0),
            "skipped_steps": int(skipped_steps),
            "skipped_files": int(skipped_files),
            **{f"probe/{name}": value for name, value in probe.items()},
        }
        if self.accelerator.is_main_process:
            self.metrics.append(entry)
            display.update(self.step, loss, speed, min(share, 1.0))
        if self.settings.tensorboard:
            with writing(self.settings.out / "tensorboard"):
                self.accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=self.step)
        self.since = time.perf_counter()
        if in_a_row >= BAD_IN_A_ROW:
            raise UserError(
                f"Loss or gradient was not finite in the last {int(in_a_row)} steps, up to step {self.step}: choose "
                "another --out with a lower --base-lr, a --clip, or --precision bf16 in place of fp16."
            )
        if skipped_files > self.settings.max_bad_share * max(files, FEW):
            raise UserError(
                f"{int(skipped_files)} of {int(files)} files could not be read, which is more than --max-bad-share "
                f"{self.settings.max_bad_share}: see {self.skips.path}, mend or remove them, or raise that share."
            )

    def summed(self, values: list[float]) -> list[float]:
        if self.accelerator.num_processes == 1:
            return values
        table = torch.tensor(values, dtype=wide(self.accelerator.device), device=self.accelerator.device)
        dist.all_reduce(table)
        return table.tolist()

    def save(self) -> None:
        began = time.perf_counter()
        state: dict[str, Any] = {"total": self.total, "rows": len(self.rows), "counts": self.saved_counts()}
        if self.codebook is not None:
            state["codebook"] = self.codebook.sha256
        self.checkpoints.save(self.step, self.model, self.optimizer, state, self.scale)
        self.since += time.perf_counter() - began  # saving is no part of the speed of training

    def saved_counts(self) -> dict[str, float]:
        skipped_steps, in_a_row = self.bad.tolist()
        files, skipped_files = self.summed([self.counts["files"], self.counts["skipped_files"]])
        return {
            "files": files,
            "skipped_files": skipped_files,
            "skipped_steps": skipped_steps,
            "bad_in_a_row": in_a_row,
        }

    def list_problems(self) -> None:
        """Files that verification found broken, before the first step."""
        if self.accelerator.is_main_process:
            for name, reason in self.source.problems():
                self.skips.append({"step": 0, "file": name, "reason": reason})


def chain_first(first: Batch, rest: Iterator[Batch]) -> Iterator[Batch]:
    yield first
    yield from rest

"""What a run looks at now and then: a probe of its features, and pictures of what it sees and predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmssl.evaluation.probes.monitor import Monitor
from mmssl.files import writing
from mmssl.report.pictures import save_pictures
from mmssl.types import Batch

if TYPE_CHECKING:
    from mmssl.training.loop import Run

SHOWN = 8
"""Samples in a picture."""


class Watch:
    """Probes and pictures every `probe_every` steps (a tenth of the run if not given), and at the last one."""

    def __init__(self, run: Run) -> None:
        self.run = run
        given = run.settings.probe_every
        self.every = max(1, run.total // 10) if given is None else given
        self.monitor: Monitor | None = None
        self.pictured = -1

    def due(self, step: int) -> bool:
        return self.every > 0 and (step % self.every == 0 or step == self.run.total)

    def measure(self, step: int) -> dict[str, float]:
        """Figures of the probe, and what chance gives of knn_top1; pictures are written beside. Collective, and it
        leaves every generator as it was."""
        run = self.run
        with torch.random.fork_rng(devices=cuda_devices(run.accelerator.device)):
            if self.monitor is None:
                self.monitor = Monitor(
                    run.source, run.encoder_spec, seed=run.settings.seed, workers=run.settings.workers
                )
            run.model.eval()
            figures = self.monitor.measure(self.embed, run.accelerator.device)
            if self.monitor.chance is not None:
                figures["chance"] = self.monitor.chance
            self.pictures(step)
            run.model.train()
        return figures

    def embed(self, batch: Batch) -> Tensor:
        features: Tensor = self.run.model(batch, what="embed")
        return features

    @torch.no_grad()
    def pictures(self, step: int) -> None:
        """Pictures of the plan's first files, the same ones every time."""
        run = self.run
        if self.pictured == step:
            return
        self.pictured = step
        shown = first_batch(run, SHOWN)
        training = run.model.training
        run.model.eval()
        found = run.model(shown, what="pictures")
        run.model.train(training)
        if run.accelerator.is_main_process:
            with writing(run.settings.out / "pictures"):
                save_pictures(run.settings.out, step, found)


def first_batch(run: Run, samples: int) -> Batch:
    """The first samples of the plan, augmented, on the device."""
    files = max(1, samples // run.plan.per_file)
    return run.on_device(run.dataset.batch(run.plan.first(files)))


def cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []

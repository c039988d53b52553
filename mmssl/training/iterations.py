"""Training on units in iterations: cluster features, train on the clusters, cluster what was learned, train anew.

HuBERT's pipeline (Hsu et al. 2021, arXiv:2106.07447): units of the first iteration are clusters of MFCC, those of each
later one clusters of a layer of the encoder before, and every iteration begins with new weights. One command makes all:

    OUT/iteration-1/units, OUT/iteration-1/{encoder,checkpoints,report.html,...}, OUT/iteration-2/...

The same command again goes on in the stage where it stopped. Each stage is also a command of its own: `mmssl targets
kmeans`, and the recipe with `--units`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mmssl.errors import UserError
from mmssl.targets.make import run_kmeans
from mmssl.targets.settings import KmeansSettings
from mmssl.training.seconds import SettingsBySeconds


@dataclass(kw_only=True)
class SettingsByIterations(SettingsBySeconds):
    """Settings of a recipe that is trained on units of sound."""

    units: Path | None = None
    """Folder of units to train on, for one iteration. If not given, all iterations are made, each with its units."""
    clusters: tuple[int, ...] = (100, 500)
    """Units of each iteration, of which there are as many as numbers."""
    layer: int = 6
    """Of the encoder before, whose states later iterations cluster; 1 is what the first block puts out."""
    first_share: float = 0.625
    """Steps of every iteration but the last, as a share of the last one's: 250,000 of 400,000."""
    fit_frames: int = 1_000_000
    """Frames that clusters are fitted on."""

    def runs(self, device: str) -> Iterator[SettingsByIterations]:
        """The iterations that are still to be trained, each when its units stand.

        Raises:
            UserError: settings that contradict each other, or units that cannot be made.
        """
        if self.units is not None:
            yield self
            return
        self.check_iterations()
        encoder: Path | None = None
        for number, clusters in enumerate(self.clusters, start=1):
            out = self.out / f"iteration-{number}"
            last = number == len(self.clusters)
            if last or not (out / "encoder").is_dir():  # written when all its steps are done
                units = self.make_units(out / "units", clusters, encoder, device)
                yield self.iteration(out, units, 1.0 if last else self.first_share)
            encoder = out / "encoder"

    def check_iterations(self) -> None:
        if self.dry_run:
            raise UserError(
                "--dry-run takes units that stand: make them with mmssl targets kmeans, and name them by --units."
            )
        if not self.clusters or min(self.clusters) < 2 or not 0 < self.first_share <= 1 or self.layer < 1:
            raise UserError(
                f"--clusters {self.clusters}, --first-share {self.first_share:g}, --layer {self.layer}: give clusters "
                "of 2 or more for each iteration, a share above 0 and up to 1, and a layer from 1."
            )

    def iteration(self, out: Path, units: Path, share: float) -> SettingsByIterations:
        """The settings of one iteration alone."""
        steps = None if self.steps is None else max(1, round(self.steps * share))
        return replace(self, out=out, units=units, steps=steps, epochs=self.epochs * share)

    def make_units(self, folder: Path, clusters: int, encoder: Path | None, device: str) -> Path:
        kind = {"features": "mfcc"} if encoder is None else {"features": "layer", "encoder": str(encoder)}
        try:
            run_kmeans(
                KmeansSettings(
                    data=self.data,
                    out=folder,
                    layer=None if encoder is None else self.layer,
                    clusters=clusters,
                    frames=self.fit_frames,
                    seed=self.seed,
                    max_bad_share=self.max_bad_share,
                    workers=self.workers,
                    file_seconds=self.file_seconds,
                    device=device,
                    **kind,  # type: ignore[arg-type]
                )
            )
        except KeyboardInterrupt:
            print(f"Stopped while making {folder}; the same command goes on with it.", file=sys.stderr, flush=True)
            sys.exit(130)
        return folder

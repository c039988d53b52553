"""Training on clusters in iterations: cluster features, train on the clusters, cluster what was learned, train anew.

HuBERT's pipeline (Hsu et al. 2021, arXiv:2106.07447): units of the first iteration are clusters of features that need
no training, those of each later one clusters of a layer of the encoder before, and every iteration begins with new
weights. One command makes all of it:

    OUT/iteration-1/units, OUT/iteration-1/{encoder,checkpoints,report.html,...}, OUT/iteration-2/...

or, where there is one iteration only, OUT/units and OUT/encoder. The same command again goes on in the stage where it
stopped. Each stage is also a command of its own: `mmssl targets kmeans`, and the recipe with `--units`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmssl.errors import UserError
from mmssl.targets.make import run_kmeans
from mmssl.targets.settings import KmeansSettings
from mmssl.training.settings import Settings


@dataclass(kw_only=True)
class SettingsByIterations(Settings):
    """Settings of a recipe that is trained on clusters. Where batches are limited by seconds, `SettingsBySeconds` comes
    first among the bases."""

    units: Path | None = None
    """Folder of units (mmssl targets kmeans) to train on, for one iteration. If not given, all iterations are made,
    each with its units."""
    clusters: tuple[int, ...] = (100, 500)
    """Clusters of each iteration, of which there are as many as numbers."""
    layer: int = 6
    """Of the encoder before, whose states later iterations cluster; 1 is what the first block puts out."""
    first_share: float = 0.625
    """Steps of every iteration but the last, as a share of the last one's."""
    fit_frames: int = 1_000_000
    """Features that clusters are fitted on."""

    def first_features(self) -> dict[str, Any]:
        """What the first iteration clusters, as settings of `mmssl targets kmeans`."""
        return {"features": "mfcc"}

    def runs(self, device: str) -> Iterator[SettingsByIterations]:
        """The iterations that are still to be trained, each when its units stand.

        Raises:
            UserError: settings that contradict each other, or units that cannot be made.
        """
        if self.units is not None:
            yield self
            return
        self.check_iterations()
        self.check_data()
        features = self.first_features()
        for number, clusters in enumerate(self.clusters, start=1):
            last = number == len(self.clusters)
            out = self.out if len(self.clusters) == 1 else self.out / f"iteration-{number}"
            if last or not finished(out):
                self.make_units(out / "units", clusters, features, device)
                yield self.iteration(out, 1.0 if last else self.first_share)
            features = {"features": "layer", "encoder": str(out / "encoder"), "layer": self.layer}

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
        # A checkpoint's depth is its own; it is known when the first iteration begins.
        depth = None if self.init is not None else getattr(getattr(self, "encoder", None), "depth", None)
        if len(self.clusters) > 1 and depth is not None and self.layer > depth:
            raise UserError(
                f"The second iteration clusters layer {self.layer}, and --encoder.depth is {depth}: give a --layer "
                f"from 1 to {depth}."
            )

    def check_data(self) -> None:
        """Raise UserError for data that cannot be trained on, before hours go into its units."""

    def iteration(self, out: Path, share: float) -> SettingsByIterations:
        """The settings of one iteration alone."""
        steps = None if self.steps is None else max(1, round(self.steps * share))
        return replace(self, out=out, units=out / "units", steps=steps, epochs=self.epochs * share)

    def make_units(self, folder: Path, clusters: int, features: dict[str, Any], device: str) -> None:
        settings = KmeansSettings(
            data=self.data,
            out=folder,
            clusters=clusters,
            frames=self.fit_frames,
            seed=self.seed,
            max_bad_share=self.max_bad_share,
            workers=self.workers,
            file_seconds=self.file_seconds,
            device=device,
            **features,
        )
        try:
            run_kmeans(settings)
        except KeyboardInterrupt:
            print(f"Stopped while making {folder}; the same command goes on with it.", file=sys.stderr, flush=True)
            sys.exit(130)


def finished(out: Path) -> bool:
    """Whether an iteration has left all that it leaves. A run killed between its encoder and its report, which is
    written last, ends once more from its last checkpoint; one whose checkpoints were removed since is taken as it is.
    """
    return (out / "encoder").is_dir() and ((out / "report.html").is_file() or not (out / "checkpoints").is_dir())

"""The whole path on small real media: pre-train, evaluate beside the untrained encoder, report. `make demo` runs it.

Every job is the command that a user would type, with sizes that fit two cores and a few minutes. Nothing is chosen on
the test files: the linear probe picks its rate on a fifth of the training files.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmssl.cli import main as mmssl
from mmssl.report.build import write_summary

SAMPLES = Path("datasets/samples")
OUT = Path("runs/demo")
SHARED = "--optimizer adamw --lr-per 64 --workers 1 --log-every 20 --save-every 200"
VIT = "--encoder.arch vit --encoder.width 128 --encoder.heads 4"
IMAGE = f"{VIT} --encoder.depth 6 --input.size 28 --input.patch 4"
CLIP = f"{VIT} --encoder.depth 4 --input.size 32 --input.patch 8 --input.frames 8 --input.stride 1"
# A token is 16 frames of all bands: over patches of some bands each, a mean would lose which band is loud.
BANDS = "--input.mels 16 --input.patch 16 --input.stride 8 --input.mean -5.4 --input.std 4.6"
SOUND = f"{VIT} --encoder.depth 6 --input.rate 8000 --input.frames 48 {BANDS}"
# Directions and colours carry the answer, so that neither is flipped or jittered away.
GENTLE = "--no-flip --strength 0.2 --grey 0 --blur 0 --scale 0.5 1.0 --temperature 0.2 --hidden 256 --out-width 64"
# Half a second each, so that both segments fit into every recording without sharing an instant.
SIMCLR = "--apart --noise 0 --layers 2 --norm batch --similarity cosine --temperature 0.2 --symmetric --out-width 128"
DECODER = "--decoder.width 64 --decoder.depth 2 --decoder.heads 2"


@dataclass(frozen=True)
class Job:
    """One encoder: how it is trained, and what it is asked afterwards."""

    recipe: str
    options: str
    question: str
    """In words, what the linear probe has to tell."""

    @property
    def modality(self) -> str:
        return self.recipe.split("/")[0]

    @property
    def folder(self) -> str:
        return self.recipe.replace("/", "-")


JOBS = [
    Job("image/mae", f"{IMAGE} {DECODER} --batch-size 64 --base-lr 1e-3 --steps 500", "10 kinds of clothes"),
    Job("video/simclr", f"{CLIP} {GENTLE} --batch-size 64 --base-lr 1e-3 --steps 150", "which of 8 ways a fish swims"),
    Job("audio/contrastive", f"{SOUND} {SIMCLR} --batch-size 64 --base-lr 1e-3 --steps 300", "which of 5 languages"),
]


def train_and_probe(job: Job, out: Path, seed: int = 0, data: Path | None = None) -> dict:
    """Train on `data` (the samples if None), evaluate on the samples; returns the figures of the linear probe."""
    samples = SAMPLES / job.modality
    run = f"--data {data or samples} --out {out} --seed {seed} {SHARED} {job.options}"
    mmssl(["pretrain", job.recipe, *run.split()])
    for probe in ("knn", "linear"):
        command = f"--encoder {out / 'encoder'} --data {samples} --out {out / probe}.json --seed {seed} --workers 1"
        mmssl(["evaluate", probe, *command.split()])
    return json.loads((out / "linear.json").read_text(encoding="utf-8"))


def main() -> None:
    """Run every job and print the table and the path of the report."""
    console, began = Console(), time.monotonic()
    if not SAMPLES.is_dir():
        sys.exit(f"The samples are not in {SAMPLES.resolve()}: run this from the top folder of the repository.")
    title = "linear probe, top-1 on held-out files (gain with its 95 % interval)"
    table = Table("encoder", "question", "pre-trained", "untrained", "gain", "chance", title=title)
    for job in JOBS:
        console.rule(f"{job.recipe}: {job.question}")
        figures = train_and_probe(job, OUT / job.folder)
        trained, untrained = (percent(figures[name]["top1"]) for name in ("trained", "untrained"))
        low, high = (100 * edge for edge in figures["difference"]["top1_interval"])
        gain = f"{100 * figures['difference']['top1']:+.1f} ({low:+.1f} to {high:+.1f})"
        table.add_row(job.recipe, job.question, trained, untrained, gain, percent(figures["chance"]["majority"]))
    report = write_summary([OUT / job.folder for job in JOBS], OUT / "report.html", title="mmssl demo")
    console.print(table)
    console.print(f"{time.monotonic() - began:.0f} s in all\nreport: {report}", soft_wrap=True)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()

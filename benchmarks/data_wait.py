"""Share of the time that training waits for data, for every recipe on the samples, as metrics.jsonl records it.

Encoders of ViT-Ti size (half of ViT-S in width) at the papers' input sizes: a step that is shorter than in earnest, so
that the share is an upper bound.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

from mmssl.cli import main as mmssl

SMALL = "--encoder.width 192 --encoder.depth 12 --encoder.heads 3"
RECIPES = {
    "image/mae": SMALL,
    "image/simclr": "--encoder.arch resnet18",
    "image/moco_v2": "--encoder.arch resnet18 --queue 1024 --norm-group 4",
    "video/videomae": f"{SMALL} --decoder.width 192 --decoder.heads 3 --clips 2",
    "video/simclr": SMALL,
    "audio/mae": f"{SMALL} --input.frames 512",
    "audio/contrastive": SMALL,
}
STEPS = 6


def measure(recipe: str, options: str) -> tuple[float, float]:
    """(share of time waiting for data, samples/s) after the first third of the steps."""
    data = f"datasets/samples/{recipe.split('/')[0]}"
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):
        run = f"--data {data} --out {out}/run --steps {STEPS} --log-every {STEPS // 3} --batch-size 4 --workers 1"
        with contextlib.redirect_stdout(io.StringIO()):
            mmssl(["pretrain", recipe, *run.split(), *options.split()])
        lines = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
    later = lines[1:]
    return tuple(sum(line[name] for line in later) / len(later) for name in ("data_wait", "samples_per_s"))


def run() -> str:
    """The table as Markdown."""
    rows = ["| recipe | waiting for data | samples/s |", "|---|---:|---:|"]
    for recipe, options in RECIPES.items():
        share, speed = measure(recipe, options)
        rows.append(f"| {recipe} | {100 * share:.1f} % | {speed:.1f} |")
    return f"### Waiting for data, batch 4, one worker, {STEPS} steps\n\n" + "\n".join(rows)


if __name__ == "__main__":
    print(run())

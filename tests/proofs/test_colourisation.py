"""Colourisation teaches tracking: on a few minutes of film and of training, masks of DAVIS follow their objects better
by the embeddings than by the same encoder untrained, and better than where they are only copied.

Both sets are the user's: MMSSL_FOOTAGE is a folder of films (`python datasets/natural_clips.py`, then `mmssl prepare`
with --short-side 192 --sound drop, which reads faster), MMSSL_DAVIS one in the layout of DAVIS (`python
datasets/davis2017.py`) whose list val.txt is taken. Raw Lab patches are printed beside; they see colour, which the
encoder does not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmssl.cli import main as mmssl
from tests.runs import metrics

pytestmark = pytest.mark.heavy

TRAIN = (
    "--input.size 96 --encoder.arch vit --encoder.width 128 --encoder.depth 2 --encoder.heads 4 --head.layers 0 "
    "--scale 0.2 0.6 --motion --interval 0.34 --batch-size 16 --lr-per 16 --steps 600 --warmup 0.05 "
    "--colour-samples 256 --workers 1 --probe-every 0 --save-every 100 --log-every 20"
)
"""About five minutes on one core, and five for the judging. Where little moves from one frame of a clip to the next,
most colours are those of the same place, and pointing there is all that there is to learn."""
JUDGE = "--split val --size 240 --multiple 8 --no-pictures"


def folder(variable: str, script: str) -> str:
    path = os.environ.get(variable, "")
    if not Path(path).is_dir() or not path:
        pytest.skip(f"{variable} names no folder: set it to what `python datasets/{script}` has written")
    return path


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trained_carries_masks_better_than_untrained(seed: int, tmp_path: Path) -> None:
    footage, davis = folder("MMSSL_FOOTAGE", "natural_clips.py"), folder("MMSSL_DAVIS", "davis2017.py")
    run, out = tmp_path / "run", tmp_path / "found.json"
    mmssl(
        ["pretrain", "video/colourisation", "--data", footage, "--out", str(run), "--seed", str(seed), *TRAIN.split()]
    )
    last = metrics(run)[-1]
    print(f"\nseed {seed}: " + ", ".join(f"{name} {last[name]:.3f}" for name in SHOWN))
    command = ["evaluate", "propagation", "--encoder", str(run / "encoder"), "--data", davis, "--out", str(out)]
    mmssl([*command, "--seed", str(seed), *JUDGE.split()])
    found = json.loads(out.read_text())
    rows = {"trained": found["trained"], "untrained": found["untrained"], **found["baselines"]}
    print(", ".join(f"{name} J {row['J']:.3f}" for name, row in rows.items()))
    assert last["loss"] < last["uniform_loss"]
    assert last["accuracy"] > last["majority"]
    assert rows["trained"]["J"] > rows["first labels copied"]["J"]
    low, _ = found["difference"]["J_interval"]
    assert low > 0


SHOWN = ("loss", "uniform_loss", "accuracy", "majority", "same_place", "absent")

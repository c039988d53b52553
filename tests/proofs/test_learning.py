"""Pre-training learns: on the demo's real media, at the demo's own settings, over three seeds.

Claims, each on held-out files and with the probe's rate chosen on training files alone:
- the linear probe on the pre-trained encoder beats the same probe on the untrained one, and the interval of the paired
  difference excludes zero, in each modality and for every seed;
- a probe on shuffled labels is at chance;
- an encoder pre-trained on pictures whose pixels were shuffled does not beat the untrained one.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmssl.cli import main as mmssl
from recipes import demo

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("job", demo.JOBS, ids=[job.folder for job in demo.JOBS])
def test_pretrained_beats_untrained(job: demo.Job, seed: int, tmp_path: Path) -> None:
    figures = demo.train_and_probe(job, tmp_path / "run", seed)
    low, high = figures["difference"]["top1_interval"]
    print(
        f"\n{job.folder} seed {seed}: trained {figures['trained']['top1']:.3f}, untrained "
        f"{figures['untrained']['top1']:.3f}, difference {low:.3f} to {high:.3f}"
    )
    assert low > 0


def shuffled_pixels(folder: Path) -> Path:
    """The training pictures of the samples, each with its pixels in an order of its own."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    (source,) = (demo.SAMPLES / "image" / "train").glob("*.tar")
    with tarfile.open(source) as there, tarfile.open(folder / "train" / source.name, "w") as here:
        for member in there:
            file = there.extractfile(member)
            assert file is not None
            if not member.name.endswith(".png"):
                continue
            picture = np.asarray(Image.open(file))
            buffer = io.BytesIO()
            pixels = rng.permutation(picture.reshape(-1, *picture.shape[2:])).reshape(picture.shape)
            Image.fromarray(pixels).save(buffer, "png")
            info = tarfile.TarInfo(member.name)
            info.size = buffer.tell()
            buffer.seek(0)
            here.addfile(info, buffer)
    return folder


def test_controls(tmp_path: Path) -> None:
    """Pixel-shuffled pre-training gains nothing, and shuffled labels leave the probe at chance."""
    job = demo.JOBS[0]
    figures = demo.train_and_probe(job, tmp_path / "run", data=shuffled_pixels(tmp_path / "shuffled"))
    low, high = figures["difference"]["top1_interval"]
    print(f"\npixel-shuffled: difference to untrained {low:.3f} to {high:.3f}")
    assert low <= 0
    out = tmp_path / "control.json"
    options = f"--encoder {tmp_path / 'run' / 'encoder'} --data {demo.SAMPLES / 'image'} --out {out} --shuffle-labels"
    mmssl(["evaluate", "linear", *options.split()])
    shuffled = json.loads(out.read_text(encoding="utf-8"))["shuffled"]
    low, high = shuffled["top1_interval"]
    print(f"shuffled labels: {shuffled['top1']:.3f} ({low:.3f} to {high:.3f}), chance 0.1")
    assert low <= 0.1 <= high

"""Pre-training learns: on the demo's real media, at the demo's own settings, over three seeds.

Claims, each on held-out files and with the probe's rate chosen on training files alone:
- the linear probe on the pre-trained encoder beats the same probe on the untrained one, and the interval of the paired
  difference excludes zero, in each modality and for every seed;
- a probe on shuffled labels is at chance;
- an encoder pre-trained on pictures, clips or recordings whose pixels or samples were shuffled, each file in an order
  of its own, does not beat the untrained one by more than that interval. For clips and recordings that is the mean of
  three untrained ones, which lie up to 7 points apart for sound; against it, too, the recordings themselves win.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from mmssl.cli import main as mmssl
from mmssl.data.sources import open_source
from recipes import demo
from tests.proofs.sound import shuffled

pytestmark = pytest.mark.heavy


@dataclass(frozen=True)
class Gain:
    """Of the linear probe, with the 95 % interval of the paired difference over files."""

    own: tuple[float, float]
    """Over the encoder's own start."""
    three: tuple[float, float]
    """Over the mean of three untrained encoders, with the same half-widths."""


def trained(job: demo.Job, out: Path, seed: int, data: Path | None = None) -> Gain:
    """Train on `data` (the samples if None) and probe on the samples."""
    demo.train_and_probe(job, out, seed, data)
    options = f"--encoder {out / 'encoder'} --data {demo.SAMPLES / job.modality} --out {out / 'three.json'}"
    mmssl(["evaluate", "linear", *options.split(), "--seed", str(seed), "--seeds", "3"])
    found = json.loads((out / "three.json").read_text(encoding="utf-8"))
    untrained = [twin["top1"] for twin in (found["untrained"], *found["further_untrained"])]
    assert len(untrained) == 3
    low, high = found["difference"]["top1_interval"]
    media, mean = "the samples" if data is None else data.name, float(np.mean(untrained))
    shift = untrained[0] - mean
    print(f"\n{job.folder} on {media}, seed {seed}: {found['trained']['top1']:.3f}")
    print(f"gain over its start ({untrained[0]:.3f}) {low:+.3f} to {high:+.3f}")
    print(f"gain over the mean of three ({mean:.3f}) {low + shift:+.3f} to {high + shift:+.3f}")
    return Gain((low, high), (low + shift, high + shift))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("job", demo.JOBS, ids=[job.folder for job in demo.JOBS])
def test_pretrained_beats_untrained(job: demo.Job, seed: int, tmp_path: Path) -> None:
    gain = trained(job, tmp_path / "run", seed)
    assert gain.own[0] > 0
    if job.modality == "audio":
        assert gain.three[0] > 0


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


def shuffled_clips(folder: Path) -> Path:
    """The training clips of the samples, the luma of each (they are grey) shuffled over space and time; lossless."""
    source, rng = open_source(demo.SAMPLES / "video", "video"), np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    for row in source.rows("train").tolist():
        with av.open(str(demo.SAMPLES / "video" / source.id(row))) as there:
            clip = np.stack([frame.to_ndarray(format="gray") for frame in there.decode(video=0)])
        container: Any
        with av.open(str(folder / "train" / f"{row}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=28)
            stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], "gray"
            stream.options = {"qp": "0", "preset": "ultrafast", "threads": "1"}
            for picture in rng.permutation(clip.reshape(-1)).reshape(clip.shape):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
            container.mux(stream.encode(None))
    return folder


def shuffled_samples(folder: Path) -> Path:
    """The training recordings of the samples, each shuffled in an order of its own."""
    source, rng = open_source(demo.SAMPLES / "audio", "audio"), np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    for row in source.rows("train").tolist():
        sound, rate = soundfile.read(demo.SAMPLES / "audio" / source.id(row))
        soundfile.write(folder / "train" / f"{row}.wav", shuffled(sound, rng), rate, subtype="FLOAT")
    return folder


def test_controls(tmp_path: Path) -> None:
    """Pixel-shuffled pre-training gains nothing, and shuffled labels leave the probe at chance."""
    gain = trained(demo.JOBS[0], tmp_path / "run", 0, shuffled_pixels(tmp_path / "shuffled"))
    assert gain.own[0] <= 0
    out = tmp_path / "control.json"
    options = f"--encoder {tmp_path / 'run' / 'encoder'} --data {demo.SAMPLES / 'image'} --out {out} --shuffle-labels"
    mmssl(["evaluate", "linear", *options.split()])
    shuffled = json.loads(out.read_text(encoding="utf-8"))["shuffled"]
    low, high = shuffled["top1_interval"]
    print(f"shuffled labels: {shuffled['top1']:.3f} ({low:.3f} to {high:.3f}), chance 0.1")
    assert low <= 0.1 <= high


@pytest.mark.parametrize(
    ("job", "shuffle", "seed"),
    [
        pytest.param(demo.JOBS[1], shuffled_clips, 0, id="video"),
        *(pytest.param(demo.JOBS[2], shuffled_samples, seed, id=f"audio-{seed}") for seed in (0, 1, 2)),
    ],
)
def test_shuffled_clips_and_recordings_teach_nothing(
    job: demo.Job, shuffle: Callable[[Path], Path], seed: int, tmp_path: Path
) -> None:
    gain = trained(job, tmp_path / "run", seed, shuffle(tmp_path / "shuffled"))
    assert gain.three[0] <= 0

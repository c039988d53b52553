"""Small runs of real recipes on small real files, for tests of training, recipes and faults."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmssl import cli
from tests.media import make_audio, make_image, make_video

REPOSITORY = Path(__file__).resolve().parents[1]
VIT = ["--encoder.width", "32", "--encoder.depth", "2", "--encoder.heads", "2", "--encoder.drop-path", "0.2"]
DECODER = ["--decoder.width", "32", "--decoder.depth", "1", "--decoder.heads", "2"]
PICTURES = ["--input.size", "32", "--input.patch", "8"]
CLIPS = ["--input.size", "32", "--input.patch", "8", "--input.frames", "4", "--input.stride", "2"]
SOUNDS = ["--input.mels", "32", "--input.frames", "32", "--input.patch", "8", "--input.stride", "8"]
TINY = {
    "image/mae": [*PICTURES, *VIT, *DECODER],
    "image/simclr": [*PICTURES, *VIT, "--encoder.arch", "vit", "--hidden", "32", "--out-width", "16"],
    "image/moco_v2": [
        *("--input.size", "32", "--encoder.arch", "resnet18", "--encoder.stem", "cifar", "--hidden", "32"),
        *("--out-width", "16", "--queue", "32", "--norm-group", "2"),
    ],
    "image/simmim": [*PICTURES, *VIT],
    "video/videomae": [*CLIPS, *VIT, *DECODER, "--mask-ratio", "0.75", "--clips", "2"],
    "video/videomae_ucf101": [*CLIPS, *VIT, *DECODER],
    "video/videomae_v2": [*CLIPS, *VIT, *DECODER, "--mask-ratio", "0.75", "--clips", "2"],
    "video/mae_st": [*CLIPS, *VIT, *DECODER, "--predicted", "2", "--clips", "2"],
    "video/simmim": [*CLIPS, *VIT],
    "video/moco_v2": [*CLIPS, *VIT, "--hidden", "32", "--out-width", "16", "--queue", "32"],
    "video/simclr": [*CLIPS, *VIT, "--hidden", "32", "--out-width", "16"],
    "video/tcn": [*PICTURES, *VIT, "--encoder.arch", "vit", "--head.hidden", "32", "--instants", "4", "--window", "2"],
    "video/tcn_single": [*PICTURES, *VIT, "--encoder.arch", "vit", "--head.hidden", "32", "--frames", "8"],
    "video/temporal_order": [
        *(*PICTURES, *VIT, "--encoder.arch", "vit", "--window", "9", "--stride", "1", "--tau-max", "4"),
        *("--tau-min", "1", "--hidden", "32"),
    ],
    "video/odd_one_out": [
        *("--input.size", "32", "--input.frames", "4", "--encoder.arch", "resnet18", "--encoder.stem", "cifar"),
        *("--window", "6", "--clips", "3", "--width", "16"),
    ],
    "audio/temporal_order": [
        *("--input.mels", "32", "--input.frames", "8", "--input.patch", "8", "--input.stride", "8", *VIT),
        *("--window", "7", "--gap", "0.01", "--tau-max", "3", "--hidden", "32", "--alike", "-1"),
    ],
    "video/vjepa": [
        *(*CLIPS, *VIT, "--interval", "0.08", "--predictor.width", "24", "--predictor.depth", "1"),
        *("--predictor.heads", "2"),
    ],
    "video/colourisation": [
        *("--input.size", "32", "--input.patch", "8", "--input.frames", "3", *VIT, "--encoder.arch", "vit"),
        *("--head.layers", "0", "--head.out", "8", "--clusters", "4"),
    ],
    "audio/mae": [*SOUNDS, *VIT, *DECODER],
    "audio/contrastive": [*SOUNDS, *VIT, "--out-width", "16"],
    "audio/cola": ["--input.mels", "32", "--input.frames", "32", "--seconds", "0.4", "--out-width", "16"],
}
"""Options that make a recipe small enough for a test, at learning rates that show."""
SPEECH = [
    *("--encoder.width", "32", "--encoder.depth", "2", "--encoder.heads", "2", "--encoder.position-kernel", "16"),
    *("--encoder.position-groups", "4", "--input.channels", *["16"] * 7, "--head-width", "16", "--min-seconds", "0.3"),
    *("--max-seconds", "1.2", "--batch-seconds", "6", "--lr-per", "6", "--buckets", "2"),
    *("--layer", "1", "--fit-frames", "2000"),
]
CLUSTERS = ["--fit-frames", "2000", "--clusters", "16"]
TINY |= {
    "audio/hubert": SPEECH,
    "audio/hubert_large": SPEECH,
    "audio/wavlm": SPEECH,
    "image/beit": [*PICTURES, *VIT, *CLUSTERS],
    "video/beit": [*CLIPS, *VIT, *CLUSTERS],
    "audio/beats": [*SOUNDS, *VIT, *CLUSTERS],
}
TINY["image/dvae"] = ["--input.size", "16", "--input.patch", "4", *VIT[:6], *DECODER, "--codes", "16"]
ELSEWHERE = {
    "audio/beats": "test_beit.py",
    "audio/hubert": "test_speech.py",
    "audio/hubert_large": "test_speech.py",
    "audio/wavlm": "test_speech.py",
    "image/beit": "test_beit.py",
    "image/dvae": "test_dvae.py",
    "video/beit": "test_beit.py",
    "video/colourisation": "test_colourisation.py",
    "video/tcn": "test_tcn.py",
    "video/tcn_single": "test_tcn.py",
    "video/temporal_order": "test_order.py",
}
"""Recipes that need files of their own, and the test in tests/recipes that runs them."""


def make_media(folder: Path, modality: str, files: int = 12) -> Path:
    """A folder with two classes of files of one modality."""
    for number in range(files):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        if modality == "image":
            make_image(place / f"{number}.png", seed=number)
        elif modality == "video":
            make_video(place / f"{number}.mp4", frames=12, height=48, width=64, seed=number)
        else:
            make_audio(place / f"{number}.wav", seconds=0.8, hertz=200.0 + 40 * number, seed=number)
    return folder


def options(recipe: str, data: Path, out: Path, *more: str) -> list[str]:
    """The command line of a tiny run: 6 steps of 8 samples; `more` comes last and wins."""
    given = [recipe, "--data", str(data), "--out", str(out), *TINY[recipe], "--base-lr", "0.05"]
    given += [] if "--batch-seconds" in TINY[recipe] else ["--batch-size", "8"]
    given += ["--steps", "6", "--warmup", "0.3", "--workers", "0", "--log-every", "1", "--probe-every", "0"]
    names = [option for option in more if option.startswith("--")]
    kept: list[str] = []
    for position, option in enumerate(given):
        if option not in names and (position == 0 or given[position - 1] not in names):
            kept.append(option)
    return ["pretrain", *kept, *more]


def pretrain(recipe: str, data: Path, out: Path, *more: str) -> None:
    """Run in this process. SystemExit carries the status."""
    cli.main(options(recipe, data, out, *more))


def start(recipe: str, data: Path, out: Path, *more: str, **popen: Any) -> subprocess.Popen[str]:
    """Run in a process of its own, with its output in pipes."""
    command = [sys.executable, "-m", "mmssl.cli", *options(recipe, data, out, *more)]
    return subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)


def end_at(process: subprocess.Popen[str], out: Path, step: int, number: signal.Signals, limit: float = 120.0) -> None:
    """Send a signal as soon as `step` is logged; fails if the process ends before."""
    deadline = time.monotonic() + limit
    while not any(line["step"] >= step for line in metrics(out)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"step {step} was not reached in {limit} s"
        time.sleep(0.005)
    process.send_signal(number)


def session(pid: int) -> set[int]:
    """Pids of the processes of a session that still run; `start(..., start_new_session=True)` leads one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            state, _, _, leader = stat.read_text().rpartition(")")[2].split()[:4]
            if int(leader) == pid and state != "Z":
                found.add(int(stat.parent.name))
    return found


def metrics(out: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    file = out / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


TIMES = ("samples_per_s", "audio_s_per_s", "data_wait")


def trace(out: Path) -> list[dict[str, Any]]:
    """Everything logged but times."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in metrics(out)]


def side_by_side(
    processes: int, port: int, arguments: list[str], before: Callable[[], None] | None = None
) -> list[int]:
    """The command on several CPU processes over gloo, with what torchrun would set; much sooner than torchrun,
    since all of them come from one process that has imported everything. Each calls `before` first. Returns their
    exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs", "mmssl.training.loop", "mmssl.objectives.moco"])
    children = [
        context.Process(target=_process, args=(rank, processes, port, arguments, before)) for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        if child.exitcode is None:
            child.kill()
    return [child.exitcode if child.exitcode is not None else -9 for child in children]


def _process(rank: int, world: int, port: int, arguments: list[str], before: Callable[[], None] | None = None) -> None:
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in given.items()}, ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    if before is not None:
        before()
    cli.main(arguments)


def torchrun(processes: int, port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A recipe file on several CPU processes, over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*command, *arguments], cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=300
    )

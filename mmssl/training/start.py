"""The beginning of a run: Accelerate's configuration, and the folder OUT with its recipe.json."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    is_tensorboard_available,
)
from torch import nn

from mmssl.encoders.speech import Block as SpeechBlock
from mmssl.encoders.vit import Block
from mmssl.errors import UserError
from mmssl.files import write_json, writing
from mmssl.training.settings import FREE, Settings

PACKAGES = (
    "mmssl",
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "accelerate",
    "decord",
    "av",
    "soundfile",
    "numpy",
)


def make_accelerator(settings: Settings) -> Accelerator:
    """Accelerate's own configuration decides on devices, DDP, FSDP and precision; --precision overrides the last.

    Raises UserError where that configuration contradicts the settings, or a package for them is missing.
    """
    accumulate = int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"))
    if accumulate not in (1, settings.accumulate):
        raise UserError(
            f"Accelerate's configuration says {accumulate} gradient accumulation steps and the run "
            f"{settings.accumulate}: give --accumulate {accumulate}, or take it out of the configuration."
        )
    if settings.tensorboard and not is_tensorboard_available():  # Accelerate would go on without a word
        raise UserError(
            "--tensorboard needs a package that is not here: pip install 'mmssl[tensorboard]', or leave it out."
        )
    # Accelerate keeps the precision of the process's first run: a later one would silently get it, too.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        log_with="tensorboard" if settings.tensorboard else None,
        project_dir=settings.out / "tensorboard" if settings.tensorboard else None,
        kwargs_handlers=[
            # Objectives keep their buffers equal, and batch norm is averaged at checkpoints: 100 MB of queue would cost
            # 70 ms a broadcast.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(
                timeout=timedelta(hours=1)
            ),  # the others wait while the main process verifies the files
        ],
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # it would train in fp32
        raise UserError("Precision fp16 needs a GPU, and this run is on a CPU: give --precision bf16 or no.")
    accelerator.gradient_accumulation_steps = 1  # the step function divides by counts itself
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        shard_blocks(plugin)
    return accelerator


def shard_blocks(plugin: FullyShardedDataParallelPlugin) -> None:
    """Make transformer blocks the units of FSDP. Raises UserError for FSDP 1: its shards are plain tensors, whose norm
    would be that of one process."""
    if plugin.fsdp_version != 2:
        raise UserError(
            f"Accelerate's configuration says FSDP {plugin.fsdp_version}, and mmssl shards with FSDP 2: set "
            "fsdp_version to 2 there, or give accelerate launch --fsdp_version 2."
        )
    plugin.transformer_cls_names_to_wrap = [Block.__name__]
    plugin.cpu_ram_efficient_loading = False  # takes plain buffers, such as a queue, for sharded parameters


def compile_blocks(objective: nn.Module, device: torch.device, shapes: int = 1) -> None:
    """Compile every transformer block for the shapes it sees, one a bucket of lengths and else one a run.

    Raises UserError where a CPU lacks what compiling takes.
    """
    if device.type == "cpu":
        compiler = any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++"))))
        if not compiler or not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
            raise UserError(
                "--compile on a CPU needs a C++ compiler and Python's headers, and they are not here: install them "
                "(on Debian g++ and python3-dev), or leave it out."
            )
    blocks = [block for block in objective.modules() if isinstance(block, Block | SpeechBlock)]
    # Blocks with drop path rates of their own are compiled one each, which is no endless recompiling.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 2 * len(blocks) * shapes)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2 * len(blocks) * shapes)
    for block in blocks:
        block.compile(dynamic=False)


def check_out(settings: Settings, recipe: str) -> None:
    """Make OUT, and refuse it where it holds another run. For the main process.

    Raises UserError naming what differs, or why OUT cannot be written.
    """
    file = settings.out / "recipe.json"
    if file.exists():
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
            name, before = old["recipe"], defaults(settings) | flat(old["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file} cannot be read ({error!r}): choose another --out, or remove it.") from error
        if name != recipe:
            raise UserError(f"{settings.out} holds a run of {name}, and this is {recipe}: choose another --out.")
        for option, value in flat(as_json(settings)).items():
            if option.split(".")[0] not in FREE and before.get(option) != value:
                raise UserError(
                    f"{settings.out} holds a run of {recipe} with --{option.replace('_', '-')} {before.get(option)}, "
                    f"and this command says {value}: give the same value to go on with it, or choose another --out."
                )
    with writing(settings.out):
        settings.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.out):  # found out now, not after the first thousand steps
            pass


def write_recipe(settings: Settings, recipe: str, command: str, accelerator: Accelerator) -> None:
    """From here on OUT holds this run. For the main process, once everything was checked that can be."""
    content = {"recipe": recipe, "command": command, "settings": as_json(settings), "versions": versions(accelerator)}
    write_json(settings.out / "recipe.json", content)


def as_json(settings: Settings) -> dict[str, Any]:
    """Settings as JSON gives them back; a local data folder by its full path: commands may come from elsewhere."""
    content = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    if os.path.exists(settings.data):  # unlike Path.exists, False where a folder above may not be read
        content["data"] = str(Path(settings.data).resolve())
    return content


def defaults(settings: Settings) -> dict[str, Any]:
    """What a run had of the options that came with a later version."""
    missing = dataclasses.MISSING
    fields = [field for field in dataclasses.fields(settings) if field.default is field.default_factory is missing]
    return flat(as_json(type(settings)(**{field.name: getattr(settings, field.name) for field in fields})))


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return found


def versions(accelerator: Accelerator) -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["device"] = device_name(accelerator.device)
    found["processes"] = accelerator.num_processes
    found["precision"] = accelerator.mixed_precision
    found["distributed"] = str(accelerator.distributed_type.value)
    found["executable"] = sys.executable
    return found


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({os.cpu_count()} cores)"

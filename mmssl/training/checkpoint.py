"""Checkpoints: OUT/checkpoints/step-00000200/ holds model, optimiser, random state (safetensors) and state.json.

Tensors are stored by parameter name, whole, so that one process, DDP and FSDP2 read each other's. A checkpoint is
written into a hidden folder, synced, and renamed: what has its final name is whole. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.modules.batchnorm import _BatchNorm

from mmssl.errors import UserError
from mmssl.files import save_tensors, sync_path, write_json, writing
from mmssl.training.step import LossScale

logger = logging.getLogger(__name__)
FORMAT = 1
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Saved:
    """A checkpoint that was found whole."""

    folder: Path
    step: int
    """Optimiser steps done."""
    state: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run. All methods but `folders` are collective: every process calls them."""

    def __init__(self, out: Path, accelerator: Accelerator, keep: int) -> None:
        self.root = out / "checkpoints"
        self.accelerator = accelerator
        self.keep = keep

    def folders(self) -> list[Path]:
        """Finished checkpoints, newest first."""
        return sorted((path for path in self.root.glob("step-*") if path.is_dir()), reverse=True)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        scale: LossScale | None = None,
    ) -> Path:
        """Write the checkpoint after `step` steps and drop all but the newest `keep`.

        Raises UserError on every process where it cannot be written; earlier checkpoints are left alone.
        """
        average_batch_norm(model, self.accelerator.num_processes)
        files: dict[str, dict[str, Tensor]] = {
            "model": cast(dict[str, Tensor], get_model_state_dict(model, options=WHOLE)),
            "optimizer": flatten(cast(Any, get_optimizer_state_dict(model, optimizer, options=WHOLE)).get("state", {})),
            "random": gathered_random_state(self.accelerator),
        }
        if scale is not None:
            files["scale"] = scale.state()
        final = self.root / f"step-{step:08d}"
        problem: UserError | None = None
        if self.accelerator.is_main_process:
            try:
                self.write(final, files, {**state, "step": step, "world": self.accelerator.num_processes})
            except UserError as error:
                problem = error
        agree(self.accelerator, problem, f"{final} could not be written by the main process, which says why.")
        return final

    def write(self, final: Path, files: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        part = self.root / f".{final.name}.part"
        with writing(final):
            try:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                written = {}
                for name, tensors in files.items():
                    path = part / f"{name}.safetensors"
                    # Tensors of one storage (tied weights) are stored once each: safetensors knows no sharing.
                    save_tensors({key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}, path)
                    sync_path(path)
                    written[path.name] = {"size": path.stat().st_size, "sha256": digest(path)}
                write_json(part / "state.json", {"format": FORMAT, "files": written, **state})
                sync_path(part)
                shutil.rmtree(final, ignore_errors=True)  # left from before going back to an older checkpoint
                os.rename(part, final)
                sync_path(self.root)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
        for old in self.folders()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Saved | None:
        """The newest whole checkpoint; broken ones are passed over with a warning. None if there is none.

        Raises UserError if there are checkpoints and all are broken: starting afresh would overwrite them.
        """
        found, broken = -1, []
        if self.accelerator.is_main_process:
            for folder in self.folders():
                problem = problem_of(folder)
                if problem is None:
                    found = int(folder.name.removeprefix("step-"))
                    break
                broken.append(f"{folder}: {problem}")
                logger.warning("Checkpoint %s is broken (%s); falling back to the one before.", folder, problem)
        position = torch.tensor([found, len(broken)], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            dist.broadcast(position, 0)
        found, passed = position.tolist()
        if found < 0 and passed:
            raise UserError(
                f"No checkpoint in {self.root} is whole ({'; '.join(broken) or 'the main process says why'}): "
                "remove that folder to start the run afresh, or choose another --out."
            )
        if found < 0:
            return None
        folder = self.root / f"step-{found:08d}"
        return Saved(folder, found, json.loads((folder / "state.json").read_text(encoding="utf-8")))

    def load(
        self, saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer, scale: LossScale | None = None
    ) -> None:
        """Put a checkpoint into model and optimiser; the random state is restored by `restore_random`, later."""
        folder = saved.folder
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, cast(Any, read(folder / "model.safetensors")), options=options)
        groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
        state: Any = {"state": unflatten(read(folder / "optimizer.safetensors")), "param_groups": groups}
        set_optimizer_state_dict(model, optimizer, state, options=options)
        if scale is not None and (folder / "scale.safetensors").exists():
            scale.load(read(folder / "scale.safetensors"))

    def restore_random(self, saved: Saved) -> None:
        """Bring back this process's generators, as the last thing before training: making loaders draws from them."""
        states, rank = read(saved.folder / "random.safetensors"), self.accelerator.process_index
        if rank >= len(states["cpu"]):
            logger.warning(
                "The checkpoint was written by %d process(es): process %d starts its dropout afresh.",
                len(states["cpu"]),
                rank,
            )
            return
        torch.set_rng_state(states["cpu"][rank])
        if "cuda" in states and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"][rank], self.accelerator.device)


def problem_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint: missing, short or changed files; None if it is whole."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            return f"state.json has format {state['format']}, and this version reads {FORMAT}"
        for name, expected in state["files"].items():
            path = folder / name
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
            if digest(path) != expected["sha256"]:
                return f"{name} has other content than was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"state.json cannot be read: {error!r}"
    return None


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def flatten(state: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{parameter}|{name}": tensor
        for parameter, entries in state.items()
        for name, tensor in entries.items()
        if isinstance(tensor, Tensor)
    }


def unflatten(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        parameter, name = key.rsplit("|", 1)
        state.setdefault(parameter, {})[name] = tensor
    return state


def gathered_random_state(accelerator: Accelerator) -> dict[str, Tensor]:
    """Generator states of all processes: uint8 [world, bytes], by device kind."""
    own = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    if accelerator.num_processes == 1:
        return {name: state.unsqueeze(0) for name, state in own.items()}
    gathered = {}
    for name, state in own.items():
        rows = [torch.empty_like(state, device=accelerator.device) for _ in range(accelerator.num_processes)]
        dist.all_gather(rows, state.to(accelerator.device))
        gathered[name] = torch.stack(rows).cpu()
    return gathered


@torch.no_grad()
def average_batch_norm(model: nn.Module, world: int) -> None:
    """Make running statistics equal on all processes. They are linear in the batches' statistics: averaging them now
    and then gives what one process with all batches would have."""
    if world == 1:
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            for buffer in (module.running_mean, module.running_var):
                dist.all_reduce(buffer)
                buffer.div_(world)


def agree(accelerator: Accelerator, problem: UserError | None, otherwise: str) -> None:
    """Raise on every process if any has a problem: its own, or `otherwise`."""
    if accelerator.num_processes > 1:
        flag = torch.tensor(float(problem is not None), device=accelerator.device)
        dist.all_reduce(flag)
        if problem is None and flag.item() > 0:
            raise UserError(otherwise)
    if problem is not None:
        raise problem

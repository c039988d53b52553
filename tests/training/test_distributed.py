"""2 processes of B samples do what one process does with 2B: every logged loss and the final weights; also under
torchrun and accelerate launch, with parameters sharded by FSDP2, and where a run goes on with another number of
processes.

The reference is the single process. Batch norm runs over groups of a fixed size, which does not depend on processes.
Gradients are clipped, since batch norm over a few alike pictures makes them thousands long, and so their rounding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.training import loop
from mmssl.training.progress import Display
from mmssl.training.settings import Settings
from mmssl.training.start import shard_blocks
from tests.runs import REPOSITORY, make_media, metrics, options, pretrain, side_by_side, torchrun

CASES = {
    "image/mae": ["--encoder.drop-path", "0"],
    "image/simclr": ["--encoder.arch", "resnet18", "--encoder.stem", "cifar", "--norm-group", "4"],
    "image/moco_v2": ["--norm-group", "4"],
}


def assert_same(one: Path, two: Path) -> None:
    ours, theirs = metrics(two), metrics(one)
    assert [line["step"] for line in ours] == [1, 2, 3]
    assert theirs[0]["loss"] != theirs[2]["loss"]
    for name in set(theirs[0]) - {"samples_per_s", "data_wait", "grad_norm"}:
        torch.testing.assert_close([line[name] for line in ours], [line[name] for line in theirs], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        [line["grad_norm"] for line in ours], [line["grad_norm"] for line in theirs], rtol=1e-4, atol=1e-5
    )
    last = "checkpoints/step-00000003/model.safetensors"
    weights = load_file(one / last)
    found = load_file(two / last)
    assert found.keys() == weights.keys()
    for name, tensor in found.items():
        close = torch.isclose(tensor, weights[name], rtol=1e-5, atol=1e-5)
        assert close.all(), f"{name}: off by {(tensor - weights[name]).abs().max()}"


@pytest.mark.parametrize("recipe", CASES)
def test_two_processes_are_one(recipe: str, tmp_path: Path) -> None:
    data = make_media(tmp_path / "data", "image")
    more = [*CASES[recipe], "--optimizer", "sgd", "--base-lr", "0.3", "--clip", "1", "--steps", "3", "--warmup", "0.5"]
    pretrain(recipe, data, tmp_path / "one", *more)
    arguments = options(recipe, data, tmp_path / "two", *more)
    assert side_by_side(2, 29500 + list(CASES).index(recipe), arguments) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")


def test_torchrun_and_going_on_alone(tmp_path: Path) -> None:
    """Two processes for the first step, under torchrun; the same command on one process goes on from there."""
    recipe, data = "image/mae", make_media(tmp_path / "data", "image")
    more = ["--encoder.drop-path", "0", "--steps", "3", "--save-every", "1", "--keep", "3", "--optimizer", "sgd"]
    pretrain(recipe, data, tmp_path / "one", *more)
    _, _, *arguments = options(recipe, data, tmp_path / "two", *more)
    done = torchrun(2, 29510, str(REPOSITORY / "recipes/image/mae.py"), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "one", tmp_path / "two")
    for step in ("step-00000003", "step-00000002"):
        (tmp_path / "two" / "checkpoints" / step / "state.json").unlink()
    pretrain(recipe, data, tmp_path / "two", *more)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_accelerate_launch(tmp_path: Path) -> None:
    """The README's command for many devices, on two CPU processes; the precision is Accelerate's to decide."""
    recipe, data = "video/videomae", make_media(tmp_path / "data", "video", 8)
    more = ["--encoder.drop-path", "0", "--steps", "2", "--clips", "1", "--optimizer", "sgd", "--accumulate", "2"]
    pretrain(recipe, data, tmp_path / "one", *more, "--precision", "bf16")
    _, _, *arguments = options(recipe, data, tmp_path / "two", *more)
    where = "--multi_gpu --num_processes=2 --num_machines=1 --main_process_port=29530"  # the launcher of processes
    command = [sys.executable, "-m", "accelerate.commands.launch", *where.split(), "--mixed_precision=bf16"]
    file = str(REPOSITORY / "recipes/video/videomae.py")
    # A home of its own, since `accelerate config` may have been run on this machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [*command, file, *arguments], cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    versions = json.loads((tmp_path / "two" / "recipe.json").read_text())["versions"]
    assert (versions["processes"], versions["precision"]) == (2, "bf16")
    for line, expected in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)  # both in bf16, in other batches
    assert (tmp_path / "two" / "encoder" / "model.safetensors").is_file()


def shard() -> None:
    """Make Accelerate use FSDP2 on CPUs, where its own configuration offers it for accelerators only."""
    plain, finish = loop.make_accelerator, loop.finish

    def sharded(settings: Settings) -> Accelerator:
        accelerator = plain(settings)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block"],
            cpu_ram_efficient_loading=False,
        )
        accelerator.state.distributed_type = DistributedType.FSDP
        return accelerator

    def finish_sharded(run: loop.Run, display: Display) -> None:
        assert all(isinstance(parameter, DTensor) for parameter in run.model.parameters())  # it did shard
        finish(run, display)

    loop.make_accelerator, loop.finish = sharded, finish_sharded


@pytest.mark.parametrize("recipe", ["image/mae", pytest.param("image/simclr", marks=pytest.mark.heavy)])
def test_fsdp2(recipe: str, tmp_path: Path) -> None:
    """Sharded over two processes: losses, weights and encoder of one; checkpoints of either are read by the other."""
    data = make_media(tmp_path / "data", "image")
    more = ["--encoder.drop-path", "0", "--steps", "3", "--save-every", "1", "--keep", "3", "--optimizer", "sgd"]
    pretrain(recipe, data, tmp_path / "one", *more)
    arguments = options(recipe, data, tmp_path / "two", *more)
    assert side_by_side(2, 29520, arguments, shard) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")
    ours = Encoder.from_pretrained(tmp_path / "two" / "encoder").state_dict()
    for name, tensor in Encoder.from_pretrained(tmp_path / "one" / "encoder").state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5)
    for out, step in [("one", "step-00000003"), ("one", "step-00000002"), ("two", "step-00000003")]:
        (tmp_path / out / "checkpoints" / step / "state.json").unlink()
    assert side_by_side(2, 29521, options(recipe, data, tmp_path / "one", *more), shard) == [0, 0]
    pretrain(recipe, data, tmp_path / "two", *more)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_fsdp1_is_refused() -> None:
    """It is what `accelerate launch --use_fsdp` takes when nobody says which; its norms would be those of one shard."""
    with pytest.raises(UserError, match="set fsdp_version to 2"):
        shard_blocks(FullyShardedDataParallelPlugin(fsdp_version=1))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    shard_blocks(plugin)
    assert plugin.transformer_cls_names_to_wrap == ["Block"]

"""Claim: a speech encoder trains where several processes share a step and where blocks are compiled.

Every process drops blocks of its own, and DDP, which waits for a gradient of every weight, gives the mean of what each
would have got alone, as FSDP2 does with sharded weights; compiled blocks give the outputs and gradients of eager ones;
bf16 stays near fp32.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from functools import partial

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from mmssl.adapters.specs import WaveformSpec
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.training.start import compile_blocks

SPEC = WaveformSpec(channels=(8,) * 7)
SETTINGS = SpeechSettings(width=24, depth=4, heads=3, mlp_ratio=2, position_kernel=8, position_groups=4, layer_drop=0.5)


def wave(seed: int) -> Tensor:
    return torch.randn(2, 8000, generator=torch.Generator().manual_seed(seed)) * 0.1


def gradients(model: torch.nn.Module, view: Tensor, seed: int) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)  # of dropout and layer drop
    tokens = model(view).tokens
    # Not a sum of squares, which a norm at the end makes the same for all weights.
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
    found = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def process(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    encoder = SpeechEncoder(SPEC, SETTINGS)
    shared = DistributedDataParallel(copy.deepcopy(encoder), broadcast_buffers=False)
    sharded = copy.deepcopy(encoder)
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    for step in range(4):
        seed = 10 * step + rank
        expected = gradients(encoder, wave(seed), seed)
        pieces = gradients(sharded, wave(seed), seed)
        assert sum(float(gradient.abs().max()) > 0.1 for gradient in expected.values()) > 10
        for name, gradient in gradients(shared, wave(seed), seed).items():
            distributed.all_reduce(expected[name])
            assert_close(gradient, expected[name] / 2, rtol=1e-4, atol=1e-4)
            piece = pieces[name]
            assert isinstance(piece, DTensor)
            assert_close(piece.full_tensor(), gradient, rtol=1e-4, atol=1e-4)
    distributed.destroy_process_group()


def test_processes_drop_blocks_of_their_own_and_share_every_gradient() -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmssl.encoders.speech"])
    children = [context.Process(target=process, args=(rank, 29540)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        if child.exitcode is None:
            child.kill()
    assert [child.exitcode for child in children] == [0, 0]


@pytest.mark.heavy
@pytest.mark.parametrize("settings", [{"arch": "hubert"}, {"arch": "wavlm", "pre_norm": True}], ids=["post", "pre"])
def test_compiled_blocks_equal_eager_ones(settings: dict) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layer_drop": 0.5}
    made = [SpeechEncoder(SPEC, SpeechSettings(**(vars(SETTINGS) | rates | settings))) for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    compile_blocks(made[1], torch.device("cpu"))
    ours, theirs = (gradients(encoder, wave(0), 0) for encoder in made)
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", ["hubert", "wavlm"])
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_bf16_stays_near_fp32(arch: str, large: bool) -> None:
    """Under autocast, as Accelerate trains, and in weights, as FSDP does; padded, so that every mask is met."""
    torch.manual_seed(0)
    spec = WaveformSpec(channels=(8,) * 7, norm="layer", normalise=True) if large else SPEC
    encoder = SpeechEncoder(spec, SpeechSettings(**(vars(SETTINGS) | {"arch": arch, "pre_norm": large}))).eval()
    near = partial(assert_close, rtol=0, atol=0.05, check_dtype=False)
    lengths = torch.tensor([8000, 5000])
    expected = encoder(wave(0), lengths=lengths).pooled
    with torch.autocast("cpu", torch.bfloat16):
        near(encoder(wave(0), lengths=lengths).pooled, expected)
        near(encoder(wave(0)[:, :5000]).pooled[1:], expected[1:])
    half = copy.deepcopy(encoder).bfloat16()
    near(half(wave(0), lengths=lengths).pooled, expected)
    tokens = half.tokenize(wave(0))
    assert tokens.x.dtype == torch.bfloat16
    mask = torch.rand(tokens.x.shape[:2]) < 0.5
    assert half.encode(tokens, mask=mask).pooled.dtype == torch.bfloat16

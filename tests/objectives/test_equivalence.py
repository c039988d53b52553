"""Two processes with B samples each do what one process with 2B does: losses of three steps, gradients of the first
one, parameters, queue and batch-norm statistics after the last one. Real torch DDP over gloo against the plain module;
gradients are combined as the training step does it (loss x count summed over processes, divided by the summed count).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.headed import HeadSettings
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.objectives.base import Objective
from mmssl.objectives.contrastive import Contrastive
from mmssl.objectives.latent_prediction import LatentPrediction
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import CoarseMask, MultiBlockMask, RandomMask, RunningCellMask, TubeMask
from mmssl.objectives.moco import MoCo
from mmssl.objectives.odd_one_out import OddOneOut
from mmssl.objectives.simmim import SimMIM
from mmssl.objectives.temporal_order import TemporalOrder
from mmssl.objectives.time_contrastive import TimeContrastive
from mmssl.types import Batch

SAMPLES, STEPS = 8, 3
WINDOW = 7
IMAGE = ImageSpec(size=16, patch=8)
AUDIO = AudioSpec(mels=16, frames=32, patch=8, stride=8)


class SmallConv(ConvEncoder):
    """The stem and first stage of a ResNet-18: enough batch norms, little time."""

    def __init__(self) -> None:
        super().__init__(ImagePixels(IMAGE), stem="cifar")
        self.layer2 = self.layer3 = self.layer4 = nn.Sequential()
        self.width = 64


def vit() -> ViT:
    return ViT(ImagePatches(IMAGE, 32), ViTSettings(width=32, depth=1, heads=2))


def video_mae() -> Objective:
    settings = ViTSettings(width=32, depth=1, heads=2, prefix=0, positions="sincos1d", qkv_bias="qv")
    encoder = ViT(VideoTubelets(VideoSpec(size=16, frames=4, patch=4), 32), settings)
    return MaskedAutoencoder(
        encoder, mask=TubeMask(0.75), decoder_mask=RunningCellMask(), target="patch_norm_channel",
        decoder_width=32, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip


def mae_st() -> Objective:
    settings = ViTSettings(width=32, depth=1, heads=2, positions="separable")
    encoder = ViT(VideoTubelets(VideoSpec(size=16, frames=4, patch=4), 32), settings)
    return MaskedAutoencoder(
        encoder, mask=RandomMask(0.9), frames=2, decoder_positions="separable",
        decoder_width=32, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip


def v_jepa() -> Objective:
    settings = ViTSettings(width=32, depth=1, heads=2, prefix=0, positions="rope3d")
    encoder = ViT(VideoTubelets(VideoSpec(size=16, frames=4, patch=4), 32), settings)
    masks = [MultiBlockMask(8, 0.15, 0.38), MultiBlockMask(2, 0.7, 0.19)]
    return LatentPrediction(
        encoder, masks=masks, predictor_width=24, predictor_depth=1, predictor_heads=2, momentum=0.9
    )  # fmt: skip


def cola() -> Objective:
    encoder = ViT(SpectrogramPatches(AUDIO, 32), ViTSettings(width=32, depth=1, heads=2))
    return Contrastive(encoder, layers=1, out=16, norm="none", similarity="bilinear", symmetric=False, temperature=1.0)


def odd_one_out() -> Objective:
    settings = ViTSettings(width=32, depth=1, heads=2, prefix=0, positions="sincos1d")
    encoder = ViT(VideoTubelets(VideoSpec(size=16, frames=3, patch=8, tubelet=1), 32), settings)
    return OddOneOut(encoder, window=WINDOW, clips=3, width=16)


def tcn() -> Objective:
    """With negatives of all processes, each of which has samples of all sequences. Not by triplets: which negative is
    the nearest may turn on rounding."""
    return TimeContrastive(vit(), HeadSettings(hidden=16, out=8), loss="npairs", negatives="batch")


CASES: dict[str, Callable[[], Objective]] = {
    "mae": lambda: MaskedAutoencoder(vit(), mask=RandomMask(0.5), decoder_width=32, decoder_depth=1, decoder_heads=2),
    "videomae with decoder masking": video_mae,
    "mae-st": mae_st,
    "simmim": lambda: SimMIM(vit(), mask=CoarseMask(0.5, (1, 1, 1))),
    "simclr, vit, groups": lambda: Contrastive(vit(), hidden=32, out=16, norm_group=4),
    "simclr, conv, groups": lambda: Contrastive(SmallConv(), hidden=32, out=16, norm_group=4),
    "simclr, conv, global batch norm": lambda: Contrastive(SmallConv(), hidden=32, out=16, norm_group=None),
    "v-jepa": v_jepa,
    "cola": cola,
    "temporal order": lambda: TemporalOrder(vit(), window=WINDOW, tau_max=4, tau_min=1, hidden=16),
    "odd one out": odd_one_out,
    "tcn, n-pairs": tcn,
    "moco, vit": lambda: MoCo(vit(), queue=16, momentum=0.9, hidden=32, out=16),
    "moco, conv, shuffled": lambda: MoCo(SmallConv(), queue=16, momentum=0.9, hidden=32, out=16, norm_group=2),
    "moco, conv, shuffled, symmetric": lambda: MoCo(
        SmallConv(), queue=16, momentum=0.9, hidden=32, out=16, norm_group=2, symmetric=True
    ),
}


def make_batch(objective: Objective, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    spec = objective.encoder.spec

    def view() -> Tensor:
        if isinstance(spec, AudioSpec):
            return torch.randn(SAMPLES, spec.samples, generator=generator)
        shape: tuple[int, ...] = (spec.frames, 3, 16, 16) if isinstance(spec, VideoSpec) else (3, 16, 16)
        if isinstance(objective, TemporalOrder | OddOneOut | TimeContrastive):
            shape = (WINDOW, 3, 16, 16)
        return torch.randint(0, 256, (SAMPLES, *shape), dtype=torch.uint8, generator=generator)

    noise = {name: torch.rand(SAMPLES, k, generator=generator) for name, k in objective.noise.items()}
    views = {name: view() for name in objective.views}
    if isinstance(objective, TemporalOrder | OddOneOut):
        views["window"][1] = views["window"][1, :1]  # nothing moves: one process has a term less than the other
    if not isinstance(objective, TimeContrastive):
        return Batch(views, torch.arange(SAMPLES), noise)
    times = 3 * torch.rand(SAMPLES, WINDOW, generator=generator)
    return Batch(views, torch.arange(SAMPLES) % (SAMPLES // 2), noise, {"time": times.sort(1).values})


def train(make: Callable[[], Objective], rank: int, world: int) -> dict[str, Tensor]:
    """Three steps of SGD; the results by name."""
    torch.manual_seed(0)
    objective = make().double()  # losses stay fp32, but no rounding decides a ReLU differently and grows over the steps
    model: nn.Module = DistributedDataParallel(objective) if world > 1 else objective
    optimizer = torch.optim.SGD(
        [p for p in objective.parameters() if p.requires_grad], lr=0.01
    )  # small: rounding must not grow
    found: dict[str, Tensor] = {}
    share = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    for step in range(STEPS):
        whole = make_batch(objective, step)
        batch = Batch(
            {name: view[share] for name, view in whole.views.items()},
            whole.index[share],
            {name: draws[share] for name, draws in whole.noise.items()},
            {name: target[share] for name, target in whole.targets.items()},
        )
        output = model(batch)
        (output.loss * output.count).backward()
        sums = torch.stack([output.loss.detach() * output.count, output.count])
        if world > 1:
            dist.all_reduce(sums)
        found[f"loss {step}"] = sums[0] / sums[1]
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                parameter.grad.mul_(world / sums[1])
                if step == 0:
                    found[f"gradient {name}"] = parameter.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step, STEPS, torch.tensor(True))
    return found | {f"state {name}": value.clone() for name, value in objective.state_dict().items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, make in enumerate(CASES.values()):
        save_file(train(make, rank, 2), f"{folder}/{number}-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(work, args=(str(place),), nprocs=2)
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    return place


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(folder: Path, name: str) -> None:
    number = list(CASES).index(name)
    expected = train(CASES[name], 0, 1)
    for rank in range(2):
        actual = load_file(folder / f"{number}-{rank}.safetensors")
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            # Running statistics of grouped batch norms are means over the groups of one process.
            if "running_" in key and "global" not in name:
                continue
            scale = value.abs().max().clamp(min=1e-2) if value.is_floating_point() else 1.0
            assert (actual[key] - value).abs().max() <= 2e-5 * scale, f"{key} on process {rank}"


def test_the_cases_would_notice_what_they_guard_against() -> None:
    """Other groups, or no shuffle, change the loss by far more than the tolerance."""

    def first_loss(make: Callable[[], Objective]) -> float:
        return train(make, 0, 1)["loss 0"].item()

    def grouped(size: int) -> float:
        return first_loss(lambda: Contrastive(SmallConv(), hidden=32, out=16, norm_group=size))

    groups = {size: grouped(size) for size in (2, 4, 8)}
    assert min(abs(groups[2] - groups[4]), abs(groups[4] - groups[8])) > 1e-3

    def unshuffled() -> Objective:
        objective = MoCo(SmallConv(), queue=16, momentum=0.9, hidden=32, out=16, norm_group=2)
        objective.shuffles = False
        return objective

    assert abs(first_loss(unshuffled) - first_loss(CASES["moco, conv, shuffled"])) > 1e-4

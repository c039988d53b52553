"""SimCLR and MoCo v2 on CIFAR-10 beside lightly's, with the same backbone, augmentation, batch, epochs and optimiser.

    python datasets/cifar10.py --source FOLDER --out data/cifar10
    python benchmarks/cifar10_vs_lightly.py --data data/cifar10 --shards 1 --epochs 10 --seeds 0 1 2      # CPU
    python benchmarks/cifar10_vs_lightly.py --data data/cifar10 --epochs 200 --stem cifar --seeds 0   # GPU

Ours is the shipped recipe through the training loop; theirs is lightly's transform, heads, momentum helpers, memory
bank and loss in a plain loop, as its benchmark page has them. Both start from torchvision's ResNet-18 and are judged by
one nearest-neighbour classifier (k=200, T=0.1: lightly's) on the same features of the same pictures.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import math
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform, SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmssl.adapters.image import ImagePixels
from mmssl.adapters.specs import ImageSpec
from mmssl.data.sources import Source, open_source
from mmssl.data.views import ImageViews
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.evaluation.features import extract_all
from mmssl.evaluation.probes.knn import knn_predict
from mmssl.training.loop import train
from mmssl.training.recipe import Parts, load_recipe

LR, LR_PER, DECAY, MOMENTUM = 6e-2, 128, 5e-4, 0.9
QUEUE, TEACHER = 4096, 0.99
SPEC = ImageSpec(size=32)
OURS = {
    "simclr": {"strength": 0.5, "temperature": 0.5, "hidden": 512},
    "moco_v2": {"temperature": 0.1, "hidden": 512, "queue": QUEUE, "momentum": TEACHER, "symmetric": True},
}


def train_ours(method: str, data: Path, out: Path, seed: int, args: argparse.Namespace) -> Encoder:
    recipe = load_recipe(f"image/{method}")
    settings = recipe.Settings(
        data=str(data),
        out=out,
        input=SPEC,
        encoder=recipe.EncoderSettings(arch="resnet18", stem=args.stem),
        blur=0.0,
        scale=(0.08, 1.0),
        norm_group=None if method == "simclr" else 32,  # MoCo's: the paper's; theirs normalises over the batch
        epochs=args.epochs,
        batch_size=args.batch,
        optimizer="sgd",
        base_lr=LR,
        lr_per=LR_PER,
        warmup=0.0,
        weight_decay=DECAY,
        betas=(MOMENTUM, 0.999),
        seed=seed,
        workers=args.workers,
        probe_every=0,
        **OURS[method],
    )

    def build(given: object) -> Parts:
        parts = recipe.build(given)
        assert isinstance(parts.views, ImageViews)
        return dataclasses.replace(parts, views=dataclasses.replace(parts.views, interpolation="bilinear"))

    train(settings, build, recipe=f"image/{method}", command="benchmarks/cifar10_vs_lightly.py")
    return Encoder.from_pretrained(out / "encoder")


class Pictures(Dataset):
    """All training pictures in memory, two transformed views each."""

    def __init__(self, source: Source, transform: object) -> None:
        self.transform = transform
        rows = source.rows("train")
        self.pictures = [np.asarray(Image.open(io.BytesIO(source.media(int(row)).read()))) for row in rows]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        first, second = self.transform(Image.fromarray(self.pictures[number]))  # type: ignore[operator]
        return first, second


def train_theirs(method: str, source: Source, seed: int, args: argparse.Namespace) -> Encoder:
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Their network is the same torchvision ResNet; the front is left out, since their transform normalises already.
    encoder = ConvEncoder(ImagePixels(SPEC), "resnet18", args.stem)
    front, encoder.front = encoder.front, Passing(SPEC)
    model: nn.Module
    if method == "simclr":
        transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
        model, loss = SimCLR(encoder), NTXentLoss(temperature=0.5)
    else:
        transform = MoCoV2Transform(input_size=32, gaussian_blur=0.0, min_scale=0.08)
        model, loss = MoCo(encoder), NTXentLoss(temperature=0.1, memory_bank_size=(QUEUE, 128))
    model, loss = model.to(device), loss.to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LR * args.batch / LR_PER, momentum=MOMENTUM, weight_decay=DECAY)
    loader = DataLoader(Pictures(source, transform), args.batch, True, num_workers=args.workers, drop_last=True)
    steps = int(args.epochs * len(loader))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
    for _ in range(args.epochs):
        for first, second in loader:
            optimizer.zero_grad()
            model(first.to(device), second.to(device), loss).backward()
            optimizer.step()
            schedule.step()
    encoder.front = front
    return encoder.cpu()


class Passing(ImagePixels):
    """Normalised pictures go straight into the network."""

    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        return view.unsqueeze(2)


class SimCLR(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, SimCLRProjectionHead(encoder.width, 512, 128)

    def forward(self, first: Tensor, second: Tensor, loss: nn.Module) -> Any:
        return loss(self.head(self.encoder(first).pooled), self.head(self.encoder(second).pooled))


class MoCo(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, MoCoProjectionHead(encoder.width, 512, 128)
        self.slow_encoder, self.slow_head = copy.deepcopy(self.encoder), copy.deepcopy(self.head)
        deactivate_requires_grad(self.slow_encoder)
        deactivate_requires_grad(self.slow_head)

    def forward(self, first: Tensor, second: Tensor, loss: nn.Module) -> Any:
        update_momentum(self.encoder, self.slow_encoder, TEACHER)
        update_momentum(self.head, self.slow_head, TEACHER)
        return 0.5 * (self.one_way(first, second, loss) + self.one_way(second, first, loss))

    def one_way(self, query: Tensor, key: Tensor, loss: nn.Module) -> Any:
        with torch.no_grad():
            keys = self.slow_head(self.slow_encoder(key).pooled)
        return loss(self.head(self.encoder(query).pooled), keys)


def accuracy(encoders: list[Encoder], source: Source, workers: int) -> list[float]:
    """Top-1 of the nearest-neighbour classifier on the test pictures, for each encoder."""
    train_rows, test_rows = source.rows("train"), source.rows("test")
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(source.labels())}
    found = []
    for features in extract_all(encoders, source, np.concatenate([train_rows, test_rows]), workers=workers):
        bank, queries = features.at(train_rows), features.at(test_rows)
        known = torch.tensor([numbers[label] for label in bank.labels])
        truth = torch.tensor([numbers[label] for label in queries.labels])
        predicted = knn_predict(
            torch.from_numpy(bank.x), known, torch.from_numpy(queries.x), classes=10, neighbours=(200,), temperature=0.1
        )
        found.append(float((next(iter(predicted.values())) == truth).float().mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what datasets/cifar10.py wrote")
    parser.add_argument("--shards", type=int, default=5, help="training shards of 10,000 pictures to use")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--stem", choices=("imagenet", "cifar"), default="imagenet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["simclr", "moco_v2"], choices=("simclr", "moco_v2"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        for split, count in (("train", args.shards), ("test", 1)):
            (data / split).mkdir(parents=True)
            for shard in sorted((args.data / split).glob("*.tar"))[:count]:
                (data / split / shard.name).symlink_to(shard.resolve())
        source = open_source(str(data), "image")
        print(
            "| method | seed | mmssl kNN | lightly kNN | mmssl s | lightly s |\n|---|---:|---:|---:|---:|---:|",
            flush=True,
        )
        for method in args.methods:
            pairs = []
            for seed in args.seeds:
                began = time.perf_counter()
                ours = train_ours(method, data, Path(folder) / f"{method}-{seed}", seed, args)
                middle = time.perf_counter()
                theirs = train_theirs(method, source, seed, args)
                seconds = middle - began, time.perf_counter() - middle
                pairs.append(accuracy([ours, theirs], source, args.workers))
                row = f"{pairs[-1][0]:.4f} | {pairs[-1][1]:.4f} | {seconds[0]:.0f} | {seconds[1]:.0f}"
                print(f"| {method} | {seed} | {row} |", flush=True)
            gains = [ours - theirs for ours, theirs in pairs]
            spread = f" +- {stdev(gains):.4f}" if len(gains) > 1 else ""
            print(
                f"| {method} | mean | {mean(a for a, _ in pairs):.4f} | {mean(b for _, b in pairs):.4f} "
                f"| difference {mean(gains):+.4f}{spread} | |",
                flush=True,
            )


if __name__ == "__main__":
    main()

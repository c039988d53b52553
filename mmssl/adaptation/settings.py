"""The settings of fine-tuning: MAE's and VideoMAE's published values, by modality where they differ."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from mmssl.adaptation.adapt import Pooling
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.errors import UserError
from mmssl.training.settings import Settings as Common

VALUES: dict[str, dict[str, Any]] = {
    "image": {
        "layer_decay": 0.65,
        "drop_path": 0.1,
        "cutmix": 1.0,
        "erase": 0.25,
        "randaugment": (2, 9),
        "test_clips": 1,
        "test_crops": 1,
    },
    "video": {
        "layer_decay": 0.75,
        "drop_path": 0.1,
        "cutmix": 1.0,
        "erase": 0.25,
        "randaugment": (4, 7),
        "test_clips": 5,
        "test_crops": 3,
    },
    "frames": {
        "layer_decay": 0.65,
        "drop_path": 0.1,
        "cutmix": 1.0,
        "erase": 0.25,
        "randaugment": (2, 9),
        "test_clips": 25,
        "test_crops": 3,
    },
    "audio": {
        "layer_decay": 0.75,
        "drop_path": 0.1,
        "cutmix": 0.0,
        "erase": 0.0,
        "randaugment": (0, 0),
        "test_clips": 1,
        "test_crops": 1,
    },
}
"""Images: ViT-B of MAE (official code, FINETUNE.md; RandAugment m9). Clips: ViT-B of VideoMAE on Kinetics-400 (official
scripts). Frames, of videos that an encoder of images is shown: as images, tested on 25 frames as Misra et al. 2016 did
(their 5 crops and mirror images are 3 crops here). Audio: our choice."""
RESNET = {"layer_decay": 1.0, "drop_path": 0.0}
"""Nothing is published for these: every layer at the same rate, no stochastic depth (our choice)."""
EFFICIENTNET = {"layer_decay": 1.0, "drop_path": 0.2}
"""Every layer at the same rate (our choice); stochastic depth as Tan and Le 2019 train it (arXiv:1905.11946)."""


@dataclass(kw_only=True)
class FinetuneSettings(Common):
    """End-to-end fine-tuning on labelled files, beside the same encoder from random weights at equal settings.

    The fine-tuned models, their checkpoints and logs go into a folder beside the JSON file, named as it is without
    .json; the same command again goes on where it stopped. Options without a default take MAE's or VideoMAE's value.
    """

    encoder: str
    """Folder of a run's encoder, or a Hub id."""
    data: str
    """Labelled media: folders, a train/ + test/ tree, a folder with metadata.csv, WebDataset tars, or a Hub name. An
    encoder of images takes videos, too: it sees frames of them."""
    out: Path
    """JSON file for all figures and settings."""
    untrained: bool = True
    """Also train the encoder from random weights, at equal settings."""
    init: tyro.conf.Suppress[str | None] = None

    pooling: Pooling | None = None
    """What the head reads; the encoder's own pooling if not given."""
    dropout: float = 0.0
    """Before the last layer (VideoMAE on UCF101: 0.5)."""
    layer_decay: float | None = None
    """Factor of the learning rate from each block to the one before it. 0.65 for images, 0.75 else, 1 for a ResNet
    or an EfficientNet."""
    drop_path: float | None = None
    """Stochastic depth at the last block. 0.1, 0 for a ResNet, 0.2 for an EfficientNet (VideoMAE on UCF101: 0.2)."""

    mixup: float = 0.8
    """Alpha of mixup; 0 for none."""
    cutmix: float | None = None
    """Alpha of cutmix; 0 for none. 1, and 0 for audio."""
    switch: float = 0.5
    """Share of the samples that get cutmix where both are on."""
    smoothing: float = 0.1
    """Label smoothing."""
    erase: float | None = None
    """Probability of random erasing. 0.25, and 0 for audio."""
    cutout: int = 0
    """Side of the square that cutout covers, in pixels (samples of a waveform); 0 for none."""
    randaugment: tuple[int, int] | None = None
    """Operations and their strength in tenths; 0 0 for none. 2 9 for images, 4 7 for clips."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the picture's area that a training crop covers."""
    flip: bool = True
    """Mirror half of the pictures and clips (not for Something-Something, whose labels know left from right)."""
    repeats: int = 1
    """Samples cut from one decode of a file (VideoMAE: 2)."""

    test_clips: int | None = None
    """Clips (segments, or of an encoder of images frames) of a test file whose logits are averaged. 5 for clips, 1 for
    audio, 25 frames."""
    test_crops: int | None = None
    """Crops of each test clip or picture, along its longer side. 3 for clips and frames of videos, 1 for images."""

    epochs: float = 100.0
    batch_size: int = 128
    base_lr: float = 5e-4
    min_lr: float = 1e-6
    warmup: float = 0.05  # 5 of 100 epochs: our choice, as are min_lr and betas
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    probe_every: int | None = 0

    def check(self, world: int) -> None:
        super().check(world)
        shares = (("drop_path", self.drop_path), ("dropout", self.dropout), ("smoothing", self.smoothing))
        for name, value in shares:
            if not 0 <= (value or 0) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give 0 or more, and less than 1.")
        if not 0 < (1.0 if self.layer_decay is None else self.layer_decay) <= 1:
            raise UserError(f"--layer-decay is {self.layer_decay}: give a factor above 0, up to 1.")
        if min(self.mixup, self.cutmix or 0, self.cutout) < 0:
            raise UserError("--mixup, --cutmix and --cutout are 0 (for none) or above.")
        if not (0 <= self.switch <= 1 and 0 <= (self.erase or 0) <= 1):
            raise UserError("--switch and --erase are shares: give 0 to 1.")
        operations, strength = self.randaugment or (0, 0)
        if operations < 0 or not 0 <= strength <= 10:
            raise UserError(f"--randaugment is {operations} {strength}: give operations and a strength from 0 to 10.")
        if self.repeats < 1 or min(self.test_clips or 1, self.test_crops or 1) < 1:
            raise UserError("--repeats, --test-clips and --test-crops are 1 or more.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"--scale is {self.scale[0]} {self.scale[1]}: give two shares of the area, smaller first.")

    def run(self) -> dict[str, Any]:
        from mmssl.adaptation.finetune import run_finetune

        return run_finetune(self)


def resolved(settings: FinetuneSettings, encoder: Encoder, kind: str) -> FinetuneSettings:
    """With the published value for this encoder, on files of `kind`, in place of every None."""
    modality = encoder.spec.modality
    values = VALUES["frames" if modality == "image" and kind == "video" else modality] | own_values(encoder)
    return replace(settings, **{name: value for name, value in values.items() if getattr(settings, name) is None})


def own_values(encoder: Encoder) -> dict[str, Any]:
    """What convolutional nets have in place of their modality's values."""
    return RESNET if isinstance(encoder, ConvEncoder) else EFFICIENTNET if isinstance(encoder, EfficientNet) else {}


def command_of(settings: FinetuneSettings) -> str:
    """The command line that means these settings."""
    words = ["mmssl", "evaluate", "finetune"]
    for field in dataclasses.fields(settings):
        value, option = getattr(settings, field.name), field.name.replace("_", "-")
        if value is None or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(words)

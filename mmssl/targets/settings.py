"""Settings of `mmssl targets kmeans`, and what follows from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.data.sources import Source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.targets.features import Features, LayerFeatures, MfccFeatures, PatchFeatures, features_from
from mmssl.targets.units import CODEBOOK, read_about


@dataclass(kw_only=True)
class KmeansSettings:
    """Cluster features of unlabelled media and write the units of every file. Defaults are HuBERT's first iteration
    (39 MFCC values, 100 clusters) with the k-means of fairseq's learn_kmeans."""

    data: str
    """Media: nested folders, a folder with metadata.csv, WebDataset tars, or a Hub name."""
    out: Path
    """Folder for the units; the same command goes on where it was stopped."""
    features: Literal["mfcc", "layer", "patches"] | None = None
    """'mfcc' if not given; 'layer' of --encoder; 'patches': pixels of pictures, tubes or spectrograms, of --encoder's
    size or as `input` says."""
    encoder: str | None = None
    """Folder of a run's encoder, or a Hub id."""
    layer: int | None = None
    """Of the encoder: 1 is what its first block puts out. HuBERT's second iteration takes 6."""
    input: ImageSpec | VideoSpec | AudioSpec | None = None
    """What patches are cut from, where there is no encoder."""
    codebook: Path | None = None
    """Folder of units, of training data say, whose codebook these units are made with; nothing is fitted then."""
    labels: Path | None = None
    """CSV or parquet with columns id, start, end (seconds), label: how much units tell of them (purity, PNMI)."""
    clusters: int = 100
    """HuBERT: 100 for MFCC, 500 for a layer."""
    frames: int = 1_000_000
    """Features that are fitted on, drawn from all files, or from those of the split 'train' where the data has one.
    They are held in memory, and on disk until the units stand: 4 bytes a value, 156 MB for a million MFCC frames,
    3.1 GB for a layer of width 768."""
    batch_size: int = 10_000
    """Features of one update."""
    n_init: int = 20
    """Starts, of which the best goes on."""
    max_iter: int = 100
    """Rounds over the drawn features at most."""
    max_no_improvement: int = 100
    """Updates without improvement after which it ends."""
    reassignment_ratio: float = 0.0
    """Centroids with at most this share of the largest one's features are moved; at 0 those that got none."""
    seed: int = 0
    max_bad_share: float = 0.05
    """Share of files that may be unreadable; they get no units and are listed in OUT/skipped.jsonl."""
    workers: int = 2
    """Processes that decode, for each process that computes; 0 decodes in that one."""
    file_seconds: float = 120.0
    """Seconds that a worker may take to read one file, or 100 s of it."""
    device: str = "auto"
    """'auto' takes a GPU where one is at hand; else a torch device such as 'cpu' or 'cuda:1'."""

    def __post_init__(self) -> None:
        for name in ("clusters", "frames", "batch_size", "n_init", "max_iter", "max_no_improvement"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more.")


def open_features(settings: KmeansSettings) -> Features:
    """The features that the settings ask for. Raises UserError where they contradict each other."""
    kind, encoder = settings.features, settings.encoder
    if settings.codebook is not None:
        if kind is not None or settings.layer is not None or settings.input is not None:
            raise UserError(
                f"--codebook {settings.codebook} says what the features are: leave out --features, --layer and input."
            )
        about = read_about(settings.codebook)
        return features_from(about["features"], encoder or about["encoder"])
    if kind == "layer":
        if encoder is None or settings.layer is None:
            raise UserError("--features layer needs --encoder and --layer: name both.")
        return LayerFeatures(Encoder.from_pretrained(encoder), settings.layer, encoder)
    if settings.layer is not None:
        raise UserError(f"--layer {settings.layer} belongs to --features layer: give that, or leave it out.")
    if kind == "patches":
        if (encoder is None) == (settings.input is None):
            raise UserError("--features patches needs --encoder or an input (input:image-spec, ...), and one of them.")
        spec = settings.input or Encoder.from_pretrained(str(encoder)).spec
        return PatchFeatures(spec)
    if encoder is not None or settings.input is not None:
        raise UserError("MFCC need neither encoder nor input: give --features layer or --features patches with them.")
    return MfccFeatures()


def key_of(settings: KmeansSettings, features: Features, source: Source) -> dict[str, Any]:
    """All that the units depend on."""
    key = {"features": features.describe(), "data": source.fingerprint}
    if settings.codebook is not None:
        return key | {"codebook": Codebook.load(settings.codebook / CODEBOOK).sha256}
    names = ("clusters", "frames", "batch_size", "n_init", "max_iter", "max_no_improvement", "reassignment_ratio")
    return key | {name: getattr(settings, name) for name in (*names, "seed")}


def pick_device(name: str) -> torch.device:
    """'auto' is the GPU of this process, where there is one."""
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--device {name} cannot be used here ({reason}): give auto, cpu or cuda.") from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")

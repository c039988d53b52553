"""The encoder under test: its identity, its untrained twin, its device."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.encoders.base import Encoder
from mmssl.encoders.configs import from_facts, own_facts
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.dense import DenseEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.encoders.headed import HeadedEncoder
from mmssl.encoders.speech import SpeechEncoder
from mmssl.encoders.vit import ViT
from mmssl.errors import UserError


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """A fresh encoder of the same settings, on the CPU, initialised as a training run at this seed would.

    Raises:
        UserError: for encoders that mmssl did not build and so cannot build again.
    """
    if not isinstance(encoder, ViT | SpeechEncoder | ConvEncoder | EfficientNet | DenseEncoder | HeadedEncoder):
        raise UserError(
            f"There is no untrained twin of {type(encoder).__name__}: evaluate a ViT, a SpeechEncoder, a ConvEncoder, "
            "an EfficientNet or a DenseEncoder."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return from_facts(own_facts(encoder), Path()).eval()


def encoder_hash(encoder: Encoder) -> str:
    """SHA-256 over what decides the features: class, spec, settings, pooling, names and bytes of weights, buffers."""
    digest = hashlib.sha256()
    digest.update(repr((type(encoder).__name__, encoder.spec, encoder.pooling, facts(encoder))).encode())
    # Buffers beside the state dict: fixed positions are not saved, yet decide the features.
    for name, tensor in sorted({**dict(encoder.named_buffers()), **encoder.state_dict()}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def facts(encoder: Encoder) -> dict[str, Any]:
    """The settings that rebuild the encoder around its spec."""
    if isinstance(encoder, ViT | SpeechEncoder | EfficientNet):
        return dataclasses.asdict(encoder.settings)
    if isinstance(encoder, ConvEncoder):
        return {"arch": encoder.arch, "stem": encoder.stem, "output_stride": encoder.output_stride}
    if isinstance(encoder, DenseEncoder):
        return {"head": dataclasses.asdict(encoder.settings), "trunk": facts(encoder.trunk)}
    if isinstance(encoder, HeadedEncoder):
        return {"head": dataclasses.asdict(encoder.head.settings), "trunk": facts(encoder.trunk)}
    return {}


def describe(encoder: Encoder, path: str) -> dict[str, Any]:
    """What a file of results has to say about its encoder."""
    return {
        "path": path,
        "sha256": encoder_hash(encoder),
        "class": type(encoder).__name__,
        "settings": facts(encoder),
        "width": encoder.width,
        "pooling": encoder.pooling,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "spec": {"modality": encoder.spec.modality, **dataclasses.asdict(encoder.spec)},
    }


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode again afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def pick_device(name: str) -> torch.device:
    """The device of --device. Raises UserError for one that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}): give auto, cpu or cuda.") from error
    return device

"""What is clustered: frozen features of raw views, with a description that is precise enough to make them again."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.adapters.base import Adapter
from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, VideoSpec, WaveformSpec
from mmssl.data.audio_views import AudioViews
from mmssl.data.views import ImageViews, VideoViews, Views
from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.encoders.build import build_adapter
from mmssl.errors import UserError
from mmssl.targets import mfcc

CONTEXT_SECONDS = 5.0
"""Of an encoder of waveforms: what is read on both sides of each part of a long recording, and dropped again."""
SPECS = {"image": ImageSpec, "video": VideoSpec, "audio": AudioSpec}


@dataclass(frozen=True)
class Timing:
    """Of features that cover whole recordings: feature n is of samples [n hop, n hop + window)."""

    rate: int
    """Hz that the sound is read at."""
    hop: int
    window: int
    context: int
    """Features next to a cut that are wrong (or, of an encoder, poor), since they would look beyond it."""

    def count(self, samples: int) -> int:
        """Features of a recording of so many samples."""
        return max(0, (samples - self.window) // self.hop + 1)

    def samples(self, count: int) -> int:
        """Samples under so many features in a row."""
        return (count - 1) * self.hop + self.window


class Features(nn.Module, ABC):
    """Raw views in, frozen features out: always fp32, in evaluation mode, without gradients.

    Attributes:
        modality: image, video or audio.
        width: F.
        timing: of features of whole recordings; None where a view has a fixed size.
        views: how a view of fixed size is cut from a file; None for whole recordings.
        per_view: N of such a view; None for whole recordings.
        source: the folder or Hub id of the encoder, which is no part of the description; None where there is none.
    """

    modality: str
    width: int
    timing: Timing | None = None
    views: Views | None = None
    per_view: int | None = None
    source: str | None = None

    @torch.no_grad()
    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features fp32 [B,N,F] of views of raw media ([B,3,H,W], [B,T,3,H,W] or [B,S]), in token order.

        Args:
            lengths: int64 [B], real samples of padded waveforms. What is made of padding is to be cut off.
        """
        with torch.autocast(view.device.type, enabled=False):
            return self.extract(view, lengths).float()

    @abstractmethod
    def extract(self, view: Tensor, lengths: Tensor | None) -> Tensor: ...

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """As JSON; equal for equal features, and other for others."""

    def train(self, mode: bool = True) -> Features:
        return super().train(False)


class MfccFeatures(Features):
    """39 values each 10 ms: see `mmssl.targets.mfcc.Mfcc`."""

    modality = "audio"
    width = 3 * mfcc.CEPSTRA
    timing = Timing(mfcc.RATE, mfcc.HOP, mfcc.WINDOW, context=4)  # two regressions over 5 frames

    def __init__(self) -> None:
        super().__init__()
        self.mfcc = mfcc.Mfcc()

    def extract(self, view: Tensor, lengths: Tensor | None) -> Tensor:
        return self.mfcc(view, lengths)

    def describe(self) -> dict[str, Any]:
        return {"kind": "mfcc", "rate": mfcc.RATE, "hop": mfcc.HOP, "window": mfcc.WINDOW, "values": self.width}


class PatchFeatures(Features):
    """The pixels of the patches, tubes or spectrogram patches that an adapter of `spec` cuts, normalised as it does.

    Raises:
        UserError: `spec` is of bare waveforms, which have no patches.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        if not isinstance(spec, ImageSpec | VideoSpec | AudioSpec):
            raise UserError("Patches are of pictures, clips or spectrograms: cluster 'mfcc' or a layer for waveforms.")
        self.spec, self.modality = spec, spec.modality
        self.adapter: Adapter = build_adapter(spec, 1).requires_grad_(False).eval()  # its projection is not used
        self.width, self.views, self.per_view = self.adapter.values, views_of(spec), math.prod(self.adapter.grid)

    def extract(self, view: Tensor, lengths: Tensor | None) -> Tensor:
        return self.adapter.patches(self.adapter.pixels(view, lengths)).flatten(2)

    def describe(self) -> dict[str, Any]:
        return {"kind": "patches", "modality": self.modality, "input": plain(self.spec)}


class LayerFeatures(Features):
    """State `layer` of an encoder, without its prefix tokens: 1 is what the first block puts out, as fairseq counts its
    output_layer and transformers its hidden_states. The encoder is taken over: frozen, and without the blocks above.

    A recording longer than 100 s of an encoder of waveforms is read in parts, with 5 s more on both sides: a frame near
    a seam sees at least so much, but not the whole recording; statistics over time (the group norm of HuBERT BASE, the
    normalised waveform of LARGE) are of the part. fairseq cuts at 100 s without more, and loses a frame at each cut.

    Raises:
        UserError: an encoder without such a layer.
    """

    def __init__(self, encoder: Encoder, layer: int, source: str | Path | None = None) -> None:
        super().__init__()
        blocks = getattr(encoder, "blocks", None)
        if not isinstance(blocks, nn.ModuleList) or not isinstance(encoder, TokenEncoder):
            raise UserError(f"A {type(encoder).__name__} has no numbered layers: take an encoder of tokens.")
        if not 1 <= layer <= len(blocks):
            raise UserError(f"There is no layer {layer}: the encoder has layers 1 to {len(blocks)}.")
        self.modality, self.width, self.layer = encoder.spec.modality, encoder.width, layer
        if source is not None:
            self.source = str(Path(source).absolute() if Path(source).is_dir() else source)
        self.description = {"kind": "layer", "layer": layer, "model": model_hash(encoder)}
        self.encoder = encoder.requires_grad_(False).eval()
        self.encoder.blocks = blocks[:layer]
        spec = encoder.spec
        if isinstance(spec, ImageSpec | VideoSpec | AudioSpec):
            self.views, self.per_view = views_of(spec), math.prod(encoder.adapter.grid)
        else:
            self.timing = timing_of(spec)

    def extract(self, view: Tensor, lengths: Tensor | None) -> Tensor:
        encoded = self.encoder(view, lengths=lengths, hidden=True)
        assert encoded.hidden is not None
        state = encoded.hidden[self.layer]
        return state if encoded.prefix is None else state[:, encoded.prefix.shape[1] :]

    def describe(self) -> dict[str, Any]:
        return dict(self.description)


def features_from(description: dict[str, Any], encoder: str | Path | None = None) -> Features:
    """The features that `describe()` told of.

    Args:
        encoder: where the encoder of layer features lies.

    Raises:
        UserError: an unknown description, no encoder there, or another one.
    """
    kind = description.get("kind")
    if kind == "mfcc":
        made: Features = MfccFeatures()
    elif kind == "patches":
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in description["input"].items()}
        made = PatchFeatures(SPECS[description["modality"]](**values))
    elif kind == "layer":
        if encoder is None:
            raise UserError("The units are of a layer of an encoder that is not known: name it.")
        made = LayerFeatures(Encoder.from_pretrained(encoder), description["layer"], encoder)
    else:
        raise UserError(f"There are no features of kind {kind!r}: choose mfcc, patches or layer.")
    if made.describe() != description:
        about = f"the encoder {encoder} is another one" if kind == "layer" else "this version makes others"
        raise UserError(
            f"The codebook is of features ({feature_text(description)}) that cannot be made here, since {about}: name "
            "what it was made with, or make a new codebook."
        )
    return made


def feature_text(description: dict[str, Any]) -> str:
    """The description as the one line that a codebook keeps."""
    return json.dumps(description, sort_keys=True)


def timing_of(spec: WaveformSpec) -> Timing:
    """Of an encoder of waveforms, which leaves padding out."""
    context = round(CONTEXT_SECONDS * spec.rate / spec.hop)
    return Timing(spec.rate, spec.hop, spec.window, context)


def views_of(spec: ImageSpec | VideoSpec | AudioSpec) -> Views:
    """How views are cut at random to fit a codebook; their `centre()` is what units are of."""
    if isinstance(spec, ImageSpec):
        return ImageViews(spec.size)
    if isinstance(spec, VideoSpec):
        return VideoViews(spec.size, spec.frames, spec.stride, names=("view",))
    return AudioViews(spec.rate, spec.samples)


def model_hash(encoder: Encoder) -> str:
    """SHA-256 of what decides the features: input, settings, names and bytes of weights."""
    settings = getattr(encoder, "settings", None)
    known = [type(encoder).__name__, plain(encoder.spec), {} if settings is None else plain(settings)]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as JSON gives them back: a field that a later version
    adds leaves the descriptions of earlier ones as they are."""
    usual = {field.name: field.default for field in fields(settings)}
    changed = {name: value for name, value in asdict(settings).items() if value != usual[name]}
    found: dict[str, Any] = json.loads(json.dumps(changed))
    return found

"""From settings to an encoder: what recipes share when they wire a ViT, a ResNet or an EfficientNet to its input."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from mmssl.adapters.base import Adapter, Front
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, WaveformSpec
from mmssl.adapters.spectrogram import SpectrogramPatches, log_mel_front
from mmssl.adapters.stack import StackedFrames, StackedPatches
from mmssl.adapters.video import VideoPixels, VideoTubelets
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.efficientnet import EfficientNet, EfficientNetSettings
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError

FOR_SPEECH = "Waveforms are for a speech encoder (HuBERT, WavLM): give a ViT or a ResNet spectrograms (AudioSpec)."
TRAINING = ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop", "feature_gradient")
"""Settings of a speech encoder that no weight depends on."""


@dataclass(frozen=True)
class EncoderSettings(ViTSettings):
    """A ViT of any size; a ResNet, which knows `arch`, `stem` and `output_stride` only; or an EfficientNet, which knows
    `arch`, `pool` and, as its drop-connect rate, `drop_path`."""

    arch: Literal["vit", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "efficientnet_b0"] = "vit"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """Of a ResNet; 'cifar' (3x3, no pooling) suits images of about 32 pixels."""
    output_stride: int | None = None
    """Of a ResNet: pixels a cell of its last map; 32 (8 with the 'cifar' stem) if not given, 8 for dense features."""
    pool: Literal["mean", "max"] = "mean"
    """Of an EfficientNet: how its last map becomes one vector."""


def build_adapter(spec: Spec, width: int) -> Adapter:
    """What a ViT starts with. Raises UserError for waveforms, which are for `SpeechEncoder`."""
    if isinstance(spec, WaveformSpec):
        raise UserError(FOR_SPEECH)
    if isinstance(spec, ImageSpec):
        return ImagePatches(spec, width)
    if isinstance(spec, AudioSpec):
        return SpectrogramPatches(spec, width)
    return VideoTubelets(spec, width) if spec.stack == "none" else StackedPatches(spec, width)


def build_front(spec: Spec) -> Front:
    """What an encoder without patches starts with. Raises UserError for waveforms, which are for `SpeechEncoder`."""
    if isinstance(spec, WaveformSpec):
        raise UserError(FOR_SPEECH)
    if isinstance(spec, ImageSpec):
        return ImagePixels(spec)
    if isinstance(spec, AudioSpec):
        return log_mel_front(spec, fill=False)
    return VideoPixels(spec) if spec.stack == "none" else StackedFrames(spec)


def build_encoder(spec: Spec, settings: EncoderSettings, init: str | None = None) -> Encoder:
    """A new encoder for `spec`, or the checkpoint `init`, whose architecture and input then win over the settings.

    Raises:
        UserError: `init` is of another modality or takes sound in another form, or settings contradict each other.
    """
    if init is not None:
        encoder = Encoder.from_pretrained(init)
        if encoder.spec.modality != spec.modality:
            raise UserError(
                f"--init {init} is an encoder for {encoder.spec.modality}, and this recipe trains on {spec.modality}: "
                f"choose a recipe of {encoder.spec.modality}, or a checkpoint for {spec.modality}."
            )
        if isinstance(encoder.spec, WaveformSpec) != isinstance(spec, WaveformSpec):
            raise UserError(
                f"--init {init} takes {_sound(encoder.spec)}, and this recipe trains on {_sound(spec)}: choose a "
                f"recipe for {_sound(encoder.spec)}, or a checkpoint for {_sound(spec)}."
            )
        return encoder
    if settings.arch == "vit":
        plain = ViTSettings(**{field.name: getattr(settings, field.name) for field in fields(ViTSettings)})
        return ViT(build_adapter(spec, settings.width), plain)
    if settings.arch == "efficientnet_b0":
        return EfficientNet(
            build_front(spec), EfficientNetSettings(drop_connect=settings.drop_path, pooling=settings.pool)
        )
    return ConvEncoder(build_front(spec), settings.arch, settings.stem, settings.output_stride)


def _sound(spec: Spec) -> str:
    return "waveforms" if isinstance(spec, WaveformSpec) else "spectrograms"


def build_speech(spec: WaveformSpec, settings: SpeechSettings, init: str | None = None) -> SpeechEncoder:
    """A new HuBERT or WavLM, or the checkpoint `init`, whose architecture and input then win over the settings; rates
    of dropout, layer drop and the gradient of the convolutions stay those of `settings`, since they are training's.

    Raises:
        UserError: `init` is no HuBERT or WavLM, or not of `settings.arch`.
    """
    if init is None:
        return SpeechEncoder(spec, settings)
    found = Encoder.from_pretrained(init)
    arch = found.settings.arch if isinstance(found, SpeechEncoder) else type(found).__name__
    if not isinstance(found, SpeechEncoder) or arch != settings.arch:
        raise UserError(f"--init {init} is a {arch}, and this run trains a {settings.arch}: choose another checkpoint.")
    training = {name: getattr(settings, name) for name in TRAINING}
    encoder = SpeechEncoder(found.spec, replace(found.settings, **training))
    encoder.load_state_dict(found.state_dict())
    return encoder

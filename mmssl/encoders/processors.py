"""preprocessor_config.json: from the settings of an adapter to a Hugging Face processor, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from mmssl.adapters.specs import IMAGENET_MEAN, IMAGENET_STD, AudioSpec, ImageSpec, Spec, VideoSpec, WaveformSpec
from mmssl.encoders.layouts import VJEPA2, Layout

BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers, which processor files carry."""


def processor_config(spec: Spec, layout: Layout) -> dict[str, Any]:
    """What makes Auto*Processor turn file contents into the pixels of our evaluation view and adapter, under the name
    that the model of `layout` takes them by."""
    if isinstance(spec, AudioSpec) and spec.front != "kaldi":
        # transformers has no extractor that makes these: the settings stand here for readers of the file.
        return {
            "feature_extractor_type": "mmssl.LogMagnitude" if spec.front == "cola" else "mmssl.LogMelPower",
            "sampling_rate": spec.rate,
            "num_mel_bins": spec.mels,
            "max_length": spec.frames,
            "mean": spec.mean,
            "std": spec.std,
        }
    if isinstance(spec, AudioSpec):
        return {
            "feature_extractor_type": "ASTFeatureExtractor",
            "sampling_rate": spec.rate,
            "num_mel_bins": spec.mels,
            "max_length": spec.frames,
            "mean": spec.mean,
            "std": spec.std,
            "do_normalize": True,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        }
    if isinstance(spec, WaveformSpec):
        return {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "sampling_rate": spec.rate,
            "do_normalize": spec.normalise,
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            # A norm over time counts padding, mask or not: transformers' advice for such models is to give none.
            "return_attention_mask": spec.norm == "layer",
        }
    picture = {
        "do_resize": True,
        "size": {"shortest_edge": spec.size},
        "resample": BICUBIC if isinstance(spec, ImageSpec) else BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": spec.size, "width": spec.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_convert_rgb": True,
    }
    stacked = isinstance(spec, VideoSpec) and spec.stack != "none"
    if spec.colour != "rgb" or stacked:  # the encoder makes its own of RGB in [0,1]
        picture["do_normalize"] = False
    if isinstance(spec, ImageSpec):
        # Not ViTImageProcessor: that one squeezes the picture into a square instead of cutting its centre.
        return {"image_processor_type": "CLIPImageProcessor"} | picture
    if layout is VJEPA2:
        # Not VJEPA2VideoProcessor: that one resizes the short side to 8/7 of the crop, whatever the file says.
        return {"video_processor_type": "LlavaNextVideoVideoProcessor"} | picture
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "video_processor_type": "VideoMAEVideoProcessor",
    } | picture


def picture_statistics(name: str, config: dict[str, Any] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the pictures that a checkpoint wants, from its preprocessor_config.json (None if it has none)."""
    if config is not None and not config.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config is None or "image_mean" not in config or "image_std" not in config:
        warnings.warn(
            f"{name} has no mean and std of its pictures in preprocessor_config.json: ImageNet's are taken.",
            stacklevel=2,
        )
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
    if config.get("offset"):  # ViViT's: 0..255 become rescale_factor * value - 1 before mean and std
        span = 255 * config["rescale_factor"]
        return tuple((1 + value) / span for value in mean), tuple(value / span for value in std)
    return mean, std


def audio_spec(config: dict[str, Any] | None, **layout: Any) -> AudioSpec:
    """Spec of a spectrogram checkpoint; `layout` are the fields that its config.json holds."""
    config = config or {}
    default = AudioSpec()
    mean, std = config.get("mean", default.mean), config.get("std", default.std)
    if not config.get("do_normalize", True):
        mean, std = 0.0, 0.5  # (x - mean) / (2 std) = x
    return AudioSpec(rate=config.get("sampling_rate", default.rate), mean=mean, std=std, **layout)


def spec_from_facts(facts: dict[str, Any]) -> Spec:
    """The spec that our own files hold under `mmssl` in config.json."""
    kinds: dict[str, Callable[..., Spec]] = {kind.modality: kind for kind in (ImageSpec, VideoSpec, AudioSpec)}
    if "kernels" in facts["spec"]:  # sound is taken in two ways
        kinds["audio"] = WaveformSpec
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["spec"].items()}
    return kinds[facts["modality"]](**fields)

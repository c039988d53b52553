"""config.json: from an encoder to the settings of its Hugging Face class, and from such settings to an encoder."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmssl
from mmssl.adapters.base import Adapter
from mmssl.adapters.image import ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, Spec, VideoSpec, WaveformSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.build import build_adapter, build_front
from mmssl.encoders.conv import BLOCKS, WIDTHS, ConvEncoder
from mmssl.encoders.dense import DenseEncoder, DenseSettings
from mmssl.encoders.efficientnet import EfficientNet, EfficientNetSettings
from mmssl.encoders.efficientnet import config_of as efficientnet_config
from mmssl.encoders.headed import HeadedEncoder, HeadSettings, build_head
from mmssl.encoders.key_maps import POSITIONS
from mmssl.encoders.layouts import (
    AST,
    EFFICIENTNET,
    HUBERT,
    RESNET_MODEL,
    VIDEOMAE,
    VIT,
    VIT_MAE,
    VIVIT,
    VJEPA2,
    WAVLM,
    Layout,
)
from mmssl.encoders.positions import split_separable
from mmssl.encoders.processors import audio_spec, picture_statistics, spec_from_facts
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.encoders.speech_config import config_of as speech_config
from mmssl.encoders.speech_config import from_config as speech_from_config
from mmssl.encoders.vit import Positions, ViT, ViTSettings, fixed_positions
from mmssl.encoders.weights import State
from mmssl.errors import UserError

# ------------------------------------------------------------------------------------------------------------ writing


def own_facts(encoder: Encoder) -> dict[str, Any]:
    """What `from_facts` builds the encoder from, without its weights; it stands under `mmssl` in config.json."""
    facts: dict[str, Any] = {
        "version": mmssl.__version__,
        "encoder": type(encoder).__name__,
        "modality": encoder.spec.modality,
        "spec": asdict(encoder.spec),
        "pooling": encoder.pooling,
    }
    if isinstance(encoder, ViT | SpeechEncoder):
        facts["settings"] = asdict(encoder.settings)
    elif isinstance(encoder, ConvEncoder):
        facts |= {"arch": encoder.arch, "stem": encoder.stem, "output_stride": encoder.output_stride}
    elif isinstance(encoder, EfficientNet):
        facts["settings"] = asdict(encoder.settings)
    elif isinstance(encoder, DenseEncoder):
        facts |= {"head": asdict(encoder.settings), "trunk": own_facts(encoder.trunk)}
    elif isinstance(encoder, HeadedEncoder):
        facts |= {"head": asdict(encoder.head.settings), "trunk": own_facts(encoder.trunk)}
    return facts


def config_of(encoder: Encoder, layout: Layout) -> dict[str, Any]:
    facts = own_facts(encoder)
    if layout.reason is not None:
        return {
            "model_type": "mmssl",
            "architectures": [f"mmssl.{layout.architecture}"],
            "dtype": "float32",
            "mmssl": facts,
        }
    from transformers import AutoConfig

    if isinstance(encoder, ViT):
        facts["settings"]["layer_scale"] = None  # the weights have it in them: weights.fold_layer_scale
    if isinstance(encoder, EfficientNet):
        settings = efficientnet_config(encoder)
    elif isinstance(encoder, SpeechEncoder):
        settings = speech_config(encoder)
    else:
        settings = _resnet_config(encoder) if isinstance(encoder, ConvEncoder) else _vit_config(encoder, layout)
    config = AutoConfig.for_model(layout.model_type, **settings, mmssl=facts)
    config.architectures = [layout.architecture]
    config.dtype = "float32"
    return json.loads(config.to_json_string())


def _vit_config(encoder: Encoder, layout: Layout) -> dict[str, Any]:
    assert isinstance(encoder, ViT)
    settings, spec = encoder.settings, encoder.spec
    assert not isinstance(spec, WaveformSpec)
    if layout is VJEPA2:
        assert isinstance(spec, VideoSpec)
        return _vjepa2_config(settings, spec)
    config: dict[str, Any] = {
        "hidden_size": settings.width,
        "num_hidden_layers": settings.depth,
        "num_attention_heads": settings.heads,
        "intermediate_size": round(settings.width * settings.mlp_ratio),
        "layer_norm_eps": settings.norm_eps,
        "patch_size": spec.patch,
    }
    if isinstance(spec, AudioSpec):
        stride = {"frequency_stride": spec.stride, "time_stride": spec.stride}
        return (
            config
            | stride
            | {"max_length": spec.frames, "num_mel_bins": spec.mels, "qkv_bias": settings.qkv_bias == "full"}
        )
    config |= {"image_size": spec.size, "num_channels": len(spec.mean)}
    if isinstance(spec, VideoSpec) and layout is VIVIT:
        del config["patch_size"]
        config |= {"num_frames": spec.frames, "tubelet_size": [spec.tubelet, spec.patch, spec.patch]}
        return config | {"hidden_act": "gelu", "pooler_act": "linear", "qkv_bias": settings.qkv_bias == "full"}
    if isinstance(spec, VideoSpec):
        config |= {"num_frames": spec.frames, "tubelet_size": spec.tubelet, "use_mean_pooling": not settings.final_norm}
        return config | {"qv_bias": settings.qkv_bias == "qv"}
    config["qkv_bias"] = settings.qkv_bias == "full"
    return config | ({"pooler_act": "linear"} if layout is VIT else {})


def _vjepa2_config(settings: ViTSettings, spec: VideoSpec) -> dict[str, Any]:
    width, hidden = settings.width, round(settings.width * settings.mlp_ratio)
    ratio = hidden / width
    return {
        "hidden_size": settings.width,
        "num_hidden_layers": settings.depth,
        "num_attention_heads": settings.heads,
        # The class rounds width x ratio down, where a product that comes out a hair too small would lose a channel.
        "mlp_ratio": ratio if int(width * ratio) == hidden else (hidden + 0.5) / width,
        "layer_norm_eps": settings.norm_eps,
        "qkv_bias": settings.qkv_bias == "full",
        "patch_size": spec.patch,
        "crop_size": spec.size,
        "frames_per_clip": spec.frames,
        "tubelet_size": spec.tubelet,
        "in_chans": len(spec.mean),
        "pred_hidden_size": 1,
        "pred_num_attention_heads": 1,
        "pred_num_hidden_layers": 0,
        "pred_num_mask_tokens": 1,
    }


def _resnet_config(encoder: ConvEncoder) -> dict[str, Any]:
    kind, depths = BLOCKS[encoder.arch]
    return {"layer_type": kind, "depths": list(depths), "hidden_sizes": list(WIDTHS[kind]), "embedding_size": 64}


# ------------------------------------------------------------------------------------------------------------ reading


def build(
    layout: Layout, config: dict[str, Any], processor: dict[str, Any] | None, weights: State, folder: Path
) -> Encoder:
    """An encoder of the shape that config.json tells."""
    from transformers import AutoConfig

    # Through the class, which fills in what older files leave out.
    hub = AutoConfig.for_model(layout.model_type, **{k: v for k, v in config.items() if k != "model_type"})
    facts = config.get("mmssl")
    if layout is RESNET_MODEL:
        return _build_resnet(hub, facts, processor, folder)
    if layout is EFFICIENTNET:
        if facts is None:
            raise UserError(f"{folder} holds an EfficientNet that mmssl did not write; it reads only its own.")
        return from_facts(facts, folder)
    if hub.hidden_act != "gelu":
        raise UserError(f"{folder} has the activation '{hub.hidden_act}'; mmssl reads models with 'gelu'.")
    if layout in (HUBERT, WAVLM):
        return from_facts(facts, folder) if facts is not None else speech_from_config(hub, processor, folder)
    if facts is not None:
        spec, settings = spec_from_facts(facts), _settings_from_facts(facts, folder)
    else:
        spec, settings = _foreign_spec(layout, hub, processor, folder), _foreign_settings(layout, hub)
    adapter = build_adapter(spec, settings.width)
    if layout is not VIDEOMAE and POSITIONS in weights:
        # Fixed or separable only if the table still is: a model that transformers has trained on may have moved it.
        kept = settings.positions != "learned" and _keeps_form(weights[POSITIONS], adapter, settings)
        settings = replace(settings, positions=settings.positions if kept else "learned")
    return ViT(adapter, settings)


def _settings_from_facts(facts: dict[str, Any], folder: Path) -> ViTSettings:
    _check_known(facts, ViTSettings, folder)
    return ViTSettings(**facts["settings"])


def _check_known(facts: dict[str, Any], kind: type[ViTSettings] | type[SpeechSettings], folder: Path) -> None:
    unknown = set(facts["settings"]) - {field.name for field in fields(kind)}
    if unknown:
        raise UserError(
            f"{folder} was written by mmssl {facts['version']} with settings unknown to {mmssl.__version__} "
            f"({', '.join(sorted(unknown))}): install the newer version."
        )


POSITIONS_OF: dict[Layout, Positions] = {VIDEOMAE: "sincos1d", VIVIT: "learned", VJEPA2: "rope3d"}


def _foreign_settings(layout: Layout, hub: Any) -> ViTSettings:
    biased = hub.qv_bias if layout is VIDEOMAE else hub.qkv_bias
    return ViTSettings(
        width=hub.hidden_size,
        depth=hub.num_hidden_layers,
        heads=hub.num_attention_heads,
        mlp_ratio=(int(hub.hidden_size * hub.mlp_ratio) if layout is VJEPA2 else hub.intermediate_size)
        / hub.hidden_size,
        prefix={VIT: 1, VIT_MAE: 1, VIVIT: 1, AST: 2}.get(layout, 0),
        positions=POSITIONS_OF.get(layout, "sincos"),
        qkv_bias="none" if not biased else "qv" if layout is VIDEOMAE else "full",
        norm_eps=hub.layer_norm_eps,
        pooling="cls" if layout in (VIT, VIVIT) else "prefix" if layout is AST else "mean",
        final_norm=not (layout is VIDEOMAE and hub.use_mean_pooling),
    )


def _foreign_spec(layout: Layout, hub: Any, processor: dict[str, Any] | None, folder: Path) -> Spec:
    patch = _side(hub.tubelet_size[1:] if layout is VIVIT else hub.patch_size, "patch_size", folder)
    if layout is AST:
        if hub.frequency_stride != hub.time_stride:
            raise UserError(
                f"{folder} has different strides over mels and time; mmssl reads models where they are equal."
            )
        return audio_spec(processor, mels=hub.num_mel_bins, frames=hub.max_length, patch=patch, stride=hub.time_stride)
    mean, std = picture_statistics(str(folder), processor)
    if layout is VJEPA2:
        return VideoSpec(
            size=hub.crop_size, frames=hub.frames_per_clip, patch=patch, tubelet=hub.tubelet_size, mean=mean, std=std
        )
    size = _side(hub.image_size, "image_size", folder)
    if layout in (VIDEOMAE, VIVIT):
        depth = hub.tubelet_size[0] if layout is VIVIT else hub.tubelet_size
        return VideoSpec(size=size, frames=hub.num_frames, patch=patch, tubelet=depth, mean=mean, std=std)
    return ImageSpec(size=size, patch=patch, mean=mean, std=std)


def _build_resnet(
    hub: Any, facts: dict[str, Any] | None, processor: dict[str, Any] | None, folder: Path
) -> ConvEncoder:
    shape = (hub.layer_type, tuple(hub.depths))
    arch = {blocks: name for name, blocks in BLOCKS.items()}.get(shape)
    standard = hub.embedding_size == 64 and hub.hidden_act == "relu" and hub.num_channels == 3
    standard = standard and not (hub.downsample_in_first_stage or hub.downsample_in_bottleneck)
    if arch is None or not standard or tuple(hub.hidden_sizes) != WIDTHS[hub.layer_type]:
        raise UserError(f"{folder} holds a ResNet of no standard shape: mmssl reads {', '.join(BLOCKS)}.")
    if facts is not None:
        spec = spec_from_facts(facts)
        assert isinstance(spec, ImageSpec)
    else:
        mean, std = picture_statistics(str(folder), processor)
        size = (processor or {}).get("crop_size") or (processor or {}).get("size") or 224
        spec = ImageSpec(size=size if isinstance(size, int) else min(size.values()), mean=mean, std=std)
    return ConvEncoder(ImagePixels(spec), arch)


def from_facts(facts: dict[str, Any], folder: Path) -> Encoder:
    """A new encoder of the kind that `own_facts` told; `folder` is where they were read, for messages."""
    spec = spec_from_facts(facts)
    if facts["encoder"] == "DenseEncoder":
        assert isinstance(spec, VideoSpec)
        return DenseEncoder(from_facts(facts["trunk"], folder), spec, DenseSettings(**facts["head"]))
    if facts["encoder"] == "HeadedEncoder":
        trunk = from_facts(facts["trunk"], folder)
        return HeadedEncoder(trunk, build_head(trunk, HeadSettings(**facts["head"])))
    if facts["encoder"] == "ConvEncoder":
        return ConvEncoder(build_front(spec), facts["arch"], facts["stem"], facts.get("output_stride"))
    if facts["encoder"] == "EfficientNet":
        return EfficientNet(build_front(spec), EfficientNetSettings(**facts["settings"]))
    if facts["encoder"] == "SpeechEncoder":
        assert isinstance(spec, WaveformSpec)
        _check_known(facts, SpeechSettings, folder)
        return SpeechEncoder(spec, SpeechSettings(**facts["settings"]))
    settings = _settings_from_facts(facts, folder)
    return ViT(build_adapter(spec, settings.width), settings)


def _keeps_form(table: Tensor, adapter: Adapter, settings: ViTSettings) -> bool:
    """Whether the position table [1,P+N,D] of a file still is what `settings.positions` says."""
    if table.shape[1] != math.prod(adapter.grid) + settings.prefix:
        return False
    if settings.positions == "separable":
        return split_separable(table[:, settings.prefix :], adapter.grid[0]) is not None
    if settings.width % 4:
        return False
    fixed = fixed_positions(settings.positions, adapter.grid, settings.width)
    fixed = torch.cat([fixed.new_zeros(1, settings.prefix, settings.width), fixed], dim=1)
    return torch.allclose(table, fixed, rtol=0, atol=1e-5)


def _side(value: Any, what: str, folder: Path) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UserError(f"{folder} has {what} {value}; mmssl reads square ones.")
    return int(sides.pop())

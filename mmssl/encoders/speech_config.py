"""config.json of HuBERT and WavLM: from an encoder to the settings of its Hugging Face class, and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mmssl.adapters.specs import WaveformSpec
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.errors import UserError


def config_of(encoder: SpeechEncoder) -> dict[str, Any]:
    """Settings of HubertConfig or WavLMConfig."""
    settings, spec = encoder.settings, encoder.spec
    config: dict[str, Any] = {
        "hidden_size": settings.width,
        "num_hidden_layers": settings.depth,
        "num_attention_heads": settings.heads,
        "intermediate_size": round(settings.width * settings.mlp_ratio),
        "hidden_dropout": settings.dropout,
        "attention_dropout": settings.attention_dropout,
        "activation_dropout": settings.activation_dropout,
        "feat_proj_dropout": settings.input_dropout,
        "layerdrop": settings.layer_drop,
        "layer_norm_eps": settings.norm_eps,
        "do_stable_layer_norm": settings.pre_norm,
        "feat_extract_norm": spec.norm,
        "conv_dim": list(spec.channels),
        "conv_kernel": list(spec.kernels),
        "conv_stride": list(spec.strides),
        "conv_bias": spec.bias,
        "num_conv_pos_embeddings": settings.position_kernel,
        "num_conv_pos_embedding_groups": settings.position_groups,
    }
    if settings.arch == "wavlm":
        return config | {"num_buckets": settings.buckets, "max_bucket_distance": settings.max_distance}
    return config | {"feat_proj_layer_norm": settings.projection_norm}


def from_config(hub: Any, processor: dict[str, Any] | None, folder: Path) -> SpeechEncoder:
    """An encoder of the shape that config.json tells (`hub`, a HubertConfig or WavLMConfig), for waveforms of the rate
    and scale that preprocessor_config.json tells; `folder` is where they were read, for messages.

    Raises:
        UserError: parts that mmssl has not.
    """
    unlike = [
        name
        for name, odd in {
            "conv_pos_batch_norm": getattr(hub, "conv_pos_batch_norm", False),
            "adapter_attn_dim": getattr(hub, "adapter_attn_dim", None) is not None,
            "add_adapter": getattr(hub, "add_adapter", False),
            "feat_extract_activation": hub.feat_extract_activation != "gelu",
        }.items()
        if odd
    ]
    if unlike:
        raise UserError(
            f"{folder} has {', '.join(unlike)} of a kind that mmssl does not read: name another checkpoint."
        )
    if processor is None:
        warnings.warn(
            f"{folder} has no preprocessor_config.json: 16000 Hz are taken, and waveforms are "
            f"{'' if hub.feat_extract_norm == 'layer' else 'not '}normalised, as for the published models of its kind.",
            stacklevel=2,
        )
    default = {"sampling_rate": 16000, "do_normalize": hub.feat_extract_norm == "layer"}
    given = default | (processor or {})
    spec = WaveformSpec(
        rate=given["sampling_rate"],
        normalise=given["do_normalize"],
        norm=hub.feat_extract_norm,
        channels=tuple(hub.conv_dim),
        kernels=tuple(hub.conv_kernel),
        strides=tuple(hub.conv_stride),
        bias=hub.conv_bias,
    )
    if hub.model_type == "wavlm":
        own = {"arch": "wavlm", "buckets": hub.num_buckets, "max_distance": hub.max_bucket_distance}
    else:
        own = {"arch": "hubert", "projection_norm": hub.feat_proj_layer_norm}
    settings = SpeechSettings(
        width=hub.hidden_size,
        depth=hub.num_hidden_layers,
        heads=hub.num_attention_heads,
        mlp_ratio=hub.intermediate_size / hub.hidden_size,
        pre_norm=hub.do_stable_layer_norm,
        dropout=hub.hidden_dropout,
        attention_dropout=hub.attention_dropout,
        activation_dropout=hub.activation_dropout,
        input_dropout=hub.feat_proj_dropout,
        layer_drop=hub.layerdrop,
        feature_gradient=1.0,
        position_kernel=hub.num_conv_pos_embeddings,
        position_groups=hub.num_conv_pos_embedding_groups,
        norm_eps=hub.layer_norm_eps,
        **own,
    )
    return SpeechEncoder(spec, settings)

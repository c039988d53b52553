"""Which Hugging Face class each encoder is written as, and the literal key maps, both ways.

A layout has the names that files on the Hub carry. transformers renames them in memory, differently from version to
version; those newer names are read, too (`NEWER`), but never written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.adapters.specs import AudioSpec, SoundSpec, VideoSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import OWN_STRIDE, ConvEncoder
from mmssl.encoders.dense import DenseEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.encoders.headed import HeadedEncoder
from mmssl.encoders.positions import join_separable, split_separable
from mmssl.encoders.speech import SpeechEncoder
from mmssl.encoders.vit import ViT

State = dict[str, Tensor]

TRUNK = {
    "adapter.projection.weight": "embeddings.patch_embeddings.projection.weight",
    "adapter.projection.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
"""Ours -> the Hub's, for ViT, ViTMAE, I-JEPA, VideoMAE, ViViT and AST."""

BLOCK = {
    "norm1.weight": "layernorm_before.weight",
    "norm1.bias": "layernorm_before.bias",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "norm2.weight": "layernorm_after.weight",
    "norm2.bias": "layernorm_after.bias",
    "mlp.fc1.weight": "intermediate.dense.weight",
    "mlp.fc1.bias": "intermediate.dense.bias",
    "mlp.fc2.weight": "output.dense.weight",
    "mlp.fc2.bias": "output.dense.bias",
    "attn.q_bias": "attention.attention.q_bias",
    "attn.v_bias": "attention.attention.v_bias",
}
"""Ours in `blocks.N.` -> the Hub's in `encoder.layer.N.`; q_bias and v_bias are VideoMAE's."""

FUSED = {
    "attn.qkv.weight": tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
    "attn.qkv.bias": tuple(f"attention.attention.{part}.bias" for part in ("query", "key", "value")),
}
"""Ours in `blocks.N.` -> the Hub's three, stacked along the first dimension."""

SCALED = {"scale1": "attn.proj", "scale2": "mlp.fc2"}
"""Layer scale in `blocks.N.` -> the linear layer before it."""

VJEPA2_TRUNK = {
    "adapter.projection.weight": "encoder.embeddings.patch_embeddings.proj.weight",
    "adapter.projection.bias": "encoder.embeddings.patch_embeddings.proj.bias",
    "norm.weight": "encoder.layernorm.weight",
    "norm.bias": "encoder.layernorm.bias",
}
VJEPA2_BLOCK = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {
        "norm1": "norm1",
        "attn.proj": "attention.proj",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items()
    for kind in ("weight", "bias")
}
VJEPA2_FUSED = {
    f"attn.qkv.{kind}": tuple(f"attention.{part}.{kind}" for part in ("query", "key", "value"))
    for kind in ("weight", "bias")
}
"""The same three for V-JEPA 2."""

PREFIX_TOKENS = ("embeddings.cls_token", "embeddings.distillation_token")
POSITIONS = "embeddings.position_embeddings"

NEWER = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
"""Names that transformers 5 has in memory -> the Hub's."""

NEWER_VIDEOMAE = (
    (r"\.attention\.query\.bias$", ".attention.q_bias"),
    (r"\.attention\.value\.bias$", ".attention.v_bias"),
)
"""transformers 5.6 and later hold VideoMAE's q_bias and v_bias as biases of the linear layers."""

DROPPED = (
    "pooler.",
    "classifier.",
    "fc_norm.",
    "decoder.",
    "decoder_embed.",
    "encoder_to_decoder.",
    "mask_token",
    "embeddings.mask_token",
    "predictor.",
)
"""Heads, decoders, predictors, poolers and mask tokens: parts of Hub checkpoints that are no part of an encoder."""

STEM = {
    "conv1.weight": "embedder.embedder.convolution.weight",
    "bn1.": "embedder.embedder.normalization.",
}
RESNET = (
    (r"^layer(\d)\.(\d+)\.conv(\d)\.weight$", "encoder.stages.{}.layers.{}.layer.{}.convolution.weight"),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.(\w+)$", "encoder.stages.{}.layers.{}.layer.{}.normalization.{}"),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.weight$", "encoder.stages.{}.layers.{}.shortcut.convolution.weight"),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.(\w+)$", "encoder.stages.{}.layers.{}.shortcut.normalization.{}"),
)
"""torchvision's (stages and convolutions count from 1) -> the Hub's (from 0)."""


SPEECH = (
    ("adapter.", ""),
    ("mask_token", "masked_spec_embed"),
    ("position.", "encoder.pos_conv_embed.conv."),
    ("norm.", "encoder.layer_norm."),
    ("relative.", "encoder.layers.0.attention.rel_attn_embed."),
    ("blocks.", "encoder.layers."),
)
"""How names begin, ours -> the Hub's, for HuBERT and WavLM; what follows is the same."""

NEWER_SPEECH = (
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
"""The weight norm of the position convolution, as PyTorch 2 has it in memory."""


@dataclass(frozen=True)
class Layout:
    """How an encoder is written."""

    model_type: str
    """As in config.json; 'mmssl' where no class of transformers expresses the encoder."""
    architecture: str
    """The transformers class, or ours."""
    prefix: str = ""
    """What Hub files of classes with a head put before every name, such as 'vit.'."""
    reason: str | None = None
    """Why no class of transformers expresses it; None if one does."""


VIT = Layout("vit", "ViTModel", "vit.")
VIT_MAE = Layout("vit_mae", "ViTMAEModel", "vit.")
IJEPA = Layout("ijepa", "IJepaModel", "ijepa.")
VIDEOMAE = Layout("videomae", "VideoMAEModel", "videomae.")
VIVIT = Layout("vivit", "VivitModel", "vivit.")
VJEPA2 = Layout("vjepa2", "VJEPA2Model", "vjepa2.")
AST = Layout("audio-spectrogram-transformer", "ASTModel", "audio_spectrogram_transformer.")
HUBERT = Layout("hubert", "HubertModel", "hubert.")
WAVLM = Layout("wavlm", "WavLMModel", "wavlm.")
RESNET_MODEL = Layout("resnet", "ResNetModel", "resnet.")
EFFICIENTNET = Layout("efficientnet", "EfficientNetModel", "efficientnet.")
READABLE = {
    layout.model_type: layout
    for layout in (VIT, VIT_MAE, IJEPA, VIDEOMAE, VIVIT, VJEPA2, AST, HUBERT, WAVLM, RESNET_MODEL, EFFICIENTNET)
}
"""Never written: vit_mae, which shuffles tokens even when nothing is masked."""


def layout_of(encoder: Encoder) -> Layout:
    """The layout that an encoder is written in."""
    spec = encoder.spec
    if isinstance(encoder, DenseEncoder):
        return _ours(encoder, "transformers has no encoder with one embedding a place of every frame")
    if isinstance(encoder, HeadedEncoder):
        return _ours(encoder, "transformers has no encoder with the head of an embedding")
    if not isinstance(spec, SoundSpec) and spec.colour != "rgb":
        return _ours(encoder, f"transformers' processors make no {spec.colour}, which this encoder is shown")
    if isinstance(encoder, SpeechEncoder):
        if encoder.settings.arch == "wavlm" and not encoder.settings.projection_norm:
            return _ours(encoder, "transformers' WavLMModel has a norm before the projection of features")
        return WAVLM if encoder.settings.arch == "wavlm" else HUBERT
    if isinstance(encoder, ConvEncoder):
        if encoder.stem != "imagenet":
            return _ours(encoder, f"transformers' ResNetModel has no '{encoder.stem}' stem")
        if spec.modality != "image":
            return _ours(encoder, f"transformers' ResNetModel takes images, and this encoder {spec.modality}")
        if encoder.output_stride != OWN_STRIDE["imagenet"]:
            return _ours(
                encoder,
                f"transformers' ResNetModel has an output stride of {OWN_STRIDE['imagenet']}, and this encoder of "
                f"{encoder.output_stride}",
            )
        return RESNET_MODEL
    if isinstance(encoder, EfficientNet):
        return EFFICIENTNET
    assert isinstance(encoder, ViT)
    if isinstance(spec, VideoSpec) and spec.stack != "none":
        return _ours(encoder, f"transformers has no model over clips as a stack of {spec.stack}")
    settings, modality = encoder.settings, spec.modality
    if settings.positions == "rope3d" and modality != "video":
        return _ours(encoder, "VJEPA2Model, the one class with positions='rope3d', takes clips")
    if modality == "video":
        whole = settings.final_norm and settings.qkv_bias != "qv"
        if settings.positions == "rope3d":
            return VJEPA2 if whole else _ours(encoder, "VJEPA2Model has a final norm and qkv_bias='full' or 'none'")
        if settings.prefix == 1 and whole:
            return VIVIT
        if settings.prefix or settings.positions != "sincos1d" or settings.qkv_bias == "full":
            return _ours(
                encoder,
                "VideoMAEModel has prefix=0, positions='sincos1d' and qkv_bias='qv' or 'none', VivitModel prefix=1, a "
                "final norm and qkv_bias='full' or 'none'; this encoder differs",
            )
        return VIDEOMAE
    if not settings.final_norm or settings.qkv_bias == "qv":
        return _ours(
            encoder,
            "ViTModel, IJepaModel and ASTModel have a final norm and biases on queries, keys and values or on none",
        )
    if isinstance(spec, AudioSpec) and spec.front != "kaldi":
        return _ours(encoder, f"ASTFeatureExtractor makes no log-mel values as '{spec.front}' does")
    if modality == "audio":
        return (
            AST
            if settings.prefix == 2
            else _ours(encoder, f"ASTModel has 2 prefix tokens and this encoder has {settings.prefix}")
        )
    if settings.prefix == 2:
        return _ours(encoder, "ViTModel has 1 prefix token, IJepaModel none, and this encoder has 2")
    return VIT if settings.prefix else IJEPA


def to_hub(encoder: Encoder, layout: Layout, state: State) -> State:
    """Our state dict under the names of `layout`."""
    if layout.reason is not None:
        return dict(state)
    if isinstance(encoder, ConvEncoder):
        return {_resnet_name(name): tensor for name, tensor in state.items()}
    if isinstance(encoder, SpeechEncoder):
        return {_speech_name(name): tensor for name, tensor in state.items()}
    if isinstance(encoder, EfficientNet):
        return {name.removeprefix("net."): tensor for name, tensor in state.items()}
    assert isinstance(encoder, ViT)
    hub: State = {}
    trunk, block, fused = _tables(layout)
    state = fold_layer_scale(state)
    for name, tensor in state.items():
        if name in trunk:
            hub[trunk[name]] = tensor
        elif name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            if rest in fused:
                for target, part in zip(fused[rest], tensor.chunk(3), strict=True):
                    hub[f"encoder.layer.{number}.{target}"] = part.clone()
            else:
                hub[f"encoder.layer.{number}.{block[rest]}"] = tensor
    if encoder.prefix is not None:
        # The Hub's prefix tokens have positions of their own; ours are part of the token.
        for i, target in enumerate(PREFIX_TOKENS[: encoder.settings.prefix]):
            hub[target] = state["prefix"][:, i : i + 1].clone()
    if layout is VJEPA2:
        # The class always has a predictor, for pre-training: this one has no blocks and predicts zeros.
        weight = next(iter(state.values()))
        hub |= {name: weight.new_zeros(shape) for name, shape in no_predictor(encoder.width).items()}
    elif layout is not VIDEOMAE:
        if encoder.pos is None:
            pos = join_separable(state["pos_space"], state["pos_time"])
        else:
            pos = state.get("pos", encoder.pos.detach())
        hub[POSITIONS] = torch.cat([pos.new_zeros(1, encoder.settings.prefix, encoder.width), pos], dim=1)
    if layout in (VIT, VIVIT):
        # An identity pooler with pooler_act="linear": nothing is missing, and pooler_output is the CLS token.
        weight = next(iter(state.values()))
        hub["pooler.dense.weight"] = torch.eye(encoder.width, dtype=weight.dtype)
        hub["pooler.dense.bias"] = torch.zeros(encoder.width, dtype=weight.dtype)
    return hub


def fold_layer_scale(state: State) -> State:
    """The weights of the same ViT without layer scale, for which the classes of transformers have no place: the factors
    of a branch go into the linear layer that it ends with."""
    folded = {name: tensor for name, tensor in state.items() if not name.endswith(tuple(SCALED))}
    for name in state.keys() - folded.keys():
        block, _, own = name.rpartition(".")
        weight, bias = (f"{block}.{SCALED[own]}.{kind}" for kind in ("weight", "bias"))
        folded[weight] = state[weight] * state[name][:, None]
        folded[bias] = state[bias] * state[name]
    return folded


def from_hub(encoder: Encoder, layout: Layout, hub: State) -> State:
    """The encoder's own state dict from Hub weights whose names `canonical` has brought into one form.

    Weights that are absent stay absent and unknown ones keep their Hub names, so that the caller can name both.
    """
    hub = dict(hub)
    if isinstance(encoder, ConvEncoder):
        back = {_resnet_name(name): name for name in encoder.state_dict()}
        return {back.get(name, name): tensor for name, tensor in hub.items()}
    if isinstance(encoder, SpeechEncoder):
        back = {_speech_name(name): name for name in encoder.state_dict()}
        # Classes that mask nothing in training have no such token: it keeps its start.
        own = {"mask_token": encoder.mask_token.detach()}
        return own | {back.get(name, name): tensor for name, tensor in hub.items()}
    if isinstance(encoder, EfficientNet):
        return {f"net.{name}": tensor for name, tensor in hub.items()}
    assert isinstance(encoder, ViT)
    state: State = {}
    trunk, block, fused = _tables(layout)
    for ours, theirs in trunk.items():
        if theirs in hub:
            state[ours] = hub.pop(theirs)
    for number in range(len(encoder.blocks)):
        for ours, theirs in block.items():
            if (full := f"encoder.layer.{number}.{theirs}") in hub:
                state[f"blocks.{number}.{ours}"] = hub.pop(full)
        for ours, parts in fused.items():
            names = [f"encoder.layer.{number}.{part}" for part in parts]
            if all(name in hub for name in names):
                state[f"blocks.{number}.{ours}"] = torch.cat([hub.pop(name) for name in names])
    tokens = [hub.pop(name) for name in PREFIX_TOKENS[: encoder.settings.prefix] if name in hub]
    pos = hub.pop(POSITIONS, None)
    if tokens and pos is not None and len(tokens) == encoder.settings.prefix:
        state["prefix"] = torch.cat(tokens, dim=1) + pos[:, : len(tokens)]
    return state | hub | ({} if pos is None else _positions(encoder, pos[:, encoder.settings.prefix :]))


def _tables(layout: Layout) -> tuple[dict[str, str], dict[str, str], dict[str, tuple[str, ...]]]:
    """Trunk, block and fused names."""
    return (VJEPA2_TRUNK, VJEPA2_BLOCK, VJEPA2_FUSED) if layout is VJEPA2 else (TRUNK, BLOCK, FUSED)


def no_predictor(width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a V-JEPA 2 predictor of width 1 without blocks."""
    return {
        "predictor.embeddings.predictor_embeddings.weight": (1, width),
        "predictor.embeddings.predictor_embeddings.bias": (1,),
        "predictor.embeddings.mask_tokens": (1, 1, 1, 1),
        "predictor.layernorm.weight": (1,),
        "predictor.layernorm.bias": (1,),
        "predictor.proj.weight": (width, 1),
        "predictor.proj.bias": (width,),
    }


def _positions(encoder: ViT, table: Tensor) -> State:
    """The encoder's learned positions from the table [1,N,D] of the patches; nothing where it holds a fixed one."""
    if encoder.pos is None:
        parts = split_separable(table, encoder.adapter.grid[0])
        return {} if parts is None else dict(zip(("pos_space", "pos_time"), parts, strict=True))
    return {"pos": table} if isinstance(encoder.pos, nn.Parameter) else {}


def canonical(layout: Layout, weights: State) -> State:
    """Hub weights without the prefix of a class with a head, without heads and decoders, under the older names."""
    prefix = layout.prefix if any(name.startswith(layout.prefix) for name in weights) else ""
    speech = layout in (HUBERT, WAVLM)
    if prefix and speech:  # all else are heads, one of which is called feature_extractor, too
        weights = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    renames: tuple[tuple[str, str], ...] = () if layout in (RESNET_MODEL, EFFICIENTNET, VJEPA2) else NEWER
    if speech:
        renames = NEWER_SPEECH
    if layout is VIDEOMAE:
        renames += NEWER_VIDEOMAE
    kept: State = {}
    for name, tensor in weights.items():
        name = name.removeprefix("base_model.").removeprefix(prefix)
        if name.startswith(DROPPED):
            continue
        for pattern, target in renames:
            name = re.sub(pattern, target, name)
        kept[name] = tensor
    return kept


def _resnet_name(name: str) -> str:
    for ours, theirs in STEM.items():
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    for pattern, target in RESNET:
        if match := re.match(pattern, name):
            groups = list(match.groups())
            groups[0] = str(int(groups[0]) - 1)
            if "layer.{}." in target:
                groups[2] = str(int(groups[2]) - 1)
            return target.format(*groups)
    raise KeyError(f"{name} is no weight of a ResNet")


def _speech_name(name: str) -> str:
    for ours, theirs in SPEECH:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(f"{name} is no weight of a speech encoder")


def _ours(encoder: Encoder, reason: str) -> Layout:
    return Layout("mmssl", type(encoder).__name__, reason=reason)

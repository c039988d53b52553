"""Weights of an encoder as a Hugging Face class names and shapes them, both ways."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from mmssl.encoders.base import Encoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.efficientnet import EfficientNet
from mmssl.encoders.key_maps import (
    BLOCK,
    DROPPED,
    FUSED,
    NEWER,
    NEWER_SPEECH,
    NEWER_VIDEOMAE,
    POSITIONS,
    PREFIX_TOKENS,
    RESNET,
    SCALED,
    SPEECH,
    STEM,
    TRUNK,
    VJEPA2_BLOCK,
    VJEPA2_FUSED,
    VJEPA2_TRUNK,
)
from mmssl.encoders.layouts import EFFICIENTNET, HUBERT, RESNET_MODEL, VIDEOMAE, VIT, VIVIT, VJEPA2, WAVLM, Layout
from mmssl.encoders.positions import join_separable, split_separable
from mmssl.encoders.speech import SpeechEncoder
from mmssl.encoders.vit import ViT

State = dict[str, Tensor]


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

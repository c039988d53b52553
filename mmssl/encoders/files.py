"""Encoders on disk: a folder in the Hugging Face format, written and read. Nothing is ever unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmssl.encoders.base import Encoder
from mmssl.encoders.card import model_card
from mmssl.encoders.configs import build, config_of, from_facts
from mmssl.encoders.layouts import READABLE, Layout, layout_of
from mmssl.encoders.processors import processor_config
from mmssl.encoders.weights import State, canonical, from_hub, to_hub
from mmssl.errors import UserError
from mmssl.files import save_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VIDEO_PROCESSOR = "video_preprocessor_config.json"
DOWNLOADED = ["config.json", "preprocessor_config.json", VIDEO_PROCESSOR, WEIGHTS, INDEX, "model-*-of-*.safetensors"]

# ------------------------------------------------------------------------------------------------------------ writing


def save_encoder(
    encoder: Encoder,
    folder: str | Path,
    *,
    state: Mapping[str, Tensor] | None = None,
    card: Mapping[str, Any] | None = None,
) -> Layout:
    """Write config.json, model.safetensors, preprocessor_config.json and README.md.

    Args:
        state: the encoder's full state dict where the module holds only a shard of it (under FSDP every process takes
            part in gathering it; then rank 0 alone calls this).
        card: facts about the training for the model card, such as {'recipe': 'image/mae', 'steps': 1000}.

    Returns:
        The layout; its `reason` says why transformers cannot load the folder, and is None where it can.
    """
    folder = Path(folder)
    layout = layout_of(encoder)
    weights = to_hub(encoder, layout, dict(state or encoder.state_dict()))
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "config.json", _json(config_of(encoder, layout)))
        _write(folder / "preprocessor_config.json", _json(processor_config(encoder.spec, layout)))
        _write(folder / "README.md", model_card(encoder, layout, card or {}))
        save_tensors(weights, folder / f".{WEIGHTS}", metadata={"format": "pt"})
        os.replace(folder / f".{WEIGHTS}", folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The encoder cannot be written to {folder}: {error}. Free space there or choose another folder."
        ) from error
    return layout


def _write(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}")
    part.write_text(text)
    os.replace(part, file)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


# ------------------------------------------------------------------------------------------------------------ reading


def load_encoder(name: str | Path) -> Encoder:
    """Load an encoder, in evaluation mode and fp32.

    Args:
        name: a folder (of a run, or of an encoder) or a Hub id.

    Raises:
        UserError: nothing there, no safetensors, an unknown kind of model, missing or unexpected weights.
    """
    folder = _folder(name)
    config = _read_json(folder / "config.json")
    if config is None:
        raise UserError(f"{folder} holds no config.json: name the folder of an encoder, such as OUT/encoder.")
    processor = _read_json(folder / "preprocessor_config.json") or _read_json(folder / VIDEO_PROCESSOR)
    model_type = config.get("model_type")
    weights = _weights(folder)
    if model_type == "mmssl":
        encoder = from_facts(config["mmssl"], folder)
        state: State = weights
    elif model_type in READABLE:
        layout = READABLE[model_type]
        weights = canonical(layout, weights)
        encoder = build(layout, config, processor, weights, folder)
        state = from_hub(encoder, layout, weights)
    else:
        raise UserError(
            f"{folder} holds a model of type '{model_type}', which mmssl does not read: it reads "
            f"{', '.join([*READABLE, 'mmssl'])}."
        )
    _load(encoder, state, folder)
    return encoder.eval()


def _folder(name: str | Path) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder / "encoder" if not (folder / "config.json").exists() and (folder / "encoder").is_dir() else folder
    text = str(name)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UserError(
            f"There is no folder {name}: name the folder of an encoder or a Hub id such as facebook/vit-mae-base."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=DOWNLOADED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{name}' is no folder here and could not be had from the Hub ({reason}): check the name, or download it "
            "first."
        ) from error


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): write or download it anew.") from error


def _weights(folder: Path) -> State:
    """All tensors of a folder, in one file or in shards, in fp32."""
    index = _read_json(folder / INDEX)
    files = sorted(set(index["weight_map"].values())) if index else [WEIGHTS]
    weights: State = {}
    for file in files:
        if not (folder / file).exists():
            raise UserError(
                f"{folder} holds no {file}. Only safetensors are read (a .bin or .pt file can run code when it is "
                "opened): convert it with transformers, model.save_pretrained(folder), where you trust the file."
            )
        try:
            weights |= load_file(folder / file)
        except SafetensorError as error:
            raise UserError(f"{folder / file} cannot be read ({error}): write or download it anew.") from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def _load(encoder: Encoder, state: Mapping[str, Tensor], source: Path) -> None:
    own = encoder.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    found = [("missing", missing), ("unexpected", unexpected), ("of another shape", other)]
    if any(names for _, names in found):
        told = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in found if names)
        raise UserError(
            f"The weights in {source} do not fit the encoder ({told}): name a checkpoint of the same shape."
        )
    encoder.load_state_dict(state, strict=False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

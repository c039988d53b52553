"""What the tests of speech encoders share: small models of transformers' and of ours with random weights, and sound."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from mmssl import Encoder
from mmssl.adapters.specs import WaveformSpec
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings

near = partial(assert_close, rtol=1e-4, atol=2e-5)
CONV: dict[str, Any] = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
TRUNK: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48}
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SPEC = WaveformSpec(channels=(8,) * 7)
SETTINGS = SpeechSettings(width=24, depth=3, heads=3, mlp_ratio=2, position_kernel=8, position_groups=4)
both = pytest.mark.parametrize("arch", ["hubert", "wavlm"])
sizes = pytest.mark.parametrize("large", [False, True], ids=["base", "large"])


def randomise(model: nn.Module) -> None:
    """Every parameter gets a random value, so that none can be mapped wrongly and go unseen."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = dict(model.state_dict())
    for name, tensor in state.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        scale = 1.0 if "rel_attn_embed" in name else 0.3 if tensor.ndim > 1 else 0.1
        tensor.copy_(1 + drawn * 0.1 if "norm.weight" in name or "original0" in name else drawn * scale)


def theirs(arch: str, large: bool, head: str = "Model") -> transformers.PreTrainedModel:
    name = "Hubert" if arch == "hubert" else "WavLM"
    config = getattr(transformers, f"{name}Config")(**CONV, **TRUNK, **(LARGE if large else {}))
    model = getattr(transformers, f"{name}{head}")(config)
    randomise(model)
    return model.eval()


def read(model: transformers.PreTrainedModel, folder: Path, *, normalise: bool = False) -> SpeechEncoder:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16000, "do_normalize": normalise}))
    encoder = Encoder.from_pretrained(folder)
    assert isinstance(encoder, SpeechEncoder)
    return encoder


def ours(arch: Any, large: bool) -> SpeechEncoder:
    torch.manual_seed(0)
    spec = replace(SPEC, norm="layer", normalise=True) if large else SPEC
    encoder = SpeechEncoder(spec, replace(SETTINGS, arch=arch, pre_norm=large))
    randomise(encoder)
    return encoder.eval()


def waves(*seconds: float) -> list[np.ndarray]:
    """Noise in the band of speech, of different loudness."""
    generator = np.random.default_rng(0)
    return [
        (generator.normal(size=round(16000 * s)).astype(np.float32) * 0.05 * (k + 1)) + 0.01
        for k, s in enumerate(seconds)
    ]

"""Claim: HuBERT and WavLM go on from checkpoints that transformers wrote, in the layout that published ones have
(config.json of 2021, the older names of the weight norm, `do_stable_layer_norm` and normalised waveforms of LARGE,
heads and missing mask tokens): what a run writes without having learned anything is the same model to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mmssl.targets.make import run_kmeans
from mmssl.targets.settings import KmeansSettings
from tests.media import tone
from tests.runs import make_media, metrics, pretrain

PUBLISHED: dict[str, Any] = {
    "activation_dropout": 0.1,
    "apply_spec_augment": True,
    "attention_dropout": 0.1,
    "bos_token_id": 1,
    "conv_bias": False,
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "ctc_loss_reduction": "sum",
    "ctc_zero_infinity": False,
    "do_stable_layer_norm": False,
    "eos_token_id": 2,
    "feat_extract_activation": "gelu",
    "feat_extract_dropout": 0.0,
    "feat_extract_norm": "group",
    "feat_proj_dropout": 0.1,
    "final_dropout": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout": 0.1,
    "hidden_dropout_prob": 0.1,
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-05,
    "layerdrop": 0.1,
    "mask_feature_length": 10,
    "mask_feature_prob": 0.0,
    "mask_time_length": 10,
    "mask_time_prob": 0.05,
    "num_attention_heads": 3,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 8,
    "num_feat_extract_layers": 7,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "transformers_version": "4.10.0.dev0",
    "vocab_size": 32,
}
LARGE: dict[str, Any] = {"conv_bias": True, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("speech"), "audio")


@pytest.fixture(scope="module")
def units(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("units") / "units"
    run_kmeans(KmeansSettings(data=str(data), out=out, clusters=8, frames=500, n_init=1, max_iter=3, workers=0))
    return out


def publish(folder: Path, kind: str, large: bool, head: str) -> transformers.PreTrainedModel:
    """A checkpoint as they lie on the Hub; returns the model without its head."""
    settings = PUBLISHED | (LARGE if large else {})
    torch.manual_seed(0)
    model = getattr(transformers, kind + head)(getattr(transformers, f"{kind}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    config = settings | {"model_type": kind.lower(), "architectures": [kind + head]}
    (folder / "config.json").write_text(json.dumps(config))
    extractor = {"do_normalize": large, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}
    extractor |= {"padding_side": "right", "padding_value": 0, "return_attention_mask": large, "sampling_rate": 16000}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not (head == "ForCTC" and name.endswith("masked_spec_embed"))
    }
    assert any(name.endswith("conv.weight_g") for name in older)
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    return model if head == "Model" else getattr(model, kind.lower())


@pytest.mark.parametrize(
    ("recipe", "kind", "large", "head"),
    [
        ("audio/hubert", "Hubert", False, "Model"),
        ("audio/hubert_large", "Hubert", True, "Model"),
        ("audio/hubert", "Hubert", True, "ForCTC"),
        ("audio/wavlm", "WavLM", True, "Model"),
    ],
)
def test_goes_on_from_a_published_layout(
    recipe: str, kind: str, large: bool, head: str, data: Path, units: Path, tmp_path: Path
) -> None:
    before = publish(tmp_path / "start", kind, large, head)
    more = ("--units", str(units), "--init", str(tmp_path / "start"), "--steps", "1")
    pretrain(recipe, data, tmp_path / "still", *more, "--base-lr", "0")
    after, told = transformers.AutoModel.from_pretrained(tmp_path / "still/encoder", output_loading_info=True)
    assert type(after).__name__ == f"{kind}Model"
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (after.config.do_stable_layer_norm, after.config.feat_extract_norm) == (large, "layer" if large else "group")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "still/encoder")
    assert extractor.do_normalize is large
    wave = extractor(tone(300.0, 0.7, 16000), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        found, expected = (model.eval()(wave, output_hidden_states=True) for model in (after, before))
    for state, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other, rtol=1e-5, atol=1e-5)
    pretrain(recipe, data, tmp_path / "moved", *more, "--base-lr", "0.01", "--warmup", "0")
    (line,) = metrics(tmp_path / "moved")
    (still,) = metrics(tmp_path / "still")
    assert line["loss"] == still["loss"]
    weights = [load_file(tmp_path / name / "encoder/model.safetensors") for name in ("still", "moved")]
    assert any(not torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())

"""The names of our weights -> the names that files on the Hub carry, class by class.

transformers renames them in memory, differently from version to version; those newer names are read, too (`NEWER`), but
never written.
"""

from __future__ import annotations

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

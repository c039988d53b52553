"""SimMIM against transformers' ViTForMaskedImageModeling on equal random weights: the loss and the gradient of every
parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import ViTConfig, ViTForMaskedImageModeling

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.objectives.masks import CoarseMask
from mmssl.objectives.simmim import SimMIM
from tests.parity.test_objectives import TOLERANCE, VITMAE_BLOCK, a_batch, block_map, randomise

KINDS = ["weight", "bias"]
NAMES = {
    "encoder.prefix": ["vit.embeddings.cls_token"],
    "encoder.adapter.projection.weight": ["vit.embeddings.patch_embeddings.projection.weight"],
    "encoder.adapter.projection.bias": ["vit.embeddings.patch_embeddings.projection.bias"],
    "mask_token": ["vit.embeddings.mask_token"],
    **{f"encoder.norm.{kind}": [f"vit.layernorm.{kind}"] for kind in KINDS},
    **block_map("encoder.blocks", "vit.layers", VITMAE_BLOCK, 2, KINDS),
}


def as_ours(read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Weights or gradients of transformers' parameters under our names and in our order."""
    found = {name: torch.cat([read(part) for part in parts]) for name, parts in NAMES.items()}
    found["encoder.pos"] = read("vit.embeddings.position_embeddings")[:, 1:]
    for kind in KINDS:  # the outputs of a patch are (c,h,w) there, as pixel shuffling reads them, and (h,w,c) here
        found[f"head.{kind}"] = read(f"decoder.0.{kind}").reshape(3, 64, -1).transpose(0, 1).flatten(0, 1)
    return found


def test_simmim_equals_transformers() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=64, patch_size=8,
        encoder_stride=8, layer_norm_eps=1e-6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = ViTForMaskedImageModeling(config)
    randomise(theirs)
    theirs.vit.embeddings.position_embeddings.data[:, 0] = 0  # ours is part of the CLS token
    settings = ViTSettings(width=48, depth=2, heads=4, positions="learned")
    ours = SimMIM(ViT(ImagePatches(ImageSpec(size=64, patch=8), 48), settings), mask=CoarseMask(0.6, (1, 2, 2)))
    left, right = dict(ours.named_parameters()), dict(theirs.named_parameters())
    asked = []

    def weight_of(name: str) -> Tensor:
        asked.append(name)
        return right[name].detach()

    def gradient_of(name: str) -> Tensor:
        gradient = right[name].grad
        assert gradient is not None, name
        return gradient

    weights = as_ours(weight_of)
    assert set(weights) == set(left), "a parameter goes unproven"
    assert set(asked) == set(right), "a parameter goes unproven"
    for name, weight in weights.items():
        left[name].data.copy_(weight.reshape(left[name].shape))

    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    noise = torch.rand(3, 16)
    output = ours(a_batch(images, {"mask": noise}))
    output.loss.backward()
    mask = ours.mask(noise, ours.grid).boolean()
    assert mask.sum(1).tolist() == [40] * 3  # ceil(0.6 * 16) units of four patches
    expected = theirs(ours.require_tokens().adapter.pixels(images)[:, :, 0], bool_masked_pos=mask)
    expected.loss.backward()
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=TOLERANCE)
    for name, gradient in as_ours(gradient_of).items():
        actual = left[name].grad
        assert actual is not None, name
        assert (actual.flatten() - gradient.flatten()).abs().max() <= TOLERANCE * gradient.abs().max(), name

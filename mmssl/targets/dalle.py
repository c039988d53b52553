"""The tokenizer of BEiT, the encoder of DALL-E's discrete VAE (Ramesh et al. 2021, arXiv:2102.12092), as transformers'
FlavaImageCodebook holds it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, FlavaImageCodebook

from mmssl.adapters.specs import ImageSpec
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook

MODEL_TYPE = "flava_image_codebook"
STRIDE = 8
"""Pixels from one code to the next: three of the four groups halve the picture."""
EPSILON = 0.1
"""Pixels x in [0,1] are shown as (1 - 2 EPSILON) x + EPSILON, since the decoder's logit-Laplace is of an open
interval."""


class DalleTokenizer(nn.Module):
    """Images [B,3,H,W] -> codes int64 [B,N]. Nothing in it is trained.

    Attributes:
        spec: the views that it takes; BEiT shows it 112 pixels, 14 x 14 codes.
        codebook: the weights that a place's features are compared by, with a hash of the whole network.

    Raises:
        UserError: a folder without such a network in safetensors.
    """

    def __init__(self, folder: Path, size: int) -> None:
        super().__init__()
        try:
            config = AutoConfig.from_pretrained(folder)
            made: Any = FlavaImageCodebook.from_pretrained(
                folder, config=config, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{folder} holds no tokenizer that can be read ({reason}): name a folder with config.json of type "
                f"{MODEL_TYPE} and model.safetensors (a .bin file can run code when it is opened)."
            ) from error
        network, info = made
        if info["missing_keys"] or info["mismatched_keys"]:
            some = ", ".join(sorted(info["missing_keys"])[:3]) or "other shapes"
            raise UserError(f"The weights in {folder} are not whole ({some}): download or write them anew.")
        self.network = network.float().requires_grad_(False).eval()
        self.spec = ImageSpec(size=size, patch=STRIDE)
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        description = {"kind": "dalle", "size": size, "model": digest.hexdigest()}
        weight = network.blocks.output.conv.weight.detach().flatten(1).clone()
        self.codebook = Codebook(weight, json.dumps(description, sort_keys=True))

    def train(self, mode: bool = True) -> DalleTokenizer:
        return super().train(False)

    @torch.no_grad()
    def forward(self, view: Tensor, lengths: Tensor | None = None) -> Tensor:
        pixels = view.float() if view.is_floating_point() else view.float() / 255
        codes: Tensor = self.network.get_codebook_indices((1 - 2 * EPSILON) * pixels + EPSILON)
        return codes.flatten(1)

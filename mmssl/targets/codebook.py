"""A codebook: centroids together with what they are centroids of, so that nobody assigns other features to them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmssl.errors import UserError
from mmssl.files import save_tensors, sync_path, writing
from mmssl.targets.kmeans import assign


@dataclass(frozen=True)
class Codebook:
    centroids: Tensor
    """float32 [k,d]."""
    features: str
    """What was clustered, precisely enough to make it again: 'mean a, b of CIE Lab over cells of 8 x 8 pixels'."""

    def __len__(self) -> int:
        return len(self.centroids)

    @property
    def sha256(self) -> str:
        """Of description, shape and values; equal on every device."""
        values = self.centroids.detach().cpu().contiguous()
        digest = hashlib.sha256(json.dumps([self.features, list(values.shape)]).encode())
        digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def assign(self, x: Tensor) -> Tensor:
        """Unit int64 [...] of every feature of x [...,d]. Raises UserError where d is not the codebook's."""
        if x.shape[-1] != self.centroids.shape[1]:
            raise UserError(
                f"The codebook has features of {self.centroids.shape[1]} values ({self.features}), and these have "
                f"{x.shape[-1]}: assign the features that it was made from."
            )
        return assign(x, self.centroids)

    def save(self, file: Path) -> None:
        """Write safetensors with `centroids` and, as metadata, description and hash; whole or not at all.

        Raises UserError where it cannot be written.
        """
        part = file.with_name(f".{file.name}.part")
        tensors = {"centroids": self.centroids.detach().cpu().float().contiguous()}
        with writing(file):
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(tensors, part, metadata={"features": self.features, "sha256": self.sha256})
                sync_path(part)
                os.replace(part, file)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    @staticmethod
    def load(file: Path) -> Codebook:
        """Raises UserError where there is no codebook, or one that is damaged."""
        if not file.is_file():
            raise UserError(f"There is no codebook {file}: name one that a run has written.")
        try:
            with safe_open(file, framework="pt") as opened:
                facts = opened.metadata() or {}
                codebook = Codebook(opened.get_tensor("centroids"), facts["features"])
                expected = facts["sha256"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{file} is no codebook ({error}): make it again, or restore it from a copy.") from error
        if codebook.centroids.ndim != 2 or codebook.centroids.dtype != torch.float32 or codebook.sha256 != expected:
            raise UserError(f"{file} has other content than was written: make it again, or restore it from a copy.")
        return codebook

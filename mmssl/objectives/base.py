"""What every objective is: a module that owns the encoder, heads, teacher and queue, with one door."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmssl.encoders.base import Encoder, TokenEncoder
from mmssl.errors import UserError
from mmssl.targets.codebook import Codebook
from mmssl.types import Batch, ObjectiveOutput, Picture

What = Literal["loss", "embed", "pictures"]


class Objective(nn.Module, ABC):
    """Base of all objectives.

    Attributes:
        views: names of the views in `Batch.views` that the loss reads; the first one is also what 'embed' encodes.
        noise: draws a sample that the loss needs, name -> k; `Batch.noise[name]` is float32 [B,k] in [0,1).
        targets: names in `Batch.targets` that the loss reads.
        codebook: what the codebook is called that must be fitted on the data before the first step, such as 'colours'
            (it stands beside the encoder as NAME.safetensors); None for none.
        fit_samples: samples that `fit` is given.
    """

    encoder: Encoder
    views: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    codebook: str | None = None
    fit_samples: int = 0

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.noise: dict[str, int] = {}
        self._ddp_params_and_buffers_to_ignore: list[str] = []  # the name that torch's DDP looks for

    def register_local_buffer(self, name: str, value: Tensor) -> None:
        """A buffer that is saved in checkpoints, but that DDP neither broadcasts at each forward nor synchronises at
        the start: every process must build it equal and keep it equal (a MoCo queue, a memory bank)."""
        self.register_buffer(name, value)
        self._ddp_params_and_buffers_to_ignore.append(name)

    def check(self, global_batch: int) -> None:
        """Called once before the first step, with the samples of one optimiser step over all processes and
        micro-batches.

        Raises UserError where the settings of the objective do not fit it.
        """

    def fit(self, batches: Iterator[Batch]) -> Codebook:
        """The codebook, from micro-batches of the recipe's own views, read once; on the main process, before the first
        step of a new run. Parameters are not touched: under FSDP the other processes are not here.

        Raises UserError where an objective has a codebook's name and no `fit` of its own.
        """
        raise UserError(
            f"{type(self).__name__} asks for a codebook of {self.codebook} and does not say how it is fitted: give the "
            "class a method fit that returns one, or leave its `codebook` None."
        )

    def adopt(self, codebook: Codebook) -> None:
        """Take over the run's codebook; on every process, before the first step and whenever the run goes on. The file
        of the run is where it is kept: hold it in a buffer with persistent=False."""

    def forward(self, batch: Batch, what: What = "loss") -> Any:
        """The only door by which parameters are touched (FSDP gathers them here). Changes no state.

        Returns:
            'loss': ObjectiveOutput. 'embed': the pooled features [B,D] of the view batch.views['view'] if given, else
            of the first view.
            'pictures': dict name -> Picture of what the model sees and predicts, for the first samples of the batch.
        """
        if what == "loss":
            return self.loss(batch)
        # Probes and pictures have batch sizes of their own, for which compiled blocks would be compiled once more.
        with torch.compiler.set_stance("force_eager"):
            if what == "embed":
                return self.embed(batch, "view" if "view" in batch.views else self.views[0])
            return self.pictures(batch)

    @abstractmethod
    def loss(self, batch: Batch) -> ObjectiveOutput:
        """The mean loss over `count` terms of this process, with detached metrics."""

    def embed(self, batch: Batch, name: str) -> Tensor:
        return self.encoder(batch.views[name], lengths=batch.lengths.get(name)).pooled

    def pictures(self, batch: Batch) -> dict[str, Picture]:
        return {}

    @torch.no_grad()
    def after_step(self, step: int, total: int, applied: Tensor) -> None:
        """Runs once an optimiser step, on every process: enqueue the keys of its micro-batches, move the teacher.

        Args:
            step: the step just made, from 0. total: steps of the run.
            applied: bool scalar on the device, False where a non-finite step was skipped on all processes together;
                then state must stay.
        """

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: {'params': [(name, parameter)], 'lr_scale': float, 'decay': bool}; the default leaves
        biases, norms and positions (everything of one dimension, and names with 'pos') undecayed. Parameters that take
        no gradient are left out."""
        decayed: list[tuple[str, nn.Parameter]] = []
        plain: list[tuple[str, nn.Parameter]] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            spared = parameter.ndim <= 1 or any(
                part.startswith(("pos", "mask_token", "prefix")) for part in name.split(".")
            )
            (plain if spared else decayed).append((name, parameter))
        groups = [
            {"params": decayed, "lr_scale": 1.0, "decay": True},
            {"params": plain, "lr_scale": 1.0, "decay": False},
        ]
        return [group for group in groups if group["params"]]

    def exports(self) -> dict[str, Encoder]:
        """Encoders that the run writes, by folder name."""
        return {"encoder": self.encoder}

    def require_tokens(self) -> TokenEncoder:
        """The encoder as a TokenEncoder; raises UserError for convolutional nets."""
        if not isinstance(self.encoder, TokenEncoder):
            raise UserError(
                f"{type(self).__name__} masks tokens, and {type(self.encoder).__name__} has none (a convolution would "
                f"see through the mask): choose a ViT encoder."
            )
        return self.encoder

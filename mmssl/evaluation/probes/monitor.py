"""A probe during training: nearest neighbours where labels exist, and signs of collapse always."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.adapters.specs import SoundSpec, Spec, VideoSpec
from mmssl.errors import UserError
from mmssl.evaluation.labels import file_labels
from mmssl.evaluation.metrics import chance
from mmssl.evaluation.probes.knn import knn_predict
from mmssl.evaluation.reading import Files, read_views
from mmssl.evaluation.views import evaluation_views
from mmssl.types import Batch

if TYPE_CHECKING:
    from mmssl.data.sources import Source


def feature_std(x: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation over samples of L2-normalised features [N,D], times sqrt(D).

    1 where features spread evenly over the sphere, 0 where all are one point (Chen & He 2021, arXiv:2011.10566,
    section 4.1).
    """
    return F.normalize(x.double(), dim=1).std(0, correction=0).mean() * x.shape[1] ** 0.5


def effective_rank(x: Tensor) -> Tensor:
    """RankMe of features [N,D]: exp of the entropy of their normalised singular values; between 1 and min(N,D).

    Garrido et al. 2023 (arXiv:2210.02885, equation 1).
    """
    singular = torch.linalg.svdvals(x.double())
    share = singular / singular.sum().clamp_min(1e-30) + 1e-7
    return torch.exp(-(share * share.log()).sum())


def uniformity(x: Tensor) -> Tensor:
    """log of the mean of exp(-2 |a-b|^2) over all pairs of L2-normalised features [N,D].

    0 where all are one point; the lower, the more even (Wang & Isola 2020, arXiv:2005.10242, section 4.1.2).
    """
    return torch.pdist(F.normalize(x.double(), dim=1)).square().mul(-2).exp().mean().log()


class Monitor:
    """Measures an encoder on fixed samples of its pre-training data, decoded once and kept as raw media.

    Args:
        limit: most samples of the kNN bank, and half as many held out; without labels, most samples in all.
        memory: most bytes of raw media kept; fewer samples are used where it would not do.

    Attributes:
        note: in words, what is measured on what.
        chance: kNN accuracy of the most frequent class; None without labels.

    Raises:
        UserError: when fewer than two of the chosen files can be read.
    """

    def __init__(
        self,
        source: Source,
        spec: Spec,
        *,
        seed: int,
        limit: int = 1000,
        batch_size: int = 64,
        workers: int = 0,
        memory: int = 1 << 29,
    ) -> None:
        bank, held = _choose(source, seed)
        size = _bytes(spec)
        limit = max(2, min(limit, memory // (size if held is None else 3 * size // 2)))
        rng = np.random.default_rng(seed)
        rows = rng.permutation(bank)[:limit]
        if held is not None:
            rows = np.concatenate([rows, rng.permutation(held)[: max(1, limit // 2)]])
        files = Files(source, evaluation_views(spec), rows, seed)
        chunks = read_views(files, batch_size=batch_size, workers=workers)
        self.batches = [
            Batch(
                views={"view": chunk.views},
                index=torch.from_numpy(chunk.rows),
                lengths={} if chunk.lengths is None else {"view": chunk.lengths},
            )
            for chunk in chunks
            if chunk.views is not None
        ]
        found = np.concatenate([batch.index.numpy() for batch in self.batches]) if self.batches else rows[:0]
        if len(found) < 2:
            raise UserError(
                f"The probe during training could read {len(found)} of {len(rows)} files: run `mmssl index`."
            )
        self._bank = torch.from_numpy(~np.isin(found, held if held is not None else []))
        self.chance: float | None = None
        self.note = f"{len(found)} samples without labels"
        if held is not None and self._bank.any() and not self._bank.all():
            names, labels = np.unique([str(source.label(int(row))) for row in found], return_inverse=True)
            self._classes, self._labels = len(names), torch.from_numpy(labels)
            self.chance = chance(labels[self._bank.numpy()], labels[~self._bank.numpy()]).majority
            bank_size = int(self._bank.sum())
            self.note = f"{len(names)} classes, {bank_size} samples in the bank, {len(found) - bank_size} held out"

    @torch.no_grad()
    def measure(self, embed: Callable[[Batch], Tensor], device: torch.device) -> dict[str, float]:
        """Figures of the encoder as it is now.

        Every process embeds every sample, so that an `embed` that gathers parameters (FSDP) is called equally often
        everywhere, and all processes get the same figures.

        Args:
            embed: features [B,D] of a batch whose only view is 'view'. The caller puts the module into evaluation mode.

        Returns:
            feature_std, effective_rank, uniformity; knn_top1 where labels exist. All NaN where a feature is not finite.
        """
        x = torch.cat([embed(batch.to(device)).float().cpu() for batch in self.batches])
        names = ["feature_std", "effective_rank", "uniformity"] + ["knn_top1"] * (self.chance is not None)
        if not torch.isfinite(x).all():
            return dict.fromkeys(names, float("nan"))
        figures = {
            name: float(measure(x))
            for name, measure in zip(names, (feature_std, effective_rank, uniformity), strict=False)
        }
        if self.chance is not None:
            bank = self._bank
            found = knn_predict(x[bank], self._labels[bank], x[~bank], classes=self._classes, neighbours=(20,))
            (predicted,) = found.values()
            figures["knn_top1"] = float((predicted == self._labels[~bank]).float().mean())
        return figures


def _choose(source: Source, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of the bank and held-out rows; all rows and None where the labels do not make a classification."""
    try:
        task = file_labels(source, seed)
    except UserError:
        return source.rows(None), None
    return task.train, task.test


def _bytes(spec: Spec) -> int:
    """Of one raw view."""
    if isinstance(spec, SoundSpec):
        return 4 * spec.samples
    return 3 * spec.size**2 * (spec.frames if isinstance(spec, VideoSpec) else 1)

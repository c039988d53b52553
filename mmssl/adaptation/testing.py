"""A classifier on test files: several clips and crops of each, their logits averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmssl.adaptation.classifier import Classifier
from mmssl.adaptation.stills import Stills
from mmssl.adapters.specs import ImageSpec, SoundSpec, Spec
from mmssl.data.images import decode_image
from mmssl.data.media import Media
from mmssl.data.sources import Source
from mmssl.data.video import open_video
from mmssl.data.views import Sample, Views, clip_indices, clip_span, within_file
from mmssl.errors import UserError
from mmssl.evaluation.reading import BAD_SHARE, Files, read_views
from mmssl.evaluation.views import evaluation_views, spaced


def views_for_testing(spec: Spec, clips: int, crops: int, kind: str) -> Views:
    """`clips` evenly spaced clips (segments) of a file times `crops` squares along the longer side of its pictures; for
    an encoder of images that is shown videos (`kind`), as many evenly spaced frames.

    Raises:
        UserError: several clips of an image, or crops of a recording.
    """
    if isinstance(spec, ImageSpec) and kind == "video":
        return Stills(SpacedCrops(spec.size, crops, "bicubic", clips, frames=1), spec.size)
    if isinstance(spec, ImageSpec) and clips > 1:
        raise UserError(f"--test-clips {clips}: give 1 for images; --test-crops cuts several squares of one.")
    if crops == 1:
        return evaluation_views(spec, clips)
    if isinstance(spec, SoundSpec):
        raise UserError(f"--test-crops {crops}: recordings have no crops, give --test-clips in their place.")
    if isinstance(spec, ImageSpec):
        return SpacedCrops(spec.size, crops, "bicubic")
    return SpacedCrops(spec.size, crops, "bilinear", clips, spec.frames, spec.stride)


def square_crops(media: Tensor, size: int, crops: int, interpolation: str) -> list[Tensor]:
    """uint8 [...,3,H,W] -> `crops` times uint8 [...,3,size,size]: short side to `size`, squares from one end of the
    longer side to the other; one is in the middle."""
    out = F.resize(media, [size], interpolation=InterpolationMode(interpolation), antialias=True)
    free = max(out.shape[-2:]) - size
    places = [free // 2] if crops == 1 else [round(free * number / (crops - 1)) for number in range(crops)]
    longer = -2 if out.shape[-2] > out.shape[-1] else -1
    return [out.narrow(longer, place, size).contiguous() for place in places]


@dataclass(frozen=True)
class SpacedCrops(Views):
    """Deterministic crops of a picture, or of evenly spaced clips of a video, for testing."""

    size: int
    crops: int
    interpolation: str
    clips: int = 1
    frames: int = 0
    """Of a clip; 0 for pictures."""
    stride: int = 1
    names: tuple[str, ...] = ("view",)

    @property
    def per_file(self) -> int:  # type: ignore[override]
        return self.clips * self.crops

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        if not self.frames:
            crops = square_crops(decode_image(media), self.size, self.crops, self.interpolation)
            return [Sample({"view": crop}) for crop in crops]
        video = open_video(media)
        free = max(video.frames - clip_span(self.frames, self.stride), 0)
        wanted = [clip_indices(int(start), self.frames, self.stride) for start in spaced(free, self.clips)]
        wanted = [within_file(indices, video.frames, "repeat_last") for indices in wanted]
        union = np.unique(np.concatenate(wanted))
        crops = square_crops(video.read(union.tolist()), self.size, self.crops, self.interpolation)
        places = [torch.from_numpy(np.searchsorted(union, indices)) for indices in wanted]
        return [Sample({"view": crop[place]}) for place in places for crop in crops]

    def centre(self) -> Views:
        return self


@dataclass(frozen=True)
class Tested:
    logits: np.ndarray
    """float64 [N,classes]: mean over the views of each file."""
    rows: np.ndarray
    """int64 [N]: the rows that could be read, in the order asked for."""
    skipped: tuple[tuple[str, str], ...]
    """(id, reason) of the others."""


@torch.no_grad()
def predict(
    model: Classifier,
    source: Source,
    rows: np.ndarray,
    views: Views,
    *,
    batch_size: int,
    workers: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Tested:
    """Logits of the files, in fp32, averaged over their views; the processes of a run share the files.

    Raises:
        UserError: more than a tenth of the files cannot be read.
    """
    device = next(model.parameters()).device
    place = {int(row): number for number, row in enumerate(rows)}
    table = torch.zeros(len(rows), len(model.classes) + 1, dtype=torch.float64)  # sums of logits, and of views
    reasons: dict[int, str] = {}
    for chunk in read_views(
        Files(source, views, rows[rank::world], seed), batch_size=batch_size, workers=workers, title="testing"
    ):
        reasons |= dict(chunk.skipped)
        if chunk.views is None:
            continue
        for start in range(0, len(chunk.views), batch_size):
            few = slice(start, start + batch_size)
            lengths = None if chunk.lengths is None else chunk.lengths[few].to(device)
            with torch.autocast(device.type, enabled=False):
                found = model(chunk.views[few].to(device), lengths).double().cpu()
            numbers = torch.tensor([place[int(row)] for row in chunk.rows[few]])
            table.index_add_(0, numbers, torch.cat([found, found.new_ones(len(found), 1)], 1))
    if world > 1:
        shared = table.to(device)
        dist.all_reduce(shared)
        table = shared.cpu()
    seen = (table[:, -1] > 0).numpy()
    skipped = tuple((source.id(int(row)), reasons.get(int(row), "could not be read")) for row in rows[~seen])
    if len(skipped) > max(1, BAD_SHARE * len(rows)) or not seen.any():
        raise UserError(
            f"{len(skipped)} of {len(rows)} test files could not be read, more than {BAD_SHARE:.0%}; the first:"
            f" {skipped[0][0]} ({skipped[0][1]}). Run `mmssl index` on the folder, and mend or remove them."
        )
    logits = (table[:, :-1] / table[:, -1:]).numpy()[seen]
    return Tested(logits, rows[seen], skipped)

"""What a fine-tuning run is made of: the labelled files of a source, training views, augmentation and the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmssl.adaptation.adapt import adapted, make_head
from mmssl.adaptation.boxes import Cutout, Erase
from mmssl.adaptation.classification import Classification
from mmssl.adaptation.mixing import Mix
from mmssl.adaptation.rand_augment import RandAugmented
from mmssl.adaptation.settings import FinetuneSettings
from mmssl.adaptation.stills import Stills
from mmssl.adapters.specs import ImageSpec, SoundSpec, Spec
from mmssl.data.audio_views import AudioViews
from mmssl.data.media import Media
from mmssl.data.sources import Source
from mmssl.data.views import ImageViews, Sample, VideoViews, Views, ViewsAround
from mmssl.encoders.base import Encoder
from mmssl.evaluation.labels import Task, file_labels
from mmssl.training.recipe import DeviceView, Parts


@dataclass(frozen=True)
class Labelled(Source):
    """The labelled files of a source: those of a task, with its classes and its split."""

    source: Source
    task: Task

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.source.kind

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, split: str | None = None) -> np.ndarray:
        sides = {"train": self.task.train, "test": self.task.test, None: np.union1d(self.task.train, self.task.test)}
        return sides.get(split, np.arange(0, dtype=np.int64))

    def media(self, row: int) -> Media:
        return self.source.media(row)

    def label(self, row: int) -> str | None:
        return self.source.label(row)

    def id(self, row: int) -> str:
        return self.source.id(row)

    def labels(self) -> list[str]:
        return list(self.task.classes)

    def problems(self) -> list[tuple[str, str]]:
        return self.source.problems()

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint


@dataclass(frozen=True)
class LabelledViews(ViewsAround):
    """Views of the labelled training files only."""

    seed: int

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        return self.views(media, rng)

    def arrange(self, source: Source, max_bad_share: float) -> Source:
        return Labelled(source, file_labels(source, self.seed))


def training_views(spec: Spec, settings: FinetuneSettings, kind: str) -> Views:
    """Random crops (segments) at the encoder's size, with RandAugment; of files of `kind`, which for an encoder of
    images may be videos: then any frames of them."""
    if isinstance(spec, SoundSpec):
        return AudioViews(spec.rate, spec.samples, per_file=settings.repeats)
    if isinstance(spec, ImageSpec) and kind == "image":
        views: Views = ImageViews(spec.size, scale=settings.scale, flip=settings.flip, per_file=settings.repeats)
    else:
        frames, stride = (1, 1) if isinstance(spec, ImageSpec) else (spec.frames, spec.stride)
        views = VideoViews(
            spec.size,
            frames,
            stride,
            names=("view",),
            per_file=settings.repeats,
            crop="random_resized",
            scale=settings.scale,
            flip=settings.flip,
        )
        views = Stills(views, spec.size) if isinstance(spec, ImageSpec) else views
    operations, strength = settings.randaugment or (0, 0)
    return RandAugmented(views, operations, strength, fill_of(spec)) if operations else views


def fill_of(spec: Spec) -> tuple[float, ...]:
    """The colour that covers erased places: the mean, which the encoder sees as zeros."""
    if isinstance(spec, SoundSpec):
        return (0.0,)
    return tuple(spec.mean) if spec.colour == "rgb" else (0.5, 0.5, 0.5)


def build_parts(settings: FinetuneSettings, encoder: Encoder, classes: tuple[str, ...], kind: str) -> Parts:
    """The objective, views and device views of one fine-tuning run on files of `kind`. `encoder` is copied."""
    start = adapted(encoder, drop=settings.drop_path or 0.0, pooling=settings.pooling)
    head = make_head(start, len(classes), dropout=settings.dropout)
    objective = Classification(start, head, classes, layer_decay=settings.layer_decay or 1.0)
    fill = fill_of(encoder.spec)
    device_views: Sequence[DeviceView] = (
        *([Erase(fill, settings.erase)] if settings.erase else []),
        *([Cutout(settings.cutout, fill)] if settings.cutout else []),
        Mix(len(classes), settings.mixup, settings.cutmix or 0.0, settings.switch, settings.smoothing),
    )
    return Parts(objective, LabelledViews(training_views(encoder.spec, settings, kind), settings.seed), device_views)

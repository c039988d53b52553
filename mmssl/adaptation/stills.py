"""Videos for encoders of images: single frames of them, in training and in testing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmssl.data.media import Media
from mmssl.data.views import ImageCentre, Sample, Views


@dataclass(frozen=True)
class Stills(Views):
    """Clips of one frame, uint8 [1,3,size,size], as the pictures [3,size,size] that they are."""

    kind = "video"
    views: Views
    size: int
    """Of the pictures."""

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.views.names

    @property
    def per_file(self) -> int:  # type: ignore[override]
        return self.views.per_file

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        return [
            replace(sample, views={name: clip[0] for name, clip in sample.views.items()}, lengths={})
            for sample in self.views(media, rng)
        ]

    def centre(self) -> Views:
        return ImageCentre(self.size)

"""What a recipe hands to the training loop, and how a recipe file is found and run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmssl.data.views import Views
    from mmssl.objectives.base import Objective
    from mmssl.types import Batch


@dataclass
class Parts:
    """The pieces that a recipe's `build(settings)` wires together."""

    objective: Objective
    views: Views
    """Worker-side sampling: media -> views at crop size."""
    device_views: Sequence[DeviceView] = field(default_factory=tuple)
    """Batched augmentation on the device, applied in order."""


class DeviceView:
    """A pure function of (batch views, batch noise); declares the draws a sample that it needs in `noise`."""

    noise: dict[str, int]
    __call__: Callable[[Batch], Batch]

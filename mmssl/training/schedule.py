"""Schedules are pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_cosine(step: int, *, total: int, warmup: int, peak: float, last: float = 0.0) -> float:
    """Learning rate of a step: linear from 0 to `peak` over `warmup` steps, then a half cosine down to `last`.

    Args:
        step: from 0. Step 0 of a warm-up has rate 0, step `warmup` has `peak`, step `total - 1` has `last`.
        total: steps of the run.
        warmup: steps of the warm-up.
    """
    if step < warmup:
        return peak * step / warmup
    span = total - 1 - warmup
    if span <= 0:
        return peak
    done = min(1.0, (step - warmup) / span)
    return last + 0.5 * (peak - last) * (1.0 + math.cos(math.pi * done))


def warmup_linear(step: int, *, total: int, warmup: int, peak: float, last: float = 0.0) -> float:
    """Learning rate of a step: linear from 0 to `peak` over `warmup` steps, then linear down to `last` (fairseq's
    polynomial decay of power 1, with which HuBERT is trained). Arguments as those of `warmup_cosine`."""
    if step < warmup:
        return peak * step / warmup
    span = total - 1 - warmup
    if span <= 0:
        return peak
    return peak + (last - peak) * min(1.0, (step - warmup) / span)


SCHEDULES: dict[str, Callable[..., float]] = {"cosine": warmup_cosine, "linear": warmup_linear}

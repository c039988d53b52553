"""From rows of a source to features on the device: whole recordings in parts, or the views of pictures and clips."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from mmssl.data.audio import read_audio
from mmssl.data.guard import SHARED_MEMORY, end_with_parent
from mmssl.data.media import UnreadableMedia
from mmssl.data.sources import LocalSource, Source
from mmssl.data.views import Views
from mmssl.errors import UserError
from mmssl.targets.features import Features, Timing

PART_SECONDS = 100.0
"""Of a long recording that are read at once, as fairseq's dump_hubert_feature has it."""
BATCH_SECONDS = 200.0
"""Sound in a padded batch, padding counted."""
BATCH_FILES = 32
"""Pictures or clips in a batch."""


class Part(NamedTuple):
    """A stretch of one recording, or the view of one file."""

    row: int
    number: int = 0
    first: int = 0
    """Feature of the recording that this part begins with."""
    size: int | None = None
    """Features in it; None where the length of the recording is not known before it is read, or the view is fixed."""
    last: bool = True


def parts_of(row: int, total: int | None, timing: Timing | None) -> list[Part]:
    """One part up to `PART_SECONDS`, more of a longer recording. One whose features (`total`) are not known is read at
    once, whatever its length."""
    if timing is None or total is None:
        return [Part(row)]
    size = max(1, round(PART_SECONDS * timing.rate / timing.hop))
    starts = range(0, max(total, 1), size)
    return [
        Part(row, number, first, min(size, total - first), first + size >= total) for number, first in enumerate(starts)
    ]


def counts_of(source: Source, rows: np.ndarray, timing: Timing | None) -> list[int | None]:
    """Features that each recording has; None where its length is not known before it is read (rows of Hub data sets,
    and views of fixed size)."""
    if timing is None or not isinstance(source, LocalSource):
        return [None] * len(rows)
    frames, rates = source.index.column("frames"), source.index.column("rate")
    return [
        None
        if frames[row] is None or not rates[row]
        else timing.count(math.ceil(frames[row] * timing.rate / rates[row]))
        for row in rows.tolist()
    ]


@dataclass(frozen=True)
class _Parts(Dataset):
    """Parts as items of a data set for worker processes: (raw view, real samples of it or -1), or why it has none."""

    source: Source
    parts: Sequence[Part]
    timing: Timing | None
    views: Views | None
    seed: int

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | str:
        part = self.parts[position]
        try:
            return self._view(part) if self.timing is None else self._sound(part, self.timing)
        except (UnreadableMedia, OSError, ValueError) as error:
            return str(error)

    def _view(self, part: Part) -> tuple[Tensor, int]:
        assert self.views is not None
        [sample] = self.views(self.source.media(part.row), np.random.default_rng((self.seed, part.row)))
        return sample.views["view"], sample.lengths.get("view", -1)

    def _sound(self, part: Part, timing: Timing) -> tuple[Tensor, int]:
        """The samples under the features of a part and of its context."""
        media = self.source.media(part.row)
        if part.size is None or (part.first == 0 and part.last):
            sound = read_audio(media, timing.rate)
            found = timing.count(len(sound))
            if part.size is not None and found != part.size:
                raise UnreadableMedia(f"{media.name}: {found} windows of sound, and {part.size} were expected")
            return sound, len(sound)
        begin = max(0, part.first - timing.context)
        wanted = part.first + part.size - begin
        seconds = None if part.last else timing.samples(wanted + timing.context) / timing.rate
        sound = read_audio(media, timing.rate, start=begin * timing.hop / timing.rate, seconds=seconds)
        found = timing.count(len(sound))
        if found < wanted or (part.last and found != wanted):
            raise UnreadableMedia(f"{media.name}: {begin + found} windows of sound, and {begin + wanted} were expected")
        return sound, len(sound)


def features_of_parts(
    source: Source,
    groups: Sequence[Sequence[Part]],
    features: Features,
    *,
    device: torch.device,
    workers: int,
    timeout: float,
    random_views: bool = False,
    seed: int = 0,
) -> Iterator[tuple[Part, Tensor | str]]:
    """Features [n,F] on the device of each part, in order, or why it cannot be read. Neighbours in a group share a
    padded batch, so parts of like length should lie side by side. A recording that is shorter than
    a window has n = 0.

    Args:
        workers: processes that decode; 0 decodes in this one, where nothing ends a decoder that hangs.
        timeout: seconds that a worker may take for one part.
        random_views: cut views at random (from `seed` and the row alone) instead of in the middle.

    Raises:
        UserError: a worker dies or hangs.
    """
    timing, views = features.timing, features.views
    chosen = views if views is None or random_views else views.centre()
    parts = [part for group in groups for part in group]
    ends = {group[-1] for group in groups}
    held: list[tuple[Part, Tensor, int]] = []
    for part, found in _read(_Parts(source, parts, timing, chosen, seed), workers, timeout):
        good = not isinstance(found, str) and (timing is None or timing.count(len(found[0])) > 0)
        if held and (not good or _full([*held, (part, *found)], timing)):  # type: ignore[list-item]
            yield from _extract(held, features, device)
            held = []
        if isinstance(found, str):
            yield part, found
        elif good:
            held.append((part, *found))
        else:
            yield part, torch.zeros(0, features.width, device=device)
        if held and part in ends:
            yield from _extract(held, features, device)
            held = []


def _full(held: list[tuple[Part, Tensor, int]], timing: Timing | None) -> bool:
    if timing is None:
        return len(held) > BATCH_FILES
    return len(held) * max(len(sound) for _, sound, _ in held) > BATCH_SECONDS * timing.rate


def _extract(
    held: list[tuple[Part, Tensor, int]], features: Features, device: torch.device
) -> Iterator[tuple[Part, Tensor]]:
    padded = pad_sequence([view for _, view, _ in held], batch_first=True).to(device)
    lengths = torch.tensor([length for _, _, length in held]).to(device) if held[0][2] >= 0 else None
    alone = features.timing is not None and len(held) == 1
    found = features(padded, None if alone else lengths)
    for (part, view, _), x in zip(held, found, strict=True):
        if features.timing is None:
            yield part, x
            continue
        skip = min(part.first, features.timing.context)
        count = features.timing.count(len(view)) if part.size is None else part.size
        yield part, x[skip : skip + count]


def _read(items: _Parts, workers: int, timeout: float) -> Iterator[tuple[Part, tuple[Tensor, int] | str]]:
    # From a fork server, as the training loader: a fork would inherit the locks of torch's and the decoders' threads.
    context = multiprocessing.get_context("forkserver") if workers else None
    if context is not None:
        context.set_forkserver_preload([__name__])
    loader = DataLoader(
        items,
        batch_size=None,
        collate_fn=_same,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        timeout=timeout if workers else 0,
        multiprocessing_context=context,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )
    stream = iter(loader)
    for part in items.parts:
        try:
            found = next(stream)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            name = items.source.id(part.row)
            if "timed out" in str(error):
                raise UserError(
                    f"{name} has been read for {timeout:g} s: run `mmssl index` on the data, which finds files that "
                    "hang their decoder, or raise --file-seconds where the storage is slow."
                ) from error
            raise UserError(
                f"A worker died while {name} or one of the next files was read: run `mmssl index` on the data, which "
                f"finds files that crash their decoder, or look whether {SHARED_MEMORY}."
            ) from error
        yield part, found


def _start_worker(number: int) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that computes
    torch.set_num_threads(1)


def _same(item: Any) -> Any:
    return item

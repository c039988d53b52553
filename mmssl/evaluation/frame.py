"""The frame of every evaluation: open the encoder, its untrained twins and the data, run, write the file, print.

An evaluation adds a settings class, a function that gives its figures and, where they are of another form, a table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rich.console import Console

from mmssl.data.indexing import show_progress
from mmssl.data.sources import Source, open_source
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.results import check_file, settings_of, versions, write_result
from mmssl.evaluation.subject import describe, pick_device, untrained
from mmssl.evaluation.table import print_table
from mmssl.evaluation.views import kind_for

Figures = dict[str, Any]
"""As they stand in the JSON file."""


@dataclass(kw_only=True)
class Settings:
    """What every evaluation asks for."""

    evaluation: ClassVar[str]
    """Its name in `mmssl evaluate`."""

    encoder: str
    """Folder of a run's encoder, or a Hub id."""
    data: str
    """Labelled media: folders, a train/ + test/ tree, a folder with metadata.csv, WebDataset tars, or a Hub name."""
    out: Path
    """JSON file for all figures and settings."""
    seed: int = 0
    """Fixes the split (where the data has none), the untrained encoder, whatever is drawn, and the intervals."""
    seeds: int = 1
    """Untrained encoders to compare with, at seeds seed, seed+1, ..."""
    device: str = "auto"
    """'auto' takes a GPU where one is at hand; else a torch device such as 'cpu' or 'cuda:1'."""

    @property
    def name(self) -> str:
        """The evaluation in files and tables."""
        return self.evaluation

    def check(self) -> None:
        """Raise UserError for values that make no evaluation."""
        at_least(self, seeds=1)


S = TypeVar("S", bound=Settings)
D = TypeVar("D")
Answer = TypeVar("Answer")


def at_least(settings: object, **least: int) -> None:
    """Raise UserError where an option is below the number given for it."""
    for name, number in least.items():
        if getattr(settings, name) < number:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(settings, name)}: give {number} or more.")


def open_media(data: str, kind: str, **options: Any) -> Source:
    """Open media, with progress on stderr; see `open_source` for the options."""
    with show_progress(Console(stderr=True)) as progress:
        return open_source(data, kind, progress=progress, **options)


def media_for(settings: Settings, encoder: Encoder) -> Source:
    """The media of --data that the encoder takes."""
    return open_media(settings.data, kind_for(settings.data, encoder.spec))


def run(
    settings: S,
    figures: Callable[[list[Encoder], D, S], Figures],
    tell: Callable[[Figures], None] = print_table,
    data: Callable[[S, Encoder], D] = media_for,  # type: ignore[assignment]
    also: str = "",
) -> Figures:
    """Evaluate as the command line does; returns what the JSON file holds.

    Args:
        figures: of the encoder, which stands first, and of its untrained twins.
        tell: prints them.
        data: opens the data.
        also: ends the last line on the terminal, which says where the figures are.

    Raises:
        UserError: settings that make no evaluation, an encoder or data that cannot be read, and what `figures` raises.
    """
    settings.check()
    check_file(settings.out)
    encoder = Encoder.from_pretrained(settings.encoder)
    source = data(settings, encoder)
    begin = time.monotonic()
    found = figures(with_twins(encoder, settings.seed, settings.seeds), source, settings)
    result = complete(settings, settings.name, encoder, found, str(pick_device(settings.device)), begin)
    publish(settings.out, result, tell, also)
    return result


def publish(out: Path, result: Figures, tell: Callable[[Figures], None] = print_table, also: str = "") -> None:
    """Write the JSON file, print the figures."""
    write_result(out, result)
    tell(result)
    print(f"All figures: {out}{also}")


def with_twins(encoder: Encoder, seed: int, seeds: int) -> list[Encoder]:
    """The encoder, then its untrained twins at seeds seed, seed+1, ..."""
    return [encoder, *(untrained(encoder, number) for number in range(seed, seed + seeds))]


def by_name(encoders: Iterable[Encoder], seed: int) -> dict[str, Encoder]:
    """Encoders, as `with_twins` gives them, under the names that tables show."""
    trained, *twins = encoders
    return {"trained": trained} | {f"untrained (seed {number})": twin for number, twin in enumerate(twins, seed)}


def complete(settings: Any, name: str, encoder: Encoder, figures: Figures, device: str, begin: float) -> Figures:
    """All that the JSON file says, from the figures of an evaluation that began at `begin` (`time.monotonic`)."""
    return {
        "evaluation": name,
        "settings": settings_of(settings),
        "encoder": describe(encoder, settings.encoder),
        **figures,
        "versions": versions(),
        "device": device,
        "seconds": round(time.monotonic() - begin, 3),
    }


def beside(
    answers: Sequence[Answer],
    figures: Callable[[Answer], Figures],
    gain: Callable[[Answer, Answer], Figures],
    seed: int,
) -> Figures:
    """Figures of the encoder, which answered first, of its twins (at seeds seed, seed+1, ...), and of what it gained.

    Args:
        gain: of the first answer over the second.
    """
    trained, *others = answers
    twins = [{"seed": n, **figures(twin), "difference": gain(trained, twin)} for n, twin in enumerate(others, seed)]
    first = dict(twins[0]) if twins else {}
    gain_over_first = first.pop("difference", None)
    return {
        "trained": figures(trained),
        "untrained": first or None,
        "difference": gain_over_first,
        "further_untrained": twins[1:],
    }

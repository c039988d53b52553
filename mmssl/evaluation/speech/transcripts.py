"""Transcripts of recordings, and the characters that a recogniser spells them with."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from mmssl.data.listing import walk
from mmssl.data.metadata import METADATA_NAMES
from mmssl.data.sources import LocalSource, Source
from mmssl.errors import UserError

COLUMNS = ("text", "transcription", "transcript", "sentence")
"""Columns of a metadata file that hold what is said, the first that is there."""
BLANK, SPACE, UNKNOWN = "<pad>", "|", "<unk>"
"""As Wav2Vec2CTCTokenizer writes them; CTC's blank is the padding token."""


def read_transcripts(source: Source, kept: Literal["metadata", "label"]) -> dict[int, str]:
    """What is said, by row, white space made single spaces; rows without words are left out.

    Args:
        kept: 'metadata': in the column text (or transcription, transcript, sentence) of metadata.csv, .jsonl or
            .parquet, beside file_name; 'label': the label of the file is the word that is said.

    Raises:
        UserError: no recording has a transcript, or the data are no local folder.
    """
    if kept == "label":
        given = {int(row): source.label(int(row)) for row in source.rows(None)}
    else:
        if not isinstance(source, LocalSource):
            raise UserError("Transcripts are read from the metadata file of a local folder: give one.")
        by_name = _from_metadata(source.index.root)
        given = {int(row): by_name.get(source.media(int(row)).record.path) for row in source.rows(None)}
    found = {row: " ".join(text.split()) for row, text in given.items() if text and text.split()}
    if not found:
        raise UserError(
            f"None of the {len(given)} recordings has a transcript: add a metadata.csv with the columns file_name and "
            "text, or give --transcripts label where labels are the words."
        )
    return found


def _from_metadata(root: Path) -> dict[str, str]:
    """Transcripts by path relative to the folder of the data."""
    found = {}
    for path in walk(root):
        if path.name.lower() not in METADATA_NAMES:
            continue
        folder = path.parent.relative_to(root)
        for row in _rows(path):
            columns = {str(name).lower(): value for name, value in row.items()}
            text = next((columns[name] for name in COLUMNS if columns.get(name)), None)
            if columns.get("file_name") and text:
                found[os.path.normpath(folder / str(columns["file_name"])).replace(os.sep, "/")] = str(text)
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        if path.suffix.lower() == ".parquet":
            table: list[dict[str, Any]] = pa.parquet.read_table(path).to_pylist()
            return table
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except (pa.ArrowException, csv.Error, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it or take it out of the folder.") from error


@dataclass(frozen=True)
class Vocabulary:
    """Symbols by number: CTC's blank, the space, the unknown character, then the characters of the training set."""

    symbols: tuple[str, ...]

    @staticmethod
    def of(texts: Iterable[str]) -> Vocabulary:
        counts = Counter("".join(texts))
        special = {SPACE, " "}
        return Vocabulary((BLANK, SPACE, UNKNOWN, *sorted(set(counts) - special)))

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Numbers of the characters; a space is '|'."""
        number = {symbol: place for place, symbol in enumerate(self.symbols)}
        return [number.get(SPACE if char == " " else char, number[UNKNOWN]) for char in text]

    def decode(self, numbers: Sequence[int]) -> str:
        """Text of symbols that hold no blanks any more."""
        text = "".join(" " if number == 1 else self.symbols[number] for number in numbers if number not in (0, 2))
        return " ".join(text.split())

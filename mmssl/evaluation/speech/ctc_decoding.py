"""From CTC's log-probabilities to symbols, and how wrong a transcript is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmssl.errors import UserError

BLANK = 0
RESAMPLES = 1000


def greedy(log_probs: np.ndarray) -> list[int]:
    """The best symbol of every frame, repeats merged, blanks taken out (Graves et al. 2006, section 3.2, best path).

    Args:
        log_probs: [T,V].
    """
    best = log_probs.argmax(1)
    return [
        int(symbol) for place, symbol in enumerate(best) if symbol != BLANK and (not place or best[place - 1] != symbol)
    ]


def beam(log_probs: np.ndarray, width: int) -> list[int]:
    """The most probable symbols, summed over all alignments, by prefix beam search without a language model (Hannun et
    al. 2014, arXiv:1408.2873). Exact where `width` is not reached.

    Args:
        log_probs: [T,V]. width: prefixes that are kept at each frame.
    """
    # Of every prefix: log-probability of the alignments that end in a blank, and of those that do not.
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for frame in log_probs.tolist():
        found: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, (blank, other) in beams.items():
            both = _add(blank, other)
            last = prefix[-1] if prefix else None
            own_blank, own_other = found.get(prefix, (-math.inf, -math.inf))
            own_blank = _add(own_blank, both + frame[BLANK])
            if last is not None:
                own_other = _add(own_other, other + frame[last])
            found[prefix] = own_blank, own_other
            for symbol, value in enumerate(frame):
                if symbol == BLANK or value == -math.inf:
                    continue
                grown = (*prefix, symbol)
                grown_blank, grown_other = found.get(grown, (-math.inf, -math.inf))
                found[grown] = grown_blank, _add(grown_other, (blank if symbol == last else both) + value)
        kept = sorted(found.items(), key=lambda item: _add(*item[1]), reverse=True)[:width]
        beams = dict(kept)
    return list(max(beams.items(), key=lambda item: _add(*item[1]))[0])


def _add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


@dataclass(frozen=True)
class ErrorRates:
    """Over all transcripts: edits over the words or characters of the references."""

    wer: float
    wer_interval: tuple[float, float]
    """95 %, by resampling the recordings."""
    cer: float
    cer_interval: tuple[float, float]


def error_rates(references: Sequence[str], found: Sequence[str], seed: int) -> ErrorRates:
    """Word and character error rates, counted by jiwer.

    Raises:
        UserError: jiwer is not installed.
    """
    words, chars = edits(references, found)
    wer, cer = (counts[:, 0].sum() / counts[:, 1].sum() for counts in (words, chars))
    return ErrorRates(float(wer), interval(words, seed), float(cer), interval(chars, seed))


def edits(references: Sequence[str], found: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(edits, length of the reference) of every transcript, in words and in characters: int64 [N,2] each."""
    try:
        import jiwer
    except ImportError as error:
        raise UserError("Error rates are counted by jiwer, which is not installed: pip install jiwer.") from error
    rows: list[list[tuple[int, int]]] = [[], []]
    for reference, hypothesis in zip(references, found, strict=True):
        for counts, compare in zip(rows, (jiwer.process_words, jiwer.process_characters), strict=True):
            one: Any = compare(reference, hypothesis)
            wrong = one.substitutions + one.deletions + one.insertions
            counts.append((wrong, one.substitutions + one.deletions + one.hits))
    words, chars = (np.array(counts, np.int64) for counts in rows)
    return words, chars


def interval(counts: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of sum(edits) / sum(lengths) of counts [N,2], by resampling rows."""
    rng = np.random.default_rng(seed)
    drawn = counts[rng.integers(len(counts), size=(RESAMPLES, len(counts)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(low), float(high)


def rate_difference(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % interval of the first rate minus the second, of counts [N,2] of the same recordings."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(first), size=(RESAMPLES, len(first)))
    a, b = first[drawn].sum(1), second[drawn].sum(1)
    low, high = np.quantile(a[:, 0] / a[:, 1] - b[:, 0] / b[:, 1], [0.025, 0.975])
    return float(low), float(high)

"""Claims: the beam finds the most probable text, summed over every alignment one by one; greedy merges repeats;
transcripts come from metadata files; error rates are jiwer's."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from mmssl.data.sources import open_source
from mmssl.errors import UserError
from mmssl.evaluation.speech.ctc_decoding import beam, edits, error_rates, greedy, rate_difference
from mmssl.evaluation.speech.transcripts import Vocabulary, read_transcripts
from tests.media import make_audio


def merged(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def test_beam_finds_the_most_probable_text_over_all_alignments() -> None:
    rng = np.random.default_rng(0)
    differ = 0
    for _ in range(30):
        log_probs = np.log(rng.dirichlet(np.ones(4) * 0.7, 5))
        totals: dict[tuple[int, ...], float] = defaultdict(float)
        for path in itertools.product(range(4), repeat=5):
            totals[merged(path)] += float(np.exp(log_probs[np.arange(5), path].sum()))
        best = max(totals.items(), key=lambda item: item[1])[0]
        assert tuple(beam(log_probs, 10_000)) == best
        differ += tuple(greedy(log_probs)) != best
        assert totals[tuple(beam(log_probs, 8))] > 0.8 * totals[best]
    assert differ > 3, "the best path is not always the best text"


def test_greedy_merges_repeats_but_not_across_blanks() -> None:
    path = [0, 1, 1, 0, 1, 2, 2, 0]
    assert greedy(np.log(np.eye(3)[path] + 1e-9)) == [1, 1, 2]
    assert beam(np.log(np.eye(3)[path] + 1e-9), 4) == [1, 1, 2]
    assert greedy(np.log(np.eye(3)[[0, 0]] + 1e-9)) == []


def test_vocabulary_spells_and_reads_back() -> None:
    words = Vocabulary.of(["ein Haus", "eins"])
    assert words.symbols[:3] == ("<pad>", "|", "<unk>")
    assert words.decode(words.encode("ein Haus")) == "ein Haus"
    assert words.encode("x ") == [2, 1]
    assert words.decode([2, 1, 1]) == ""


def test_transcripts_from_metadata_and_labels(tmp_path: Path) -> None:
    for name in ("train/a.wav", "train/b.wav", "test/c.wav", "test/d.wav"):
        make_audio(tmp_path / name, seconds=0.1)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,Text\na.wav,HELLO  you\nb.wav,\n")
    (tmp_path / "test" / "metadata.jsonl").write_text('{"file_name": "c.wav", "transcription": "bye"}\n')
    source = open_source(tmp_path, "audio")
    found = {source.id(row): text for row, text in read_transcripts(source, "metadata").items()}
    assert sorted(found.values()) == ["HELLO you", "bye"]
    assert all(name.endswith(("a.wav", "c.wav")) for name in found)
    make_audio(tmp_path / "words" / "seven" / "a.wav", seconds=0.1)
    assert list(read_transcripts(open_source(tmp_path / "words", "audio"), "label").values()) == ["seven"]
    with pytest.raises(UserError, match="None of the 1 recordings has a transcript"):
        read_transcripts(open_source(tmp_path / "words", "audio"), "metadata")


def test_error_rates_are_jiwers() -> None:
    jiwer = pytest.importorskip("jiwer")
    references, found = ["the cat sat", "a dog", "no"], ["the bat sat on", "dog", ""]
    rates = error_rates(references, found, 0)
    assert rates.wer == pytest.approx(jiwer.wer(references, found)) == pytest.approx(4 / 6)
    assert rates.cer == pytest.approx(jiwer.cer(references, found))
    low, high = rates.wer_interval
    assert low <= rates.wer <= high
    words, _ = edits(references, found)
    assert rate_difference(words, words, 0) == (0.0, 0.0)
    better, _ = edits(references, references)
    assert rate_difference(better, words, 0)[1] < 0

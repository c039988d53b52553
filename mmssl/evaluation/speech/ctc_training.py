"""What `mmssl evaluate ctc` trains and tests on: recordings with transcripts, in batches of similar length."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmssl.adapters.specs import WaveformSpec
from mmssl.data.sources import Source
from mmssl.errors import UserError
from mmssl.evaluation.labels import held_out, split_rows
from mmssl.evaluation.reading import Chunk, Files, read_nearly_all
from mmssl.evaluation.speech.ctc_decoding import beam, greedy
from mmssl.evaluation.speech.ctc_model import FrozenCTC, TunedCTC, ctc_loss
from mmssl.evaluation.speech.transcripts import Vocabulary, read_transcripts
from mmssl.evaluation.subject import pick_device
from mmssl.evaluation.views import RealCentre

if TYPE_CHECKING:
    from mmssl.evaluation.speech.ctc import CtcSettings


@dataclass(frozen=True)
class Recordings:
    """Recordings with transcripts, on three sides."""

    files: Files
    """All of them."""
    texts: dict[int, str]
    vocabulary: Vocabulary
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    split: str
    notes: tuple[str, ...]

    def at(self, rows: np.ndarray) -> Files:
        return dataclasses.replace(self.files, rows=rows)

    def targets(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Symbols int64 [B,S] followed by zeros, and how many are real, int64 [B]."""
        spelled = [torch.tensor(self.vocabulary.encode(self.texts[int(row)])) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(spelled, batch_first=True), torch.tensor([len(one) for one in spelled])


def gather(spec: WaveformSpec, source: Source, settings: CtcSettings) -> Recordings:
    """The recordings with transcripts that are not too long, split by file."""
    texts = read_transcripts(source, settings.transcripts)
    rows = np.array(sorted(texts), np.int64)
    seconds = np.array([source.media(int(row)).record.duration or 0.0 for row in rows])
    kept = rows[seconds <= settings.max_seconds]
    notes = []
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} recordings longer than {settings.max_seconds:g} s are left out")
    if len(texts) < len(source.rows(None)):
        notes.append(f"{len(source.rows(None)) - len(texts)} recordings without a transcript are left out")
    train, test, split = split_rows(source, kept, np.zeros(len(kept), np.int64), settings.seed)
    names = [source.id(int(row)) for row in train]
    held = held_out(names, np.zeros(len(train), np.int64), share=0.1, seed=settings.seed)
    if not len(test) or not held.any() or held.all():
        raise UserError(
            f"CTC needs recordings with transcripts for training, for choosing the rate and for the test, and there are"
            f" {len(train)} training and {len(test)} test recordings ({split}): add some."
        )
    views = RealCentre(spec.rate, math.ceil(settings.max_seconds * spec.rate), needed=spec.window)
    vocabulary = Vocabulary.of(texts[int(row)] for row in train)
    files = Files(source, views, kept, settings.seed)
    return Recordings(files, texts, vocabulary, train[~held], train[held], test, split, tuple(notes))


def train(model: FrozenCTC | TunedCTC, rates: tuple[float, ...], data: Recordings, settings: CtcSettings) -> None:
    """Adam, on batches of recordings of similar length, all heads at once.

    Raises:
        UserError: too many recordings cannot be read.
    """
    device = pick_device(settings.device)
    optimizer = torch.optim.Adam(model.groups(rates), betas=(0.9, 0.98))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        files = data.at(training_rows(data, settings))
        size = min(settings.batch_size, len(data.train))
        chunks = read_nearly_all(files, [], batch_size=size, workers=settings.workers, title="ctc")
        for step, chunk in enumerate(chunks):
            targets, sizes = data.targets(chunk.rows)
            view, lengths, frames = on_device(model, chunk, device)
            loss = ctc_loss(model(view, lengths), frames, targets.to(device), sizes.to(device))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * pace(step, settings.steps)
            optimizer.zero_grad()
            loss.sum().backward()
            if isinstance(model, TunedCTC):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


def pace(step: int, steps: int) -> float:
    """Share of the peak rate: up in the first tenth, flat, then down in the last half (wav2vec 2.0's three stages)."""
    done = (step + 1) / steps
    return min(done / 0.1, 1.0, max((1 - step / steps) / 0.5, 0.0))


def training_rows(data: Recordings, settings: CtcSettings) -> np.ndarray:
    """Rows of all steps, int64 [steps * batch]: every epoch in an order of its own, batches of similar length."""
    rng = np.random.default_rng(settings.seed)
    size = min(settings.batch_size, len(data.train))
    length = {int(row): data.files.source.media(int(row)).record.duration or 0.0 for row in data.train}
    batches: list[np.ndarray] = []
    while len(batches) < settings.steps:
        order = rng.permutation(data.train)
        # Neighbours by length within pools of 20 batches.
        pools = [order[start : start + 20 * size] for start in range(0, len(order), 20 * size)]
        ordered = np.concatenate([np.array(sorted(pool, key=lambda row: length[int(row)])) for pool in pools])
        whole = [ordered[start : start + size] for start in range(0, len(ordered) - size + 1, size)]
        batches += [whole[number] for number in rng.permutation(len(whole))]
    chosen = np.concatenate(batches[: settings.steps])
    return chosen.astype(np.int64)


def on_device(model: FrozenCTC | TunedCTC, chunk: Chunk, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Waveforms [B,S], their real samples and real frames, int64 [B]."""
    assert chunk.views is not None
    assert chunk.lengths is not None
    lengths = chunk.lengths.to(device)
    spec = model.encoder.spec
    assert isinstance(spec, WaveformSpec)
    return chunk.views.to(device), lengths, spec.frames_of(lengths)


@torch.no_grad()
def decode(
    model: FrozenCTC | TunedCTC,
    head: int,
    data: Recordings,
    rows: np.ndarray,
    settings: CtcSettings,
    width: int | None = None,
    skipped: list[tuple[int, str]] | None = None,
) -> dict[str, list[str]]:
    """Transcripts of some recordings: 'greedy', and with a `width` 'beam'; '' for what cannot be read, which goes into
    `skipped` as (row, reason).

    Raises:
        UserError: too many cannot be read.
    """
    device = pick_device(settings.device)
    found: dict[str, dict[int, str]] = {name: {} for name in (["greedy"] if width is None else ["greedy", "beam"])}
    skipped, how = [] if skipped is None else skipped, {"batch_size": settings.batch_size, "workers": settings.workers}
    for chunk in read_nearly_all(data.at(rows), skipped, title="ctc: spelling", **how):
        view, lengths, frames = on_device(model, chunk, device)
        log_probs = model(view, lengths)[head].float().log_softmax(-1).cpu().numpy()
        for row, one, count in zip(chunk.rows.tolist(), log_probs, frames.tolist(), strict=True):
            found["greedy"][row] = data.vocabulary.decode(greedy(one[:count]))
            if width is not None:
                found["beam"][row] = data.vocabulary.decode(beam(one[:count], width))
    return {name: [texts.get(int(row), "") for row in rows] for name, texts in found.items()}

"""The states of every layer of frozen encoders: one vector a layer and file, or a layer and frame of sound."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.data.media import Record
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.features import cache_key, load_cached, save_cached
from mmssl.evaluation.reading import Chunk, Files, read_nearly_all
from mmssl.evaluation.subject import evaluating
from mmssl.targets.quality import Segments
from mmssl.targets.units import Units
from mmssl.types import Encoded


@dataclass(frozen=True)
class LayerStates:
    x: np.ndarray
    """float32 [N,L,D]: state of each of the L layers, the input of the first block before all others."""
    rows: np.ndarray
    """int64 [N]: row of each example in its source; a file gives one example, or one a frame."""
    codes: np.ndarray
    """int64 [N]: unit or label of the frame; -1 where examples are files."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(id, reason) of files that could not be read."""


@dataclass(frozen=True)
class Frames:
    """Which frames of a recording are examples, and their units, or their labels from a table."""

    units: Units | Segments
    most: int
    """Frames of one file that are taken, drawn at random."""

    def of(self, encoder: Encoder, record: Record, name: str, valid: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the frames of the middle segment that are taken, and their units or labels, int64 each.

        A frame has the unit whose samples lie nearest to the middle of its own, or the label at that moment; frames
        without any are not taken.

        Args:
            valid: real samples of the segment.
        """
        spec = encoder.spec
        if record.frames is None or record.rate is None:
            raise UserError(f"{name} was never verified, so that its frames cannot be placed: use a local folder.")
        total = math.ceil(record.frames * spec.rate / record.rate)  # type: ignore[union-attr]
        start = max(total - spec.samples, 0) // 2  # type: ignore[union-attr]  # as AudioViews.centre places it
        middles = frame_middles(encoder)
        whole = len(middles) if isinstance(spec, AudioSpec) else max(spec.frames_of(valid), 0)  # type: ignore[union-attr]
        middles = middles[:whole][middles[:whole] < valid]
        codes = self.units.at_seconds(name, (start + middles) / spec.rate)  # type: ignore[union-attr]
        inside = np.flatnonzero(codes >= 0)
        if len(inside) > self.most:
            inside = np.sort(np.random.default_rng((seed, len(inside))).choice(inside, self.most, replace=False))
        return inside, codes[inside]


def frame_middles(encoder: Encoder) -> np.ndarray:
    """The sample in the middle of each time position of a full view, float64 [T]. Raises UserError for pictures."""
    spec = encoder.spec
    if isinstance(spec, ImageSpec | VideoSpec):
        raise UserError(
            f"Frames are those of sound, and this encoder takes {spec.modality}: leave out --units and --frame-labels."
        )
    if isinstance(spec, AudioSpec):
        step, length = round(0.010 * spec.rate), round(0.025 * spec.rate)
        count = (spec.frames - spec.patch) // spec.stride + 1
        return np.arange(count) * spec.stride * step + ((spec.patch - 1) * step + length) / 2
    return np.arange(spec.frames_of(spec.samples)) * spec.hop + spec.window / 2


def states_of(encoded: Encoded) -> Tensor:
    """[B,L,T,W,D]: the states of a view's tokens, without prefix tokens, time before the other dimensions of the grid.

    Raises:
        UserError: layers of different widths, as convolutional nets have them.
    """
    hidden, grid = encoded.hidden, encoded.grid
    if hidden is None or grid is None or len({state.shape[-1] for state in hidden}) != 1 or hidden[0].ndim != 3:
        raise UserError(
            "A probe of layers needs an encoder whose layers have one width and tokens: a ViT, HuBERT or WavLM."
        )
    count = math.prod(grid)
    states = torch.stack([state[:, -count:] for state in hidden], 1).float()  # [B,L,N,D]
    states = states.unflatten(2, grid)
    if grid[0] == 1:  # spectrograms: (1, mel patches, time patches)
        return states.transpose(2, 4).flatten(3, 4)
    return states.flatten(3, 4)


@torch.no_grad()
def collect_states(
    encoders: Sequence[Encoder],
    files: Files,
    *,
    frames: Frames | None = None,
    batch_size: int,
    workers: int,
    device: torch.device,
    cache: Path | None,
) -> list[LayerStates]:
    """States of frozen encoders of one spec, in evaluation mode and fp32; files are decoded once for all of them.

    Args:
        frames: take frames of recordings with their units, in place of the mean over each view.

    Raises:
        UserError: too many unreadable files, states that are not finite, or encoders without layers of one width.
    """
    # What was kept depends on the encoder's whole output and, with frames, on the units and the draw.
    what = "" if frames is None else f"{frames.units.sha256} {frames.most}"
    keys = [hashlib.sha256(f"layers {what} {cache_key(one, files)}".encode()).hexdigest() for one in encoders]
    stored = [load_cached(cache, key) for key in keys]
    missing = [number for number, found in enumerate(stored) if found is None]
    if missing:
        wanted = [encoders[number].to(device) for number in missing]
        for number, found in zip(missing, _compute(wanted, files, frames, batch_size, workers), strict=True):
            stored[number] = found
            save_cached(cache, keys[number], found)
    results = []
    for kept in stored:
        assert kept is not None
        bad = zip(kept["bad"], kept["reasons"], strict=True)
        skipped = tuple((files.source.id(int(row)), str(reason)) for row, reason in bad)
        results.append(LayerStates(kept["x"], kept["rows"], kept["codes"], skipped))
    return results


def _compute(
    encoders: list[Encoder], files: Files, frames: Frames | None, batch_size: int, workers: int
) -> list[dict[str, np.ndarray]]:
    parts: list[list[np.ndarray]] = [[] for _ in encoders]
    rows: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    skipped: list[tuple[int, str]] = []
    with evaluating(*encoders):
        for chunk in read_nearly_all(files, skipped, batch_size=batch_size, workers=workers, title="layers"):
            picked = None if frames is None else _pick(encoders[0], chunk, files, frames)
            for encoder, found in zip(encoders, parts, strict=True):
                found.append(_encode(encoder, chunk, picked))
            if picked is None:
                rows.append(chunk.rows)
                codes.append(np.full(len(chunk.rows), -1))
            else:
                rows.append(np.repeat(chunk.rows, [len(numbers) for numbers, _ in picked]))
                codes += [given for _, given in picked]
    shared = {
        "rows": np.concatenate(rows),
        "codes": np.concatenate(codes),
        "bad": np.array([row for row, _ in skipped], np.int64),
        "reasons": np.array([reason for _, reason in skipped], np.str_),
    }
    results = []
    for found in parts:
        x = np.concatenate(found)
        if not np.isfinite(x).all():
            raise UserError("The encoder gives states that are not finite: its training diverged; take an earlier one.")
        results.append({"x": x, **shared})
    return results


def _pick(encoder: Encoder, chunk: Chunk, files: Files, frames: Frames) -> list[tuple[np.ndarray, np.ndarray]]:
    picked = []
    for number, row in enumerate(chunk.rows):
        name, record = files.source.id(int(row)), files.source.media(int(row)).record
        valid = int(chunk.lengths[number]) if chunk.lengths is not None else encoder.spec.samples  # type: ignore[union-attr]
        if not isinstance(frames.units, Segments) and name not in frames.units:
            raise UserError(
                f"{frames.units.folder} holds no units of {name}: make them of the data that the probe is trained on."
            )
        picked.append(frames.of(encoder, record, name, valid, files.seed + int(row)))
    return picked


def _encode(encoder: Encoder, chunk: Chunk, picked: list[tuple[np.ndarray, np.ndarray]] | None) -> np.ndarray:
    """float32 [N,L,D]: the mean over each view's real time, or its picked frames."""
    assert chunk.views is not None
    device = next(encoder.parameters()).device
    lengths = None if chunk.lengths is None else chunk.lengths.to(device)
    with torch.autocast(device.type, enabled=False):
        states = states_of(encoder(chunk.views.to(device), lengths=lengths, hidden=True)).mean(3)  # [B,L,T,D]
    if picked is not None:
        few = [one[:, torch.from_numpy(numbers)] for one, (numbers, _) in zip(states.cpu(), picked, strict=True)]
        return torch.cat([one.transpose(0, 1) for one in few]).numpy()
    spec = encoder.spec
    if lengths is None or isinstance(spec, ImageSpec | VideoSpec | AudioSpec):
        return states.mean(2).cpu().numpy()
    count = spec.frames_of(lengths).clamp(1, states.shape[2])
    real = (torch.arange(states.shape[2], device=device) < count[:, None]).to(states.dtype)
    return ((states * real[:, None, :, None]).sum(2) / count[:, None, None]).cpu().numpy()

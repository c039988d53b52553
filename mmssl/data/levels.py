"""How much of a recording is silent and how much of it is clipped, counted while it is decoded in blocks.

torch is not imported: this runs in the children that verify files.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FRAME_SECONDS = 0.02
SILENT = 1e-3
"""Root mean square over the channels of a frame below which it counts as silent: 60 dB below full scale (our choice;
the noise of a quiet room through a good microphone lies there, speech 20 to 50 dB above)."""
HIGHEST = {"ULAW": 32124, "ALAW": 32256, "PCM_U8": 127 << 8, "PCM_S8": 127 << 8}
"""The largest 16-bit sample that a format can hold, where it is not 32767."""


def frame_samples(frame: Any) -> np.ndarray:
    """float32 [samples, channels] in [-1,1] of a decoded frame of PyAV, from any sample format."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float32) / float(-np.iinfo(values.dtype).min)
    return values.astype(np.float32, copy=False)


class Levels:
    """Shares of silent frames of 20 ms and of clipped samples, over blocks float32 [samples, channels] in [-1,1].

    A frame that is cut off by the end counts like a whole one.
    """

    def __init__(self, rate: float, subtype: str = "") -> None:
        self.frame = max(round(rate * FRAME_SECONDS), 1)
        self.full = HIGHEST.get(subtype, 32767) / 32768
        self.frames = self.silent = self.samples = self.clipped = self.not_finite = 0
        self._power = np.zeros(0, np.float64)
        self._high = self._pair = np.zeros((1, 0), bool)
        """[1, channels]: whether the last sample was at full scale, and the one before it too."""

    def add(self, block: np.ndarray) -> None:
        """The next samples. Those that are no numbers are only counted."""
        if not len(block):
            return
        finite = np.isfinite(block)
        if not finite.all():
            self.not_finite += int((~finite).sum())
            block = np.where(finite, block, 0.0)
        power = np.concatenate([self._power, np.square(block, dtype=np.float64).mean(1)])
        whole = len(power) // self.frame * self.frame
        self._count(power[:whole].reshape(-1, self.frame).mean(1))
        self._power = power[whole:]
        self._count_clipped(np.abs(block) >= self.full)
        self.samples += block.size

    def shares(self) -> dict[str, float]:
        """`silence` and `clipping` of everything added; to be asked for once, at the end."""
        if len(self._power):
            self._count(self._power.mean(keepdims=True))
        return {
            "silence": round(self.silent / max(self.frames, 1), 6),
            "clipping": round(self.clipped / max(self.samples, 1), 9),
        }

    def _count(self, power: np.ndarray) -> None:
        self.frames += len(power)
        self.silent += int((power < SILENT**2).sum())

    def _count_clipped(self, high: np.ndarray) -> None:
        """Samples at full scale beside another such one of the same channel, also across blocks: one alone is the peak
        of a recording that was scaled to the full range."""
        if self._high.shape[1] != high.shape[1]:  # the beginning; or a stream that changes its channels
            self._high = self._pair = np.zeros((1, high.shape[1]), bool)
        pairs = np.concatenate([self._high, high[:-1]]) & high
        begun = pairs & ~np.concatenate([self._pair, pairs[:-1]])
        self.clipped += int(pairs.sum()) + int(begun.sum())  # a run of n samples is n - 1 pairs
        self._high, self._pair = high[-1:], pairs[-1:]

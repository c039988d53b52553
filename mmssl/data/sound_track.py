"""The sound of a video, written along with its frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

from mmssl.data.media import Media
from mmssl.data.probe import Damage, decode_on
from mmssl.data.video_writer import VideoWriter

LONGEST_GAP = 10.0
"""Seconds. Where time stamps jump further, or back, the recording was broken off there (transport streams): what comes
next follows at once. To hold what was before for as long as they jump could fill the disk."""
LOST = 0.05
"""Seconds by which sound may be off its time stamps before silence is put in or samples are left out."""
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Hz that are kept; other sound is resampled to the last."""


class SoundTrack:
    """The first sound track from `start` on (seconds of the source), written as far as the picture is.

    It is read through a file of its own, so that neither waits in memory for the other.
    """

    def __init__(self, media: Media, writer: VideoWriter, start: float) -> None:
        self.note: str | None = None
        """What became of it, where it could not be kept."""
        self._writer, self._written = writer, 0
        self._stream: Any = None
        self._blocks: Iterator[np.ndarray] = iter(())
        self._rest = np.zeros((1, 0), np.float32)
        self._file = media.open()
        self._source: Any = av.open(self._file, metadata_errors="ignore")
        if not self._source.streams.audio:
            return
        frames = decode_on(self._source, self._source.streams.audio[0], Damage())
        first = next(frames, None)
        if first is None:
            self.note = "kept without its sound, which cannot be decoded"
            return
        self._rate = first.sample_rate if first.sample_rate in RATES else RATES[-1]
        self._layout = "mono" if first.layout.nb_channels == 1 else "stereo"
        self._stream = writer.add_sound(self._rate, self._layout)
        self._blocks = self._samples(chain((first,), frames), start)

    def _samples(self, frames: Iterable[Any], start: float) -> Iterator[np.ndarray]:
        """float32 [channels,n] from `start` on, silent where the track has gaps."""
        resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        silence = np.zeros((1 if self._layout == "mono" else 2, self._rate), np.float32)
        at = 0
        for frame in frames:
            block = np.concatenate([silence[:, :0], *(part.to_ndarray() for part in resampler.resample(frame))], axis=1)
            lost = 0 if frame.time is None else round((frame.time - start) * self._rate) - at
            if at and not -self._rate < lost < LONGEST_GAP * self._rate:
                start += lost / self._rate  # broken off, as in `in_time`
            elif at == 0 or abs(lost) > LOST * self._rate:
                for begin in range(0, lost, self._rate):  # by the second: nobody may ask for all of it
                    yield silence[:, : lost - begin]
                block = block[:, max(-lost, 0) :]
                at += max(lost, 0)
            at += block.shape[1]
            yield block

    def write_until(self, seconds: Fraction) -> None:
        """Write what is missing to this length, if there is so much."""
        while (wanted := int(seconds * self._rate) - self._written if self._stream else 0) > 0:
            part, self._rest = self._rest[:, :wanted], self._rest[:, wanted:]
            if part.shape[1]:
                frame: Any = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=self._layout)
                frame.sample_rate, frame.pts, frame.time_base = self._rate, self._written, Fraction(1, self._rate)
                self._writer.mux(self._stream, frame)
                self._written += part.shape[1]
            elif (block := next(self._blocks, None)) is None:
                return
            else:
                self._rest = block

    def close(self) -> None:
        self._source.close()
        self._file.close()

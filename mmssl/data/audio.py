"""Read a segment of sound as mono at the rate that is asked for."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import av
import numpy as np
import soundfile
import torch
from torch import Tensor

from mmssl.data.levels import frame_samples
from mmssl.data.media import Media, UnreadableMedia

SEEK_FROM = 10.0
"""Seconds. Compressed sound in containers is decoded from the start up to here, and reached by seeking beyond."""
ZEROS, ROLLOFF = 6, 0.99
"""Zero crossings a side of the windowed sinc, and its cut-off as a share of the lower Nyquist: as torchaudio."""


def read_audio(media: Media, rate: int, start: float = 0.0, seconds: float | None = None) -> Tensor:
    """Mono (mean of channels) float32 [S] in [-1,1] at `rate` Hz, from `start` for `seconds` (None: to the end).

    Sample k of the result is sample round(start*rate) + k of the whole file resampled by `resample`: only the segment
    and the filter's margin are read. A segment that passes the end of the file is shorter. In containers whose time
    stamps are coarse (Matroska: 1 ms), a start beyond 10 s is as exact as they are. Raises UnreadableMedia.
    """
    try:
        if media.record.backend == "pyav":
            return _read_container(media, rate, start, seconds)
        try:
            return _read_soundfile(media, rate, start, seconds)
        except soundfile.LibsndfileError:
            if media.record.backend == "soundfile":  # verified, so another library would only hide the damage
                raise
            return _read_container(media, rate, start, seconds)
    except UnreadableMedia:
        raise
    except Exception as error:
        raise UnreadableMedia(f"{media.name}: the sound cannot be decoded ({error})") from error


def _read_soundfile(media: Media, rate: int, start: float, seconds: float | None) -> Tensor:
    with media.open() as stream, soundfile.SoundFile(stream) as file:
        plan = _Segment(file.samplerate, rate, start, seconds)
        if plan.first >= file.frames:
            return torch.zeros(0)
        file.seek(plan.first)
        sound = file.read(-1 if plan.last is None else plan.last - plan.first, dtype="float32", always_2d=True)
    return plan.finish(torch.from_numpy(sound.mean(axis=1)))


def _read_container(media: Media, rate: int, start: float, seconds: float | None) -> Tensor:
    container: Any
    with media.open() as stream, av.open(stream, metadata_errors="ignore") as container:
        if not container.streams.audio:
            raise UnreadableMedia(f"{media.name}: no sound: no audio stream")
        audio: Any = container.streams.audio[0]
        mono_parts: list[np.ndarray] = []
        plan: _Segment | None = None
        position = 0
        """Sample of the file that the next decoded frame begins with."""
        if start > SEEK_FROM:
            # The frames before the asked one fill the codec's overlap and the resampler's margin.
            container.seek(int((start - 1.0) * av.time_base) + (container.start_time or 0), backward=True)
        for frame in container.decode(audio):
            if plan is None:
                plan = _Segment(frame.sample_rate, rate, start, seconds)
                if start > SEEK_FROM:
                    origin = float((audio.start_time or 0) * audio.time_base)
                    position = round(((frame.time or 0.0) - origin) * frame.sample_rate)
            begin, end = max(plan.first - position, 0), frame.samples
            if plan.last is not None:
                end = min(end, plan.last - position)
            if begin < end:
                mono_parts.append(_mono(frame)[begin:end])
            position += frame.samples
            if plan.last is not None and position >= plan.last:
                break
    if plan is None:
        raise UnreadableMedia(f"{media.name}: its audio stream holds no samples")
    mono = np.concatenate(mono_parts) if mono_parts else np.zeros(0, np.float32)
    return plan.finish(torch.from_numpy(mono)) if len(mono) else torch.zeros(0)


def _mono(frame: Any) -> np.ndarray:
    """float32 [samples], the mean of the channels, from any sample format."""
    mono: np.ndarray = frame_samples(frame).mean(axis=1, dtype=np.float32)
    return mono


class _Segment:
    """Which samples of the file to read so that resampling them gives the asked part of the whole, exactly."""

    def __init__(self, source: int, target: int, start: float, seconds: float | None) -> None:
        self.source, self.target = source, target
        divisor = math.gcd(source, target)
        orig, new = source // divisor, target // divisor
        self.begin = round(start * target)
        self.length = None if seconds is None else round(seconds * target)
        # A segment has the phases of the whole file if it starts at a multiple of `orig` samples.
        margin = 0 if orig == new else _half_width(orig, new)
        self.first = max(0, (self.begin * orig // new - margin) // orig * orig)
        self.skip = self.begin - self.first // orig * new
        self.last = None
        """Exclusive; None: to the end of the file."""
        if self.length is not None:
            self.last = -(-(self.begin + self.length) * orig // new) + margin + 1

    def finish(self, sound: Tensor) -> Tensor:
        """Resample what was read and cut the asked part out."""
        whole = resample(sound, self.source, self.target)
        return whole[self.skip :] if self.length is None else whole[self.skip : self.skip + self.length]


def resample(sound: Tensor, source: int, target: int) -> Tensor:
    """float [S] at `source` Hz -> [ceil(S * target/source)] at `target` Hz: sinc with a Hann window.

    The same sums as torchaudio.functional.resample. That one stores every phase's filter over a whole period of both
    rates, which for rates with no common divisor (11127 -> 16000 Hz) is a kernel of 700 MB; here neighbouring phases
    share a kernel that is just wide enough for them.
    """
    if source == target or len(sound) == 0:
        return sound
    divisor = math.gcd(source, target)
    orig, new = source // divisor, target // divisor
    total = -(-len(sound) * new // orig)
    periods = -(-total // new)
    width = _half_width(orig, new)
    padded = torch.nn.functional.pad(sound, (width, periods * orig + 3 * width + 3 - len(sound)))[None, None]
    blocks = [
        torch.nn.functional.conv1d(padded[:, :, offset:], kernel, stride=orig)[0, :, :periods]
        for offset, kernel in _filters(orig, new)
    ]
    return torch.cat(blocks).T.reshape(-1)[:total]


def _half_width(orig: int, new: int) -> int:
    return math.ceil(ZEROS * orig / (min(orig, new) * ROLLOFF))


@lru_cache(maxsize=32)
def _filters(orig: int, new: int) -> list[tuple[int, Tensor]]:
    """The filters of the `new` output phases of a period, in blocks of neighbours: (first input sample of the block,
    float32 [phases, 1, taps])."""
    cutoff = min(orig, new) * ROLLOFF
    width = _half_width(orig, new)
    together = max(1, 2 * width * new // orig)
    blocks = []
    for begin in range(0, new, together):
        phase = torch.arange(begin, min(begin + together, new), dtype=torch.float64)[:, None]
        offset = begin * orig // new
        span = int(phase[-1]) * orig // new - offset
        tap = torch.arange(offset - width, offset + span + width + 2, dtype=torch.float64)[None]
        time = ((tap / orig - phase / new) * cutoff).clamp(-ZEROS, ZEROS)
        window = torch.cos(time * math.pi / ZEROS / 2) ** 2
        blocks.append((offset, (torch.sinc(time) * window * (cutoff / orig)).float()[:, None]))
    return blocks

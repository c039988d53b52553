"""What an encoder takes: the settings of an adapter, and the source of its evaluation view and preprocessor file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Colour = Literal["rgb", "lightness"]
Stack = Literal["none", "frames", "differences", "sum"]
Samples = TypeVar("Samples", int, Tensor)


@dataclass(frozen=True)
class ImageSpec:
    modality: ClassVar[str] = "image"
    size: int = 224
    """Side of the square view, in pixels."""
    patch: int = 16
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    colour: Colour = "rgb"
    """What the encoder is shown: 'lightness' is L / 100 of CIE Lab, in one channel for each value of `mean`."""


@dataclass(frozen=True)
class VideoSpec:
    modality: ClassVar[str] = "video"
    size: int = 224
    frames: int = 16
    stride: int = 4
    """Frames of the file between two frames of the clip; evaluation samples clips with it."""
    patch: int = 16
    tubelet: int = 2
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    colour: Colour = "rgb"
    """What the encoder is shown: 'lightness' is L / 100 of CIE Lab, in one channel for each value of `mean`."""
    stack: Stack = "none"
    """A clip as one picture of many channels: its frames, the differences of neighbours, or the sum of those. The
    encoder then knows no tubelets and may have 2-D convolutions: see `StackedFrames`."""


@dataclass(frozen=True)
class AudioSpec:
    modality: ClassVar[str] = "audio"
    rate: int = 16000
    """Hz of the waveform; files are resampled to it once."""
    mels: int = 128
    frames: int = 1024
    """Spectrogram frames of a view, one each 10 ms (25 ms windows)."""
    patch: int = 16
    stride: int = 16
    """Distance of two patches, in mels and in frames; below `patch` they overlap (AST uses 10)."""
    mean: float = -4.2677393
    """Of log-mel values over AudioSet; the input becomes (x - mean) / (2 std), as ASTFeatureExtractor has it."""
    std: float = 4.5689974
    front: Literal["kaldi", "cola", "mel"] = "kaldi"
    """How sound becomes log-mel values: 'kaldi' as ASTFeatureExtractor (`LogMel`), 'cola' as COLA (`LogMagnitude`),
    'mel' as torchaudio with librosa's bands (`LogMelPower`)."""

    @property
    def samples(self) -> int:
        """Samples of a waveform that give exactly `frames` frames (25 ms windows each 10 ms, snipped edges)."""
        return round(0.025 * self.rate) + (self.frames - 1) * round(0.010 * self.rate)


@dataclass(frozen=True)
class WaveformSpec:
    """Sound as HuBERT and WavLM take it. The convolutions' shape is that of every released one."""

    modality: ClassVar[str] = "audio"
    rate: int = 16000
    """Hz of the waveform; files are resampled to it once."""
    seconds: float = 10.0
    """The nominal view: evaluation shows the middle of a longer recording, and the whole of a shorter one."""
    normalise: bool = False
    """Whether each recording is brought to zero mean and unit variance; LARGE models take it so."""
    norm: Literal["group", "layer"] = "group"
    """After the first convolution over time (BASE), or after each over its channels (LARGE)."""
    channels: tuple[int, ...] = (512,) * 7
    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    bias: bool = False
    """Of the convolutions."""

    @property
    def samples(self) -> int:
        """Samples of the nominal view."""
        return round(self.seconds * self.rate)

    @property
    def hop(self) -> int:
        """Samples between two frames: 320, which is 20 ms."""
        return math.prod(self.strides)

    @property
    def window(self) -> int:
        """Samples that one frame sees: 400, which is 25 ms."""
        steps = [math.prod(self.strides[:layer]) for layer in range(len(self.strides))]
        return 1 + sum((kernel - 1) * step for kernel, step in zip(self.kernels, steps, strict=True))

    def frames_of(self, samples: Samples) -> Samples:
        """Frames of `samples` samples, (samples - 400) // 320 + 1 for the usual shape; 0 or less where there is none.

        The floors of the layers come to this one, since each divides what the one before left.
        """
        return (samples - self.window) // self.hop + 1


Spec = ImageSpec | VideoSpec | AudioSpec | WaveformSpec
SoundSpec = AudioSpec | WaveformSpec
"""What takes waveforms: `.rate` and `.samples` say which."""

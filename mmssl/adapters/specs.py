"""What an encoder takes: the settings of an adapter, and the source of its evaluation view and preprocessor file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Colour = Literal["rgb", "lightness"]
Stack = Literal["none", "frames", "differences", "sum"]


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
    front: Literal["kaldi", "cola"] = "kaldi"
    """How sound becomes log-mel values: 'kaldi' as ASTFeatureExtractor (`LogMel`), 'cola' as COLA (`LogMagnitude`)."""

    @property
    def samples(self) -> int:
        """Samples of a waveform that give exactly `frames` frames (25 ms windows each 10 ms, snipped edges)."""
        return round(0.025 * self.rate) + (self.frames - 1) * round(0.010 * self.rate)


Spec = ImageSpec | VideoSpec | AudioSpec

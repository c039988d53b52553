"""The model card that stands beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.adapters.specs import AudioSpec, Spec, WaveformSpec
from mmssl.encoders.base import Encoder
from mmssl.encoders.layouts import VIDEOMAE, Layout

INPUTS = {
    "image": "images, short side resized (bicubic) and centre cropped to {size} x {size}",
    "video": "clips of {frames} frames, {stride} frames apart, {size} x {size}",
    "audio": "recordings at {rate} Hz as {mels} log-mel values x {frames} frames",
}
WAVEFORMS = "recordings at {rate} Hz, each {scale}, of at least {window} samples"
MAGNITUDES = (
    "No feature extractor of transformers makes its input, [B, 1, mel bands, frames]: divide the waveform by its L2 "
    "norm; 25 ms windows each 10 ms without padding, periodic Hann, magnitudes of a Fourier transform of the power of "
    "two at or above two windows; HTK mel bands from 60 to 7800 Hz, triangular in mel, not normalised, the bin at 0 Hz "
    "in none; clip to [1e-5, 1e8], natural logarithm, minus {mean:g}, over {scale:g}. mmssl.Encoder does all of it."
)
POOLED = {
    "mean": "the mean over patch tokens (without prefix tokens), or over the feature map of a convolutional net",
    "cls": "the first token",
    "prefix": "the mean of the prefix tokens",
    "max": "the maximum over the feature map",
    "head": "the embedding that the head makes of the trunk's features",
}


def model_card(encoder: Encoder, layout: Layout, facts: Mapping[str, Any]) -> str:
    """README.md with what the encoder takes, how to load it, and the facts of its training."""
    spec = encoder.spec
    parameters = sum(p.numel() for p in encoder.parameters())
    if isinstance(spec, WaveformSpec):
        scale = "at zero mean and unit variance" if spec.normalise else "as it is"
        takes = WAVEFORMS.format(rate=spec.rate, window=spec.window, scale=scale)
    else:
        takes = INPUTS[spec.modality].format(**vars(spec))
    if layout.reason is None:
        library = "transformers"
        load = "from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(folder)"
    else:
        library = "mmssl"
        load = "import mmssl\n\nmodel = mmssl.Encoder.from_pretrained(folder)"
    lines = [
        "---",
        f"library_name: {library}",
        f"tags: [mmssl, self-supervised, {spec.modality}]",
        "---",
        f"# A self-supervised {spec.modality} encoder",
        "",
        f"- Model: {layout.architecture}, {parameters / 1e6:.1f} million parameters, width {encoder.width}",
        f"- Takes: {takes}",
        f"- Features: {POOLED[encoder.pooling]}",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "```python",
        load,
        "```",
    ]
    if layout.reason is not None:
        lines += ["", f"transformers cannot load it: {layout.reason}."]
    lines += input_note(spec)
    if layout is VIDEOMAE:
        lines += [
            "",
            "Do not use transformers 5.6 to 5.17: they load the query and value biases of every VideoMAE as zeros.",
        ]
    return "\n".join(lines) + "\n"


def input_note(spec: Spec) -> list[str]:
    """How the input is made that no processor of transformers makes; nothing for others."""
    if not (isinstance(spec, AudioSpec) and spec.front == "cola"):
        return []
    return ["", MAGNITUDES.format(mean=spec.mean, scale=2 * spec.std)]

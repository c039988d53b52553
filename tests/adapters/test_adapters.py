"""Claim: adapters make the pixels, patches and projections of transformers and torchaudio.

Checked against ASTFeatureExtractor, torchaudio.compliance.kaldi.fbank, ViTMAE's own targets, torchvision's normalize
and torch's convolutions.
"""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as V
import transformers
from torch.testing import assert_close
from torchaudio.compliance import kaldi

from mmssl.adapters.base import Adapter
from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import LogMel, SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.errors import UserError

IMAGE = ImageSpec(size=12, patch=4)
VIDEO = VideoSpec(size=12, frames=6, patch=4, tubelet=2)
AUDIO = AudioSpec(mels=24, frames=48, patch=8, stride=8)


def cases() -> list[tuple[Adapter, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        (ImagePatches(IMAGE, 16), torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8)),
        (VideoTubelets(VIDEO, 16), torch.randint(0, 256, (2, 6, 3, 12, 12), dtype=torch.uint8)),
        (SpectrogramPatches(AUDIO, 16), torch.randn(2, 8000) * 0.1),
    ]


@pytest.mark.parametrize("case", range(3), ids=["image", "video", "audio"])
def test_tokens_equal_the_convolution_and_patches_come_back(case: int) -> None:
    adapter, view = cases()[case]
    pixels = adapter.pixels(view)
    tokens = adapter(view)
    assert tokens.grid == adapter.grid == {0: (1, 3, 3), 1: (3, 3, 3), 2: (1, 3, 6)}[case]
    convolved = adapter.projection(pixels if case == 1 else pixels[:, :, 0]).flatten(2).transpose(1, 2)
    assert_close(tokens.x, convolved, rtol=1e-5, atol=1e-5)
    patches = adapter.patches(pixels)
    assert patches.shape == (2, tokens.x.shape[1], adapter.values // pixels.shape[1], pixels.shape[1])
    assert torch.equal(adapter.unpatches(patches, tokens.grid), pixels)
    keep = torch.tensor([[5, 0, 3], [1, 8, 2]])
    expected = tokens.x.gather(1, keep[..., None].expand(-1, -1, 16))
    assert_close(adapter(view, keep).x, expected, rtol=1e-5, atol=1e-5)


def test_pixels_are_torchvisions_and_uint8_equals_float() -> None:
    adapter, view = cases()[0]
    expected = V.normalize(V.to_dtype(view, torch.float32, scale=True), list(IMAGE.mean), list(IMAGE.std))
    assert_close(adapter.pixels(view)[:, :, 0], expected, rtol=1e-5, atol=1e-6)
    assert_close(adapter.pixels(view.float() / 255), adapter.pixels(view), rtol=1e-5, atol=1e-6)
    assert_close(adapter.denormalise(adapter.pixels(view))[:, :, 0], view / 255, rtol=0, atol=1e-6)


def test_values_in_a_patch_are_ordered_as_in_vitmae() -> None:
    adapter, view = cases()[0]
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=12, patch_size=4
    )
    model = transformers.ViTMAEForPreTraining(config)
    pixels = adapter.pixels(view)
    assert torch.equal(adapter.patches(pixels).flatten(2), model.patchify(pixels[:, :, 0]))


@pytest.mark.parametrize(("rate", "mels"), [(8000, 40), (11025, 64), (16000, 128), (44100, 128)])
def test_fbank_is_kaldis_at_any_rate(rate: int, mels: int) -> None:
    spec = AudioSpec(rate=rate, mels=mels, frames=50)
    waves = torch.randn(3, spec.samples) * 0.2 + 0.05
    waves[2] = 0  # digital silence: the logarithm must not be infinite
    expected = torch.stack(
        [
            kaldi.fbank(wave[None], htk_compat=True, use_energy=False, window_type="hanning", num_mel_bins=mels,
                        sample_frequency=rate, dither=0.0, frame_shift=10)
            for wave in waves
        ]
    )  # fmt: skip
    ours = LogMel(spec).fbank(waves)
    assert ours.shape == (3, 50, mels)
    assert_close(ours, expected[:, :50], rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [400, 5000, 16000, 30000])
def test_log_mel_equals_ast_feature_extractor_for_short_and_long_recordings(samples: int) -> None:
    spec = AudioSpec(mels=64, frames=96, mean=-5.0, std=3.0)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=64, max_length=96, mean=-5.0, std=3.0)
    waves = torch.randn(2, samples) * 0.1
    expected = extractor(list(waves.numpy()), sampling_rate=16000, return_tensors="pt").input_values
    pixels = LogMel(spec)(waves)
    assert pixels.shape == (2, 1, 1, 64, 96)
    assert_close(pixels[:, 0, 0].mT, expected, rtol=0, atol=1e-5)
    assert_close(LogMel(spec).denormalise(pixels)[0, 0, 0, :, 0], LogMel(spec).fbank(waves)[0, 0], rtol=0, atol=1e-5)


def test_log_mel_stays_fp32_under_autocast() -> None:
    front, waves = LogMel(AUDIO), torch.randn(2, 8000) * 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = front(waves)
    assert torch.equal(inside, front(waves))


def test_spec_samples_fill_the_view_exactly() -> None:
    for rate in (8000, 11025, 16000, 22050, 44100, 48000):
        spec = AudioSpec(rate=rate, mels=32, frames=20)
        waves = torch.randn(1, spec.samples)
        assert LogMel(spec).fbank(waves).shape[1] == 20
        assert LogMel(spec).fbank(waves[:, : spec.samples - spec.rate // 100]).shape[1] == 19


def test_overlapping_patches_are_read_but_not_put_back() -> None:
    adapter = SpectrogramPatches(AudioSpec(mels=24, frames=48, patch=8, stride=5), 16)
    pixels = adapter.pixels(torch.randn(1, 8000))
    assert adapter.grid == (1, 4, 9)
    assert adapter.patches(pixels).shape == (1, 36, 64, 1)
    with pytest.raises(UserError, match="overlap"):
        adapter.unpatches(adapter.patches(pixels))


@pytest.mark.parametrize(
    ("adapter", "shape", "told"),
    [
        (ImagePatches(IMAGE, 8), (1, 3, 12, 14), "14 columns"),
        (ImagePatches(IMAGE, 8), (1, 3, 2, 12), "2 rows"),
        (VideoTubelets(VIDEO, 8), (1, 5, 3, 12, 12), "5 frames"),
        (SpectrogramPatches(AUDIO, 8), (1, 399), "399 samples"),
    ],
)
def test_views_that_do_not_fit_are_refused_with_the_number(adapter: Adapter, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        adapter(torch.rand(shape))

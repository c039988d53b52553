"""Claim: ConvEncoder is torchvision's ResNet without the classifier, on pictures and on log-mel spectrograms."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.testing import assert_close

from mmssl.adapters.image import ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import LogMel
from mmssl.adapters.video import VideoPixels
from mmssl.encoders.conv import ConvEncoder
from mmssl.errors import UserError


def test_features_are_torchvisions() -> None:
    encoder = ConvEncoder(ImagePixels(ImageSpec(size=64)), "resnet18").eval()
    net = torchvision.models.resnet18()
    net.fc = torch.nn.Identity()  # type: ignore[assignment]
    net.load_state_dict(encoder.state_dict())
    view = torch.rand(2, 3, 64, 64)
    encoded = encoder(view)
    assert_close(encoded.pooled, net.eval()(encoder.front(view)[:, :, 0]), rtol=1e-5, atol=1e-5)
    assert encoded.feature_map is not None
    assert encoded.feature_map.shape == (2, 512, 2, 2)
    assert encoder.width == 512
    assert encoded.tokens is None


def test_cifar_stem_keeps_the_resolution_and_the_parameter_count() -> None:
    encoder = ConvEncoder(ImagePixels(ImageSpec(size=32)), "resnet18", "cifar")
    encoded = encoder(torch.rand(2, 3, 32, 32), hidden=True)
    assert encoded.hidden is not None
    assert [state.shape[-1] for state in encoded.hidden] == [32, 32, 16, 8, 4]
    # Published for the CIFAR ResNet-18 without classifier: 11.17 million.
    assert sum(p.numel() for p in encoder.parameters()) == 11_168_832


def test_spectrograms_have_one_channel() -> None:
    encoder = ConvEncoder(LogMel(AudioSpec(mels=64, frames=96)))
    encoded = encoder(torch.randn(2, 16000))
    assert encoded.feature_map is not None
    assert encoded.feature_map.shape == (2, 512, 2, 3)


def test_what_it_cannot_do_is_refused() -> None:
    front = ImagePixels(ImageSpec())
    with pytest.raises(UserError, match="resnet20"):
        ConvEncoder(front, "resnet20")
    with pytest.raises(UserError, match="choose 'imagenet' or 'cifar'"):
        ConvEncoder(front, "resnet18", "tiny")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="ViT for clips"):
        ConvEncoder(VideoPixels(VideoSpec()))

"""Contrastive objectives: InfoNCE at points whose value is known, what is refused, and what must not depend on autocast
or order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.base import TokenEncoder
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.contrastive import Contrastive
from mmssl.objectives.info_nce import info_nce
from mmssl.types import Batch


def image_encoder() -> TokenEncoder:
    return ViT(ImagePatches(ImageSpec(size=16, patch=8), 32), ViTSettings(width=32, depth=1, heads=2))


def images(batch: int = 4) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 16, 16), dtype=torch.uint8)


def pair(first: Tensor, second: Tensor) -> Batch:
    return Batch({"a": first, "b": second}, torch.arange(len(first)))


@pytest.mark.parametrize("negatives", [1, 15, 4096])
def test_indistinguishable_candidates_give_log_n(negatives: int) -> None:
    """With equal similarities the loss is ln(1 + negatives): MoCo's published check is 8.32 = ln 4097."""
    ones = torch.ones(3, 4)
    result = info_nce(ones, ones, torch.ones(negatives, 4), temperature=0.1)
    assert result.loss.item() == pytest.approx(math.log(1 + negatives), rel=1e-5)
    assert result.accuracy.item() == 0, "a tie is no hit"


def test_simclr_of_a_collapsed_encoder_is_log_of_all_other_views() -> None:
    objective = Contrastive(image_encoder(), hidden=32, out=16, norm="none")
    nn.init.zeros_(objective.get_parameter("projector.2.weight"))
    nn.init.ones_(objective.get_parameter("projector.2.bias"))
    output = objective(pair(images(6), images(6)))
    assert output.loss.item() == pytest.approx(math.log(11), rel=1e-5)
    assert output.count.item() == 12
    assert output.metrics["similarity"].item() == pytest.approx(1)


def test_loss_does_not_depend_on_the_order_of_samples_or_views() -> None:
    torch.manual_seed(0)
    objective = Contrastive(image_encoder(), hidden=32, out=16, norm="none")
    first, second = images(6), images(6)
    expected = objective(pair(first, second)).loss
    order = torch.randperm(6)
    torch.testing.assert_close(objective(pair(first[order], second[order])).loss, expected)
    torch.testing.assert_close(objective(pair(second, first)).loss, expected)


def test_loss_is_computed_in_fp32_under_autocast() -> None:
    """Similarities near 1 over a temperature of 0.05: bf16 products would be off by several percent."""
    torch.manual_seed(0)
    anchors = nn.functional.normalize(torch.randn(8, 64) + 3, dim=1)
    exact = info_nce(anchors, anchors.roll(1, 0), anchors, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = info_nce(anchors, anchors.roll(1, 0), anchors, temperature=0.05)
    assert under.loss.dtype == torch.float32
    assert torch.equal(under.loss, exact.loss)


def test_training_separates_pairs_that_can_be_separated() -> None:
    torch.manual_seed(0)
    objective = Contrastive(image_encoder(), hidden=32, out=16, norm="none", temperature=0.5)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
    batch = pair(view := images(8), (view.float() / 255 * 0.9).mul(255).to(torch.uint8))
    losses = []
    for _ in range(30):
        output = objective(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert output.metrics["accuracy"].item() == 1


def test_a_lonely_sample_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 samples"):
        Contrastive(image_encoder())(pair(images(1), images(1)))


def test_pictures_show_the_two_views_of_every_modality() -> None:
    clip, sound = VideoSpec(size=16, frames=4, patch=8), AudioSpec(mels=16, frames=32, patch=8, stride=8)
    settings = ViTSettings(width=32, depth=1, heads=2)
    wide = ViTSettings(width=32, depth=1, heads=2, positions="sincos1d")
    cases = {
        "image": (image_encoder(), images(6), (3, 16, 16)),
        "conv": (ConvEncoder(ImagePixels(ImageSpec(size=16))), images(6), (3, 16, 16)),
        "clip": (ViT(VideoTubelets(clip, 32), wide), torch.rand(6, 4, 3, 16, 16), (4, 3, 16, 16)),
        "spectrogram": (ViT(SpectrogramPatches(sound, 32), settings), torch.randn(6, sound.samples), (16, 32)),
    }
    for kind, (encoder, view, shape) in cases.items():
        picture = Contrastive(encoder, hidden=32, out=16)(pair(view, view.flip(0)), what="pictures")["views"]
        assert picture.kind == kind.replace("conv", "image")
        assert picture.columns == ("a", "b")
        assert len(picture.rows) == 4
        assert all(cell.shape == shape for row in picture.rows for cell in row)
        if view.dtype == torch.uint8:
            assert (picture.rows[0][0].int() - view[0].int()).abs().max() <= 1
            assert (picture.rows[0][1].int() - view[5].int()).abs().max() <= 1

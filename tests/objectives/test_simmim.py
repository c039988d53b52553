"""SimMIM on images, clips and spectrograms: the loss as the paper divides it against NumPy float64, in pixel space, and
what the mask token must hide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.masks import CoarseMask
from mmssl.objectives.simmim import SimMIM
from mmssl.types import Batch


def image_simmim() -> SimMIM:
    encoder = ViT(ImagePatches(ImageSpec(size=32, patch=4), 32), ViTSettings(width=32, depth=2, heads=4))
    return SimMIM(encoder, mask=CoarseMask(0.6, (1, 2, 2)))


def video_simmim() -> SimMIM:
    settings = ViTSettings(width=32, depth=2, heads=4, prefix=0, positions="sincos1d", qkv_bias="qv")
    encoder = ViT(VideoTubelets(VideoSpec(size=32, frames=4, patch=8), 32), settings)
    return SimMIM(encoder, mask=CoarseMask(0.6, (2, 2, 2)))


def audio_simmim() -> SimMIM:
    spec = AudioSpec(mels=32, frames=64, patch=8, stride=8)
    encoder = ViT(SpectrogramPatches(spec, 32), ViTSettings(width=32, depth=2, heads=4, prefix=2))
    return SimMIM(encoder, mask=CoarseMask(0.6, (1, 2, 2)))


ALL = [image_simmim, video_simmim, audio_simmim]


def a_batch(objective: SimMIM, batch: int = 3) -> Batch:
    spec = objective.encoder.spec
    if isinstance(spec, AudioSpec):
        view = torch.randn(batch, spec.samples) * 0.1
    else:
        shape = (spec.frames, 3, 32, 32) if isinstance(spec, VideoSpec) else (3, 32, 32)
        view = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
    return Batch({"view": view}, torch.arange(batch), {"mask": torch.rand(batch, objective.noise["mask"])})


def test_loss_equals_float64_numpy_in_pixel_space() -> None:
    """Patches, mask token, head and loss by hand: sum of |x - y| * mask over (sum of mask + 1e-5), over 3 channels."""
    torch.manual_seed(0)
    objective = image_simmim().double()
    encoder = objective.encoder
    assert isinstance(encoder, ViT)
    assert isinstance(encoder.spec, ImageSpec)
    assert encoder.prefix is not None
    assert encoder.pos is not None
    batch = a_batch(objective)
    actual = objective(batch).loss.item()

    weights = {name: p.detach().numpy() for name, p in objective.named_parameters()}
    spec = encoder.spec
    images = batch.views["view"].numpy() / 255.0
    images = (images - np.reshape(spec.mean, (3, 1, 1))) / np.reshape(spec.std, (3, 1, 1))
    units = np.argsort(batch.noise["mask"].numpy(), axis=1)[:, :10]  # ceil(0.6 * 16) of 4 x 4 units
    coarse = np.zeros((3, 16))
    for sample in range(3):
        coarse[sample, units[sample]] = 1
    pixels = np.kron(coarse.reshape(3, 4, 4), np.ones((8, 8)))  # units of 8 pixels, twice the patch
    tokens_hidden = pixels[:, ::4, ::4].reshape(3, 64, 1)
    patches = (
        images.reshape(3, 3, 8, 4, 8, 4).transpose(0, 2, 4, 1, 3, 5).reshape(3, 64, -1)
    )  # (c,h,w) as a convolution
    x = patches @ weights["encoder.adapter.projection.weight"].reshape(32, -1).T
    x = x + weights["encoder.adapter.projection.bias"]
    x = x * (1 - tokens_hidden) + weights["mask_token"] * tokens_hidden + encoder.pos.numpy()
    hidden = torch.cat([encoder.prefix.expand(3, -1, -1), torch.from_numpy(x)], 1)
    for block in encoder.blocks:
        hidden = block(hidden)
    tokens = encoder.norm(hidden)[:, 1:].detach().numpy()
    values = tokens @ weights["head.weight"].T + weights["head.bias"]  # (h,w,c)
    predicted = values.reshape(3, 8, 8, 4, 4, 3).transpose(0, 5, 1, 3, 2, 4).reshape(3, 3, 32, 32)
    expected = (np.abs(images - predicted) * pixels[:, None]).sum() / (pixels.sum() + 1e-5) / 3
    assert actual == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", ALL)
def test_hidden_pixels_cannot_reach_the_prediction(make: Callable[[], SimMIM]) -> None:
    torch.manual_seed(0)
    objective = make()
    batch = a_batch(objective)
    encoder = objective.require_tokens()
    mask = objective.mask(batch.noise["mask"], objective.grid)
    patches = encoder.adapter.patches(encoder.adapter.pixels(batch.views["view"]))
    noisy = torch.where(mask.boolean()[:, :, None, None], torch.randn_like(patches), patches)

    def predict(patches: Tensor) -> Tensor:
        front = encoder.adapter.front
        given = encoder.adapter.unpatches(patches, objective.grid)
        front.raw = lambda view, lengths=None: given  # type: ignore[method-assign]
        front.normalise = lambda raw, channel: raw  # type: ignore[method-assign]
        return objective._predict(batch.views["view"], mask, None)

    assert (noisy - patches).abs().max() > 0.5
    torch.testing.assert_close(predict(patches), predict(noisy), rtol=0, atol=0)


@pytest.mark.parametrize("make", ALL)
def test_every_parameter_gets_a_gradient_and_counts_are_masked_tokens(make: Callable[[], SimMIM]) -> None:
    torch.manual_seed(0)
    objective = make()
    batch = a_batch(objective)
    output = objective(batch)
    output.loss.backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []
    assert output.count.item() == objective.mask(batch.noise["mask"], objective.grid).masked.numel()


@pytest.mark.parametrize("make", ALL)
def test_a_head_of_zeros_leaves_the_mean_size_of_hidden_pixels(make: Callable[[], SimMIM]) -> None:
    torch.manual_seed(0)
    objective = make()
    nn.init.zeros_(objective.head.weight)
    batch = a_batch(objective)
    adapter = objective.require_tokens().adapter
    hidden = objective.mask(batch.noise["mask"], objective.grid).boolean()
    expected = adapter.patches(adapter.pixels(batch.views["view"]))[hidden].abs().mean()
    assert objective(batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_constant_picture_is_learned_and_the_loss_is_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    objective = video_simmim()
    batch = a_batch(objective)
    exact = objective(batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    grey = Batch({"view": torch.full_like(batch.views["view"], 200)}, batch.index, batch.noise)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        objective(grey).loss.backward()
        optimizer.step()
    assert objective(grey).loss.item() < 0.2 < objective(batch).loss.item()


@pytest.mark.parametrize("make", ALL)
def test_pictures_show_original_masked_and_reconstruction(make: Callable[[], SimMIM]) -> None:
    torch.manual_seed(0)
    objective = make()
    batch = a_batch(objective)
    adapter = objective.require_tokens().adapter
    patches = adapter.patches(adapter.pixels(batch.views["view"]))
    mask = objective.mask(batch.noise["mask"], objective.grid)
    perfect = torch.stack([patches[sample, mask.masked[sample]] for sample in range(3)]).flatten(2)
    objective._predict = lambda view, mask, lengths: perfect  # type: ignore[method-assign]
    picture = objective(batch, what="pictures")["reconstruction"]
    original, masked, filled = (torch.stack(column).float() for column in zip(*picture.rows, strict=True))
    torch.testing.assert_close(filled, original)
    share = (masked.isnan() if picture.kind == "spectrogram" else masked != original).float().mean().item()
    assert share == pytest.approx(mask.masked.shape[1] / patches.shape[1], abs=0.02)


def test_what_cannot_work_is_refused() -> None:
    mask = CoarseMask(0.6, (1, 2, 2))
    with pytest.raises(UserError, match="choose a ViT"):
        SimMIM(ConvEncoder(ImagePixels(ImageSpec(size=32))), mask=mask)
    settings = ViTSettings(width=32, depth=1, heads=4)
    with pytest.raises(UserError, match="overlap"):
        SimMIM(ViT(SpectrogramPatches(AudioSpec(mels=32, frames=64, patch=8, stride=4), 32), settings), mask=mask)
    with pytest.raises(UserError, match=r"units of \(1, 3, 3\) tokens do not divide the grid \(1, 8, 8\)"):
        SimMIM(image_simmim().encoder, mask=CoarseMask(0.6, (1, 3, 3)))
    objective = image_simmim()
    batch = a_batch(objective)
    with pytest.raises(UserError, match="token grid"):
        objective(Batch({"view": torch.zeros(3, 3, 40, 40)}, batch.index, batch.noise))

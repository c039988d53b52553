"""Masked autoencoding: values known beforehand (facts of the papers), VideoMAE's losses against NumPy float64, and that
hidden pixels stay hidden."""

from __future__ import annotations

from typing import Any

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
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder, Target, patch_statistics, reconstruction_loss
from mmssl.objectives.masks import RandomMask, RunningCellMask, TubeMask
from mmssl.types import Batch


def normalised(patches: Tensor, target: Target, unit: Tensor | None = None) -> Tensor:
    centre, scale = patch_statistics(patches, target, unit)
    return (patches - centre) / scale


def image_objective(**options: Any) -> MaskedAutoencoder:
    spec = ImageSpec(size=32, patch=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    encoder = ViT(ImagePatches(spec, 32), ViTSettings(width=32, depth=2, heads=4))
    return MaskedAutoencoder(
        encoder, mask=RandomMask(0.75), decoder_width=32, decoder_depth=1, decoder_heads=2, **options
    )


def video_objective(**options: Any) -> MaskedAutoencoder:
    settings = ViTSettings(width=32, depth=2, heads=4, prefix=0, positions="sincos1d", qkv_bias="qv")
    encoder = ViT(VideoTubelets(VideoSpec(size=32, frames=4, patch=8), 32), settings)
    return MaskedAutoencoder(
        encoder, mask=TubeMask(0.75), target="patch_norm_channel", decoder_width=32, decoder_depth=1, decoder_heads=2,
        decoder_bias="qv", projection_bias=False, **options,
    )  # fmt: skip


def audio_objective() -> MaskedAutoencoder:
    spec = AudioSpec(mels=32, frames=64, patch=8, stride=8)
    encoder = ViT(SpectrogramPatches(spec, 32), ViTSettings(width=32, depth=1, heads=4))
    return MaskedAutoencoder(encoder, mask=RandomMask(0.75), decoder_width=32, decoder_depth=1, decoder_heads=2)


def media(objective: MaskedAutoencoder, batch: int = 3) -> Tensor:
    spec = objective.encoder.spec
    if isinstance(spec, AudioSpec):
        return torch.randn(batch, spec.samples) * 0.1
    shape = (spec.frames, 3, 32, 32) if isinstance(spec, VideoSpec) else (3, 32, 32)
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)


def a_batch(objective: MaskedAutoencoder, view: Tensor) -> Batch:
    noise = {name: torch.rand(len(view), k) for name, k in objective.noise.items()}
    return Batch(views={"view": view}, index=torch.arange(len(view)), noise=noise)


def test_target_of_a_constant_patch_is_zero() -> None:
    patches = torch.full((1, 2, 8, 3), 0.5)
    for target in ("patch_norm_joint", "patch_norm_channel"):
        assert not normalised(patches, target).any()


def test_targets_have_zero_mean_and_unit_unbiased_variance_over_what_the_paper_says() -> None:
    torch.manual_seed(0)
    patches = torch.randn(2, 5, 64, 3) * torch.tensor([0.5, 1.0, 2.0]) + torch.tensor([0.0, 1.0, -1.0])
    joint, channel = normalised(patches, "patch_norm_joint"), normalised(patches, "patch_norm_channel")
    assert joint.mean((2, 3)).abs().max() < 1e-5
    assert (joint.flatten(2).var(2, correction=1) - 1).abs().max() < 1e-4
    assert channel.mean(2).abs().max() < 1e-5
    assert (channel.var(2, correction=1) - 1).abs().max() < 1e-4
    assert (joint - channel).abs().max() > 0.1, "on coloured patches the two differ"


def test_channel_scale_is_in_units_of_unnormalised_pixels() -> None:
    """(x - mean) / (std + 1e-6) on [0,1] pixels (VideoMAE), from normalised ones; on flat patches the 1e-6 counts."""
    torch.manual_seed(0)
    unit = torch.tensor([0.229, 0.224, 0.225])
    plain = 0.5 + torch.rand(1, 4, 32, 3, dtype=torch.float64) * 1e-5
    expected = (plain - plain.mean(2, keepdim=True)) / (plain.std(2, keepdim=True) + 1e-6)
    torch.testing.assert_close(
        normalised((plain - 0.45) / unit, "patch_norm_channel", unit), expected, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dual", [False, True])
def test_videomae_loss_equals_float64_numpy(dual: bool) -> None:
    """Cubes of 2 x 8 x 8 pixels in [0,1], each channel normalised by itself, values in the order (t,h,w,c); the mean
    over hidden cubes, for V2 (`dual`) over those of them that the decoder sees."""
    torch.manual_seed(0)
    objective = video_objective(decoder_mask=RunningCellMask(0.5) if dual else None)
    batch = a_batch(objective, media(objective))
    prediction = torch.randn(3, 32, 2 * 8 * 8 * 3)

    def fixed(view: Tensor, visible: Tensor, decoded: Tensor, lengths: Tensor | None = None) -> Tensor:
        return prediction.gather(1, decoded[..., None].expand(-1, -1, prediction.shape[2]))

    objective._predict = fixed  # type: ignore[method-assign]
    output = objective(batch)
    cubes = (batch.views["view"].numpy() / 255.0).reshape(3, 2, 2, 3, 4, 8, 4, 8).transpose(0, 1, 4, 6, 2, 5, 7, 3)
    cubes = cubes.reshape(3, 32, 128, 3)
    target = (cubes - cubes.mean(2, keepdims=True)) / (cubes.std(2, ddof=1, keepdims=True) + 1e-6)
    error = ((prediction.double().numpy() - target.reshape(3, 32, -1)) ** 2).mean(2)
    tubes = np.zeros((3, 16), bool)
    for sample, order in enumerate(np.argsort(batch.noise["mask"].numpy(), 1)):
        tubes[sample, order[:12]] = True  # 12 of 16 places hidden, at both times
    counts = np.tile(tubes, (1, 2))
    if dual:
        for sample, draw in enumerate(batch.noise["decoder_mask"].numpy()[:, 0]):
            ring = np.roll([True, True, False, False], -int(draw * 4))  # skipped, turned by one place every time
            cells = [np.tile(np.roll(ring, -time).reshape(2, 2), (2, 2)) for time in range(2)]
            counts[sample] &= ~np.stack(cells).ravel()
    assert output.count.item() == counts.sum()
    assert output.loss.item() == pytest.approx((error * counts).sum() / counts.sum(), rel=1e-5)


@pytest.mark.parametrize("make", [image_objective, video_objective])
def test_loss_does_not_see_brightness_or_contrast_of_hidden_patches(make: Any) -> None:
    """Changing brightness and contrast of each hidden patch changes neither prediction nor loss."""
    torch.manual_seed(0)
    objective = make()
    adapter = objective.require_tokens().adapter
    view = torch.rand(media(objective).shape) * 0.5 + 0.1
    batch = a_batch(objective, view)
    mask = objective.mask(batch.noise["mask"], objective.grid).boolean()
    pixels = view.transpose(1, 2) if view.ndim == 5 else view.unsqueeze(2)
    patches = adapter.patches(pixels)
    change = patches * (0.5 + torch.rand(*patches.shape[:2], 1, 1)) + 0.1 * torch.rand(*patches.shape[:2], 1, 1)
    changed = adapter.unpatches(torch.where(mask[:, :, None, None], change, patches), objective.grid)
    changed = changed.transpose(1, 2) if view.ndim == 5 else changed.squeeze(2)
    assert (changed - view).abs().max() > 0.05
    before = objective(batch).loss
    after = objective(Batch(views={"view": changed}, index=batch.index, noise=batch.noise)).loss
    assert after.item() == pytest.approx(before.item(), rel=1e-3)


@pytest.mark.parametrize("make", [image_objective, video_objective, audio_objective])
def test_hidden_pixels_cannot_reach_the_prediction(make: Any) -> None:
    torch.manual_seed(0)
    objective = make()
    batch = a_batch(objective, media(objective))
    mask, decoded, _ = objective._masks(batch.noise)
    tokens = objective.require_tokens().tokenize(batch.views["view"], keep=mask.visible)
    assert tokens.x.shape[1] == mask.visible.shape[1], "only visible tokens are projected"
    if batch.views["view"].ndim == 2:
        return  # windows of a waveform overlap, so its hidden patches cannot be changed alone
    adapter = objective.require_tokens().adapter
    pixels = adapter.pixels(batch.views["view"])
    noisy = torch.where(mask.boolean()[:, :, None, None], torch.randn(()), adapter.patches(pixels))
    media_of = adapter.denormalise(adapter.unpatches(noisy, objective.grid))
    other = media_of.transpose(1, 2) if batch.views["view"].ndim == 5 else media_of.squeeze(2)
    left = objective._predict(batch.views["view"], mask.visible, decoded)
    right = objective._predict(other, mask.visible, decoded)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [image_objective, video_objective, audio_objective])
def test_loss_starts_at_about_one_on_noise(make: Any) -> None:
    """Targets have unit variance and predictions start near zero once the head is scaled down."""
    torch.manual_seed(0)
    objective = make()
    nn.init.normal_(objective.head.weight, std=1e-3)
    assert objective(a_batch(objective, media(objective, 8))).loss.item() == pytest.approx(1.0, abs=0.05)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    for objective in (image_objective(), video_objective(decoder_mask=RunningCellMask()), audio_objective()):
        objective(a_batch(objective, media(objective))).loss.backward()
        assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


def test_accumulation_one_by_one_equals_one_batch() -> None:
    """Loss x count summed over micro-batches, over the summed count: the same, also where counts differ."""
    torch.manual_seed(0)
    objective = video_objective(decoder_mask=RunningCellMask())
    batch = a_batch(objective, media(objective, 8))
    output = objective(batch)
    output.loss.backward()
    whole = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    total, loss = torch.zeros(()), torch.zeros(())
    counts = set()
    for i in range(8):
        part = Batch(
            {"view": batch.views["view"][i : i + 1]},
            batch.index[i : i + 1],
            {k: v[i : i + 1] for k, v in batch.noise.items()},
        )
        small = objective(part)
        (small.loss * small.count).backward()
        total, loss = total + small.count, loss + small.loss.detach() * small.count
        counts.add(small.count.item())
    assert len(counts) > 1, "the case is too easy: all counts are equal"
    assert total.item() == output.count.item()
    assert (loss / total).item() == pytest.approx(output.loss.item(), rel=1e-5)
    for name, p in objective.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad / total, whole[name], rtol=1e-4, atol=1e-7, msg=name)


def test_loss_is_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    objective = image_objective()
    batch = a_batch(objective, media(objective))
    exact = objective(batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = objective(batch)
    assert output.loss.dtype == output.count.dtype == torch.float32
    assert output.loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_weighted_loss_ignores_weightless_patches() -> None:
    prediction, target = torch.tensor([[[1.0, 1.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
    loss, count = reconstruction_loss(prediction, target, torch.tensor([[True, False]]))
    assert (loss.item(), count.item()) == (1.0, 1.0)


@pytest.mark.parametrize("make", [image_objective, video_objective, audio_objective])
def test_pictures_show_original_masked_and_reconstruction(make: Any) -> None:
    """Visible patches are the original in all three columns; a perfect prediction gives the original back."""
    torch.manual_seed(0)
    objective = make()
    batch = a_batch(objective, media(objective))
    picture = objective(batch, what="pictures")["reconstruction"]
    assert picture.columns == ("original", "masked", "reconstruction")
    assert len(picture.rows) == 3
    original, masked, reconstruction = (torch.stack(column).float() for column in zip(*picture.rows, strict=True))
    if picture.kind != "spectrogram":
        view = batch.views["view"].float()
        assert (original - view).abs().max() <= 1, "uint8 in, the same uint8 out, but for rounding"
    adapter = objective.require_tokens().adapter
    hidden = objective.mask(batch.noise["mask"], objective.grid).boolean()
    spread = hidden.float()[:, :, None, None].expand(
        -1, -1, adapter.values // adapter.front.channels, adapter.front.channels
    )
    pixels = adapter.unpatches(spread, objective.grid)  # [B,C,T,H,W], 1 = hidden
    pixels = pixels.transpose(1, 2).reshape(original.shape).bool()
    assert torch.equal(original[~pixels], masked[~pixels])
    assert torch.equal(original[~pixels], reconstruction[~pixels])
    if picture.kind == "spectrogram":
        assert masked[pixels].isnan().all(), "hidden patches are grey, which is no loudness"
        assert not reconstruction.isnan().any()
    else:
        assert masked[pixels].unique().numel() <= adapter.front.channels, "hidden patches show one colour"

    def perfect(view: Tensor, visible: Tensor, decoded: Tensor, lengths: Tensor | None) -> Tensor:
        patches = adapter.patches(adapter.pixels(view, lengths))
        patches = patches.gather(1, decoded[:, :, None, None].expand(-1, -1, *patches.shape[2:]))
        return normalised(
            patches, objective.target, getattr(objective.require_tokens().adapter.front, "std", torch.ones(1)).flatten()
        ).flatten(2)

    objective._predict = perfect
    rows = objective(batch, what="pictures")["reconstruction"].rows
    assert max((row[0].float() - row[2].float()).abs().max().item() for row in rows) <= 1


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="choose a ViT"):
        MaskedAutoencoder(ConvEncoder(ImagePixels(ImageSpec(size=32))), mask=RandomMask(0.75))
    overlapping = ViT(
        SpectrogramPatches(AudioSpec(mels=32, frames=64, patch=8, stride=4), 32),
        ViTSettings(width=32, depth=1, heads=4),
    )
    with pytest.raises(UserError, match="overlap"):
        MaskedAutoencoder(overlapping, mask=RandomMask(0.75))
    with pytest.raises(UserError, match="patch_norm_joint"):
        MaskedAutoencoder(audio_objective().require_tokens(), mask=RandomMask(0.75), target="patch_norm_channel")
    objective = image_objective()
    batch = a_batch(objective, media(objective))
    with pytest.raises(UserError, match="token grid"):
        objective(Batch({"view": torch.zeros(3, 3, 40, 40)}, batch.index, batch.noise))

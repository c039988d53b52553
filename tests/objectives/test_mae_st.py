"""MAE-ST as settings of the masked autoencoder: which frames are predicted (the paper's linspace over frames), joint
normalisation and loss against NumPy float64, the decoder against a plain one over the whole grid in order, and that
frames which are not predicted have no part in the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmssl.adapters.specs import VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder, predicted_frames
from mmssl.objectives.masks import RandomMask
from mmssl.types import Batch

MEAN, STD = (0.45, 0.4, 0.5), (0.225, 0.25, 0.2)
FRAMES, SIDE, PATCH = 8, 32, 8


def mae_st(*, tubelet: int = 2, frames: int | None = 4, **options: Any) -> MaskedAutoencoder:
    spec = VideoSpec(size=SIDE, frames=FRAMES, patch=PATCH, tubelet=tubelet, mean=MEAN, std=STD)
    encoder = ViT(VideoTubelets(spec, 32), ViTSettings(width=32, depth=2, heads=4, positions="separable"))
    return MaskedAutoencoder(
        encoder, mask=RandomMask(0.9), decoder_width=32, decoder_depth=2, decoder_heads=2,
        decoder_positions="separable", frames=frames, **options,
    )  # fmt: skip


def a_batch(objective: MaskedAutoencoder, clips: Tensor) -> Batch:
    noise = {name: torch.rand(len(clips), k) for name, k in objective.noise.items()}
    return Batch({"view": clips}, torch.arange(len(clips)), noise)


def noise_clips(batch: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, FRAMES, 3, SIDE, SIDE), dtype=torch.uint8)


def predict_instead(objective: MaskedAutoencoder, prediction: Tensor) -> None:
    """Replace the network by fixed predictions [B,N,k*C] for all tokens."""

    def pick(view: Tensor, visible: Tensor, decoded: Tensor, lengths: Tensor | None = None) -> Tensor:
        return prediction.gather(1, decoded[..., None].expand(-1, -1, prediction.shape[2]))

    objective._predict = pick  # type: ignore[method-assign]


def test_eight_of_sixteen_frames() -> None:
    assert predicted_frames(8, 2, 8) == [0, 2, 4, 6, 8, 10, 12, 15]


@pytest.mark.parametrize(("times", "tubelet"), [(1, 1), (1, 4), (2, 2), (8, 2), (16, 2), (4, 4), (5, 6)])
def test_frames_are_the_papers_linspace_and_lie_in_the_tubelet_that_predicts_them(times: int, tubelet: int) -> None:
    for each in [n for n in range(1, tubelet + 1) if tubelet % n == 0]:
        found = predicted_frames(times, tubelet, times * each)
        linspace = torch.linspace(0, times * tubelet - 1, times * each, dtype=torch.float64)
        assert found == (linspace + 1e-9).long().tolist()
        assert [frame // tubelet for frame in found] == [k // each for k in range(len(found))]


@pytest.mark.parametrize("count", [0, 1, 2, 6, 16])
def test_other_numbers_of_frames_are_refused_with_those_that_fit(count: int) -> None:
    with pytest.raises(UserError, match=rf"{count} predicted frames do not fit 4 tubelets of 2 frames: choose 4 or 8"):
        mae_st(frames=count)


@pytest.mark.parametrize(("tubelet", "frames"), [(2, 4), (2, 8), (4, 2), (4, 4), (4, 8)])
def test_loss_equals_float64_numpy(tubelet: int, frames: int) -> None:
    """Frames picked from the clip first, then cut into cubes, each normalised over all its values: another order of
    work than ours, from the paper's text."""
    torch.manual_seed(0)
    objective = mae_st(tubelet=tubelet, frames=frames)
    batch = a_batch(objective, noise_clips())
    times, depth, side = FRAMES // tubelet, frames * tubelet // FRAMES, SIDE // PATCH
    prediction = torch.randn(3, times * side * side, depth * PATCH * PATCH * 3)
    predict_instead(objective, prediction)
    actual = objective(batch).loss.item()

    clips = batch.views["view"].numpy() / 255.0
    clips = (clips - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    clips = clips[:, np.linspace(0, FRAMES - 1, frames).astype(int)]  # [B,frames,3,H,W]
    cubes = clips.reshape(3, times, depth, 3, side, PATCH, side, PATCH).transpose(0, 1, 4, 6, 2, 5, 7, 3)
    cubes = cubes.reshape(3, times * side * side, -1)
    target = (cubes - cubes.mean(2, keepdims=True)) / np.sqrt(cubes.var(2, ddof=1, keepdims=True) + 1e-6)
    error = ((prediction.double().numpy() - target) ** 2).mean(2)
    hidden = objective.mask(batch.noise["mask"], objective.grid).boolean().numpy()
    assert hidden.sum(1).tolist() == [times * 16 - int(times * 16 * (1 - 0.9))] * 3
    assert actual == pytest.approx((error * hidden).sum() / hidden.sum(), rel=1e-5)


def test_decoder_equals_a_plain_one_over_the_whole_grid_in_order() -> None:
    """Ours decodes CLS, visible and masked tokens in the order of the mask; the paper's puts all of them in order
    first. Positions by hand: space + time."""
    torch.manual_seed(0)
    objective = mae_st()
    for parameter in objective.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    batch = a_batch(objective, noise_clips())
    mask = objective.mask(batch.noise["mask"], objective.grid)
    actual = objective._predict(batch.views["view"], mask.visible, mask.masked)

    encoder = objective.require_tokens()
    encoded = encoder.encode(encoder.tokenize(batch.views["view"], keep=mask.visible))
    assert encoded.tokens is not None
    assert encoded.prefix is not None
    grid = objective.mask_token.expand(3, 64, -1).clone()
    for sample in range(3):
        grid[sample, mask.visible[sample]] = objective.projection(encoded.tokens[sample])
    for t in range(4):
        for cell in range(16):
            grid[:, 16 * t + cell] += objective.positions_space[0, cell] + objective.positions_time[0, t]
    x = torch.cat([objective.projection(encoded.prefix), grid], 1)
    for block in objective.decoder:
        x = block(x)
    x = objective.head(objective.norm(x))[:, 1:]
    expected = torch.stack([x[sample, mask.masked[sample]] for sample in range(3)])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_frames_that_are_not_predicted_have_no_part_in_the_loss() -> None:
    torch.manual_seed(0)
    objective = mae_st()
    batch = a_batch(objective, noise_clips())
    predict_instead(objective, torch.randn(3, 64, PATCH * PATCH * 3))
    before = objective(batch).loss.item()
    changed = batch.views["view"].clone()
    changed[:, [1, 3, 5, 6]] = 0  # all but 0 2 4 7
    assert objective(Batch({"view": changed}, batch.index, batch.noise)).loss.item() == before
    changed[:, 7] = 0
    assert objective(Batch({"view": changed}, batch.index, batch.noise)).loss.item() != before


def test_target_of_a_constant_cube_is_zero_and_the_loss_starts_at_about_one_on_noise() -> None:
    torch.manual_seed(0)
    objective = mae_st()
    nn.init.normal_(objective.head.weight, std=1e-3)
    assert objective(a_batch(objective, noise_clips(8))).loss.item() == pytest.approx(1.0, abs=0.02)
    grey = torch.full((2, FRAMES, 3, SIDE, SIDE), 0.45) * torch.rand(2, FRAMES, 1, 1, 1)
    spec = VideoSpec(size=SIDE, frames=FRAMES, patch=PATCH, mean=(0.45,) * 3, std=(0.225,) * 3)
    encoder = ViT(VideoTubelets(spec, 32), ViTSettings(width=32, depth=1, heads=4, positions="separable"))
    plain = MaskedAutoencoder(
        encoder, mask=RandomMask(0.9), decoder_width=32, decoder_depth=1, decoder_heads=2, frames=4
    )
    predict_instead(plain, torch.zeros(2, 64, PATCH * PATCH * 3))
    assert plain(a_batch(plain, grey)).loss.item() < 1e-6


def test_loss_does_not_see_brightness_or_contrast_of_a_cube() -> None:
    """A cube of MAE-ST is one frame of a patch, all channels together, in normalised pixels."""
    torch.manual_seed(0)
    objective = mae_st()
    adapter = objective.require_tokens().adapter
    clips = torch.rand(3, FRAMES, 3, SIDE, SIDE)
    batch = a_batch(objective, clips)
    predict_instead(objective, torch.randn(3, 64, PATCH * PATCH * 3))
    patches = adapter.patches(adapter.pixels(clips)).unflatten(2, (2, -1))  # [B,N,2,h*w,C]
    change = patches * (0.5 + torch.rand(3, 64, 2, 1, 1)) + torch.randn(3, 64, 2, 1, 1)
    pixels = adapter.unpatches(change.flatten(2, 3), objective.grid)
    std, mean = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    other = pixels.transpose(1, 2) * std + mean  # not clamped to [0,1]
    assert (other - clips).abs().mean() > 0.1
    after = objective(Batch({"view": other}, batch.index, batch.noise)).loss.item()
    assert after == pytest.approx(objective(batch).loss.item(), rel=1e-4)


def test_every_trainable_parameter_gets_a_gradient_and_positions_are_not_decayed() -> None:
    objective = mae_st()
    objective(a_batch(objective, noise_clips())).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []
    plain = {name for group in objective.param_groups() if not group["decay"] for name, _ in group["params"]}
    assert {"positions_space", "positions_time", "mask_token", "encoder.pos_space", "encoder.pos_time"} <= plain


@pytest.mark.parametrize("tubelet", [2, 4])
def test_pictures_show_the_predicted_frames_only_and_a_perfect_prediction_gives_them_back(tubelet: int) -> None:
    torch.manual_seed(0)
    objective = mae_st(tubelet=tubelet, target="pixels")
    shown = [0, 2, 4, 7]
    batch = a_batch(objective, noise_clips())
    adapter = objective.require_tokens().adapter
    patches = adapter.patches(adapter.pixels(batch.views["view"])).unflatten(2, (tubelet, -1))  # [B,N,t,h*w,C]
    of_tubelet = [[frame % tubelet for frame in shown if frame // tubelet == t] for t in range(FRAMES // tubelet)]
    perfect = torch.stack([patches[:, n, of_tubelet[n // 16]] for n in range(patches.shape[1])], 1).flatten(2)
    predict_instead(objective, perfect)
    picture = objective(batch, what="pictures")["reconstruction"]
    original, masked, filled = (torch.stack(column).int() for column in zip(*picture.rows, strict=True))
    wanted = batch.views["view"][:, shown].int()
    assert original.shape == wanted.shape
    assert (original - wanted).abs().max() <= 1
    assert (filled - wanted).abs().max() <= 1
    hidden = objective.mask(batch.noise["mask"], objective.grid).boolean().view(3, -1, 4, 4)
    hidden = hidden.repeat_interleave(tubelet, 1)[:, shown]
    hidden = hidden.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, None].expand_as(masked)
    assert torch.equal(masked[~hidden], original[~hidden])
    for channel, value in enumerate(MEAN):
        assert masked[:, :, channel][hidden[:, :, channel]].unique().tolist() == [round(255 * value)]
    predict_instead(objective, torch.zeros_like(perfect))
    zero = objective(batch, what="pictures")["reconstruction"]
    assert torch.equal(torch.stack([row[2] for row in zero.rows]), torch.stack([row[1] for row in zero.rows]))

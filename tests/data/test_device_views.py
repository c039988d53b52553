"""Claims: every operation equals torchvision's with the same parameters, image by image; the order of the jitter is
each sample's own; a sample's result depends on its own draws only; accelerators' compute-all-and-select gives what the
CPU's compute-the-chosen gives; audio noise is normal, of the promised level, and leaves padding alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mmssl.data import device_views
from mmssl.data.device_views import ChannelSplit, GaussianNoise, Photometric, blend, gaussian_blur, shift_hue, solarize
from mmssl.errors import UserError
from mmssl.types import Batch

N = 12


def pictures(count: int = N, height: int = 37, width: int = 44, seed: int = 0) -> torch.Tensor:
    """uint8 with the corner cases of HSV in: grey, black, white, pure colours, ties between channels."""
    images = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    images[:, :, 0, :5] = images[:, :1, 0, :5]
    images[:, :, 1, :2] = torch.tensor([0, 255])
    images[:, :, 2, :3] = 255 * torch.eye(3, dtype=torch.int64)
    images[:, 1, 3] = images[:, 0, 3]
    images[:, 2, 4] = images[:, 1, 4]
    images[:, 2, 5] = images[:, 0, 5]
    return images.to(torch.uint8)


def a_batch(view: torch.Tensor, noise: torch.Tensor, name: str = "a") -> Batch:
    return Batch({name: view, "other": view}, torch.arange(len(view)), {f"photometric/{name}": noise})


def draws(count: int = N, k: int = 13, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, k, generator=torch.Generator().manual_seed(seed))


def each(images: torch.Tensor, operation, parameters: torch.Tensor) -> torch.Tensor:
    return torch.stack([operation(image, float(value)) for image, value in zip(images, parameters, strict=True)])


@pytest.mark.parametrize(
    ("operation", "luma", "mean"),
    [(F.adjust_brightness, 0.0, 0.0), (F.adjust_contrast, 0.0, 1.0), (F.adjust_saturation, 1.0, 0.0)],
)
def test_blend_is_torchvisions_brightness_contrast_and_saturation(operation, luma, mean):
    images, ratio = pictures().float() / 255, torch.linspace(0, 2, N)
    ours = blend(images, ratio, torch.full((N,), luma), torch.full((N,), mean))
    torch.testing.assert_close(ours, each(images, operation, ratio), atol=1e-6, rtol=0)


def test_hue_is_torchvisions():
    images, shift = pictures().float() / 255, torch.linspace(-0.5, 0.5, N)
    torch.testing.assert_close(shift_hue(images, shift), each(images, F.adjust_hue, shift), atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", [1, 3, 9, 23])
def test_blur_is_torchvisions(kernel):
    images, sigma = pictures().float() / 255, torch.linspace(0.1, 2, N)
    expected = each(images, lambda image, s: F.gaussian_blur(image, [kernel, kernel], [s, s]), sigma)
    torch.testing.assert_close(gaussian_blur(images, sigma, kernel), expected, atol=3e-6, rtol=0)


def test_solarize_is_torchvisions():
    images = pictures().float() / 255
    torch.testing.assert_close(solarize(images), F.solarize(images, 0.5))


def reference(image: torch.Tensor, u: list[float], settings: Photometric) -> torch.Tensor:
    """One image [...,3,H,W] by torchvision alone; `u` are its 13 draws, in the order that Photometric documents."""
    image = image.float() / 255
    if u[0] < settings.p_jitter:
        strengths = (settings.brightness, settings.contrast, settings.saturation)
        factors = [max(0, 1 - s) + x * (1 + s - max(0, 1 - s)) for s, x in zip(strengths, u[5:8], strict=True)]
        steps = [
            lambda x: F.adjust_brightness(x, factors[0]),
            lambda x: F.adjust_contrast(x, factors[1]),
            lambda x: F.adjust_saturation(x, factors[2]),
            lambda x: F.adjust_hue(x, (2 * u[8] - 1) * settings.hue),
        ]
        for number in np.argsort(u[1:5]):
            image = steps[number](image)
    if u[9] < settings.p_grey:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    kernel = settings.blur_kernel or image.shape[-2] // 10 // 2 * 2 + 1
    if u[10] < settings.p_blur and kernel > 1:
        sigma = settings.sigma[0] + u[11] * (settings.sigma[1] - settings.sigma[0])
        image = F.gaussian_blur(image, [kernel, kernel], [sigma, sigma])
    return F.solarize(image, 0.5) if u[12] < settings.p_solarize else image


SETTINGS = [
    Photometric(("a",)),
    Photometric(("a",), 0.8, 0.8, 0.8, 0.2, blur_kernel=5),
    Photometric(("a",), 1.5, p_jitter=1.0, hue=0.5, p_grey=0.5, p_blur=0.0, p_solarize=0.5),
    Photometric(("a",), hue=0.0, p_jitter=1.0, p_grey=0.0, p_blur=1.0),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("pieces", [1, 1 << 30])
def test_the_whole_is_torchvision_step_by_step(settings, pieces, monkeypatch):
    monkeypatch.setattr(device_views, "CACHED", pieces)
    images, noise = pictures(48), draws(48)
    ours = settings(a_batch(images, noise)).views["a"]
    expected = torch.stack([reference(*item, settings) for item in zip(images, noise.tolist(), strict=True)])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS)
def test_computing_all_and_selecting_gives_the_same(settings, monkeypatch):
    """The path of accelerators, run here."""
    images, noise = pictures(32), draws(32)
    chosen_only = settings(a_batch(images, noise)).views["a"]

    def select(chosen, images, operation, *parameters):
        return torch.where(chosen.view(-1, 1, 1, 1), operation(images, *parameters), images)

    monkeypatch.setattr(device_views, "only", select)
    torch.testing.assert_close(settings(a_batch(images, noise)).views["a"], chosen_only, atol=1e-6, rtol=0)


def test_frames_share_their_draws_and_samples_do_not_see_each_other():
    settings, noise = Photometric(("a",), p_jitter=1.0), draws(4)
    clips = pictures(12).view(4, 3, 3, 37, 44)
    together = settings(a_batch(clips, noise)).views["a"]
    assert together.shape == clips.shape
    for number in range(4):
        alone = settings(a_batch(clips[number], noise[number].expand(3, -1))).views["a"]
        torch.testing.assert_close(together[number], alone, atol=1e-6, rtol=0)


def test_only_the_named_views_change_and_inputs_stay():
    images = pictures(4)
    before = images.clone()
    batch = Photometric(("a",), p_jitter=1.0)(a_batch(images, draws(4)))
    assert torch.equal(images, before)
    assert batch.views["other"] is images
    floats = images.float() / 255
    kept = floats.clone()
    Photometric(("a",), p_jitter=0.0, p_grey=0.0, p_blur=0.0, p_solarize=1.0)(a_batch(floats, draws(4)))
    assert torch.equal(floats, kept)


def test_settings_are_probabilities_over_draws():
    """With uniform draws, the share of changed images is the setting (3 sigma of 4,000 draws: .023 or less)."""
    images = pictures(1, 8, 8).expand(4000, -1, -1, -1)
    for name, p in (("p_jitter", 0.8), ("p_grey", 0.2), ("p_solarize", 0.35)):
        settings: dict[str, Any] = {"p_jitter": 0.0, "p_grey": 0.0, "p_blur": 0.0, "p_solarize": 0.0, name: p}
        out = Photometric(("a",), **settings)(a_batch(images, draws(4000))).views["a"]
        changed = (out - images.float() / 255).abs().flatten(1).amax(1) > 1e-4
        assert abs(changed.float().mean().item() - p) < 0.025


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="odd number"):
        Photometric(("a",), blur_kernel=4)
    with pytest.raises(UserError, match=r"0 to 0\.5"):
        Photometric(("a",), hue=0.7)


def test_audio_noise_is_normal_at_the_promised_level_and_spares_padding():
    samples, scale = 16001, 0.4
    view = GaussianNoise(("b",), scale, samples)
    (name, k), *rest = view.noise.items()
    assert (name, k, rest) == ("gaussian_noise/b", 16002, [])
    wave = torch.sin(torch.arange(samples) / 7).expand(3, -1) * torch.tensor([[1.0], [0.1], [0.5]])
    wave = wave.clone()
    wave[2, 8000:] = 0
    lengths = {"b": torch.tensor([samples, samples, 8000])}
    batch = Batch({"a": wave, "b": wave}, torch.arange(3), {name: draws(3, k)}, lengths=lengths)
    out = view(batch)
    assert out.views["a"] is wave
    added = out.views["b"] - wave
    for number, real in enumerate(lengths["b"].tolist()):
        noise, level = added[number, :real], wave[number, :real].square().mean().sqrt()
        z = noise / (scale * level)
        assert abs(z.mean()) < 4 / real**0.5
        assert abs(z.std() - 1) < 0.03
        ranks = z.sort().values.double()
        normal = torch.special.ndtr(ranks)
        # Kolmogorov-Smirnov at the 0.1 % level
        assert (normal - (torch.arange(real) + 0.5) / real).abs().max() < 1.95 / real**0.5
    assert (added[2, 8000:] == 0).all()
    correlation = torch.corrcoef(added[:2])[0, 1]
    assert abs(correlation) < 0.04


@pytest.mark.parametrize("frames", [None, 3])
def test_channel_split_shows_one_colour_in_all_frames(frames: int | None) -> None:
    view = pictures(40) if frames is None else torch.stack([pictures(40, seed=n) for n in range(frames)], dim=1)
    split = ChannelSplit(names=("a",), share=0.6)
    noise = torch.rand(40, split.noise["channel_split/a"], generator=torch.Generator().manual_seed(0))
    out = split(Batch({"a": view, "b": view}, torch.arange(40), {"channel_split/a": noise}))
    assert out.views["b"] is view
    kinds = []
    for before, after, (draw, colour) in zip(view, out.views["a"], noise.tolist(), strict=True):
        channel = int(3 * colour)
        expected = before if draw >= 0.6 else before[..., channel : channel + 1, :, :].expand_as(before)
        assert torch.equal(after, expected)
        kinds.append(None if draw >= 0.6 else channel)
    assert set(kinds) == {None, 0, 1, 2}

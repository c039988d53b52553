"""Latent prediction against outside references: targets and loss in NumPy float64, the predictor and one whole step
(two kinds of masks, teacher, gradients, moving average) put together from transformers' V-JEPA 2 modules. And what
keeps it honest: hidden pixels do not reach the prediction, a collapse shows in the metrics, the teacher is what is
embedded and written.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from mmssl import Encoder
from mmssl.adapters.image import ImagePatches, ImagePixels
from mmssl.adapters.specs import AudioSpec, ImageSpec, VideoSpec
from mmssl.adapters.spectrogram import SpectrogramPatches
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.conv import ConvEncoder
from mmssl.encoders.key_maps import VJEPA2_BLOCK, VJEPA2_FUSED, VJEPA2_TRUNK
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.errors import UserError
from mmssl.objectives.latent_prediction import LatentPrediction, latent_loss, latent_targets
from mmssl.objectives.masks import MultiBlockMask, RandomMask
from mmssl.types import Batch
from tests.parity.test_vjepa2 import HALF, SHAPE, pair, theirs
from tests.parity.test_written_encoders import randomise

CONFIG: dict[str, Any] = {**SHAPE, "pred_num_mask_tokens": 2, "pred_num_hidden_layers": 2}
MASKS = (MultiBlockMask(8, 0.15, 0.38), MultiBlockMask(2, 0.7, 0.19))
SETTINGS = ViTSettings(48, 2, 3, prefix=0, positions="rope3d")
CLIP = VideoSpec(size=16, frames=4, patch=4)


def objective(encoder: Encoder | None = None, **changes: Any) -> LatentPrediction:
    torch.manual_seed(0)
    given = {"masks": MASKS, "predictor_width": 24, "predictor_depth": 2, "predictor_heads": 2, "view": "clip"}
    return LatentPrediction(encoder or ViT(VideoTubelets(CLIP, 48), SETTINGS), **{**given, **changes})


def make_batch(of: LatentPrediction, view: Tensor | None = None, samples: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    view = torch.rand(samples, 4, 3, 16, 16, generator=generator) if view is None else view
    noise = {name: torch.rand(len(view), k, generator=generator) for name, k in of.noise.items()}
    return Batch({of.views[0]: view}, torch.arange(len(view)), noise)


def test_targets_and_loss_in_float64() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(2, 3, (2, 7, 5))
    centred = features - features.mean(2, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-5)
    targets = latent_targets(torch.from_numpy(features).float())
    np.testing.assert_allclose(targets.numpy(), expected, atol=1e-5)
    guesses = [rng.normal(size=(2, count, 5)) for count in (3, 6)]
    truths = [rng.normal(size=(2, count, 5)) for count in (3, 6)]
    loss = np.mean([np.abs(guess - truth).mean() for guess, truth in zip(guesses, truths, strict=True)])
    found = latent_loss([torch.from_numpy(x) for x in guesses], [torch.from_numpy(x) for x in truths])
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss, rel=1e-5)


# ---------------------------------------------------------------------------------------- against transformers' modules


def copy_predictor(mine: nn.Module, predictor: nn.Module, to_theirs: bool = False) -> dict[str, Tensor]:
    """Our predictor's state from transformers', by name; or with `to_theirs`, their gradients under our names."""
    values: dict[str, Any] = {n: (p.grad if to_theirs else p) for n, p in predictor.named_parameters()}
    state: dict[str, Tensor] = {"mask_tokens": values["embeddings.mask_tokens"][:, 0, 0]}
    for ours, other in {"embed": "embeddings.predictor_embeddings", "norm": "layernorm", "head": "proj"}.items():
        state |= {f"{ours}.{kind}": values[f"{other}.{kind}"] for kind in ("weight", "bias")}
    for number in range(len(mine.blocks)):  # type: ignore[arg-type]
        layer = f"layer.{number}."
        state |= {f"blocks.{number}.{ours}": values[layer + other] for ours, other in VJEPA2_BLOCK.items()}
        for ours, parts in VJEPA2_FUSED.items():
            state[f"blocks.{number}.{ours}"] = torch.cat([values[layer + part] for part in parts])
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def their_encoder(model: Any, view: Tensor, visible: Tensor) -> Tensor:
    """Context tokens [B,V,D]: their layers on the visible tokens, told where these stood."""
    hidden = model.encoder.embeddings((view - 0.5) / 0.5)
    hidden = hidden.gather(1, visible[..., None].expand(-1, -1, 48))
    for layer in model.encoder.layer:
        hidden = layer(hidden, visible)[0]
    return model.encoder.layernorm(hidden)


def their_prediction(model: Any, context: Tensor, visible: Tensor, masked: Tensor, kind: int) -> Tensor:
    """Their predictor picks the context out of a full grid of tokens, so it is put back there first."""
    index = visible[..., None].expand(-1, -1, 48)
    whole = torch.zeros(len(context), 32, 48).scatter(1, index, context)
    embeddings = model.predictor.embeddings
    embeddings.forward = partial(type(embeddings).forward, embeddings, mask_index=kind)
    return model.predictor(whole, [visible], [masked]).last_hidden_state


def test_one_step_is_that_of_transformers_modules(tmp_path: Path) -> None:
    """Predictions of both kinds, loss, every gradient, and the teacher after the step."""
    (tmp_path / "model").mkdir()
    model, encoder = pair(tmp_path / "model")
    model = transformers.VJEPA2Model(transformers.VJEPA2Config(**CONFIG))
    randomise(model)
    encoder.load_state_dict(read(model, tmp_path / "again"))
    of = objective(encoder, predictor_width=12, momentum=0.9)
    of.predictor.load_state_dict(copy_predictor(of.predictor, model.predictor))
    teacher = transformers.VJEPA2Model(transformers.VJEPA2Config(**CONFIG))
    randomise(teacher)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.7).add_(0.01)
    of.teacher.load_state_dict(read(teacher, tmp_path / "teacher"))

    batch = make_batch(of)
    view = batch.views["clip"]
    output = of(batch)
    output.loss.backward()

    target = theirs(teacher, view).last_hidden_state.detach()
    target = nn.functional.layer_norm(target, (48,))
    losses = []
    for kind, maker in enumerate(MASKS):
        mask = maker(batch.noise[f"mask {kind}"], (2, 4, 4))
        context = their_encoder(model, view, mask.visible)
        guess = their_prediction(model, context, mask.visible, mask.masked, kind)
        mine = of._predict(view, None, mask, kind)
        assert_close(mine, guess, rtol=1e-4, atol=1e-4)
        losses.append((guess - target.gather(1, mask.masked[..., None].expand(-1, -1, 48))).abs().mean())
    loss = torch.stack(losses).mean()
    assert_close(output.loss, loss, rtol=1e-5, atol=1e-6)
    loss.backward()

    for name, gradient in copy_predictor(of.predictor, model.predictor, to_theirs=True).items():
        assert_close(of.predictor.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5, msg=name)
    found = {name: p.grad for name, p in model.named_parameters()}
    for ours, other in VJEPA2_TRUNK.items():
        assert_close(encoder.get_parameter(ours).grad, found[other], rtol=1e-3, atol=1e-5, msg=ours)
    for ours, other in VJEPA2_BLOCK.items():
        assert_close(
            encoder.get_parameter(f"blocks.1.{ours}").grad, found[f"encoder.layer.1.{other}"], rtol=1e-3, atol=1e-5
        )

    before = {name: p.clone() for name, p in of.teacher.named_parameters()}
    of.after_step(0, 1, torch.tensor(False))
    assert all(torch.equal(before[name], p) for name, p in of.teacher.named_parameters())
    of.after_step(0, 1, torch.tensor(True))
    for name, parameter in of.teacher.named_parameters():
        assert_close(parameter, 0.9 * before[name] + 0.1 * encoder.get_parameter(name))


def read(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The encoder's weights under our names."""
    model.eval().save_pretrained(folder)  # type: ignore[operator]
    (folder / "video_preprocessor_config.json").write_text(json.dumps(HALF))
    return Encoder.from_pretrained(folder).state_dict()


# ----------------------------------------------------------------------------------------------------- what must not be


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    of = objective().eval()
    batch = make_batch(of)
    view = batch.views["clip"]
    adapter = of.require_tokens().adapter
    for kind, maker in enumerate(MASKS):
        mask = maker(batch.noise[f"mask {kind}"], of.grid)
        patches = adapter.patches(view.transpose(1, 2))
        noise = torch.rand(patches.shape)
        changed = torch.where(mask.boolean()[:, :, None, None], noise, patches)
        other = adapter.unpatches(changed).transpose(1, 2)
        assert not torch.equal(other, view)
        assert_close(of._predict(view, None, mask, kind), of._predict(other, None, mask, kind), rtol=0, atol=0)
        shown = torch.where(mask.boolean()[:, :, None, None], patches, noise)
        shown = adapter.unpatches(shown).transpose(1, 2)
        assert not torch.allclose(of._predict(view, None, mask, kind), of._predict(shown, None, mask, kind))
    assert not torch.allclose(of._targets(view, None), of._targets(other, None))


def test_a_collapse_shows() -> None:
    of = objective()
    healthy = of(make_batch(of)).metrics
    assert healthy["target_std"] > 0.1
    assert healthy["clip_std"] > 0.001
    with torch.no_grad():
        of.teacher.norm.weight.zero_()  # type: ignore[union-attr,operator]
        of.teacher.norm.bias.copy_(torch.randn(48))  # type: ignore[union-attr,operator]
    for value in of(make_batch(of)).metrics.values():
        assert abs(value) < 1e-6
    clips = make_batch(objective(), torch.rand(1, 4, 3, 16, 16).expand(3, -1, -1, -1, -1))
    assert objective()(clips).metrics["clip_std"] < 1e-6  # the same clip three times
    assert objective()(clips).metrics["target_std"] > 0.1


def test_predictions_beat_knowing_the_mean_of_every_clip() -> None:
    """On waves that move, whose hidden parts follow from the seen ones, with the teacher held still."""
    of = objective(momentum=1.0)
    t, y, x = torch.meshgrid(torch.arange(4.0), torch.arange(16.0), torch.arange(16.0), indexing="ij")
    phase = torch.arange(8.0).view(8, 1, 1, 1)
    view = (0.5 + 0.5 * torch.sin(0.2 * x + 0.13 * y + 0.5 * t + phase)).unsqueeze(2).expand(-1, -1, 3, -1, -1)
    batch = make_batch(of, view)
    optimizer = torch.optim.AdamW([p for p in of.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(100):
        output = of(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert output.loss < 0.5 * output.metrics["mean_error"]


def test_the_teacher_is_embedded_and_written(tmp_path: Path) -> None:
    of = objective()
    with torch.no_grad():
        for parameter in of.encoder.parameters():
            parameter.add_(0.1)
    batch = make_batch(of)
    view = batch.views["clip"]
    assert torch.equal(of(batch, "embed"), of.teacher(view).pooled)
    assert not torch.allclose(of(batch, "embed"), of.encoder(view).pooled)
    assert of.exports() == {"encoder": of.teacher}
    of.exports()["encoder"].save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    pixels = of.require_tokens().adapter.pixels(view).transpose(1, 2)
    assert_close(model(pixels).last_hidden_state.mean(1), of(batch, "embed"), rtol=0, atol=1e-5)
    trained = {name for group in of.param_groups() for name, _ in group["params"]}
    assert trained
    assert not any(name.startswith("teacher") for name in trained)
    (plain,) = (group for group in of.param_groups() if not group["decay"])
    assert "predictor.mask_tokens" in {name for name, _ in plain["params"]}
    assert not of.predictor.mask_tokens.any(), "mask tokens start at zero"


def test_the_teacher_drops_no_paths() -> None:
    of = objective(ViT(VideoTubelets(CLIP, 48), replace(SETTINGS, drop_path=0.5))).train()
    view = make_batch(of).views["clip"]
    assert torch.equal(of._targets(view, None), of._targets(view, None))
    assert not torch.equal(of.encoder(view).pooled, of.encoder(view).pooled)


@pytest.mark.parametrize("case", ["rope", "sincos1d", "separable", "image", "audio"])
def test_any_trunk_gets_all_its_gradients_and_its_pictures(case: str) -> None:
    plain = replace(SETTINGS, positions="sincos1d")
    encoder: ViT = {
        "rope": lambda: ViT(VideoTubelets(CLIP, 48), SETTINGS),
        "sincos1d": lambda: ViT(VideoTubelets(CLIP, 48), plain),
        "separable": lambda: ViT(VideoTubelets(CLIP, 48), replace(plain, positions="separable", prefix=1)),
        "image": lambda: ViT(ImagePatches(ImageSpec(size=16, patch=4), 48), replace(SETTINGS)),
        "audio": lambda: ViT(
            SpectrogramPatches(AudioSpec(mels=32, frames=32, patch=8, stride=8), 48),
            replace(plain, positions="sincos", prefix=1),
        ),
    }[case]()
    of = objective(encoder)
    shapes = {"image": (3, 3, 16, 16), "audio": (3, 6000), "video": (3, 4, 3, 16, 16)}
    batch = make_batch(of, torch.rand(shapes[encoder.spec.modality]))
    output = of(batch)
    output.loss.backward()
    assert output.count == 3
    assert not [name for name, p in of.named_parameters() if p.requires_grad and p.grad is None]
    assert not [name for name, p in of.teacher.named_parameters() if p.grad is not None]
    picture = of(batch, "pictures")["prediction"]
    assert picture.columns == ("original", "seen 1", "error 1", "seen 2", "error 2")
    assert len(picture.rows) == 3
    assert all(len({cell.shape for cell in row}) == 1 for row in picture.rows)
    assert all(cell.isfinite().all() for row in picture.rows for cell in (row[2], row[4]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="has none"):
        objective(ConvEncoder(ImagePixels(ImageSpec(size=16))))
    overlapping = SpectrogramPatches(AudioSpec(mels=32, frames=32, patch=8, stride=6), 48)
    with pytest.raises(UserError, match="overlap"):
        objective(ViT(overlapping, replace(SETTINGS, positions="sincos", prefix=1)))
    of = objective(masks=[RandomMask(0.5)])
    batch = make_batch(of, torch.rand(3, 4, 3, 24, 24))
    with pytest.raises(UserError, match="make the sizes equal"):
        of(batch)

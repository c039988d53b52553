"""Objectives against independent implementations, on random weights: the loss and the gradient of every parameter.

- Masked autoencoding: transformers' ViTMAEForPreTraining (given the same mask noise) and VideoMAEForPreTraining (given
  the same mask).
- NT-Xent: lightly's NTXentLoss.
- InfoNCE: float64 NumPy written from the formula.
- MoCo over several steps: the algorithm of the paper, recomputed plainly with a growing list of keys.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from mmssl.adapters.image import ImagePatches
from mmssl.adapters.specs import ImageSpec, VideoSpec
from mmssl.adapters.video import VideoTubelets
from mmssl.encoders.base import Encoder
from mmssl.encoders.vit import ViT, ViTSettings
from mmssl.objectives.contrastive import Contrastive
from mmssl.objectives.info_nce import info_nce
from mmssl.objectives.masked_autoencoder import MaskedAutoencoder
from mmssl.objectives.masks import RandomMask, RunningCellMask, TubeMask
from mmssl.objectives.moco import MoCo
from mmssl.types import Batch, Encoded

TOLERANCE = 1e-5
"""Of losses; of gradients, relative to the largest entry of each."""

VITMAE_BLOCK = {
    "norm1": ["layernorm_before"],
    "attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    "attn.proj": ["attention.o_proj"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["mlp.fc1"],
    "mlp.fc2": ["mlp.fc2"],
}
VIDEOMAE_BLOCK = {
    "norm1": ["layernorm_before"],
    "attn.qkv": ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    "attn.proj": ["attention.output.dense"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
}


def block_map(
    ours: str, theirs: str, table: dict[str, list[str]], depth: int, kinds: list[str]
) -> dict[str, list[str]]:
    return {
        f"{ours}.{i}.{name}.{kind}": [f"{theirs}.{i}.{part}.{kind}" for part in parts]
        for i in range(depth)
        for name, parts in table.items()
        for kind in kinds
        if (name, kind) != ("attn.qkv", "bias") or "key" not in parts[1]
    }


def assert_same_gradients(ours: nn.Module, theirs: nn.Module, names: dict[str, list[str]]) -> None:
    """`names` must cover every trainable parameter of both sides, so that none goes unproven."""
    left = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    right = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    assert set(left) == set(names)
    assert set(right) == {part for parts in names.values() for part in parts}
    for name, parts in names.items():
        gradients = [right[part].grad for part in parts]
        assert all(gradient is not None for gradient in gradients), parts
        expected = torch.cat([gradient for gradient in gradients if gradient is not None])
        actual = left[name].grad
        assert actual is not None, name
        scale = expected.abs().max().clamp(min=1e-8)
        assert (actual.reshape(-1) - expected.reshape(-1)).abs().max() <= TOLERANCE * scale, name


def copy_weights(ours: nn.Module, theirs: nn.Module, names: dict[str, list[str]]) -> None:
    source = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.cat([source[part] for part in names[name]]).reshape(parameter.shape))


def randomise(module: nn.Module) -> None:
    """Every parameter away from its start, so that zero biases and unit norms cannot hide a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def a_batch(view: Tensor, noise: dict[str, Tensor]) -> Batch:
    return Batch(views={"view": view}, index=torch.arange(len(view)), noise=noise)


@pytest.mark.parametrize("normalise", [True, False])
def test_mae_equals_transformers(normalise: bool) -> None:
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8,
        decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=128, norm_pix_loss=normalise, mask_ratio=0.75, layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = ViTMAEForPreTraining(config)
    # transformers 5.23 leaves both tables of positions of a fresh model at zero; its own functions fill them.
    del theirs.vit.embeddings.patch_embeddings.projection._is_hf_initialized
    theirs.vit.embeddings.initialize_weights()
    theirs.decoder.initialize_weights(16)
    assert theirs.vit.embeddings.position_embeddings.any()
    assert theirs.decoder.decoder_pos_embed.any()
    randomise(theirs)
    encoder = ViT(ImagePatches(ImageSpec(size=32, patch=8), 48), ViTSettings(width=48, depth=2, heads=4))
    ours = MaskedAutoencoder(
        encoder, mask=RandomMask(0.75), decoder_width=32, decoder_depth=2, decoder_heads=2,
        target="patch_norm_joint" if normalise else "pixels",
    )  # fmt: skip
    kinds = ["weight", "bias"]
    names = {
        "encoder.prefix": ["vit.embeddings.cls_token"],
        "encoder.adapter.projection.weight": ["vit.embeddings.patch_embeddings.projection.weight"],
        "encoder.adapter.projection.bias": ["vit.embeddings.patch_embeddings.projection.bias"],
        "mask_token": ["decoder.mask_token"],
        **{f"encoder.norm.{kind}": [f"vit.layernorm.{kind}"] for kind in kinds},
        **{f"projection.{kind}": [f"decoder.decoder_embed.{kind}"] for kind in kinds},
        **{f"norm.{kind}": [f"decoder.decoder_norm.{kind}"] for kind in kinds},
        **{f"head.{kind}": [f"decoder.decoder_pred.{kind}"] for kind in kinds},
        **block_map("encoder.blocks", "vit.layers", VITMAE_BLOCK, 2, kinds),
        **block_map("decoder", "decoder.decoder_layers", VITMAE_BLOCK, 2, kinds),
    }
    copy_weights(ours, theirs, names)

    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    noise = torch.rand(3, 16)
    output = ours(a_batch(images, {"mask": noise}))
    output.loss.backward()
    expected = theirs(encoder.adapter.pixels(images)[:, :, 0], noise=noise)
    expected.loss.backward()
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=TOLERANCE)
    assert output.count.item() == 3 * 12 == expected.mask.sum().item()
    assert_same_gradients(ours, theirs, names)


def videomae_pair() -> tuple[MaskedAutoencoder, VideoMAEForPreTraining, dict[str, list[str]]]:
    config = VideoMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8,
        num_frames=4, tubelet_size=2, decoder_hidden_size=32, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2, decoder_intermediate_size=128, norm_pix_loss=True, use_mean_pooling=False,
        layer_norm_eps=1e-6, qv_bias=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = VideoMAEForPreTraining(config)
    theirs.decoder.norm.eps = 1e-6  # as in the authors' model; transformers has 1e-5 here
    randomise(theirs)
    settings = ViTSettings(width=48, depth=2, heads=4, prefix=0, positions="sincos1d", qkv_bias="qv")
    ours = MaskedAutoencoder(
        ViT(VideoTubelets(VideoSpec(size=32, frames=4, patch=8, tubelet=2), 48), settings),
        mask=TubeMask(0.75), decoder_width=32, decoder_depth=2, decoder_heads=2, decoder_bias="qv",
        projection_bias=False, target="patch_norm_channel",
    )  # fmt: skip
    kinds = ["weight", "bias"]
    names = {
        "encoder.adapter.projection.weight": ["videomae.embeddings.patch_embeddings.projection.weight"],
        "encoder.adapter.projection.bias": ["videomae.embeddings.patch_embeddings.projection.bias"],
        "mask_token": ["mask_token"],
        "projection.weight": ["encoder_to_decoder.weight"],
        **{f"encoder.norm.{kind}": [f"videomae.layernorm.{kind}"] for kind in kinds},
        **{f"norm.{kind}": [f"decoder.norm.{kind}"] for kind in kinds},
        **{f"head.{kind}": [f"decoder.head.{kind}"] for kind in kinds},
    }
    for mine, hub in (("encoder.blocks", "videomae.encoder.layer"), ("decoder", "decoder.decoder_layers")):
        names |= block_map(mine, hub, VIDEOMAE_BLOCK, 2, kinds)
        for i in range(2):
            names[f"{mine}.{i}.attn.q_bias"] = [f"{hub}.{i}.attention.attention.query.bias"]
            names[f"{mine}.{i}.attn.v_bias"] = [f"{hub}.{i}.attention.attention.value.bias"]
    copy_weights(ours, theirs, names)
    return ours, theirs, names


def test_videomae_equals_transformers() -> None:
    torch.manual_seed(0)
    ours, theirs, names = videomae_pair()
    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    noise = torch.rand(3, 16)
    output = ours(a_batch(clips, {"mask": noise}))
    output.loss.backward()
    pixels = ours.require_tokens().adapter.pixels(clips).transpose(1, 2)
    expected = theirs(pixels, bool_masked_pos=ours.mask(noise, ours.grid).boolean())
    expected.loss.backward()
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=TOLERANCE)
    assert output.count.item() == 3 * 2 * 12
    assert_same_gradients(ours, theirs, names)


def test_decoder_masking_follows_the_formula_of_videomae_v2() -> None:
    """sum(l * m) / sum(m) over decoded tokens, m = hidden from the encoder: recomputed with transformers' parts and a
    boolean mask."""
    torch.manual_seed(0)
    ours, theirs, _ = videomae_pair()
    ours.decoder_mask = RunningCellMask(0.5)
    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    noise = {"mask": torch.rand(3, 16), "decoder_mask": torch.rand(3, 1)}
    output = ours(a_batch(clips, noise))

    adapter = ours.require_tokens().adapter
    hidden = ours.mask(noise["mask"], ours.grid).boolean()
    decoded = ~ours.decoder_mask(noise["decoder_mask"], ours.grid).boolean()
    assert decoded.sum(1).tolist() == [16] * 3
    pixels = adapter.pixels(clips)
    visible = theirs.encoder_to_decoder(
        theirs.videomae(pixels.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state
    )
    positions = theirs.position_embeddings.expand(3, -1, -1)
    sequence = [visible + positions[~hidden].view(3, -1, 32), theirs.mask_token + positions[decoded].view(3, -1, 32)]
    prediction = theirs.decoder(torch.cat(sequence, 1), 16).logits
    patches = adapter.patches(adapter.denormalise(pixels))[decoded].view(3, 16, -1, 3)
    target = (patches - patches.mean(2, keepdim=True)) / (patches.std(2, keepdim=True) + 1e-6)
    error = (prediction - target.flatten(2)).square().mean(2)
    weight = hidden[decoded].view(3, 16).float()
    assert 0 < weight.sum() < weight.numel()
    assert output.loss.item() == pytest.approx(((error * weight).sum() / weight.sum()).item(), rel=TOLERANCE)
    assert output.count.item() == weight.sum().item()


def numpy_info_nce(
    anchors: np.ndarray, positives: np.ndarray, negatives: list[np.ndarray], temperature: float
) -> float:
    losses = []
    for anchor, positive, others in zip(anchors, positives, negatives, strict=True):
        logits = np.concatenate([[anchor @ positive], others @ anchor]) / temperature
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0])
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_info_nce_equals_float64_numpy(temperature: float) -> None:
    generator = np.random.default_rng(0)
    anchors, positives, candidates = (generator.normal(size=(n, 7)) for n in (5, 5, 9))
    ignore = np.stack([generator.choice(9, 2, replace=False) for _ in range(5)])
    negatives = [np.delete(candidates, columns, axis=0) for columns in ignore]
    expected = numpy_info_nce(anchors, positives, negatives, temperature)
    tensors = [torch.tensor(array, dtype=torch.float32) for array in (anchors, positives, candidates)]
    actual = info_nce(*tensors, temperature=temperature, ignore=torch.tensor(ignore))
    assert actual.loss.item() == pytest.approx(expected, rel=1e-5)
    wins = [
        max(others @ anchor) < anchor @ own for anchor, own, others in zip(anchors, positives, negatives, strict=True)
    ]
    assert actual.accuracy.item() == pytest.approx(np.mean(wins))


class Vectors(Encoder):
    """Stands in for an encoder: the view is the pooled output."""

    spec, width, pooling = ImageSpec(), 16, "mean"

    def forward(self, view: Tensor, *, lengths: Tensor | None = None, hidden: bool = False) -> Encoded:
        return Encoded(pooled=view)


def test_simclr_equals_lightlys_nt_xent() -> None:
    lightly_loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.2)
    torch.manual_seed(0)
    first, second = torch.randn(6, 16, requires_grad=True), torch.randn(6, 16, requires_grad=True)
    objective = Contrastive(Vectors(), layers=1, out=16, norm="none", temperature=0.2)
    objective.projector = nn.Identity()
    output = objective(Batch(views={"a": first, "b": second}, index=torch.arange(6)))
    actual = torch.autograd.grad(output.loss, [first, second])
    expected_loss = lightly_loss(first, second)
    expected = torch.autograd.grad(expected_loss, [first, second])
    assert output.loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    for gradient, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-7)


def test_cola_equals_its_formula_in_numpy() -> None:
    """Softmax cross-entropy over a^T W p of layer-normed, tanh-squashed projections, anchors to positives only, no
    temperature."""
    torch.manual_seed(0)
    first, second = torch.randn(5, 16), torch.randn(5, 16)
    objective = Contrastive(
        Vectors(),
        layers=1,
        out=8,
        norm="none",
        similarity="bilinear",
        symmetric=False,
        temperature=1.0,
    )
    output = objective(Batch(views={"a": first, "b": second}, index=torch.arange(5)))
    weights = {name: p.detach().double().numpy() for name, p in objective.named_parameters()}

    def squash(x: Tensor) -> np.ndarray:
        y = x.double().numpy() @ weights["projector.0.0.weight"].T + weights["projector.0.0.bias"]
        return np.tanh((y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-3))

    logits = squash(first) @ weights["bilinear.weight"].T @ squash(second).T
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.count.item() == 5


def test_moco_equals_a_plain_recomputation_over_steps() -> None:
    """He et al., algorithm 1, with a Python list for the queue and a loop for the average, over five steps of SGD, one
    of them not applied: every loss, the queue and its pointer, the teacher and the student."""
    torch.manual_seed(0)
    encoder = ViT(ImagePatches(ImageSpec(size=16, patch=8), 16), ViTSettings(width=16, depth=1, heads=2))
    objective = MoCo(encoder, queue=8, momentum=0.9, temperature=0.2, hidden=16, out=4)
    student = nn.ModuleDict({"encoder": copy.deepcopy(encoder), "projector": copy.deepcopy(objective.projector)})
    teacher = copy.deepcopy(student)
    queue = list(objective.queue.clone())
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.1)
    reference = torch.optim.SGD(student.parameters(), lr=0.1)

    def embed(network: nn.ModuleDict, view: Tensor) -> Tensor:
        return F.normalize(network["projector"](network["encoder"](view).pooled), dim=1)

    pointer = 0
    for step in range(5):
        applied = step != 3
        first, second = (torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8) for _ in range(2))
        halves = [Batch({"a": first[i : i + 2], "b": second[i : i + 2]}, torch.arange(2)) for i in (0, 2)]
        outputs = [objective(half) for half in halves]  # two micro-batches
        for output in outputs:
            (output.loss * output.count / 4).backward()
        if applied:
            optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step, 5, torch.tensor(applied))

        queries, keys = embed(student, first), embed(teacher, second).detach()
        losses = []
        for query, key in zip(queries, keys, strict=True):
            logits = torch.stack([query @ key, *[query @ old for old in queue]]) / 0.2
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
        loss = torch.stack(losses).mean()
        assert torch.stack([output.loss for output in outputs]).mean().item() == pytest.approx(loss.item(), rel=1e-5)
        if applied:
            reference.zero_grad()
            loss.backward()
            reference.step()
            with torch.no_grad():
                for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                    slow.copy_(0.9 * slow + 0.1 * fast)
            for key in keys:
                queue[pointer] = key
                pointer = (pointer + 1) % 8
        assert objective.pointer.item() == pointer
        torch.testing.assert_close(objective.queue, torch.stack(queue), rtol=1e-5, atol=1e-6)
        for mine, plain in ((objective.teacher, teacher), (objective.encoder, student["encoder"])):
            for (name, actual), expected in zip(mine.named_parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, msg=name)

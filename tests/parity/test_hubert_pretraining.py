"""HuBERT's training step against torchaudio's HuBERTPretrainModel on equal weights and an equal mask: logits of masked
and unmasked frames, loss with the feature penalty, and the gradient of every parameter, for BASE's and LARGE's kind of
encoder. torchaudio's loss is put together as its recipe and fairseq's criterion do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.models import HuBERTPretrainModel, hubert_pretrain_model

from mmssl.adapters.specs import WaveformSpec
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.objectives.spans import SpanMask
from mmssl.targets.codebook import Codebook
from mmssl.types import Batch, Tokens

CODES, LAYERS = 30, 3


class GivenMask(nn.Module):
    """torchaudio's mask generator, without its draws."""

    def __init__(self, mask_embedding: nn.Parameter, mask: Tensor) -> None:
        super().__init__()
        self.mask_embedding, self.mask = mask_embedding, mask

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.where(self.mask[..., None], self.mask_embedding, x), self.mask


def theirs(large: bool) -> HuBERTPretrainModel:
    channels = [(24, 10, 5)] + [(24, 3, 2)] * 4 + [(24, 2, 2)] * 2
    return hubert_pretrain_model(
        extractor_mode="layer_norm" if large else "group_norm",
        extractor_conv_layer_config=channels,
        extractor_conv_bias=False,
        encoder_embed_dim=32,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=16,
        encoder_pos_conv_groups=4,
        encoder_num_layers=LAYERS,
        encoder_num_heads=4,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=64,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=large,
        encoder_layer_drop=0.0,
        mask_prob=0.8,
        mask_selection="static",
        mask_other=0.0,
        mask_length=10,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=False,
        num_classes=CODES,
        final_dim=16,
        feature_grad_mult=None if large else 0.1,
    )


def ours(large: bool) -> MaskedPrediction:
    spec = WaveformSpec(seconds=1.0, channels=(24,) * 7, norm="layer" if large else "group")
    settings = SpeechSettings(
        width=32, depth=LAYERS, heads=4, mlp_ratio=2.0, pre_norm=large, dropout=0.0, attention_dropout=0.0,
        input_dropout=0.0, layer_drop=0.0, feature_gradient=1.0 if large else 0.1, position_kernel=16,
        position_groups=4,
    )  # fmt: skip
    codebook = Codebook(torch.randn(CODES, 3), "three values")
    return MaskedPrediction(
        SpeechEncoder(spec, settings), codebook=codebook, mask=SpanMask(), head_width=16, feature_penalty=10.0
    )


def names(model: nn.Module) -> dict[str, str]:
    """torchaudio's name -> ours."""
    found = {}
    for name, _ in model.named_parameters():
        own = name
        for old, new in (
            ("wav2vec2.feature_extractor.", "encoder.adapter.feature_extractor."),
            ("wav2vec2.encoder.feature_projection.", "encoder.adapter.feature_projection."),
            (
                "wav2vec2.encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0",
                "encoder.position.weight_g",
            ),
            (
                "wav2vec2.encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1",
                "encoder.position.weight_v",
            ),
            ("wav2vec2.encoder.transformer.pos_conv_embed.conv.", "encoder.position."),
            ("wav2vec2.encoder.transformer.layers.", "encoder.blocks."),
            ("wav2vec2.encoder.transformer.layer_norm.", "encoder.norm."),
            ("mask_generator.mask_embedding", "encoder.mask_token"),
            ("logit_generator.label_embeddings", "head.codes"),
            ("logit_generator.final_proj.", "head.project."),
        ):
            if own.startswith(old):
                own = new + own.removeprefix(old)
                break
        found[name] = own
    return found


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_a_step_is_that_of_torchaudio(large: bool) -> None:
    torch.manual_seed(0)
    peer, objective = theirs(large).train(), ours(large).train()
    table = names(peer)
    own = dict(objective.named_parameters())
    assert set(table.values()) == set(own), "every parameter has its counterpart"
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("codes") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))  # no norm at its start
            own[table[name]].copy_(parameter.view_as(own[table[name]]))

    view = 0.3 * torch.randn(3, 29 * 320 + 400)
    units = torch.randint(0, CODES, (3, 30))
    noise = {"mask": torch.rand(3, objective.noise["mask"])}
    mask = SpanMask()(noise["mask"], (1, 1, 30))
    mask &= mask.cumsum(1) <= mask.sum(1).min()  # torchaudio cuts all masks of a batch to the smallest

    def given(noise: Tensor, tokens: Tokens) -> Tensor:
        return mask

    objective.draw = given  # type: ignore[method-assign]
    peer.mask_generator = GivenMask(peer.mask_generator.mask_embedding, mask)

    masked, unmasked, penalty = peer(view, units)
    zeros = torch.zeros(len(masked), dtype=torch.long)
    their_loss = F.cross_entropy(masked, zeros, reduction="sum") / len(masked) + 10 * penalty
    their_loss.backward()
    batch = Batch({"view": view}, torch.arange(3), noise, {"units": units})
    output = objective(batch)
    output.loss.backward()

    torch.testing.assert_close(output.loss, their_loss, rtol=1e-5, atol=0)
    assert output.count.item() == len(masked)
    assert output.metrics["feature_penalty"].item() == pytest.approx(penalty.item(), rel=1e-5)
    _, drawn, logits = objective.predict(batch, units)
    assert torch.equal(drawn, mask)
    right = logits.gather(2, units[..., None])[..., 0]
    torch.testing.assert_close(right[mask], masked[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(right[~mask], unmasked[:, 0], rtol=1e-4, atol=1e-4)
    their_accuracy = (masked.argmax(1) == 0).float().mean().item()
    assert output.metrics["masked_accuracy"].item() == pytest.approx(their_accuracy)
    for name, parameter in peer.named_parameters():
        found, expected = own[table[name]].grad, parameter.grad
        assert found is not None, name
        assert expected is not None, name
        expected = expected.view_as(found)
        if name.endswith("k_proj.bias"):  # softmax does not see it: its gradient is rounding
            assert max(found.abs().max().item(), expected.abs().max().item()) < 1e-5
            continue
        scale = expected.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale, msg=name)

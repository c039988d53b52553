"""HuBERT's training step against torchaudio's HuBERTPretrainModel, on identical work.

Same widths, layers and dropouts, no layer drop, same audio, units and masked frames, feature penalty and fused AdamW on
both sides; before timing, equal weights must give equal parameters and losses. torchaudio is given the finished mask,
so that the comparison leans towards it. Its factory functions and its training script also compute the logits and the
cross-entropy of frames that are not masked and multiply them by 0; the last row leaves that out.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timing import compare, table
from torch import Tensor, nn
from torchaudio.models import HuBERTPretrainModel, hubert_pretrain_model
from train_step import Step, stepper

from mmssl.adapters.specs import WaveformSpec
from mmssl.encoders.speech import SpeechEncoder, SpeechSettings
from mmssl.objectives.masked_prediction import MaskedPrediction
from mmssl.objectives.spans import SpanMask
from mmssl.targets.codebook import Codebook
from mmssl.training.start import compile_blocks
from mmssl.types import Batch

CHANNELS, WIDTH, DEPTH, HEADS, CODES = 256, 384, 6, 6, 100
RECORDINGS, SECONDS, RATE = 2, 5, 16000
HEAD_WIDTH, PENALTY = 256, 10.0


def our_objective() -> MaskedPrediction:
    spec = WaveformSpec(seconds=float(SECONDS), channels=(CHANNELS,) * 7)
    settings = SpeechSettings(width=WIDTH, depth=DEPTH, heads=HEADS, layer_drop=0.0)
    codebook = Codebook(torch.randn(CODES, 3), "three values")
    return MaskedPrediction(
        SpeechEncoder(spec, settings),
        codebook=codebook,
        mask=SpanMask(),
        head_width=HEAD_WIDTH,
        feature_penalty=PENALTY,
    )


def our_batch(objective: MaskedPrediction) -> Batch:
    """Draws are the same for all recordings: equally many masked frames, as torchaudio has them."""
    generator = torch.Generator().manual_seed(0)
    view = 0.1 * torch.randn(RECORDINGS, RATE * SECONDS, generator=generator)
    units = torch.randint(0, CODES, (RECORDINGS, objective.grid[2]), generator=generator)
    noise = torch.rand(1, objective.noise["mask"], generator=generator).repeat(RECORDINGS, 1)
    return Batch({"view": view}, torch.arange(RECORDINGS), {"mask": noise}, {"units": units})


class GivenMask(nn.Module):
    """torchaudio's mask generator without its draws."""

    def __init__(self, mask_embedding: nn.Parameter, mask: Tensor) -> None:
        super().__init__()
        self.mask_embedding, self.mask = mask_embedding, mask

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.where(self.mask[..., None], self.mask_embedding, x), self.mask


def their_model(mask: Tensor, skip_nomask: bool) -> HuBERTPretrainModel:
    """torchaudio's hubert_pretrain_base with other widths."""
    model = hubert_pretrain_model(
        extractor_mode="group_norm",
        extractor_conv_layer_config=[(CHANNELS, 10, 5)] + [(CHANNELS, 3, 2)] * 4 + [(CHANNELS, 2, 2)] * 2,
        extractor_conv_bias=False,
        encoder_embed_dim=WIDTH,
        encoder_projection_dropout=0.1,
        encoder_pos_conv_kernel=128,
        encoder_pos_conv_groups=16,
        encoder_num_layers=DEPTH,
        encoder_num_heads=HEADS,
        encoder_attention_dropout=0.1,
        encoder_ff_interm_features=4 * WIDTH,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.1,
        encoder_layer_norm_first=False,
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
        skip_nomask=skip_nomask,
        num_classes=CODES,
        final_dim=HEAD_WIDTH,
        feature_grad_mult=0.1,
    )
    model.mask_generator = GivenMask(model.mask_generator.mask_embedding, mask)
    return model


def first_against_others(masked: Tensor, visible: Tensor | None = None) -> Tensor:
    """Cross-entropy where the right code is the first, mean of masked frames; visible ones by torchaudio's 0."""
    zeros = torch.zeros(len(masked), dtype=torch.long)
    loss = F.cross_entropy(masked, zeros, reduction="sum")
    if visible is not None:
        zeros = torch.zeros(len(visible), dtype=torch.long)
        loss = loss + 0.0 * F.cross_entropy(visible, zeros, reduction="sum")
    return loss / len(masked)


def their_loss(model: HuBERTPretrainModel, batch: Batch) -> Tensor:
    masked, visible, penalty = model(batch.views["view"], batch.targets["units"])
    return first_against_others(masked, visible) + PENALTY * penalty


def sides(skip_nomask: bool = False) -> tuple[MaskedPrediction, HuBERTPretrainModel, Batch]:
    torch.manual_seed(0)
    objective = our_objective().train()
    batch = our_batch(objective)
    mask = SpanMask()(batch.noise["mask"], objective.grid)
    return objective, their_model(mask, skip_nomask).train(), batch


def our_step(*, compiled: bool = False) -> Step:
    objective, _, batch = sides()
    if compiled:
        compile_blocks(objective, torch.device("cpu"))
    return stepper(objective, lambda: objective(batch).loss)


def their_step(*, skip_nomask: bool = False) -> Step:
    _, model, batch = sides(skip_nomask)
    return stepper(model, lambda: their_loss(model, batch))


NAMES = (
    ("wav2vec2.encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.position.weight_g"),
    ("wav2vec2.encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.position.weight_v"),
    ("wav2vec2.encoder.transformer.pos_conv_embed.conv", "encoder.position"),
    ("wav2vec2.encoder.transformer.layers", "encoder.blocks"),
    ("wav2vec2.encoder.transformer.layer_norm", "encoder.norm"),
    ("wav2vec2.encoder.feature_projection", "encoder.adapter.feature_projection"),
    ("wav2vec2.feature_extractor", "encoder.adapter.feature_extractor"),
    ("mask_generator.mask_embedding", "encoder.mask_token"),
    ("logit_generator.label_embeddings", "head.codes"),
    ("logit_generator.final_proj", "head.project"),
)
"""Beginnings of torchaudio's names and ours."""


def check_step() -> int:
    """Parameters of both sides, once equal weights have given an equal loss without dropout."""
    objective, model, batch = sides()
    own = dict(objective.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            old, new = next(pair for pair in NAMES if name.startswith(pair[0]))
            target = own.pop(new + name.removeprefix(old))
            target.copy_(parameter.view_as(target))
        assert not own, f"torchaudio has no {sorted(own)}"
        ours, theirs = objective.eval()(batch).loss, their_loss(model.eval(), batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    return sum(parameter.numel() for parameter in model.parameters())


def run(rounds: int = 3) -> str:
    """The table as Markdown."""
    parameters = check_step()
    rows = compare(
        {
            "mmssl audio/hubert": our_step,
            "mmssl audio/hubert, compiled": partial(our_step, compiled=True),
            "torchaudio HuBERTPretrainModel as its factories make it": their_step,
            "torchaudio HuBERTPretrainModel, masked frames only": partial(their_step, skip_nomask=True),
        },
        rounds,
    )
    size = f"{CHANNELS} channels, trunk {WIDTH} x {DEPTH} ({parameters / 1e6:.1f} M parameters), {CODES} codes"
    title = f"### HuBERT, {size}, {RECORDINGS} x {SECONDS} s, fp32"
    return f"{title}\n\n" + table(rows, rate=("audio s/s", RECORDINGS * SECONDS))


if __name__ == "__main__":
    print(run())

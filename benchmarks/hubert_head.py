"""HuBERT's loss head alone, from what the trunk gives to the loss and back: one matrix product over all frames, weighed
by the mask, against every masked frame's own code before all codes, as fairseq and torchaudio compare them.

Widths and codes of BASE's second iteration. The same projection, codes, units and masked frames for all of them, and
equal losses before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from hubert import RATE, SECONDS, first_against_others
from timing import compare, table
from torch import Tensor
from torchaudio.models.wav2vec2.components import LogitGenerator
from train_step import Step

from mmssl.adapters.specs import WaveformSpec
from mmssl.objectives.masked_prediction import CosineHead, weighted_cross_entropy
from mmssl.objectives.spans import SpanMask

CODES, TRUNK, WIDTH, TEMPERATURE = 500, 768, 256, 0.1
RECORDINGS = 1


def head_inputs() -> tuple[CosineHead, Tensor, Tensor, Tensor]:
    """The head, what a trunk gives, the units and the mask."""
    torch.manual_seed(0)
    frames = WaveformSpec().frames_of(RATE * SECONDS)
    spans = SpanMask()
    mask = spans(torch.rand(RECORDINGS, spans.noise((1, 1, frames))), (1, 1, frames))
    x = torch.randn(RECORDINGS, frames, TRUNK, requires_grad=True)
    units = torch.randint(0, CODES, (RECORDINGS, frames))
    return CosineHead(TRUNK, CODES, width=WIDTH, temperature=TEMPERATURE), x, units, mask


def matrix_head() -> Callable[[], Tensor]:
    head, x, units, mask = head_inputs()
    return lambda: weighted_cross_entropy(head(x), units, mask.float())[0]


def torchaudio_head() -> Callable[[], Tensor]:
    head, x, units, mask = head_inputs()
    peer = LogitGenerator(TRUNK, CODES, WIDTH, skip_masked=False, skip_nomask=True)
    peer.final_proj, peer.label_embeddings = head.project, head.codes
    return lambda: first_against_others(*peer(x, units, mask, ~mask))


def fairseq_head() -> Callable[[], Tensor]:
    """Every masked frame is compared with its own code and then with all of them, of which its own gets -inf."""
    head, x, units, mask = head_inputs()

    def loss() -> Tensor:
        frames, right = head.project(x[mask]), units[mask]
        candidates = torch.cat([head.codes[right].unsqueeze(1), head.codes.expand(len(frames), -1, -1)], 1)
        logits = F.cosine_similarity(frames.unsqueeze(1), candidates, dim=2) / TEMPERATURE
        again = F.one_hot(right + 1, CODES + 1).bool()
        return first_against_others(logits.masked_fill(again, -torch.inf))

    return loss


def head_step(make: Callable[[], Callable[[], Tensor]]) -> Step:
    loss = make()
    return lambda: loss().backward()


def check_heads() -> None:
    """All three give the same loss."""
    with torch.no_grad():
        ours, *others = (make()() for make in (matrix_head, torchaudio_head, fairseq_head))
    for other in others:
        torch.testing.assert_close(other, ours, rtol=1e-5, atol=0)


def run(rounds: int = 3) -> str:
    """The table as Markdown."""
    check_heads()
    rows = compare(
        {
            "mmssl, one matrix product over all frames": partial(head_step, matrix_head),
            "fairseq's formulation written out, masked frames only": partial(head_step, fairseq_head),
            "torchaudio LogitGenerator, masked frames only": partial(head_step, torchaudio_head),
        },
        rounds,
    )
    title = f"### HuBERT's loss head alone, {CODES} codes, {RECORDINGS} x {SECONDS} s, forward and backward"
    return f"{title}\n\n" + table(rows, "pass", rate=("audio s/s", RECORDINGS * SECONDS))


if __name__ == "__main__":
    print(run())

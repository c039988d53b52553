"""A speech encoder with a CTC head: a linear head fine-tuned with it, and heads on the frozen sum of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoders.configs import config_of
from mmssl.encoders.layouts import WAVLM, layout_of
from mmssl.encoders.processors import processor_config
from mmssl.encoders.speech import SpeechEncoder
from mmssl.encoders.weights import to_hub
from mmssl.evaluation.layer_states import states_of
from mmssl.evaluation.speech.transcripts import BLANK, SPACE, UNKNOWN, Vocabulary
from mmssl.files import save_tensors, write_json, writing


def ctc_loss(logits: Tensor, frames: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
    """CTC's negative log-likelihood, fp32 [J]: the mean over recordings, each over the length of its transcript, for J
    heads. A transcript of more symbols than frames weighs nothing.

    Args:
        logits: [J,B,T,V]. frames: int64 [B], real frames. targets: int64 [B,S]. sizes: int64 [B], real symbols.
    """
    with torch.autocast(logits.device.type, enabled=False):
        heads, batch = logits.shape[:2]
        log_probs = logits.float().log_softmax(-1).flatten(0, 1).transpose(0, 1)  # [T,J*B,V]
        losses = F.ctc_loss(
            log_probs,
            targets.repeat(heads, 1),
            frames.repeat(heads),
            sizes.repeat(heads),
            blank=0,
            reduction="none",
            zero_infinity=True,
        )
        return (losses / sizes.repeat(heads).clamp_min(1)).view(heads, batch).mean(1)


class FrozenCTC(nn.Module):
    """J linear heads on softmax-weighted sums of the layers of a frozen encoder (SUPERB, arXiv:2105.01051). States are
    layer-normed without factors first, so that one grid of rates fits all encoders (an option in SUPERB's code)."""

    def __init__(self, encoder: SpeechEncoder, symbols: int, heads: int) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        layers = len(encoder.blocks) + 1
        self.shares = nn.ParameterList(nn.Parameter(torch.zeros(layers)) for _ in range(heads))
        self.linear = nn.ModuleList(nn.Linear(encoder.width, symbols) for _ in range(heads))

    def groups(self, rates: tuple[float, ...]) -> list[dict[str, Any]]:
        """Optimiser groups, one a head."""
        parts = zip(self.shares, self.linear, rates, strict=True)
        return [{"params": [share, *linear.parameters()], "lr": rate, "peak": rate} for share, linear, rate in parts]

    def train(self, mode: bool = True) -> FrozenCTC:
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, view: Tensor, lengths: Tensor) -> Tensor:
        """Logits [J,B,T,V] of waveforms [B,S]."""
        with torch.no_grad():
            states = states_of(self.encoder(view, lengths=lengths, hidden=True))[..., 0, :]  # [B,L,T,D]
            states = F.layer_norm(states, states.shape[-1:])
        mixed = [torch.einsum("l,bltd->btd", share.softmax(0), states) for share in self.shares]
        return torch.stack([linear(x) for linear, x in zip(self.linear, mixed, strict=True)])


class TunedCTC(nn.Module):
    """An encoder and one linear head, as HubertForCTC; the convolutions stay as they are (HuBERT, section IV)."""

    def __init__(self, encoder: SpeechEncoder, symbols: int) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.adapter.feature_extractor.requires_grad_(False)
        self.lm_head = nn.Linear(encoder.width, symbols)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        nn.init.zeros_(self.lm_head.bias)

    def groups(self, rates: tuple[float, ...]) -> list[dict[str, Any]]:
        (rate,) = rates
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": rate, "peak": rate}]

    def forward(self, view: Tensor, lengths: Tensor) -> Tensor:
        """Logits [1,B,T,V] of waveforms [B,S]."""
        tokens = self.encoder(view, lengths=lengths).tokens
        assert tokens is not None
        return self.lm_head(tokens)[None]

    def save_pretrained(self, folder: Path, vocabulary: Vocabulary, facts: Mapping[str, Any]) -> None:
        """Write the model as transformers' HubertForCTC or WavLMForCTC, with tokenizer and feature extractor."""
        encoder = self.encoder
        layout = layout_of(encoder)
        architecture = "WavLMForCTC" if layout is WAVLM else "HubertForCTC"
        config = config_of(encoder, layout) | {
            "architectures": [architecture],
            "vocab_size": len(vocabulary),
            "pad_token_id": 0,
            "bos_token_id": None,
            "eos_token_id": None,
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": True,
            "final_dropout": 0.0,
        }
        hub = to_hub(encoder, layout, dict(encoder.state_dict()))
        weights = {layout.prefix + name: tensor for name, tensor in hub.items()}
        weights |= {f"lm_head.{name}": tensor for name, tensor in self.lm_head.state_dict().items()}
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        extractor = processor_config(encoder.spec, layout) | {"processor_class": "Wav2Vec2Processor"}
        tokenizer = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "processor_class": "Wav2Vec2Processor",
            "pad_token": BLANK,
            "unk_token": UNKNOWN,
            "word_delimiter_token": SPACE,
            "bos_token": None,
            "eos_token": None,
            "do_lower_case": False,
        }
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", config)
            write_json(folder / "preprocessor_config.json", extractor)
            write_json(folder / "tokenizer_config.json", tokenizer)
            write_json(folder / "vocab.json", {symbol: number for number, symbol in enumerate(vocabulary.symbols)})
            (folder / "README.md").write_text(_card(architecture, vocabulary, facts), encoding="utf-8")
            save_tensors(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _card(architecture: str, vocabulary: Vocabulary, facts: Mapping[str, Any]) -> str:
    lines = [
        "---",
        "library_name: transformers",
        "tags: [mmssl, automatic-speech-recognition]",
        "---",
        "# A fine-tuned speech recogniser",
        "",
        f"- Model: {architecture}, {len(vocabulary)} symbols",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "```python",
        "from transformers import AutoModelForCTC, AutoProcessor",
        "",
        "model, processor = AutoModelForCTC.from_pretrained(folder), AutoProcessor.from_pretrained(folder)",
        "```",
    ]
    return "\n".join(lines) + "\n"

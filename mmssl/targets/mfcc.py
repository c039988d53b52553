"""The 39 values a frame that HuBERT's first iteration clusters (Hsu et al. 2021, arXiv 2106.07447), batched."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import compute_deltas, create_dct

from mmssl.errors import UserError

RATE, WINDOW, HOP, FFT = 16000, 400, 160, 512
MELS, CEPSTRA, LIFTER, PREEMPHASIS, LOWEST_HZ = 23, 13, 22.0, 0.97, 20.0


class Mfcc(nn.Module):
    """Waveforms float32 [B,S] at 16 kHz in [-1,1] -> fp32 [B,N,39], N = (S - 400) // 160 + 1.

    13 MFCC with kaldi's defaults, without energy and dither, their deltas and the deltas of those, as fairseq's
    dump_mfcc_feature makes them: equal to torchaudio's `compliance.kaldi.mfcc` and `functional.compute_deltas` for each
    recording alone. Frames past `lengths` hold the values of the last real one, so that deltas at the end of a short
    recording do not depend on the others of its batch.
    """

    window: Tensor
    mel: Tensor
    dct: Tensor

    def __init__(self) -> None:
        super().__init__()
        banks, _ = get_mel_banks(MELS, FFT, float(RATE), LOWEST_HZ, 0.0, 100.0, -500.0, 1.0)
        dct = create_dct(MELS, MELS, "ortho")[:, :CEPSTRA]
        lifter = 1 + 0.5 * LIFTER * torch.sin(math.pi * torch.arange(CEPSTRA) / LIFTER)
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False).pow(0.85), persistent=False)
        self.register_buffer("mel", F.pad(banks, (0, 1)).T.contiguous(), persistent=False)
        self.register_buffer("dct", dct * lifter, persistent=False)

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features [B,N,39].

        Args:
            lengths: int64 [B], real samples of padded waveforms, each one window at least.

        Raises:
            UserError: the waveform is shorter than one window.
        """
        if waveform.shape[-1] < WINDOW:
            raise UserError(
                f"A recording of {waveform.shape[-1]} samples is shorter than one window of 25 ms ({WINDOW} samples): "
                "leave out recordings shorter than 25 ms."
            )
        with torch.autocast(waveform.device.type, enabled=False):
            cepstra = self._cepstra(waveform.float())
            last = None
            if lengths is not None:
                frames = torch.arange(cepstra.shape[1], device=cepstra.device)
                real = torch.div(lengths - WINDOW, HOP, rounding_mode="floor")
                last = torch.minimum(frames, real[:, None])[..., None].expand(-1, -1, CEPSTRA)  # [B,N,13]
                cepstra = cepstra.gather(1, last)
            deltas = _deltas(cepstra, last)
            return torch.cat([cepstra, deltas, _deltas(deltas, last)], dim=2)

    def _cepstra(self, waveform: Tensor) -> Tensor:
        frames = waveform.unfold(1, WINDOW, HOP)
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        frames = (frames - PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(frames, n=FFT).abs().square()
        mel = (power @ self.mel).clamp_min(torch.finfo(torch.float32).eps).log()
        return mel @ self.dct


def _deltas(x: Tensor, last: Tensor | None) -> Tensor:
    """Regression over 5 frames of x [B,N,13]; past the end, those of the last real frame."""
    deltas = compute_deltas(x.transpose(1, 2)).transpose(1, 2)
    return deltas if last is None else deltas.gather(1, last)

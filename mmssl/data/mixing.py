"""Part of another utterance, or of a noise, laid over an utterance whose labels stay clean: what makes WavLM out of
HuBERT (Chen et al. 2022, arXiv:2110.13900)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from mmssl.data.audio import read_audio
from mmssl.data.crops_audio import AudioCrops
from mmssl.data.media import Media, UnreadableMedia
from mmssl.data.sources import Source
from mmssl.data.views import Sample
from mmssl.errors import UserError
from mmssl.types import Batch

TRIES = 10
"""Noises tried before their folder is called broken."""


@dataclass(frozen=True)
class NoisyCrops(AudioCrops):
    """Crops of recordings, and beside them the view 'noise' float32 [S]: for a share of the samples, drawn for each, a
    random crop of a random noise, repeated where it is shorter than the crop; silence for the others.

    Raises:
        UserError: there is no noise, or none that can be read.
    """

    noise: Source | None = None
    noise_share: float = 0.1
    names: tuple[str, ...] = ("view", "noise")

    @classmethod
    def of(cls, crops: AudioCrops, noise: Source, share: float) -> NoisyCrops:
        """The same crops, with noises beside them."""
        own = {each.name: getattr(crops, each.name) for each in fields(AudioCrops) if each.name != "names"}
        return cls(**own, noise=noise, noise_share=share)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise is None or len(self.noise.rows(None)) == 0:
            raise UserError("There are no noises to mix in: name a folder of recordings, or mix utterances only.")
        if not 0 <= self.noise_share <= 1:
            raise UserError(
                f"A share of {self.noise_share} of the recordings cannot meet a noise: give one from 0 to 1."
            )

    def __call__(self, media: Media, rng: np.random.Generator) -> list[Sample]:
        return [replace(sample, views=self._with_noise(sample.views, rng)) for sample in super().__call__(media, rng)]

    def _with_noise(self, views: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        samples = len(views["view"])
        noisy = rng.random() < self.noise_share
        return {**views, "noise": self._draw(samples, rng) if noisy else torch.zeros(samples)}

    def _draw(self, samples: int, rng: np.random.Generator) -> Tensor:
        assert self.noise is not None
        rows, reason = self.noise.rows(None), ""
        for _ in range(TRIES):
            media = self.noise.media(int(rows[rng.integers(len(rows))]))
            try:
                wave = self._crop(media, samples, rng)
            except (UnreadableMedia, OSError, ValueError) as error:
                reason = str(error)
                continue
            return wave.repeat(-(-samples // len(wave)))[:samples]
        raise UserError(f"{TRIES} noises in a row could not be read ({reason}): mend their folder, or leave it out.")

    def _crop(self, media: Media, samples: int, rng: np.random.Generator) -> Tensor:
        total = self.total(media.record)
        if total is None:  # nobody verified this file, so its length is not known
            wave = read_audio(media, self.rate)
            first = int(rng.integers(max(len(wave) - samples, 0) + 1))
            wave = wave[first : first + samples]
        else:
            first = int(rng.integers(max(total - samples, 0) + 1))
            wave = read_audio(media, self.rate, start=first / self.rate, seconds=samples / self.rate)
        if len(wave) == 0:
            raise UnreadableMedia(f"{media.name}: no sound")
        return wave


@dataclass
class Mixing:
    """WavLM's mixing of waveforms [B,S]: a share of them get a part of another recording of the same micro-batch, or of
    their own noise (the view `noise`, where it is not silent), added.

    The part is between nothing and half the utterance long, and lies anywhere in both. It is scaled so that the power
    of the whole utterance over that of the whole other crop is uniform in decibel: `utterance_db` for utterances,
    `noise_db` for noises. The ranges are those of the authors' data code (microsoft/UniSpeech); a share of 0.2 and a
    noise share of 0.1 are our choice. There an utterance may meet itself; here its partner is always of another
    recording, and it stays alone where the micro-batch has none. Labels are never touched.
    """

    share: float = 0.2
    utterance_db: tuple[float, float] = (-5.0, 5.0)
    noise_db: tuple[float, float] = (-5.0, 20.0)
    view: str = "view"
    noise_view: str | None = None
    noise: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"A share of {self.share} of the utterances cannot be mixed: give one from 0 to 1.")
        self.noise = {"mixing": 6}

    def __call__(self, batch: Batch) -> Batch:
        view = batch.views[self.view]
        noise = None if self.noise_view is None else batch.views[self.noise_view]
        mixed = self._mix(view, noise, batch.noise["mixing"], batch.index, batch.lengths.get(self.view))
        return replace(batch, views={**batch.views, self.view: mixed})

    @torch.no_grad()
    def _mix(self, view: Tensor, noise: Tensor | None, draws: Tensor, index: Tensor, lengths: Tensor | None) -> Tensor:
        """float32 [B,S]; `draws` [B,6]: whether, with whom, how loud, how long, from where, to where."""
        S = view.shape[1]
        whether, whom, level, long, source, place = draws.unbind(1)
        real = torch.full_like(index, S) if lengths is None else lengths
        partner, met = partners(index, whom)
        other, other_real = view[partner], real[partner]
        (low, high), chosen = self.utterance_db, (whether < self.share) & met
        ratio = low + level * (high - low)
        power = view.square().sum(1) / real  # zeros follow the real samples
        other_power = power[partner]
        if noise is not None:
            noise_power = noise.square().mean(1)
            noisy = noise_power > 0
            other, other_real = torch.where(noisy[:, None], noise, other), torch.where(noisy, S, other_real)
            other_power = torch.where(noisy, noise_power, other_power)
            low, high = self.noise_db
            ratio = torch.where(noisy, low + level * (high - low), ratio)
            chosen = chosen | ((whether < self.share) & noisy)
        scale = torch.where(other_power > 0, power / other_power / 10 ** (ratio / 10), 0.0).sqrt()
        count = torch.minimum(_below(long, real // 2 + 1), other_real)  # samples added
        begin = _below(source, other_real - count + 1)
        at = _below(place, real - count + 1)
        time = torch.arange(S, device=view.device)
        added = (time >= at[:, None]) & (time < (at + count)[:, None]) & chosen[:, None]
        part = other.gather(1, (time + (begin - at)[:, None]).clamp(0, S - 1))
        return view + torch.where(added, scale[:, None] * part, 0.0)


def partners(index: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample one that is of another row, uniform among these by `draws` [B]: its place int64 [B], and whether
    there is any, bool [B]."""
    others = index[:, None] != index  # [B,B]
    count = others.sum(1)
    order = torch.argsort(others.to(torch.uint8), dim=1, descending=True, stable=True)
    return order.gather(1, _below(draws, count.clamp_min(1))[:, None])[:, 0], count > 0


def _below(draws: Tensor, bound: Tensor) -> Tensor:
    """Integers in [0, bound) from uniform draws; in float64, since float32 counts no further than 2^24."""
    return torch.minimum((draws.double() * bound).long(), bound - 1)

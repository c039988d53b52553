"""`mmssl evaluate propagation`: the first frame's masks or key points carried through each video by an encoder.

Beside the encoder stand, on the same frames, grid and protocol: the first labels copied to every frame (what a still
camera and a still object would give), the raw Lab values of each cell, and the same encoder untrained.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.frame import Figures, Settings, at_least, beside, by_name, run
from mmssl.evaluation.subject import evaluating, pick_device
from mmssl.evaluation.tracking.dense import DenseFeatures, lab_patches
from mmssl.evaluation.tracking.keypoints import joint_tracks
from mmssl.evaluation.tracking.masks import davis_tracks
from mmssl.evaluation.tracking.overlay import STRIP_FRAMES, Film, save_mask, save_strip, thumbnail
from mmssl.evaluation.tracking.propagation import PROTOCOLS, Propagation, Protocol, check_protocol, input_size
from mmssl.evaluation.tracking.table import COPIED, LAB, TRAINED, gain, joint_summary, mask_summary, print_result
from mmssl.evaluation.tracking.tracks import Track, to_tensor
from mmssl.files import writing


@dataclass(kw_only=True)
class PropagationSettings(Settings):
    """Carry the first frame's masks or key points through each video (DAVIS, JHMDB) by the likeness of features."""

    evaluation = "propagation"

    data: str
    """Folder in the layout of DAVIS (JPEGImages, Annotations, ImageSets), or with key points (Frames, Keypoints)."""
    out: Path
    """JSON file for all figures and settings; films and strips go into a folder of its name beside it."""
    protocol: Literal["dino", "crw"] = "dino"
    """The published evaluation whose numbers are used; every option below replaces one of them."""
    split: str = "val"
    """List of videos under ImageSets, such as val or 2016/val; 'all' takes every folder."""
    resolution: str = ""
    """Folder under JPEGImages and Annotations; the only one, or 480p, if not given."""
    videos: tuple[str, ...] = ()
    """Only these videos of the split."""
    size: int | None = None
    """Short side of the frames that the encoder sees; 0 keeps their size."""
    multiple: int | None = None
    """The long side is cut down to a multiple of this."""
    layer: int | None = None
    """Block or stage whose output is compared; 0 is the encoder's output."""
    previous: int | None = None
    """Context frames right before the current one, besides the first frame of the video."""
    top_k: int | None = None
    """Context cells that a cell takes its label from."""
    temperature: float | None = None
    """T of the weights exp(cosine / T)."""
    radius: float | None = None
    """How far away, in cells, a context cell may lie; 0 is no limit."""
    window: Literal["square", "disc"] | None = None
    """Shape of that limit."""
    restrict_first: bool | None = None
    """Whether the limit also holds for the first frame."""
    repeat_first: bool | None = None
    """Whether copies of the first frame stand for context frames before it."""
    reduce: Literal["nearest", "bilinear"] | None = None
    """How the first mask becomes labels of the grid."""
    normalise: bool | None = None
    """Whether every enlarged label channel is stretched to [0,1]."""
    argmax: Literal["input", "mask"] | None = None
    """Size at which the label of a pixel is decided: the encoder's input, or the mask."""
    seeds: int = 1
    """Untrained encoders to compare with, at seeds seed, seed+1, ...; 0 leaves them out."""
    pictures: bool = True
    """Write a film and a strip a video."""
    save_masks: bool = False
    """Also write the masks as PNG files, as DAVIS's own scorer reads them."""

    def check(self) -> None:
        at_least(self, seeds=0)
        if self.out.is_dir() or not self.out.suffix:
            raise UserError(f"--out {self.out} has to be a JSON file, such as {self.out.with_suffix('.json')}.")

    def numbers(self, convolutional: bool) -> Protocol:
        """The protocol with what was replaced. Raises UserError for numbers that make no propagation."""
        preset = PROTOCOLS[self.protocol]
        if not convolutional:
            preset = dataclasses.replace(preset, layer=0)  # both protocols take a transformer's last block
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Protocol)}
        protocol = dataclasses.replace(preset, **{name: value for name, value in given.items() if value is not None})
        check_protocol(protocol)
        return protocol

    def run(self) -> Figures:
        also = f"; films and strips: {self.out.with_suffix('')}" if self.pictures else ""
        return run(self, propagation, print_result, lambda settings, _: tracks_for(settings), also)


def tracks_for(settings: PropagationSettings) -> list[Track]:
    return open_tracks(Path(settings.data), settings.split, settings.resolution, settings.videos)


def open_tracks(data: Path, split: str = "val", resolution: str = "", videos: Sequence[str] = ()) -> list[Track]:
    """The videos of a folder, with masks or with key points.

    Raises:
        UserError: a folder of neither layout, a list or a video that it does not have, or files that do not fit.
    """
    if (data / "Annotations").is_dir():
        tracks: Sequence[Track] = davis_tracks(data, split, resolution)
    elif (data / "Keypoints").is_dir():
        tracks = joint_tracks(data, split)
    else:
        raise UserError(
            f"--data {data} has neither Annotations/ (masks, the layout of DAVIS) nor Keypoints/: `python "
            "datasets/davis2017.py --help` and datasets/jhmdb.py say what is expected."
        )
    absent = sorted(set(videos) - {track.name for track in tracks})
    if absent:
        raise UserError(f"--videos {' '.join(absent)}: the split '{split}' of {data} has no such video.")
    return [track for track in tracks if not videos or track.name in videos]


@torch.no_grad()
def propagation(encoders: Sequence[Encoder], tracks: Sequence[Track], settings: PropagationSettings) -> Figures:
    """The encoder, its untrained twins, Lab patches and the first labels copied, on the same videos; films, strips and
    masks go into the folder beside --out.

    Raises:
        UserError: data that do not fit together, an encoder without dense features, or options without a meaning.
    """
    device, folder = pick_device(settings.device), settings.out.with_suffix("")
    protocol = settings.numbers(convolutional=DenseFeatures(encoders[0]).convolutional)
    if settings.pictures or settings.save_masks:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    subjects = by_name(encoders, settings.seed)
    features = {name: DenseFeatures(one.to(device), protocol.layer) for name, one in subjects.items()}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in (*features, LAB, COPIED)}
    videos = []
    with evaluating(*encoders):
        for number, track in enumerate(tracks, 1):
            print(f"{number}/{len(tracks)} {track.name}: {len(track.frames)} frames", file=sys.stderr, flush=True)
            found, facts = follow(track, features, protocol, device, settings, folder)
            videos.append(facts)
            for name, values in found.items():
                scores[name].append(values)
    masks = scores[COPIED][0].ndim == 3
    summary: Callable[[Sequence[Track], list[np.ndarray]], Figures] = mask_summary if masks else joint_summary
    figures = {name: summary(tracks, values) for name, values in scores.items()}
    return {
        "task": "segmentation" if masks else "key points",
        "protocol": {"name": settings.protocol, **dataclasses.asdict(protocol)},
        "data": {"path": str(settings.data), "split": settings.split, "videos": videos},
        **beside([figures[name] for name in subjects], lambda found: found, gain, settings.seed),
        "chance": {key: value for key, value in figures[COPIED].items() if isinstance(value, float)},
        "baselines": {
            name: {**figures[name], "difference": gain(figures[TRAINED], figures[name])} for name in (LAB, COPIED)
        },
    }


def follow(
    track: Track,
    features: dict[str, DenseFeatures],
    protocol: Protocol,
    device: torch.device,
    settings: PropagationSettings,
    folder: Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One video, frame by frame: the scores by subject, float [scored frames, objects or joints, ...], and its facts.

    Only the context frames are held, and of the pictures six small ones a subject.
    """
    height, width = track.frame(0).shape[:2]
    size = input_size(height, width, protocol, features[TRAINED].patch)
    names = (*features, LAB, COPIED)
    states: dict[str, Propagation] = {}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in names}
    strip = set(np.linspace(0, len(track.frames) - 1, STRIP_FRAMES).round().astype(int).tolist())
    cells: dict[str, list[np.ndarray]] = {name: [] for name in ("truth", *names)}
    start = track.truth(0)
    assert start is not None
    with ExitStack() as open_files:
        film = (
            open_files.enter_context(Film(folder / f"{track.name}.mp4", height, width)) if settings.pictures else None
        )
        for number in range(len(track.frames)):
            picture = track.frame(number)
            seen = dense(TF.resize(to_tensor(picture).contiguous(), list(size), antialias=True).to(device), features)
            predicted = {COPIED: start}
            for name, map in seen.items():
                if number == 0:
                    labels = track.labels((map.shape[1], map.shape[2]), protocol).to(device)
                    states[name] = Propagation(protocol, map, labels)
                    predicted[name] = start
                else:
                    predicted[name] = track.decode(states[name].step(map), size, protocol)
            truth = track.truth(number)
            if truth is not None and number in track.scored:
                for name, guess in predicted.items():
                    scores[name].append(track.score(truth, guess))
            if film:
                film.add(track.draw(picture, predicted[TRAINED], truth))
            if settings.pictures and number in strip:
                cells["truth"].append(thumbnail(picture if truth is None else track.draw(picture, truth)))
                for name in names:
                    cells[name].append(thumbnail(track.draw(picture, predicted[name])))
            if settings.save_masks:
                save_mask(folder / "masks" / track.name / f"{track.frames[number].stem}.png", predicted[TRAINED])
    if settings.pictures:
        save_strip(folder / f"{track.name}.png", list(cells.items()))
    facts = {
        "name": track.name,
        "frames": len(track.frames),
        "scored": len(scores[COPIED]),
        "frame": (height, width),
        "input": size,
        "grid": tuple(states[TRAINED].first.labels.shape[1:]),
        "labels": track.names,
    }
    return {name: np.array(values) for name, values in scores.items()}, facts


def dense(frame: Tensor, features: dict[str, DenseFeatures]) -> dict[str, Tensor]:
    """Features [C,h,w] by subject of a frame uint8 [3,H,W]; Lab patches on the encoder's grid."""
    seen = {name: subject(frame) for name, subject in features.items()}
    _, h, w = seen[TRAINED].shape
    return {**seen, LAB: lab_patches(frame, (h, w))}

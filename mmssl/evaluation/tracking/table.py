"""Scores of tracked videos -> the figures of the JSON file and the table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mmssl.evaluation.metrics import mean_interval
from mmssl.evaluation.tracking.scores import pck, recall_and_decay
from mmssl.evaluation.tracking.tracks import Track

TRAINED, LAB, COPIED = "trained", "Lab patches", "first labels copied"


def mask_summary(tracks: Sequence[Track], scores: list[np.ndarray]) -> dict[str, Any]:
    """J, F and J&F in [0,1] of scores [frames,objects,2] by video.

    Frames are averaged to objects. `J`, `F` and `J&F` are means over ALL objects, as DAVIS's scorer has them, so a
    video of many objects counts for more; `by_video` averages objects to videos first. One object a video: the same.
    """
    videos, rows = [], []
    for track, values in zip(tracks, scores, strict=True):
        objects = []
        for number, name in enumerate(track.names):
            (j, f), row = values[:, number].mean(0).tolist(), {"name": name}
            (j_recall, j_decay), (f_recall, f_decay) = (recall_and_decay(values[:, number, i]) for i in (0, 1))
            rows.append([j, f, j_recall, j_decay, f_recall, f_decay])
            objects.append({**row, "J": j, "F": f, "J&F": (j + f) / 2})
        j, f = values.mean((0, 1)).tolist()
        videos.append({"name": track.name, "J": j, "F": f, "J&F": (j + f) / 2, "objects": objects})
    mean = dict(zip(("J", "F", "J_recall", "J_decay", "F_recall", "F_decay"), np.mean(rows, 0).tolist(), strict=True))
    both = {"J": mean.pop("J"), "F": mean.pop("F")}
    return {
        **both,
        "J&F": (both["J"] + both["F"]) / 2,
        **mean,
        "by_video": {key: float(np.mean([video[key] for video in videos])) for key in ("J", "F", "J&F")},
        "videos": videos,
    }


def joint_summary(tracks: Sequence[Track], scores: list[np.ndarray]) -> dict[str, Any]:
    """PCK in [0,1] of errors [frames,J] by video: frames of all videos pooled, then the mean over joints (CRW)."""
    videos = [{"name": track.name, **named(pck(errors))} for track, errors in zip(tracks, scores, strict=True)]
    return {**named(pck(np.concatenate(scores))), "videos": videos}


def named(shares: dict[str, float]) -> dict[str, float]:
    return {f"PCK@{threshold}": share for threshold, share in shares.items()}


def gain(figures: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """How much better, by measure: the mean over videos, and its 95 % t interval where there are two or more."""
    found: dict[str, Any] = {}
    for key, value in figures["videos"][0].items():
        if isinstance(value, float):
            pairs = zip(figures["videos"], other["videos"], strict=True)
            each = np.array([mine[key] - theirs[key] for mine, theirs in pairs])
            found[key] = float(each.mean())
            found[f"{key}_interval"] = mean_interval(each) if len(each) > 1 else None
    return found


def print_result(result: dict[str, Any]) -> None:
    """The means of every subject, then the encoder's videos."""
    console = Console()
    keys = [key for key, value in result["trained"]["videos"][0].items() if isinstance(value, float)]
    first = [{**result["untrained"], "difference": result["difference"]}] if result["untrained"] else []
    twins = [*first, *result["further_untrained"]]
    rows = {TRAINED: result["trained"]}
    rows |= {f"untrained (seed {twin['seed']})": twin for twin in twins} | result["baselines"]
    count, main = len(result["data"]["videos"]), "J&F" if "J&F" in keys else keys[0]
    table = Table(title=f"{result['task']} carried through {count} videos, protocol {result['protocol']['name']}")
    for column in ("features", *keys, f"trained is better by ({main})"):
        table.add_column(column, justify="left" if column == "features" else "right")
    for name, figures in rows.items():
        better, interval = (
            figures.get("difference", {}).get(main),
            figures.get("difference", {}).get(f"{main}_interval"),
        )
        text = "" if better is None else f"{100 * better:+.1f}"
        if interval:
            text += f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
        table.add_row(name, *(f"{100 * figures[key]:.1f}" for key in keys), text)
    console.print(table)
    videos = Table(title="trained, by video")
    for column in ("video", *keys, f"{main} of {COPIED}"):
        videos.add_column(column, justify="left" if column == "video" else "right")
    for mine, copied in zip(result["trained"]["videos"], result["baselines"][COPIED]["videos"], strict=True):
        videos.add_row(mine["name"], *(f"{100 * mine[key]:.1f}" for key in keys), f"{100 * copied[main]:.1f}")
    console.print(videos)

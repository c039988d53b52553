"""A run directory made by hand, with figures known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from mmssl.report.pictures import save_pictures
from mmssl.types import Picture

LOSSES = [2.7182818284590451, 1.4142135623730951, 0.69314718055994529, 0.57721566490153287]


def write_run(out: Path, recipe: str = "image/mae") -> Path:
    out.mkdir(parents=True)
    command = f"mmssl pretrain {recipe} --data photos --out {out}"
    settings = {"data": "photos & <more>", "steps": 40, "encoder": {"width": 192}}
    content = {"recipe": recipe, "command": command, "settings": settings, "versions": {"torch": "2.14.1"}}
    (out / "recipe.json").write_text(json.dumps(content))
    lines = []
    for i, loss in enumerate(LOSSES):
        line = {"step": 10 * (i + 1), "loss": loss, "lr": 1e-3 / (i + 1), "grad_norm": None if i == 1 else 1.0 + i}
        line |= {"samples_per_s": 100.0 + i, "data_wait": 0.125 * i, "skipped_files": 2}
        line |= {"probe/feature_std": 0.5, "probe/effective_rank": 12.5, "probe/uniformity": -2.0}
        line |= {"probe/knn_top1": 0.25 + 0.1 * i}
        lines.append(json.dumps(line))
    (out / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 50, "loss": 0.1')
    skipped = [("a/<script>.png", "truncated"), ("b.png", "empty"), ("b.png", "empty"), ("c.png", "empty")]
    (out / "skipped.jsonl").write_text(
        "".join(json.dumps({"step": 0, "file": file, "reason": reason}) + "\n" for file, reason in skipped)
    )
    write_evaluation(out / "linear.json", "linear", gain=(0.05, 0.2))
    image = torch.arange(3 * 32 * 32, dtype=torch.uint8).reshape(3, 32, 32)
    for step in (10, 40):
        save_pictures(out, step, {"reconstruction": Picture("image", ("original", "masked"), ((image, image),) * 3)})
    return out


def write_evaluation(file: Path, probe: str, *, gain: tuple[float, float]) -> None:
    """A file as `mmssl evaluate` writes it, with two untrained encoders."""

    def figures(top1: float, balanced: float) -> dict[str, object]:
        per_class = [{"name": "cat", "n": 40, "recall": 0.625, "precision": None}]
        intervals = {"top1_interval": [top1 - 0.05, top1 + 0.05], "balanced_interval": [balanced - 0.1, balanced + 0.1]}
        return {"n": 80, "top1": top1, "balanced": balanced, **intervals, "per_class": per_class}

    def twin(seed: int, top1: float) -> dict[str, object]:
        low, high = gain
        paired = {"top1": 0.1, "top1_interval": [low + seed / 100, high], "balanced_interval": [-0.1, 0.1]}
        return {"seed": seed, **figures(top1, 0.3), "difference": paired}

    first = twin(0, 0.4)
    content = {
        "evaluation": probe,
        "data": {"path": "photos", "labels": "data", "classes": ["cat", "dog"]},
        "chance": {"majority": 0.4375, "majority_balanced": 0.5, "uniform": 0.5, "uniform_balanced": 0.5},
        "trained": {**figures(0.615, 0.59), "rate": 0.03, "validation": [{"rate": 0.03}] * 9},
        "untrained": {key: value for key, value in first.items() if key != "difference"},
        "difference": first["difference"],
        "further_untrained": [twin(1, 0.42)],
    }
    file.write_text(json.dumps(content))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

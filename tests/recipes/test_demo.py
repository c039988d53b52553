"""The demo's command lines are ones that its recipes take, and build encoders that transformers will load. What they
learn is in tests/proofs/test_learning.py, which runs the same lines in full. The samples are at most 15 MB."""

from __future__ import annotations

from pathlib import Path

import pytest
import tyro

from mmssl.encoders.layouts import layout_of
from mmssl.training.recipe import load_recipe
from recipes import demo
from tests.runs import REPOSITORY


@pytest.mark.parametrize("job", demo.JOBS, ids=[job.folder for job in demo.JOBS])
def test_commands_of_the_demo(job: demo.Job) -> None:
    recipe = load_recipe(job.recipe)
    line = f"--data {demo.SAMPLES / job.modality} --out runs/x --seed 0 {demo.SHARED} {job.options}"
    settings = tyro.cli(recipe.Settings, args=line.split())
    settings.check(world=1)
    objective = recipe.build(settings).objective
    assert objective.encoder.spec.modality == job.modality
    assert objective.encoder.width == 128
    assert layout_of(objective.encoder).reason is None


def test_one_encoder_a_modality_from_the_samples() -> None:
    assert [job.modality for job in demo.JOBS] == ["image", "video", "audio"]
    assert Path("runs/demo") == demo.OUT
    for job in demo.JOBS:
        parts = {path.name for path in (REPOSITORY / demo.SAMPLES / job.modality).iterdir() if path.is_dir()}
        assert parts == {"train", "test"}


def test_samples_are_small_and_credited() -> None:
    files = [path for path in (REPOSITORY / demo.SAMPLES).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    card = (REPOSITORY / demo.SAMPLES / "README.md").read_text(encoding="utf-8")
    for modality in ("image", "video", "audio"):
        part = card.split(f"\n## {modality}: ")[1].split("\n## ")[0]
        assert "icen" in part  # its licence
        assert "https://" in part  # and where it is from

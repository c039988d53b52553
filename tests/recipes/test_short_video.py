"""Videos with fewer frames than a recipe asks about: where all are so short the run ends in one sentence; one beside
longer ones costs only itself, and is listed with the reason."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.media import make_video
from tests.runs import make_media, metrics, pretrain

FRAMES = 3
NEEDED = {
    "video/temporal_order": "too short: 3 frames, and 5 are needed",
    "video/odd_one_out": "too short: 3 frames, and 4 are needed",
    "video/tcn_single": "too short: 0.10 s, and a window spans 0.27 s",
    "video/colourisation": "too short: 3 frames, and 11 are needed",
}
CLOSE = {"video/tcn_single": ("--interval", "0.04", "--near", "0.1", "--far", "0.2")}
"""Else a window would be longer than the videos of `make_media`."""


@pytest.mark.parametrize("recipe", NEEDED)
def test_too_short_for_the_recipe(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, more = tmp_path / "videos", CLOSE.get(recipe, ())
    for number in range(4):
        make_video(data / f"{number}.mp4", FRAMES, height=48, width=64)
    with pytest.raises(SystemExit) as ended:
        pretrain(recipe, data, tmp_path / "none", "--batch-size", "4", *more)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert NEEDED[recipe] in said
    assert "Traceback" not in said

    make_media(data, "video")
    out = tmp_path / "some"
    pretrain(recipe, data, out, "--steps", "1", "--batch-size", "16", "--max-bad-share", "0.9", *more)
    (line,) = metrics(out)
    assert math.isfinite(line["loss"])
    assert line["skipped_files"] >= 4
    listed = [json.loads(entry) for entry in (out / "skipped.jsonl").read_text().splitlines()]
    assert {Path(entry["file"]).name for entry in listed} == {"0.mp4", "1.mp4", "2.mp4", "3.mp4"}
    assert all("too short" in entry["reason"] for entry in listed)

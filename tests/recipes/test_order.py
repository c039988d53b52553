"""The recipe of temporal order as the command line runs it, with an image encoder on real videos: it trains, resumes,
exports what transformers loads, and is evaluated on the videos; coded videos in which nothing moves teach nothing and
lose nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import pytest
from transformers import AutoModel

from mmssl.adapters.specs import VideoSpec
from mmssl.cli import main
from mmssl.encoders.base import Encoder
from tests.media import numbered_frame
from tests.recipes.samples import sample_media
from tests.runs import metrics, pretrain

RUN = ("--steps", "3", "--save-every", "1", "--probe-every", "2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_media(tmp_path_factory.mktemp("samples") / "video", "video")


@pytest.mark.parametrize("arch", ["vit", "resnet18"])
def test_recipe(arch: str, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [*RUN, "--encoder.arch", arch, "--strength", "0.5", "--split", "0.5"]
    pretrain("video/temporal_order", videos, out, *options)
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["loss"] > 0 and line["usable"] > 0 and line["skipped_steps"] == 0 for line in lines)
    assert {"balanced_accuracy", "auc"} <= lines[0].keys()
    assert "probe/knn_top1" in lines[1]
    assert list((out / "pictures").glob("step-000003-places*.png"))
    encoder = Encoder.from_pretrained(out / "encoder")
    assert encoder.spec.modality == "image"
    _, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    # Going on from the last checkpoint but one gives the last step again.
    shutil.rmtree(out / "checkpoints" / "step-00000003")
    pretrain("video/temporal_order", videos, out, *options)
    assert [line["loss"] for line in metrics(out)] == [line["loss"] for line in lines]
    # The image encoder is judged by the middle frames of the videos.
    result = tmp_path / "knn.json"
    main(f"evaluate knn --encoder {out / 'encoder'} --data {videos} --out {result} --workers 0 --no-cache".split())
    figures = json.loads(result.read_text())
    assert "ImageCentre" in figures["data"]["views"]
    assert sum(figures["data"]["files"].values()) == 12


VIT = ("--encoder.arch", "vit", "--encoder.prefix", "0", "--encoder.positions", "sincos1d")
STACK = ("--encoder.arch", "resnet18", "--encoder.stem", "cifar", "--stack", "differences", "--input.size", "16")


@pytest.mark.parametrize("encoder", [VIT, STACK], ids=["vit", "stack"])
def test_clips_take_the_place_of_frames(encoder: tuple[str, ...], videos: Path, tmp_path: Path) -> None:
    """Five clips of two frames; the encoder, which takes clips, is then asked for the arrow of time."""
    out = tmp_path / "run"
    pretrain(
        "video/temporal_order",
        videos,
        out,
        "--steps",
        "2",
        "--frames",
        "2",
        "--window",
        "5",
        "--tau-max",
        "2",
        *encoder,
    )
    assert all(line["loss"] > 0 and line["usable"] > 0 for line in metrics(out))
    spec = Encoder.from_pretrained(out / "encoder").spec
    assert isinstance(spec, VideoSpec)
    assert (spec.frames, spec.stride) == (2, 1)
    result = tmp_path / "arrow.json"
    more = "--labels arrow --k 3 --workers 0 --no-cache"
    main(f"evaluate knn --encoder {out / 'encoder'} --data {videos} --out {result} {more}".split())
    figures = json.loads(result.read_text())
    assert figures["data"]["classes"] == ["forward", "reversed"]
    assert figures["chance"]["uniform"] == 0.5


def still_video(path: Path, seed: int) -> None:
    """One picture again and again, as h264 with key frames codes it."""
    container: Any
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 5
        stream.options = {"preset": "veryfast", "crf": "30", "threads": "1"}
        for _ in range(12):
            picture = av.VideoFrame.from_ndarray(numbered_frame(0, 48, 64, seed), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("recipe", ["video/temporal_order", "video/odd_one_out"])
def test_videos_in_which_nothing_moves_teach_nothing(recipe: str, tmp_path: Path) -> None:
    for number in range(4):
        still_video(tmp_path / "videos" / f"{number}.mp4", number)
    out = tmp_path / "out"
    pretrain(recipe, tmp_path / "videos", out, "--steps", "2", "--batch-size", "4", "--precision", "no")
    lines = metrics(out)
    assert len(lines) == 2
    for line in lines:
        assert line["usable"] == line["loss"] == line["skipped_steps"] == 0
        if recipe == "video/temporal_order":
            assert line["auc"] == line["balanced_accuracy"] == 0.5

"""Share of the time that training waits for data, for every recipe of pictures, video and sound, as metrics.jsonl
records it.

Encoders of ViT-Ti size or ResNet-18 at the papers' input sizes: a step that is shorter than in earnest, so that the
share is an upper bound. Pictures and recordings are 64 of the samples, the recordings the longest ones, which take
longest to read; videos are 340 x 256 with a key frame every 250 frames. Units are made by the same command, before the
steps. Clips of video/beit, which has no paper, are of 8 frames.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from input_path import make_video

from mmssl.cli import main as mmssl

VIT = "--encoder.arch vit --encoder.width 192 --encoder.depth 12 --encoder.heads 3"
DECODER = "--decoder.width 192 --decoder.heads 3"
CONV = "--encoder.arch resnet18"
CONVS = f"--input.channels{7 * ' 128'}"
UNITS = "--clusters 16 --fit-frames 2000"
SPEECH = f"{CONVS} --encoder.width 192 --encoder.depth 12 --encoder.heads 3 --batch-seconds 12 --buckets 2"
RECIPES = {
    "image/mae": VIT,
    "image/simmim": VIT,
    "image/simclr": CONV,
    "image/moco_v2": f"{CONV} --queue 1024 --norm-group 2",
    "video/videomae": f"{VIT} {DECODER}",
    "video/videomae_ucf101": f"{VIT} {DECODER}",
    "video/videomae_v2": f"{VIT} {DECODER} --clips 2",
    "video/mae_st": f"{VIT} {DECODER} --clips 2",
    "video/simmim": VIT,
    "video/vjepa": f"{VIT} --predictor.width 96 --predictor.depth 4 --predictor.heads 3",
    "video/simclr": VIT,
    "video/moco_v2": f"{VIT} --queue 1024",
    "video/temporal_order": f"{CONV} --norm-group 10",
    "video/odd_one_out": f"{CONV} --norm-group 12",
    "video/tcn": f"{CONV} --instants 4 --norm-group 8 --window 4",
    "video/tcn_single": f"{CONV} --norm-group 36",
    "video/colourisation": f"{CONV} --colour-samples 8",
    "audio/mae": f"{VIT} --input.frames 512",
    "audio/contrastive": VIT,
    "audio/temporal_order": VIT,
    "audio/cola": "",
    "audio/hubert": f"{SPEECH} {UNITS}",
    "audio/wavlm": f"{SPEECH} {UNITS}",
    "audio/beats": f"{VIT} {UNITS}",
    "image/beit": f"{VIT} {UNITS}",
    "video/beit": f"{VIT} {UNITS} --input.frames 8",
}
BATCH, STEPS = 4, 4
SAMPLES, FILES = Path("datasets/samples"), 64


def prepare(folder: Path) -> dict[str, str]:
    """The data of each modality; few files, since the report after each run reads all of them."""
    data = {modality: folder / modality for modality in ("image", "video", "audio")}
    for place in data.values():
        place.mkdir()
    with tarfile.open(next((SAMPLES / "image/train").iterdir())) as shard:
        for number in range(FILES):
            picture = shard.extractfile(f"{number:06d}.png")
            assert picture is not None
            (data["image"] / f"{number}.png").write_bytes(picture.read())
    recordings = [file for file in (SAMPLES / "audio").rglob("*") if file.is_file()]
    for file in sorted(recordings, key=lambda file: (-file.stat().st_size, file.as_posix()))[:FILES]:
        (data["audio"] / file.parent.name).mkdir(exist_ok=True)
        shutil.copy(file, data["audio"] / file.parent.name)
    make_video(data["video"] / "1_cam1.mp4")  # two cameras of four scenes
    for scene in range(1, 5):
        for camera in (1, 2):
            if (scene, camera) != (1, 1):
                shutil.copy(data["video"] / "1_cam1.mp4", data["video"] / f"{scene}_cam{camera}.mp4")
    return {modality: str(place) for modality, place in data.items()}


def measure(recipe: str, options: str, data: str) -> tuple[float, float]:
    """(share of time waiting for data, samples/s) in the second half of the steps."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as out:
        run = f"--data {data} --out {out}/run --steps {STEPS} --log-every {STEPS // 2} --workers 1"
        run += "" if "--batch-seconds" in options else f" --batch-size {BATCH}"
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                mmssl(["pretrain", recipe, *f"{run} --probe-every 0 --max-bad-share 1".split(), *options.split()])
        except SystemExit as error:
            sys.exit(f"{recipe}: {error}\n{said.getvalue()}")
        lines = [json.loads(line) for line in (Path(out) / "run" / "metrics.jsonl").read_text().splitlines()]
    later = [line for line in lines if "data_wait" in line][1:]
    return tuple(sum(line[name] for line in later) / len(later) for name in ("data_wait", "samples_per_s"))


def run() -> str:
    """The table as Markdown."""
    rows = ["| recipe | waiting for data | samples/s |", "|---|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder))
        for recipe, options in RECIPES.items():
            share, speed = measure(recipe, options, data[recipe.split("/")[0]])
            rows.append(f"| {recipe} | {100 * share:.1f} % | {speed:.1f} |")
    return f"### Waiting for data, batch {BATCH} (hubert, wavlm: 12 s), one worker, {STEPS} steps\n\n" + "\n".join(rows)


if __name__ == "__main__":
    print(run())

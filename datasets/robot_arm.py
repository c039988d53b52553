"""A robot arm filmed by two cameras, rendered here, with its joint angles: for video/tcn and its evaluation.

    pip install mujoco
    python datasets/robot_arm.py --out data/robot-arm
    mmssl pretrain video/tcn --data data/robot-arm --out runs/tcn
    mmssl evaluate alignment --encoder runs/tcn/embedding --data data/robot-arm --out alignment.json

Card
    Content  An arm of six joints that moves smoothly between random postures, seen by two synchronised cameras; labels
             of every frame: six joint angles (rad) and the place of the hand (m). The motion is prescribed, without
             dynamics.
    Source   Rendered by MuJoCo (https://mujoco.org); the arm is defined below. Equal options give equal motion and
             labels; pixels may differ between graphics libraries.
    Licence  Of this repository (Apache-2.0); MuJoCo itself is Apache-2.0.
    Splits   By episode: train 24, test 8 (options), 6 s at 20 frames/s each: 7,680 frames of 96 x 96 from both cameras.
    Disk     About 4.5 MB.

Writes train/armNNN_cam1.mp4 and train/armNNN_cam2.mp4, the same under test/, and labels.csv (sequence, time, labels).
MuJoCo renders without a screen by EGL or OSMesa: set MUJOCO_GL=egl (the default here) or MUJOCO_GL=osmesa (on Debian
the package libosmesa6). Anti-aliasing and shadows are off, which makes it six times faster.
"""

import argparse
import csv
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

RANGES = (1.4, 0.8, 1.3, 1.2, 1.2, 1.2)
"""Largest angle of each joint, rad: no joint turns round, so that angles are labels without a jump."""
PAUSE = 1.0
"""Seconds from one posture to the next."""
LABELS = [*(f"joint{n}" for n in range(1, 7)), "hand_x", "hand_y", "hand_z"]
RATE = 20
ARM = """
<mujoco>
  <visual>
    <quality shadowsize="0" offsamples="0"/>
    <headlight ambient=".4 .4 .4" diffuse=".5 .5 .5"/>
    <global offwidth="{size}" offheight="{size}"/>
  </visual>
  <asset>
    <texture name="floor" type="2d" builtin="checker" rgb1=".5 .5 .55" rgb2=".65 .65 .7" width="128" height="128"/>
    <material name="floor" texture="floor" texrepeat="6 6"/>
  </asset>
  <worldbody>
    <light pos="1 -1 3" dir="-.3 .3 -1" castshadow="false"/>
    <geom type="plane" size="2 2 .1" material="floor"/>
    <geom type="box" pos="-.6 -.6 .15" size=".1 .1 .15" rgba=".2 .5 .3 1"/>
    <body name="middle" pos="0 0 .55"/>
    <camera name="cam1" pos="1.6 -1 .9" mode="targetbody" target="middle" fovy="48"/>
    <camera name="cam2" pos="-.3 1.9 1.2" mode="targetbody" target="middle" fovy="48"/>
    <body pos="0 0 .05">
      <geom type="cylinder" size=".12 .05" rgba=".3 .3 .3 1"/>
      <body pos="0 0 .05">
        <joint name="joint1" axis="0 0 1"/>
        <geom type="capsule" fromto="0 0 0 0 0 .2" size=".07" rgba=".85 .85 .85 1"/>
        <body pos="0 0 .22">
          <joint name="joint2" axis="0 1 0"/>
          <geom type="capsule" fromto="0 0 0 0 0 .36" size=".055" rgba=".9 .3 .2 1"/>
          <body pos="0 0 .36">
            <joint name="joint3" axis="0 1 0"/>
            <geom type="capsule" fromto="0 0 0 0 0 .3" size=".045" rgba=".2 .4 .9 1"/>
            <body pos="0 0 .3">
              <joint name="joint4" axis="0 0 1"/>
              <joint name="joint5" axis="0 1 0"/>
              <geom type="capsule" fromto="0 0 0 0 0 .12" size=".04" rgba=".95 .8 .2 1"/>
              <body pos="0 0 .12">
                <joint name="joint6" axis="1 0 0"/>
                <geom type="box" pos="0 0 .08" size=".02 .1 .08" rgba=".2 .8 .4 1"/>
                <site name="hand" pos="0 0 .14"/>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def postures(rng: np.random.Generator, frames: int) -> np.ndarray:
    """float64 [frames,6]: angles on a smooth way through random postures, one each `PAUSE` seconds."""
    from scipy.interpolate import CubicSpline

    seconds = np.arange(frames) / RATE
    knots = np.arange(0, seconds[-1] + 2 * PAUSE, PAUSE)
    ways = CubicSpline(knots, rng.uniform(-1, 1, (len(knots), len(RANGES))))(seconds)
    return np.clip(ways, -1, 1) * np.array(RANGES)


def load_mujoco() -> Any:
    os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import mujoco
    except ImportError as error:
        fail(f"MuJoCo cannot be used here ({error}): pip install mujoco.")
    except Exception as error:  # the graphics library is loaded with the package, and each fails in its own way
        fail(f"MuJoCo finds no {os.environ['MUJOCO_GL']} to render with ({error}): set MUJOCO_GL=egl or osmesa.")
    return mujoco


def episode(mujoco: Any, model: Any, renderer: Any, ways: np.ndarray) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Of every frame: the pictures of both cameras, uint8 [H,W,3], and the labels [9]."""
    data = mujoco.MjData(model)
    for angles in ways:
        data.qpos[:] = angles
        mujoco.mj_forward(model, data)
        pictures = []
        for camera in ("cam1", "cam2"):
            renderer.update_scene(data, camera)
            pictures.append(renderer.render())
        yield pictures, np.concatenate([angles, data.site("hand").xpos])


def write_episode(folder: Path, name: str, frames: Iterator[tuple[list[np.ndarray], np.ndarray]]) -> np.ndarray:
    """Two mp4s; returns the labels [frames,9]. Quantiser 10 of x264 is close to lossless."""
    import av

    containers: list[Any] = [av.open(str(folder / f"{name}_cam{n}.mp4"), "w") for n in (1, 2)]
    streams: list[Any] = []
    labels = []
    for pictures, state in frames:
        if not streams:
            for container in containers:
                stream = container.add_stream("libx264", rate=RATE)
                stream.height, stream.width = pictures[0].shape[:2]
                stream.pix_fmt, stream.gop_size = "yuv420p", 16
                stream.options = {"crf": "10", "preset": "veryfast", "threads": "1"}
                streams.append(stream)
        for container, stream, picture in zip(containers, streams, pictures, strict=True):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        labels.append(state)
    for container, stream in zip(containers, streams, strict=True):
        container.mux(stream.encode(None))
        container.close()
    return np.stack(labels)


def make(out: Path, train: int = 24, test: int = 8, seconds: float = 6.0, size: int = 96, seed: int = 0) -> None:
    """Render everything into a new folder `out`."""
    if out.exists():
        fail(f"--out {out} is already there: remove it, or name a new folder.")
    if min(train, test) < 1 or seconds < 1 or size < 16 or size % 2:
        fail("--train and --test are 1 or more, --seconds 1 or more, and --size an even number of 16 or more.")
    mujoco = load_mujoco()
    model = mujoco.MjModel.from_xml_string(ARM.format(size=size))
    try:
        renderer = mujoco.Renderer(model, size, size)
    except Exception as error:  # of the graphics library
        fail(f"MuJoCo cannot render by {os.environ['MUJOCO_GL']} ({error}): set MUJOCO_GL=egl or osmesa.")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
    with renderer:
        part.mkdir(parents=True)
        with (part / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sequence", "time", *LABELS])
            for split, episodes in (("train", train), ("test", test)):
                (part / split).mkdir()
                for number in range(episodes):
                    rng = np.random.default_rng([seed, split == "test", number])
                    frames = episode(mujoco, model, renderer, postures(rng, round(seconds * RATE)))
                    labels = write_episode(part / split, f"arm{number:03d}", frames)
                    for place, state in enumerate(labels):
                        values = [f"{value:.5f}" for value in state]
                        writer.writerow([f"{split}/arm{number:03d}", f"{place / RATE:.3f}", *values])
    part.rename(out)
    size_on_disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {train} + {test} episodes of {seconds:g} s, 2 cameras, {size_on_disk / 1e6:.1f} MB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/, test/ and labels.csv")
    parser.add_argument("--train", type=int, default=24, help="training episodes (24)")
    parser.add_argument("--test", type=int, default=8, help="test episodes (8)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of an episode (6)")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels (96)")
    parser.add_argument("--seed", type=int, default=0, help="of the motion (0)")
    args = parser.parse_args(argv)
    make(args.out, args.train, args.test, args.seconds, args.size, args.seed)


if __name__ == "__main__":
    main()

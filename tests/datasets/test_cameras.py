"""The scripts of camera data: a tiny robot arm that two cameras film and whose labels are right (where MuJoCo is
installed), and the four-camera clip from a wheel, with what is missing named."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mmssl.data.cameras import CameraSource
from mmssl.data.sources import open_source
from mmssl.evaluation.cameras.states import read_states
from tests.media import make_video

DATASETS = Path(__file__).resolve().parents[2] / "datasets"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", DATASETS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_robot_arm(tmp_path: Path) -> None:
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("mujoco is not installed")
    out = tmp_path / "arm"
    small = ["--out", str(out), "--train", "2", "--test", "1", "--seconds", "2", "--size", "48"]
    made = subprocess.run([sys.executable, str(DATASETS / "robot_arm.py"), *small], capture_output=True, text=True)
    if "finds no" in made.stderr or "cannot render" in made.stderr:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    source = CameraSource(open_source(out, "video"))
    assert [source.id(row) for row in range(len(source))] == ["test/arm000", "train/arm000", "train/arm001"]
    assert source.media(0).span == (0.0, pytest.approx(39 / 20))
    assert source.notes() == []
    states = read_states(out, [source.id(row) for row in range(len(source))])
    assert states is not None
    assert states.names == tuple(load("robot_arm").LABELS)
    for sequence, (seconds, values) in states.table.items():
        assert len(seconds) == 40, sequence
        assert np.abs(np.diff(values[:, :6], axis=0)).max() < 0.5, "motion is smooth"
        assert values[:, :6].std(0).min() > 0.05, "every joint moves"
    again = subprocess.run([sys.executable, str(DATASETS / "robot_arm.py"), *small], capture_output=True, text=True)
    assert (again.returncode, "already there" in again.stderr) == (2, True)


def test_the_hand_is_where_forward_kinematics_puts_it(tmp_path: Path) -> None:
    """The labels against a product of rotations written out by hand."""
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("mujoco is not installed")
    arm = load("robot_arm")
    mujoco = arm.load_mujoco()
    model = mujoco.MjModel.from_xml_string(arm.ARM.format(size=48))
    data = mujoco.MjData(model)

    def turn(axis: int, angle: float) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = c
        matrix[i, j], matrix[j, i] = -s, s
        return matrix

    up = np.array([0.0, 0.0, 1.0])
    for angles in np.random.default_rng(0).uniform(-1, 1, (5, 6)):
        data.qpos[:] = angles
        mujoco.mj_forward(model, data)
        place, frame = 0.1 * up, np.eye(3)
        for axes, beyond in (((2,), 0.22), ((1,), 0.36), ((1,), 0.3), ((2, 1), 0.12), ((0,), 0.14)):
            for axis in axes:
                frame = frame @ turn(axis, angles[0])
                angles = angles[1:]
            place = place + frame @ (beyond * up)
        np.testing.assert_allclose(data.site("hand").xpos, place, atol=1e-6)


def wheel(folder: Path, frames: int, cameras: tuple[int, ...] = (1, 2, 3, 4)) -> Path:
    path = folder / "pose2sim-0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for scene in ("Single", "Multi"):
            for camera in cameras:
                file = make_video(folder / "one.mp4", frames, seed=camera)
                archive.write(file, f"Pose2Sim/Demo_{scene}Person/videos/cam0{camera}.mp4")
    return path


def test_four_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("four_cameras")
    monkeypatch.setattr(script, "FRAMES", 8)
    script.main(["--source", str(wheel(tmp_path, 8)), "--out", str(tmp_path / "out")])
    source = CameraSource(open_source(tmp_path / "out", "video"))
    assert [source.id(row) for row in range(len(source))] == ["multi", "single"]
    assert len(source.media(0).cameras) == 4
    with zipfile.ZipFile(tmp_path / "pose2sim-0.0-py3-none-any.whl") as archive:
        archive.extractall(tmp_path / "unpacked")
    script.main(["--source", str(tmp_path / "unpacked"), "--out", str(tmp_path / "again")])
    assert len(list((tmp_path / "again").iterdir())) == 8


@pytest.mark.parametrize(
    ("frames", "cameras", "sentence"),
    [(8, (1, 2, 4), "lacks the videos of single_cam3.mp4, multi_cam3.mp4"), (5, (1, 2, 3, 4), "single_cam1.mp4 5,")],
)
def test_what_is_wrong_with_a_wheel_is_named(
    frames: int, cameras: tuple[int, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script = load("four_cameras")
    monkeypatch.setattr(script, "FRAMES", 8)
    with pytest.raises(SystemExit) as ended:
        script.main(["--source", str(wheel(tmp_path, frames, cameras)), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

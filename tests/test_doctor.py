"""Claims: doctor names each known fault of an installation in one line with its remedy, sees wrong frames, and outlives
a probe that crashes, hangs or prints rubbish. Faults are simulated by version look-ups and by the error texts that the
libraries really give."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mmssl import doctor
from mmssl.doctor import Check, Outcome


def versions(monkeypatch: pytest.MonkeyPatch, **found: str | None) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: found.get(package))


@pytest.mark.parametrize(
    ("torch", "vision", "audio", "said"),
    [
        ("2.14.1", "0.29.2", "2.11.0", None),
        ("2.11.0", "0.26.0", "2.11.0", None),
        ("2.11.0+cpu", "0.26.0+cpu", "2.11.0+cpu", None),
        ("2.14.1", "0.28.0", "2.11.0", "goes with torchvision 0.29"),
        ("2.14.1", "0.29.2", "2.10.0", "goes with torchaudio 2.11"),
        ("2.15.0", "0.30.0", "2.11.0", "does not import beside torch 2.15"),
        ("2.9.0", "0.24.0", "2.9.0", "mmssl needs torch 2.11 to 2.14"),
        ("2.14.1", "0.29.2", None, "torchaudio not installed"),
        ("2.14.1+cpu", "0.29.2", "2.11.0", "torch built for CPU only, torchvision and torchaudio for CUDA"),
    ],
)
def test_versions_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, torch: str, vision: str, audio: str | None, said: str | None
) -> None:
    versions(monkeypatch, torch=torch, torchvision=vision, torchaudio=audio)
    check = doctor.check_trio()
    assert check.ok is (said is None)
    if said:
        assert said in check.finding
        assert "pip install" in check.remedy
        assert "torch==2.14.1" in check.remedy
        assert "\n" not in check.finding


CUDA_CLASH = """Traceback (most recent call last):
RuntimeError: Detected that PyTorch and TorchAudio were compiled with different CUDA versions. \
PyTorch has CUDA version 13.2 whereas TorchAudio has CUDA version 13.0. Please install the matching version."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CUDA_CLASH, "torch is built for CUDA 13.2, torchaudio for CUDA 13.0"),
        (
            "OSError: libtorch_cuda.so: cannot open shared object file: No such file or directory",
            "torch is built for CPU only, torchaudio for CUDA",
        ),
        ("OSError: _torchaudio.so: undefined symbol: _ZN3c10", "torchaudio is compiled for another version of torch"),
        ("ModuleNotFoundError: No module named 'torchaudio'", "No module named 'torchaudio'"),
    ],
)
def test_a_failed_import_is_named_in_plain_words(error: str, said: str) -> None:
    check = doctor.check_import("torchaudio", Outcome(failure=error.splitlines()[-1], error=error))
    assert not check.ok
    assert said in check.finding
    assert "pip install" in check.remedy


def test_transformers_that_lose_video_biases(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, ok in {"5.5.0": True, "5.6.0": False, "5.17.0": False, "5.18.0": True, "5.23.0": True}.items():
        versions(monkeypatch, transformers=version)
        check = doctor.check_transformers(Outcome(found={"classes": []}))
        assert check.ok is ok, version
        assert ok or "biases" in check.finding


def test_packages_are_compared_with_what_mmssl_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, numpy="1.26.4", rich="14.0.0")
    asked = ["numpy>=2", "rich>=14", "einops>=0.8", "lightly>=1.5; extra == 'bench'"]
    check = doctor.check_packages(asked)
    assert not check.ok
    assert check.finding == "numpy 1.26.4 does not fit >=2; einops is missing"


def test_wrong_frames_are_seen() -> None:
    assert doctor.check_clip("video", Outcome(found={"frames": 48, "error": 1.2}), package="decord").ok
    assert not doctor.check_clip("video", Outcome(found={"frames": 47, "error": 1.2}), package="decord").ok
    assert not doctor.check_clip("video", Outcome(found={"frames": 48, "error": 5.0}), package="decord").ok


def test_formats_needed_and_not() -> None:
    formats = {"wav": True, "flac": True, "ogg": True, "mp3": False}
    check = doctor.check_formats(
        "audio", Outcome(found={"formats": formats}), needed=("wav", "flac"), package="soundfile"
    )
    assert check.ok
    assert "not mp3" in check.finding
    formats["flac"] = False
    assert not doctor.check_formats("audio", Outcome(found={"formats": formats}), needed=("flac",), package="x").ok


def device(**changes: object) -> Outcome:
    found = {"devices": [], "mps": False, "gpu_present": False, "cuda": None, "threads": 2, "nccl": True}
    return Outcome(found={**found, **changes})


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert doctor.check_devices(device()).finding == "CPU only"
    unused = doctor.check_devices(device(gpu_present=True))
    assert not unused.ok
    assert "torch is built for CPU only" in unused.finding
    found = doctor.check_devices(device(devices=[{"name": "H100", "gib": 79.1, "bf16": True}]))
    assert found.finding == "1 CUDA: 0: H100, 79 GiB, bf16"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert doctor.check_devices(device(gpu_present=True)).ok


def test_distributed_reports_a_wrong_sum() -> None:
    assert doctor.check_distributed(Outcome(found={"sums": [3.0, 3.0]}), device()).ok
    assert not doctor.check_distributed(Outcome(found={"sums": [3.0, 1.0]}), device()).ok
    two = device(devices=[{}, {}], nccl=False)
    assert "NCCL" in doctor.check_distributed(Outcome(found={"sums": [3.0, 3.0]}), two).finding


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_writable(tmp_path).ok
    missing = doctor.check_writable(tmp_path / "none")
    assert not missing.ok
    assert str(tmp_path / "none") in missing.finding
    assert doctor.check_disk(tmp_path / "not" / "yet").finding.endswith(str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**28}))
    assert not doctor.check_disk(tmp_path).ok


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("raise RuntimeError('no such codec')", "RuntimeError: no such codec"),
        ("print('hello')", "gave no answer"),
    ],
)
def test_a_bad_probe_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(code)
    monkeypatch.setattr(doctor, "PROBES", tmp_path / "bad.py")
    assert doctor.probe("x").failure == said


def test_a_hanging_probe_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    (tmp_path / "hang.py").write_text(
        "import subprocess, sys, pathlib, time\n"
        f"child = subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(doctor, "PROBES", tmp_path / "hang.py")
    started = time.monotonic()
    assert "no answer within 2 s" in doctor.probe("x", limit=2).failure
    assert time.monotonic() - started < 10
    status = Path(f"/proc/{pid.read_text()}/status")
    deadline = time.monotonic() + 5
    while status.exists() and "State:\tZ" not in status.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize("name", ["images", "av", "decord", "soundfile"])
def test_decoders_of_this_installation(name: str) -> None:
    outcome = doctor.probe(name)
    assert not outcome.failure, outcome.error
    if name in ("av", "decord"):
        assert outcome.found["frames"] == 48
        assert outcome.found["error"] < 2.5
    else:
        assert all(outcome.found["formats"].values())


def test_exit_status_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(lambda: [Check("a", True, "fine [x]", "advice")]) == 0
    assert "Everything mmssl needs works." in capsys.readouterr().out
    assert doctor.main(lambda: [Check("a", True, "fine"), Check("b", False, "gone", "pip install b")]) == 1
    shown = capsys.readouterr().out
    assert "BROKEN" in shown
    assert "pip install b" in shown
    assert "1 of 2 checks" in shown


def test_doctor_imports_nothing_that_can_crash() -> None:
    code = "import mmssl.doctor, sys; print(sorted({'torch', 'decord', 'av', 'transformers'} & set(sys.modules)))"
    assert os.popen(f'{sys.executable} -c "{code}"').read().strip() == "[]"


@pytest.mark.heavy
def test_this_installation_is_whole() -> None:
    broken = [check for check in doctor.diagnose() if not check.ok]
    assert not broken

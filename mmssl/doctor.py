"""`mmssl doctor`: does the installation work, and what to do if not. A probe is a child process with a time limit."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

PROBES = Path(__file__).with_name("doctor_probes.py")
LIMIT = 120.0
"""Seconds a probe may take: a first import of torch from a cold disk needs up to a minute."""
CACHE_GIB = 5.0
COMPANIONS = {"2.11": "0.26", "2.12": "0.27", "2.13": "0.28", "2.14": "0.29"}
"""torchvision release for each torch release; torchaudio 2.11 serves all of them."""
TRIO = 'python -m pip install --force-reinstall "torch==2.14.1" "torchvision==0.29.2" "torchaudio==2.11.0"'


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    """False: something that mmssl needs is broken."""
    finding: str
    remedy: str = ""
    """What to do; on an `ok` check, advice."""


@dataclass(frozen=True)
class Outcome:
    """What a probe said."""

    found: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    """Why it gave nothing: the last line of its error, a crash, or the time limit."""
    error: str = ""
    """Its whole error output."""


def probe(name: str, limit: float = LIMIT) -> Outcome:
    """Run one function of doctor_probes.py in a process group of its own, which is killed after `limit` seconds."""
    child = subprocess.Popen(
        [sys.executable, "-P", str(PROBES), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, error = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return Outcome(failure=f"gave no answer within {limit:g} s and was stopped")
    if child.returncode < 0:
        return Outcome(failure=f"crashed ({signal.Signals(-child.returncode).name})", error=error)
    if child.returncode:
        lines = [line for line in error.splitlines() if line.strip()]
        return Outcome(failure=lines[-1].strip() if lines else f"ended with status {child.returncode}", error=error)
    # Native libraries may print lines of their own, also while they are unloaded.
    answers = [line for line in output.splitlines() if line.startswith("{")]
    return Outcome(found=json.loads(answers[-1])) if answers else Outcome(failure="gave no answer", error=error)


def installed(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def diagnose() -> list[Check]:
    """All checks, the basic ones first. Nothing is imported that could crash this process."""
    names = ("torch", "torchvision", "torchaudio", "transformers", "images", "av", "decord", "soundfile", "distributed")
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(names, pool.map(probe, names), strict=True))
    return [
        check_python(),
        check_packages(),
        check_trio(),
        check_import("torch", outcomes["torch"]),
        check_import("torchvision", outcomes["torchvision"]),
        check_import("torchaudio", outcomes["torchaudio"]),
        check_transformers(outcomes["transformers"]),
        check_formats("images (Pillow)", outcomes["images"], needed=("JPEG", "PNG"), package="pillow"),
        check_clip("video (decord)", outcomes["decord"], package="decord"),
        check_clip("video (PyAV)", outcomes["av"], package="av"),
        check_formats("audio (soundfile)", outcomes["soundfile"], needed=("wav", "flac"), package="soundfile"),
        check_devices(outcomes["torch"]),
        check_cpu(outcomes["torch"]),
        check_distributed(outcomes["distributed"], outcomes["torch"]),
        check_launcher(),
        check_disk(cache_folder()),
        check_writable(Path.cwd()),
    ]


def check_python() -> Check:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    return Check("Python", ok, f"{version} at {sys.executable}", "" if ok else "Install Python 3.11 or newer.")


def check_packages(requirements: list[str] | None = None) -> Check:
    """Every package that mmssl asks for, in the version it asks for."""
    wrong = []
    for line in requirements if requirements is not None else importlib.metadata.requires("mmssl") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} does not fit {requirement.specifier}")
    if wrong:
        remedy = "python -m pip install --upgrade mmssl   (in a checkout: rm .venv/.installed; make install)"
        return Check("packages", False, "; ".join(wrong), remedy)
    return Check("packages", True, "all there, in the versions asked for")


def check_trio() -> Check:
    """torch, torchvision and torchaudio are compiled for each other: compares their versions and builds by name."""
    name = "torch, torchvision, torchaudio fit"
    versions = {package: installed(package) for package in ("torch", "torchvision", "torchaudio")}
    missing = [package for package, version in versions.items() if version is None]
    if missing:
        return Check(name, False, f"{' and '.join(missing)} not installed", TRIO)
    shown = ", ".join(f"{package} {version}" for package, version in versions.items())
    try:
        torch, vision, audio = (Version(str(version)) for version in versions.values())
    except InvalidVersion as error:
        return Check(name, False, f"{shown}: {error}", TRIO)
    if (torch.major, torch.minor) >= (2, 15):
        return Check(name, False, f"{shown}: torchaudio {audio} does not import beside torch 2.15 or newer", TRIO)
    wanted = COMPANIONS.get(f"{torch.major}.{torch.minor}")
    if wanted is None:
        return Check(name, False, f"{shown}: mmssl needs torch 2.11 to 2.14", TRIO)
    if f"{vision.major}.{vision.minor}" != wanted:
        return Check(name, False, f"{shown}: torch {torch.major}.{torch.minor} goes with torchvision {wanted}", TRIO)
    if (audio.major, audio.minor) != (2, 11):
        return Check(name, False, f"{shown}: torch {torch.major}.{torch.minor} goes with torchaudio 2.11", TRIO)
    builds = {package: Version(str(version)).local or "" for package, version in versions.items()}
    if len({build == "cpu" for build in builds.values()}) > 1:
        cpu = [package for package, build in builds.items() if build == "cpu"]
        cuda = [package for package in builds if package not in cpu]
        finding = (
            f"{shown}: {' and '.join(cpu)} built for CPU only, {' and '.join(cuda)} for CUDA; they cannot load together"
        )
        return Check(name, False, finding, TRIO)
    return Check(name, True, shown)


def check_import(package: str, outcome: Outcome) -> Check:
    """Whether a member of the trio can be imported and computes; names the known causes in plain words."""
    name = f"{package} works"
    if not outcome.failure:
        cuda = outcome.found.get("cuda")
        build = "" if package != "torch" else f", built for CUDA {cuda}" if cuda else ", built for CPU only"
        return Check(name, True, f"{outcome.found['version']}{build}")
    text = f"{outcome.error}\n{outcome.failure}"
    clash = re.search(r"PyTorch has CUDA [Vv]ersion\D*([\d.]+\d).*?has CUDA [Vv]ersion\D*([\d.]+\d)", text, re.DOTALL)
    if clash:
        finding = f"torch is built for CUDA {clash[1]}, {package} for CUDA {clash[2]}"
    elif re.search(r"lib(torch_cuda|c10_cuda)\S*: cannot open shared object", text):
        finding = f"torch is built for CPU only, {package} for CUDA"
    elif re.search(r"undefined symbol|operator torchvision::nms does not exist", text):
        finding = f"{package} is compiled for another version of torch"
    else:
        return Check(name, False, outcome.failure, TRIO)
    return Check(name, False, f"{finding} ({outcome.failure[:120]})", TRIO)


def check_transformers(outcome: Outcome) -> Check:
    version = installed("transformers")
    remedy = 'python -m pip install --upgrade "transformers>=5.18"'
    if version is None:
        return Check("transformers", False, "not installed", remedy)
    if Version("5.6") <= Version(version) < Version("5.18"):
        finding = f"{version} loads the q and v biases of VideoMAE checkpoints as zeros without saying so"
        return Check("transformers", False, finding, remedy)
    if outcome.failure:
        # transformers imports torchvision and torchaudio wherever they are installed, so their faults surface here.
        remedy = f"Mend torch, torchvision and torchaudio first, where they are marked; else {remedy}"
        return Check("transformers", False, f"{version} cannot be imported: {outcome.failure}", remedy)
    return Check("transformers", True, version)


def check_clip(name: str, outcome: Outcome, *, package: str) -> Check:
    """48 frames must come back, each with its own brightness (5 levels apart)."""
    remedy = f"python -m pip install --upgrade --force-reinstall {package}"
    if outcome.failure:
        return Check(name, False, f"{package} {installed(package) or 'missing'}: {outcome.failure}", remedy)
    frames, error = outcome.found["frames"], outcome.found["error"]
    if frames != 48 or error > 2.5:
        finding = f"of a clip with 48 frames, {frames} came back, up to {error:.0f} grey levels wrong"
        return Check(name, False, finding, remedy)
    return Check(name, True, f"{package} {installed(package)} decodes H.264, every frame right")


def check_formats(name: str, outcome: Outcome, *, needed: tuple[str, ...], package: str) -> Check:
    remedy = f"python -m pip install --upgrade --force-reinstall {package}"
    if outcome.failure:
        return Check(name, False, f"{package} {installed(package) or 'missing'}: {outcome.failure}", remedy)
    formats = outcome.found["formats"]
    reads = [ending for ending, good in formats.items() if good]
    fails = [ending for ending, good in formats.items() if not good]
    finding = f"reads {', '.join(reads)}" + (f"; not {', '.join(fails)}" if fails else "")
    return Check(name, not set(needed) & set(fails), finding, remedy if fails else "")


def check_devices(outcome: Outcome) -> Check:
    found = outcome.found
    if outcome.failure:
        return Check("devices", False, "torch cannot be asked", "Mend torch first.")
    if found["devices"]:
        names = [
            f"{i}: {device['name']}, {device['gib']:.0f} GiB, {'bf16' if device['bf16'] else 'no bf16'}"
            for i, device in enumerate(found["devices"])
        ]
        return Check("devices", True, f"{len(names)} CUDA: " + "; ".join(names))
    if found["mps"]:
        return Check("devices", True, "Apple GPU (MPS)")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if found["gpu_present"] and not hidden:
        cause = "is built for CPU only" if found["cuda"] is None else f"(CUDA {found['cuda']}) cannot use its driver"
        return Check("devices", False, f"an NVIDIA GPU is there, but torch {cause}", f"Update the driver, or {TRIO}")
    return Check("devices", True, "CPU only", "Fine for small runs; real pre-training wants a GPU.")


def check_cpu(outcome: Outcome) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = os.environ.get("OMP_NUM_THREADS")
    used = outcome.found.get("threads", "?")
    finding = f"{cores} cores, {memory:.0f} GiB RAM, OMP_NUM_THREADS {threads or 'not set'}, torch uses {used} threads"
    if threads and threads.isdigit() and int(threads) > cores:
        return Check(
            "CPU", True, finding, f"Set OMP_NUM_THREADS to {cores} or fewer: more threads than cores slow down."
        )
    return Check("CPU", True, finding, "Less than 4 GiB RAM: use small batches." if memory < 4 else "")


def check_distributed(outcome: Outcome, torch: Outcome) -> Check:
    name = "several processes"
    if outcome.failure or outcome.found["sums"] != [3.0, 3.0]:
        finding = f"an all-reduce of two processes over gloo failed: {outcome.failure or outcome.found['sums']}"
        return Check(
            name, False, finding, "Allow local connections (firewall, container), or set GLOO_SOCKET_IFNAME=lo."
        )
    nccl = bool(torch.found.get("nccl"))
    if len(torch.found.get("devices", [])) > 1 and not nccl:
        return Check(name, False, "gloo works, but torch has no NCCL for its GPUs", TRIO)
    return Check(name, True, f"two processes over gloo agree; NCCL is {'there' if nccl else 'not built in'}")


def check_launcher() -> Check:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = home / "accelerate" / "default_config.yaml"
    if file.is_file():
        return Check("accelerate", True, f"launches as {file} says")
    return Check("accelerate", True, "no configuration file", "For several devices run `accelerate config` once.")


def cache_folder() -> Path:
    """Where Hub models and data sets are kept."""
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def check_disk(folder: Path) -> Check:
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(there).free / 2**30
    finding = f"{free:.1f} GiB free for the cache {folder}"
    few = free < CACHE_GIB
    return Check(
        "disk", free > 0.5, finding, f"Free some space, or set HF_HOME to a disk with {CACHE_GIB:g} GiB." if few else ""
    )


def check_writable(*folders: Path) -> Check:
    """Writes a file where runs go (here) and where temporary files go."""
    for folder in (*folders, Path(tempfile.gettempdir())):
        try:
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                file.write(b"mmssl")
        except OSError as error:
            remedy = "Run from a folder you may write to, or give --out and TMPDIR such folders."
            return Check("write permission", False, f"cannot write to {folder}: {error.strerror}", remedy)
    return Check("write permission", True, f"here ({folders[0]}) and in {tempfile.gettempdir()}")


def show(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ({"width": 6}, {"style": "bold", "overflow": "fold"}, {"overflow": "fold"}):
        table.add_column(**column)  # type: ignore[arg-type]
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("BROKEN", "bold red")
        table.add_row(mark, check.name, Text(check.finding))
        if check.remedy:
            table.add_row("", "", Text(f"-> {check.remedy}", "yellow" if check.ok else "bold yellow"))
    console = Console()
    console.print(table)
    broken = sum(not check.ok for check in checks)
    console.print(
        f"\n{broken} of {len(checks)} checks found something broken." if broken else "\nEverything mmssl needs works."
    )


def main(diagnosis: Callable[[], list[Check]] = diagnose) -> int:
    """Print the diagnosis; 1 when something is broken, else 0."""
    checks = diagnosis()
    show(checks)
    return int(any(not check.ok for check in checks))

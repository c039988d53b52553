"""Claim: imports point left to right in the drawing of docs/design.md and never back, also where they stand inside a
function or serve types only; folders inside a room import what lies at its top and themselves, never each other, and
the top imports no folder. Read from the source by `ast`, so that a module that is never loaded counts too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mmssl"

COMMON = {"types", "errors", "files", "distributed"}
"""Modules for everybody. They import no room."""
FACTS = {"data", "adapters", "encoders"}
ALLOWED: dict[str, set[str]] = {
    **{name: set() for name in COMMON},
    "data": set(),
    "adapters": set(),
    "encoders": {"adapters"},
    "targets": FACTS,
    "objectives": {"adapters", "encoders", "targets"},
    "evaluation": FACTS | {"targets"},
    "report": FACTS | {"evaluation"},
    "training": FACTS | {"targets", "objectives", "evaluation", "report"},
    "adaptation": FACTS | {"objectives", "evaluation", "report", "training"},
    "doctor": {"doctor_probes"},
    "doctor_probes": set(),
    "cli": FACTS | {"targets", "objectives", "evaluation", "report", "training", "adaptation", "doctor"},
}
"""Room or module -> what it may import besides itself and COMMON."""


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules(source: str) -> set[str]:
    """Dotted names that a source file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported(source: str) -> set[str]:
    """Rooms and modules of mmssl that a source file imports."""
    return {name.split(".")[1] for name in modules(source) if name.startswith("mmssl.")}


def folders(source: str) -> set[str]:
    """Folders inside rooms, as room/folder, that a source file imports from."""
    places = {tuple(name.split(".")[1:3]) for name in modules(source) if name.startswith("mmssl.")}
    return {"/".join(place) for place in places if len(place) == 2 and PACKAGE.joinpath(*place).is_dir()}


FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")  # the front door opens rooms


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(file: Path) -> None:
    room = room_of(file)
    back = imported(file.read_text("utf-8")) - ALLOWED[room] - COMMON - {room, "__version__"}
    assert not back, f"{room} may not import {', '.join(sorted(back))}"


@pytest.mark.parametrize("room", sorted({path.parent.parent.name for path in PACKAGE.glob("*/*/__init__.py")}))
def test_folders_of_a_room_stand_apart(room: str) -> None:
    for file in (PACKAGE / room).rglob("*.py"):
        others = folders(file.read_text("utf-8")) - {file.parent.relative_to(PACKAGE).as_posix()}
        others = {name for name in others if name.split("/")[0] == room}
        assert not others, f"{file} may not import {', '.join(sorted(others))}"


def test_common_modules_import_only_each_other() -> None:
    for name in COMMON:
        assert imported((PACKAGE / f"{name}.py").read_text("utf-8")) <= COMMON


def test_there_is_no_way_round() -> None:
    """The table itself has no cycle, or the tests above would allow what they forbid."""
    left = {room: rights - COMMON for room, rights in ALLOWED.items()}
    while left:
        free = {room for room, rights in left.items() if not rights & left.keys()}
        assert free, f"a cycle among {sorted(left)}"
        left = {room: rights for room, rights in left.items() if room not in free}


def test_hidden_imports_are_seen() -> None:
    source = "if x:\n from mmssl.training.loop import Run\ndef f():\n import mmssl.report.build\n from mmssl import cli"
    assert imported(source) == {"training", "report", "cli"}
    assert folders("from mmssl.evaluation.probes.knn import CHUNK") == {"evaluation/probes"}
    assert folders("from mmssl.evaluation import probes, frame") == {"evaluation/probes"}

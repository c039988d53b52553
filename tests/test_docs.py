"""Claims: what README.md and docs/ say of the repository is so. Commands are ones that the command line takes, with
options that exist; the table of methods has every recipe, and the file tree every tracked file of its level; links lead
somewhere. The references are the code, the Makefile and git's list of files."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tyro

from mmssl import cli
from mmssl.training.recipe import load_recipe, recipe_names
from tests.runs import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "datasets/README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SETTINGS = {
    "embed": "mmssl.evaluation.embed:EmbedSettings",
    "index": "mmssl.cli:IndexSettings",
    "report": "mmssl.cli:ReportSettings",
    "prepare": "mmssl.data.prepare:PrepareSettings",
    "targets kmeans": "mmssl.targets.settings:KmeansSettings",
    **{f"evaluate {name}": place for name, place in cli.EVALUATIONS.items()},
}
OPTION = re.compile(r"--[a-z][a-z0-9.-]*[a-z0-9]")


def blocks(text: str) -> list[str]:
    """Fenced blocks that name no language: commands, drawings, the file tree."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [content for language, content in found if not language]


def commands(page: Path) -> list[str]:
    """Lines of code blocks and pieces of code in the text that begin with a command of ours."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = "\n".join(blocks(text) + re.findall(r"^ {4}.*", text, re.MULTILINE))
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    pieces = lines.splitlines() + re.findall(r"`([^`]+)`", outside)
    found = [piece.strip().replace(".venv/bin/", "").replace("\\|", "|") for piece in pieces]
    return [piece for piece in found if re.match(r"(mmssl|accelerate launch|make|python) \S", piece)]


@cache
def known_options(settings: Any) -> frozenset[str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(settings, args=["--help"], console_outputs=True)
    return frozenset(OPTION.findall(said.getvalue()))


def settings_of(words: list[str]) -> list[Any]:
    """The settings classes that a command fills; several where it names alternatives (knn|linear)."""
    name, *rest = words
    if name == "pretrain":
        return [load_recipe(rest[0]).Settings] if rest and rest[0] in recipe_names() else []
    if name in ("evaluate", "targets") and rest:
        places = [SETTINGS[f"{name} {one}"] for one in rest[0].split("|")]
    else:
        places = [SETTINGS[name]] if name in SETTINGS else []
    return [getattr(import_module(place.split(":")[0]), place.split(":")[1]) for place in places]


def check(command: str) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), command
        return
    if words[0] == "python":
        assert words[1] == "-m" or (REPOSITORY / words[1]).is_file(), command
        return
    if words[0] == "accelerate":
        file = next(word for word in words if word.endswith(".py"))
        if file == "recipes/image/rotation.py":  # the example of docs/add-an-objective.md
            return
        assert (REPOSITORY / file).is_file(), command
        words = [
            "mmssl",
            "pretrain",
            file.removeprefix("recipes/").removesuffix(".py"),
            *words[words.index(file) + 1 :],
        ]
    assert words[1] in cli.COMMANDS, command
    classes = settings_of(words[1:])
    given = [word.split("=")[0] for word in words if OPTION.match(word)]
    for settings in classes:
        assert set(given) <= known_options(settings) | {"--help"}, command
    if not classes:  # a recipe of the reader's own, or no options at all
        assert set(given) <= {"--data", "--out", "--help"}, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_commands_exist(page: Path) -> None:
    for command in commands(page):
        check(command)


def test_commands_are_found() -> None:
    """Otherwise the test above would hold of pages without any."""
    found = commands(REPOSITORY / "README.md")
    assert {"make demo", "make test"} <= {" ".join(command.split()[:2]) for command in found}
    assert any(command.startswith("mmssl pretrain video/videomae") for command in found)
    assert any(command.startswith("accelerate launch recipes/") for command in found)
    for wrong in ("mmssl pretrian image/mae", "mmssl pretrain image/mae --nonsense 1", "make nothing"):
        with pytest.raises(AssertionError):
            check(wrong)


def test_complete_commands_parse() -> None:
    """Those of the quick starts can be typed as they stand."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Methods")[0]
    seen = 0
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace(".venv/bin/", ""), comments=True)
            if words[:2] == ["mmssl", "pretrain"] or words[:2] == ["accelerate", "launch"]:
                name = words[2].removeprefix("recipes/").removesuffix(".py")
                settings = tyro.cli(load_recipe(name).Settings, args=words[3:])
                settings.check(world=1)
                seen += 1
    assert seen >= 2


@pytest.mark.parametrize("recipe", recipe_names())
def test_options_in_the_head_note_of_a_recipe(recipe: str) -> None:
    """Also those of `mmssl targets kmeans`, which makes what some recipes predict, and of other recipes' commands."""
    note = load_recipe(recipe).__doc__ or ""
    assert f"mmssl pretrain {recipe} " in note
    (kmeans,) = settings_of(["targets", "kmeans"])
    for line in note.splitlines():
        named = re.search(r"mmssl pretrain (\S+)", line)
        settings = load_recipe(named[1] if named else recipe).Settings
        assert set(OPTION.findall(line)) <= known_options(settings) | known_options(kmeans), line


def test_the_table_of_methods_is_the_list_of_recipes() -> None:
    table = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Methods")[1].split("\n## ")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for cell in first for name in re.findall(r"`([^`]+)`", cell)) == recipe_names()


def test_the_file_tree_is_the_repository() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (tree,) = [block for block in blocks(text) if "\nmmssl/\n" in block]
    named: set[str] = set()
    above = ""
    for line in tree.splitlines():
        names = re.match(r"( *)(\S+(?:, \S+)*)", line)
        assert names is not None, line
        above = above if names[1] else names[2].rstrip("/")
        named |= {f"{above}/{name}" if names[1] else name for name in names[2].split(", ")}
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    tracked = set()
    for path in listed.splitlines():
        parts = path.split("/")
        tracked.add(parts[0] + "/" * (len(parts) > 1))
        if parts[0] == "mmssl":
            tracked.add("/".join(parts[:2]) + "/" * (len(parts) > 2))
    kept = {name for name in tracked if not name.endswith("__init__.py") and name != ".gitignore"}
    assert kept - named == set(), "missing in the tree"
    assert all((REPOSITORY / name).exists() for name in named), "not in the repository"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target

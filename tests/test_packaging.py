"""Claims: the wheel, built from the checkout without network, carries the recipes and the report's template and nothing
that would hide a package of another name; installed alone, away from the checkout, it finds its recipes. Whatever the
code imports is asked for in pyproject.toml, and constraints.txt holds one version of it within that range."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmssl.training.recipe import recipe_names

REPOSITORY = Path(__file__).resolve().parents[1]

APART = """
import sys
from pathlib import Path
wheel, checkout = map(Path, sys.argv[1:])
sys.path = [str(wheel), *(path for path in sys.path if Path(path or ".").resolve() != checkout)]
"""
FIND = """
import mmssl
from mmssl.report import build
from mmssl.training.recipe import load_recipe, recipe_names
recipe = load_recipe("image/mae")
assert recipe.Settings(data="x", out=Path("y")).batch_size
for module in (mmssl, build, recipe):
    assert Path(module.__file__).is_relative_to(wheel), module.__file__
print(*recipe_names())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=60)
    (built,) = folder.glob("*.whl")
    return built


def test_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"mmssl", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    source = {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "mmssl").rglob("*.py")}
    recipes = {f"mmssl/recipes/{name}.py" for name in recipe_names()}
    assert source | recipes | {"mmssl/report/report.html.j2"} <= names
    assert "mmssl/recipes/image/mae.py" in recipes
    assert not [name for name in names if name.endswith((".pyc", ".png", ".parquet"))]


def test_recipes_are_found_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(installed)

    def script(text: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", text, str(installed), str(REPOSITORY)]
        return subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120)

    # Otherwise the checkout could stand in for the wheel.
    assert "No module named 'recipes'" in script(APART + "import recipes").stderr
    done = script(APART + FIND)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == recipe_names()


def asked_for() -> dict[str, Requirement]:
    """Canonical name -> requirement, of the dependencies and of every extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {canonicalize_name(one.name): one for part in lists for one in map(Requirement, part)}


def test_every_import_is_asked_for() -> None:
    modules = set()
    for file in [*(REPOSITORY / "mmssl").rglob("*.py"), *(REPOSITORY / "recipes").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                modules.add(node.module.split(".")[0])
    foreign = modules - set(sys.stdlib_module_names) - {"mmssl", "recipes"}
    assert {"torch", "sklearn", "decord", "PIL"} <= foreign
    known, asked = packages_distributions(), asked_for()
    for module in foreign:
        packages = {canonicalize_name(name) for name in known.get(module, [module])}
        assert packages & asked.keys(), f"{module} is imported, and pyproject.toml does not ask for {packages}"


def test_constraints_lie_in_the_ranges() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions: dict[str, str] = {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines)
    }
    for name, requirement in asked_for().items():
        assert requirement.specifier.contains(versions[name]), f"{requirement} does not hold {versions[name]}"

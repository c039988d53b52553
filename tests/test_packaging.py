"""Claims: the wheel, built from the checkout without network, carries the recipes and the report's template and nothing
that would hide a package of another name; installed alone, away from the checkout, it finds its recipes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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

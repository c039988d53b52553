"""What a recipe hands to the training loop, and how a recipe file is found and run."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, TypeVar

import tyro

from mmssl.errors import UserError
from mmssl.training.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from mmssl.data.plan import Plan
    from mmssl.data.sources import Source
    from mmssl.data.views import Views
    from mmssl.objectives.base import Objective
    from mmssl.types import Batch

S = TypeVar("S", bound=Settings)


@dataclass
class Parts:
    """The pieces that a recipe's `build(settings)` wires together."""

    objective: Objective
    views: Views
    """Worker-side sampling: media -> views at crop size."""
    device_views: Sequence[DeviceView] = field(default_factory=tuple)
    """Batched augmentation on the device, applied in order."""
    plan: Callable[[Source, np.ndarray], Plan] | None = None
    """Makes the plan of (source, rows to train on) where batches are not of --batch-size samples; see
    `SettingsBySeconds.plan`."""


class DeviceView(Protocol):
    """A pure function of (batch views, batch noise); declares the draws a sample that it needs in `noise`."""

    noise: dict[str, int]

    def __call__(self, batch: Batch) -> Batch: ...


def needed_noise(parts: Parts) -> dict[str, int]:
    """Draws a sample that the objective and the device views ask for."""
    noise = dict(parts.objective.noise)
    for view in parts.device_views:
        for name, count in view.noise.items():
            if name in noise:
                raise UserError(f"Two parts of the recipe ask for draws named '{name}': rename one of them.")
            noise[name] = count
    return noise


def check_parts(parts: Parts) -> None:
    missing = set(parts.objective.views) - set(parts.views.names)
    if missing:
        raise UserError(
            f"{type(parts.objective).__name__} reads the views {', '.join(parts.objective.views)}, and the recipe cuts "
            f"{', '.join(parts.views.names)}: give the views of both the same names."
        )


def recipe_folder() -> Path:
    """The recipes of the checkout, or those that the wheel carries."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise UserError(f"No recipes lie beside {package}: install mmssl again.")


def recipe_names() -> list[str]:
    """All recipes, such as 'image/mae': the files are the list."""
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob("*/[a-z]*.py"))


def load_recipe(name: str) -> ModuleType:
    """The module of a recipe: 'image/mae', or the path of one's own recipe file.

    Raises UserError for an unknown name, with the nearest ones.
    """
    path = recipe_folder() / f"{name}.py"
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise UserError(f"There is no recipe file {name}: give its path, or one of {', '.join(recipe_names())}.")
    elif name not in recipe_names():
        names = recipe_names()
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or [n for n in names if n.endswith(f"/{name}")]
        raise UserError(
            f"There is no recipe '{name}': "
            + (f"did you mean {' or '.join(near)}? " if near else "")
            + f"The recipes are {', '.join(names)}."
        )
    spec = importlib.util.spec_from_file_location(f"mmssl_recipe_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and worker processes look their module up by name
    spec.loader.exec_module(module)
    return module


def run(settings_class: type[S], build: Callable[[S], Parts], argv: Sequence[str] | None = None) -> None:
    """Parse the command line into the recipe's settings and train. `argv` is sys.argv[1:] if None.

    Raises UserError for what the user can mend; unknown or ill-typed options end the process with status 2.
    """
    from mmssl.training.loop import train

    arguments = list(sys.argv[1:] if argv is None else argv)
    path = Path(inspect.getsourcefile(build) or "recipe.py").resolve()
    name = f"{path.parent.name}/{path.stem}"
    shipped = name in recipe_names() and path.is_relative_to(recipe_folder())
    program = f"mmssl pretrain {name}" if shipped else f"mmssl pretrain {shlex.quote(str(path))}"
    settings = tyro.cli(settings_class, args=arguments, prog=program, description=settings_class.__doc__)
    train(settings, build, recipe=name, command=f"{program} {shlex.join(arguments)}")


def main(settings_class: type[S], build: Callable[[S], Parts]) -> None:
    """`python recipes/image/mae.py ...`, and the same under torchrun or accelerate launch."""
    exit_with_sentence(lambda: run(settings_class, build))


def exit_with_sentence(action: Callable[[], None]) -> None:
    """Run a command; a UserError becomes its sentence on stderr and status 2, without a traceback."""
    try:
        action()
    except UserError as error:
        print(f"mmssl: {error}", file=sys.stderr, flush=True)
        sys.exit(2)

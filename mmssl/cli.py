"""The command `mmssl`. Each of its commands imports what it needs when it is asked for."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import tyro

from mmssl.errors import UserError
from mmssl.files import writing

USAGE = """usage: mmssl COMMAND ...

commands:
  pretrain RECIPE --data DIR --out DIR   train an encoder on unlabelled media
  evaluate knn|linear|finetune|...       how good is an encoder, beside the untrained one and chance
  report RUN                             write report.html anew, also of a killed run, or of several runs
  embed                                  write features with sample ids to parquet
  index DIR                              verify media once: what can be decoded, and what not
  targets kmeans --data DIR --out DIR    cluster features and write the units that HuBERT and its like predict
  prepare DIR --out DIR                  copy videos so that clips are read several times faster
  doctor                                 does the installation work, and what to do if not

`mmssl COMMAND --help` lists the options of a command."""


class Evaluation(Protocol):
    """Settings of one evaluation, from the command line or from Python."""

    out: Path

    def run(self) -> dict[str, Any]:
        """Evaluate, print the table, write the files that the settings name; returns all figures."""


@dataclass
class IndexSettings:
    """Verify every media file once: true frame count, rate, duration, size, problem."""

    data: tyro.conf.Positional[Path]
    """Folder of media."""
    kind: Literal["image", "video", "audio"] | None = None
    """Look at this kind of media only."""
    out: Path | None = None
    """Also write the table to this parquet file."""
    workers: int | None = None
    """Processes that decode; one a core if not given."""
    timeout: float = 60.0
    """Seconds after which a file counts as hanging its decoder."""


@dataclass
class ReportSettings:
    """Write report.html anew from what a run left, finished or not; several runs stand on one page together."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path | None = None
    """HTML file; report.html in the folder of the run if not given."""


def pretrain(argv: Sequence[str]) -> None:
    from mmssl.training.recipe import load_recipe, recipe_names, run

    if not argv or argv[0] in ("-h", "--help"):
        print("usage: mmssl pretrain RECIPE --data DIR --out DIR [options]\n\nrecipes:")
        print("\n".join(f"  {name}" for name in recipe_names()))
        print(
            "\n`mmssl pretrain RECIPE --help` lists the options of a recipe. RECIPE may be the path of your own file."
        )
        return
    if argv[0].startswith("-"):
        raise UserError(f"The recipe comes first: mmssl pretrain RECIPE {' '.join(argv)}. `mmssl pretrain` lists them.")
    recipe = load_recipe(argv[0])
    run(recipe.Settings, recipe.build, argv[1:])


EVALUATIONS = {
    "knn": "mmssl.evaluation.probes.knn:KnnSettings",
    "linear": "mmssl.evaluation.probes.linear:LinearSettings",
    "windows": "mmssl.evaluation.probes.windows:WindowsSettings",
    "layers": "mmssl.evaluation.probes.layers:LayersSettings",
    "discrimination": "mmssl.evaluation.speech.discrimination:DiscriminationSettings",
    "ctc": "mmssl.evaluation.speech.ctc:CtcSettings",
    "attentive": "mmssl.evaluation.probes.attentive:AttentiveSettings",
    "retrieval": "mmssl.evaluation.probes.retrieval:RetrievalSettings",
    "finetune": "mmssl.adaptation.settings:FinetuneSettings",
    "alignment": "mmssl.evaluation.cameras.alignment:AlignmentSettings",
    "propagation": "mmssl.evaluation.tracking.command:PropagationSettings",
}
"""Name -> settings class with a method `run()`; a new evaluation is one file and one line here."""


def evaluate(argv: Sequence[str]) -> None:
    kinds: dict[str, Callable[..., Evaluation]] = {}
    for name, place in EVALUATIONS.items():
        module, settings = place.split(":")
        kinds[name] = getattr(import_module(module), settings)
    settings = tyro.extras.subcommand_cli_from_dict(kinds, prog="mmssl evaluate", args=list(argv))
    settings.run()
    run = settings.out.parent
    if (run / "recipe.json").is_file() and os.environ.get("RANK", "0") == "0":  # figures of a run stand in its report
        print(f"Report: {write_page((run,), None)}")


def report(argv: Sequence[str]) -> None:
    settings = tyro.cli(ReportSettings, prog="mmssl report", args=list(argv))
    print(f"Report: {write_page(settings.runs, settings.out)}")


def write_page(runs: Sequence[Path], out: Path | None) -> Path:
    from mmssl.report.build import write_report, write_summary

    if not runs or (len(runs) > 1 and out is None):
        raise UserError("mmssl report takes the folder of one run, or of several and --out FILE.html for their page.")
    for run in runs:
        if not any((run / name).is_file() for name in ("recipe.json", "metrics.jsonl")):
            raise UserError(f"{run} holds no run (neither recipe.json nor metrics.jsonl): give what was --out of one.")
    with writing(out or runs[0] / "report.html"):
        return write_report(runs[0]) if out is None else write_summary(list(runs), out)


def embed(argv: Sequence[str]) -> None:
    from mmssl.evaluation.embed import EmbedSettings, run_embed

    run_embed(tyro.cli(EmbedSettings, prog="mmssl embed", args=list(argv)))


def index(argv: Sequence[str]) -> None:
    from mmssl.data.indexing import build_index

    settings = tyro.cli(IndexSettings, prog="mmssl index", args=list(argv))
    try:
        build_index(settings.data, settings.kind, out=settings.out, workers=settings.workers, timeout=settings.timeout)
    except KeyboardInterrupt:
        sys.exit(130)


def prepare(argv: Sequence[str]) -> None:
    from mmssl.data.prepare import PrepareSettings, run_prepare

    settings = tyro.cli(PrepareSettings, prog="mmssl prepare", args=list(argv))
    try:
        run_prepare(settings)
    except KeyboardInterrupt:
        sys.exit(130)


def targets(argv: Sequence[str]) -> None:
    from mmssl.targets.make import run_kmeans
    from mmssl.targets.settings import KmeansSettings

    if not argv or argv[0] != "kmeans":
        print("usage: mmssl targets kmeans --data DIR --out DIR [options]\n\n`mmssl targets kmeans --help` lists them.")
        if argv and argv[0] not in ("-h", "--help"):
            raise UserError(f"There are no targets '{argv[0]}': give `mmssl targets kmeans`.")
        return
    try:
        run_kmeans(tyro.cli(KmeansSettings, prog="mmssl targets kmeans", args=list(argv[1:])))
    except KeyboardInterrupt:
        print("Stopped: the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def doctor(argv: Sequence[str]) -> None:
    if argv:
        print(
            "usage: mmssl doctor\n\nSays whether the installation works (versions, decoders, devices, distributed), "
            "and what to do if not."
        )
        if argv[0] not in ("-h", "--help"):
            raise UserError(f"mmssl doctor takes no options, and got {' '.join(argv)}.")
        return
    from mmssl.doctor import main

    sys.exit(main())


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "pretrain": pretrain,
    "evaluate": evaluate,
    "report": report,
    "embed": embed,
    "index": index,
    "targets": targets,
    "prepare": prepare,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. A UserError is printed as its sentence, and the exit status is 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE)
        elif arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            near = difflib.get_close_matches(arguments[0], COMMANDS, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"the commands are {', '.join(COMMANDS)}."
            raise UserError(f"There is no command '{arguments[0]}': {hint}")
    except UserError as error:
        print(f"mmssl: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""`mmssl evaluate finetune`: the encoder and its untrained twin, trained end to end on labelled files, then tested."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from rich.console import Console

from mmssl.adaptation.adapt import adapted, make_head
from mmssl.adaptation.classification import Classification
from mmssl.adaptation.classifier import Classifier, form_of
from mmssl.adaptation.parts import build_parts
from mmssl.adaptation.settings import FinetuneSettings, command_of, resolved
from mmssl.adaptation.testing import Tested, predict, views_for_testing
from mmssl.data.indexing import show_progress
from mmssl.data.sources import Source, open_source
from mmssl.data.views import Views
from mmssl.encoders.base import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.frame import Figures, beside, complete, publish
from mmssl.evaluation.labels import Task, file_labels
from mmssl.evaluation.metrics import chance, difference, score
from mmssl.evaluation.results import data_of, encode
from mmssl.evaluation.subject import untrained
from mmssl.evaluation.views import kind_for
from mmssl.files import writing
from mmssl.report.build import write_report
from mmssl.training.checkpoint import agree
from mmssl.training.finish import export, whole_objective
from mmssl.training.loop import Run, carry_out, on_main
from mmssl.training.progress import Display
from mmssl.training.start import make_accelerator


def run_finetune(settings: FinetuneSettings) -> dict[str, Any]:
    """Fine-tune, test, print the table and write the JSON file; returns its content (empty after --dry-run).

    Under accelerate or torchrun every process calls it. Ends the process with status 130 after Ctrl-C.
    """
    begin = time.monotonic()
    if settings.out.is_dir() or settings.out.suffix != ".json":
        raise UserError(f"--out {settings.out} is no JSON file: name one, such as {settings.out / 'finetune.json'}.")
    command, folder = command_of(settings), settings.out.with_suffix("")
    accelerator = make_accelerator(replace(settings, out=folder / "trained"))
    settings.check(accelerator.num_processes)
    encoder = Encoder.from_pretrained(settings.encoder)
    kind = kind_for(settings.data, encoder.spec)
    settings = resolved(settings, encoder, kind)
    views = views_for_testing(encoder.spec, settings.test_clips or 1, settings.test_crops or 1, kind)
    with accelerator.main_process_first(), show_progress(Console(stderr=True)) as progress:
        shown = progress if accelerator.is_main_process else None
        source = open_source(settings.data, kind, max_bad_share=settings.max_bad_share, progress=shown)
    task = file_labels(source, settings.seed)
    say_form(accelerator, settings, encoder, task)

    found: dict[str, Tested] = {}
    for name in ("trained", "untrained") if settings.untrained else ("trained",):
        start = encoder if name == "trained" else untrained(encoder, settings.seed)
        if name == "untrained":
            accelerator = make_accelerator(replace(settings, out=folder / name))
        # What does not touch the training is left out: a run goes on when only that is changed.
        own = replace(settings, out=folder / name, untrained=True, test_clips=None, test_crops=None)
        finished = carry_out(
            accelerator,
            own,
            lambda given, start=start: build_parts(given, start, task.classes, kind),  # type: ignore[misc]
            recipe="finetune",
            command=command,
            end=write_model,
        )
        if not finished:
            accelerator.end_training()
            sys.exit(130)
        if settings.dry_run:
            accelerator.end_training()
            return {}
        model = Classifier.from_pretrained(own.out / "model").to(accelerator.device)
        found[name] = predict(
            model,
            source,
            task.test,
            views,
            batch_size=max(1, settings.batch_size // settings.accumulate // accelerator.num_processes),
            workers=settings.workers,
            seed=settings.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
    told = figures(settings, source, task, views, found)
    result = complete(settings, "finetune", encoder, told, str(accelerator.device), begin)
    on_main(accelerator, lambda: publish(settings.out, result))
    accelerator.end_training()
    return result


def say_form(accelerator: Accelerator, settings: FinetuneSettings, encoder: Encoder, task: Task) -> None:
    """Say before the first step where transformers will not load what is trained."""
    start = adapted(encoder, drop=settings.drop_path or 0.0, pooling=settings.pooling)
    reason = form_of(start, make_head(start, len(task.classes))).reason
    if reason is not None and accelerator.is_main_process:
        print(f"Only mmssl will load the fine-tuned model ({reason}).", file=sys.stderr, flush=True)


def write_model(run: Run, display: Display) -> None:
    """The end of a fine-tuning run: OUT/model and OUT/report.html; every process calls it, the main one writes."""
    objective = whole_objective(run)
    problem: UserError | None = None
    if run.accelerator.is_main_process:
        assert isinstance(objective, Classification)
        out = run.settings.out
        model = Classifier(objective.encoder, objective.head, objective.classes)
        facts = {"Fine-tuned from": run.settings.encoder, "Steps": run.total}
        try:
            export(lambda part: model.save_pretrained(part, facts), out / "model")
            with writing(out / "report.html"):
                write_report(out)
            display.say(f"Model:   {out / 'model'}")
        except UserError as error:
            problem = error
    agree(run.accelerator, problem, f"{run.settings.out} could not be finished by the main process, which says why.")


def figures(settings: FinetuneSettings, source: Source, task: Task, views: Views, found: dict[str, Tested]) -> Figures:
    """What is found out, in the form of every evaluation."""
    rows = found["trained"].rows
    labels = [tuple(source.label(int(row)) for row in side) for side in (task.train, rows)]
    known, truth = (encode(side, task.classes) for side in labels)
    answers = {name: tested.logits.argmax(1) for name, tested in found.items()}

    def scored(name: str) -> Figures:
        return {
            **dataclasses.asdict(score(truth, answers[name], task.classes, rows, settings.seed)),
            "rate": settings.lr,
            "decay": settings.weight_decay,
            "model": str(settings.out.with_suffix("") / name / "model"),
        }

    def gain(name: str, other: str) -> Figures:
        return dataclasses.asdict(difference(truth, answers[name], answers[other], rows, settings.seed))

    examples, skipped = (len(known), len(truth)), found["trained"].skipped
    return {
        "data": data_of(settings.data, "data", source, task, views, examples=examples, skipped=skipped),
        **beside(tuple(found), scored, gain, settings.seed),
        "shuffled": None,
        "chance": dataclasses.asdict(chance(known, truth)),
    }

"""Writes report.html: one file that shows a run, or several beside each other, without any other file or connection."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from mmssl.report import charts
from mmssl.report.charts import Series, line_chart
from mmssl.report.reading import (
    Evaluation,
    Metrics,
    Skipped,
    flatten,
    read_evaluations,
    read_json,
    read_metrics,
    read_skipped,
)

BUDGET = 6_500_000
"""Bytes of pictures in one page; in base64 they take a third more, which keeps the page below 10 MB."""
LARGE_PNG = 40_000
SHOWN_SKIPPED = 200
SHOWN_CLASSES = 100
MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp"}


@dataclass
class Figure:
    """One picture of one step, as data URIs; what the page has no room for is missing."""

    name: str
    step: int
    order: str
    """'left to right' or 'top to bottom': how the columns lie."""
    columns: list[str]
    samples: list[str]
    animation: str | None


@dataclass
class Album:
    """Holds the pictures of a page within its budget."""

    left: int = BUDGET
    omitted: int = 0

    def embed(self, file: Path) -> str | None:
        """The file as a data URI; None when it is missing or there is no room."""
        return self._uri(file.read_bytes(), MEDIA_TYPES[file.suffix]) if file.is_file() else None

    def embed_rows(self, file: Path, rows: list[tuple[int, int]]) -> list[str]:
        """One data URI for each pair of pixel lines (from, to) of an image file; large ones are re-encoded as WebP."""
        if not file.is_file():
            return []
        image = Image.open(file)
        found = []
        for top, bottom in rows:
            buffer = io.BytesIO()
            part = image.crop((0, top, image.width, bottom))
            part.save(buffer, "PNG")
            media_type = "image/png"
            if buffer.tell() > LARGE_PNG:
                buffer, media_type = io.BytesIO(), "image/webp"
                part.save(buffer, "WEBP", quality=86)
            found.append(self._uri(buffer.getvalue(), media_type))
        return [uri for uri in found if uri]

    def _uri(self, content: bytes, media_type: str) -> str | None:
        if len(content) > self.left:
            self.omitted += 1
            return None
        self.left -= len(content)
        return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@dataclass
class Run:
    """Everything the template shows of one run."""

    out: Path
    title: str
    recipe: str
    modality: str
    command: str
    data: str
    metrics: Metrics
    tiles: list[tuple[str, str, str]]
    curves: list[Markup]
    probe: list[Markup]
    verdict: str | None
    evaluations: list[Evaluation]
    latest: list[Figure]
    first: list[Figure]
    neighbours: dict[str, Any] | None
    map: Markup | None
    skipped: Skipped
    settings: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    omitted: int = 0
    last: list[tuple[str, str]] = field(default_factory=list)


def write_report(out: Path, title: str | None = None) -> Path:
    """Write OUT/report.html from the files of the run OUT, finished or not; parts that are not there yet are left out.

    Raises FileNotFoundError if OUT holds neither recipe.json nor metrics.jsonl.
    """
    out = Path(out)
    run = read_run(out, Album(), title)
    return _write(out / "report.html", title=run.title, runs=[run], summary=False)


def write_summary(runs: list[Path], file: Path, title: str = "mmssl: runs beside each other") -> Path:
    """Write one page with a table of all runs (trained, untrained, chance) and every run's report folded below it."""
    share = BUDGET // max(len(runs), 1)
    return _write(Path(file), title=title, runs=[read_run(Path(run), Album(share)) for run in runs], summary=True)


def read_run(out: Path, album: Album, title: str | None = None) -> Run:
    recipe = read_json(out / "recipe.json")
    metrics = read_metrics(out / "metrics.jsonl")
    if not isinstance(recipe, dict):
        if not len(metrics.step):
            raise FileNotFoundError(f"{out} holds no run: neither recipe.json nor metrics.jsonl is there")
        recipe = {}
    name = str(recipe.get("recipe", "")) or out.name
    latest, first = _figures(out, album)
    found = read_json(out / "neighbours.json")
    neighbours = found if isinstance(found, dict) else None
    for row in neighbours.get("rows", []) if neighbours else []:
        for cell in row:
            cell["uri"] = album.embed(out / cell["file"])
    settings = recipe.get("settings", {})
    data = str(settings.get("data", "DIR"))
    return Run(
        out=out,
        title=title or name,
        recipe=name,
        modality=name.split("/")[0] if "/" in name else "",
        command=str(recipe.get("command", f"mmssl pretrain {name} --data {data} --out {out}")),
        data=data,
        metrics=metrics,
        tiles=_tiles(metrics),
        curves=_curves(metrics),
        probe=_probe(metrics),
        verdict=collapse_verdict(metrics),
        evaluations=read_evaluations(out),
        latest=latest,
        first=first,
        neighbours=neighbours,
        map=_map(neighbours),
        skipped=read_skipped(out / "skipped.jsonl"),
        settings=flatten(settings) if settings else [],
        versions=flatten(recipe["versions"]) if "versions" in recipe else [],
        omitted=album.omitted,
        last=[(key, json.dumps(value)) for key, value in metrics.last.items()],
    )


def _tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    """(what, value, note) of the figures at the top of the page."""
    tiles = []
    if len(metrics.step):
        tiles.append(("steps", f"{int(metrics.step[-1]):,}".replace(",", " "), f"{len(metrics.step)} logged"))
    loss = metrics.values("loss")
    if len(loss):
        tiles.append(("loss", f"{loss[-1]:.4g}", f"from {loss[0]:.4g}, lowest {loss.min():.4g}"))
    speed = metrics.values("samples_per_s")
    if len(speed):
        tiles.append(("samples/s", f"{np.median(speed):.4g}", "median over the run"))
    waited = waiting_share(metrics)
    if waited is not None:
        tiles.append(("waiting for data", f"{100 * waited:.1f} %", "of the training time"))
    knn = metrics.values("probe/knn_top1")
    if len(knn):
        tiles.append(("kNN during training", f"{100 * knn[-1]:.1f} %", f"from {100 * knn[0]:.1f} %"))
    return tiles


def waiting_share(metrics: Metrics) -> float | None:
    """Share of the training time spent waiting for data: the share of each line, weighted by the time it covers."""
    share, speed = metrics.columns.get("data_wait"), metrics.columns.get("samples_per_s")
    if share is None or speed is None:
        return None
    with np.errstate(divide="ignore"):
        time = np.diff(metrics.step, prepend=0) / speed  # in units of a batch, which is the same for all lines
    known = np.isfinite(time * share)
    return float((time * share)[known].sum() / time[known].sum()) if time[known].sum() > 0 else None


def _chart(metrics: Metrics, name: str, title: str, **options: Any) -> Markup:
    column = metrics.columns.get(name)
    return Markup("" if column is None else line_chart([Series(title, metrics.step, column)], title=title, **options))


def _curves(metrics: Metrics) -> list[Markup]:
    loss = metrics.values("loss")
    steep = len(loss) > 0 and loss.min() > 0 and loss.max() > 20 * loss.min()
    lines = [
        _chart(metrics, "loss", "loss" + (" (logarithmic)" if steep else ""), log=steep),
        _chart(metrics, "lr", "learning rate", low=0.0),
        _chart(metrics, "samples_per_s", "samples per second", low=0.0),
        _chart(metrics, "data_wait", "share of time waiting for data", low=0.0, high=1.0, percent=True),
        _chart(metrics, "grad_norm", "gradient norm", low=0.0),
    ]
    known = {"loss", "lr", "samples_per_s", "data_wait", "grad_norm", "skipped_files", "skipped_steps", "epoch"}
    for name in sorted(set(metrics.columns) - known):
        if not name.startswith("probe/") and np.ptp(metrics.values(name)) > 0:
            lines.append(_chart(metrics, name, name))
    return [line for line in lines if line]


def _probe(metrics: Metrics) -> list[Markup]:
    chance = metrics.values("probe/chance")
    level = ("chance", float(chance[-1])) if len(chance) else None
    lines = [
        _chart(metrics, "probe/knn_top1", "kNN top-1", percent=True, low=0.0, level=level),
        _chart(metrics, "probe/feature_std", "feature standard deviation (0: all equal)", low=0.0),
        _chart(metrics, "probe/effective_rank", "effective rank of the features", low=0.0),
        _chart(metrics, "probe/uniformity", "uniformity (0: all equal, lower: more even)", high=0.0),
    ]
    return [line for line in lines if line]


def collapse_verdict(metrics: Metrics) -> str | None:
    """Whether the features still tell samples apart, in words; None when the run watched no features.

    Feature std is that of the normalised features times sqrt(D): 1 when they fill the sphere evenly, 0 when all are
    equal (SimSiam, section 4.1); effective rank is the exponential of the entropy of the singular values (RankMe).
    """
    std, rank = metrics.values("probe/feature_std"), metrics.values("probe/effective_rank")
    if not len(std) or not len(rank):
        return None
    figures = (
        f"feature standard deviation {std[-1]:.3g} (1 = evenly spread, 0 = all equal), effective rank {rank[-1]:.3g}"
    )
    if std[-1] < 0.02 and rank[-1] < 2:
        return f"Collapsed: the encoder gives nearly the same features for every sample ({figures})."
    if std[-1] < 0.02 or rank[-1] < 2:
        return f"Close to collapse: the features vary in very few directions ({figures})."
    return f"No collapse: the features tell samples apart ({figures})."


def _figures(out: Path, album: Album) -> tuple[list[Figure], list[Figure]]:
    """The pictures of the latest step that has each of them, and those of the first step."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((out / "pictures").glob("step-*.json")):
        sidecar = read_json(file)
        if isinstance(sidecar, dict) and re.fullmatch(r"step-\d+-\w+", file.stem):
            by_name.setdefault(str(sidecar["name"]), []).append(sidecar)
    latest, first = [], []
    for sidecars in by_name.values():
        sidecars.sort(key=lambda sidecar: sidecar["step"])
        latest.append(_figure(out, sidecars[-1], album))
    for sidecars in by_name.values():
        if len(sidecars) > 1:
            first.append(_figure(out, sidecars[0], album))
    return latest, first


def _figure(out: Path, sidecar: dict[str, Any], album: Album) -> Figure:
    folder = out / "pictures"
    animation = sidecar["animation"]
    return Figure(
        name=str(sidecar["name"]).replace("_", " "),
        step=int(sidecar["step"]),
        order="left to right" if animation or sidecar["layout"] == "across" else "top to bottom",
        columns=list(sidecar["columns"]),
        animation=album.embed(folder / animation) if animation else None,
        samples=album.embed_rows(folder / sidecar["still"], sidecar["rows"]),
    )


def _map(neighbours: dict[str, Any] | None) -> Markup | None:
    if not neighbours or not neighbours.get("map", {}).get("points"):
        return None
    found = neighbours["map"]
    return Markup(charts.scatter(np.array(found["points"]), found.get("labels"), title=found["method"]))


def _write(file: Path, **content: Any) -> Path:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmssl.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.1f} %"
    environment.filters["gain"] = lambda pair: "" if pair is None else f"{100 * pair[0]:+.1f} to {100 * pair[1]:+.1f}"
    environment.filters["interval"] = lambda pair: "" if pair is None else f"{100 * pair[0]:.1f} – {100 * pair[1]:.1f}"
    page = environment.get_template("report.html.j2").render(
        shown_skipped=SHOWN_SKIPPED, shown_classes=SHOWN_CLASSES, **content
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, file)
    return file

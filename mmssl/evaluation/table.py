"""An evaluation as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

CLASSES_SHOWN = 30


def print_table(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the figures of an evaluation: trained, untrained and chance, then every class."""
    console = console or Console()
    trained, data = result["trained"], result["data"]
    shown = (("k", "k = {:g}"), ("rate", "lr {:g}"), ("decay", "decay {:g}"))
    how = ", ".join(text.format(trained[name]) for name, text in shown if name in trained) or "nothing to choose"
    size = f"{data['examples']['test']} test examples, {len(data['classes'])} classes"
    table = Table(title=f"{result['evaluation']} on {size} ({how})")
    for column in ("encoder", "top-1", "95 %", "balanced", "95 %"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    table.add_row("trained", *_cells(trained))
    twins = [] if result["untrained"] is None else [{**result["untrained"], "difference": result["difference"]}]
    twins += result["further_untrained"]
    for twin in twins:
        table.add_row(f"untrained (seed {twin['seed']})", *_cells(twin))
    if result["shuffled"]:
        table.add_row("trained, shuffled labels", *_cells(result["shuffled"]))
    chance = result["chance"]
    table.add_row(
        "chance: most frequent class", _percent(chance["majority"]), "", _percent(chance["majority_balanced"]), ""
    )
    table.add_row("chance: even guess", _percent(chance["uniform"]), "", _percent(chance["uniform_balanced"]), "")
    console.print(table)
    for twin in twins:
        gain = twin["difference"]
        console.print(
            f"trained minus untrained (seed {twin['seed']}): {100 * gain['top1']:+.1f} points top-1"
            f" ({_interval(gain['top1_interval'], '+')}), {100 * gain['balanced']:+.1f} balanced"
            f" ({_interval(gain['balanced_interval'], '+')})"
        )
    classes = Table(title="trained, by class")
    for column in ("class", "n", "recall", "precision"):
        classes.add_column(column, justify="left" if column == "class" else "right")
    for row in trained["per_class"][:CLASSES_SHOWN]:
        classes.add_row(row["name"], str(row["n"]), _percent(row["recall"]), _percent(row["precision"]))
    console.print(classes)
    if len(trained["per_class"]) > CLASSES_SHOWN:
        console.print(f"... and {len(trained['per_class']) - CLASSES_SHOWN} more classes in the file.")
    for note in (data["split"], *data["notes"]):
        console.print(f"note: {note}", style="dim", highlight=False)
    if data["skipped"]:
        console.print(f"note: {len(data['skipped'])} unreadable file(s) left out, listed in the file", style="dim")


def _cells(figures: dict[str, Any]) -> tuple[str, str, str, str]:
    return (
        _percent(figures["top1"]),
        _interval(figures["top1_interval"]),
        _percent(figures["balanced"]),
        _interval(figures["balanced_interval"]),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _interval(interval: tuple[float, float], sign: str = "") -> str:
    low, high = interval
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"

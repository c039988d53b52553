"""Small inline SVG charts; colours come from the page's style sheet, so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 30
BINS = 160
"""Longer curves are drawn as mean and min/max envelope over so many equal spans of steps."""


@dataclass(frozen=True)
class Series:
    """One curve: x ascending, y finite or NaN (a gap)."""

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Envelope:
    x: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray


def envelope(series: Series, bins: int = BINS) -> Envelope:
    """Mean, minimum and maximum of `bins` equal spans of x; the points themselves if there are at most 2 x bins."""
    finite = np.isfinite(series.y)
    x, y = series.x[finite], series.y[finite]
    if len(x) <= 2 * bins:
        return Envelope(x, y, y, y)
    span = np.minimum(((x - x[0]) / (x[-1] - x[0]) * bins).astype(int), bins - 1)
    starts = np.flatnonzero(np.diff(span, prepend=-1))
    count = np.diff(starts, append=len(x))
    return Envelope(
        np.add.reduceat(x, starts) / count,
        np.minimum.reduceat(y, starts),
        np.add.reduceat(y, starts) / count,
        np.maximum.reduceat(y, starts),
    )


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    log: bool = False,
    low: float | None = None,
    high: float | None = None,
    percent: bool = False,
    level: tuple[str, float] | None = None,
) -> str:
    """Curves over the step, as one <svg>; '' when there is nothing to draw.

    Args:
        log: logarithmic y axis (values that are not positive are left out).
        low, high: fixed ends of the y axis; from the data if None.
        percent: y values are shares, written in per cent.
        level: (name, y) of a dashed horizontal line, such as chance.
    """
    if log:
        series = [Series(one.name, one.x, np.where(one.y > 0, one.y, np.nan)) for one in series]
    series = [one for one in series if np.isfinite(one.y).any()]
    if not series:
        return ""
    curves = [envelope(one) for one in series]
    x0, x1 = min(float(c.x[0]) for c in curves), max(float(c.x[-1]) for c in curves)
    values = [float(c.low.min()) for c in curves] + [float(c.high.max()) for c in curves]
    values += [level[1]] if level else []
    bottom, top = min(values) if low is None else low, max(values) if high is None else high
    ticks = log_ticks(bottom, top) if log else linear_ticks(bottom, top)
    y0, y1 = ticks[0], ticks[-1]

    def at_x(x: np.ndarray) -> np.ndarray:
        return LEFT + (x - x0) / ((x1 - x0) or 1) * (WIDTH - LEFT - RIGHT)

    def at_y(y: np.ndarray) -> np.ndarray:
        share = (np.log(y) - math.log(y0)) / (math.log(y1) - math.log(y0)) if log else (y - y0) / (y1 - y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    texts = [f"{tick * 100:.4g}%" for tick in ticks] if percent else tick_texts(ticks, log=log)
    marks = [(float(at_y(np.array(tick))), text) for tick, text in zip(ticks, texts, strict=True)]
    steps = [tick for tick in linear_ticks(x0, x1, wanted=5) if x0 <= tick <= x1]
    parts = [_axes(title, marks, [(float(at_x(np.array(step))), short(step)) for step in steps])]
    if level:
        y = float(at_y(np.array(level[1])))
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT + 4}" y="{y - 4:.1f}">{escape(level[0])}</text>')
    for i, curve in enumerate(curves):
        px, line = at_x(curve.x), at_y(curve.mean)
        if (curve.high > curve.low).any():
            band = _points(np.concatenate([px, px[::-1]]), np.concatenate([at_y(curve.high), at_y(curve.low)[::-1]]))
            parts.append(f'<polygon class="band c{i}" points="{band}"/>')
        parts.append(f'<polyline class="line c{i}" points="{_points(px, line)}"/>')
        parts.append(f'<circle class="dot c{i}" cx="{px[-1]:.1f}" cy="{line[-1]:.1f}" r="2.6"/>')
    key = "".join(f'<span class="key c{i}">{escape(one.name)}</span>' for i, one in enumerate(series))
    legend = f'<div class="legend">{key}</div>' if len(series) > 1 else ""
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}{legend}</figure>'


def _axes(title: str, rows: list[tuple[float, str]], columns: list[tuple[float, str]]) -> str:
    parts = [f"<title>{escape(title)}</title>"]
    for y, text in rows:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    for x, text in columns:
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="{anchor}">{text}</text>')
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">step</text>'
    )
    return "".join(parts)


def scatter(points: np.ndarray, labels: Sequence[str] | None, *, title: str) -> str:
    """Points float [n,2] as one <svg> of equal scales, coloured by label (the ten most frequent; the rest grey)."""
    size, edge = 420.0, 8.0
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (size - 2 * edge) / max(float((high - low).max()), 1e-12)
    height = float((high - low)[1]) * scale + 2 * edge
    placed = (points - (low + high) / 2) * scale + [size / 2, height / 2]
    groups: list[tuple[str, np.ndarray]] = [("", np.arange(len(points)))]
    if labels is not None:
        names, counts = np.unique(np.asarray(labels), return_counts=True)
        first = sorted(names[np.argsort(-counts, kind="stable")][:10])
        groups = [(name, np.flatnonzero(np.asarray(labels) == name)) for name in first]
        rest = np.flatnonzero(~np.isin(labels, first))
        groups += [("others", rest)] if len(rest) else []
    radius = 3.2 if len(points) <= 600 else 2.2
    parts, keys = [], []
    for i, (name, members) in enumerate(groups):
        colour = f"c{i}" if name != "others" else "rest"
        # One path of zero-length round-capped strokes a label: a tenth of the size of circles.
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in placed[members])
        parts.append(f'<path class="spots {colour}" stroke-width="{2 * radius}" d="{path}"/>')
        keys.append(f'<span class="key {colour}">{escape(name)}</span>' if name else "")
    svg = f'<svg viewBox="0 0 {size:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<figure class="chart map">{svg}<div class="legend">{"".join(keys)}</div></figure>'


def linear_ticks(low: float, high: float, *, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2, 5 x 10^n) that enclose [low, high]."""
    if high - low < 1e-12 * max(abs(high), 1e-300):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if high else (0.0, 1.0)
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * tick for tick in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose [low, high]; 1, 2, 5 x 10^n where it spans less than two decades."""
    factors = (1, 2, 5) if high < 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    first = max((i for i, tick in enumerate(ticks) if tick <= low * (1 + 1e-9)), default=0)
    last = min((i for i, tick in enumerate(ticks) if tick >= high * (1 - 1e-9)), default=len(ticks) - 1)
    if first == last:
        first, last = max(first - 1, 0), min(last + 1, len(ticks) - 1)
    return ticks[first : last + 1]


def tick_texts(ticks: Sequence[float], *, log: bool = False) -> list[str]:
    """Labels that differ from each other: as many decimals as the distance of the ticks asks for."""
    step = ticks[1] - ticks[0]
    if log or step < 1e-4 or max(abs(ticks[0]), abs(ticks[-1])) >= 1e4:
        return [short(tick) for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick + 0.0:.{decimals}f}" for tick in ticks]


def short(value: float) -> str:
    """A tick label: 0, 0.05, 250, 20k, 3e-4."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, power = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    return f"{value:.4g}"


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))

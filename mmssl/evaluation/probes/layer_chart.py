"""Accuracy over layers as a picture of its own (SVG)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 34, 44
COLOURS = ("#1f6fb4", "#8a8a8a", "#c0392b")
Curve = tuple[str, Sequence[float]]


def layer_chart(title: str, curves: Sequence[Curve], levels: Sequence[tuple[str, float]]) -> str:
    """An SVG file: one line a curve (shares in [0,1], layer 0 first) and one dashed line a level, such as chance."""
    last = max(len(values) for _, values in curves) - 1

    def x(layer: float) -> float:
        return LEFT + layer / max(last, 1) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>']
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth * 10} %</text>')
    for layer in range(0, last + 1, max(1, last // 12)):
        parts.append(f'<text x="{x(layer):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{layer}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">layer (0: input of the first block)</text>')
    texts: list[tuple[float, str, str]] = []
    for number, (name, values) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x(layer), y(share)) for layer, share in enumerate(values)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        texts.append((points[-1][1], name, colour))
    for name, share in levels:
        at = y(share)
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"'
        parts.append(f'<line {ends} stroke="#333333" stroke-dasharray="5 4"/>')
        texts.append((at, name, "#333333"))
    floor = -1e9
    for at, name, colour in sorted(texts):  # names stand apart, also where lines end at one height
        floor = max(at + 4, floor + 14)
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{floor:.1f}" fill="{colour}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{"".join(parts)}</svg>\n'
    )

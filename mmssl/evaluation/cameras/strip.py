"""A strip of frames of one camera, and under it the nearest frames of another one, as each encoder finds them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

SHOWN = 8
CELL, MARGIN, LABEL, LINE = 96, 4, 130, 14


def draw_strip(a: np.ndarray, b: np.ndarray, nearest: dict[str, np.ndarray], times: np.ndarray) -> Image.Image:
    """Rows: `SHOWN` even instants of camera a, the same instants of camera b, and of each subject the frames of b that
    it takes for them, with how many seconds they are off.

    Args:
        a, b: uint8 [T,3,h,w] of the same instants. nearest: by subject, int [T]. times: seconds [T].
    """
    instants = np.unique(np.linspace(0, len(times) - 1, SHOWN).round().astype(int))
    rows = [("this camera", a[instants], [f"{times[i]:.1f} s" for i in instants])]
    rows.append(("other, same instant", b[instants], [f"{times[i]:.1f} s" for i in instants]))
    for name, found in nearest.items():
        off = times[found[instants]] - times[instants]
        rows.append((f"nearest: {name}", b[found[instants]], [f"{seconds:+.1f} s" for seconds in off]))
    height = CELL + LINE + MARGIN
    picture = Image.new("RGB", (LABEL + len(instants) * (CELL + MARGIN), len(rows) * height), "white")
    draw = ImageDraw.Draw(picture)
    for y, (name, frames, captions) in enumerate(rows):
        draw.text((MARGIN, y * height + CELL // 2), name, fill="black")
        for x, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
            corner = (LABEL + x * (CELL + MARGIN), y * height)
            cell = Image.fromarray(np.moveaxis(frame, 0, -1)).resize((CELL, CELL), Image.Resampling.BILINEAR)
            picture.paste(cell, corner)
            draw.text((corner[0], corner[1] + CELL), caption, fill="black")
    return picture

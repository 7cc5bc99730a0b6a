"""Plots as plain SVG and grids of pictures as PNG, with nothing but what the node itself needs installed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw

# Okabe and Ito's colours, told apart by colour-blind readers too (jfly.uni-koeln.de/color)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH, HEIGHT = 640, 240  # of one panel's frame, in SVG units
LEFT, TOP, GAP = 60, 30, 60


def curves(panels: Mapping[str, Mapping[str, Sequence[float]]], first: int = 1) -> str:
    """An SVG with one panel below the other: {title: {name of a line: its values by epoch}}. Gaps where not finite.

    first   the epoch of the first value
    """
    parts = [_panel(title, lines, first, row) for row, (title, lines) in enumerate(panels.items())]
    height = TOP + len(parts) * (HEIGHT + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 170} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(title: str, lines: Mapping[str, Sequence[float]], first: int, row: int) -> str:
    top = TOP + row * (HEIGHT + GAP)
    length = max((len(values) for values in lines.values()), default=0)
    finite = [value for values in lines.values() for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5

    def x(index: float) -> float:
        return LEFT + WIDTH * (index / max(1, length - 1))

    def y(value: float) -> float:
        return top + HEIGHT * (high - value) / (high - low)

    out = [
        f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + share * (high - low)
        out.append(f'<path d="M{LEFT} {y(value):.1f}h{WIDTH}" stroke="#ddd" fill="none"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for index in sorted({round(share * (length - 1)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)}) if length else []:
        out.append(f'<text x="{x(index):.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{index + first}</text>')
    for place, (name, values) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        path = "".join(
            f"{'L' if index and math.isfinite(values[index - 1]) else 'M'}{x(index):.1f} {y(value):.1f}"
            for index, value in enumerate(values)
            if math.isfinite(value)
        )
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round"/>')
        out.append(f'<text x="{LEFT + WIDTH + 10}" y="{top + 14 + 18 * place}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(out)


def training_curves(rows: Sequence[Mapping[str, float | str]]) -> str:
    """The plot that lies beside a checkpoint: loss above, the figures of the validation split below, by epoch."""
    figures = [name for name in (rows[-1] if rows else {}) if name not in ("epoch", "loss", "seconds")]
    first = int(float(rows[0]["epoch"])) if rows else 1

    def line(name: str) -> list[float]:
        values = [row.get(name, "") for row in rows]  # as text where the log was read back; "" where there was none
        return [math.nan if value == "" else float(value) for value in values]

    return curves(
        {"loss, training": {"loss": line("loss")}, "validation": {name: line(name) for name in figures}}, first
    )


def save_grid(path: Path, columns: Sequence[str], rows: Sequence[Sequence[np.ndarray]], side: int = 128) -> None:
    """A PNG of pictures in rows with a heading over each column.

    rows   bool masks, or grey in [0, 1]; each (h, w), brought to `side` x `side` without smoothing
    """
    margin, heading = 4, 20
    sheet = Image.new("L", (len(columns) * (side + margin) + margin, heading + len(rows) * (side + margin)), 255)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((margin + column * (side + margin), 4), name, fill=0)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            grey = np.clip(np.rint(np.asarray(picture, dtype=np.float64) * 255), 0, 255).astype(np.uint8)
            place = (margin + column * (side + margin), heading + row * (side + margin))
            sheet.paste(Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST), place)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)

"""The worst cases of an evaluation as a Markdown table, by rule and without pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from models.nets.breast_triple import CLASSES
from models.training.breast_us.data import Labelled

if TYPE_CHECKING:  # evaluate writes these tables
    from models.training.breast_us.judged import Judged

SMALL_SHARE = 0.02  # of the image
FAINT = 0.5  # contrast below this
RING = 0.15  # of the image's shorter side: what counts as round the lesion
BRIGHT, DARK_AROUND = 235, 150  # a mark: white, on tissue that is not
MARK_PIXELS = 12  # fewer are speckle

HEADER = """| image | class | called (P) | Dice | lesion area | at the border | contrast | burned-in marks | why |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def worst_cases(rows: Sequence[Judged], images: Mapping[str, Labelled], count: int = 10) -> str:
    """The images of least Dice (a mark on a normal image has 0), of equal ones those whose class was least believed."""
    worst = sorted(rows, key=lambda row: (row.dice, row.shares[row.label], row.name))[:count]
    return HEADER + "".join(line(row, images[row.name]) + "\n" for row in worst)


def line(row: Judged, image: Labelled) -> str:
    share, edge = float(image.mask.mean()), touches_border(image.mask)
    clear, marks = contrast(image.pixels, image.mask), burned_in(image.pixels, image.mask)
    cells = [
        row.name,
        CLASSES[row.label],
        f"{CLASSES[row.called]} ({row.shares[row.called]:.2f})",
        f"{row.dice:.2f}",
        f"{share:.1%}" if image.mask.any() else "none",
        "yes" if edge else "no",
        "" if clear is None else f"{clear:.2f}",
        "yes" if marks else "no",
        "; ".join(reasons(row, share, edge, clear, marks)),
    ]
    return "| " + " | ".join(cells) + " |"


def reasons(row: Judged, share: float, edge: bool, clear: float | None, marks: bool) -> list[str]:
    """Which of the rules apply, in words; "none of the rules" when nothing does."""
    normal = share == 0
    rules = {
        "marked although normal": normal and not row.empty,
        "called normal, so nothing was reported": not normal and row.empty and row.called == 0,
        "nothing was marked": not normal and row.empty and row.called != 0,
        "another place was marked": not normal and not row.empty and row.dice < 0.1,
        "small": 0 < share < SMALL_SHARE,
        "cut by the border": edge,
        "faint": clear is not None and clear < FAINT,
        "burned-in marks": marks,
    }
    return [words for words, holds in rules.items() if holds] or ["none of the rules"]


def touches_border(mask: np.ndarray) -> bool:
    """bool (rows, columns)"""
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def contrast(pixels: np.ndarray, mask: np.ndarray) -> float | None:
    """How much darker the lesion is than the tissue round it, in deviations of both, |mean - mean| / sd: uint8 and bool
    (rows, columns). None without a lesion."""
    ring = ndimage.binary_dilation(mask, iterations=max(1, round(RING * min(mask.shape) / 2))) & ~mask
    if not mask.any() or not ring.any():
        return None
    inside, around = pixels[mask].astype(float), pixels[ring].astype(float)
    spread = np.sqrt((inside.var() + around.var()) / 2)
    return float(abs(inside.mean() - around.mean()) / max(spread, 1e-6))


def burned_in(pixels: np.ndarray, mask: np.ndarray) -> bool:
    """Whether white, thin marks (letters, calipers) lie on or near the lesion, or anywhere in an image without one."""
    where = ndimage.binary_dilation(mask, iterations=10) if mask.any() else np.ones_like(mask)
    thin = (pixels >= BRIGHT) & (ndimage.median_filter(pixels, 7) < DARK_AROUND)
    return int((thin & where).sum()) >= MARK_PIXELS

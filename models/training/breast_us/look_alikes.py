"""Which pictures show the same place of the same breast: by perceptual hash, and by correlation after alignment.

A set without patient ids can only be split by what can be seen. Two pictures are look-alikes when the hash of one, or
of a part of it, mirrored or not, nearly agrees with that of the other, or when their fine structure correlates more
than that of nearly all pairs from two hospitals, which are surely of two patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.fft import dctn
from skimage.feature import match_template

from models.breast_us.margins import without_margins

COARSE, FINE = 48, 96  # sides of the squares that are compared
BLUR = 8 / 48  # of the side: broader structure is common to all (bright skin above, dark depth below)
PARTS: Sequence[tuple[float, float, float]] = (  # share of the side, and where it begins: down, across
    (1.0, 0, 0),
    *((0.9, y, x) for y, x in ((0.5, 0.5), (0, 0.5), (1, 0.5), (0.5, 0), (0.5, 1))),
    *((0.8, y, x) for y, x in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))),
    *((0.65, y, x) for y, x in ((0.5, 0.5), (0.5, 0), (0.5, 1), (0, 0.5))),
)
WORTH_ALIGNING = 0.5  # correlation of the coarse squares; a few in a thousand pairs of strangers reach it
STEPS = (0.92, 1.0, 1.08)  # of scale, about the part that fits best
INNER = 0.75  # of the side: what is moved about over the other picture
HASH_SIDE, HASH_BITS = 32, 8

Pair = tuple[int, int]


def square(pixels: np.ndarray, side: int) -> np.ndarray:
    """(rows, columns) uint8 -> (side, side) float32, without black margins."""
    tissue = Image.fromarray(pixels[without_margins(pixels)])
    return np.asarray(tissue.resize((side, side), Image.Resampling.BOX), np.float32)


def part(whole: np.ndarray, share: float, down: float, across: float) -> np.ndarray:
    """The part of a square, enlarged to the square again."""
    side = whole.shape[0]
    inner = round(side * share)
    top, left = round((side - inner) * down), round((side - inner) * across)
    cut = Image.fromarray(whole[top : top + inner, left : left + inner])
    return np.asarray(cut.resize((side, side), Image.Resampling.BILINEAR))


def fine_structure(whole: np.ndarray) -> np.ndarray:
    """A square less its own blur, of mean 0 and length 1."""
    detail = whole - ndimage.gaussian_filter(whole, BLUR * whole.shape[0])
    detail = detail - detail.mean()
    return detail / max(float(np.linalg.norm(detail)), 1e-6)


def views(wholes: Sequence[np.ndarray]) -> Iterator[tuple[tuple[int, bool], list[np.ndarray]]]:
    """Each part of every square, mirrored and not, with which part of PARTS it is."""
    for mirrored in (False, True):
        for number, (share, down, across) in enumerate(PARTS):
            yield (number, mirrored), [part(w[:, ::-1] if mirrored else w, share, down, across) for w in wholes]


def coarse(wholes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every ordered pair (a, b): the best correlation of a part of a with the whole of b, and which view of a it
    was (part, mirrored). (N, N) three times."""
    flat = np.stack([fine_structure(one).ravel() for one in wholes])
    best = np.full((len(flat),) * 2, -1, np.float32)
    number, mirror = np.zeros(best.shape, np.int8), np.zeros(best.shape, bool)
    for (which, mirrored), seen in views(wholes):
        found = np.stack([fine_structure(one).ravel() for one in seen]) @ flat.T
        better = found > best
        best[better], number[better], mirror[better] = found[better], which, mirrored
    return best, number, mirror


def aligned(a: np.ndarray, b: np.ndarray, which: int, mirrored: bool) -> float:
    """The correlation of the inner part of that view of a with the place in b that it fits best, at a few scales."""
    share, down, across = PARTS[which]
    seen = fine_structure(part(a[:, ::-1] if mirrored else a, share, down, across))
    whole = fine_structure(b)
    best, side = -1.0, a.shape[0]
    for step in STEPS:
        inner = round(side * INNER / step)
        edge = (side - inner) // 2
        cut = Image.fromarray(seen[edge : edge + inner, edge : edge + inner])
        template = np.asarray(cut.resize((round(side * INNER),) * 2, Image.Resampling.BILINEAR))
        best = max(best, float(match_template(whole, template).max()))
    return best


def correlated(pictures: Sequence[np.ndarray]) -> dict[Pair, float]:
    """Of every pair (i < j) that may show the same place the correlation after alignment."""
    best, number, mirror = coarse([square(one, COARSE) for one in pictures])
    fine = [square(one, FINE) for one in pictures]
    found: dict[Pair, float] = {}
    for a, b in np.argwhere(best > WORTH_ALIGNING):
        if a == b:
            continue
        pair = (int(min(a, b)), int(max(a, b)))
        value = aligned(fine[a], fine[b], int(number[a, b]), bool(mirror[a, b]))
        found[pair] = max(value, found.get(pair, -1.0))
    return found


def hashed_alike(pictures: Sequence[np.ndarray], bits: int) -> set[Pair]:
    """Pairs (i < j) of which a part of one, mirrored or not, has nearly the perceptual hash of the other."""
    wholes = [square(one, HASH_SIDE) for one in pictures]
    own = np.stack([low_frequencies(one) for one in wholes]).astype(np.float32)
    found: set[Pair] = set()
    for _, seen in views(wholes):
        theirs = np.stack([low_frequencies(one) for one in seen]).astype(np.float32)
        differing = theirs @ (1 - own.T) + (1 - theirs) @ own.T
        found |= {(int(min(a, b)), int(max(a, b))) for a, b in np.argwhere(differing <= bits) if a != b}
    return found


def low_frequencies(whole: np.ndarray) -> np.ndarray:
    """(32, 32) -> 63 bools, as data.perceptual_hash"""
    low = dctn(whole.astype(np.float64), norm="ortho")[:HASH_BITS, :HASH_BITS].ravel()[1:]
    return low > np.median(low)


def grouped(count: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """Indices in groups: whoever is linked to a member belongs to the group."""
    family = np.arange(count)
    for a, b in pairs:
        family[family == family[b]] = family[a]
    return [np.flatnonzero(family == one).tolist() for one in np.unique(family)]

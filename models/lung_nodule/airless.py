"""What of the chest was not looked at: tissue between lung and ribs, where consolidation, collapse and fluid lie.

Lungs are found by their air. What has lost it lies outside their mask, and no detector sees it; most of it lies behind
or beside what air is left, in front of the ribs. Geometry and thresholds, no learning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from models.lung_nodule.lungs import Lungs
from models.lung_nodule.plausible import axes_of, upright
from models.read import Volume

RIB_ABOVE_HU = 160
RIB_MM = 14.0  # up and down to the next rib, at most: between two of them a line would leave the chest
WALL_MM = 15.0  # between lung and rib in health: 0 to 3 mm behind in three real CTs, 10 in nine of ten lines
WIDEST = 0.6  # slices with so much of the largest area of lung: nearer to the ends no rib lies straight behind lung
LEAST_SHARE = 0.1  # of a side; three real CTs have 0.004 at most, healthy phantoms 0.08
UNEVEN = 0.5  # the smaller lung of the larger; 0.8 to 0.9 in health

ONE_LUNG = (
    "Right and left lung cannot be told apart: only one may be in view, or the other may hold no air. What holds no air"
    " was not looked at."
)


@dataclass(frozen=True)
class Side:
    """One lung, and what lies between it and the ribs where the lungs are widest, ml."""

    name: str
    lung_ml: float
    wide_ml: float  # of the lung, in the slices where it is widest
    airless_ml: float

    @property
    def share(self) -> float:
        """Airless, of that side where the lungs are widest."""
        return self.airless_ml / max(self.airless_ml + self.wide_ml, 1e-6)


def sides(volume: Volume, lungs: Lungs) -> list[Side]:
    """The right and the left one; none when they cannot be told apart.

    Airless: on lines from the lung to the back and outwards, what is more than WALL_MM off it before the first rib.
    """
    if lungs.middle_x_mm is None:
        return []
    step = lungs.step
    hu = upright(volume.hu[:, ::step, ::step], volume.affine)
    mask = upright(lungs.mask[:, ::step, ::step], volume.affine)
    z_mm, y_mm, x_mm = (np.array(volume.spacing_mm) * (1, step, step))[axes_of(volume.affine)]
    voxel_ml = float(z_mm * y_mm * x_mm) / 1000
    area = mask.sum(axis=(1, 2))
    wide = area >= WIDEST * area.max()
    reach = int(np.ceil(RIB_MM / z_mm))
    first, last = np.flatnonzero(wide)[[0, -1]]
    near = slice(max(0, first - reach), last + reach + 1)
    calm = ndimage.uniform_filter(hu[near].astype(np.float32), (1, 3, 3))
    ribs = ndimage.maximum_filter1d(calm > RIB_ABOVE_HU, 2 * reach + 1, axis=0)[wide[near]]
    columns = np.flatnonzero(mask.any(axis=(0, 1)))
    place = np.arange(mask.shape[2])
    made = []
    for name, way in (("right", -1), ("left", 1)):
        lung = mask & ((place - (columns[0] + columns[-1]) / 2) * way > 0)
        back = between(lung[wide], ribs, 1, WALL_MM / y_mm)
        out = between(lung[wide][..., ::way], ribs[..., ::way], 2, WALL_MM / x_mm)[..., ::way]
        volumes = (int(part.sum()) * voxel_ml for part in (lung, lung[wide], back | out))
        made.append(Side(name, *volumes))
    return made


def between(lung: np.ndarray, ribs: np.ndarray, axis: int, off: float) -> np.ndarray:
    """bool like lung: on lines along the axis, voxels from `off` behind the last of the lung to the first of the ribs.

    Lines that meet either of them nowhere have none.
    """
    count = lung.shape[axis]
    place = np.arange(count).reshape([-1 if each == axis else 1 for each in range(lung.ndim)])
    last = count - 1 - np.flip(lung, axis).argmax(axis=axis, keepdims=True)
    beyond = ribs & (place > last)
    there = lung.any(axis=axis, keepdims=True) & beyond.any(axis=axis, keepdims=True)
    return there & (place > last + off) & (place < beyond.argmax(axis=axis, keepdims=True))


def not_looked_at(found: list[Side]) -> list[str]:
    """What a reader should know of that, in sentences; found: of `sides`."""
    if not found:
        return [ONE_LUNG]
    told = [
        f"Beside the {side.name} lung at least {side.airless_ml:.0f} ml between it and the ribs hold no air,"
        f" {side.share:.0%} of that side where the lungs are widest: consolidation, collapse or fluid may hide nodules"
        " there. It was not looked at."
        for side in found
        if side.share >= LEAST_SHARE
    ]
    small, large = sorted(found, key=lambda side: side.lung_ml)
    if small.lung_ml < UNEVEN * large.lung_ml:
        told.append(
            f"The {small.name} lung has {small.lung_ml:.0f} ml, the {large.name} one {large.lung_ml:.0f} ml: a part of"
            f" the {small.name} one may hold no air. What holds none was not looked at."
        )
    return told

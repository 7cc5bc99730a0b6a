"""Where lymph nodes are looked for: the mediastinum between the lungs, and the abdomen inside its wall.

By classical operations on voxels of 2 mm; nothing is learnt. A scan without lungs is one of the abdomen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from skimage.morphology import convex_hull_image

from models.grid import sampled
from models.lung_nodule.lungs import AIR_BELOW_HU
from models.morphology import eroded, filled, largest
from models.pipeline import UnfitInput
from models.read import Volume

GRID_MM = 2.0
WALL_MM = 18.0  # below the skin nothing is looked for: skin, fat and, in the thin, muscle
LUNG_HU = (-950.0, -400.0)  # median; gas is darker
LUNG_ML = 60.0  # a component below this is no lung but bowel gas, or the windpipe
LUNG_CM2 = 25.0  # a slice with less of both lungs shows the abdomen
MEDIASTINUM_EDGE_MM = 3.0  # taken into the lung, so that a node at the pleura is seen whole
SMALLEST_BODY_CM2 = 280.0  # median cross-section; a head has less, a chest or abdomen of an adult more
LARGEST_BODY_CM2 = 3000.0

Region = Literal["mediastinum", "abdomen"]


@dataclass(frozen=True, eq=False)
class Searched:
    """The scan on voxels of GRID_MM, and which of them are looked at.

    hu            int16 (z, y, x), voxel 0 has the place of the volume's voxel 0
    mediastinum   bool, the same shape
    abdomen       bool, the same shape
    """

    hu: np.ndarray
    mediastinum: np.ndarray
    abdomen: np.ndarray

    @property
    def both(self) -> np.ndarray:
        return self.mediastinum | self.abdomen

    @property
    def largest(self) -> Region:
        return "mediastinum" if self.mediastinum.sum() >= self.abdomen.sum() else "abdomen"

    @property
    def regions(self) -> list[Region]:
        """Those that are in view."""
        masks: dict[Region, np.ndarray] = {"mediastinum": self.mediastinum, "abdomen": self.abdomen}
        return [name for name, mask in masks.items() if mask.any()]

    def region(self, place_zyx: tuple[int, int, int]) -> Region:
        """Of a voxel of the grid."""
        return "mediastinum" if self.mediastinum[place_zyx] else "abdomen"


def coarse(volume: Volume) -> np.ndarray:
    """int16 HU on voxels of GRID_MM; finer ones are averaged first, so that noise does not look like structure."""
    hu = volume.hu.astype(np.float32)
    factors = [mm / GRID_MM for mm in volume.spacing_mm]
    for axis, factor in enumerate(factors):
        if factor < 1:
            hu = ndimage.uniform_filter1d(hu, max(1, round(1 / factor)), axis=axis, mode="nearest")
    sizes = [int((size - 1) * factor + 1e-6) + 1 for size, factor in zip(hu.shape, factors, strict=True)]
    places = [np.arange(size) / factor for size, factor in zip(sizes, factors, strict=True)]
    return np.rint(sampled(hu, places)).astype(np.int16)


def find_regions(volume: Volume) -> Searched:
    """Mediastinum and abdomen. Raises UnfitInput when the scan shows the body of neither."""
    hu = coarse(volume)
    body = filled(largest(eroded(hu > AIR_BELOW_HU)))
    area = float(np.median(body.sum(axis=(1, 2)))) * GRID_MM**2 / 100
    if not SMALLEST_BODY_CM2 <= area <= LARGEST_BODY_CM2:
        raise UnfitInput(
            f"the body's cross-section is {area:.0f} cm2; {SMALLEST_BODY_CM2:.0f} to {LARGEST_BODY_CM2:.0f} are"
            " expected of a chest or an abdomen"
        )
    lungs = lungs_in(hu, body)
    between = np.zeros_like(body)
    chest = lungs.sum(axis=(1, 2)) * GRID_MM**2 / 100 >= LUNG_CM2
    for z in np.flatnonzero(chest):
        off = ndimage.distance_transform_edt(lungs[z]) * GRID_MM > MEDIASTINUM_EDGE_MM
        between[z] = convex_hull_image(lungs[z]) & ~off & body[z]
    inner = np.zeros_like(body)
    for z in np.flatnonzero(body.any(axis=(1, 2))):
        inner[z] = ndimage.distance_transform_edt(np.pad(body[z], 1))[1:-1, 1:-1] * GRID_MM > WALL_MM
    inner[~below(chest, volume)] = False
    return Searched(hu, between, inner)


def below(chest: np.ndarray, volume: Volume) -> np.ndarray:
    """bool (z,): slices towards the feet of all that show the chest; every slice where none does. Above is the neck."""
    if not chest.any():
        return np.ones_like(chest)
    towards_head = volume.affine[2, 0] > 0  # LPS: z grows to the head, PS3.3 C.7.6.2.1.1
    places = np.flatnonzero(chest)
    slices = np.arange(len(chest))
    return slices < places[0] if towards_head else slices > places[-1]


def lungs_in(hu: np.ndarray, body: np.ndarray) -> np.ndarray:
    """bool: aerated tissue inside the body, neither bowel gas nor the windpipe."""
    labels, _ = ndimage.label(body & (hu < AIR_BELOW_HU))
    sizes = np.bincount(labels.ravel())
    large = [label for label in range(1, len(sizes)) if sizes[label] * GRID_MM**3 / 1000 >= LUNG_ML]
    # the median, for the border of a gas pocket is neither gas nor tissue: it would make the mean that of a lung
    keep = [label for label in large if LUNG_HU[0] < np.median(hu[labels == label]) < LUNG_HU[1]]
    return np.isin(labels, keep)

"""Solid, part-solid or non-solid, by Hounsfield units; no learning.

1. Solid is what is above -300 HU after a 3 x 3 median in the slice; the core is its largest piece (6 neighbours).
   At -300 HU software found solid parts with 90 % sensitivity and 88 % specificity (Scholten 2015, Eur Radiol 25:488);
   there -130 HU gave the diameters that readers drew in a mediastinal window, so at -300 HU a core is rather too large.
2. Without a core, or with one below both 6 % of the nodule and a ball of 3 mm, the nodule is non-solid.
3. Ground glass is what lies further than 1.5 mm (at least one voxel: partial volume) from the core. From 25 % of the
   nodule on it is part-solid, else solid.

Rules 2 and 3 were set on the LIDC volumes of the training patients, against the readers' texture (1 and 2 non-solid,
3 part-solid, 4 and 5 solid). Figures of other patients are in CARD.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.sr.coding import Code
from scipy import ndimage

from dicom_sr import codes
from dicom_sr.findings import Evaluation
from models.read import Volume

SOLID_ABOVE_HU = -300
CORE_SHARE = 0.06
CORE_MM3 = np.pi / 6 * 3.0**3
RIM_MM = 1.5
GROUND_GLASS_SHARE = 0.25
THICK_MM = 3.0  # slices further apart show every small nodule mixed with lung

RULE = Evaluation(
    codes.NODULE_TYPE_RULE,
    Code("HU-300", "99PACSNODE", "core > -300 HU, 6% or 3 mm; part-solid: 25% beyond 1.5 mm of it"),
)


@dataclass(frozen=True, eq=False)
class Texture:
    """SOLID, PART_SOLID or NON_SOLID of dicom_sr.codes, and the solid core of the nodule, bool like its mask."""

    type: Code
    core: np.ndarray


def texture(mask: np.ndarray, offset_zyx: tuple[int, int, int], volume: Volume) -> Texture | None:
    """The type of a bool mask (d, h, w) that lies at offset_zyx in volume; None when slices are too far apart."""
    if volume.spacing_mm[0] > THICK_MM:
        return None
    start = np.maximum(np.array(offset_zyx) - (0, 1, 1), 0)  # one pixel more for the median
    inner = tuple(slice(o - s, o - s + n) for o, s, n in zip(offset_zyx, start, mask.shape, strict=True))
    box = tuple(slice(s, o + n + m) for s, o, n, m in zip(start, offset_zyx, mask.shape, (0, 1, 1), strict=True))
    calm = ndimage.median_filter(volume.hu[box], size=(1, 3, 3))[inner]
    core = largest(mask & (calm > SOLID_ABOVE_HU))
    voxels, core_voxels = int(mask.sum()), int(core.sum())
    if core_voxels < CORE_SHARE * voxels and core_voxels * volume.voxel_mm3 < CORE_MM3:
        return Texture(codes.NON_SOLID, np.zeros_like(mask))
    rims = np.array(volume.spacing_mm) / np.maximum(volume.spacing_mm, RIM_MM)  # a voxel's side, in widths of the rim
    beyond = ndimage.distance_transform_edt(~core, sampling=rims) > 1 + 1e-6
    ground_glass = int((mask & beyond).sum())
    return Texture(codes.PART_SOLID if ground_glass >= GROUND_GLASS_SHARE * voxels else codes.SOLID, core)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected piece of a bool array; all False stays so."""
    labels, count = ndimage.label(mask)
    return mask if count == 0 else labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())

"""Is this a chest in Hounsfield units, and does it lie as its header says? Geometry and thresholds, no learning.

What cannot be one is refused; what may be one and looks odd is told in a sentence, for patients are odd, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from models.lung_nodule.lungs import AIR_BELOW_HU, Lungs
from models.pipeline import UnfitInput
from models.read import Volume

AIR_AT_MOST_HU = -700.0  # the darkest hundredth of a chest: air round it, or lung where the field ends inside the body
BODY_HU = (-200.0, 300.0)  # median of what is no air: from a body that is mostly fat to one full of contrast and bone
STEP_PX = 4  # every so many rows and columns are looked at for that

AIRWAY_BELOW_HU = -930.0
AIRWAY_CM2 = (0.6, 7.0)  # of the trachea on a slice
MIDLINE_MM = 30.0  # from the middle, at most
LONG_MM, SHORT_MM = 40.0, 20.0  # of trachea: surely there, surely not
HEART_MM = -6.0  # of the space between the lungs, in front, from the middle to the patient's left; less is to the right
LEAST_SHARE = 0.12  # of the body's cross-section, on the slice with most lung

HEADER = "check Rescale Intercept, Rescale Slope and Modality in the header"
UPSIDE_DOWN = (
    "The windpipe was seen at the end that is the lower one by the header: head and feet may be exchanged, and then"
    " right and left of the findings may be, too. Check Image Position (Patient) against the picture."
)
MIRRORED = (
    "The heart seems to lie on the patient's right: the header may mirror right and left, the heart may lie there, or"
    " be drawn over. Check the side of each finding against the picture."
)


def refuse_no_hounsfield(hu: np.ndarray) -> None:
    """Raise UnfitInput, in words, when int16 (z, y, x) cannot be a chest in Hounsfield units."""
    some = hu[:, ::STEP_PX, ::STEP_PX]
    darkest = float(np.percentile(some, 1))
    if darkest > AIR_AT_MOST_HU:
        raise UnfitInput(
            f"no air: the darkest hundredth of the picture has {darkest:.0f} HU, air and lung have {AIR_AT_MOST_HU:.0f}"
            f" and less; this is no chest CT, or its values are no Hounsfield units: {HEADER}"
        )
    dense = some[some > AIR_BELOW_HU]
    if not dense.size:
        raise UnfitInput(
            f"no tissue: the densest voxel has {int(some.max())} HU, tissue has more than {AIR_BELOW_HU}; there"
            f" is nothing but air, or the values are no Hounsfield units: {HEADER}"
        )
    middle = float(np.median(dense))
    if not BODY_HU[0] < middle < BODY_HU[1]:
        raise UnfitInput(
            f"tissue has {middle:.0f} HU in the median, that of a chest {BODY_HU[0]:.0f} to {BODY_HU[1]:.0f}; the"
            f" values are no Hounsfield units, or this is no chest CT: {HEADER}"
        )


def doubts(volume: Volume, lungs: Lungs) -> list[str]:
    """What a reader should know before he believes the findings, in sentences."""
    told = []
    if lungs.share < LEAST_SHARE:
        told.append(
            f"The lungs take {lungs.share:.0%} of the body's cross-section where they are widest, in a chest a third or"
            " more: this may be an abdomen, or only the ends of the lungs are in view. Check the series."
        )
    if lungs.middle_x_mm is None:
        return told
    step = lungs.step
    spacing_mm = np.array(volume.spacing_mm) * (1, step, step)
    hu = upright(volume.hu[:, ::step, ::step], volume.affine)
    mask = upright(lungs.mask[:, ::step, ::step], volume.affine)
    z_mm, y_mm, x_mm = spacing_mm[axes_of(volume.affine)]
    heights = np.flatnonzero(mask.any(axis=(1, 2)))
    low, half = int(heights[0]), int(heights.mean())
    columns = np.flatnonzero(mask.any(axis=(0, 1)))
    middle = (columns[0] + columns[-1]) / 2

    def airway_mm(part: np.ndarray) -> float:
        """The longest windpipe without a gap."""
        return z_mm * longest_run([has_airway(one, middle, y_mm * x_mm / 100, MIDLINE_MM / x_mm) for one in part])

    if airway_mm(hu[low:half]) >= LONG_MM and airway_mm(hu[half:]) < SHORT_MM:  # above is asked in few chests
        return [*told, UPSIDE_DOWN]
    left_mm = between_lungs(mask[low:half], middle) * x_mm
    return [*told, MIRRORED] if left_mm < HEART_MM else told


def axes_of(affine: np.ndarray) -> list[int]:
    """Which axes of a volume go along the body, from front to back, and from side to side."""
    return [int(np.abs(affine[row, :3]).argmax()) for row in (2, 1, 0)]


def upright(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(z, y, x) turned so that z goes to the head, y to the back and x to the patient's left, by the header."""
    axes = axes_of(affine)
    ways = [-1 if affine[row, axis] < 0 else 1 for row, axis in zip((2, 1, 0), axes, strict=True)]
    return values.transpose(axes)[tuple(slice(None, None, way) for way in ways)]


def has_airway(hu: np.ndarray, middle: float, pixel_cm2: float, reach_px: float) -> bool:
    """Whether a slice (y, x) shows a windpipe: air by itself, of its size, near the middle column."""
    calm = ndimage.uniform_filter(hu.astype(np.float32), 3)
    labels, count = ndimage.label(calm < AIRWAY_BELOW_HU)
    if not count:
        return False
    numbers = np.arange(1, count + 1)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:] * pixel_cm2
    fit = numbers[(areas >= AIRWAY_CM2[0]) & (areas <= AIRWAY_CM2[1])]
    places = ndimage.center_of_mass(labels > 0, labels, fit)
    return any(abs(x - middle) <= reach_px for _, x in places)


def longest_run(flags: Sequence[bool]) -> int:
    """How many True stand together, at most."""
    labels, _ = ndimage.label(flags)
    return int(np.bincount(labels[labels > 0]).max(initial=0))


def between_lungs(mask: np.ndarray, middle: float) -> float:
    """Columns by which the middle of the gap between the lungs lies beyond the middle column; of the front half.

    mask: bool (z, y, x), upright. The mean of all rows that cut both lungs; 0 when none does.
    """
    rows = np.flatnonzero(mask.any(axis=(0, 2)))
    front = mask[:, : int(rows.mean())] if len(rows) else mask
    place = np.arange(mask.shape[2])
    right = np.where(front & (place < middle), place, -1).max(axis=2)  # its innermost column
    left = np.where(front & (place > middle), place, mask.shape[2]).min(axis=2)
    both = (right >= 0) & (left < mask.shape[2])
    return float(((right + left)[both] / 2 - middle).mean()) if both.any() else 0.0

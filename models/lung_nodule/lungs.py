"""Where the lungs are, by classical operations: threshold, body, largest components, closing.

Works on any axial CT in HU with air round a body: real scans with a table, and phantoms. No learning, nothing to drift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from models.pipeline import UnfitInput
from models.read import Volume

AIR_BELOW_HU = -320  # between lung and soft tissue; van Rikxoort 2009 uses thresholds near this
LUNG_MEAN_HU = (-970.0, -400.0)  # bowel gas and trachea alone are darker, as a mean
SMALLEST_LUNG_ML = 60.0  # a component below this is no lung (a few slices of one still are more)
SMALLEST_LUNGS_ML = 150.0  # both together; below it the scan shows no lungs
CLOSING_MM = 10.0  # radius: brings juxtapleural nodules and hilar vessels up to 20 mm wide back in
BETWEEN_MM = 15.0  # half the width of the strip between the lungs that holds the mediastinum
WORK_MM = 1.3  # the mask is made on pixels of about this size and brought back
REACH_MM = (20.0, 40.0, 80.0)  # how far around a nodule the pleura is looked for, the next when it was not there
TILTED = 1.02  # a slice step this much longer than its part along the normal: 11 degrees of gantry tilt


@dataclass(frozen=True, eq=False)
class Lungs:
    """bool (z, y, x) on the volume's grid, closed over nodules at the pleura, and what is needed to tell the sides."""

    mask: np.ndarray
    volume_ml: float
    middle_x_mm: float | None  # LPS x between the two lungs; None when only one is in view
    step: int = 1  # the mask was made on every step-th row and column: finer than that it knows nothing


def find_lungs(volume: Volume) -> Lungs:
    """Segment both lungs. Raises UnfitInput in words when there are none."""
    step = max(1, round(WORK_MM / min(volume.spacing_mm[1:])))
    coarse = volume.hu[:, ::step, ::step]
    spacing = volume.spacing_mm[0], volume.spacing_mm[1] * step, volume.spacing_mm[2] * step
    voxel_ml = float(np.prod(spacing)) / 1000

    air = coarse < AIR_BELOW_HU
    inside = air & filled(largest(eroded(~air)))
    labels, _ = ndimage.label(inside)
    keep = [
        label
        for label, size in enumerate(np.bincount(labels.ravel())[1:], start=1)
        if size * voxel_ml >= SMALLEST_LUNG_ML and LUNG_MEAN_HU[0] < coarse[labels == label].mean() < LUNG_MEAN_HU[1]
    ]
    lungs = np.isin(labels, keep)
    volume_ml = float(lungs.sum()) * voxel_ml
    if volume_ml < SMALLEST_LUNGS_ML:
        raise UnfitInput(
            f"no lungs found: {volume_ml:.0f} ml of aerated tissue inside the body, at least {SMALLEST_LUNGS_ML:.0f} ml"
            " is needed; is this a chest CT?"
        )
    middle = middle_x(lungs, volume, step)
    radius = CLOSING_MM / spacing[1]
    closed = np.zeros_like(lungs)
    for part in keep:  # each by itself, or the closing would bridge the mediastinum
        closed |= by_slice(lambda one: closing(one, radius), labels == part)
    mask = closed.repeat(step, axis=1).repeat(step, axis=2)[:, : volume.hu.shape[1], : volume.hu.shape[2]]
    return Lungs(mask, volume_ml, middle, step)


def distance_to_pleura(
    lungs: Lungs, mask: np.ndarray, offset_zyx: tuple[int, int, int], volume: Volume
) -> float | None:
    """mm between the bool mask (d, h, w) at offset_zyx and the nearest border of the lung mask; 0 where they touch.

    The border is that of the closed mask: costal, diaphragmatic and mediastinal pleura; fissures are not known. None
    when the scan ends nearer than that border, or is tilted: the distance is not known then. As exact as the lung mask,
    about WORK_MM.
    """
    if float(np.linalg.norm(volume.affine[:3, 0])) > TILTED * volume.spacing_mm[0]:
        return None
    every = np.array([1, lungs.step, lungs.step])
    spacing = np.array(volume.spacing_mm) * every
    inside = lungs.mask[:, :: lungs.step, :: lungs.step]
    voxels = np.unique((np.argwhere(mask) + offset_zyx) // every, axis=0)
    first, last = voxels.min(axis=0), voxels.max(axis=0)
    end_of_scan = float((np.minimum(first, np.array(inside.shape) - 1 - last) * spacing).min())
    for reach_mm in REACH_MM:
        margin = np.ceil(reach_mm / spacing).astype(int)
        start = np.maximum(first - margin, 0)
        box = tuple(slice(a, b) for a, b in zip(start, last + margin + 1, strict=True))
        if inside[box].all():
            continue
        far, nearest = ndimage.distance_transform_edt(inside[box], sampling=spacing, return_indices=True)
        local = tuple((voxels - start).T)
        closest = int(far[local].argmin())
        steps = np.abs(nearest[(slice(None), *local)].T[closest] - (voxels - start)[closest])
        gap = float(np.linalg.norm(np.maximum(steps - 1, 0) * spacing))  # between the voxels' faces, not their middles
        if far[local][closest] <= reach_mm:  # else it may be nearer outside the box
            return gap if gap <= end_of_scan else None
    return None


def by_slice(change: Callable[[np.ndarray], np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Apply a 2-D operation to every slice that has something in it."""
    out = np.zeros_like(mask)
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        out[z] = change(mask[z])
    return out


def eroded(mask: np.ndarray) -> np.ndarray:
    """One pixel off each slice: cuts the table and the sheets from the body."""
    return by_slice(lambda one: ndimage.binary_erosion(one, border_value=1), mask)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected component of a bool volume; all False stays so."""
    labels, count = ndimage.label(mask)
    return mask if count == 0 else labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())


def filled(mask: np.ndarray) -> np.ndarray:
    return by_slice(ndimage.binary_fill_holes, mask)


def closing(mask: np.ndarray, radius: float) -> np.ndarray:
    """Closing of a 2-D mask by a disc, holes filled; by distances, so its cost does not grow with the radius."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = int(radius) + 2
    wide = np.pad(mask[box], margin)
    grown = ndimage.distance_transform_edt(~wide) <= radius
    back = ndimage.distance_transform_edt(grown) > radius
    out = np.zeros_like(mask)
    out[box] = ndimage.binary_fill_holes(back | wide)[margin:-margin, margin:-margin]
    return out


def middle_x(lungs: np.ndarray, volume: Volume, step: int) -> float | None:
    """LPS x half-way between the outer borders of the lungs, or None when two lungs cannot be told apart.

    Two lungs have each a fair part of the volume, and little of it lies between them.
    """
    z, y, x = np.nonzero(lungs)
    lps_x = (
        volume.affine[0, 0] * z + volume.affine[0, 1] * y * step + volume.affine[0, 2] * x * step + volume.affine[0, 3]
    )
    low, high = np.quantile(lps_x, [0.001, 0.999])
    middle = float(low + high) / 2
    left = float((lps_x > middle).mean())
    between = float((np.abs(lps_x - middle) < BETWEEN_MM).mean())
    evenly = 2 * BETWEEN_MM / max(float(high - low), 1.0)
    return middle if 0.2 < left < 0.8 and between < 0.5 * evenly else None

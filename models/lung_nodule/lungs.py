"""Where the lungs are, by classical operations: threshold, body, largest components, closing.

Works on any axial CT in HU with air round a body: real scans with a table, and phantoms. No learning, nothing to drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from models.morphology import closed, eroded, filled, largest, sizes
from models.pipeline import UnfitInput
from models.read import Volume

AIR_BELOW_HU = -320  # between lung and soft tissue; van Rikxoort 2009 uses thresholds near this
LUNG_MEDIAN_HU = (-970.0, -400.0)  # bowel gas and trachea alone are darker; inside, where no wall is mixed in
STOOL_ABOVE_HU, STOOL_SHARE = -650.0, 0.2  # denser than nearly all lung, and little of the cross-section
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
    share: float = 1.0  # of the body's cross-section, on the slice with most lung


def find_lungs(volume: Volume) -> Lungs:
    """Segment both lungs. Raises UnfitInput in words when there are none."""
    step = max(1, round(WORK_MM / min(volume.spacing_mm[1:])))
    coarse = volume.hu[:, ::step, ::step]
    spacing = volume.spacing_mm[0], volume.spacing_mm[1] * step, volume.spacing_mm[2] * step
    voxel_ml = float(np.prod(spacing)) / 1000

    air = coarse < AIR_BELOW_HU
    body = filled(largest(eroded(~air)))
    inside = air & body
    (near,) = ndimage.find_objects(inside.astype(np.uint8)) or [None]
    labels, count = ndimage.label(inside[near]) if near else (np.zeros((1, 1, 1), np.int32), 0)
    parts = {
        label: box
        for label, (size, box) in enumerate(zip(sizes(labels, count)[1:], ndimage.find_objects(labels), strict=True), 1)
        if size * voxel_ml >= SMALLEST_LUNG_ML
    }
    lungs, closed_lungs = (np.zeros(coarse.shape, bool) for _ in range(2))
    seen: list[str] = []
    for label, box in parts.items():
        part = labels[box] == label
        middle_hu = median_inside(coarse[near][box], part)
        if LUNG_MEDIAN_HU[0] < middle_hu < LUNG_MEDIAN_HU[1]:
            lungs[near][box] |= part
            # each by itself, or the closing would bridge the mediastinum
            closed_lungs[near][box] |= closed(part, CLOSING_MM / spacing[1])
        else:
            seen.append(f"{part.sum() * voxel_ml:.0f} ml of {middle_hu:.0f} HU")
    volume_ml = float(lungs.sum()) * voxel_ml
    if volume_ml < SMALLEST_LUNGS_ML:
        beside = f", beside what is darker or denser than lung ({', '.join(seen)})" if seen else ""
        raise UnfitInput(
            f"no lungs found: {volume_ml:.0f} ml of aerated tissue inside the body, at least {SMALLEST_LUNGS_ML:.0f} ml"
            f" is needed{beside}; is this a chest CT? Send the series that shows the chest"
        )
    per_slice = lungs.sum(axis=(1, 2))
    share = float(per_slice.max() / body[int(per_slice.argmax())].sum())
    if share < STOOL_SHARE and (middle_hu := median_inside(coarse, lungs)) > STOOL_ABOVE_HU:
        raise UnfitInput(
            f"no lungs found: what holds air inside the body has {middle_hu:.0f} HU and takes {share:.0%} of its"
            " cross-section where it is widest, like stool in the bowel; is this a chest CT? Send the series that shows"
            " the chest"
        )
    mask = repeated(closed_lungs, step, volume.hu.shape)
    return Lungs(mask, volume_ml, middle_x(lungs, volume, step), step, share)


def median_inside(hu: np.ndarray, part: np.ndarray) -> float:
    """HU of a bool part (z, y, x), the pixels at its border left out where it has others."""
    inner = eroded(part)
    return float(np.median(hu[inner if inner.any() else part]))


def repeated(mask: np.ndarray, step: int, shape: Sequence[int]) -> np.ndarray:
    """bool: each row and column so many times, cut to the shape. Memory is touched where something is True."""
    out = np.zeros(shape, bool)
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    part = mask[box].repeat(step, axis=2).repeat(step, axis=1)
    z, y, x = box
    there = out[z, y.start * step : y.stop * step, x.start * step : x.stop * step]
    there[...] = part[:, : there.shape[1], : there.shape[2]]
    return out


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


def middle_x(lungs: np.ndarray, volume: Volume, step: int) -> float | None:
    """LPS x half-way between the outer borders of the lungs, or None when two lungs cannot be told apart.

    Two lungs have each a fair part of the volume, and little of it lies between them.
    """
    steps = volume.affine[0, :3] * (1, step, step)
    counts = lungs.sum(axis=tuple(np.flatnonzero(steps == 0)), keepdims=True)  # along these x does not change
    z, y, x = np.nonzero(counts)
    each = counts[z, y, x]
    lps_x = steps[0] * z + steps[1] * y + steps[2] * x + volume.affine[0, 3]
    low, high = np.quantile(lps_x, [0.001, 0.999], weights=each, method="inverted_cdf")
    middle = float(low + high) / 2
    left = float(each[lps_x > middle].sum() / each.sum())
    between = float(each[np.abs(lps_x - middle) < BETWEEN_MM].sum() / each.sum())
    evenly = 2 * BETWEEN_MM / max(float(high - low), 1.0)
    return middle if 0.2 < left < 0.8 and between < 0.5 * evenly else None

"""The outline of one candidate: where the picture is steepest between its core and what is certainly something else.

A watershed from two markers (Meyer, Signal Process. 38 (1994) 113-125) on voxels of 1 mm; nothing is learnt.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from models.grid import first_voxel, isotropic, on_source
from models.read import Volume

SMOOTH_MM = 0.8  # sigma: noise off, before the picture's steepness is taken
CORE = 0.5  # of the proposal's radius: certainly node
FAR = 2.2  # radii from the centre: certainly something else
FAR_MORE_MM = 3.0
FAT_HU = -40.0  # below it is no node
APART_HU = 55.0  # what differs so much from the core is something else: a vessel with contrast agent, muscle
LEAK_MM = 1.5  # radius of the opening that cuts off thin bridges to vessels
INSIDE, OUTSIDE = 1, 2


def outline(
    volume: Volume, centre_zyx: tuple[float, float, float], radius_mm: float
) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """bool (d, h, w) and where it starts on the volume's own grid, round an index of it; None when there is no edge."""
    spacing = np.array(volume.spacing_mm)
    middle_mm = np.array(centre_zyx) * spacing
    reach_mm = FAR * radius_mm + FAR_MORE_MM + 3
    low = np.clip(np.floor((middle_mm - reach_mm) / spacing), 0, np.array(volume.hu.shape) - 1).astype(int)
    high = np.clip(np.ceil((middle_mm + reach_mm) / spacing) + 1, low + 1, volume.hu.shape).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    hu = isotropic(volume.hu[box].astype(np.float32), volume.spacing_mm, low.tolist())
    start = first_voxel(low.tolist(), volume.spacing_mm)
    marked = _marked(hu, middle_mm - start, radius_mm)
    if marked is None:
        return None
    return on_source(marked, start, volume.spacing_mm, volume.hu.shape)


def _marked(hu: np.ndarray, middle: np.ndarray, radius_mm: float) -> np.ndarray | None:
    """float32 (z, y, x) on voxels of 1 mm, the candidate's place in it -> bool; None when it has no core or no edge."""
    away = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(np.indices(hu.shape), middle, strict=True)))
    smooth = ndimage.gaussian_filter(hu, SMOOTH_MM, mode="nearest")
    ball = away <= max(1.0, CORE * radius_mm)
    if not ball.any():
        return None
    core_hu = float(np.median(smooth[ball]))
    other = (away > FAR * radius_mm + FAR_MORE_MM) | (smooth < FAT_HU) | (smooth > core_hu + APART_HU)
    core = ball & ~other
    if not core.any() or not other.any():
        return None
    markers = np.where(core, INSIDE, np.where(other, OUTSIDE, 0)).astype(np.int8)
    steep = ndimage.gaussian_gradient_magnitude(hu, SMOOTH_MM, mode="nearest")
    node = watershed(steep, markers) == INSIDE
    opened = _opening(node, LEAK_MM)
    labels, _ = ndimage.label(opened | core)
    kept = np.isin(labels, np.unique(labels[core]))
    return ndimage.binary_fill_holes(kept & node)


def _opening(mask: np.ndarray, radius: float) -> np.ndarray:
    inner = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] > radius
    return ndimage.distance_transform_edt(~inner) <= radius if inner.any() else inner

"""Rules that what a detector marks must keep to be reported as a nodule; each says in words why one does not."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from models.lung_nodule.detections import Candidate
from models.lung_nodule.lungs import Lungs
from models.lung_nodule.options import Options
from models.measure import axial
from models.read import Volume

SHELL_MM = (1.0, 3.0)
SOFT_ABOVE_HU = -500


def unfit(candidate: Candidate, volume: Volume, lungs: Lungs, options: Options) -> str | None:
    """None, or why a candidate is not reported, whatever found it: its size, or that it is not in the lungs."""
    _, lines = axial(candidate.mask, volume.spacing_mm)
    if lines.mean_mm < options.smallest_mm:
        return f"{lines.mean_mm:.1f} mm is below {options.smallest_mm:g} mm"
    if lines.mean_mm > options.largest_mm:
        return f"{lines.mean_mm:.1f} mm is above {options.largest_mm:g} mm"
    share = float(lungs.mask[candidate.box][candidate.mask].mean())
    if share < options.in_lung:
        return f"only {100 * share:.0f} % inside the lungs"
    return None


def like_no_nodule(candidate: Candidate, volume: Volume, lungs: Lungs, options: Options) -> str | None:
    """None, or why the shape is that of something else: for what looks at slices only, where a vessel is a disc."""
    if candidate.mask.shape[0] < 2 and volume.spacing_mm[0] <= options.thin_mm:
        return "on one slice only"
    around = soft_tissue_around(candidate, volume, lungs)
    if around > options.surround_soft_tissue:
        return f"{100 * around:.0f} % of its surroundings in the lung is soft tissue, like a vessel that goes on"
    shortest, second, longest = axes_of_inertia(candidate.mask, volume.spacing_mm)
    if longest / second > options.elongation:
        return f"{longest / second:.1f} times longer than wide, like a vessel"
    if longest / shortest > options.flatness:
        return f"{longest / shortest:.1f} times wider than thick, like a fissure or a dome"
    return None


def soft_tissue_around(candidate: Candidate, volume: Volume, lungs: Lungs) -> float:
    """Share of soft tissue among the lung voxels 1 to 3 mm outside the mask; 0 if there are none.

    Of every third LIDC nodule of the training patients (198, readers' masks, surroundings not limited to the lung) the
    median is 0.04 and the 90th percentile 0.29; a vessel cut by the network's mask goes on and has more.
    """
    margin = np.ceil(SHELL_MM[1] / np.array(volume.spacing_mm)).astype(int)
    start = np.array(candidate.offset_zyx) - margin
    stop = np.array(candidate.offset_zyx) + candidate.mask.shape + margin
    inner, outer = np.maximum(start, 0), np.minimum(stop, volume.hu.shape)
    box = tuple(slice(a, b) for a, b in zip(inner, outer, strict=True))
    part = tuple(slice(a, b) for a, b in zip(inner - start, outer - start, strict=True))
    distance = ndimage.distance_transform_edt(
        ~np.pad(candidate.mask, [(m, m) for m in margin]), sampling=volume.spacing_mm
    )[part]
    shell = (distance > SHELL_MM[0]) & (distance <= SHELL_MM[1]) & lungs.mask[box]
    return float((volume.hu[box][shell] > SOFT_ABOVE_HU).mean()) if shell.any() else 0.0


def axes_of_inertia(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    """Standard deviations in mm along the principal axes of a mask, the shortest first; a ball's are equal."""
    points = np.argwhere(mask) * np.array(spacing_mm)
    spread = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((3, 3))
    spread += np.diag(np.array(spacing_mm) ** 2 / 12)  # a voxel is a box, not a point
    shortest, second, longest = np.sqrt(np.linalg.eigvalsh(spread))
    return float(shortest), float(second), float(longest)

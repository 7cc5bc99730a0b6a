"""Sizes and attenuation of a mask, the way a radiologist's caliper takes them, in millimetres on an anisotropic grid.

Long axis: the greatest distance between two points of the outline in the axial slice of largest area. Short axis: the
extent at right angles to it, drawn as a caliper line there. Both run along pixel edges: a pixel has a size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull

from dicom_sr import codes
from dicom_sr.findings import Axis, Measurement

Point = tuple[float, float]


@dataclass(frozen=True)
class Calipers:
    """Long and short axis of a 2-D mask; end points in (column, row) pixel coordinates of the mask's own grid."""

    long_mm: float
    short_mm: float
    long_xy: tuple[Point, Point]
    short_xy: tuple[Point, Point]

    @property
    def mean_mm(self) -> float:
        return (self.long_mm + self.short_mm) / 2


def corners_xy(mask: np.ndarray) -> np.ndarray:
    """Corners of the outermost pixels of each row of a 2-D mask, (n, 2) as (column, row); they span its convex hull."""
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - mask[rows][:, ::-1].argmax(axis=1)
    return np.concatenate([np.stack([x, y], -1) for x in (first, last) for y in (rows, rows + 1)]).astype(float)


def calipers(mask: np.ndarray, spacing_mm: tuple[float, float]) -> Calipers:
    """Measure a 2-D bool mask (rows, columns); spacing_mm is (rows, columns). Raises ValueError if empty.

    Of several longest diagonals the first in row order is taken, so that the answer is always the same.
    """
    if not mask.any():
        raise ValueError("an empty mask has no axes")
    scale = np.array([spacing_mm[1], spacing_mm[0]])  # (column, row) -> mm
    points = np.unique(corners_xy(mask) * scale, axis=0)
    hull = points[np.sort(ConvexHull(points).vertices)]
    distance = np.linalg.norm(hull[:, None] - hull[None], axis=-1)
    i, j = np.unravel_index(int((distance > distance.max() - 1e-9).argmax()), distance.shape)
    long_mm, start, end = float(distance[i, j]), hull[i], hull[j]
    along = (end - start) / long_mm
    across = np.array([-along[1], along[0]])

    # The caliper's two jaws touch the outermost points; the line is drawn between them, through the middle of the jaws.
    offsets = (hull - start) @ across
    low, high = hull[int(offsets.argmin())], hull[int(offsets.argmax())]
    middle = (((low - start) @ along) + ((high - start) @ along)) / 2
    foot = start + along * middle
    short_mm = float(offsets.max() - offsets.min())
    short = foot + across * offsets.min(), foot + across * offsets.max()

    def pixels(a: np.ndarray, b: np.ndarray) -> tuple[Point, Point]:
        (ax, ay), (bx, by) = a / scale, b / scale
        return (float(ax), float(ay)), (float(bx), float(by))

    return Calipers(long_mm, short_mm, pixels(start, end), pixels(*short))


@dataclass(frozen=True)
class Sizes:
    """What a finding's mask measures, ready for Finding."""

    key_image: int
    long_axis: Axis
    short_axis: Axis
    measurements: tuple[Measurement, ...]
    long_mm: float
    short_mm: float
    mean_mm: float


def measure_nodule(
    mask: np.ndarray,
    offset_zyx: tuple[int, int, int],
    hu: np.ndarray,
    spacing_mm: tuple[float, float, float],
    voxel_mm3: float,
) -> Sizes:
    """Measure a bool mask (d, h, w) that lies at offset_zyx in hu (z, y, x).

    Axes in the slice of largest area, to a tenth of a millimetre; volume by voxel sum, to a whole mm3; mean and
    standard deviation of HU over all voxels of the mask.
    """
    z = int(mask.sum(axis=(1, 2)).argmax())
    key_image = offset_zyx[0] + z
    lines = calipers(mask[z], spacing_mm[1:])
    box = tuple(slice(o, o + n) for o, n in zip(offset_zyx, mask.shape, strict=True))
    values = hu[box][mask].astype(np.float64)
    measurements = (
        Measurement(codes.LONG_AXIS, round(lines.long_mm, 1), codes.MM),
        Measurement(codes.SHORT_AXIS, round(lines.short_mm, 1), codes.MM),
        Measurement(codes.MEAN_DIAMETER, round(lines.mean_mm, 1), codes.MM, codes.MEAN),
        Measurement(codes.VOXEL_VOLUME, float(round(mask.sum() * voxel_mm3)), codes.MM3),
        Measurement(codes.MEAN_HU, round(float(values.mean()), 1), codes.HU),
        Measurement(codes.SD_HU, round(float(values.std()), 1), codes.HU),
    )
    long_axis, short_axis = axes(lines, key_image, offset_zyx[1:])
    return Sizes(key_image, long_axis, short_axis, measurements, lines.long_mm, lines.short_mm, lines.mean_mm)


def measure_lesion(
    mask: np.ndarray, offset_yx: tuple[int, int], image: int, spacing_mm: tuple[float, float] | None
) -> Sizes:
    """Measure a 2-D bool mask (h, w) at offset_yx of one image; without spacing in pixels (say so in words)."""
    lines = calipers(mask, spacing_mm or (1.0, 1.0))
    unit = codes.MM if spacing_mm else codes.PIXELS
    area = mask.sum() * (spacing_mm[0] * spacing_mm[1] if spacing_mm else 1.0)
    measurements = (
        Measurement(codes.LONG_AXIS, round(lines.long_mm, 1), unit),
        Measurement(codes.SHORT_AXIS, round(lines.short_mm, 1), unit),
        Measurement(codes.AREA, round(float(area), 1), codes.MM2 if spacing_mm else codes.PIXELS),
    )
    long_axis, short_axis = axes(lines, image, offset_yx)
    return Sizes(image, long_axis, short_axis, measurements, lines.long_mm, lines.short_mm, lines.mean_mm)


def axes(lines: Calipers, image: int, offset_yx: tuple[int, int]) -> tuple[Axis, Axis]:
    """The caliper lines on the whole image's pixel coordinates."""
    dy, dx = offset_yx

    def moved(ends: tuple[Point, Point]) -> Axis:
        (ax, ay), (bx, by) = ends
        return Axis(image, (ax + dx, ay + dy), (bx + dx, by + dy))

    return moved(lines.long_xy), moved(lines.short_xy)

"""Sizes and attenuation of a mask, the way a radiologist's caliper takes them, in millimetres on an anisotropic grid.

Long axis: the greatest distance between two points of the contour in the axial slice of largest area, what rotating
calipers find (Toussaint 1983). Short axis: the longest line at right angles to it between two points of the contour,
as RECIST 1.1 and Lung-RADS v2022 take it.

The contour lies between pixels: the level 0.5 of the mask blurred by SMOOTHING_PX. docs/results/sizes.md compares it
with others on random ellipses.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from skimage.measure import find_contours, marching_cubes

from dicom_sr import codes
from dicom_sr.findings import Axis, Measurement
from dicom_sr.outline import outline, polygon_area
from models.read import Volume

Point = tuple[float, float]

SMOOTHING_PX = 0.75  # standard deviation; the least bias of 0.5 to 1.4, see above
SHRUNK = 0.75  # of the area: a contour around less has lost a shape that is only a pixel or two wide
SAME_MM = 1e-6  # lengths closer than this are one length


def tenths(mm: float) -> float:
    """To 0.1 mm, halves upwards: 5.95 is 6.0 for every reader."""
    return int(mm * 10 + 0.5 + 1e-9) / 10


@dataclass(frozen=True)
class Calipers:
    """Long and short axis of a 2-D mask; end points in (column, row) pixel coordinates of the mask's own grid."""

    long_mm: float
    short_mm: float
    long_xy: tuple[Point, Point]
    short_xy: tuple[Point, Point]

    @property
    def mean_mm(self) -> float:
        """Mean diameter to 0.1 mm, of the two axes as they are reported (Lung-RADS v2022, notes on size)."""
        return tenths((tenths(self.long_mm) + tenths(self.short_mm)) / 2)


def contour(mask: np.ndarray) -> np.ndarray:
    """bool (rows, columns) -> (n, 2): (column, row) points around the largest 4-connected part, holes filled.

    (0, 0) is the outer corner of the first pixel, PS3.3 C.18.6.1.1. It runs between pixels; a part too thin for that
    is followed along its pixel edges, like the outline that is drawn (dicom_sr.outline). Raises ValueError if empty.
    """
    drawn = outline(mask)
    margin = 4  # beyond it the blur is nothing
    corner = np.floor(drawn.min(axis=0)).astype(int)
    width, height = (np.ceil(drawn.max(axis=0)).astype(int) - corner).tolist()
    parts, _ = ndimage.label(mask[corner[1] : corner[1] + height, corner[0] : corner[0] + width])
    part = ndimage.binary_fill_holes(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()))
    blurred = ndimage.gaussian_filter(np.pad(part.astype(np.float64), margin), SMOOTHING_PX, mode="constant")
    around = max(find_contours(blurred, 0.5), key=polygon_area, default=None)
    if around is None or polygon_area(around) < SHRUNK * part.sum():
        return drawn[:-1]
    return around[:-1, ::-1] - margin + 0.5 + corner  # row, column of pixel centres -> column, row


def calipers(mask: np.ndarray, spacing_mm: tuple[float, float]) -> Calipers:
    """Measure a 2-D bool mask (rows, columns); spacing_mm is (rows, columns). Raises ValueError if empty.

    Of several longest diameters the one with the longest short axis counts, so that turning the image changes nothing.
    """
    scale = np.array([spacing_mm[1], spacing_mm[0]])  # (column, row) -> mm
    points = contour(mask) * scale
    hull = points[np.sort(ConvexHull(points).vertices)]
    distances = pdist(hull)
    pairs = list(combinations(range(len(hull)), 2))
    found = []
    for place in np.flatnonzero(distances > distances.max() - SAME_MM):
        start, end = (hull[i] for i in pairs[place])
        short_mm, ends = longest_across(points, start, end)
        found.append((short_mm, float(distances[place]), (start, end), ends))
    short_mm, long_mm, long, short = max(found, key=lambda one: round(one[0] / SAME_MM))

    def pixels(ends: tuple[np.ndarray, np.ndarray]) -> tuple[Point, Point]:
        (ax, ay), (bx, by) = ends[0] / scale, ends[1] / scale
        return (float(ax), float(ay)), (float(bx), float(by))

    return Calipers(long_mm, short_mm, pixels(long), pixels(short))


def longest_across(
    points: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """Length and ends of the longest line at right angles to start-end between two points of a closed contour (n, 2).

    Between two neighbouring corners the contour is straight, so the longest line goes through a corner.
    """
    along = (end - start) / np.linalg.norm(end - start)
    across = np.array([-along[1], along[0]])
    t, s = points @ along, points @ across
    t_next, s_next = np.roll(t, -1), np.roll(s, -1)
    sloping = t != t_next
    t, s, t_next, s_next = t[sloping], s[sloping], t_next[sloping], s_next[sloping]
    at = t[:, None]  # a line through each corner, and where it meets each side
    meets = (np.minimum(t, t_next) <= at) & (at <= np.maximum(t, t_next))
    crossing = s + (at - t) / (t_next - t) * (s_next - s)
    high = np.where(meets, crossing, -np.inf).max(axis=1)
    low = np.where(meets, crossing, np.inf).min(axis=1)
    best = int((high - low).argmax())
    foot = along * t[best]
    return float(high[best] - low[best]), (foot + across * low[best], foot + across * high[best])


def mesh(mask: np.ndarray, affine: np.ndarray) -> tuple[float, float]:
    """bool (d, h, w) and the affine of its grid -> volume in mm3, largest diameter in mm, of the mask's surface mesh.

    Marching cubes at 0.5 on the mask itself, as IBSI defines RNU0 and L0JK (Zwanenburg 2020, reference manual 3.1).
    """
    corners, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    points = corners.astype(np.float64) @ affine[:3, :3].T
    points -= points.mean(axis=0)
    triangles = points[faces]
    volume = np.einsum("ij,ij->", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])) / 6
    hull = points[ConvexHull(points).vertices]
    return abs(float(volume)), float(pdist(hull).max())


@dataclass(frozen=True)
class Sizes:
    """What a finding's mask measures, ready for Finding."""

    key_image: int
    long_axis: Axis
    short_axis: Axis
    measurements: tuple[Measurement, ...]
    mean_mm: float


def axial(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[int, Calipers]:
    """The slice of largest area of a bool mask (d, h, w), and its axes.

    Of slices of equal area the one with the longest axes counts, so that the way the patient lies changes nothing.
    """
    areas = mask.sum(axis=(1, 2))
    largest = [(int(z), calipers(mask[z], spacing_mm[1:])) for z in np.flatnonzero(areas == areas.max())]
    return max(largest, key=lambda one: (round(one[1].long_mm / SAME_MM), round(one[1].short_mm / SAME_MM)))


def measure_nodule(mask: np.ndarray, offset_zyx: tuple[int, int, int], volume: Volume) -> Sizes:
    """Measure a bool mask (d, h, w) that lies at offset_zyx in volume.

    Lengths to a tenth of a millimetre, volumes to a whole mm3, HU over all voxels of the mask.
    """
    z, lines = axial(mask, volume.spacing_mm)
    box = tuple(slice(o, o + n) for o, n in zip(offset_zyx, mask.shape, strict=True))
    values = volume.hu[box][mask].astype(np.float64)
    mesh_mm3, longest_mm = mesh(mask, volume.affine)
    measurements = (
        Measurement(codes.LONG_AXIS, tenths(lines.long_mm), codes.MM),
        Measurement(codes.SHORT_AXIS, tenths(lines.short_mm), codes.MM),
        Measurement(codes.MEAN_DIAMETER, lines.mean_mm, codes.MM, codes.MEAN),
        Measurement(codes.MAX_3D_DIAMETER, tenths(longest_mm), codes.MM),
        Measurement(codes.VOXEL_VOLUME, float(round(mask.sum() * volume.voxel_mm3)), codes.MM3),
        Measurement(codes.MESH_VOLUME, float(round(mesh_mm3)), codes.MM3),
        Measurement(codes.MEAN_HU, round(float(values.mean()), 1), codes.HU),
        Measurement(codes.SD_HU, round(float(values.std()), 1), codes.HU),
        Measurement(codes.MIN_HU, float(values.min()), codes.HU),
        Measurement(codes.MAX_HU, float(values.max()), codes.HU),
    )
    key_image = offset_zyx[0] + z
    long_axis, short_axis = axes(lines, key_image, offset_zyx[1:])
    return Sizes(key_image, long_axis, short_axis, measurements, lines.mean_mm)


def measure_lesion(
    mask: np.ndarray, offset_yx: tuple[int, int], image: int, spacing_mm: tuple[float, float] | None
) -> Sizes:
    """Measure a 2-D bool mask (h, w) at offset_yx of one image; without spacing in pixels (say so in words)."""
    lines = calipers(mask, spacing_mm or (1.0, 1.0))
    unit = codes.MM if spacing_mm else codes.PIXELS
    area = mask.sum() * (spacing_mm[0] * spacing_mm[1] if spacing_mm else 1.0)
    measurements = (
        Measurement(codes.LONG_AXIS, tenths(lines.long_mm), unit),
        Measurement(codes.SHORT_AXIS, tenths(lines.short_mm), unit),
        Measurement(codes.AREA, round(float(area), 1), codes.MM2 if spacing_mm else codes.PIXELS),
    )
    long_axis, short_axis = axes(lines, image, offset_yx)
    return Sizes(image, long_axis, short_axis, measurements, lines.mean_mm)


def axes(lines: Calipers, image: int, offset_yx: tuple[int, int]) -> tuple[Axis, Axis]:
    """The caliper lines on the whole image's pixel coordinates."""
    dy, dx = offset_yx

    def moved(ends: tuple[Point, Point]) -> Axis:
        (ax, ay), (bx, by) = ends
        return Axis(image, (ax + dx, ay + dy), (bx + dx, by + dy))

    return moved(lines.long_xy), moved(lines.short_xy)

"""Two chest CT of one patient brought together: a rigid transform between the patient positions of two studies.

Both lie in LPS (PS3.3 C.7.6.2.1.1), so feet first or prone changes nothing; the table, the pose and the breath do.
SimpleITK's Euler3D transform with the correlation of HU in and round the lungs: ribs and vessels fix what the smooth
lung surface leaves open, and a scan of one half of the lungs does not slide to the middle of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from models.lung_nodule.lungs import Lungs
from models.pipeline import UnfitInput
from models.pixels import AIR_HU
from models.read import Volume

GRID_MM = 4.0  # registration, and the residual, are worked out on cubes of this size
MARGIN_MM = 12.0  # round the lungs: the ribs are within
SHOWN_HU = (-1000.0, 200.0)  # contrast medium and metal say nothing about the pose
STARTS_MM = (0.0, -70.0, 70.0)  # along the patient, from lung middle on lung middle: scans of one half of the lungs
OVERLAP = 0.3  # at least this share of the lungs must be in both fields of view
CORRELATION = 0.5  # same patient, other breath: 0.57 and above; others: 0.46, 0.49 (docs/results/registration.md)
RESIDUAL_MM = 6.0  # mean distance of the lung surfaces above which positions say too little


@dataclass(frozen=True, eq=False)
class Chest:
    """A CT on cubes of GRID_MM along the patient's axes, round its lungs.

    hu, lungs, seen   (z, y, x): float32; bool; bool, inside the scan
    origin_mm         LPS (x, y, z) of [0, 0, 0]
    """

    hu: np.ndarray
    lungs: np.ndarray
    seen: np.ndarray
    origin_mm: np.ndarray

    def points(self, mask: np.ndarray) -> np.ndarray:
        """bool (z, y, x) -> LPS mm of its voxels, (n, 3)."""
        return np.argwhere(mask)[:, ::-1] * GRID_MM + self.origin_mm

    def at(self, values: np.ndarray, points_mm: np.ndarray, beyond: float) -> np.ndarray:
        """Values (z, y, x) at LPS points (n, 3), linearly; `beyond` outside."""
        index = (points_mm - self.origin_mm)[:, ::-1] / GRID_MM
        return ndimage.map_coordinates(values.astype(np.float32), index.T, order=1, mode="constant", cval=beyond)


@dataclass(frozen=True, eq=False)
class Rigid:
    """From the present study's patient positions to the earlier one's; both in mm, LPS."""

    matrix: np.ndarray  # 4x4
    correlation: float  # of HU in and round the lungs, 1 is equal
    residual_mm: float  # mean distance of the lung surfaces that both scans show

    def to_earlier(self, points_mm: np.ndarray) -> np.ndarray:
        return points_mm @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def to_present(self, points_mm: np.ndarray) -> np.ndarray:
        return (points_mm - self.matrix[:3, 3]) @ self.matrix[:3, :3]


def chest(volume: Volume, lungs: Lungs) -> Chest:
    """Resample a CT for registration. Blocks are averaged first, so that noise does not become structure."""
    step = [max(1, int(GRID_MM / 2 / mm)) for mm in volume.spacing_mm]
    hu, inside = pooled(volume.hu, step), pooled(lungs.mask, step)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [(n - 1) / 2 for n in step]
    affine[:3, :3] *= step

    corners = (affine @ np.stack([*np.nonzero(inside > 0.5), np.ones(int((inside > 0.5).sum()))]))[:3]
    low, high = corners.min(axis=1) - MARGIN_MM, corners.max(axis=1) + MARGIN_MM
    lines = [np.arange(a, b + GRID_MM, GRID_MM) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*lines[::-1], indexing="ij"), -1)[..., ::-1]  # (z, y, x, LPS)
    back = np.linalg.inv(affine)
    index = np.moveaxis(points @ back[:3, :3].T + back[:3, 3], -1, 0)
    seen = np.all([(i > -0.5) & (i < n - 0.5) for i, n in zip(index, hu.shape, strict=True)], axis=0)
    return Chest(
        hu=ndimage.map_coordinates(np.clip(hu, *SHOWN_HU), index, order=1, cval=AIR_HU),
        lungs=ndimage.map_coordinates(inside, index, order=1) > 0.5,
        seen=seen,
        origin_mm=low,
    )


def pooled(values: np.ndarray, step: list[int]) -> np.ndarray:
    """(z, y, x) -> float32, the mean of blocks of `step`; what does not fill a block at the end is left out."""
    d, h, w = (n // s for n, s in zip(values.shape, step, strict=True))
    out = np.empty((d, h, w), np.float32)
    for z in range(d):  # slice by slice: a float copy of the whole volume would take four times its memory
        part = values[z * step[0] : (z + 1) * step[0], : h * step[1], : w * step[2]]
        out[z] = part.reshape(step[0], h, step[1], w, step[2]).mean(axis=(0, 2, 4), dtype=np.float32)
    return out


def register(present: Chest, earlier: Chest) -> Rigid:
    """The rigid transform from the present to the earlier study. Raises UnfitInput in words when they do not fit."""
    begun = [_optimised(present, earlier, _start(present, earlier, along), coarse=True) for along in STARTS_MM]
    transform, correlation = _optimised(present, earlier, max(begun, key=lambda each: each[1])[0], coarse=False)
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre + np.array(transform.GetTranslation()) - rotation @ centre
    found = Rigid(matrix, correlation, _residual_mm(present, earlier, matrix))
    shared = earlier.at(earlier.seen, found.to_earlier(present.points(present.lungs)), beyond=0.0).mean()
    if shared < OVERLAP:
        raise UnfitInput(f"only {100 * shared:.0f} % of the lungs are in the field of view of both studies")
    if found.correlation < CORRELATION or found.residual_mm > RESIDUAL_MM:
        raise UnfitInput(
            f"the lungs of the two studies do not fit together: {found.residual_mm:.1f} mm apart on average,"
            f" correlation {found.correlation:.2f}; at most {RESIDUAL_MM:g} mm and at least {CORRELATION:g} are needed"
        )
    return found


def _start(present: Chest, earlier: Chest, along_mm: float) -> sitk.Euler3DTransform:
    """Lung middle on lung middle, then moved along the patient."""
    here, there = present.points(present.lungs).mean(axis=0), earlier.points(earlier.lungs).mean(axis=0)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(here.tolist())
    transform.SetTranslation((there - here + [0.0, 0.0, along_mm]).tolist())
    return transform


def _optimised(
    present: Chest, earlier: Chest, start: sitk.Euler3DTransform, *, coarse: bool
) -> tuple[sitk.Euler3DTransform, float]:
    """The best transform near `start` and its correlation. Deterministic: every voxel, one thread."""
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # sums of several threads differ in their last digits
    method.SetMetricAsCorrelation()
    near = ndimage.binary_dilation(present.lungs, iterations=round(MARGIN_MM / 2 / GRID_MM))
    method.SetMetricFixedMask(_image(present, (near & present.seen).astype(np.uint8)))
    method.SetMetricMovingMask(_image(earlier, earlier.seen.astype(np.uint8)))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=8.0 if coarse else 2.0,
        minStep=0.5 if coarse else 0.01,
        numberOfIterations=60 if coarse else 200,
        relaxationFactor=0.5,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2 if coarse else 1])
    method.SetSmoothingSigmasPerLevel([2 * GRID_MM if coarse else 1.0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    transform = sitk.Euler3DTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(_image(present, present.hu), _image(earlier, earlier.hu))
    except RuntimeError:  # ITK's word for images that no longer overlap
        return sitk.Euler3DTransform(start), -1.0
    return transform, -float(method.GetMetricValue())


def _image(where: Chest, values: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    image.SetOrigin(where.origin_mm.tolist())
    image.SetSpacing([GRID_MM] * 3)
    return image


def _residual_mm(present: Chest, earlier: Chest, matrix: np.ndarray) -> float:
    """Mean distance from the present lung surface to the earlier one, where both scans look; infinite if nowhere."""
    whole = ndimage.binary_erosion(present.seen, iterations=2)  # a cut through the lung is no surface
    surface = present.lungs & ~ndimage.binary_erosion(present.lungs) & whole
    there = present.points(surface) @ matrix[:3, :3].T + matrix[:3, 3]
    looked = earlier.at(ndimage.binary_erosion(earlier.seen, iterations=2), there, beyond=0.0) > 0.5
    if not looked.any() or not earlier.lungs.any():
        return float("inf")
    outside_mm = _outside_mm(earlier.lungs)
    off = (
        earlier.at(outside_mm, there[looked], beyond=float(outside_mm.max()))
        - _outside_mm(present.lungs)[surface][looked]
    )
    return float(np.abs(off).mean())


def _outside_mm(lungs: np.ndarray) -> np.ndarray:
    """How far outside the lungs, negative inside; the border runs half-way between two voxels."""
    beyond, within = ndimage.distance_transform_edt(~lungs), ndimage.distance_transform_edt(lungs)
    return GRID_MM * np.where(lungs, 0.5 - within, beyond - 0.5)

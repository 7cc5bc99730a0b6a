"""A chest CT with nodules, as DICOM files: in any position of the patient, of any kernel, with what it truly holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
)
from scipy import ndimage

from models.phantoms.chest_anatomy import (
    BLOOD_HU,
    BODY,
    BONE_HU,
    EDGE_MM,
    LUNG_HU,
    Ball,
    Detail,
    Grid,
    Tube,
    ball_lesion,
    paint_tubes,
    place_nodules,
    unit,
    vessel_tree,
)
from models.phantoms.chest_disease import SOLID_ABOVE_HU, Disease, paint_disease
from models.phantoms.truth import Truth, phantom_uid

ORIENTATIONS: dict[str, tuple[float, ...]] = {  # ImageOrientationPatient: direction of a row, then of a column, in LPS
    "HFS": (1, 0, 0, 0, 1, 0),
    "FFS": (-1, 0, 0, 0, 1, 0),
    "HFP": (-1, 0, 0, 0, -1, 0),
    "FFP": (1, 0, 0, 0, -1, 0),
    "HFDR": (0, 1, 0, -1, 0, 0),
    "HFDL": (0, -1, 0, 1, 0, 0),
    "FFDR": (0, -1, 0, -1, 0, 0),
    "FFDL": (0, 1, 0, 1, 0, 0),
    "oblique": (1, 0, 0, 0, 0.984807753, 0.173648178),  # axial, tipped by 10 degrees
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
}
PATIENT_POSITIONS = ("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")  # PS3.3 C.7.3.1.1.2
NOISE_HU = 22.0


@dataclass(frozen=True)
class Kernel:
    """How the scanner reconstructs: blur of the picture, and strength and grain of its noise, in pixels and HU.

    sharpen   share of the noise's low frequencies that the kernel takes out again, as edge-enhancing ones do
    """

    blur_px: float
    noise_hu: float
    grain_px: float
    sharpen: float = 0.0


KERNELS = {
    "standard": Kernel(0.55, NOISE_HU, 0.7),
    "soft": Kernel(0.9, 14.0, 1.1),
    "sharp": Kernel(0.35, 48.0, 0.45, sharpen=0.7),
}

THICKER_MM = 10.0  # wall of the detailed chest: that of BODY is a few mm at the back, as in a very thin patient
TABLE_MM = (128.0, 134.0)  # y of its top and bottom


def chest_ct(
    folder: Path,
    *,
    seed: int = 1,
    slices: int = 100,
    size: int = 512,
    spacing_mm: tuple[float, float, float] = (2.5, 0.7, 0.7),
    orientation: str = "HFS",
    order: str = "ascending",
    nodules: int = 6,
    patient_id: str = "PHANTOM-CT-1",
    balls: Sequence[Ball] | None = None,
    pose: np.ndarray | None = None,
    study_date: str = "20260101",
    kernel: str = "standard",
    detail: bool = False,
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    gantry_deg: float = 0.0,
    disease: Disease | None = None,
) -> Truth:
    """One CT series of a chest with lungs, heart, bones, branching vessels and `nodules` nodules of 6 to 20 mm.

    spacing_mm   between slices, rows, columns
    orientation  a name of ORIENTATIONS
    order        of InstanceNumber along the normal: "ascending", "descending" or "shuffled"; file names are shuffled
    balls        the nodules themselves (of `chest_balls`), for two studies of one patient: same seed, same vessels
    pose         4x4 rigid, body to LPS: how the patient lies on the table; as drawn when not given
    kernel       a name of KERNELS
    detail       airways, small vessels, fissures and uneven lungs too
    origin_mm    where the middle of the chest lies in LPS; scanners put the origin anywhere
    gantry_deg   by so much the slices are tipped while the table still moves along the patient
    disease      of the whole lung; a nodule within what is airless cannot be seen, but it is in the Truth

    The same arguments make the same files. `Truth.files` ascend along the normal, as models.read.read_ct orders them.
    """
    rng = np.random.default_rng((seed, 77))
    grid = chest_grid(slices, size, spacing_mm, orientation, gantry_deg)
    vessels = [tube for side in (-1, 1) for tube in vessel_tree(rng, side)]
    series = f"{seed} {slices} {size} {spacing_mm} {orientation} {order} {nodules}"
    if balls is None:
        balls = place_nodules(rng, grid, vessels, nodules)
    else:
        series += f" {study_date} {[ball.half_axes_mm.tolist() for ball in balls]}"
    body = grid if pose is None else Grid(grid.shape, np.linalg.inv(pose) @ grid.affine)  # the grid as the body sees it
    hu = chest_hu(rng, body, vessels, balls, KERNELS[kernel], Detail.of(seed) if detail else None, disease)
    if (kernel, detail, any(origin_mm)) != ("standard", False, False):
        series += f" {kernel} {detail} {origin_mm}"
    if gantry_deg:
        series += f" {gantry_deg}"
    if disease is not None:
        series += f" {disease}"
    moved = np.eye(4)
    moved[:3, 3] = origin_mm
    affine = moved @ grid.affine

    numbers = {
        "ascending": np.arange(slices),
        "descending": np.arange(slices)[::-1],
        "shuffled": rng.permutation(slices),
    }[order]
    images = [ct_dicom(hu[z], affine, z, orientation, patient_id=patient_id, series=series) for z in range(slices)]
    files = written(folder, images, numbers, rng.permutation(slices), study_date)
    placed = moved if pose is None else moved @ pose
    return Truth(files, tuple(ball_lesion(ball, body, placed) for ball in balls))


def written(
    folder: Path, images: Sequence[Dataset], numbers: np.ndarray, names: np.ndarray, study_date: str
) -> tuple[Path, ...]:
    """Save images with these instance numbers and numbers in their names, from 0; the files in the images' order."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for image, number, name in zip(images, numbers.tolist(), names.tolist(), strict=True):
        image.InstanceNumber = number + 1
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = study_date
        files.append(folder / f"ct_{name + 1:04d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return tuple(files)


def chest_volume(
    seed: int,
    *,
    shape: tuple[int, int, int] = (300, 320, 320),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    kernel: str = "standard",
    disease: Disease | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A chest without nodules, with all the detail: int16 HU (z, y, x), and its affine to LPS mm; no files.

    Size, proportions and pose of the body vary with the seed, too.
    """
    rng = np.random.default_rng((seed, 78))
    tilt, turn = np.deg2rad(rng.uniform(-4, 4, 2))
    pose = np.eye(4)
    pose[:3, :3] = (
        np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        @ np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
        @ np.diag(rng.uniform((0.85, 0.85, 0.8), (1.02, 1.05, 1.05)))
    )
    grid = chest_grid(shape[0], shape[1:], spacing_mm, "HFS")
    body = Grid(grid.shape, np.linalg.inv(pose) @ grid.affine)
    vessels = [tube for side in (-1, 1) for tube in vessel_tree(rng, side, thinnest_mm=1.1)]
    return chest_hu(rng, body, vessels, (), KERNELS[kernel], Detail.of(seed), disease), grid.affine


def chest_balls(seed: int, nodules: int) -> list[Ball]:
    """The nodules of `chest_ct(folder, seed=seed, nodules=nodules)`, to be changed for a second study."""
    rng = np.random.default_rng((seed, 77))
    vessels = [tube for side in (-1, 1) for tube in vessel_tree(rng, side)]
    return place_nodules(rng, chest_grid(100, 512, (2.5, 0.7, 0.7), "HFS"), vessels, nodules)


def chest_grid(
    slices: int,
    size: int | tuple[int, int],
    spacing_mm: tuple[float, float, float],
    orientation: str,
    gantry_deg: float = 0.0,
) -> Grid:
    """A grid round the middle of the chest. size: rows and columns, or one number for both; gantry_deg: of chest_ct."""
    rows, columns = (size, size) if isinstance(size, int) else size
    cosines = np.array(ORIENTATIONS[orientation])
    row, column = cosines[:3], cosines[3:]
    table = np.cross(row, column)
    tip = np.deg2rad(gantry_deg)
    column = np.cos(tip) * column + np.sin(tip) * table
    affine = np.eye(4)
    affine[:3, :3] = np.stack([table / np.cos(tip), column, row], axis=1) * spacing_mm
    middle = np.array([slices - 1, rows - 1, columns - 1]) / 2
    affine[:3, 3] = np.array([0.0, 12.0, 0.0]) - affine[:3, :3] @ middle
    return Grid((slices, rows, columns), affine)


def chest_hu(
    rng: np.random.Generator,
    grid: Grid,
    vessels: list[Tube],
    balls: Sequence[Ball],
    kernel: Kernel = KERNELS["standard"],
    detail: Detail | None = None,
    disease: Disease | None = None,
) -> np.ndarray:
    """int16 (z, y, x) in HU, with a scanner's blur and noise."""
    hu = np.empty(grid.shape, np.float32)
    step, down, across = (grid.affine[:3, axis] for axis in range(3))
    rows, columns = np.arange(grid.shape[1])[:, None], np.arange(grid.shape[2])[None, :]
    for z in range(grid.shape[0]):
        x, y, height = (  # (h, 1), (1, w) or (h, w): whatever the orientation needs
            (grid.affine[axis, 3] + z * step[axis] + outer(rows, down[axis], columns, across[axis])).astype(np.float32)
            for axis in range(3)
        )
        paint_body(hu[z], x, y, height, 0.0 if detail is None else THICKER_MM)
        if detail is not None:
            paint_lungs(hu[z], x, y, height, detail)
    if disease is not None:
        paint_disease(hu, grid, disease)
        airless = hu > SOLID_ABOVE_HU
        before = hu[airless]
    if detail is not None:
        paint_tubes(hu, grid, detail.airways, 0.0, LUNG_HU + 60)  # walls, in lung only: not through the heart
        paint_tubes(hu, grid, [Tube(t.start_mm, t.end_mm, 0.72 * t.radius_mm) for t in detail.airways], -1000.0, 0.0)
        paint_tubes(hu, grid, detail.vessels, BLOOD_HU, LUNG_HU + 250)
    for tube in vessels:
        paint(hu, grid, tube, BLOOD_HU)
    if disease is not None:
        hu[airless] = before  # which hides its vessels, or holds none
    for ball in balls:
        paint(hu, grid, ball, ball.hu)
    return scanned(rng, hu, kernel)


def scanned(rng: np.random.Generator, hu: np.ndarray, kernel: Kernel) -> np.ndarray:
    """float (z, y, x) -> int16 in HU, as a scanner with this kernel shows it: blur in the plane, and noise."""
    out = np.empty(hu.shape, np.int16)
    for z in range(hu.shape[0]):
        noise = rng.standard_normal(hu.shape[1:], np.float32)
        noise = ndimage.gaussian_filter(noise, kernel.grain_px)  # correlated, as after a reconstruction kernel
        if kernel.sharpen:
            noise -= np.float32(kernel.sharpen) * ndimage.gaussian_filter(noise, 3 * kernel.grain_px)
        image = ndimage.gaussian_filter(hu[z], kernel.blur_px) + noise * np.float32(kernel.noise_hu / noise.std())
        out[z] = np.clip(np.rint(image), -1024, 3071)
    return out


def paint_lungs(image: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, detail: Detail) -> None:
    """Fissures, and what makes a lung uneven: denser at the back, where the patient lies, and patches; one slice."""
    inside = image == np.float32(LUNG_HU)
    if not inside.any():
        return
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(inside))
    inside = inside[box]
    x, y, z = (np.broadcast_to(one, image.shape)[box] for one in (x, y, z))
    place = [(one + half) * (7 / (2 * half)) for one, half in ((z, 140.0), (y, 112.0), (x, 165.0))]
    added = ndimage.map_coordinates(detail.unevenness.astype(np.float32), place, order=1, mode="nearest")
    added += 0.35 * (y - 4)
    for side, height, slope_x, slope_y, wave, length, phase in detail.fissures:
        surface = height + slope_x * x + slope_y * (y - 4) + wave * np.sin(x * (2 * np.pi / length) + phase)
        away = (z - surface) / np.float32(np.hypot(1, np.hypot(slope_x, slope_y)))
        added += np.where(x * side > 0, 160 * np.exp(-((away / 0.7) ** 2)), 0)
    image[box][inside] += added[inside]


def outer(rows: np.ndarray, down: float, columns: np.ndarray, across: float) -> np.ndarray:
    """rows·down + columns·across, kept as a line where one of them does not matter: ten times less work."""
    if down == 0:
        return columns * across
    return rows * down if across == 0 else rows * down + columns * across


def paint_body(image: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, thicker_mm: float = 0.0) -> None:
    """Everything large, into one slice; x, y, z in LPS mm. thicker_mm: of the chest wall than BODY has it."""
    image[...] = -1000.0
    image[np.broadcast_to((y > TABLE_MM[0]) & (y < TABLE_MM[1]) & (np.abs(x) < 210), image.shape)] = -200.0
    for (cx, cy, cz), (rx, ry, rz), value in BODY:
        if rx > 100:  # skin and wall
            rx, ry = rx + thicker_mm, ry + thicker_mm
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1
        np.copyto(image, np.float32(value), where=inside)
    # ribs: hoops in the chest wall, falling towards the front
    wall = (x / (144 + thicker_mm)) ** 2 + ((y - 2) / (97 + thicker_mm)) ** 2
    hoop = np.abs((z - 0.35 * y) % 26 - 13) < 4.5
    rib = (wall < 1) & (wall > 0.93) & hoop
    image[rib] = BONE_HU


def paint(hu: np.ndarray, grid: Grid, thing: Ball | Tube, value: float) -> None:
    """A small object with a soft edge, averaged over the thickness of the slice."""
    if isinstance(thing, Ball):
        middle, reach = thing.centre_mm, 1.8 * float(thing.half_axes_mm.max()) + 3
    else:
        middle = (thing.start_mm + thing.end_mm) / 2
        reach = float(np.linalg.norm(thing.end_mm - middle)) + thing.radius_mm + 1.5
    box = grid.box(middle, reach)
    if any(s.stop <= s.start for s in box):
        return
    share = np.mean(
        [1 / (1 + np.exp(-thing.depth_mm(grid.points(box, shift)) / EDGE_MM)) for shift in (-1 / 3, 0, 1 / 3)], axis=0
    )
    hu[box] = np.maximum(hu[box], hu[box] + (value - hu[box]) * share)


def ct_dicom(hu: np.ndarray, affine: np.ndarray, z: int, orientation: str, *, patient_id: str, series: str) -> Dataset:
    """int16 HU (rows, columns) of slice z -> a CT Image Storage object (PS3.3 A.3), ready to save."""
    step, down, across = (affine[:3, axis] for axis in range(3))
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = phantom_uid(patient_id, series, str(z))
    image.StudyInstanceUID = phantom_uid(patient_id, series, "study")
    image.SeriesInstanceUID = phantom_uid(patient_id, series, "series")
    image.FrameOfReferenceUID = phantom_uid(patient_id, series, "frame of reference")
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20260101"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "120000"
    image.AccessionNumber = ""
    image.StudyID = "1"
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = 1, z + 1, 1
    image.Modality = "CT"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.Manufacturer, image.ManufacturerModelName = "Synthetic", "phantom"
    image.DeviceSerialNumber = image.SoftwareVersions = "1"
    image.InstitutionName = image.ReferringPhysicianName = ""
    image.StudyDescription, image.SeriesDescription = "CT chest", "Chest"
    image.PatientName, image.PatientID = "Phantom^Chest", patient_id
    image.PatientBirthDate, image.PatientSex = "", "O"
    image.PatientPosition = orientation if orientation in PATIENT_POSITIONS else "HFS"
    image.BodyPartExamined = "CHEST"
    image.PositionReferenceIndicator = ""
    image.KVP = 120
    image.ConvolutionKernel = "PHANTOM"
    image.SliceThickness = round(float(abs(step @ np.cross(unit(across), unit(down)))), 6)
    image.PixelSpacing = [round(float(np.linalg.norm(down)), 6), round(float(np.linalg.norm(across)), 6)]
    image.ImageOrientationPatient = [round(float(v), 9) + 0.0 for v in (*unit(across), *unit(down))]
    image.ImagePositionPatient = [round(float(v), 6) for v in affine[:3, 3] + z * step]

    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = hu.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "HU"
    image.WindowCenter, image.WindowWidth = -600, 1500
    image.PixelData = np.ascontiguousarray(hu, dtype="<i2").tobytes()
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image

"""Synthetic images with known truth: what the demo sends and what the tests hold the checkpoints to.

A phantom shows that the way from pixels to millimetres is right and that the checkpoint still works. It says nothing
about patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from scipy import ndimage


@dataclass(frozen=True, eq=False)
class Lesion:
    """One thing to be found. Same grid and same order of axes as dicom_sr.findings.Finding."""

    mask: np.ndarray  # bool (d, h, w), the smallest box that holds the lesion
    offset_zyx: tuple[int, int, int]  # z counts Truth.files; of a cine, its frames
    long_axis_mm: float
    short_axis_mm: float
    centre_lps_mm: tuple[float, float, float] | None = None  # where there is a patient coordinate system (CT)
    hu: float | None = None  # CT


@dataclass(frozen=True)
class Truth:
    """The files of one series, in order, and what is in them."""

    files: tuple[Path, ...]
    lesions: tuple[Lesion, ...]


# ------------------------------------------------------------------------------------------------ breast ultrasound

BREAST_LAYERS: tuple[tuple[str, float, float, float], ...] = (
    # tissue, depth of its upper border in mm, mean echo level in dB below white, how streaky in dB
    ("skin", 0.0, -13.0, 1.0),
    ("subcutaneous fat", 2.0, -27.0, 2.5),
    ("fibroglandular tissue", 9.0, -17.0, 4.0),
    ("retromammary fat", 26.0, -28.0, 3.0),
    ("pectoral muscle", 30.0, -25.0, 5.0),
    ("chest wall", 38.0, -38.0, 3.0),
)
DYNAMIC_RANGE_DB = 54.0  # from black to white
LOOKS = 3  # directions the beam looks from
LESION_DB = -43.0
REMAINING_ATTENUATION_DB_PER_MM = 0.15  # what time-gain compensation leaves


@dataclass(frozen=True)
class Ellipse:
    """Centre and half axes in mm from the upper left corner of the picture; `tilt` is the first axis' slope."""

    x_mm: float
    y_mm: float
    half_axes_mm: tuple[float, float]
    tilt_deg: float

    def radius(self, x_mm: np.ndarray, y_mm: np.ndarray) -> np.ndarray:
        """1 on the border, less inside."""
        cos, sin = np.cos(np.deg2rad(self.tilt_deg)), np.sin(np.deg2rad(self.tilt_deg))
        dx, dy = x_mm - self.x_mm, y_mm - self.y_mm
        return np.hypot((dx * cos + dy * sin) / self.half_axes_mm[0], (dy * cos - dx * sin) / self.half_axes_mm[1])


def breast_picture(
    rng: np.random.Generator,
    shape: tuple[int, int],
    spacing_mm: tuple[float, float],
    lesion: Ellipse | None,
    behind_db: float,
) -> np.ndarray:
    """One B-mode picture, (rows, columns) uint8; spacing_mm is between rows, between columns.

    The log-compressed envelope of complex noise, correlated by a point spread that is wider across than along the beam:
    fully developed speckle, Rayleigh-distributed (Wagner et al., IEEE Trans. Sonics Ultrason. 30:156, 1983).
    behind_db: how much brighter (enhancement) or darker (shadow) the tissue below the lesion is.
    """
    down_mm, across_mm = spacing_mm
    y, x = np.indices(shape) + 0.5
    y, x = y * down_mm, x * across_mm  # depth and place of every pixel's centre
    level_db = np.zeros(shape)
    for _, depth, echo_db, streaks_db in BREAST_LAYERS:
        border = depth + _waves(rng, x[0], 0.02 * depth + 0.1)
        fade = 1 / (1 + np.exp((border - y) / 0.12))
        level_db += (echo_db + streaks_db * _streaks(rng, shape, spacing_mm) - level_db) * (fade if depth else 1)
        if depth:  # a fascia between two tissues
            level_db += 8 * np.exp(-(((y - border) / 0.2) ** 2))
    level_db -= REMAINING_ATTENUATION_DB_PER_MM * np.clip(y - 12, 0, None)

    if lesion is not None:
        radius = lesion.radius(x, y)
        sideways = np.clip(np.abs(x - lesion.x_mm) / max(lesion.half_axes_mm), 0, 2)
        below = 1 / (1 + np.exp(-(y - lesion.y_mm) / 0.5))
        level_db += (
            behind_db * below * np.exp(-((sideways / 0.75) ** 4)) * np.exp(-np.clip(y - lesion.y_mm, 0, None) / 25)
        )
        inside = 1 / (1 + np.exp((radius - 1) * min(lesion.half_axes_mm) / 0.12))
        level_db += (LESION_DB + 1.5 * _streaks(rng, shape, spacing_mm) - level_db) * inside
        level_db += 5 * np.exp(-(((radius - 1.04) * min(lesion.half_axes_mm) / 0.25) ** 2)) * (behind_db > 0)  # capsule

    spread = (0.10 / down_mm, 0.22 / across_mm)  # the pulse along, the beam across
    quadratures = ndimage.gaussian_filter(rng.normal(size=(LOOKS, 2, *shape)), (0, 0, *spread))
    envelope = np.hypot(quadratures[:, 0], quadratures[:, 1]).mean(axis=0)  # spatial compounding
    envelope_db = 20 * np.log10(envelope / envelope.mean() + 1e-3)
    picture = 255 * (1 + (level_db + envelope_db) / DYNAMIC_RANGE_DB)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _waves(rng: np.random.Generator, x_mm: np.ndarray, height_mm: float) -> np.ndarray:
    """A gentle border along x."""
    return height_mm * sum(
        np.sin(2 * np.pi * x_mm / length + rng.uniform(0, 2 * np.pi)) / order
        for order, length in enumerate(rng.uniform((25, 10, 5), (60, 20, 9)), start=1)
    )


def _streaks(rng: np.random.Generator, shape: tuple[int, int], spacing_mm: tuple[float, float]) -> np.ndarray:
    """Tissue texture, longer across than deep: mean 0, deviation 1."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), (0.35 / spacing_mm[0], 2.2 / spacing_mm[1]))
    return field / field.std()


def breast_ultrasound(
    folder: Path,
    *,
    seed: int = 1,
    images: int = 1,
    lesions: bool = True,
    shape: tuple[int, int] = (470, 560),
    spacing_mm: float = 0.085,
    laterality: str | None = "L",
    patient_id: str = "PHANTOM-US-1",
) -> Truth:
    """One series of single breast images, a lesion in each (or in none). The same arguments make the same files."""
    files, found = [], []
    for z in range(images):
        rng = np.random.default_rng((seed, z))
        half_width = rng.uniform(4.0, 8.0)
        lesion = Ellipse(
            x_mm=shape[1] * spacing_mm * rng.uniform(0.3, 0.7),
            y_mm=rng.uniform(13.0, 20.0),
            half_axes_mm=(half_width, half_width * rng.uniform(0.55, 0.8)),
            tilt_deg=rng.uniform(-20.0, 20.0),
        )
        behind_db = rng.choice([6.0, -8.0])  # enhancement or shadow
        pixels = breast_picture(rng, shape, (spacing_mm, spacing_mm), lesion if lesions else None, behind_db)
        image = ultrasound_dicom(
            pixels,
            spacing_mm=(spacing_mm, spacing_mm),
            patient_id=patient_id,
            laterality=laterality,
            series=f"phantom {seed}",
            number=z + 1,
        )
        files.append(folder / f"us_{z + 1:04d}.dcm")
        folder.mkdir(parents=True, exist_ok=True)
        image.save_as(files[-1], enforce_file_format=True)
        if lesions:
            found.append(_as_lesion(lesion, shape, spacing_mm, z))
    return Truth(tuple(files), tuple(found))


def _as_lesion(ellipse: Ellipse, shape: tuple[int, int], spacing_mm: float, z: int) -> Lesion:
    mask = _inside(ellipse, shape, (spacing_mm, spacing_mm))
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return Lesion(
        mask=mask[box][None],
        offset_zyx=(z, box[0].start, box[1].start),
        long_axis_mm=2 * max(ellipse.half_axes_mm),
        short_axis_mm=2 * min(ellipse.half_axes_mm),
    )


@dataclass(frozen=True)
class Sweep:
    """A lesion while the probe passes over it: it comes, drifts, is largest half way, and is gone.

    first, last   frames it shows on, from 0
    ellipse       where and how large it is half way
    drift_mm      how far it moves to the right from the first to the last frame
    """

    first: int
    last: int
    ellipse: Ellipse
    drift_mm: float

    def at(self, frame: int) -> Ellipse | None:
        if not self.first <= frame <= self.last:
            return None
        along = (frame - self.first + 0.5) / (self.last - self.first + 1) * 2 - 1  # -1..1, through an ellipsoid
        long_mm, short_mm = (axis * np.sqrt(1 - 0.7 * along**2) for axis in self.ellipse.half_axes_mm)
        x_mm = self.ellipse.x_mm + along * self.drift_mm / 2
        return Ellipse(x_mm, self.ellipse.y_mm, (long_mm, short_mm), self.ellipse.tilt_deg)


def breast_cine(
    folder: Path,
    *,
    seed: int = 1,
    frames: int = 12,
    spacings_mm: tuple[tuple[float, float], ...] = ((0.13, 0.13),),
    sweeps: tuple[Sweep | None, ...] | None = None,
    shape: tuple[int, int] = (300, 360),
    colour: bool = False,
    patient_id: str = "PHANTOM-US-CINE",
) -> Truth:
    """One cine: a lesion moves, grows and vanishes in each picture on the screen. Same arguments, same file.

    spacings_mm   (between rows, between columns) of each picture; two stand side by side, each a region of its own
    sweeps        the lesion of each picture, or None for none; made up from the seed when not given
    shape         of each picture; its pixels are drawn at the given spacing, so a wider one shows more tissue
    colour        RGB instead of MONOCHROME2
    """
    rng = np.random.default_rng((seed, len(spacings_mm)))
    if sweeps is None:
        sweeps = tuple(_sweep(rng, shape, spacing_mm, frames) for spacing_mm in spacings_mm)
    gap = 12  # columns between two pictures
    screen = np.zeros((frames, shape[0], len(spacings_mm) * (shape[1] + gap) - gap), np.uint8)
    regions, found = [], []
    for place, (spacing_mm, sweep) in enumerate(zip(spacings_mm, sweeps, strict=True)):
        left = place * (shape[1] + gap)
        regions.append(_region(shape, spacing_mm, corner=(left, 0)))
        masks = np.zeros((frames, *shape), bool)
        for frame in range(frames):
            ellipse = sweep.at(frame) if sweep else None
            tissue = np.random.default_rng((seed, place))  # the same tissue on every frame
            screen[frame, :, left : left + shape[1]] = breast_picture(tissue, shape, spacing_mm, ellipse, 6.0)
            if ellipse is not None:
                masks[frame] = _inside(ellipse, shape, spacing_mm)
        if sweep is not None:
            (box,) = ndimage.find_objects(masks.astype(np.uint8))
            largest = sweep.at(int(masks.sum(axis=(1, 2)).argmax()))
            assert largest is not None
            found.append(
                Lesion(
                    mask=masks[box],
                    offset_zyx=(box[0].start, box[1].start, box[2].start + left),
                    long_axis_mm=2 * max(largest.half_axes_mm),
                    short_axis_mm=2 * min(largest.half_axes_mm),
                )
            )
    cine = ultrasound_dicom(screen[0], spacing_mm=None, patient_id=patient_id, laterality="L", series=f"cine {seed}")
    cine.SOPClassUID = UltrasoundMultiFrameImageStorage
    cine.NumberOfFrames, cine.FrameTime, cine.FrameIncrementPointer = frames, "50", 0x00181063  # Frame Time, in ms
    cine.SequenceOfUltrasoundRegions = regions
    pixels = np.repeat(screen[..., None], 3, axis=-1) if colour else screen
    if colour:
        cine.SamplesPerPixel, cine.PhotometricInterpretation, cine.PlanarConfiguration = 3, "RGB", 0
        cine.UltrasoundColorDataPresent = 0
    data = pixels.tobytes()
    cine.PixelData = data + b"\0" * (len(data) % 2)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cine.dcm"
    cine.save_as(path, enforce_file_format=True)
    return Truth((path,), tuple(found))


def _sweep(rng: np.random.Generator, shape: tuple[int, int], spacing_mm: tuple[float, float], frames: int) -> Sweep:
    half_width = rng.uniform(5.0, 7.0)
    wide_mm = shape[1] * spacing_mm[1]
    ellipse = Ellipse(
        wide_mm * rng.uniform(0.42, 0.58), rng.uniform(14, 18), (half_width, half_width * 0.7), rng.uniform(-15, 15)
    )
    return Sweep(frames // 5, frames - 1 - frames // 6, ellipse, drift_mm=rng.uniform(5.0, 8.0))


def _inside(ellipse: Ellipse, shape: tuple[int, int], spacing_mm: tuple[float, float]) -> np.ndarray:
    y, x = np.indices(shape) + 0.5
    return ellipse.radius(x * spacing_mm[1], y * spacing_mm[0]) <= 1


def ultrasound_dicom(
    pixels: np.ndarray,
    *,
    spacing_mm: tuple[float, float] | None,
    patient_id: str,
    patient_name: str = "Phantom^Breast",
    laterality: str | None = None,
    series: str = "1",
    number: int = 1,
) -> Dataset:
    """(rows, columns) uint8 -> a US Image Storage object (PS3.3 A.6), ready to save.

    spacing_mm: between rows and between columns, written as an ultrasound region; None leaves it uncalibrated
    laterality: "L" or "R"; empty in the file when it is not known
    series: any text; images of one patient with the same text are one series, told apart by `number`
    UIDs derive from patient, series and number, so the same call makes the same object.
    """
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = UltrasoundImageStorage
    image.SOPInstanceUID = _uid(patient_id, series, str(number))
    image.StudyInstanceUID = _uid(patient_id)
    image.SeriesInstanceUID = _uid(patient_id, series)
    image.StudyDate = image.SeriesDate = image.ContentDate = "20260101"
    image.StudyTime = image.SeriesTime = image.ContentTime = "120000"
    image.AccessionNumber = ""
    image.StudyID = "1"
    image.SeriesNumber, image.InstanceNumber = 1, number
    image.Modality = "US"
    image.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0001"]  # 0001: 2D imaging, PS3.3 C.8.5.6.1.1
    image.Manufacturer, image.ManufacturerModelName = "Synthetic", "phantom"
    image.DeviceSerialNumber = image.SoftwareVersions = "1"
    image.InstitutionName = ""
    image.ReferringPhysicianName = ""
    image.StudyDescription, image.SeriesDescription = "US breast", "Breast"
    image.PatientName, image.PatientID = patient_name, patient_id
    image.PatientBirthDate, image.PatientSex = "", "F"
    image.BodyPartExamined = "BREAST"
    image.PatientOrientation = ["", ""]
    image.BurnedInAnnotation = "NO"
    image.LossyImageCompression = "00"
    image.Laterality = laterality or ""  # type 2C: empty says that the side is not known
    if spacing_mm is not None:
        image.SequenceOfUltrasoundRegions = [_region(pixels.shape, spacing_mm)]

    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    data = np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()
    image.PixelData = data + b"\0" * (len(data) % 2)
    image["PixelData"].VR = "OB"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _region(shape: tuple[int, ...], spacing_mm: tuple[float, float], corner: tuple[int, int] = (0, 0)) -> Dataset:
    """US Region Calibration, PS3.3 C.8.5.5: tissue on (rows, columns) with their upper left pixel at (x, y)."""
    region = Dataset()
    region.RegionSpatialFormat = 1  # 2D
    region.RegionDataType = 1  # tissue
    region.RegionFlags = 2
    x0, y0 = corner
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x0, y0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x0 + shape[1] - 1, y0 + shape[0] - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = spacing_mm[1] / 10, spacing_mm[0] / 10
    return region


# -------------------------------------------------------------------------------------------------------- chest CT

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
LUNG_HU, SOFT_HU, FAT_HU, BLOOD_HU, BONE_HU, MARROW_HU = -860.0, 45.0, -95.0, 50.0, 480.0, 180.0
NOISE_HU = 22.0
EDGE_MM = 0.45  # how fast a small object fades into what surrounds it


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

# Ellipsoids of the body in patient mm, LPS round the middle of the chest: centre, half axes, HU; painted in this order.
BODY: tuple[tuple[tuple[float, float, float], tuple[float, float, float], float], ...] = (
    ((0, 0, 0), (165, 112, 900), FAT_HU),
    ((0, 2, 0), (153, 101, 900), SOFT_HU),
    ((-76, 4, -5), (62, 86, 128), LUNG_HU),  # right lung
    ((76, 4, -5), (62, 86, 128), LUNG_HU),
    ((26, -32, -40), (52, 44, 58), BLOOD_HU),  # heart
    ((0, -86, 0), (18, 7, 900), BONE_HU),  # sternum
    ((0, 82, 0), (24, 22, 900), BONE_HU),  # vertebrae
    ((0, 82, 0), (21, 19, 900), MARROW_HU),
    ((24, 56, 0), (12, 12, 900), BLOOD_HU),  # aorta
    ((0, 20, 70), (9, 9, 75), -1000.0),  # trachea
)
LUNGS = BODY[2:4]
THICKER_MM = 10.0  # wall of the detailed chest: that of BODY is a few mm at the back, as in a very thin patient
TABLE_MM = (128.0, 134.0)  # y of its top and bottom


@dataclass(frozen=True)
class Ball:
    """A nodule: an ellipsoid with a bumpy surface."""

    centre_mm: np.ndarray
    half_axes_mm: np.ndarray
    bumps: np.ndarray  # unit vectors (n, 3)
    heights: np.ndarray  # (n,), share of the radius
    hu: float

    def depth_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) in LPS -> about how far inside the surface, negative outside."""
        scaled = (points_mm - self.centre_mm) / self.half_axes_mm
        radius = np.linalg.norm(scaled, axis=-1)
        direction = scaled / np.maximum(radius, 1e-6)[..., None]
        surface = 1 + np.exp(5 * (direction @ self.bumps.T - 1)) @ self.heights
        return (surface - radius) * float(self.half_axes_mm.mean())


@dataclass(frozen=True)
class Tube:
    """A piece of vessel."""

    start_mm: np.ndarray
    end_mm: np.ndarray
    radius_mm: float

    def depth_mm(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) in LPS -> how far inside the wall, negative outside."""
        along = self.end_mm - self.start_mm
        share = np.clip((points_mm - self.start_mm) @ along / (along @ along), 0, 1)
        return self.radius_mm - np.linalg.norm(points_mm - self.start_mm - share[..., None] * along, axis=-1)


@dataclass(frozen=True, eq=False)
class Grid:
    """The scan's own grid: (z, y, x, 1) -> LPS mm by `affine`; z ascends along the slice normal."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def box(self, corner_mm: np.ndarray, reach_mm: float) -> tuple[slice, ...]:
        """The voxels within reach of a point, clipped to the grid; empty slices if none."""
        middle = np.linalg.inv(self.affine) @ [*corner_mm, 1]
        reach = reach_mm / np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(
            slice(int(np.clip(np.floor(m - r), 0, n)), int(np.clip(np.ceil(m + r) + 1, 0, n)))
            for m, r, n in zip(middle[:3], reach, self.shape, strict=True)
        )

    def points(self, box: tuple[slice, ...], shift_z: float = 0.0) -> np.ndarray:
        """LPS of the voxels' centres, (d, h, w, 3); shift_z in slices."""
        z, y, x = (np.arange(s.start, s.stop, dtype=float) for s in box)
        zyx = np.stack(np.meshgrid(z + shift_z, y, x, indexing="ij"), -1)
        return zyx @ self.affine[:3, :3].T + self.affine[:3, 3]


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
    hu = chest_hu(rng, body, vessels, balls, KERNELS[kernel], Detail.of(seed) if detail else None)
    if (kernel, detail, any(origin_mm)) != ("standard", False, False):
        series += f" {kernel} {detail} {origin_mm}"
    if gantry_deg:
        series += f" {gantry_deg}"
    moved = np.eye(4)
    moved[:3, 3] = origin_mm
    affine = moved @ grid.affine

    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "ascending": np.arange(slices),
        "descending": np.arange(slices)[::-1],
        "shuffled": rng.permutation(slices),
    }
    names = rng.permutation(slices)
    files = []
    for z in range(slices):
        image = ct_dicom(hu[z], affine, z, orientation, patient_id=patient_id, series=series)
        image.InstanceNumber = int(numbers[order][z]) + 1
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = study_date
        files.append(folder / f"ct_{names[z] + 1:04d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    placed = moved if pose is None else moved @ pose
    return Truth(tuple(files), tuple(ball_lesion(ball, body, placed) for ball in balls))


def chest_volume(
    seed: int,
    *,
    shape: tuple[int, int, int] = (300, 320, 320),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    kernel: str = "standard",
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
    return chest_hu(rng, body, vessels, (), KERNELS[kernel], Detail.of(seed)), grid.affine


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


def vessel_tree(rng: np.random.Generator, side: int, thinnest_mm: float = 0.6) -> list[Tube]:
    """Vessels of one lung, from the hilum outwards, each branch thinner (Murray 1926, exponent 2.7)."""
    centre, half_axes, _ = LUNGS[0 if side < 0 else 1]
    tubes: list[Tube] = []
    ends = [
        (np.array([side * 10.0, 8.0, 5.0]), unit(np.array([side * 1.3, y, z])), 3.2)
        for y, z in ((-0.7, 0.9), (0.8, 0.8), (-0.3, -0.2), (0.7, -1.0), (-0.9, -0.9))
    ]
    while ends:
        start, direction, radius = ends.pop()
        end = start + direction * (6 + radius * rng.uniform(3.5, 7.5))
        if radius < thinnest_mm or np.linalg.norm((end - centre) / np.subtract(half_axes, 4)) > 1:
            continue
        tubes.append(Tube(start, end, radius))
        share = rng.uniform(0.35, 0.65)
        for part in (share, 1 - share):
            turned = unit(direction + rng.normal(0, 0.42, 3))
            ends.append((end, turned, radius * float(part) ** (1 / 2.7)))
    return tubes


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def place_nodules(rng: np.random.Generator, grid: Grid, vessels: list[Tube], count: int) -> list[Ball]:
    """Nodules inside the lungs and the scan, apart from each other and from large vessels.

    Raises ValueError when the scan has no room for so many.
    """
    balls: list[Ball] = []
    heart_centre, heart_axes, _ = BODY[4]
    for attempt in range(200 * count):
        if len(balls) == count:
            return balls
        centre, half_axes, _ = LUNGS[attempt % 2]
        radius = rng.uniform(3.0, 10.0)
        place = centre + unit(rng.normal(size=3)) * half_axes * rng.random() ** (1 / 3)
        index = (np.linalg.inv(grid.affine) @ [*place, 1])[:3]
        margin = (radius + 4) / np.linalg.norm(grid.affine[:3, :3], axis=0)
        free = (
            np.linalg.norm((place - centre) / (np.array(half_axes) - radius - 3)) < 1
            and np.linalg.norm((place - heart_centre) / (np.array(heart_axes) + radius + 4)) > 1
            and bool(((index > margin) & (index < np.array(grid.shape) - 1 - margin)).all())
            and all(np.linalg.norm(place - other.centre_mm) > 30 for other in balls)
            and all(tube.depth_mm(place) < -radius - 2.5 for tube in vessels if tube.radius_mm > 1.1)
        )
        if free:
            bumps = rng.normal(size=(7, 3))
            balls.append(
                Ball(
                    centre_mm=place,
                    half_axes_mm=radius * rng.uniform(0.85, 1.15, 3),
                    bumps=bumps / np.linalg.norm(bumps, axis=1, keepdims=True),
                    heights=rng.uniform(-0.12, 0.16, 7),
                    hu=float(rng.uniform(0, 50)),
                )
            )
    if len(balls) < count:
        raise ValueError(
            f"no room for {count} nodules in this scan, {len(balls)} fit; use more slices or fewer nodules"
        )
    return balls


@dataclass(frozen=True, eq=False)
class Detail:
    """What else there is in a lung: small vessels, airways beside the larger ones, fissures, uneven parenchyma."""

    vessels: tuple[Tube, ...]
    airways: tuple[Tube, ...]  # outer walls
    fissures: np.ndarray  # (n, 7): side, then z = a + b·x + c·y and a wave of height h and length l with its phase
    unevenness: np.ndarray  # (8, 8, 8) over LUNGS, HU

    @classmethod
    def of(cls, seed: int) -> Detail:
        rng = np.random.default_rng((seed, 79))
        vessels, airways = [], []
        for side in (-1, 1):
            tree = vessel_tree(rng, side, thinnest_mm=0.35)
            vessels += tree
            beside = unit(rng.normal(size=3))
            root = np.array([side * 10.0, 20.0, -3.0])
            airways.append(Tube(np.array([0.0, 20.0, 8.0]), root, 7.0))  # main bronchus
            for tube in tree:
                if tube.radius_mm > 1.0:  # an airway goes with each artery, about as wide (Hansell 2008)
                    shift = beside * 2.4 * tube.radius_mm
                    airways.append(Tube(tube.start_mm + shift, tube.end_mm + shift, 1.15 * tube.radius_mm))
                    if np.linalg.norm(tube.start_mm - [side * 10.0, 8.0, 5.0]) < 1:
                        airways.append(Tube(root, tube.start_mm + shift, 1.3 * tube.radius_mm))
        oblique = [(s, rng.uniform(-25, -5), 0.0, rng.uniform(-1.3, -0.9)) for s in (-1, 1)]
        horizontal = [(-1, rng.uniform(0, 20), rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))]
        waves = rng.uniform((2.0, 80.0, 0.0), (7.0, 160.0, 6.28), (3, 3))
        fissures = np.hstack([np.array([*oblique, *horizontal]), waves])
        return cls(tuple(vessels), tuple(airways), fissures, rng.normal(0, 22.0, (8, 8, 8)))


def chest_hu(
    rng: np.random.Generator,
    grid: Grid,
    vessels: list[Tube],
    balls: Sequence[Ball],
    kernel: Kernel = KERNELS["standard"],
    detail: Detail | None = None,
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
    if detail is not None:
        paint_tubes(hu, grid, detail.airways, 0.0, LUNG_HU + 60)  # walls, in lung only: not through the heart
        paint_tubes(hu, grid, [Tube(t.start_mm, t.end_mm, 0.72 * t.radius_mm) for t in detail.airways], -1000.0, 0.0)
        paint_tubes(hu, grid, detail.vessels, BLOOD_HU, LUNG_HU + 250)
    for tube in vessels:
        paint(hu, grid, tube, BLOOD_HU)
    for ball in balls:
        paint(hu, grid, ball, ball.hu)
    out = np.empty(grid.shape, np.int16)
    for z in range(grid.shape[0]):
        noise = rng.standard_normal(grid.shape[1:], np.float32)
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


def paint_tubes(hu: np.ndarray, grid: Grid, tubes: Sequence[Tube], value: float, into_hu: float) -> None:
    """Many tubes at once, where the picture is below into_hu (or above value, if value is the lower): soft edges.

    By points along their axes, half a radius apart, each of which marks the voxels round it: a hundredth of the voxels
    that the box of a slanting tube has.
    """
    share = np.zeros(hu.size, np.float32)
    mm = np.linalg.norm(grid.affine[:3, :3], axis=0)
    to_index = np.linalg.inv(grid.affine)
    radii = np.array([tube.radius_mm for tube in tubes])
    widest = np.quantile(radii, [0.5, 0.9, 1.0])  # three groups: the cube of voxels to look at depends on the radius
    for low, high in zip([-1.0, *widest], widest, strict=False):
        group = [tube for tube in tubes if low < tube.radius_mm <= high]
        points, radius = [], []
        for tube in group:
            count = 2 + int(np.linalg.norm(tube.end_mm - tube.start_mm) / max(0.5 * tube.radius_mm, 0.4))
            way = np.linspace(0, 1, count)[:, None]
            points.append(tube.start_mm + way * (tube.end_mm - tube.start_mm))
            radius.append(np.full(count, tube.radius_mm))
        if not points:
            continue
        index = np.concatenate(points) @ to_index[:3, :3].T + to_index[:3, 3]
        r = np.concatenate(radius).astype(np.float32)
        base = np.rint(index).astype(int)
        reach = np.ceil((high + 2 * EDGE_MM) / mm).astype(int)
        for offset in np.ndindex(*(2 * reach + 1)):
            voxel = base + offset - reach
            away = ((voxel - index) @ grid.affine[:3, :3].T).astype(np.float32)
            depth = r - np.sqrt((away * away).sum(axis=1))
            near = (depth > -2.5 * EDGE_MM) & ((voxel >= 0) & (voxel < grid.shape)).all(axis=1)
            flat = np.ravel_multi_index(tuple(voxel[near].T), grid.shape)
            np.maximum.at(share, flat, 1 / (1 + np.exp(-depth[near] / EDGE_MM)))
    share = share.reshape(grid.shape)
    if value < into_hu:
        hu += np.where(hu < into_hu, np.minimum(value - hu, 0), 0) * share
    else:
        hu += np.where(hu < into_hu, value - hu, 0) * share


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


def ball_lesion(ball: Ball, grid: Grid, pose: np.ndarray | None = None) -> Lesion:
    """What is true about a nodule: its voxels, and its axes in the image plane through its middle.

    grid   as the body sees it; pose brings the nodule's centre from there to LPS
    """
    centre = ball.centre_mm if pose is None else (pose @ [*ball.centre_mm, 1])[:3]
    box = grid.box(ball.centre_mm, 1.8 * float(ball.half_axes_mm.max()) + 3)
    inside = ball.depth_mm(grid.points(box)) >= 0
    (tight,) = ndimage.find_objects(inside.astype(np.uint8))
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    down, across = (unit(grid.affine[:3, axis]) for axis in (1, 2))
    rays = np.outer(np.cos(angles), across) + np.outer(np.sin(angles), down)
    lengths = np.linspace(0, 1.8 * float(ball.half_axes_mm.max()), 600)
    depth = ball.depth_mm(ball.centre_mm + rays[:, None] * lengths[None, :, None])
    edge = lengths[(depth >= 0).sum(axis=1) - 1]
    outline = np.stack([np.cos(angles), np.sin(angles)], -1) * edge[:, None]
    distance = np.linalg.norm(outline[:, None] - outline[None], axis=-1)
    i, j = np.unravel_index(int(distance.argmax()), distance.shape)
    along = unit(outline[j] - outline[i])
    across_long = outline @ np.array([-along[1], along[0]])
    return Lesion(
        mask=inside[tight],
        offset_zyx=tuple(b.start + t.start for b, t in zip(box, tight, strict=True)),  # type: ignore[arg-type]
        long_axis_mm=float(distance.max()),
        short_axis_mm=float(np.ptp(across_long)),
        centre_lps_mm=tuple(float(v) for v in centre),  # type: ignore[arg-type]
        hu=ball.hu,
    )


def ct_dicom(hu: np.ndarray, affine: np.ndarray, z: int, orientation: str, *, patient_id: str, series: str) -> Dataset:
    """int16 HU (rows, columns) of slice z -> a CT Image Storage object (PS3.3 A.3), ready to save."""
    step, down, across = (affine[:3, axis] for axis in range(3))
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = _uid(patient_id, series, str(z))
    image.StudyInstanceUID = _uid(patient_id, series, "study")
    image.SeriesInstanceUID = _uid(patient_id, series, "series")
    image.FrameOfReferenceUID = _uid(patient_id, series, "frame of reference")
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


def _uid(*what: str) -> str:
    return generate_uid(prefix="2.25.", entropy_srcs=["pacs-node phantom", *what])

"""Synthetic images with known truth: what the demo sends and what the tests hold the checkpoints to.

A phantom shows that the way from pixels to millimetres is right and that the checkpoint still works. It says nothing
about patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid
from scipy import ndimage


@dataclass(frozen=True, eq=False)
class Lesion:
    """One thing to be found. Same grid and same order of axes as dicom_sr.findings.Finding."""

    mask: np.ndarray  # bool (d, h, w), the smallest box that holds the lesion
    offset_zyx: tuple[int, int, int]  # z counts Truth.files
    long_axis_mm: float
    short_axis_mm: float


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
    rng: np.random.Generator, shape: tuple[int, int], spacing_mm: float, lesion: Ellipse | None, behind_db: float
) -> np.ndarray:
    """One B-mode picture, (rows, columns) uint8.

    The log-compressed envelope of complex noise, correlated by a point spread that is wider across than along the beam:
    fully developed speckle, Rayleigh-distributed (Wagner et al., IEEE Trans. Sonics Ultrason. 30:156, 1983).
    behind_db: how much brighter (enhancement) or darker (shadow) the tissue below the lesion is.
    """
    y, x = (np.indices(shape) + 0.5) * spacing_mm  # depth and place of every pixel's centre
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

    spread = (0.10 / spacing_mm, 0.22 / spacing_mm)  # the pulse along, the beam across
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


def _streaks(rng: np.random.Generator, shape: tuple[int, int], spacing_mm: float) -> np.ndarray:
    """Tissue texture, longer across than deep: mean 0, deviation 1."""
    field = ndimage.gaussian_filter(rng.normal(size=shape), (0.35 / spacing_mm, 2.2 / spacing_mm))
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
        pixels = breast_picture(rng, shape, spacing_mm, lesion if lesions else None, behind_db)
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
    y, x = (np.indices(shape) + 0.5) * spacing_mm
    mask = ellipse.radius(x, y) <= 1
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return Lesion(
        mask=mask[box][None],
        offset_zyx=(z, box[0].start, box[1].start),
        long_axis_mm=2 * max(ellipse.half_axes_mm),
        short_axis_mm=2 * min(ellipse.half_axes_mm),
    )


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


def _region(shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> Dataset:
    """US Region Calibration, PS3.3 C.8.5.5: tissue over the whole image."""
    region = Dataset()
    region.RegionSpatialFormat = 1  # 2D
    region.RegionDataType = 1  # tissue
    region.RegionFlags = 2
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = shape[1] - 1, shape[0] - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = spacing_mm[1] / 10, spacing_mm[0] / 10
    return region


def _uid(*what: str) -> str:
    return generate_uid(prefix="2.25.", entropy_srcs=["pacs-node phantom", *what])

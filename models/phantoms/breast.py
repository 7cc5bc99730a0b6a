"""A breast in ultrasound: one image, or a clip of a sweep, with lesions of known size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from scipy import ndimage

from models.phantoms.truth import Lesion, Truth, phantom_uid

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
    image.SOPInstanceUID = phantom_uid(patient_id, series, str(number))
    image.StudyInstanceUID = phantom_uid(patient_id)
    image.SeriesInstanceUID = phantom_uid(patient_id, series)
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

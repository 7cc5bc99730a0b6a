"""DICOM -> Volume (CT, in Hounsfield units) or Clip (ultrasound, in grey values). The only reader of pixels.

Training, pipelines and phantom tests read through here, so they cannot drift apart. Slices are ordered by position
along the normal, never by InstanceNumber or file name (PS3.3 C.7.6.2.1.1). `pixels.py` decodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dicom_sr.findings import ImageRef
from dicom_sr.regions import Region, tissue_regions
from models.pipeline import UnfitInput
from models.pixels import UNREADABLE, Frame, rescaled, stored_values, ultrasound_frames

MOST_VOXELS = 1 << 30  # of a CT series: 4096 slices of 512 x 512, 2 GB
MOST_PIXELS = 1 << 26  # of an ultrasound frame: 8192 x 8192

ORIENTATION_TOLERANCE = 1e-3  # largest difference of direction cosines between slices of one volume
SPACING_TOLERANCE = 0.1  # steps between slices may differ by this share of their median ...
ROUNDING_MM = 0.11  # ... and always by this much: positions are often written with one decimal


@dataclass(frozen=True, eq=False)
class Volume:
    """One CT series as one array, still on its own pixel grid.

    hu       int16 (z, y, x), Hounsfield units, padding set to AIR_HU; z ascends along the slice normal
    images   source image (or frame) of each z
    affine   4x4, (z, y, x, 1) -> patient position of the voxel's centre in mm, LPS
    headers  data sets without pixels, one per file, in the order of first use
    """

    hu: np.ndarray
    images: tuple[ImageRef, ...]
    spacing_mm: tuple[float, float, float]  # z, y, x; z is the distance between neighbouring slices
    affine: np.ndarray
    headers: tuple[Dataset, ...]

    def position_lps_mm(self, index_zyx: Sequence[float]) -> tuple[float, float, float]:
        """Patient position of a (fractional) voxel index."""
        x, y, z = (self.affine @ np.array([*index_zyx, 1.0]))[:3]
        return float(x), float(y), float(z)

    def index_zyx(self, place_lps_mm: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
        """The (fractional) voxel index of a patient position; it may lie beyond the volume."""
        z, y, x = (np.linalg.inv(self.affine) @ np.array([*place_lps_mm, 1.0]))[:3]
        return float(z), float(y), float(x)

    @property
    def voxel_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True, eq=False)
class Clip:
    """One ultrasound image or cine. Pixels are decoded when asked for: a cine of a minute takes gigabytes.

    images    one for each frame, in the order of the file
    regions   where 2-D tissue shows, each with its own calibration; none when the header says that none does
    header    without pixels
    """

    path: Path
    images: tuple[ImageRef, ...]
    regions: tuple[Region, ...]
    header: Dataset

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.header.Rows), int(self.header.Columns)

    def frames(self, indices: Sequence[int] | None = None) -> Iterator[Frame]:
        """Decode frame by frame, those with these indices (from 0), or all. Raises UnfitInput when that fails."""
        return ultrasound_frames(self.path, self.header, range(len(self.images)) if indices is None else indices)


@dataclass(frozen=True)
class Plane:
    """Where one slice lies and how its stored values become HU."""

    path: Path
    frame: int | None  # 0-based, None for a single-frame image
    ref: ImageRef
    position: np.ndarray  # ImagePositionPatient
    orientation: np.ndarray  # ImageOrientationPatient
    spacing: tuple[float, float]  # rows, columns
    shape: tuple[int, int]
    slope: float
    intercept: float
    thickness: float | None
    header: Dataset = field(repr=False, compare=False)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])


# ---------------------------------------------------------------------------------------------------------- CT


def read_ct(files: Sequence[Path]) -> Volume:
    """Read the files of one CT series, in any order. Raises UnfitInput with the reason in words."""
    if not files:
        raise UnfitInput("the series has no files")
    planes = [plane for path in files for plane in planes_in(path)]
    planes = stacked(planes)
    affine, spacing_mm = geometry(planes)
    voxels = len(planes) * planes[0].shape[0] * planes[0].shape[1]
    if voxels > MOST_VOXELS:
        raise UnfitInput(
            f"{len(planes)} slices of {planes[0].shape[0]} x {planes[0].shape[1]} pixels are {voxels:.2g} voxels,"
            f" at most {MOST_VOXELS:.2g} can be held; send the series in fewer slices, or of 512 x 512 pixels"
        )
    hu = np.empty((len(planes), *planes[0].shape), np.int16)
    fill(hu, planes)
    headers = {id(plane.header): plane.header for plane in planes}
    return Volume(hu, tuple(plane.ref for plane in planes), spacing_mm, affine, tuple(headers.values()))


def header_of(path: Path) -> Dataset:
    """The data set without its pixels; `filename` stays known."""
    try:
        return dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, *UNREADABLE) as error:
        raise UnfitInput(f"{path.name} cannot be read as DICOM: {error}") from error


def planes_in(path: Path) -> list[Plane]:
    """The planes of a file. Raises UnfitInput when its header cannot be read or used."""
    header = header_of(path)
    try:
        return planes_of(header)
    except UNREADABLE as error:
        raise UnfitInput(f"{path.name}: the header cannot be used: {error}") from error


def planes_of(header: Dataset) -> list[Plane]:
    """One Plane per frame: a classic CT image has one, an Enhanced CT image (PS3.3 A.38) one per frame."""
    path = Path(str(header.filename))
    if header.get("Modality") != "CT":
        raise UnfitInput(f"{path.name}: modality is {header.get('Modality') or 'missing'}, a CT series is needed")
    if "PerFrameFunctionalGroupsSequence" not in header:
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise UnfitInput(
                f"{path.name}: several frames without per-frame functional groups, their positions are unknown"
            )
        return [plane(path, header, header, header, header, header, None)]
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return [
        plane(
            path,
            header,
            group("PlanePositionSequence", own, shared),
            group("PlaneOrientationSequence", own, shared),
            group("PixelMeasuresSequence", own, shared),
            group("PixelValueTransformationSequence", own, shared),
            index,
        )
        for index, own in enumerate(header.PerFrameFunctionalGroupsSequence)
    ]


def group(name: str, own: Dataset, shared: Dataset) -> Dataset:
    """A functional group macro of one frame: its own, else the shared one, else empty."""
    return ((own.get(name) or shared.get(name)) or [Dataset()])[0]


def plane(
    path: Path, header: Dataset, where: Dataset, turned: Dataset, measures: Dataset, rescale: Dataset, frame: int | None
) -> Plane:
    """Read one plane's geometry from the data sets that hold it. Raises UnfitInput when something is missing."""

    def numbers(source: Dataset, keyword: str, count: int) -> list[float]:
        value = source.get(keyword)
        if value is None or value == "" or np.size(value) == 0:
            raise UnfitInput(f"{path.name}: {keyword} is missing, slices cannot be placed in the patient")
        values = [float(v) for v in np.ravel(value)]
        if len(values) != count or not np.isfinite(values).all():
            raise UnfitInput(f"{path.name}: {keyword} is {values}, {count} finite numbers are needed")
        return values

    row_mm, column_mm = numbers(measures, "PixelSpacing", 2)
    if row_mm <= 0 or column_mm <= 0:
        raise UnfitInput(f"{path.name}: PixelSpacing is {row_mm:g} x {column_mm:g} mm, it must be above zero")
    if any(rescale.get(keyword) in (None, "") for keyword in ("RescaleSlope", "RescaleIntercept")):
        raise UnfitInput(f"{path.name}: RescaleSlope or RescaleIntercept is missing, stored values cannot become HU")
    slope, intercept = float(rescale.RescaleSlope), float(rescale.RescaleIntercept)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise UnfitInput(
            f"{path.name}: RescaleSlope is {slope:g} and RescaleIntercept {intercept:g}, stored values cannot become HU"
        )
    if not header.get("Rows") or not header.get("Columns"):
        raise UnfitInput(f"{path.name}: Rows or Columns is missing, there is no picture")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise UnfitInput(f"{path.name}: {header.SamplesPerPixel} samples per pixel, a grey image is needed")
    thickness = measures.get("SliceThickness") or header.get("SpacingBetweenSlices")
    return Plane(
        path=path,
        frame=frame,
        ref=ImageRef(str(header.SOPClassUID), str(header.SOPInstanceUID), None if frame is None else frame + 1),
        position=np.array(numbers(where, "ImagePositionPatient", 3)),
        orientation=np.array(numbers(turned, "ImageOrientationPatient", 6)),
        spacing=(row_mm, column_mm),
        shape=(int(header.Rows), int(header.Columns)),
        slope=slope,
        intercept=intercept,
        thickness=float(thickness) if thickness else None,
        header=header,
    )


def stacked(planes: list[Plane]) -> list[Plane]:
    """The planes in ascending order along their common normal. Raises UnfitInput when they are no stack."""
    first = planes[0]
    for other in planes[1:]:
        if np.abs(other.orientation - first.orientation).max() > ORIENTATION_TOLERANCE:
            raise UnfitInput(
                f"{other.path.name} has another orientation than {first.path.name}: not one stack of slices"
            )
        if other.shape != first.shape:
            raise UnfitInput(f"slices of {first.shape} and {other.shape} pixels in one series: not one stack")
        if not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            raise UnfitInput(f"PixelSpacing {first.spacing} and {other.spacing} in one series: not one stack")
    return sorted(planes, key=lambda p: float(p.position @ first.normal))


def geometry(planes: Sequence[Plane]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(affine, spacing z y x) of sorted planes. Raises UnfitInput on doubled or missing positions."""
    first, last = planes[0], planes[-1]
    along = np.array([plane.position @ first.normal for plane in planes])
    steps = np.diff(along)
    if len(planes) == 1:
        if first.thickness is None:
            raise UnfitInput("one slice without SliceThickness: its volume is unknown")
        step, distance = first.normal * first.thickness, first.thickness
    else:
        distance = float(np.median(steps))
        if steps.min() < 1e-3 or distance < 1e-3:
            raise UnfitInput(
                f"two slices lie at the same position ({along[int(steps.argmin())]:.2f} mm along the normal)"
            )
        if np.abs(steps - distance).max() > max(SPACING_TOLERANCE * distance, ROUNDING_MM):
            raise UnfitInput(
                f"slices are {steps.min():.2f} to {steps.max():.2f} mm apart: one or more are missing,"
                " or two scans are mixed"
            )
        step = (last.position - first.position) / (len(planes) - 1)
        distance = float(along[-1] - along[0]) / (len(planes) - 1)
    row_mm, column_mm = first.spacing
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.orientation[3:] * row_mm  # y: down a column
    affine[:3, 2] = first.orientation[:3] * column_mm  # x: along a row
    affine[:3, 3] = first.position
    return affine, (distance, row_mm, column_mm)


def fill(hu: np.ndarray, planes: Sequence[Plane]) -> None:
    """Decode every plane into its place of hu (z, y, x)."""
    places: dict[Path, list[tuple[int, int]]] = defaultdict(list)  # path -> (frame, z) of its planes
    for z, plane in enumerate(planes):
        places[plane.path].append((plane.frame or 0, z))
    for path, here in places.items():
        frames = [] if planes[here[0][1]].frame is None else [frame for frame, _ in sorted(here)]
        for (_, z), stored in zip(sorted(here), stored_values(path, frames), strict=True):
            if stored.shape != hu.shape[1:]:
                raise UnfitInput(f"{path.name}: pixels are {stored.shape}, the header says {hu.shape[1:]}")
            try:
                rescaled(stored, planes[z].header, planes[z].slope, planes[z].intercept, out=hu[z])
            except UNREADABLE as error:
                raise UnfitInput(f"{path.name}: the pixels cannot become HU: {error}") from error


# ------------------------------------------------------------------------------------------------- ultrasound


COLOURS = (  # PS3.3 C.7.6.3.1.2: what can become grey; HSV, ARGB and CMYK are retired
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422"),
    *("YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"),  # inside JPEG 2000 and video
)


def read_ultrasound(path: Path) -> Clip:
    """Read the header of one ultrasound (or secondary capture) image or cine; pixels follow frame by frame.

    Raises UnfitInput with the reason in words.
    """
    header = header_of(path)
    try:
        return clip_of(path, header)
    except UNREADABLE as error:
        raise UnfitInput(f"{path.name}: the header cannot be used: {error}") from error


def clip_of(path: Path, header: Dataset) -> Clip:
    int(header.get("InstanceNumber") or 0)  # images are sorted by it: one that is no number fails here, in words
    colours = str(header.get("PhotometricInterpretation") or "missing")
    if colours not in COLOURS:
        raise UnfitInput(f"{path.name}: PhotometricInterpretation is {colours}, one of {', '.join(COLOURS)} is needed")
    if not header.get("Rows") or not header.get("Columns"):
        raise UnfitInput(f"{path.name}: Rows or Columns is missing, there is no picture")
    if int(header.Rows) * int(header.Columns) > MOST_PIXELS:
        raise UnfitInput(
            f"{path.name}: a frame has {header.Rows} x {header.Columns} pixels, at most {MOST_PIXELS} can be held;"
            " send the picture in the size of the screen"
        )
    count = int(header.get("NumberOfFrames") or 1)
    if count < 1:
        raise UnfitInput(f"{path.name}: NumberOfFrames is {count}")
    sop = str(header.SOPClassUID), str(header.SOPInstanceUID)
    multi_frame = "NumberOfFrames" in header
    images = tuple(ImageRef(*sop, frame + 1 if multi_frame else None) for frame in range(count))
    return Clip(path, images, tissue_regions(header), header)


# -------------------------------------------------------------------------------------------------- for people to see

LUNG_WINDOW_HU = (-600.0, 1500.0)  # centre, width: where a CT header names no window


def displayed(path: Path, frame: int | None) -> np.ndarray:
    """One image (or frame, from 1) as a viewer first shows it: uint8 (rows, columns, 3). Raises UnfitInput.

    CT through the first window of its header, ultrasound as it is.
    """
    header = header_of(path)
    if header.get("Modality") != "CT":
        [seen] = read_ultrasound(path).frames([(frame or 1) - 1])
        return seen.rgb if seen.rgb is not None else np.repeat(seen.grey[..., np.newaxis], 3, axis=2)
    one = planes_in(path)[(frame or 1) - 1]
    hu = np.empty((1, *one.shape), np.int16)
    fill(hu, [one])
    centre, width = LUNG_WINDOW_HU
    if header.get("WindowCenter") not in (None, "") and header.get("WindowWidth") not in (None, ""):
        centre, width = (float(np.ravel(header[keyword].value)[0]) for keyword in ("WindowCenter", "WindowWidth"))
    # PS3.3 C.11.2.1.2.1, the linear function
    shown = ((hu[0] - (centre - 0.5)) / max(width - 1, 1) + 0.5).clip(0, 1) * 255
    return np.repeat(np.rint(shown).astype(np.uint8)[..., np.newaxis], 3, axis=2)

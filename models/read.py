"""DICOM -> Volume (of slices: CT in Hounsfield units, MR and PET in their own) or Clip (of images: ultrasound and
radiographs, in grey values). The only reader of pixels.

Training, pipelines and phantom tests read through here, so they cannot drift apart. Slices are ordered by position
along the normal, never by InstanceNumber or file name (PS3.3 C.7.6.2.1.1). `pixels.py` decodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.errors import InvalidDicomError

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from dicom_sr.findings import ImageRef
from dicom_sr.frames import Frame
from dicom_sr.frames import count as frame_count
from dicom_sr.frames import frame as frame_of
from dicom_sr.modalities import PROJECTION, VOLUME_CLASSES
from dicom_sr.reading import read_header
from dicom_sr.regions import Region, tissue_regions
from dicom_sr.slices import (
    MOST_VOXELS,
    SAME_PLACE_MM,
    UNEVEN,
    UNEVEN_MM,
    NotASlice,
    Slice,
    difference,
    size_of,
    slices_of,
    sop_of,
)
from models import pixels
from models.image_pixel import COLOURS
from models.pipeline import UnfitInput
from models.pixels import UNREADABLE, grey_values, name_image, rescaled, stored_values, ultrasound_frames


@dataclass(frozen=True, eq=False)
class Volume:
    """One series of slices as one array, still on its own pixel grid.

    values   (z, y, x), z ascends along the slice normal. Of `read_ct` int16, Hounsfield units, padding set to AIR_HU;
             of `read_volume` float32, what the header's rescaling makes of them (PET: Units says what), padding 0
    images   source image (or frame) of each z
    affine   4x4, (z, y, x, 1) -> patient position of the voxel's centre in mm, LPS
    headers  data sets without pixels, one per file, in the order of first use
    remarks  what a reader of the results should know, in words: images at an end that cannot be decoded
    """

    values: np.ndarray
    images: tuple[ImageRef, ...]
    spacing_mm: tuple[float, float, float]  # z, y, x; z is the distance between neighbouring slices
    affine: np.ndarray
    headers: tuple[Dataset, ...]
    remarks: tuple[str, ...] = ()

    @property
    def hu(self) -> np.ndarray:
        """int16 (z, y, x), of a volume that `read_ct` has read"""
        return self.values

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
        return size_of(self.header)

    def frames(self, indices: Sequence[int] | None = None) -> Iterator[pixels.Frame]:
        """Decode frame by frame, those with these indices (from 0), or all. Raises UnfitInput when that fails."""
        return ultrasound_frames(self.path, self.header, range(len(self.images)) if indices is None else indices)

    def values(self, indices: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """As `frames`, of one without colour: float32 (y, x), all bits that are stored, the brighter the larger."""
        return grey_values(self.path, self.header, range(len(self.images)) if indices is None else indices)


# ------------------------------------------------------------------------------------------------------- slices


def read_ct(files: Sequence[Path]) -> Volume:
    """Read the files of one CT series, in any order: int16, Hounsfield units.

    An image at an end whose pixels cannot be decoded is left out, and said; between others it would leave a gap.
    Raises UnfitInput with the reason in words.
    """
    return _volume(files, np.dtype(np.int16), hounsfield=True)


def read_volume(files: Sequence[Path]) -> Volume:
    """As `read_ct`, of any modality whose images are slices: float32, what the header's rescaling makes of them."""
    return _volume(files, np.dtype(np.float32), hounsfield=False)


def _volume(files: Sequence[Path], kind: np.dtype, *, hounsfield: bool) -> Volume:
    if not files:
        raise UnfitInput("the series has no files")
    slices = sort_slices([one for path in files for one in slices_in(path, hounsfield=hounsfield)])
    geometry(slices)  # before memory is taken
    voxels = len(slices) * slices[0].shape[0] * slices[0].shape[1]
    if voxels > MOST_VOXELS:
        raise UnfitInput(
            f"{len(slices)} slices of {slices[0].shape[0]} x {slices[0].shape[1]} pixels are {voxels:.2g} voxels,"
            f" at most {MOST_VOXELS:.2g} can be held; send the series in fewer slices, or of 512 x 512 pixels"
        )
    values = np.empty((len(slices), *slices[0].shape), kind)
    failures = fill(values, slices)
    reasons = tuple(dict.fromkeys(failures.values()))
    kept = [z for z in range(len(slices)) if z not in failures]
    if not kept or kept[-1] - kept[0] >= len(kept):
        raise UnfitInput("; ".join(reasons) + ("; without it a slice is missing" if kept else ""))
    slices, values = slices[kept[0] : kept[-1] + 1], values[kept[0] : kept[-1] + 1]
    affine, spacing_mm = geometry(slices)
    headers = {id(one.header): one.header for one in slices}
    remarks = tuple(f"left out: {reason}" for reason in reasons)
    return Volume(values, tuple(one.ref for one in slices), spacing_mm, affine, tuple(headers.values()), remarks)


def header_of(path: Path) -> Dataset:
    """The data set without its pixels; `filename` stays known."""
    try:
        return read_header(path)
    except (InvalidDicomError, *UNREADABLE) as error:
        raise UnfitInput(f"{path.name} cannot be read as DICOM: {error}") from error


def slices_in(path: Path, *, hounsfield: bool = True) -> list[Slice]:
    """The slices of a file; hounsfield: of a CT in Hounsfield units. Raises UnfitInput when its header cannot be read,
    or tells of none."""
    header = header_of(path)
    try:
        modality = "CT" if hounsfield else attributes.text(header, "Modality")
        if modality not in VOLUME_CLASSES:
            raise NotASlice(f"Modality is {modality or 'not given'}, not {' or '.join(VOLUME_CLASSES)}")
        return slices_of(header, modality, hounsfield=hounsfield)
    except NotASlice as why:
        raise UnfitInput(f"{name_image(header)}: {why}") from why


def path_of(header: Dataset) -> Path:
    return Path(str(header.filename))


def sort_slices(slices: list[Slice]) -> list[Slice]:
    """The slices in ascending order along their common normal. Raises UnfitInput when they are no stack."""
    first = slices[0]
    for other in slices[1:]:
        if why := difference(other, first):
            raise UnfitInput(f"{name_image(other.header)} has {why}: not one stack of slices")
    return sorted(slices, key=lambda one: float(one.position @ first.normal))


def geometry(slices: Sequence[Slice]) -> tuple[np.ndarray, tuple[float, float, float]]:
    """(affine, spacing z y x) of sorted slices. Raises UnfitInput on doubled or missing positions."""
    first, last = slices[0], slices[-1]
    along = np.array([one.position @ first.normal for one in slices])
    steps = np.diff(along)
    if len(slices) == 1:
        if first.thickness_mm is None:
            raise UnfitInput("one slice without SliceThickness: its volume is unknown")
        step, distance = first.normal * first.thickness_mm, first.thickness_mm
    else:
        distance = float(np.median(steps))
        if steps.min() < SAME_PLACE_MM or distance < SAME_PLACE_MM:
            raise UnfitInput(
                f"two slices lie at the same position ({along[int(steps.argmin())]:.2f} mm along the normal)"
            )
        if np.abs(steps - distance).max() > max(UNEVEN * distance, UNEVEN_MM):
            raise UnfitInput(
                f"slices are {steps.min():.2f} to {steps.max():.2f} mm apart: one or more are missing,"
                " or two scans are mixed"
            )
        step = (last.position - first.position) / (len(slices) - 1)
        distance = float(along[-1] - along[0]) / (len(slices) - 1)
    row_mm, column_mm = first.pixel_spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = first.column * row_mm  # y: down a column
    affine[:3, 2] = first.row * column_mm  # x: along a row
    affine[:3, 3] = first.position
    return affine, (distance, row_mm, column_mm)


def fill(out: np.ndarray, slices: Sequence[Slice]) -> dict[int, str]:
    """Decode every slice into its place in (z, y, x). The places of those that cannot be, each with the reason."""
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)  # header -> (frame from 0, z) of its slices
    for z, one in enumerate(slices):
        places[id(one.header)].append(((one.ref.frame or 1) - 1, z))
    failures: dict[int, str] = {}
    for here in places.values():
        header = slices[here[0][1]].header
        frames = [] if slices[here[0][1]].ref.frame is None else [frame for frame, _ in sorted(here)]
        try:
            for (_, z), stored in zip(sorted(here), stored_values(path_of(header), header, frames), strict=True):
                if stored.shape != out.shape[1:]:
                    differs = f"pixels are {stored.shape}, the header says {out.shape[1:]}"
                    raise UnfitInput(f"{name_image(header)}: {differs}")
                try:
                    rescaled(stored, header, slices[z].slope, slices[z].intercept, out=out[z])
                except UNREADABLE as error:
                    what = "HU" if out.dtype == np.int16 else "values"
                    raise UnfitInput(f"{name_image(header)}: the pixels cannot become {what}: {error}") from error
        except UnfitInput as why:
            failures |= {z: str(why) for _, z in here}
    return failures


# ----------------------------------------------------------------------------------------------------- images


def read_image(path: Path) -> Clip:
    """Read the header of one image or cine, of any modality; pixels follow frame by frame.

    Raises UnfitInput with the reason in words.
    """
    header = header_of(path)
    try:
        return clip_of(path, header)
    except UNREADABLE as error:
        raise UnfitInput(f"{path.name}: the header cannot be used: {error}") from error


read_ultrasound = read_image


def clip_of(path: Path, header: Dataset) -> Clip:
    """Raises UnfitInput."""
    try:
        size_of(header)
        count = frame_count(header)
        sop = sop_of(header)
        regions = tissue_regions(header)
    except BadAttribute as bad:
        raise UnfitInput(f"{name_image(header)}: {bad}") from bad
    colours = attributes.text(header, "PhotometricInterpretation")
    if colours not in COLOURS:
        raise UnfitInput(
            f"{name_image(header)}: PhotometricInterpretation is {colours or 'missing'},"
            f" one of {', '.join(COLOURS)} is needed"
        )
    images = tuple(ImageRef(*sop, None if count is None else frame + 1) for frame in range(count or 1))
    return Clip(path, images, regions, header)


# -------------------------------------------------------------------------------------------------- for people to see

LUNG_WINDOW_HU = (-600.0, 1500.0)  # centre, width: where a CT header names no window


def display(path: Path, frame: int | None, window: tuple[float, float] | None = None) -> np.ndarray:
    """One image (or frame, from 1) as a viewer first shows it: uint8 (rows, columns, 3). Raises UnfitInput.

    Slices and radiographs through the first window of their header, where they have none CT through that for lungs and
    others from the darkest to the brightest; ultrasound as it is.

    window   (centre, width) for slices, in place of that
    """
    header = header_of(path)
    modality = attributes.text(header, "Modality")
    if modality in VOLUME_CLASSES:
        one = next(
            each for each in slices_in(path, hounsfield=modality == "CT") if each.ref.frame in (None, frame or 1)
        )
        values = np.empty((1, *one.shape), np.int16 if modality == "CT" else np.float32)
        if failure := fill(values, [one]):
            raise UnfitInput(failure[0])
        return _windowed(values[0], window or window_of(one.frame) or (LUNG_WINDOW_HU if modality == "CT" else None))
    clip, at = read_image(path), (frame or 1) - 1
    if modality in PROJECTION and attributes.text(header, "PhotometricInterpretation") == "MONOCHROME2":
        [values] = clip.values([at])
        return _windowed(values, window_of(frame_of(header, frame)))
    [seen] = clip.frames([at])
    return seen.rgb if seen.rgb is not None else np.repeat(seen.grey[..., np.newaxis], 3, axis=2)


def _windowed(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, the linear function"""
    if window is None:
        window = (float(values.min()) + float(values.max()) + 1) / 2, float(np.ptp(values)) + 1
    centre, width = window
    shown = ((values - (centre - 0.5)) / max(width - 1, 1) + 0.5).clip(0, 1) * 255
    return np.repeat(np.rint(shown).astype(np.uint8)[..., np.newaxis], 3, axis=2)


def window_of(frame: Frame) -> tuple[float, float] | None:
    """(centre, width) of the first window of an image or frame; None where the header names none that can be used."""
    try:
        centre, width = (float(str(frame.values(keyword)[0])) for keyword in ("WindowCenter", "WindowWidth"))
    except (BadAttribute, IndexError, ValueError):
        return None
    return (centre, width) if np.isfinite([centre, width]).all() and width > 0 else None

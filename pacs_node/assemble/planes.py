"""What a CT header says about one slice: whether it is one, and where in the patient it lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom import Dataset
from pydicom.datadict import dictionary_description
from pydicom.errors import BytesLengthException
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

CT_CLASSES = {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
NOT_A_SLICE = {  # values of ImageType, PS3.3 C.8.2.1.1.1 and C.8.16.1.3
    "LOCALIZER": "localizer",
    "MIP": "maximum intensity projection",
    "MAX_IP": "maximum intensity projection",
    "MINIP": "minimum intensity projection",
    "MIN_IP": "minimum intensity projection",
    "SCREEN SAVE": "screen capture",
}
NOT_HOUNSFIELD = {"OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT"}  # Rescale Type, PS3.3 C.11.1.1.2


DIRECTION = 1e-3  # largest difference of direction cosines that are "the same"; viewers use this one too
PIXEL_SPACING = 1e-3  # share of it
OBLIQUE_DEGREES = 30.0  # from axial; beyond, organs no longer look as the models know them


UNREADABLE = (ValueError, TypeError, BytesLengthException)  # what pydicom raises for bytes that do not fit their VR


class NotASlice(Exception):
    """An image that cannot be part of a CT volume, whatever the others are; the message says why."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice: a single-frame image, or one frame of a multi-frame image."""

    uid: str
    frame: int | None  # 1-based
    position: np.ndarray  # (3,) patient position of the first pixel, mm, LPS
    row: np.ndarray  # (3,) direction of increasing column index
    column: np.ndarray  # (3,) direction of increasing row index
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    shape: tuple[int, int]
    frame_of_reference: str
    acquisition: str

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    @property
    def degrees_from_axial(self) -> float:
        return float(np.degrees(np.arccos(np.clip(abs(self.normal[2]), 0, 1))))

    @property
    def orientation(self) -> str:
        """ "axial", "coronal" or "sagittal": the nearest; "oblique" when none is near."""
        nearness = np.abs(self.normal)
        if np.degrees(np.arccos(np.clip(nearness.max(), 0, 1))) > OBLIQUE_DEGREES:
            return "oblique"
        return ("sagittal", "coronal", "axial")[int(nearness.argmax())]


def difference(plane: Plane, other: Plane) -> str | None:
    """None, or the first reason why `plane` is not of the same volume as `other`."""
    if plane.frame_of_reference != other.frame_of_reference:
        return "another frame of reference"
    if max(np.abs(plane.row - other.row).max(), np.abs(plane.column - other.column).max()) > DIRECTION:
        turned = f"{plane.orientation}, not {other.orientation}"
        return f"another orientation: {turned if plane.orientation != other.orientation else 'turned'}"
    if plane.shape != other.shape:
        return "another size: {} x {} pixels, not {} x {}".format(*plane.shape, *other.shape)
    if not np.allclose(plane.pixel_spacing_mm, other.pixel_spacing_mm, rtol=PIXEL_SPACING, atol=0):
        spacings = (*plane.pixel_spacing_mm, *other.pixel_spacing_mm)
        return "another pixel spacing: {:.4g} x {:.4g} mm, not {:.4g} x {:.4g}".format(*spacings)
    return None


def _not_ct(header: Dataset) -> str | None:
    if header.get("Modality") != "CT":
        return f"Modality is {header.get('Modality') or 'not given'}, not CT"
    if header.get("SOPClassUID") not in CT_CLASSES:
        return f"{class_name(header)} is not a CT image"
    return without_pixels(header) or _image_type(header) or _not_grey(header)


def without_pixels(header: Dataset) -> str | None:
    try:
        missing = [k for k in ("Rows", "Columns", "BitsAllocated") if not header.get(k)]
    except UNREADABLE:
        return "has a header that cannot be read"
    return f"has no pixels: {dictionary_description(missing[0])} is missing" if missing else None


def _image_type(header: Dataset, keyword: str = "ImageType") -> str | None:
    values = header.get(keyword) or []
    values = [values] if isinstance(values, str) else values
    return next((NOT_A_SLICE[value.upper()] for value in values if value.upper() in NOT_A_SLICE), None)


def _not_grey(header: Dataset) -> str | None:
    return "is in colour" if header.get("SamplesPerPixel", 1) != 1 else None


def class_name(header: Dataset) -> str:
    uid = header.get("SOPClassUID")
    return str(uid.name) if uid else "an object without SOP Class"


def planes_of(header: Dataset) -> list[Plane]:
    """The slices of one instance: one, or one per frame. Raises NotASlice."""
    try:
        if why := _not_ct(header):
            raise NotASlice(why)
        return _planes_of(header)
    except UNREADABLE as error:
        raise NotASlice("has a header that cannot be read") from error


def _planes_of(header: Dataset) -> list[Plane]:
    if "PerFrameFunctionalGroupsSequence" not in header:
        if frame_count(header) > 1:
            raise NotASlice("has several frames but does not say where they lie")
        return [_plane(header, header, None)]
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    frames = header.PerFrameFunctionalGroupsSequence
    return [_plane(header, _flat(frame, shared[0]), number) for number, frame in enumerate(frames, 1)]


FUNCTIONAL_GROUPS = (  # PS3.3 C.7.6.16.2: where a multi-frame image keeps what a single-frame one has at its top
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence",
)


def _flat(frame: Dataset, shared: Dataset) -> Dataset:
    """The attributes of one frame, its own before the shared ones, as if it were a single image."""
    flat = Dataset()
    for name in FUNCTIONAL_GROUPS:
        group = frame.get(name) or shared.get(name)
        if group:
            flat.update(group[0])
    return flat


def _plane(header: Dataset, place: Dataset, frame: int | None) -> Plane:
    if why := _image_type(place, "FrameType"):
        raise NotASlice(f"frame {frame} is a {why}")
    position = _numbers(place, "ImagePositionPatient", 3)
    cosines = _numbers(place, "ImageOrientationPatient", 6)
    spacing = _numbers(place, "PixelSpacing", 2)
    _numbers(place, "RescaleSlope", 1)
    _numbers(place, "RescaleIntercept", 1)
    row, column = cosines[:3], cosines[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 2 * DIRECTION:
        raise NotASlice("Image Orientation (Patient) is not two perpendicular unit vectors")
    if not header.get("FrameOfReferenceUID"):
        raise NotASlice("has no Frame of Reference UID")  # and without one no SEG can refer to several images
    if spacing.min() <= 0:
        raise NotASlice(f"Pixel Spacing is {spacing[0]:g} x {spacing[1]:g} mm")
    if str(place.get("RescaleType") or "") in NOT_HOUNSFIELD:
        raise NotASlice(f"pixel values are {place.RescaleType}, not Hounsfield units")
    return Plane(
        uid=str(header.SOPInstanceUID),
        frame=frame,
        position=position,
        row=row,
        column=column,
        pixel_spacing_mm=(float(spacing[0]), float(spacing[1])),
        shape=(int(header.Rows), int(header.Columns)),
        frame_of_reference=str(header.FrameOfReferenceUID),
        acquisition=str(header.get("AcquisitionNumber") or ""),
    )


def _numbers(place: Dataset, keyword: str, count: int) -> np.ndarray:
    """(count,) float64. Raises NotASlice for a missing, empty or unreadable attribute."""
    name = dictionary_description(keyword)
    try:
        value = place.get(keyword)
        if value is None or value == "":
            raise NotASlice(f"has no {name}")
        numbers = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except UNREADABLE as error:
        raise NotASlice(f"{name} is not {counted(count, 'number')}") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise NotASlice(f"{name} is not {counted(count, 'number')}")
    return numbers


def frame_count(header: Dataset) -> int:
    try:
        return int(header.get("NumberOfFrames") or 1)
    except UNREADABLE:
        return 1


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

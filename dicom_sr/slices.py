"""What a header says about each of its slices: whether it is one, where it lies, how its stored values become HU.

Read here for all who need it, so that what is judged, what is read and what is written are the same slices: the verdict
on a series, the reader of its pixels, and through `source.plane` the writers of results.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from pydicom.dataset import Dataset

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from dicom_sr.findings import ImageRef
from dicom_sr.frames import Frame, frames, rows_and_columns
from dicom_sr.image_type import why_no_slice
from dicom_sr.modalities import CALLED, VOLUME_CLASSES

HOUNSFIELD = {"", "HU", "US"}  # Rescale Type: absent means HU for CT, US is "unspecified", PS3.3 C.11.1.1.2

GREY = "MONOCHROME"  # 1 or 2, PS3.3 C.7.6.3.1.2: a value of PALETTE COLOR is a place in a table of colours
IN_COLOUR = {"COLOR", "TRUE_COLOR"}  # Pixel Presentation of a frame, C.8.16.2.1.1: so are its larger values

DIRECTION = 1e-3  # largest difference of direction cosines that are "the same"; viewers use this one too
PIXEL_SPACING = 1e-3  # share of it
OBLIQUE_DEGREES = 30.0  # from axial; beyond, organs no longer look as the models know them
SAME_PLACE_MM = 0.01  # apart, and less is the same place
UNEVEN = 0.1  # of the spacing is how far a step between slices may differ from it; but never less than:
UNEVEN_MM = 0.11  # positions are often written with one decimal
MOST_PIXELS = 1 << 26  # of one slice or picture: 8192 x 8192
MOST_VOXELS = 1 << 30  # of a series: 4096 slices of 512 x 512, 2 GB


class NotASlice(Exception):
    """An image that cannot be part of a volume, whatever the others are; the message says why."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: a single-frame image, or one frame of a multi-frame image."""

    ref: ImageRef
    position: np.ndarray  # (3,) patient position of the first pixel's centre, mm, LPS
    row: np.ndarray  # (3,) direction of increasing column index
    column: np.ndarray  # (3,) direction of increasing row index
    pixel_spacing_mm: tuple[float, float]  # between rows, between columns
    thickness_mm: float | None  # as the header says; None where it does not say
    shape: tuple[int, int]
    slope: float  # stored value x slope + intercept = HU of CT, else what the scanner's values mean
    intercept: float
    frame_of_reference: str
    frame: Frame = field(repr=False)

    @property
    def uid(self) -> str:
        return self.ref.sop_instance_uid

    @property
    def header(self) -> Dataset:
        return self.frame.header

    @cached_property
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


def difference(one: Slice, other: Slice) -> str | None:
    """None, or the first reason why `one` is not of the same volume as `other`."""
    if one.frame_of_reference != other.frame_of_reference:
        return "another frame of reference (FrameOfReferenceUID)"
    if max(np.abs(one.row - other.row).max(), np.abs(one.column - other.column).max()) > DIRECTION:
        how = "turned" if one.orientation == other.orientation else f"{one.orientation}, not {other.orientation}"
        return f"another orientation (ImageOrientationPatient): {how}"
    if one.shape != other.shape:
        return "another size (Rows, Columns): {} x {} pixels, not {} x {}".format(*one.shape, *other.shape)
    if not np.allclose(one.pixel_spacing_mm, other.pixel_spacing_mm, rtol=PIXEL_SPACING, atol=0):
        spacings = (*one.pixel_spacing_mm, *other.pixel_spacing_mm)
        return "another pixel spacing (PixelSpacing): {:.4g} x {:.4g} mm, not {:.4g} x {:.4g}".format(*spacings)
    return None


def slices_of(header: Dataset, modality: str = "CT", *, hounsfield: bool = True) -> list[Slice]:
    """The slices of one image of a modality: one, or one for each frame.

    hounsfield   its values must be Hounsfield units, and the slice as it was reconstructed. Else they are what the
                 header's rescaling makes of them, if it has any, and only what is no slice at all is none.

    Raises NotASlice when it is none, or when one of its frames is none; the reason names the attribute by its keyword.
    """
    found: list[Slice] = []
    try:
        if why := _not_of(header, modality):
            raise NotASlice(why)
        for frame in frames(header):
            try:
                found.append(_slice(frame, hounsfield))
            except (BadAttribute, NotASlice) as why_not:
                raise NotASlice(f"frame {frame.number}: {why_not}" if frame.number else str(why_not)) from why_not
    except BadAttribute as bad:
        raise NotASlice(str(bad)) from bad
    return found


def size_of(header: Dataset) -> tuple[int, int]:
    """(Rows, Columns) of an image, as far as one can be held. Raises BadAttribute."""
    rows, columns = rows_and_columns(header)
    if rows * columns > MOST_PIXELS:
        raise BadAttribute("Rows", f"x Columns is {rows} x {columns} pixels, at most {MOST_PIXELS} can be held")
    return rows, columns


def sop_of(header: Dataset) -> tuple[str, str]:
    """(SOP Class UID, SOP Instance UID). Raises BadAttribute."""
    return attributes.uid(header, "SOPClassUID"), attributes.uid(header, "SOPInstanceUID")


def class_name(header: Dataset) -> str:
    found = attributes.values(header, "SOPClassUID")
    return str(getattr(found[0], "name", found[0])) if found else "an object without SOPClassUID"


def why_no_image(header: Dataset, modality: str, classes: Collection[str], called: str) -> str | None:
    """None, or why it is no image with pixels of this modality and one of these SOP Classes. Raises BadAttribute.

    called   "a CT image"
    """
    stated = attributes.text(header, "Modality")
    if stated != modality:
        return f"Modality is {stated or 'not given'}, not {modality}"
    if sop_of(header)[0] not in classes:
        return f"{class_name(header)} is not {called} (SOPClassUID)"
    size_of(header)
    attributes.whole(header, "BitsAllocated", least=1)
    return None


def _not_of(header: Dataset, modality: str) -> str | None:
    """Raises BadAttribute."""
    if why := why_no_image(header, modality, VOLUME_CLASSES[modality], CALLED[modality]):
        return why
    if attributes.has(header, "SamplesPerPixel") and attributes.whole(header, "SamplesPerPixel") != 1:
        return "is in colour (SamplesPerPixel is not 1)"
    if (colours := attributes.text(header, "PhotometricInterpretation").upper()) and not colours.startswith(GREY):
        return f"is in colour (PhotometricInterpretation is {attributes.shown([colours])})"
    return None


def _slice(frame: Frame, hounsfield: bool) -> Slice:
    """Raises BadAttribute or NotASlice."""
    if why := why_no_slice(frame, reconstructed=hounsfield):
        raise NotASlice(why)
    if (presented := frame.text("PixelPresentation").upper()) in IN_COLOUR:
        raise NotASlice(f"is in colour (PixelPresentation is {presented})")
    header = frame.header
    position = np.array(frame.numbers("ImagePositionPatient", 3))
    cosines = np.array(frame.numbers("ImageOrientationPatient", 6))
    between_rows, between_columns = frame.numbers("PixelSpacing", 2)
    slope, intercept = _rescaling(frame, needed=hounsfield)
    row, column = cosines[:3], cosines[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > 2 * DIRECTION:
        raise BadAttribute("ImageOrientationPatient", "is not two perpendicular unit vectors")
    if min(between_rows, between_columns) <= 0:
        raise BadAttribute("PixelSpacing", f"is {between_rows:g} x {between_columns:g} mm; it must be above zero")
    if slope == 0:
        raise BadAttribute("RescaleSlope", f"is 0: stored values cannot become {'HU' if hounsfield else 'values'}")
    of_values = frame.values("RescaleType")
    kind = str(of_values[0]).strip() if len(of_values) == 1 else attributes.shown([str(v) for v in of_values])
    if hounsfield and of_values and kind.upper() not in HOUNSFIELD:
        raise NotASlice(f"pixel values are {kind}, not Hounsfield units (RescaleType)")
    return Slice(
        ref=ImageRef(*sop_of(header), frame.number),
        position=position,
        row=row,
        column=column,
        pixel_spacing_mm=(between_rows, between_columns),
        thickness_mm=thickness_mm(frame),
        shape=size_of(header),
        slope=slope,
        intercept=intercept,
        frame_of_reference=attributes.uid(header, "FrameOfReferenceUID"),  # without, no SEG can refer to several images
        frame=frame,
    )


def _rescaling(frame: Frame, *, needed: bool) -> tuple[float, float]:
    """(slope, intercept); 1 and 0 where the header says neither, if it need not. Raises BadAttribute."""
    if not needed and not frame.values("RescaleSlope") and not frame.values("RescaleIntercept"):
        return 1.0, 0.0
    [slope], [intercept] = frame.numbers("RescaleSlope", 1), frame.numbers("RescaleIntercept", 1)
    return slope, intercept


def thickness_mm(frame: Frame) -> float | None:
    """Slice Thickness as the header says it; None where it is missing or no thickness: it is Type 2, PS3.3 C.7.6.2."""
    written = thickness(frame)
    return None if written is None else float(written)


def thickness(frame: Frame) -> str | None:
    """As `thickness_mm`, as the header writes it."""
    try:
        [written] = frame.decimals("SliceThickness", 1)
    except BadAttribute:
        return None
    return written if float(written) > 0 else None

"""The images that findings speak of, as their headers tell it: where each lies, and whose study it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from dicom_sr.findings import Findings, ImageRef

CM = 3  # Physical Units X/Y Direction, PS3.3 C.8.5.5.1.15
TWO_D = 1  # Region Spatial Format, PS3.3 C.8.5.5.1.1
TISSUE = 1  # Region Data Type, PS3.3 C.8.5.5.1.2
BOX = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")


class EncodingError(Exception):
    """Findings that cannot be written as DICOM, or objects that would be wrong. The message says which and why."""


@dataclass(frozen=True)
class Plane:
    """Where one image (or frame) lies. Texts are decimal strings, so that copies are equal to the last digit.

    spacing_mm    (between rows, between columns); None if the image is not calibrated
    orientation   row and column cosines; None, like position, where there is no frame of reference
    """

    rows: int
    columns: int
    spacing_mm: tuple[str, str] | None
    thickness_mm: str | None
    orientation: tuple[str, ...] | None
    position: tuple[str, ...] | None
    frame_of_reference_uid: str | None

    @property
    def is_in_space(self) -> bool:
        """Whether a pixel of it has a position in the patient."""
        return None not in (self.frame_of_reference_uid, self.position, self.orientation, self.spacing_mm)

    def along_normal_mm(self) -> float:
        """Distance from the origin along the normal (row x column) of the image plane."""
        cosines = np.array(self.orientation, float)
        return float(np.dot(np.cross(cosines[:3], cosines[3:]), np.array(self.position, float)))

    def point_lps_mm(self, row: float, column: float) -> np.ndarray:
        """Patient position of the centre of pixel (row, column), equation C.7.6.2.1-1 of PS3.3. Only in space."""
        cosines = np.array(self.orientation, float)
        between_rows, between_columns = np.array(self.spacing_mm, float)
        corner = np.array(self.position, float)
        return corner + cosines[:3] * between_columns * column + cosines[3:] * between_rows * row

    def pixel_area_mm2(self) -> float | None:
        return None if self.spacing_mm is None else float(self.spacing_mm[0]) * float(self.spacing_mm[1])


def plane(header: Dataset, frame: int | None = None) -> Plane:
    """Where an image lies; for a multi-frame image with functional groups, where that frame (from 1) lies."""
    measures = _group(header, frame, "PixelMeasuresSequence")
    orientation = _group(header, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
    position = _group(header, frame, "PlanePositionSequence").get("ImagePositionPatient")
    thickness = measures.get("SliceThickness")
    return Plane(
        rows=int(header.Rows),
        columns=int(header.Columns),
        spacing_mm=_spacing_mm(header, measures),
        thickness_mm=_ds(thickness) if thickness not in (None, "") else None,
        orientation=tuple(_ds(v) for v in orientation) if orientation else None,
        position=tuple(_ds(v) for v in position) if position else None,
        frame_of_reference_uid=header.get("FrameOfReferenceUID") or None,
    )


def headers_by_uid(sources: Sequence[Dataset]) -> dict[str, Dataset]:
    return {str(header.SOPInstanceUID): header for header in sources}


def source_headers(findings: Findings, sources: Sequence[Dataset]) -> list[Dataset]:
    """The header of each of `findings.images`, in their order. Raises EncodingError for an image without one."""
    known = headers_by_uid(sources)
    missing = sorted({ref.sop_instance_uid for ref in findings.images} - known.keys())
    if missing:
        raise EncodingError(f"{len(missing)} of the images have no header among the sources, the first is {missing[0]}")
    if not findings.images:
        raise EncodingError("the findings name no images, so nothing says whose they are")
    headers = [known[ref.sop_instance_uid] for ref in findings.images]
    for keyword in ("StudyInstanceUID", "PatientID"):
        values = {str(header.get(keyword) or "") for header in headers}
        if len(values) > 1:
            raise EncodingError(f"the images have {len(values)} different values of {keyword}; results belong to one")
    return headers


def group_by_instance(images: Sequence[ImageRef]) -> dict[tuple[str, str], list[int]]:
    """(SOP Class UID, SOP Instance UID) -> the frames named, in order; no frames for a whole image."""
    instances: dict[tuple[str, str], list[int]] = {}
    for ref in images:
        frames = instances.setdefault((ref.sop_class_uid, ref.sop_instance_uid), [])
        if ref.frame is not None and ref.frame not in frames:
            frames.append(ref.frame)
    return instances


def _group(header: Dataset, frame: int | None, macro: str) -> Dataset:
    """The item of a functional group macro that holds for a frame; the header itself where there are no groups."""
    if frame is None or "PerFrameFunctionalGroupsSequence" not in header:
        return header
    for groups in (header.PerFrameFunctionalGroupsSequence[frame - 1], header.SharedFunctionalGroupsSequence[0]):
        if groups.get(macro):
            return groups[macro][0]
    return Dataset()


def calibrated_region(header: Dataset) -> tuple[tuple[float, float], tuple[int, int, int, int]] | None:
    """((mm per row, mm per column), (x0, y0, x1, y1)) of the largest 2-D tissue region calibrated in cm, or None.

    PS3.3 C.8.5.5: PhysicalDeltaX/Y are in the units of PhysicalUnitsX/YDirection, and may be negative.
    """
    found: list[tuple[int, tuple[float, float], tuple[int, int, int, int]]] = []
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        kind = (region.get("RegionSpatialFormat"), region.get("RegionDataType"))
        if units != (CM, CM) or kind != (TWO_D, TISSUE) or any(region.get(name) is None for name in BOX):
            continue
        column_mm, row_mm = 10 * abs(float(region.PhysicalDeltaX)), 10 * abs(float(region.PhysicalDeltaY))
        x0, y0, x1, y1 = (int(region[name].value) for name in BOX)
        if row_mm > 0 and column_mm > 0:
            found.append(((x1 - x0) * (y1 - y0), (row_mm, column_mm), (x0, y0, x1, y1)))
    return max(found)[1:] if found else None


def _spacing_mm(header: Dataset, measures: Dataset) -> tuple[str, str] | None:
    region = calibrated_region(header)
    if region is not None:
        (row_mm, column_mm), _ = region
        return format_number_as_ds(row_mm), format_number_as_ds(column_mm)
    if measures.get("PixelSpacing"):
        between_rows, between_columns = measures.PixelSpacing
        return _ds(between_rows), _ds(between_columns)
    return None


def _ds(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else format_number_as_ds(float(text))

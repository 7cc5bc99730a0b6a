"""The images that findings speak of, as their headers tell it: where each lies, and whose study it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from dicom_sr.findings import Findings, ImageRef
from dicom_sr.regions import largest_spacing, spacing_at


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


def plane(header: Dataset, frame: int | None = None, at: tuple[int, int] | None = None) -> Plane:
    """Where an image lies; for a multi-frame image with functional groups, where that frame (from 1) lies.

    at   (x, y) of a pixel: each region of an ultrasound image has its own calibration; without it the largest counts
    """
    measures = _group(header, frame, "PixelMeasuresSequence")
    orientation = _group(header, frame, "PlaneOrientationSequence").get("ImageOrientationPatient")
    position = _group(header, frame, "PlanePositionSequence").get("ImagePositionPatient")
    thickness = measures.get("SliceThickness")
    return Plane(
        rows=int(header.Rows),
        columns=int(header.Columns),
        spacing_mm=_spacing_mm(header, measures, at),
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


def _spacing_mm(header: Dataset, measures: Dataset, at: tuple[int, int] | None) -> tuple[str, str] | None:
    if header.get("SequenceOfUltrasoundRegions"):
        spacing_mm = largest_spacing(header) if at is None else spacing_at(header, *at)
        return None if spacing_mm is None else (format_number_as_ds(spacing_mm[0]), format_number_as_ds(spacing_mm[1]))
    if measures.get("PixelSpacing"):
        between_rows, between_columns = measures.PixelSpacing
        return _ds(between_rows), _ds(between_columns)
    return None


def _ds(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else format_number_as_ds(float(text))

"""The images that findings speak of, as their headers tell it: where each lies, and whose study it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from dicom_sr.findings import Findings, ImageRef
from dicom_sr.frames import Frame, rows_and_columns
from dicom_sr.frames import frame as frame_of
from dicom_sr.modalities import PROJECTION
from dicom_sr.regions import largest_spacing, spacing_at
from dicom_sr.slices import thickness

LONGEST_DS = 16  # characters of a decimal string, PS3.5 Table 6.2-1


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

    Raises EncodingError for an image without Rows and Columns. What else is missing, or cannot be read, is None.
    """
    one = frame_of(header, frame)
    try:
        rows, columns = rows_and_columns(header)
    except BadAttribute as bad:
        raise EncodingError(str(bad)) from bad
    return Plane(
        rows=rows,
        columns=columns,
        spacing_mm=_spacing_mm(one, at),
        thickness_mm=_shortened(thickness(one)),
        orientation=_decimals(one, "ImageOrientationPatient", 6),
        position=_decimals(one, "ImagePositionPatient", 3),
        frame_of_reference_uid=attributes.text(header, "FrameOfReferenceUID") or None,
    )


def between_mm(planes: Sequence[Plane]) -> float | None:
    """The mean distance of slices along their normal; None for a single one, and where they have no place."""
    if len(planes) < 2 or not all(place.is_in_space for place in planes):
        return None
    return abs(planes[-1].along_normal_mm() - planes[0].along_normal_mm()) / (len(planes) - 1)


def headers_by_uid(sources: Sequence[Dataset]) -> dict[str, Dataset]:
    return {attributes.text(header, "SOPInstanceUID"): header for header in sources}


def source_headers(findings: Findings, sources: Sequence[Dataset]) -> list[Dataset]:
    """The header of each of `findings.images`, in their order. Raises EncodingError for an image without one."""
    known = headers_by_uid(sources)
    missing = sorted({ref.sop_instance_uid for ref in findings.images} - known.keys())
    if missing:
        raise EncodingError(f"{len(missing)} of the images have no header among the sources, the first is {missing[0]}")
    if not findings.images:
        raise EncodingError("the findings name no images, so nothing says whose they are")
    headers = [known[ref.sop_instance_uid] for ref in findings.images]
    if differs := identity_differs(headers):
        raise EncodingError(differs)
    return headers


def identity_differs(headers: Sequence[Dataset]) -> str | None:
    """None, or in words why images are not of one patient and study; without the values.

    UIDs and texts are compared without the spaces and nulls that pad them, PS3.5 6.2. A patient is named by Patient ID
    and its issuer, PS3.3 C.7.1.1, where there is none by the name; and has one sex and date of birth, or the ID is of
    two. An image that does not say issuer, sex or date may be of any; so may one whose name is another under one ID.
    """
    for keyword in ("StudyInstanceUID", "PatientID"):
        several = {tuple(attributes.texts(header, keyword)) or ("",) for header in headers}
        if len(several) > 1:
            return f"the images have {len(several)} different values of {keyword}; results belong to one"
    issuers = {attributes.text(header, "IssuerOfPatientID") for header in headers} - {""}
    if len(issuers) > 1:
        return f"the images have {len(issuers)} different values of IssuerOfPatientID; results belong to one patient"
    for keyword in ("PatientBirthDate", "PatientSex", "PatientName"):
        people = {person(header).get(keyword, "") for header in headers} - {""}
        if len(people) > 1:
            return f"the images have {len(people)} different values of {keyword}; results belong to one patient"
    return None


def person(header: Dataset) -> dict[str, str]:
    """What tells a person from others that go by the same Patient ID, or by none, however it is written; "" for what
    says nothing."""
    sex = attributes.text(header, "PatientSex")[:1].upper()
    born = re.sub(r"\D", "", attributes.text(header, "PatientBirthDate"))
    told = {
        "PatientBirthDate": born if born.strip("0") else "",
        "PatientSex": sex if sex in ("M", "F") else "",  # O is also said of what is not known
    }
    if not attributes.text(header, "PatientID"):
        latin = attributes.text(header, "PatientName").split("=")[0]  # the first component group, PS3.5 6.2.1.2
        told["PatientName"] = " ".join(re.split(r"[\^\s]+", latin.casefold())).strip()
    return told


def group_by_instance(images: Sequence[ImageRef]) -> dict[tuple[str, str], list[int]]:
    """(SOP Class UID, SOP Instance UID) -> the frames named, in order; no frames for a whole image."""
    instances: dict[tuple[str, str], dict[int, None]] = {}
    for ref in images:
        frames = instances.setdefault((ref.sop_class_uid, ref.sop_instance_uid), {})
        if ref.frame is not None:
            frames[ref.frame] = None
    return {instance: list(frames) for instance, frames in instances.items()}


def _spacing_mm(frame: Frame, at: tuple[int, int] | None) -> tuple[str, str] | None:
    header = frame.header
    if attributes.items(header, "SequenceOfUltrasoundRegions"):
        spacing_mm = largest_spacing(header) if at is None else spacing_at(header, *at)
        return None if spacing_mm is None else (format_number_as_ds(spacing_mm[0]), format_number_as_ds(spacing_mm[1]))
    found = _decimals(frame, "PixelSpacing", 2)
    if found is None and attributes.text(header, "Modality") in PROJECTION:
        found = _decimals(frame, "ImagerPixelSpacing", 2)
    return None if found is None or min(map(float, found)) <= 0 else (found[0], found[1])


def _decimals(frame: Frame, keyword: str, count: int) -> tuple[str, ...] | None:
    """As the source writes them, so that copies are equal to the last digit; None where they cannot be used."""
    try:
        return tuple(_ds(each) for each in frame.decimals(keyword, count))
    except BadAttribute:
        return None


def _ds(text: str) -> str:
    return text if len(text) <= LONGEST_DS else format_number_as_ds(float(text))


def _shortened(text: str | None) -> str | None:
    return None if text is None else _ds(text)

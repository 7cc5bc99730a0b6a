"""What came back of a result: an edited Segmentation, or a note that rejects it. Whose it is; what was changed, see
edits.py.

An object names ours by UID: as source or derivation (PS3.3 C.7.6.16.2.6), as related (C.12.4) or, lesion by lesion, by
the Tracking UID of a segment (PS3.3 C.8.20.2), which editors keep. Nothing is guessed from places or dates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage, SegmentationStorage

from dicom_sr import attributes

SEGMENTATIONS = {str(SegmentationStorage), "1.2.840.10008.5.1.4.1.1.66.7"}  # and Label Map Segmentation
CLASSES = SEGMENTATIONS | {str(KeyObjectSelectionDocumentStorage)}

# Titles of a Key Object Selection, CID 7010, with which IHE RAD IOCM (RAD-66) takes objects out of use. Not 113039
# "Data Retention Policy Expired": that says nothing of the result
REJECTIONS = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
}
MODIFIER = ("113011", "DCM")  # Document Title Modifier: of 113001 the reason
REASONS = {  # CID 7011
    "111207": "Image artifact(s)",
    "111208": "Grid artifact(s)",
    "111209": "Positioning",
    "111210": "Motion blur",
    "111211": "Under exposed",
    "111212": "Over exposed",
    "111213": "No image",
    "111214": "Detector artifact(s)",
    "111215": "Artifact(s) other than grid or detector artifact",
    "111216": "Mechanical failure",
    "111217": "Electrical failure",
    "111218": "Software failure",
    "111219": "Inappropriate image processing",
    "111220": "Other failure",
    "111221": "Unknown failure",
    "113026": "Double exposure",
}
PERSON_OBSERVER = ("121008", "DCM")  # Person Observer Name, TID 1003
MOST_NAMED = 100_000  # UIDs of one object that are looked up
NAMES = {"ReferencedSOPInstanceUID", "SeriesInstanceUID"}


@dataclass(frozen=True)
class Named:
    """The UIDs by which an object may name one of ours."""

    instances: frozenset[str]
    series: frozenset[str]
    tracking: frozenset[str]  # of lesions


def named(dataset: Dataset) -> Named:
    """Below its own identity: its series and itself are not among them."""
    found: dict[str, set[str]] = {"ReferencedSOPInstanceUID": set(), "SeriesInstanceUID": set(), "TrackingUID": set()}
    for element in _below(dataset):
        if element.keyword in found and element.value and sum(map(len, found.values())) < MOST_NAMED:
            found[element.keyword].add(str(element.value))
    instances, series, tracking = (frozenset(found[key]) for key in found)
    return Named(instances, series - {attributes.text(dataset, "SeriesInstanceUID")}, tracking)


def _below(dataset: Dataset) -> Iterator[DataElement]:
    for sequence in attributes.elements(dataset):
        if sequence.VR == "SQ":
            for item in sequence.value or ():
                yield from attributes.elements(item)
                yield from _below(item)


def rejection(dataset: Dataset) -> str | None:
    """Why a Key Object Selection rejects what it names, in the Standard's words for its codes: its own may name a
    patient. None of any other object."""
    if attributes.text(dataset, "SOPClassUID") != KeyObjectSelectionDocumentStorage:
        return None
    title = next(iter(attributes.items(dataset, "ConceptNameCodeSequence")), Dataset())
    value, scheme = _code(title)
    if scheme != "DCM" or value not in REJECTIONS:
        return None
    given = [
        _code(code)
        for item in attributes.items(dataset, "ContentSequence")
        if _concept(item) == MODIFIER
        for code in attributes.items(item, "ConceptCodeSequence")
    ]
    reasons = [REASONS[value] for value, scheme in given if scheme == "DCM" and value in REASONS]
    return ": ".join([REJECTIONS[value], *([", ".join(reasons)] if reasons else [])])


def rejected(dataset: Dataset) -> frozenset[str]:
    """SOP Instance UIDs that a Key Object Selection names, in its tree and in its evidence (PS3.3 C.17.6.2.1)."""
    return named(dataset).instances


def author(dataset: Dataset) -> str:
    """Who made it, of the hospital's staff: Content Creator's Name, the Person Observer, else Operators' Name."""
    creator = attributes.text(dataset, "ContentCreatorName")
    observers = (
        attributes.text(item, "PersonName")
        for item in attributes.items(dataset, "ContentSequence")
        if _concept(item) == PERSON_OBSERVER
    )
    operators = ", ".join(attributes.texts(dataset, "OperatorsName"))
    return next((name for name in (creator, *observers, operators) if name), "")


def made_at(dataset: Dataset) -> str:
    """When, as its maker's clock had it: Content Date and Time, else those of its creation; else ""."""
    for date, time in (("ContentDate", "ContentTime"), ("InstanceCreationDate", "InstanceCreationTime")):
        day, hour = attributes.text(dataset, date), attributes.text(dataset, time)
        if len(day) == 8 and day.isdigit():
            zone = attributes.text(dataset, "TimezoneOffsetFromUTC")
            of_day = f" {hour[:2]}:{hour[2:4]}" if hour[:4].isdigit() and len(hour) >= 4 else ""
            return f"{day[:4]}-{day[4:6]}-{day[6:]}{of_day}{f' {zone}' if of_day and zone else ''}"
    return ""


def _code(item: Dataset) -> tuple[str, str]:
    return attributes.text(item, "CodeValue"), attributes.text(item, "CodingSchemeDesignator")


def _concept(item: Dataset) -> tuple[str, str]:
    return _code(next(iter(attributes.items(item, "ConceptNameCodeSequence")), Dataset()))

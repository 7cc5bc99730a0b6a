"""The TID 1500 report in simpler words: as Enhanced SR (PS3.3 A.35.2), or as Basic Text SR (A.35.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import BasicTextSRStorage, ComprehensiveSRStorage, EnhancedSRStorage

from dicom_sr import codes, read
from dicom_sr.derived import another, derived, with_file_meta
from dicom_sr.findings import ImageRef, Measurement
from dicom_sr.hierarchy import hierarchy, named_in
from dicom_sr.previous import compared_with
from dicom_sr.report import NOT_CALIBRATED, OHIF_TOOL, WHOLE
from dicom_sr.rounding import in_words
from dicom_sr.summary import place

DIAGNOSTIC_IMAGING_REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")  # CID 7000
FINDINGS = Code("121070", "DCM", "Findings")  # CID 7001
OBSERVED_BY = {  # TID 1004, which of them Basic Text SR takes over
    codes.DEVICE_OBSERVER_NAME.value,
    codes.DEVICE_OBSERVER_MANUFACTURER.value,
    codes.DEVICE_OBSERVER_MODEL_NAME.value,
    codes.DEVICE_OBSERVER_SERIAL_NUMBER.value,
    "121005",  # Observer Type
    "121012",  # Device Observer UID
}


@dataclass(frozen=True)
class Sentence:
    """One statement of a report, and the image it was made on."""

    text: str
    image: ImageRef | None = None
    about: str = ""  # Tracking UID of the finding, if it is about one
    is_summary: bool = False


def comprehensive_sr(report: Dataset) -> list[Dataset]:
    """The same tree as a Comprehensive SR (PS3.3 A.35.3); nothing in it lies in space, so nothing is lost."""
    if report.SOPClassUID == ComprehensiveSRStorage:  # a result of an earlier version
        return [report]
    result = another(report, "comprehensive")
    result.SOPClassUID = ComprehensiveSRStorage
    with_file_meta(result)
    return [result]


def enhanced_sr(report: Dataset) -> list[Dataset]:
    """The same tree as an Enhanced SR: it has SCOORD and NUM too, only no references between content items."""
    result = another(report, "enhanced")
    result.SOPClassUID = EnhancedSRStorage
    with_file_meta(result)
    return [result]


def basic_text_sr(report: Dataset) -> list[Dataset]:
    """What the report says, in sentences; each names the image it was made on."""
    result = derived(report, sop_class_uid=BasicTextSRStorage, modality="SR", role="basic text", series_number=9220)
    for keyword in (
        "ContentDate",
        "ContentTime",
        "ReferencedPerformedProcedureStepSequence",
        "PerformedProcedureCodeSequence",
        "CompletionFlag",
        "VerificationFlag",
        "ValueType",
        "ContinuityOfContent",
    ):
        result[keyword] = report[keyword]
    result.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(DIAGNOSTIC_IMAGING_REPORT)]
    section = hd.sr.ContainerContentItem(FINDINGS, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS)
    stated = []
    named: dict[str, str] = {}
    for sentence in sentences(report):
        item = hd.sr.TextContentItem(
            codes.SUMMARY if sentence.is_summary else codes.FINDING if sentence.image else codes.COMMENT,
            sentence.text,
            relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
        )
        if sentence.image is not None:
            named[sentence.image.sop_instance_uid] = sentence.image.sop_class_uid
            item.add_new("ContentSequence", "SQ", [_inferred_from(sentence.image)])
        stated.append(item)
    section.add_new("ContentSequence", "SQ", stated)
    observer = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue in OBSERVED_BY]
    result.ContentSequence = [*observer, section]
    result.CurrentRequestedProcedureEvidenceSequence = evidence(report, set(named))
    if not named:
        del result.CurrentRequestedProcedureEvidenceSequence
    return [result]


def sentences(report: Dataset) -> Iterator[Sentence]:
    """The summary, then what the report says of each finding, of the images as a whole, and besides."""
    if summary := read.summary(report):
        yield Sentence(summary, is_summary=True)
    groups = read.groups(report)
    for group in groups:
        if group.tracking_id.startswith(OHIF_TOOL):  # drawn for a viewer; its numbers are in the finding's own group
            continue
        kind = [group.type.meaning.lower()] if group.type else []
        facts = [
            ", ".join([*kind, *([place(group.site, group.laterality)] if group.site else []), *group.remarks]),
            *(_number(measurement, group) for measurement in group.measurements),
            *(f"{e.name.meaning}: {e.value.meaning}" for e in group.evaluations),
            *([group.change] if group.change else []),
        ]
        about = group.tracking_uid if read.is_finding(group) else ""
        text = "; ".join(each for each in facts if each)
        yield Sentence(f"{group.tracking_id}: {text}.", _image(group, groups), about)
    compared = compared_with(report)
    for remark in (*(compared.remarks if compared else ()), *read.comments(report)):
        yield Sentence(remark)


def evidence(report: Dataset, instances: set[str]) -> list[Dataset]:
    """The part of the report's evidence that names these instances."""
    named = named_in(report, "CurrentRequestedProcedureEvidenceSequence")
    return hierarchy(each for each in named if each.sop_instance_uid in instances)


def _image(group: read.Group, groups: Sequence[read.Group]) -> ImageRef | None:
    """The image a finding was drawn on: by its own region, or by the contour of the same name."""
    if group.tracking_id == WHOLE:
        return None
    drawn = [other for other in groups if other.tracking_uid == group.tracking_uid]
    return next((line.image for other in drawn for line in other.lines), None)


def _number(measurement: Measurement, group: read.Group) -> str:
    how = f" ({measurement.derivation.meaning.lower()})" if measurement.derivation else ""
    doubt = NOT_CALIBRATED if measurement.name in group.not_calibrated else ""
    return f"{measurement.name.meaning}{how} {in_words(measurement.value, measurement.unit)}{doubt}"


def _inferred_from(image: ImageRef) -> hd.sr.ImageContentItem:
    return hd.sr.ImageContentItem(
        name=hd.sr.CodedConcept("260753009", "SCT", "Source"),
        referenced_sop_class_uid=image.sop_class_uid,
        referenced_sop_instance_uid=image.sop_instance_uid,
        referenced_frame_numbers=[image.frame] if image.frame else None,
        relationship_type=hd.sr.RelationshipTypeValues.INFERRED_FROM,
    )

"""What a report says of an earlier study, written and read: TID 1500 and 1411 are extensible, PS3.16.

    root > CONTAINER (18834-2, LN, Previous Findings)       the report compared with, its study's date, days between,
                                                            residual of the registration, number of lesions gone, words
    TID 1411 group > UIDREF (121348, DCM, Temporal Predecessor)    the lesion's Tracking UID in the earlier report
    TID 1411 group > TEXT (111021, DCM, Description of Change)

The earlier report itself is named in Pertinent Other Evidence Sequence (PS3.3 C.17.2). A matched lesion keeps a
Tracking UID of its own: pairing by position can be wrong, and two lesions once made one in an archive stay so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.findings import ComparedWith, Finding
from dicom_sr.hierarchy import Named, hierarchy, named_in
from dicom_sr.rounding import rounded, state

CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS


def change_items(finding: Finding) -> Iterator[hd.sr.ContentItem]:
    """What stands in a finding's own group besides the numbers."""
    if finding.predecessor_uid is not None:
        yield hd.sr.UIDRefContentItem(codes.TEMPORAL_PREDECESSOR, finding.predecessor_uid, CONTAINS)
    if finding.change:
        yield hd.sr.TextContentItem(codes.DESCRIPTION_OF_CHANGE, finding.change, CONTAINS)


def previous_findings(compared: ComparedWith) -> hd.sr.ContainerContentItem:
    container = hd.sr.ContainerContentItem(codes.PREVIOUS_FINDINGS, relationship_type=CONTAINS)
    days = _number(codes.TEMPORAL_OFFSET, compared.days, codes.DAYS)
    since = hd.sr.CodeContentItem(
        codes.TEMPORAL_EVENT_TYPE, codes.PRIOR_STUDY, hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD
    )
    days.ContentSequence = hd.sr.ContentSequence([since])
    container.ContentSequence = hd.sr.ContentSequence(
        [
            hd.sr.CompositeContentItem(
                codes.PRIOR_REPORT, compared.sop_class_uid, compared.sop_instance_uid, relationship_type=CONTAINS
            ),
            hd.sr.DateContentItem(codes.STUDY_DATE, compared.study_date, CONTAINS),
            days,
            _number(codes.REGISTRATION_RESIDUAL, compared.residual_mm, codes.MM),
            _number(codes.NO_LONGER_FOUND, compared.no_longer_found, codes.LESIONS),
            *(hd.sr.TextContentItem(codes.COMMENT, text, CONTAINS) for text in compared.remarks),
        ]
    )
    return container


def pertinent_evidence(compared: ComparedWith) -> list[Dataset]:
    """Items of Pertinent Other Evidence Sequence."""
    return hierarchy(
        [Named(compared.study_uid, compared.series_uid, compared.sop_class_uid, compared.sop_instance_uid)]
    )


def pertinent_uids(report: Dataset) -> set[str]:
    """SOP Instance UIDs of what a report names as pertinent, without being made of it."""
    return {each.sop_instance_uid for each in named_in(report, "PertinentOtherEvidenceSequence")}


def compared_with(report: Dataset) -> ComparedWith | None:
    """The inverse of `previous_findings` and `pertinent_evidence`."""
    containers = _named(report.get("ContentSequence") or (), codes.PREVIOUS_FINDINGS)
    if not containers:
        return None
    items = containers[0].ContentSequence
    [prior] = _named(items, codes.PRIOR_REPORT)
    reference = prior.ReferencedSOPSequence[0]
    pertinent = next(named_in(report, "PertinentOtherEvidenceSequence"))

    def value(name: Code) -> float:
        return float(_named(items, name)[0].MeasuredValueSequence[0].NumericValue)

    return ComparedWith(
        study_uid=pertinent.study_uid,
        series_uid=pertinent.series_uid,
        sop_class_uid=str(reference.ReferencedSOPClassUID),
        sop_instance_uid=str(reference.ReferencedSOPInstanceUID),
        study_date=date.fromisoformat(str(_named(items, codes.STUDY_DATE)[0].Date)),
        days=int(value(codes.TEMPORAL_OFFSET)),
        residual_mm=value(codes.REGISTRATION_RESIDUAL),
        no_longer_found=int(value(codes.NO_LONGER_FOUND)),
        remarks=tuple(str(item.TextValue) for item in _named(items, codes.COMMENT)),
    )


def predecessor_and_change(group: Dataset) -> tuple[str | None, str]:
    """The inverse of `change_items`."""
    uids = _named(group.ContentSequence, codes.TEMPORAL_PREDECESSOR)
    texts = _named(group.ContentSequence, codes.DESCRIPTION_OF_CHANGE)
    return (str(uids[0].UID) if uids else None), (str(texts[0].TextValue) if texts else "")


def _number(name: Code, value: float, unit: Code) -> hd.sr.NumContentItem:
    item = hd.sr.NumContentItem(name, rounded(value, unit), unit, relationship_type=CONTAINS)
    state(item, value, unit)
    return item


def _named(items: Sequence[Dataset], name: Code) -> list[Dataset]:
    return [
        item
        for item in items
        if (concepts := item.get("ConceptNameCodeSequence"))
        and (concepts[0].CodeValue, concepts[0].CodingSchemeDesignator) == (name.value, name.scheme_designator)
    ]

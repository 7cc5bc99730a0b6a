"""The images with findings as a Key Object Selection Document, PS3.3 A.35.4 and TID 2010."""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicom_sr import codes, read
from dicom_sr.derived import Results, derived, mark_findings
from dicom_sr.findings import ImageRef
from dicom_sr.header import RESEARCH_ONLY
from dicom_sr.plain_sr import OBSERVED_BY, evidence
from dicom_sr.source import EncodingError

OF_INTEREST = Code("113000", "DCM", "Of Interest")  # CID 7010


def key_object_selection(report: Dataset, results: Results) -> list[Dataset]:
    """One document that names the image of each finding. Raises EncodingError when there is no finding."""
    named = [
        (finding.key, finding.segment.label)
        for original in (*results.segmentations, report)
        for finding in mark_findings(original, report)
    ]
    on_image = [each for each in read.groups(report) if each.template == "1501" and read.is_finding(each)]
    named += [(group.lines[0].image, group.tracking_id) for group in on_image if group.lines]
    if not named:
        raise EncodingError("nothing was found, so no image is selected")
    labels: dict[ImageRef, list[str]] = {}
    for ref, label in named:
        labels.setdefault(ref, []).append(label)
    result = derived(
        report,
        sop_class_uid=KeyObjectSelectionDocumentStorage,
        modality="KO",
        role="key objects",
        series_number=9600,
    )
    result.ContentDate, result.ContentTime = report.ContentDate, report.ContentTime
    result.ReferencedPerformedProcedureStepSequence = []
    images = [
        hd.sr.ImageContentItem(
            name=hd.sr.CodedConcept("260753009", "SCT", "Source"),
            referenced_sop_class_uid=ref.sop_class_uid,
            referenced_sop_instance_uid=ref.sop_instance_uid,
            referenced_frame_numbers=[ref.frame] if ref.frame else None,
            relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
        )
        for ref in labels
    ]
    description = hd.sr.TextContentItem(
        codes.KEY_OBJECT_DESCRIPTION,
        f"{', '.join(label for group in labels.values() for label in group)}. {RESEARCH_ONLY}.",
        relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
    )
    tree = hd.sr.ContainerContentItem(OF_INTEREST, template_id="2010")
    observer = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue in OBSERVED_BY]
    tree.add_new("ContentSequence", "SQ", [*observer, description, *images])
    result.update(tree)
    result.CurrentRequestedProcedureEvidenceSequence = evidence(report, {ref.sop_instance_uid for ref in labels})
    return [result]

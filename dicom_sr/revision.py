"""Results that replace earlier ones: Predecessor Documents (PS3.3 C.17.2) and the note that has those hidden.

The note is a Key Object Selection "Rejected for Quality Reasons" (PS3.16 TID 2010), as IHE Imaging Object Change
Management reads it (RAD TF-3 4.66): an archive that honours it no longer shows what the note names.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicom_sr import codes
from dicom_sr.copies import ALWAYS_COPIED, COPIED_IF_PRESENT
from dicom_sr.findings import ImageRef
from dicom_sr.header import OF_ONE_ANALYSIS, code_item, image_reference
from dicom_sr.hierarchy import Named, hierarchy
from dicom_sr.uids import child_uid

SERIES_NUMBER = 9290
SR_CLASSES = "1.2.840.10008.5.1.4.1.1.88."  # the root of the SR storage classes, PS3.4 Table B.5-1

# Of the shared modules, what a note has in common with the report it comes with.
COMMON = (
    *ALWAYS_COPIED,
    *COPIED_IF_PRESENT,
    *OF_ONE_ANALYSIS,
    "ContentDate",
    "ContentTime",
    "InstanceNumber",
)


@dataclass(frozen=True)
class Written:
    """One object of an earlier result, in the study of the new one."""

    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str

    @property
    def is_report(self) -> bool:
        is_sr = self.sop_class_uid.startswith(SR_CLASSES)
        return is_sr and self.sop_class_uid != KeyObjectSelectionDocumentStorage


def name_predecessors(report: Dataset, replaces: Sequence[Written]) -> None:
    """Predecessor Documents Sequence: the reports among what is replaced. None: the attribute is left out."""
    documents = [each for each in replaces if each.is_report]
    if documents:
        report.PredecessorDocumentsSequence = _named(report.StudyInstanceUID, documents)


def _named(study_uid: str, objects: Sequence[Written]) -> list[Dataset]:
    return hierarchy(Named(study_uid, each.series_uid, each.sop_class_uid, each.sop_instance_uid) for each in objects)


def rejection_note(report: Dataset, replaces: Sequence[Written]) -> Dataset:
    """The note that rejects what `report` and the objects sent with it replace; of the study and date of the report."""
    note = Dataset()
    for keyword in COMMON:
        if keyword in report:
            note.add(copy.deepcopy(report[keyword]))
    note.SOPClassUID = KeyObjectSelectionDocumentStorage
    note.SOPInstanceUID = child_uid(report.SOPInstanceUID, "rejection note")
    note.SeriesInstanceUID = child_uid(report.SOPInstanceUID, "rejection note series")
    note.Modality = "KO"
    note.SeriesNumber = SERIES_NUMBER
    note.SeriesDescription = f"AI rejection note: replaced by {report.SeriesDescription}"[:64].strip()
    note.ReferencedPerformedProcedureStepSequence = []  # Type 2, PS3.3 C.17.6.1
    note.CurrentRequestedProcedureEvidenceSequence = _named(report.StudyInstanceUID, replaces)
    note.ValueType = "CONTAINER"
    note.ConceptNameCodeSequence = [code_item(codes.REJECTED_FOR_QUALITY_REASONS)]
    note.ContinuityOfContent = "SEPARATE"
    note.ContentTemplateSequence = [Dataset()]
    note.ContentTemplateSequence[0].MappingResource = "DCMR"
    note.ContentTemplateSequence[0].TemplateIdentifier = "2010"
    note.ContentSequence = [
        _text(codes.KEY_OBJECT_DESCRIPTION, f"Replaced by {report.SeriesDescription}"),
        *(_item(each) for each in replaces),
    ]
    note.file_meta = copy.deepcopy(report.file_meta)
    note.file_meta.MediaStorageSOPClassUID = note.SOPClassUID
    note.file_meta.MediaStorageSOPInstanceUID = note.SOPInstanceUID
    return note


def _item(written: Written) -> Dataset:
    """TID 2010 rows 5 and 7: images (a Segmentation is one), and composite objects that are none."""
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "COMPOSITE" if written.is_report else "IMAGE"
    item.ReferencedSOPSequence = [image_reference(ImageRef(written.sop_class_uid, written.sop_instance_uid))]
    return item


def _text(name: Code, text: str) -> Dataset:
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "TEXT"
    item.ConceptNameCodeSequence = [code_item(name)]
    item.TextValue = text
    return item

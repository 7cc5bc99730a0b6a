"""Segmentation -> RT Structure Set IOD, PS3.3 A.19: contours along pixel edges, in patient millimetres.

Written with pydicom; highdicom has none. Only for images that lie in space. Implicit VR Little Endian, because the
Contour Data of a large part does not fit into the 64 KiB that an explicit DS may have.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from dicom_sr.derived import Marked, Results, derived, mark_findings
from dicom_sr.findings import ImageRef
from dicom_sr.header import RESEARCH_ONLY, image_reference
from dicom_sr.outline import keyhole, outlines
from dicom_sr.source import EncodingError, Plane, plane

DETACHED_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # what RT Referenced Study Sequence names a study by
CORNER = 0.5  # a pixel's outer corner lies half a pixel before its centre, PS3.3 C.18.6.1.1 and C.7.6.2.1.1


def rt_structure_set(segmentation: Dataset, results: Results) -> list[Dataset]:
    """One ROI per segment, one contour per connected part and image; holes are joined to their part by a keyhole.

    Raises EncodingError: an image has no place in the patient, or is not there.
    """
    findings = mark_findings(segmentation, results.report)
    refs = sorted({ref for finding in findings for ref in finding.segment.masks}, key=lambda ref: _order(ref, results))
    planes = {ref: plane(results.source(ref), ref.frame) for ref in refs}
    if not all(place.is_in_space for place in planes.values()):
        raise EncodingError("the images have no place in the patient")

    structures = derived(
        segmentation, sop_class_uid=RTStructureSetStorage, modality="RTSTRUCT", role="rtstruct", series_number=9300
    )
    structures.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    structures.OperatorsName = None
    structures.FrameOfReferenceUID = segmentation.FrameOfReferenceUID
    structures.PositionReferenceIndicator = segmentation.get("PositionReferenceIndicator")
    structures.StructureSetLabel = "AI FINDINGS"
    structures.StructureSetDescription = RESEARCH_ONLY
    structures.StructureSetDate, structures.StructureSetTime = segmentation.ContentDate, segmentation.ContentTime
    structures.ReferencedFrameOfReferenceSequence = [_frame_of_reference(segmentation, refs, results)]
    structures.StructureSetROISequence = [_roi(finding, segmentation) for finding in findings]
    structures.ROIContourSequence = [_contours(finding, refs, planes) for finding in findings]
    structures.RTROIObservationsSequence = [_observation(finding) for finding in findings]
    structures.ApprovalStatus = "UNAPPROVED"
    return [structures]


def _order(ref: ImageRef, results: Results) -> tuple[float, str, int]:
    place = plane(results.source(ref), ref.frame)
    return place.along_normal_mm() if place.is_in_space else 0.0, ref.sop_instance_uid, ref.frame or 0


def _frame_of_reference(segmentation: Dataset, refs: list[ImageRef], results: Results) -> Dataset:
    series: dict[str, Dataset] = {}
    for ref in refs:
        uid = str(results.source(ref).SeriesInstanceUID)
        if uid not in series:
            series[uid] = Dataset()
            series[uid].SeriesInstanceUID = uid
            series[uid].ContourImageSequence = []
        series[uid].ContourImageSequence.append(image_reference(ref))
    study = Dataset()
    study.ReferencedSOPClassUID = DETACHED_STUDY_MANAGEMENT
    study.ReferencedSOPInstanceUID = segmentation.StudyInstanceUID
    study.RTReferencedSeriesSequence = list(series.values())
    space = Dataset()
    space.FrameOfReferenceUID = segmentation.FrameOfReferenceUID
    space.RTReferencedStudySequence = [study]
    return space


def _roi(finding: Marked, segmentation: Dataset) -> Dataset:
    roi = Dataset()
    roi.ROINumber = finding.segment.number
    roi.ReferencedFrameOfReferenceUID = segmentation.FrameOfReferenceUID
    roi.ROIName = finding.segment.label
    roi.ROIGenerationAlgorithm = "AUTOMATIC"
    roi.ROIGenerationDescription = str(segmentation.ManufacturerModelName)[:64]
    return roi


def _contours(finding: Marked, refs: list[ImageRef], planes: dict[ImageRef, Plane]) -> Dataset:
    contours = Dataset()
    contours.ROIDisplayColor = list(finding.colour)
    contours.ReferencedROINumber = finding.segment.number
    contours.ContourSequence = []
    for ref in refs:
        for loops in outlines(finding.segment.masks[ref]) if ref in finding.segment.masks else ():
            corners = keyhole(loops)[:-1]  # CLOSED_PLANAR closes itself
            points = [planes[ref].point_lps_mm(row - CORNER, column - CORNER) for column, row in corners]
            contour = Dataset()
            contour.ContourImageSequence = [image_reference(ref)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourNumber = len(contours.ContourSequence) + 1
            contour.ContourData = [f"{mm:.4f}" for mm in np.ravel(points)]
            contours.ContourSequence.append(contour)
    return contours


def _observation(finding: Marked) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = finding.segment.number
    observation.ReferencedROINumber = finding.segment.number
    observation.ROIObservationLabel = finding.segment.label[:16]
    observation.RTROIInterpretedType = None  # none of the Standard's terms: a finding is no target
    observation.ROIInterpreter = None
    return observation

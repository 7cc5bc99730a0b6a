"""Findings -> TID 1500 Imaging Measurement Report, PS3.16: a summary first, then one group for each finding.

Volume (CT): TID 1411, tied to the segment. Image (ultrasound): TID 1410, with the contour. In both the axes are drawn
below their numbers. A TID 1411 group has one item more than its template: the outline on the key image (111041, DCM,
"Outline"), for a viewer that finds no coordinates in a group has nothing to show, and OHIF's whole page breaks. OHIF
shows such groups with our own numbers and does not measure again. For a destination whose readers want to work on the
measurements there, `hydratable` writes the report in another way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from dicom_sr import attributes, codes
from dicom_sr.findings import Evaluation, Finding, Findings, ImageRef, Measurement
from dicom_sr.header import RESEARCH_ONLY, result_header
from dicom_sr.hierarchy import Named, hierarchy
from dicom_sr.outline import outline
from dicom_sr.previous import change_items, pertinent_evidence, pertinent_uids, previous_findings
from dicom_sr.rounding import rounded, state
from dicom_sr.seg import plane_mask, tracking_uid
from dicom_sr.source import EncodingError, Plane, group_by_instance, headers_by_uid, plane, source_headers
from dicom_sr.summary import image_name, summary
from dicom_sr.uids import device_uid, result_uid

OHIF_TOOL = "Cornerstone3DTools@^0.1.0:"  # OHIF 3.13 makes measurements of groups with this Tracking Identifier
CONTOUR = f"{OHIF_TOOL}PlanarFreehandROI"
CALIPERS = f"{OHIF_TOOL}Bidirectional"
WHOLE = "Whole image"
BOXED = "a box round it, not its outline"  # a comment in the group of such a finding
WARNING = "Warning: "
REASON = "Reason: "  # of a series that was not run
NOT_CALIBRATED = ", not calibrated"  # how the meaning of such a probability ends

GroupOfOne = TypeVar(
    "GroupOfOne",
    hd.sr.MeasurementsAndQualitativeEvaluations,
    hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations,
    hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations,
)

Group = (
    hd.sr.MeasurementsAndQualitativeEvaluations
    | hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations
    | hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations
)


def report(
    findings: Findings,
    sources: Sequence[Dataset],
    *,
    when: datetime,
    revision: int = 1,
    segmentations: Sequence[Dataset] = (),
) -> Dataset:
    """The report, in a series of its own. Nothing found is a report too: it says what was looked for, and absent.

    sources         headers of `findings.images`, in any order
    segmentations   what `seg.segmentations` made of the same findings; TID 1411 groups refer to their segments

    Raises EncodingError if a source is missing.
    """
    return _Report(findings, sources, when, revision, segmentations).document()


class _Report:
    looked = True  # whether an algorithm looked at the images

    def __init__(
        self,
        findings: Findings,
        sources: Sequence[Dataset],
        when: datetime,
        revision: int,
        segmentations: Sequence[Dataset],
    ) -> None:
        self.findings = findings
        self.headers = source_headers(findings, sources)
        self.source = self.headers[0]
        self.is_ct = attributes.text(self.source, "Modality") == "CT"
        self.when, self.revision = when, revision
        self.segmentations = segmentations
        self.segment_of = {  # Tracking UID -> (Segmentation, segment number)
            segment.TrackingUID: (segmentation, int(segment.SegmentNumber))
            for segmentation in segmentations
            for segment in segmentation.SegmentSequence
        }

    def document(self) -> Dataset:
        document = result_header(
            self.findings,
            self.source,
            sop_class_uid=Comprehensive3DSRStorage,
            modality="SR",
            when=self.when,
            revision=self.revision,
        )
        document.ReferencedPerformedProcedureStepSequence = []  # Type 2, PS3.3 C.17.1
        document.PerformedProcedureCodeSequence = []  # Type 2, PS3.3 C.17.2
        document.CompletionFlag = "COMPLETE"
        document.VerificationFlag = "UNVERIFIED"
        tree = hd.sr.MeasurementReport(  # no image library (optional): what it says, every image says itself
            observation_context=self.observer(),
            procedure_reported=codes.CT_PROCEDURE if self.is_ct else codes.IMAGING_PROCEDURE,
            imaging_measurements=list(self.groups()),
            title=codes.IMAGING_MEASUREMENT_REPORT,
        )[0]
        first = next(k for k, item in enumerate(tree.ContentSequence) if item.name == codes.IMAGING_MEASUREMENTS)
        tree.ContentSequence.insert(first, _text(codes.SUMMARY, self.summary()))
        tree.ContentSequence.extend([*self.absent(), *self.remarks()])
        if self.findings.compared_with is not None:
            tree.ContentSequence.append(previous_findings(self.findings.compared_with))
            document.PertinentOtherEvidenceSequence = pertinent_evidence(self.findings.compared_with)
        document.update(tree)
        document.CurrentRequestedProcedureEvidenceSequence = self.evidence(document)
        return document

    # ------------------------------------------------------------------------------------------- who says it, of what

    def observer(self) -> hd.sr.ObservationContext:
        """TID 1002 and 1004: a device."""
        algorithm = self.findings.algorithm
        return hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(
                observer_type=hd.sr.CodedConcept.from_code(codes.DEVICE),
                observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                    uid=device_uid(algorithm.manufacturer, algorithm.name, algorithm.version),
                    name=self.findings.pipeline,
                    manufacturer_name=algorithm.manufacturer,
                    model_name=algorithm.name,
                    serial_number=algorithm.version,
                ),
            )
        )

    def algorithm(self) -> hd.sr.AlgorithmIdentification:
        """TID 4019."""
        algorithm = self.findings.algorithm
        return hd.sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            family=algorithm.family,
            manufacturer=algorithm.manufacturer,
        )

    def evidence(self, document: Dataset) -> list[Dataset]:
        """What the tree refers to, and nothing else: Hierarchical SOP Instance Reference, PS3.3 Table C.17-3."""
        known = headers_by_uid([*self.headers, *self.segmentations])
        pertinent = pertinent_uids(document)
        mentioned = [each for each in dict.fromkeys(referenced(document)) if each[1] not in pertinent]
        return hierarchy(
            Named(str(known[uid].StudyInstanceUID), str(known[uid].SeriesInstanceUID), class_uid, uid)
            for class_uid, uid in mentioned
        )

    def remarks(self) -> Iterator[hd.sr.TextContentItem]:
        """What a reader must see beside the numbers."""
        for text in (f"{RESEARCH_ONLY}.", *(f"{WARNING}{warning}" for warning in self.findings.warnings)):
            yield _comment(text)
        if self.findings.geometry == "image":
            for finding in self.findings.findings:
                if said := _frames_seen(finding, self.findings.images):
                    yield _comment(said)

    def summary(self) -> str:
        return summary(self.findings, self.headers)

    # --------------------------------------------------------------------------------------------- measurement groups

    def groups(self) -> Iterator[Group]:
        findings = self.findings
        for finding in findings.findings:
            if finding.extent == "none":
                yield self.image(finding)
            elif findings.geometry == "volume" and finding.extent == "mask":
                yield self.volume(finding)
            else:
                yield self.region(finding)
        if findings.measurements or findings.evaluations or (findings.sought is not None and not findings.findings):
            yield self.whole()
        elif not findings.findings:
            raise EncodingError("there is nothing to report: no finding, no number, and nothing that was sought")

    def volume(self, finding: Finding) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
        """TID 1411: everything measured, tied to the segment; and the outline on the key image."""
        segmentation, number = self.segment_of[self.tracking_uid(finding)]
        group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=segmentation.SOPClassUID,
                sop_instance_uid=segmentation.SOPInstanceUID,
                segment_number=number,
                source_series=hd.sr.SourceSeriesForSegmentation(attributes.text(self.source, "SeriesInstanceUID")),
            ),
            **self.common(finding),
        )
        outlined = hd.sr.ScoordContentItem(
            codes.OUTLINE,
            hd.sr.GraphicTypeValues.POLYLINE,
            self.outline(finding),
            relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
        )
        outlined.ContentSequence = hd.sr.ContentSequence([_source_image(self.findings.images[finding.key_image])])
        group[0].ContentSequence.append(outlined)
        return self.completed(group, finding)

    def image(self, finding: Finding) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        """TID 1501: what is on an image, nobody says where. Its edge is drawn for OHIF, as in `whole`."""
        common = self.common(finding)
        edge = self.on(finding.key_image, _edge(self.headers[finding.key_image]))
        common["measurements"] = [self.number(m, [edge]) for m in _with_certainty(finding)]
        ref = self.findings.images[finding.key_image]
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            source_images=[
                hd.sr.SourceImageForMeasurementGroup(
                    ref.sop_class_uid, ref.sop_instance_uid, [ref.frame] if ref.frame else None
                )
            ],
            **common,
        )
        return self.completed(group, finding)

    def region(self, finding: Finding) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
        """TID 1410: the outline on one image or frame, and everything measured."""
        group = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            referenced_region=_image_region(self.outline(finding), self.findings.images[finding.key_image]),
            **self.common(finding),
        )
        return self.completed(group, finding)

    def common(self, finding: Finding) -> dict[str, Any]:
        return {
            "tracking_identifier": hd.sr.TrackingIdentifier(self.tracking_uid(finding), finding.label),
            "finding_type": finding.type,
            "finding_category": finding.category,
            "finding_sites": _sites(finding.site, finding.laterality),
            "algorithm_id": self.algorithm(),
            "measurements": [self.number(m) for m in _with_certainty(finding)],
            "qualitative_evaluations": _evaluations(finding.evaluations),
        }

    def completed(self, group: GroupOfOne, finding: Finding) -> GroupOfOne:
        """With the axes below their numbers, the number of the key image, and what became of it since a study before.

        Axes are put in afterwards: highdicom knows coordinates below a number in TID 1501 only; TID 1419 may be
        extended by them.
        """
        for axis, name in ((finding.long_axis, codes.LONG_AXIS), (finding.short_axis, codes.SHORT_AXIS)):
            for item in group[0].ContentSequence if axis is not None else ():
                plain = item.ValueType == "NUM" and item.name == name and not _derived(item)
                if plain and axis is not None:
                    _append(item, self.on(axis.image, np.array([axis.start_xy, axis.end_xy], float)))
        key = finding.key_image
        group[0].ContentSequence.append(_comment(image_name(self.headers[key], self.findings.images[key])))
        if finding.extent == "box":
            group[0].ContentSequence.append(_comment(BOXED + self.reach(finding)))
        group[0].ContentSequence.extend(change_items(finding))
        return group

    def reach(self, finding: Finding) -> str:
        """ "; it reaches from image 12 to image 18"; nothing for a box on one image."""
        first, last = finding.offset_zyx[0], finding.offset_zyx[0] + len(finding.mask) - 1
        names = [image_name(self.headers[z], self.findings.images[z]) for z in (first, last)]
        return f"; it reaches from {names[0]} to {names[1]}" if first < last else ""

    def whole(self) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        """TID 1501: what is said of the images as a whole, and on which of them something was looked for.

        It has no Finding (121071, DCM), and if nothing was found its count is 0, so that nobody takes it for one.
        The count is there for OHIF too: it draws nothing of a report with a group that has no coordinates.
        """
        findings = self.findings
        count = [Measurement(codes.NUMBER_OF_LESIONS, len(findings.findings), codes.LESIONS)]
        numbers = [*findings.measurements, *(count if findings.sought is not None else [])]
        shown = findings.findings[0].key_image if findings.findings else len(self.headers) // 2
        edge = self.on(shown, _edge(self.headers[shown]))
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(self.uid("whole"), WHOLE),
            finding_sites=_sites(findings.sought_site, None),
            algorithm_id=self.algorithm(),
            measurements=[self.number(m, [edge]) for m in numbers],
            qualitative_evaluations=_evaluations(findings.evaluations),
            source_images=[
                hd.sr.SourceImageForMeasurementGroup(class_uid, instance_uid, frames or None)
                for (class_uid, instance_uid), frames in group_by_instance(findings.images).items()
            ],
        )
        if not numbers:  # evaluations alone have no place for coordinates: as with the outline of a TID 1411 group
            shown_on = hd.sr.ScoordContentItem(
                codes.OUTLINE,
                hd.sr.GraphicTypeValues.POLYLINE,
                _edge(self.headers[shown]),
                relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
            )
            shown_on.ContentSequence = hd.sr.ContentSequence([_source_image(findings.images[shown])])
            group[0].ContentSequence.append(shown_on)
        return group

    def absent(self) -> Iterator[hd.sr.ContainerContentItem]:
        """TID 1500, row 12: that what was sought was not found, said of the document and not in a measurement group."""
        sought = self.findings.sought
        if self.findings.findings or not self.looked or sought is None:
            return
        container = hd.sr.ContainerContentItem(
            codes.QUALITATIVE_EVALUATIONS, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
        )
        container.ContentSequence = hd.sr.ContentSequence(
            [hd.sr.CodeContentItem(sought, codes.ABSENT, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS)]
        )
        yield container

    # ------------------------------------------------------------------------------------------------- their contents

    def number(
        self, measurement: Measurement, where: Sequence[hd.sr.CoordinatesForMeasurement] | None = None
    ) -> hd.sr.Measurement:
        """One NUM, rounded; a probability that nobody has calibrated says so (TID 1419, row 18)."""
        item = hd.sr.Measurement(
            name=measurement.name,
            value=rounded(measurement.value, measurement.unit),
            unit=measurement.unit,
            derivation=measurement.derivation,
            referenced_coordinates=where,
        )
        state(item[0], measurement.value, measurement.unit)
        if measurement.name in self.findings.not_calibrated:
            meaning = hd.sr.TextContentItem(
                codes.EQUIVALENT_MEANING,
                f"{measurement.name.meaning}{NOT_CALIBRATED}",
                hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
            )
            _append(item[0], meaning)
        return item

    def outline(self, finding: Finding) -> np.ndarray:
        place = self.plane(finding.key_image)
        return outline(plane_mask(finding, finding.key_image, place.rows, place.columns))

    def plane(self, index: int) -> Plane:
        return plane(self.headers[index], self.findings.images[index].frame)

    def on(self, index: int, points: np.ndarray) -> hd.sr.CoordinatesForMeasurement:
        """SCOORD on an image; a caliper's jaw may stand beyond the edge of the image, coordinates may not."""
        place = self.plane(index)
        points = np.clip(points, 0, (place.columns, place.rows))
        return hd.sr.CoordinatesForMeasurement(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=points,
            source_image=_source_image(self.findings.images[index]),
        )

    def tracking_uid(self, finding: Finding) -> str:
        return tracking_uid(self.findings, finding, attributes.text(self.source, "SeriesInstanceUID"), self.revision)

    def uid(self, role: str, number: int = 0) -> str:
        findings = self.findings
        return result_uid(
            attributes.text(self.source, "SeriesInstanceUID"),
            findings.said_by,
            findings.algorithm.version,
            self.revision,
            role,
            number,
        )


def referenced(tree: Dataset) -> Iterator[tuple[str, str]]:
    """(SOP Class UID, SOP Instance UID) of every composite object that content items refer to, in their order."""
    for item in tree.get("ContentSequence") or ():
        for reference in item.get("ReferencedSOPSequence") or ():
            yield str(reference.ReferencedSOPClassUID), str(reference.ReferencedSOPInstanceUID)
        yield from referenced(item)


def _frames_seen(finding: Finding, images: Sequence[ImageRef]) -> str | None:
    """On which frames of a clip a lesion is outlined, and on which it was measured; None for a single image."""
    key = images[finding.key_image]
    if key.frame is None or finding.extent != "mask":
        return None
    seen = [images[finding.offset_zyx[0] + k].frame for k, mask in enumerate(finding.mask) if mask.any()]
    where = f"frame {seen[0]}" if len(seen) == 1 else f"{len(seen)} frames from {seen[0]} to {seen[-1]}"
    return f"{finding.label}: outlined on {where}, measured on frame {key.frame}"


def _with_certainty(finding: Finding) -> list[Measurement]:
    if finding.certainty is None or any(m.name == codes.CERTAINTY for m in finding.measurements):
        return list(finding.measurements)
    return [*finding.measurements, Measurement(codes.CERTAINTY, 100 * finding.certainty, codes.PERCENT)]


def _evaluations(evaluations: Iterable[Evaluation]) -> list[hd.sr.QualitativeEvaluation]:
    return [hd.sr.QualitativeEvaluation(name=e.name, value=e.value) for e in evaluations]


def _sites(site: Code | None, laterality: Code | None) -> list[hd.sr.FindingSite] | None:
    return None if site is None else [hd.sr.FindingSite(anatomic_location=site, laterality=laterality)]


def _image_region(outline: np.ndarray, ref: ImageRef) -> hd.sr.ImageRegion:
    """An outline on one image or frame, TID 1410. highdicom's own maker of it looks into a table of all modules of the
    standard for whether the image may be tiled, and keeps 112 MB of it."""
    region = hd.sr.ScoordContentItem(
        codes.IMAGE_REGION,
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=outline,
        relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
    )
    region.ContentSequence = DicomSequence([_source_image(ref)])
    return hd.sr.ImageRegion.from_dataset(region, copy=False)


def _source_image(ref: ImageRef) -> hd.sr.SourceImageForRegion:
    # ...ForRegion, though it is a measurement's: it writes SELECTED FROM below an SCOORD, ...ForMeasurement does not
    return hd.sr.SourceImageForRegion(ref.sop_class_uid, ref.sop_instance_uid, [ref.frame] if ref.frame else None)


def _edge(header: Dataset) -> np.ndarray:
    """The left edge stands for the image: OHIF writes numbers to the right of what it draws, so those of a frame round
    the image would stand beyond it, where nobody sees them."""
    return np.array([(0, 0), (0, plane(header).rows)], float)


def _append(parent: Dataset, item: Dataset) -> None:
    if "ContentSequence" not in parent:
        parent.ContentSequence = hd.sr.ContentSequence()
    parent.ContentSequence.append(item)


def _derived(number: Dataset) -> bool:
    return any(child.name == codes.DERIVATION for child in number.get("ContentSequence") or ())


def _comment(text: str) -> hd.sr.TextContentItem:
    return _text(codes.COMMENT, text)


def _text(name: Code, text: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(name=name, value=text, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS)

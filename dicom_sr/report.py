"""Findings -> TID 1500 Imaging Measurement Report, PS3.16.

Volume (CT): per finding, groups that OHIF turns into measurements of its own, and the TID 1411 group that refers to
the segment. The first two must come first, and the contour shares its Tracking Unique Identifier with TID 1411: OHIF
merges groups by that UID and goes by the first Tracking Identifier; a TID 1411 group standing alone breaks its page.

Image (ultrasound): TID 1410 with the contour and our own numbers. Never a contour that OHIF would measure again: it
reads ultrasound calibration wrongly and showed 5063 cm2 for 3.16 cm2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ComprehensiveSRStorage

from dicom_sr import codes
from dicom_sr.findings import Axis, Evaluation, Finding, Findings, ImageRef, Measurement
from dicom_sr.header import RESEARCH_ONLY, result_header
from dicom_sr.hierarchy import Named, hierarchy
from dicom_sr.outline import outline, polygon_area
from dicom_sr.previous import change_items, pertinent_evidence, pertinent_uids, previous_findings
from dicom_sr.seg import plane_mask, tracking_uid
from dicom_sr.source import Plane, group_by_instance, headers_by_uid, plane, source_headers
from dicom_sr.uids import device_uid, result_uid

OHIF_TOOL = "Cornerstone3DTools@^0.1.0:"  # OHIF 3.13 makes measurements of groups with this Tracking Identifier
CONTOUR = f"{OHIF_TOOL}PlanarFreehandROI"
CALIPERS = f"{OHIF_TOOL}Bidirectional"
WHOLE = "Whole image"
WARNING = "Warning: "
REASON = "Reason: "  # of a series that was not run

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
            sop_class_uid=ComprehensiveSRStorage,
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
            procedure_reported=codes.CT_PROCEDURE if self.source.Modality == "CT" else codes.IMAGING_PROCEDURE,
            imaging_measurements=list(self.groups()),
            title=codes.IMAGING_MEASUREMENT_REPORT,
        )[0]
        tree.ContentSequence.extend(self.remarks())
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

    # --------------------------------------------------------------------------------------------- measurement groups

    def groups(self) -> Iterator[Group]:
        for finding in self.findings.findings:
            if self.findings.geometry == "volume":
                yield self.contour(finding)
                if finding.long_axis and finding.short_axis:
                    yield self.calipers(finding, finding.long_axis, finding.short_axis)
                yield self.volume(finding)
            else:
                yield self.region(finding)
        if self.findings.measurements or self.findings.evaluations or not self.findings.findings:
            yield self.whole()

    def contour(self, finding: Finding) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        """TID 1501: the outline on the key image, and the area it encloses."""
        points, place = self.outline(finding)
        pixels = polygon_area(points)
        pixel_mm2 = place.pixel_area_mm2()
        area = Measurement(codes.AREA, pixels * (pixel_mm2 or 1), codes.MM2 if pixel_mm2 else codes.PIXELS)
        where = self.on(finding.key_image, points)
        return self.drawn(finding, CONTOUR, self.tracking_uid(finding), [(area, where)])

    def calipers(
        self, finding: Finding, long_axis: Axis, short_axis: Axis
    ) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        """TID 1501: long and short axis as two lines. Its own Tracking UID, for OHIF keeps one tool per UID."""
        lines = []
        for axis, name in ((long_axis, codes.LONG_AXIS), (short_axis, codes.SHORT_AXIS)):
            points = np.array([axis.start_xy, axis.end_xy], float)
            lines.append((self.measured(finding, name, axis), self.on(axis.image, points)))
        return self.drawn(finding, CALIPERS, self.uid("calipers", finding.number), lines)

    def drawn(
        self,
        finding: Finding,
        tool: str,
        tracking: str,
        measured: Sequence[tuple[Measurement, hd.sr.CoordinatesForMeasurement]],
    ) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(tracking, f"{tool}:{finding.label}"),
            finding_type=finding.type,
            finding_sites=_sites(finding.site, finding.laterality),
            measurements=[self.number(measurement, [where]) for measurement, where in measured],
        )
        group[0].ContentSequence.append(_comment(finding.label))  # OHIF shows it as the measurement's label
        return group

    def volume(self, finding: Finding) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
        """TID 1411: everything measured, tied to the segment."""
        segmentation, number = self.segment_of[self.tracking_uid(finding)]
        group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(self.tracking_uid(finding), finding.label),
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=segmentation.SOPClassUID,
                sop_instance_uid=segmentation.SOPInstanceUID,
                segment_number=number,
                source_series=hd.sr.SourceSeriesForSegmentation(self.source.SeriesInstanceUID),
            ),
            finding_type=finding.type,
            finding_category=finding.category,
            finding_sites=_sites(finding.site, finding.laterality),
            algorithm_id=self.algorithm(),
            measurements=[self.number(m) for m in _with_certainty(finding)],
            qualitative_evaluations=_evaluations(finding.evaluations),
        )
        group[0].ContentSequence.extend(change_items(finding))
        return group

    def region(self, finding: Finding) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
        """TID 1410: the outline on one image or frame, and everything measured."""
        points, _ = self.outline(finding)
        return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(self.tracking_uid(finding), finding.label),
            referenced_region=hd.sr.ImageRegion(
                graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
                graphic_data=points,
                source_image=_source_image(self.findings.images[finding.key_image]),
            ),
            finding_type=finding.type,
            finding_category=finding.category,
            finding_sites=_sites(finding.site, finding.laterality),
            algorithm_id=self.algorithm(),
            measurements=[self.number(m) for m in _with_certainty(finding)],
            qualitative_evaluations=_evaluations(finding.evaluations),
        )

    def whole(self) -> hd.sr.MeasurementsAndQualitativeEvaluations:
        """TID 1501: what is said of the images as a whole, and, if nothing was found, that it was looked for.

        The count is there for OHIF too: it draws nothing of a report with a group that has no coordinates.
        """
        findings = self.findings
        count = Measurement(codes.NUMBER_OF_LESIONS, len(findings.findings), codes.LESIONS)
        shown = findings.findings[0].key_image if findings.findings else len(self.headers) // 2
        edge = self.on(shown, _edge(self.headers[shown]))
        absent = [] if findings.findings else [Evaluation(findings.sought, codes.ABSENT)]
        group = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(self.uid("whole"), WHOLE),
            finding_type=findings.sought if absent else None,
            finding_sites=_sites(findings.sought_site, None),
            algorithm_id=self.algorithm(),
            measurements=[self.number(m, [edge]) for m in (*findings.measurements, count)],
            qualitative_evaluations=_evaluations([*findings.evaluations, *absent]),
            source_images=[
                hd.sr.SourceImageForMeasurementGroup(class_uid, instance_uid, frames or None)
                for (class_uid, instance_uid), frames in group_by_instance(findings.images).items()
            ],
        )
        if absent:
            group[0].ContentSequence.append(_comment(f"No {findings.sought.meaning.lower()} found"))
        return group

    # ------------------------------------------------------------------------------------------------- their contents

    def number(
        self, measurement: Measurement, where: Sequence[hd.sr.CoordinatesForMeasurement] | None = None
    ) -> hd.sr.Measurement:
        """One NUM with its algorithm, which OHIF needs below every number that has no coordinates."""
        algorithm = self.findings.algorithm
        return hd.sr.Measurement(
            name=measurement.name,
            value=float(measurement.value),
            unit=measurement.unit,
            derivation=measurement.derivation,
            referenced_coordinates=where,
            algorithm_id=hd.sr.AlgorithmIdentification(name=algorithm.name, version=algorithm.version),
        )

    def measured(self, finding: Finding, name: Code, axis: Axis) -> Measurement:
        """The finding's own value of an axis; without one, the length of the line."""
        for measurement in finding.measurements:
            if measurement.name == name and measurement.derivation is None:
                return Measurement(name, measurement.value, measurement.unit)
        place = self.plane(axis.image)
        across, down = np.subtract(axis.end_xy, axis.start_xy)
        if place.spacing_mm is None:
            return Measurement(name, float(np.hypot(across, down)), codes.PIXELS)
        between_rows, between_columns = (float(v) for v in place.spacing_mm)
        return Measurement(name, float(np.hypot(across * between_columns, down * between_rows)), codes.MM)

    def outline(self, finding: Finding) -> tuple[np.ndarray, Plane]:
        place = self.plane(finding.key_image)
        return outline(plane_mask(finding, finding.key_image, place.rows, place.columns)), place

    def plane(self, index: int) -> Plane:
        return plane(self.headers[index], self.findings.images[index].frame)

    def on(self, index: int, points: np.ndarray) -> hd.sr.CoordinatesForMeasurement:
        """SCOORD on an image; a caliper's jaw may stand beyond the edge of the image, coordinates may not."""
        points = np.clip(points, 0, (int(self.headers[index].Columns), int(self.headers[index].Rows)))
        return hd.sr.CoordinatesForMeasurement(
            graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
            graphic_data=points,
            source_image=_source_image(self.findings.images[index]),
        )

    def tracking_uid(self, finding: Finding) -> str:
        return tracking_uid(self.findings, finding, str(self.source.SeriesInstanceUID), self.revision)

    def uid(self, role: str, number: int = 0) -> str:
        findings = self.findings
        return result_uid(
            str(self.source.SeriesInstanceUID),
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
    if key.frame is None:
        return None
    seen = [images[finding.offset_zyx[0] + k].frame for k, mask in enumerate(finding.mask) if mask.any()]
    where = f"frame {seen[0]}" if len(seen) == 1 else f"{len(seen)} frames from {seen[0]} to {seen[-1]}"
    return f"{finding.label}: outlined on {where}, measured on frame {key.frame}"


def _with_certainty(finding: Finding) -> list[Measurement]:
    if any(m.name == codes.CERTAINTY for m in finding.measurements):
        return list(finding.measurements)
    percent = round(100 * finding.certainty, 2)
    return [*finding.measurements, Measurement(codes.CERTAINTY, percent, codes.PERCENT)]


def _evaluations(evaluations: Iterable[Evaluation]) -> list[hd.sr.QualitativeEvaluation]:
    return [hd.sr.QualitativeEvaluation(name=e.name, value=e.value) for e in evaluations]


def _sites(site: Code | None, laterality: Code | None) -> list[hd.sr.FindingSite] | None:
    return None if site is None else [hd.sr.FindingSite(anatomic_location=site, laterality=laterality)]


def _source_image(ref: ImageRef) -> hd.sr.SourceImageForRegion:
    # ...ForRegion, though it is a measurement's: it writes SELECTED FROM below an SCOORD, ...ForMeasurement does not
    return hd.sr.SourceImageForRegion(ref.sop_class_uid, ref.sop_instance_uid, [ref.frame] if ref.frame else None)


def _edge(header: Dataset) -> np.ndarray:
    """The left edge stands for the image: OHIF writes numbers to the right of what it draws, so those of a frame round
    the image would stand beyond it, where nobody sees them."""
    return np.array([(0, 0), (0, int(header.Rows))], float)


def _comment(text: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(
        name=codes.COMMENT, value=text, relationship_type=hd.sr.RelationshipTypeValues.CONTAINS
    )

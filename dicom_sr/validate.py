"""The checks every object passes before it leaves. In words: an empty list is a pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, SegmentationStorage

from dicom_sr import codes, read
from dicom_sr.findings import Finding, Findings, ImageRef
from dicom_sr.header import ALWAYS_COPIED
from dicom_sr.report import OHIF_TOOL, referenced
from dicom_sr.seg import NOT_CALIBRATED, first_pixel, tracking_uid
from dicom_sr.source import headers_by_uid, plane

UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")  # PS3.5 9.1; at most 64 characters
GEOMETRY_TOLERANCE_MM = 0.001  # what OHIF allows between a segmentation and its image

# Type 1 attributes of the modules we write, PS3.3: present, with a value.
ALWAYS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "InstanceNumber",
    "ContentDate",
    "ContentTime",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
TYPE_1 = {
    SegmentationStorage: (
        *ALWAYS,
        "ImageType",
        "ContentLabel",
        "SegmentationType",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PixelRepresentation",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "LossyImageCompression",
        "SegmentSequence",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "DimensionOrganizationSequence",
        "DimensionIndexSequence",
        "ReferencedSeriesSequence",
        "PixelData",
    ),
    ComprehensiveSRStorage: (
        *ALWAYS,
        "CompletionFlag",
        "VerificationFlag",
        "ValueType",
        "ConceptNameCodeSequence",
        "ContinuityOfContent",
        "ContentTemplateSequence",
        "ContentSequence",
        "CurrentRequestedProcedureEvidenceSequence",
    ),
}
SEGMENT_TYPE_1 = (
    "SegmentNumber",
    "SegmentLabel",
    "SegmentAlgorithmType",
    "SegmentAlgorithmName",
    "SegmentedPropertyCategoryCodeSequence",
    "SegmentedPropertyTypeCodeSequence",
    "TrackingID",
    "TrackingUID",
)


def problems(
    dataset: Dataset,
    sources: Sequence[Dataset],
    *,
    findings: Findings | None = None,
    segmentations: Sequence[Dataset] = (),
) -> list[str]:
    """What is wrong with a Segmentation or report of ours; nothing if it may leave.

    sources         headers of the images it was made from
    findings        if given, the object must say the same when it is read back
    segmentations   those that a report refers to
    """
    found = list(_of_every_object(dataset, sources, segmentations))
    if found:  # what follows reads the attributes just missed
        return found
    if dataset.SOPClassUID == SegmentationStorage:
        found += _of_segmentation(dataset, sources)
        if findings is not None and not found:
            found += _masks_differ(dataset, findings, sources, segmentations)
    else:
        groups = read.groups(dataset)
        found += _of_report(dataset, groups, sources, segmentations)
        if findings is not None and not found:
            found += _report_differs(groups, findings)
    return found


# ------------------------------------------------------------------------------------------------------ every object


def _of_every_object(dataset: Dataset, sources: Sequence[Dataset], segmentations: Sequence[Dataset]) -> Iterator[str]:
    if dataset.get("SOPClassUID") not in TYPE_1:
        yield f"SOP Class {dataset.get('SOPClassUID')} is none that we write"
        return
    for keyword in TYPE_1[dataset.SOPClassUID]:
        if keyword not in dataset or dataset[keyword].is_empty:
            yield f"{keyword} has no value"
    for element in dataset.iterall():
        if element.VR == "UI":
            for uid in element.value if element.VM > 1 else [element.value]:
                if uid and (len(uid) > 64 or not UID.fullmatch(uid)):
                    yield f"{element.keyword} {uid} is not a UID"
        elif element.keyword in ("SeriesDescription", "SegmentLabel") and len(str(element.value)) > 64:
            yield f"{element.keyword} is longer than 64 characters"
    if dataset.get("SpecificCharacterSet") != "ISO_IR 192":
        yield f"SpecificCharacterSet is {dataset.get('SpecificCharacterSet')}, not ISO_IR 192"
    meta = dataset.file_meta
    if meta.get("MediaStorageSOPInstanceUID") != dataset.get("SOPInstanceUID"):
        yield "the file meta information names another SOP Instance UID"
    for keyword in ALWAYS_COPIED:
        values = {str(source.get(keyword) or "") for source in sources}
        if str(dataset.get(keyword) or "") not in values:
            yield f"{keyword} is not the sources'"  # no patient values in reasons
    yield from _references(dataset, sources, segmentations)


def _references(dataset: Dataset, sources: Sequence[Dataset], segmentations: Sequence[Dataset]) -> Iterator[str]:
    known = headers_by_uid([*sources, *segmentations])
    for item in _items_with_reference(dataset):
        uid = str(item.ReferencedSOPInstanceUID)
        if uid not in known:
            yield f"it refers to {uid}, which is none of the sources"
            continue
        if item.ReferencedSOPClassUID != known[uid].SOPClassUID:
            yield f"it refers to {uid} as another SOP Class"
        frames = item.get("ReferencedFrameNumber")
        if frames is not None:
            last = int(known[uid].get("NumberOfFrames") or 1)
            for frame in [frames] if isinstance(frames, int | str) else frames:
                if not 1 <= int(frame) <= last:
                    yield f"it refers to frame {frame} of {uid}, which has {last}"


def _items_with_reference(dataset: Dataset) -> Iterator[Dataset]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if "ReferencedSOPInstanceUID" in item:
                    yield item
                yield from _items_with_reference(item)


# ------------------------------------------------------------------------------------------------------ Segmentation


def _of_segmentation(dataset: Dataset, sources: Sequence[Dataset]) -> Iterator[str]:
    frames = int(dataset.NumberOfFrames)
    numbers = [int(segment.SegmentNumber) for segment in dataset.SegmentSequence]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"segments are numbered {numbers}, not from 1 by 1"
    for segment in dataset.SegmentSequence:
        for keyword in SEGMENT_TYPE_1:
            if keyword not in segment or segment[keyword].is_empty:
                yield f"segment {segment.get('SegmentNumber')}: {keyword} has no value"
    bits = frames * int(dataset.Rows) * int(dataset.Columns)
    length = -(-bits // 8) + (-(-bits // 8)) % 2
    if len(dataset.PixelData) != length:
        yield f"Pixel Data has {len(dataset.PixelData)} bytes, {frames} frames need {length}"
    if len(dataset.PerFrameFunctionalGroupsSequence) != frames:
        yield f"{len(dataset.PerFrameFunctionalGroupsSequence)} functional groups for {frames} frames"
        return
    shared = dataset.SharedFunctionalGroupsSequence[0]
    if "FrameOfReferenceUID" not in dataset:
        for macro in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if macro not in shared:
                yield f"{macro} is not in the shared functional groups; OHIF shows a black page without"
    known = headers_by_uid(sources)
    for frame in range(frames):
        if not read.functional_group(dataset, frame, "DerivationImageSequence"):
            yield f"frame {frame + 1} does not say which image it was drawn on"
            continue
        number = read.functional_group(dataset, frame, "SegmentIdentificationSequence").get("ReferencedSegmentNumber")
        if number not in numbers:
            yield f"frame {frame + 1} is of segment {number}, which is not described"
        ref = read.frame_source(dataset, frame)
        for what in _misplaced(dataset, frame, known[ref.sop_instance_uid], ref):
            yield f"frame {frame + 1} does not lie on its source image: {what}"


def _misplaced(dataset: Dataset, frame: int, header: Dataset, ref: ImageRef) -> Iterator[str]:
    """How a frame lies elsewhere than its source image, corner by corner, in mm."""
    source = plane(header, ref.frame)
    mask = None if source.is_in_space else read.frame_mask(dataset, frame)
    if mask is not None and mask.any():  # an ultrasound image is calibrated region by region
        source = plane(header, ref.frame, first_pixel(mask, (0, 0)))
    if (dataset.Rows, dataset.Columns) != (source.rows, source.columns):
        yield f"it has {dataset.Rows} x {dataset.Columns} pixels, the image {source.rows} x {source.columns}"
        return
    if str(dataset.get("FrameOfReferenceUID") or "") != (source.frame_of_reference_uid or "") and source.is_in_space:
        yield "another frame of reference"
        return
    mine = plane(dataset, frame + 1)
    if not source.is_in_space:
        calibrated = source.spacing_mm or (NOT_CALIBRATED if mask is not None and mask.any() else mine.spacing_mm)
        if mine.spacing_mm != calibrated:
            yield f"pixel spacing {mine.spacing_mm}, the image has {source.spacing_mm}"
        return
    for row, column in ((0, 0), (0, source.columns - 1), (source.rows - 1, 0)):
        off_mm = np.linalg.norm(mine.point_lps_mm(row, column) - source.point_lps_mm(row, column))
        if not off_mm <= GEOMETRY_TOLERANCE_MM:
            yield f"pixel (row {row}, column {column}) is {off_mm:.3f} mm away"


def _masks_differ(
    dataset: Dataset, findings: Findings, sources: Sequence[Dataset], segmentations: Sequence[Dataset]
) -> Iterator[str]:
    """Every finding reads back voxel by voxel. One may lie in several Segmentations: they count together."""
    index = {ref: k for k, ref in enumerate(findings.images)}
    series_uid = str(headers_by_uid(sources)[findings.images[0].sop_instance_uid].SeriesInstanceUID)
    meant = {tracking_uid(findings, f, series_uid, int(dataset.InstanceNumber)): f for f in findings.findings}
    drawn: dict[str, dict[int, np.ndarray]] = {}
    for segmentation in segmentations or [dataset]:
        for segment in read.segments(segmentation):
            drawn.setdefault(segment.tracking_uid, {}).update({index[r]: m for r, m in segment.masks.items()})
    for item in dataset.SegmentSequence:
        finding = meant.get(item.TrackingUID)
        if finding is None or not _same_mask(drawn[item.TrackingUID], finding):
            yield f"segment {item.SegmentNumber} ({item.SegmentLabel}) reads back as another mask"


def _same_mask(drawn: dict[int, np.ndarray], finding: Finding) -> bool:
    z, y, x = finding.offset_zyx
    _, height, width = finding.mask.shape
    if set(drawn) != {z + k for k, plane_ in enumerate(finding.mask) if plane_.any()}:
        return False
    return all(
        np.array_equal(mask[y : y + height, x : x + width], finding.mask[k - z])
        and np.count_nonzero(mask) == np.count_nonzero(finding.mask[k - z])
        for k, mask in drawn.items()
    )


# ------------------------------------------------------------------------------------------------------------ report


def _of_report(
    dataset: Dataset, groups: Sequence[read.Group], sources: Sequence[Dataset], segmentations: Sequence[Dataset]
) -> Iterator[str]:
    title = dataset.ConceptNameCodeSequence[0].CodeValue
    if title != codes.IMAGING_MEASUREMENT_REPORT.value:
        yield f"its title is {title}; OHIF reads {codes.IMAGING_MEASUREMENT_REPORT.value} only"
    yield from _evidence(dataset)
    if not groups:
        yield "it has no measurement group"
    known = headers_by_uid(sources)
    segments = {
        (str(segmentation.SOPInstanceUID), int(segment.SegmentNumber)): segment.TrackingUID
        for segmentation in segmentations
        for segment in segmentation.SegmentSequence
    }
    drawn: set[str] = set()
    for number, group in enumerate(groups, 1):
        name = f"measurement group {number} ({group.tracking_id})"
        if not group.tracking_id or not group.tracking_uid:
            yield f"{name} lacks a Tracking Identifier or Tracking Unique Identifier; OHIF fails on it"
        if group.template in ("1410", "1411") and group.tracking_uid not in segments.values():
            yield f"{name} has no segment with its Tracking Unique Identifier"
        if group.segment is not None and segments.get(group.segment) != group.tracking_uid:
            yield f"{name} refers to a segment of another Tracking Unique Identifier"
        if group.template == "1411" and group.tracking_uid not in drawn:
            yield f"{name} comes before the contour that shares its Tracking Unique Identifier; OHIF fails on it"
        if group.template == "1501" and group.tracking_id.startswith(OHIF_TOOL):
            drawn.add(group.tracking_uid)
        if group.template != "1411" and not group.lines:
            yield f"{name} has no coordinates; OHIF draws nothing of such a report"
        for line in group.lines:
            header = known[line.image.sop_instance_uid]
            x, y = line.points.T
            if x.min() < 0 or y.min() < 0 or x.max() > header.Columns or y.max() > header.Rows:
                yield f"{name} draws outside its image"


def _evidence(dataset: Dataset) -> Iterator[str]:
    """The evidence sequence names what the tree refers to: all of it, and nothing else."""
    in_tree = {uid for _, uid in referenced(dataset)}
    in_evidence = {
        str(item.ReferencedSOPInstanceUID)
        for study in dataset.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    for uid in sorted(in_tree - in_evidence):
        yield f"{uid} is referred to, but is not in the evidence sequence"
    for uid in sorted(in_evidence - in_tree):
        yield f"{uid} is in the evidence sequence, but nothing refers to it"


def _report_differs(groups: Sequence[read.Group], findings: Findings) -> Iterator[str]:
    """Every measurement and evaluation reads back as it went in."""
    regions = [group for group in groups if group.template in ("1410", "1411")]
    if len(regions) != len(findings.findings):
        yield f"it reads back with {len(regions)} findings instead of {len(findings.findings)}"
        return
    for group, finding in zip(regions, findings.findings, strict=True):
        if not set(finding.measurements) <= set(group.measurements):
            yield f"the measurements of {finding.label} read back otherwise"
        if finding.evaluations != group.evaluations:
            yield f"the evaluations of {finding.label} read back otherwise"

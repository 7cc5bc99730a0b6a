"""Rules for a report: its tree, its evidence, its numbers, and what viewers need of it."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset

from dicom_sr import attributes, codes, read
from dicom_sr.hierarchy import named_in
from dicom_sr.previous import pertinent_uids
from dicom_sr.report import OHIF_TOOL, referenced
from dicom_sr.rounding import as_said
from dicom_sr.rules.subject import Subject
from dicom_sr.source import headers_by_uid, plane

VOLUME_TOLERANCE = 0.02, 1.0  # of the value, and mm3: volumes are reported in whole mm3


# PS3.3 Table C.17.3-1 and C.17.3.2: value type -> what a content item of it must carry
CONTENT = {
    "TEXT": ("TextValue",),
    "NUM": ("MeasuredValueSequence",),
    "CODE": ("ConceptCodeSequence",),
    "UIDREF": ("UID",),
    "PNAME": ("PersonName",),
    "DATE": ("Date",),
    "TIME": ("Time",),
    "DATETIME": ("DateTime",),
    "IMAGE": ("ReferencedSOPSequence",),
    "COMPOSITE": ("ReferencedSOPSequence",),
    "WAVEFORM": ("ReferencedSOPSequence",),
    "SCOORD": ("GraphicType", "GraphicData"),
    "TCOORD": ("TemporalRangeType",),
    "CONTAINER": ("ContinuityOfContent",),
}
_VALUES = {"TEXT", "CODE", "NUM", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME"}
_EVIDENCE = {"IMAGE", "WAVEFORM", "COMPOSITE", "SCOORD", "TCOORD", "CONTAINER"}
# PS3.3 Table A.35.3-2, Comprehensive SR: (relationship, source value types, target value types); None: any
RELATIONSHIPS: tuple[tuple[str, set[str] | None, set[str]], ...] = (
    ("CONTAINS", {"CONTAINER"}, _VALUES | _EVIDENCE),
    ("HAS OBS CONTEXT", {"CONTAINER"}, _VALUES | {"COMPOSITE"}),
    ("HAS OBS CONTEXT", {"TEXT", "CODE", "NUM"}, _VALUES | {"COMPOSITE"}),
    ("HAS ACQ CONTEXT", {"CONTAINER", "IMAGE", "WAVEFORM", "COMPOSITE", "NUM"}, _VALUES | {"CONTAINER"}),
    ("HAS CONCEPT MOD", None, {"TEXT", "CODE"}),
    ("HAS PROPERTIES", {"TEXT", "CODE", "NUM"}, _VALUES | _EVIDENCE),
    ("INFERRED FROM", {"TEXT", "CODE", "NUM"}, _VALUES | _EVIDENCE),
    ("SELECTED FROM", {"SCOORD"}, {"IMAGE"}),
    ("SELECTED FROM", {"TCOORD"}, {"SCOORD", "IMAGE", "WAVEFORM"}),
)


def content_items(subject: Subject) -> Iterator[str]:
    for place, item in _items(subject.dataset, "1"):
        kind = item.get("ValueType")
        if kind not in CONTENT:
            yield f"content item {place} has the value type {kind}"
            continue
        for keyword in CONTENT[kind]:
            if keyword not in item or (item[keyword].is_empty and kind != "NUM"):
                yield f"content item {place} ({kind}) has no {keyword}"
        if kind not in ("IMAGE", "COMPOSITE", "SCOORD") and not item.get("ConceptNameCodeSequence"):
            yield f"content item {place} ({kind}) has no concept name"
        for value in item.get("MeasuredValueSequence") or ():
            if value.get("NumericValue") in (None, "") or not value.get("MeasurementUnitsCodeSequence"):
                yield f"content item {place} (NUM) has no number, or no unit"


def relationships(subject: Subject) -> Iterator[str]:
    for place, item in _items(subject.dataset, "1"):
        for number, child in enumerate(item.get("ContentSequence") or (), 1):
            relation, kind = child.get("RelationshipType"), child.get("ValueType")
            if not any(
                relation == name and (sources is None or item.ValueType in sources) and kind in targets
                for name, sources, targets in RELATIONSHIPS
            ):
                yield f"content item {place}.{number}: {item.ValueType} {relation} {kind} is not allowed"


def _items(item: Dataset, place: str) -> Iterator[tuple[str, Dataset]]:
    yield place, item
    for number, child in enumerate(item.get("ContentSequence") or (), 1):
        yield from _items(child, f"{place}.{number}")


def evidence(subject: Subject) -> Iterator[str]:
    """The evidence sequence names what the tree refers to, each in its series, and nothing else."""
    known = headers_by_uid([*subject.sources, *subject.segmentations])
    pertinent, named = pertinent_uids(subject.dataset), {uid for _, uid in referenced(subject.dataset)}
    for uid in sorted(pertinent - named):
        yield f"{uid} is in the pertinent other evidence, but nothing refers to it"
    in_tree = {(str(known[uid].SeriesInstanceUID), uid) for uid in named - pertinent}
    in_evidence = {
        (each.series_uid, each.sop_instance_uid)
        for each in named_in(subject.dataset, "CurrentRequestedProcedureEvidenceSequence")
    }
    for _, uid in sorted(in_tree - in_evidence):
        yield f"{uid} is referred to, but is not in the evidence sequence"
    for _, uid in sorted(in_evidence - in_tree):
        yield f"{uid} is in the evidence sequence, but nothing refers to it"


def predecessors(subject: Subject) -> Iterator[str]:
    named = {each.sop_instance_uid for each in named_in(subject.dataset, "PredecessorDocumentsSequence")}
    wanted = {each.sop_instance_uid for each in subject.replaces if each.is_report}
    for uid in sorted(wanted - named):
        yield f"it replaces {uid}, but does not name it as predecessor"
    for uid in sorted(named - wanted):
        yield f"it names {uid} as predecessor, which it does not replace"


def complete(subject: Subject) -> Iterator[str]:
    flags = subject.dataset.get("CompletionFlag"), subject.dataset.get("VerificationFlag")
    if flags != ("COMPLETE", "UNVERIFIED"):
        yield f"its flags are {flags[0]} and {flags[1]}; nobody has verified what a node writes"


def research_only(subject: Subject) -> Iterator[str]:
    if not any("Research use only" in text for text in read.comments(subject.dataset)):
        yield "it does not say that it is for research use only"


def title(subject: Subject) -> Iterator[str]:
    title = subject.dataset.ConceptNameCodeSequence[0].CodeValue
    if title != codes.IMAGING_MEASUREMENT_REPORT.value:
        yield f"its title is {title}; OHIF reads {codes.IMAGING_MEASUREMENT_REPORT.value} only"
    if not subject.groups:
        yield "it has no measurement group"


def tracking(subject: Subject) -> Iterator[str]:
    for name, group in named(subject):
        if not group.tracking_id or not group.tracking_uid:
            yield f"{name} lacks a Tracking Identifier or Tracking Unique Identifier; OHIF fails on it"


def tied_to_segments(subject: Subject) -> Iterator[str]:
    segments = {
        (str(segmentation.SOPInstanceUID), int(segment.SegmentNumber)): segment.TrackingUID
        for segmentation in subject.segmentations
        for segment in segmentation.SegmentSequence
    }
    for name, group in named(subject):
        drawn = group.template in ("1410", "1411") and not read.is_boxed(group)
        if drawn and group.tracking_uid not in segments.values():
            yield f"{name} has no segment with its Tracking Unique Identifier"
        elif group.segment is not None and segments.get(group.segment) != group.tracking_uid:
            yield f"{name} refers to a segment of another Tracking Unique Identifier"


def contour_first(subject: Subject) -> Iterator[str]:
    """OHIF merges groups of one Tracking Unique Identifier: it needs coordinates in the first of them."""
    drawn: set[str] = set()
    for name, group in named(subject):
        if group.lines:
            drawn.add(group.tracking_uid)
        elif group.template == "1411" and group.tracking_uid not in drawn:
            yield f"{name} has no outline, nor has a group before it with its Tracking Unique Identifier; OHIF fails"


def no_area_on_ultrasound(subject: Subject) -> Iterator[str]:
    """OHIF measures such a contour again, and counts pixels where an ultrasound image has no Pixel Spacing."""
    for name, group in named(subject):
        if group.tracking_id.startswith(f"{OHIF_TOOL}PlanarFreehandROI") and any(
            attributes.text(subject.known[line.image.sop_instance_uid], "Modality") == "US" for line in group.lines
        ):
            yield f"{name} is a contour that OHIF would measure again, wrongly: it is on ultrasound"


def coordinates(subject: Subject) -> Iterator[str]:
    for name, group in named(subject):
        if group.template != "1411" and not group.lines:
            yield f"{name} has no coordinates; OHIF draws nothing of such a report"


def inside(subject: Subject) -> Iterator[str]:
    for name, group in named(subject):
        for line in group.lines:
            place = plane(subject.known[line.image.sop_instance_uid])
            x, y = line.points.T
            if x.min() < 0 or y.min() < 0 or x.max() > place.columns or y.max() > place.rows:
                yield f"{name} draws outside its image"


def reads_back(subject: Subject) -> Iterator[str]:
    """Every measurement and evaluation reads back as it went in."""
    if subject.findings is None:
        return
    regions = [group for group in subject.groups if read.is_finding(group)]
    found = subject.findings.findings
    if len(regions) != len(found):
        yield f"it reads back with {len(regions)} findings instead of {len(found)}"
        return
    for group, finding in zip(regions, found, strict=True):
        if not {as_said(measurement) for measurement in finding.measurements} <= set(group.measurements):
            yield f"the measurements of {finding.label} read back otherwise"
        if finding.evaluations != group.evaluations:
            yield f"the evaluations of {finding.label} read back otherwise"


def volume(subject: Subject) -> Iterator[str]:
    """The volume that is reported is that of the voxels that are drawn."""
    between_mm = subject.between_mm
    if subject.findings is None or between_mm is None:
        return
    places = subject.places
    part, least_mm3 = VOLUME_TOLERANCE
    for finding in subject.findings.findings:
        if finding.extent != "mask":
            continue
        z = finding.offset_zyx[0]
        drawn_mm3 = between_mm * sum(
            int(mask.sum()) * (places[z + k].pixel_area_mm2() or 0) for k, mask in enumerate(finding.mask)
        )
        stated = [m.value for m in finding.measurements if (m.name, m.unit) == (codes.VOXEL_VOLUME, codes.MM3)]
        for value in stated:
            if abs(value - drawn_mm3) > max(least_mm3, part * drawn_mm3):
                yield f"{finding.label} is reported with {value:g} mm3, drawn with {drawn_mm3:.1f}"


def named(subject: Subject) -> Iterator[tuple[str, read.Group]]:
    for number, group in enumerate(subject.groups, 1):
        yield f"measurement group {number} ({group.tracking_id})", group

"""SEG and SR -> what they say: for round trips, priors and the web page."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.findings import NOTHING, Algorithm, Axis, Evaluation, Finding, Findings, ImageRef, Measurement
from dicom_sr.previous import compared_with, predecessor_and_change
from dicom_sr.report import BOXED, CALIPERS, CONTOUR, NOT_CALIBRATED, OHIF_TOOL, REASON, WARNING, WHOLE


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment and its masks, each on the source image it was drawn on: bool (rows, columns)."""

    number: int
    label: str
    tracking_uid: str
    category: Code
    type: Code
    site: Code | None
    laterality: Code | None
    masks: Mapping[ImageRef, np.ndarray]


@dataclass(frozen=True, eq=False)
class Line:
    """The coordinates below one number, or of a group's region: (points, 2) of (column, row)."""

    image: ImageRef
    points: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """One measurement group of a TID 1500 report."""

    template: str  # "1410", "1411" or "1501"
    tracking_id: str
    tracking_uid: str
    type: Code | None
    category: Code | None
    site: Code | None
    laterality: Code | None
    measurements: tuple[Measurement, ...]
    evaluations: tuple[Evaluation, ...]
    lines: tuple[Line, ...]  # of the region first, then of the numbers, in their order
    segment: tuple[str, int] | None  # SOP Instance UID of the Segmentation, segment number
    axes: Mapping[Code, Line]  # drawn below the numbers of these names
    remarks: tuple[str, ...] = ()  # the comments in the group
    not_calibrated: frozenset[Code] = frozenset()  # names of numbers that say so
    predecessor_uid: str | None = None  # Tracking UID of the same lesion in the report of an earlier study
    change: str = ""


def segments(segmentation: Dataset) -> list[Segment]:
    """The segments of a BINARY or LABELMAP Segmentation, in the clear or in RLE Lossless; empty frames left out."""
    masks: dict[int, dict[ImageRef, np.ndarray]] = {}
    if segmentation.get("SegmentationType") == "LABELMAP":
        labels = _labels(segmentation)
        for frame, picture in enumerate(labels):
            for number in sorted(set(np.unique(picture).tolist())):
                masks.setdefault(number, {})[frame_source(segmentation, frame)] = picture == number
    else:
        for frame in range(int(segmentation.NumberOfFrames)):
            mask = frame_mask(segmentation, frame)
            if mask.any():
                segment = functional_group(segmentation, frame, "SegmentIdentificationSequence")
                source = frame_source(segmentation, frame)
                masks.setdefault(int(segment.ReferencedSegmentNumber), {})[source] = mask
    return [replace(segment, masks=masks.get(segment.number, {})) for segment in segments_described(segmentation)]


def segments_described(segmentation: Dataset) -> list[Segment]:
    """The segments of a Segmentation as it describes them, without their masks."""
    # number 0 of a label map may be described, as the background, which is no finding
    return [_segment(item, {}) for item in segmentation.SegmentSequence if int(item.SegmentNumber) > 0]


def _labels(segmentation: Dataset) -> np.ndarray:
    """(frames, rows, columns) of a Label Map's segment numbers."""
    shape = int(segmentation.NumberOfFrames), int(segmentation.Rows), int(segmentation.Columns)
    if segmentation.file_meta.TransferSyntaxUID.is_encapsulated:
        return np.asarray(segmentation.pixel_array).reshape(shape)
    cell = np.dtype("u1" if int(segmentation.BitsAllocated) == 8 else "<u2")
    return np.frombuffer(segmentation.PixelData, cell, count=int(np.prod(shape))).reshape(shape)


def functional_group(segmentation: Dataset, frame: int, macro: str) -> Dataset:
    """The item of a macro for a frame (from 0), wherever the writer put it: shared groups or the frame's own.

    An empty data set if it is in neither.
    """
    own = segmentation.PerFrameFunctionalGroupsSequence[frame]
    for groups in (own, *(segmentation.get("SharedFunctionalGroupsSequence") or ())):
        if groups.get(macro):
            return groups[macro].value[0]
    return Dataset()


def frame_mask(segmentation: Dataset, frame: int) -> np.ndarray:
    """The pixels of a frame (from 0): bool (rows, columns)."""
    rows, columns = int(segmentation.Rows), int(segmentation.Columns)
    first, last = frame * rows * columns, (frame + 1) * rows * columns
    packed = np.frombuffer(segmentation.PixelData, np.uint8)[first // 8 : -(-last // 8)]
    return np.unpackbits(packed, bitorder="little")[first % 8 :][: rows * columns].reshape(rows, columns).astype(bool)


def frame_source(segmentation: Dataset, frame: int) -> ImageRef:
    """The source image a frame (from 0) was drawn on."""
    source = functional_group(segmentation, frame, "DerivationImageSequence").SourceImageSequence[0]
    number = source.get("ReferencedFrameNumber")
    return ImageRef(
        str(source.ReferencedSOPClassUID),
        str(source.ReferencedSOPInstanceUID),
        None if number is None else int(number),
    )


def groups(report: Dataset) -> list[Group]:
    """The measurement groups of a TID 1500 report, in their order."""
    return [
        _group(item)
        for container in _children(report, codes.IMAGING_MEASUREMENTS)
        for item in _children(container, codes.MEASUREMENT_GROUP)
    ]


def observer(report: Dataset) -> str:
    """Device Observer Name, TID 1004: in our reports the pipeline."""
    return _text(report, codes.DEVICE_OBSERVER_NAME)


def summary(report: Dataset) -> str:
    """What stands before the groups; empty in reports of earlier versions."""
    return _text(report, codes.SUMMARY)


def axes_of(group: Group, every: Sequence[Group]) -> Mapping[Code, Line]:
    """Where the axes of a finding are drawn: in its own group, or in one for OHIF's calipers."""
    calipers = next((other for other in every if other.tracking_id == f"{CALIPERS}:{group.tracking_id}"), None)
    return group.axes or (calipers.axes if calipers else {})


def comments(report: Dataset) -> list[str]:
    """The remarks at the end of the report, warnings among them."""
    return [str(item.TextValue) for item in _children(report, codes.COMMENT)]


def is_of_clip(segmentation: Dataset) -> bool:
    """Whether it marks frames of multi-frame images, rather than images."""
    return any(
        "ReferencedFrameNumber" in source
        for frame in segmentation.PerFrameFunctionalGroupsSequence
        for derivation in frame.DerivationImageSequence
        for source in derivation.SourceImageSequence
    )


def not_analysed(report: Dataset) -> str | None:
    """Why the series was not analysed, if this is a report of that kind (`not_run.not_run_report`); else None."""
    for container in _children(report, codes.IMAGING_MEASUREMENTS):
        for group in _children(container, codes.MEASUREMENT_GROUP):
            summary = _coded(group, codes.SUMMARY_OF_ANALYSES)
            if summary is not None and summary == codes.NOT_ATTEMPTED:
                texts = [str(item.TextValue) for item in _children(group, codes.COMMENT)]
                return next((text.removeprefix(REASON) for text in texts if text.startswith(REASON)), "")
    return None


def findings(report: Dataset, segmentations: Sequence[Dataset], images: Sequence[ImageRef]) -> Findings:
    """The Findings that `objects.encode` made these of. `images` gives the order of the source grid.

    Not in the objects, so not here: `facts`, and what was sought if something was found. Numbers are as the report has
    them, rounded. Reports of earlier versions, with up to three groups for a finding, are read too.
    """
    every = groups(report)
    index = {ref: k for k, ref in enumerate(images)}
    marked = {segment.tracking_uid: segment for item in segmentations for segment in segments(item)}
    regions = [group for group in every if is_finding(group)]
    whole = next((group for group in every if group.tracking_id == WHOLE), None)
    absent = _absent(report, whole)
    drawn = any(group.tracking_uid in marked for group in regions)
    is_volume = any(group.template == "1411" for group in every) or (not drawn and _procedure_is_ct(report))
    nothing_sought = not regions and absent is None and whole is not None and not _counts(whole)
    result = Findings(
        pipeline=observer(report),
        geometry="volume" if is_volume else "image",
        images=tuple(images),
        findings=tuple(
            _finding(number, group, marked.get(group.tracking_uid), every, index)
            for number, group in enumerate(regions, 1)
        ),
        algorithm=Algorithm(
            name=_text(report, codes.DEVICE_OBSERVER_MODEL_NAME),
            version=_text(report, codes.DEVICE_OBSERVER_SERIAL_NUMBER),
            manufacturer=_text(report, codes.DEVICE_OBSERVER_MANUFACTURER),
        ),
        measurements=tuple(m for m in whole.measurements if m.name != codes.NUMBER_OF_LESIONS) if whole else (),
        evaluations=tuple(e for e in whole.evaluations if e != absent) if whole else (),
        warnings=tuple(text.removeprefix(WARNING) for text in comments(report) if text.startswith(WARNING)),
        compared_with=compared_with(report),
        not_calibrated=tuple(dict.fromkeys(name for group in every for name in sorted(group.not_calibrated))),
    )
    if nothing_sought and whole is not None:
        return replace(result, sought=None, sought_site=whole.site)
    return result if absent is None or whole is None else replace(result, sought=absent.name, sought_site=whole.site)


def is_finding(group: Group) -> bool:
    """Whether a group tells of one finding: by an outline, a box, or the image that it is on."""
    drawing = group.tracking_id.startswith(OHIF_TOOL)  # of another group's finding
    return group.template in ("1410", "1411") or (group.type is not None and group.tracking_id != WHOLE and not drawing)


def is_boxed(group: Group) -> bool:
    """Whether its finding is marked by a box, and has no segment."""
    return group.template == "1410" and any(remark.startswith(BOXED) for remark in group.remarks)


def _counts(whole: Group) -> bool:
    return any(m.name == codes.NUMBER_OF_LESIONS for m in whole.measurements)


# ------------------------------------------------------------------------------------------------------ Segmentation


def _segment(item: Dataset, masks: Mapping[ImageRef, np.ndarray]) -> Segment:
    regions = item.get("AnatomicRegionSequence")
    modifiers = regions[0].get("AnatomicRegionModifierSequence") if regions else None
    return Segment(
        number=int(item.SegmentNumber),
        label=str(item.SegmentLabel),
        tracking_uid=str(item.get("TrackingUID") or ""),
        category=_code(item.SegmentedPropertyCategoryCodeSequence[0]),
        type=_code(item.SegmentedPropertyTypeCodeSequence[0]),
        site=_code(regions[0]) if regions else None,
        laterality=_code(modifiers[0]) if modifiers else None,
        masks=masks,
    )


# ------------------------------------------------------------------------------------------------------------ report


class _Named:
    """Content items by their concept names, each name read once: a group is asked for a dozen of them."""

    def __init__(self, items: Sequence[Dataset]) -> None:
        self.names = [_name(item) for item in items]
        self.items = items

    def __call__(self, name: Code) -> list[Dataset]:
        return [item for own, item in zip(self.names, self.items, strict=True) if own.value and own == name]

    def text(self, name: Code) -> str:
        return next((str(item.TextValue) for item in self(name)), "")

    def coded(self, name: Code) -> Code | None:
        return next((_code(item.ConceptCodeSequence[0]) for item in self(name)), None)


def _group(item: Dataset) -> Group:
    children = list(item.ContentSequence)
    named = _Named(children)
    # a group says what it is, then who measured (or what was measured), then what it evaluates
    told = next(
        (k for k, c in enumerate(children) if c.ValueType == "NUM" or named.names[k] == codes.ALGORITHM_NAME), 0
    )
    about = _Named(children[:told]) if told else named
    numbers = [(name, child) for name, child in zip(named.names, children, strict=True) if child.ValueType == "NUM"]
    coordinates = [_coordinates(child) for _, child in numbers]
    sites = about(codes.FINDING_SITE)
    templates = item.get("ContentTemplateSequence")
    segment = None
    for child in named(codes.REFERENCED_SEGMENT):
        reference = child.ReferencedSOPSequence[0]
        segment = (str(reference.ReferencedSOPInstanceUID), int(reference.ReferencedSegmentNumber))
    predecessor_uid, change = predecessor_and_change(item)
    return Group(
        template=str(templates[0].TemplateIdentifier) if templates else "1501",
        tracking_id=named.text(codes.TRACKING_IDENTIFIER),
        tracking_uid=next((str(child.UID) for child in named(codes.TRACKING_UID)), ""),
        type=about.coded(codes.FINDING),
        category=about.coded(codes.FINDING_CATEGORY),
        site=about.coded(codes.FINDING_SITE),
        laterality=_coded(sites[0], codes.LATERALITY) if sites else None,
        measurements=tuple(_measurement(name, child) for name, child in numbers),
        evaluations=tuple(
            Evaluation(name, _code(child.ConceptCodeSequence[0]))
            for name, child in zip(named.names[told:], children[told:], strict=True)
            if child.ValueType == "CODE" and child.RelationshipType == "CONTAINS"
        ),
        lines=tuple(_line(drawn) for drawn in itertools.chain(_coordinates(item), *coordinates)),
        segment=segment,
        axes={name: _line(drawn[0]) for (name, _), drawn in zip(numbers, coordinates, strict=True) if drawn},
        remarks=tuple(str(child.TextValue) for child in named(codes.COMMENT)),
        not_calibrated=frozenset(
            name for name, child in numbers if _text(child, codes.EQUIVALENT_MEANING).endswith(NOT_CALIBRATED)
        ),
        predecessor_uid=predecessor_uid,
        change=change,
    )


def _absent(report: Dataset, whole: Group | None) -> Evaluation | None:
    """What was sought and not found: an evaluation of the document, in earlier versions the group's own."""
    for container in _children(report, codes.QUALITATIVE_EVALUATIONS):
        for item in container.get("ContentSequence") or ():
            if item.ValueType == "CODE" and _code(item.ConceptCodeSequence[0]) == codes.ABSENT:
                return Evaluation(_name(item), codes.ABSENT)
    return None if whole is None or whole.type is None else Evaluation(whole.type, codes.ABSENT)


def _finding(
    number: int, group: Group, segment: Segment | None, every: Sequence[Group], index: Mapping[ImageRef, int]
) -> Finding:
    """A finding out of its group, its segment if it has one, and the groups that draw it.

    Raises KeyError for a group that needs a segment and has none. A box is read on its key image only.
    """
    drawn = {other.tracking_id: other.lines for other in every if other.template == "1501"}
    contour = group.lines or drawn[f"{CONTOUR}:{group.tracking_id}"]
    extent: Literal["mask", "box", "none"] = "box" if is_boxed(group) else "mask"
    if group.template == "1501":
        extent = "none"
    if extent == "none":
        offset, mask = (index[contour[0].image], 0, 0), NOTHING
    elif extent == "box":
        offset, mask = _rectangle(contour[0], index)
    elif segment is None:
        raise KeyError(group.tracking_uid)
    else:
        offset, mask = _boxed(segment.masks, index)
    axes = axes_of(group, every)
    long_axis, short_axis = (
        _axis(axes[name], index) if name in axes else None for name in (codes.LONG_AXIS, codes.SHORT_AXIS)
    )
    certainty = next((m.value for m in group.measurements if m.name == codes.CERTAINTY), None)
    return Finding(
        number=number,
        label=group.tracking_id,
        category=(segment or group).category or codes.MORPHOLOGICALLY_ABNORMAL_STRUCTURE,
        type=(segment or group).type or codes.LESION,
        site=(segment or group).site or codes.THORAX,
        laterality=(segment or group).laterality,
        mask=mask,
        offset_zyx=offset,
        key_image=index[contour[0].image],
        certainty=None if certainty is None else certainty / 100,
        long_axis=long_axis,
        short_axis=short_axis,
        measurements=tuple(m for m in group.measurements if m.name != codes.CERTAINTY),
        evaluations=group.evaluations,
        predecessor_uid=group.predecessor_uid,
        change=group.change,
        extent=extent,
    )


def _rectangle(line: Line, index: Mapping[ImageRef, int]) -> tuple[tuple[int, int, int], np.ndarray]:
    x0, y0 = line.points.min(axis=0)
    x1, y1 = line.points.max(axis=0)
    return (index[line.image], round(y0), round(x0)), np.ones((1, round(y1 - y0), round(x1 - x0)), bool)


def _boxed(
    masks: Mapping[ImageRef, np.ndarray], index: Mapping[ImageRef, int]
) -> tuple[tuple[int, int, int], np.ndarray]:
    """The smallest box round a segment: its offset and bool (d, h, w)."""
    planes = {index[ref]: mask for ref, mask in masks.items()}
    shadow = np.logical_or.reduce(list(planes.values()))
    rows, columns = np.flatnonzero(shadow.any(axis=1)), np.flatnonzero(shadow.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    first, last = min(planes), max(planes)
    mask = np.zeros((last - first + 1, *shadow[box].shape), dtype=bool)
    for z, whole in planes.items():
        mask[z - first] = whole[box]
    return (first, int(rows[0]), int(columns[0])), mask


def _axis(line: Line, index: Mapping[ImageRef, int]) -> Axis:
    (x0, y0), (x1, y1) = line.points.tolist()
    return Axis(index[line.image], (x0, y0), (x1, y1))


def _measurement(name: Code, number: Dataset) -> Measurement:
    value = number.MeasuredValueSequence[0]
    exact = value.get("FloatingPointValue")
    return Measurement(
        name=name,
        value=float(value.NumericValue if exact is None else exact),
        unit=_code(value.MeasurementUnitsCodeSequence[0]),
        derivation=_coded(number, codes.DERIVATION),
    )


def _coordinates(parent: Dataset) -> list[Dataset]:
    return [child for child in parent.get("ContentSequence") or () if child.ValueType == "SCOORD"]


def _line(coordinates: Dataset) -> Line:
    reference = coordinates.ContentSequence[0].ReferencedSOPSequence[0]
    frame = reference.get("ReferencedFrameNumber")
    return Line(
        ImageRef(
            str(reference.ReferencedSOPClassUID),
            str(reference.ReferencedSOPInstanceUID),
            None if frame is None else int(frame),
        ),
        np.array(coordinates.GraphicData, float).reshape(-1, 2),
    )


def _procedure_is_ct(report: Dataset) -> bool:
    return _coded(report, codes.PROCEDURE_REPORTED) == codes.CT_PROCEDURE


def _children(item: Dataset, name: Code) -> list[Dataset]:
    return [child for child in item.get("ContentSequence") or () if _is_named(child, name)]


def _coded(item: Dataset, name: Code) -> Code | None:
    return next((_code(child.ConceptCodeSequence[0]) for child in _children(item, name)), None)


def _text(item: Dataset, name: Code) -> str:
    return next((str(child.TextValue) for child in _children(item, name)), "")


def _is_named(item: Dataset, name: Code) -> bool:
    concept = item.get("ConceptNameCodeSequence")
    return bool(concept) and concept[0].CodeValue == name.value and _code(concept[0]) == name


def _name(item: Dataset) -> Code:
    """The concept name; a code of nothing for the items that may go without (PS3.3 C.17.3)."""
    name = item.get("ConceptNameCodeSequence")
    return _code(name[0]) if name else Code("", "", "")


def _code(item: Dataset) -> Code:
    version = item.get("CodingSchemeVersion") or None
    return Code(str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning), version)

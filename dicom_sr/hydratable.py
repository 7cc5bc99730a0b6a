"""A report of a volume as OHIF 3.13 makes measurements of its own of it: for each finding two groups more.

OHIF makes a measurement of a TID 1501 group whose Tracking Identifier names one of its tools and whose numbers have
coordinates. It merges groups of one Tracking Unique Identifier and goes by the first; so the contour shares that of the
TID 1411 group and stands before it, and the outline and axes leave the latter. Calipers have a UID of their own, for
OHIF keeps one tool per UID. What it then shows it has measured again.

Ultrasound stays as it is: OHIF reads its calibration wrongly, and showed 5063 cm2 for 3.16 cm2.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.derived import Results, another
from dicom_sr.findings import ImageRef
from dicom_sr.header import code_item
from dicom_sr.outline import polygon_area
from dicom_sr.report import CALIPERS, CONTOUR
from dicom_sr.rounding import state
from dicom_sr.source import plane
from dicom_sr.uids import child_uid

AXES = (codes.LONG_AXIS, codes.SHORT_AXIS)


def hydratable(report: Dataset, results: Results) -> Dataset:
    """The report under UIDs of its own with the groups that OHIF works on; as it is if there is no volume in it.

    Raises EncodingError if an image is not there.
    """
    result = another(report, "hydratable")
    changed = False
    for container in _named(result, codes.IMAGING_MEASUREMENTS):
        groups = []
        for group in container.ContentSequence:
            drawn = _named(group, codes.OUTLINE)
            if group.ContentTemplateSequence[0].TemplateIdentifier == "1411" and drawn:
                groups += [*_drawings(group, drawn[0], results), _undrawn(group)]
                changed = True
            else:
                groups.append(group)
        _put(container, groups)
    return result if changed else report


def _drawings(group: Dataset, outline: Dataset, results: Results) -> Iterator[Dataset]:
    numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
    reference = outline.ContentSequence[0].ReferencedSOPSequence[0]
    frame = reference.get("ReferencedFrameNumber")
    ref = ImageRef(
        str(reference.ReferencedSOPClassUID),
        str(reference.ReferencedSOPInstanceUID),
        None if frame is None else int(frame),
    )
    pixels = polygon_area(np.array(outline.GraphicData, float).reshape(-1, 2))
    pixel_mm2 = plane(results.source(ref), ref.frame).pixel_area_mm2()
    unit = codes.MM2 if pixel_mm2 else codes.PIXELS
    area = copy.deepcopy(numbers[0])
    area.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.AREA)]
    area.MeasuredValueSequence = [Dataset()]
    state(area, pixels * (pixel_mm2 or 1), unit)
    area.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [code_item(unit)]
    yield _drawing(group, CONTOUR, None, [_with_coordinates(area, outline)])

    axes = [(number, drawn) for number in numbers if _is(number, *AXES) for drawn in _coordinates(number)]
    if len(axes) == len(AXES):
        [uid] = _named(group, codes.TRACKING_UID)
        own = child_uid(uid.UID, "calipers")
        yield _drawing(group, CALIPERS, own, [_with_coordinates(*each) for each in axes])


def _drawing(group: Dataset, tool: str, uid: str | None, numbers: list[Dataset]) -> Dataset:
    """TID 1501: of the finding who it is, what and where; and what OHIF's tool of this name makes a measurement of."""
    about = [copy.deepcopy(item) for item in group.ContentSequence if _is(item, *ABOUT)]
    [label] = [item for item in about if _is(item, codes.TRACKING_IDENTIFIER)]
    comment = copy.deepcopy(label)  # OHIF shows it as the measurement's label
    comment.RelationshipType = "CONTAINS"
    comment.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.COMMENT)]
    label.TextValue = f"{tool}:{label.TextValue}"
    for item in about:
        if uid is not None and _is(item, codes.TRACKING_UID):
            item.UID = uid
    drawing = Dataset()
    for keyword in ("RelationshipType", "ValueType", "ConceptNameCodeSequence", "ContinuityOfContent"):
        drawing[keyword] = copy.deepcopy(group[keyword])
    drawing.ContentTemplateSequence = copy.deepcopy(group.ContentTemplateSequence)
    drawing.ContentTemplateSequence[0].TemplateIdentifier = "1501"
    drawing.ContentSequence = [*about, *numbers, comment]
    return drawing


ABOUT = (codes.TRACKING_IDENTIFIER, codes.TRACKING_UID, codes.FINDING, codes.FINDING_SITE)


def _with_coordinates(number: Dataset, drawn: Dataset) -> Dataset:
    """The number with these coordinates as its first child, where OHIF looks for them, and its algorithm."""
    where = copy.deepcopy(drawn)
    where.RelationshipType = "INFERRED FROM"
    where.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.SOURCE)]
    result = copy.deepcopy(number)
    kept = [
        item
        for item in number.get("ContentSequence") or ()
        if item.ValueType != "SCOORD" and not _is(item, codes.DERIVATION, codes.EQUIVALENT_MEANING)
    ]
    _put(result, [where, *copy.deepcopy(kept)])
    return result


def _undrawn(group: Dataset) -> Dataset:
    result = copy.deepcopy(group)
    for item in (result, *result.ContentSequence):
        if item is result or item.ValueType == "NUM":
            _put(item, [child for child in item.get("ContentSequence") or () if child.ValueType != "SCOORD"])
    return result


def _coordinates(number: Dataset) -> list[Dataset]:
    return [item for item in number.get("ContentSequence") or () if item.ValueType == "SCOORD"]


def _put(parent: Dataset, items: list[Dataset]) -> None:
    """Its content items, be it read from a file or highdicom's own, which keeps a list of their names beside."""
    if items:
        parent.add_new("ContentSequence", "SQ", items)
    else:
        parent.pop("ContentSequence", None)


def _named(parent: Dataset, name: Code) -> list[Dataset]:
    return [item for item in parent.get("ContentSequence") or () if _is(item, name)]


def _is(item: Dataset, *names: Code) -> bool:
    concept = item.get("ConceptNameCodeSequence")
    return bool(concept) and any(
        (concept[0].CodeValue, concept[0].CodingSchemeDesignator) == (name.value, name.scheme_designator)
        for name in names
    )

"""The forms that viewers can load: the rules of OHIF, TID 1500, and nothing found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import highdicom as hd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset
from scipy import ndimage

from dicom_sr import codes, encode, read
from dicom_sr.derived import Results
from dicom_sr.findings import Axis
from dicom_sr.hydratable import hydratable
from dicom_sr.outline import outline, polygon_area
from dicom_sr.plain_sr import sentences
from dicom_sr.report import report
from dicom_sr.rounding import rounded
from dicom_sr.source import headers_by_uid
from tests.results import CASES, WHEN, ct_findings, encoded, nodule


def groups(report: Dataset) -> list[Dataset]:
    (measurements,) = (i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010")
    return list(measurements.ContentSequence)


def items(tree: Dataset) -> Iterator[Dataset]:
    for item in tree.get("ContentSequence") or ():
        yield item
        yield from items(item)


@pytest.mark.parametrize("name", [name for name in CASES if name != "us_uncalibrated"])
def test_there_is_one_group_for_each_finding(name: str) -> None:
    """With what is measured, the outline and the axes; and at most one for the images as a whole."""
    case, (*_, report) = encoded(name)
    found = read.groups(report)
    lesions = [group for group in found if group.tracking_id != "Whole image"]
    assert len(found) - len(lesions) <= 1
    assert [group.tracking_id for group in lesions] == [finding.label for finding in case.findings.findings]
    for group, finding in zip(lesions, case.findings.findings, strict=True):
        drawn = "1411" if case.findings.geometry == "volume" else "1410"
        assert group.template == {"mask": drawn, "box": "1410", "none": "1501"}[finding.extent]
        assert group.lines[0].image == case.findings.images[finding.key_image]
        axes = {codes.LONG_AXIS, codes.SHORT_AXIS} if finding.extent == "mask" else set()
        if finding.extent != "none":  # there the edge of the image stands below its numbers
            assert group.axes.keys() == axes


def test_ohif_finds_a_named_outline_in_every_group_and_a_name_on_every_item() -> None:
    """It reads the name of every item, and takes the first coordinates."""
    for name in CASES:
        for group in groups(encoded(name)[1][-1]):
            assert all(item.ConceptNameCodeSequence for item in group.ContentSequence)
            top = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
            below = [
                child
                for item in group.ContentSequence
                for child in item.get("ContentSequence") or ()
                if child.ValueType == "SCOORD"
            ]
            assert len(top) == 1 or below


def test_ohif_finds_coordinates_as_the_first_child_of_every_number_it_draws() -> None:
    case, (segmentation, document) = encoded("ct_two")
    results = Results((segmentation,), document, headers_by_uid(case.headers))
    for group in groups(hydratable(document, results)):
        numbers = [item for item in group.ContentSequence if item.ValueType == "NUM"]
        drawn = "Cornerstone" in group.ContentSequence[0].TextValue
        for number in numbers:
            first = next(iter(number.get("ContentSequence") or ()), Dataset())
            assert (first.get("ValueType") == "SCOORD") == drawn
        if drawn:
            label = group.ContentSequence[-1]
            assert label.ConceptNameCodeSequence[0].CodeValue == "121106"
            assert label.TextValue in ("Nodule 1", "Nodule 2")


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("us_")])
def test_ohif_measures_no_ultrasound_again(name: str) -> None:
    """It showed 5063 cm2 for 3.16 cm2."""
    for group in read.groups(encoded(name)[1][-1]):
        assert "Cornerstone" not in group.tracking_id
        assert group.lines  # OHIF draws nothing of a report with a group that has no coordinates


@pytest.mark.parametrize("name", CASES)
def test_every_group_can_be_tracked(name: str) -> None:
    found = read.groups(encoded(name)[1][-1])
    assert found
    assert all(group.tracking_id and group.tracking_uid for group in found)


@pytest.mark.parametrize("name", CASES)
def test_evidence_is_what_the_tree_refers_to(name: str) -> None:
    report = encoded(name)[1][-1]
    tree = {r.ReferencedSOPInstanceUID for i in items(report) for r in i.get("ReferencedSOPSequence", [])}
    evidence = [
        i.ReferencedSOPInstanceUID
        for name in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in report.get(name, [])
        for series in study.ReferencedSeriesSequence
        for i in series.ReferencedSOPSequence
    ]
    assert len(evidence) == len(set(evidence))
    assert set(evidence) == tree


def test_highdicom_reads_the_report() -> None:
    theirs = hd.sr.Comprehensive3DSR.from_dataset(encoded("ct_two")[1][-1]).content
    volumes = theirs.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in volumes] == ["Nodule 1", "Nodule 2"]
    (long_axis,) = volumes[0].get_measurements(name=codes.LONG_AXIS)
    assert (long_axis.value, long_axis.unit.value) == (4.5, "mm")
    clip = hd.sr.Comprehensive3DSR.from_dataset(encoded("us_clip")[1][-1]).content
    regions = clip.get_planar_roi_measurement_groups()
    assert [group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber for group in regions] == [3, 6]


@pytest.mark.parametrize(("name", "images"), [("ct_nothing", 12), ("us_normal", 1)])
def test_nothing_found_is_said_of_the_document_and_no_group_is_a_finding(name: str, images: int) -> None:
    case, (*_, report) = encoded(name)
    sought = case.findings.sought
    (absent,) = (i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "C0034375")
    (statement,) = absent.ContentSequence
    assert statement.ConceptNameCodeSequence[0].CodeMeaning == sought.meaning
    assert statement.ConceptCodeSequence[0].CodeMeaning == "Absent"
    assert read.summary(report).startswith(f"No {sought.meaning.lower()} found in the ")
    (whole,) = groups(report)
    for item in whole.ContentSequence:
        if item.ValueType == "CODE":
            assert item.ConceptCodeSequence[0].CodeValue != sought.value
    assert sum(item.ValueType == "IMAGE" for item in whole.ContentSequence) == images
    (count,) = (m for m in read.groups(report)[0].measurements if m.name == codes.NUMBER_OF_LESIONS)
    assert count.value == 0


def test_the_summary_comes_first_and_says_how_many_where_and_what_changed() -> None:
    _, (*_, report) = encoded("ct_compared")
    kinds = [item.ConceptNameCodeSequence[0].CodeMeaning for item in report.ContentSequence]
    assert kinds.index("Summary") == kinds.index("Imaging Measurements") - 1
    assert read.summary(report) == (
        "2 nodules found. The largest is Nodule 1: right lung, 4.5 x 3.8 mm, image 4. Compared with the study of"
        " 2025-09-01, 181 days before: grew: Nodule 1; new: Nodule 2; no longer found: 1."
    )
    assert read.summary(encoded("us_clip")[1][-1]).startswith("2 masses found. The largest is Mass 1: left breast, ")
    assert ", image 1, frame 3." in read.summary(encoded("us_clip")[1][-1])
    assert ", frame 4." in read.summary(encoded("ct_enhanced")[1][-1])


def test_what_is_not_calibrated_says_so() -> None:
    case, _ = encoded("us_several")
    doubtful = replace(case.findings, not_calibrated=(codes.CERTAINTY, codes.PROBABILITY_OF_CANCER))
    for findings, expected in ((case.findings, {codes.CERTAINTY}), (doubtful, set(doubtful.not_calibrated))):
        *_, report = encode(findings, case.headers, when=WHEN)
        assert {name for group in read.groups(report) for name in group.not_calibrated} == expected
        said = [sentence.text for sentence in sentences(report)]
        assert any("Certainty of Finding 87 %, not calibrated;" in text for text in said)
        assert any("Probability of cancer 13 %, not calibrated;" in text for text in said) == (findings is doubtful)


def test_warnings_and_research_use_are_in_words() -> None:
    texts = read.comments(encoded("ct_two")[1][-1])
    assert texts == ["Research use only, not for diagnostic use.", "Warning: slices are thick"]


@pytest.mark.parametrize("geometry", ["volume", "image"])
def test_the_report_asks_a_header_for_nothing_but_identity_size_and_spacing(geometry: str) -> None:
    """What an image may go without, the report does without: each attribute taken away, and each empty."""
    needed = {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Rows", "Columns", "Modality"}
    case, objects = encoded("ct_two" if geometry == "volume" else "us_clip")
    keywords = {element.keyword for head in case.headers for element in head} - needed
    unneeded = keywords - {"PixelSpacing", "SequenceOfUltrasoundRegions", "NumberOfFrames", "InstanceNumber"}
    for keyword in sorted(unneeded):
        for spoil in (delattr, lambda head, name: setattr(head, name, None)):
            headers = case.headers
            for head in headers:
                spoil(head, keyword)
            document = report(case.findings, headers, when=WHEN, segmentations=objects[:-1])
            assert document.ContentSequence == objects[-1].ContentSequence, keyword


def test_the_observer_is_a_device_and_the_document_unverified() -> None:
    report = encoded("ct_two")[1][-1]
    context = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.get("TextValue")
        for item in report.ContentSequence
        if item.RelationshipType == "HAS OBS CONTEXT"
    }
    assert context["Device Observer Name"] == "lung-nodule"
    assert context["Device Observer Serial Number"] == "0.1.0+1a2b3c4d"
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")


def test_area_of_the_contour_is_the_area_a_viewer_recomputes() -> None:
    case, (segmentation, document) = encoded("ct_two")
    finding = case.findings.findings[0]
    results = Results((segmentation,), document, headers_by_uid(case.headers))
    contour = read.groups(hydratable(document, results))[0]
    rows, columns = (float(v) for v in case.images[0].PixelSpacing)
    recomputed = polygon_area(contour.lines[0].points * (columns, rows))
    in_pixels = int(finding.mask[finding.key_image - finding.offset_zyx[0]].sum())
    assert recomputed == pytest.approx(in_pixels * rows * columns)
    assert contour.measurements[0].value == rounded(recomputed, codes.MM2)


def test_a_caliper_beyond_the_edge_is_drawn_to_the_edge() -> None:
    case, _ = encoded("ct_two")
    edge = nodule(1, (2, 5, 0), short_axis=Axis(3, (-0.5, 8.0), (5.0, 8.0)))
    _, report = encode(ct_findings(case.images, edge), case.headers, when=WHEN)
    short = read.groups(report)[0].axes[codes.SHORT_AXIS]
    np.testing.assert_array_equal(short.points, [(0, 8), (5, 8)])


# ----------------------------------------------------------------------------------------------------------- outline

SHAPES = {
    "one pixel": ["#"],
    "bar": ["####"],
    "staircase": ["#...", "##..", ".##.", "..##"],
    "two runs in a row": ["#.#", "###", "#.#"],
    "spiral": ["#####", "....#", "###.#", "#...#", "#####"],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_outline_encloses_exactly_the_pixels(shape: str) -> None:
    mask = np.array([[letter == "#" for letter in line] for line in SHAPES[shape]])
    points = outline(mask)
    np.testing.assert_array_equal(points[0], points[-1])
    steps = np.diff(points, axis=0)
    assert ((steps == 0).sum(axis=1) == 1).all()  # along pixel edges
    assert (steps[1:, 0] * steps[:-1, 0] == 0).all()  # corners only
    for row, column in np.ndindex(mask.shape):
        assert inside(points, column + 0.5, row + 0.5) == mask[row, column]
    assert polygon_area(points) == mask.sum()


def test_outline_encloses_holes_and_leaves_islands_out() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[1:6, 1:6] = True
    mask[3, 3] = False
    mask[8, 8] = True
    points = outline(mask)
    assert polygon_area(points) == 25
    assert points.max() == 6
    open_at_a_corner = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=bool)
    assert polygon_area(outline(open_at_a_corner)) == 8
    with pytest.raises(ValueError, match="no outline"):
        outline(np.zeros((3, 3), dtype=bool))


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_outline_of_any_mask_is_simple_and_holds_the_largest_part(mask: np.ndarray) -> None:
    points = outline(mask)
    corners = [tuple(point) for point in points[:-1].tolist()]
    assert len(set(corners)) == len(corners)
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())[1:]
    largest = parts == 1 + int(sizes.argmax())
    enclosed = np.array([[inside(points, x + 0.5, y + 0.5) for x in range(mask.shape[1])] for y in range(len(mask))])
    assert (enclosed | ~largest).all()
    assert polygon_area(points) == enclosed.sum()


def inside(points: np.ndarray, x: float, y: float) -> bool:
    """Even-odd rule: how often a ray to the right crosses the polygon."""
    crossings = 0
    for (x0, y0), (_, y1) in pairwise(points):
        crossings += (min(y0, y1) < y < max(y0, y1)) and x0 > x
    return crossings % 2 == 1

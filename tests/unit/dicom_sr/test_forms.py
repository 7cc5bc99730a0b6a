"""Every other form of a result says what the SEG and the SR say, at the same place, and is the same when made again.

Masks are read back from contours by a rule of its own (even-odd at pixel centres, in patient millimetres), from label
maps and Segmentations by highdicom.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from typing import Any

import highdicom
import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset

import dicom_sr.capture
from dicom_sr import encode, read
from dicom_sr.capture import CALIPER, FOREMOST, MOST, scale_of
from dicom_sr.derived import Results, mark_findings
from dicom_sr.findings import Findings, ImageRef
from dicom_sr.forms import (
    ALL_FRAMES,
    BOXES,
    CHAINS,
    FOR_OHIF,
    KEY_OBJECTS,
    LABEL_MAP,
    LABEL_MAP_ALL_FRAMES,
    REPORT,
    SEGMENTATION,
    Form,
    Profile,
    forms_of,
)
from dicom_sr.forms import FOREMOST as FOREMOST_IMAGES
from dicom_sr.labelmap import label_map, retarget
from dicom_sr.outline import keyhole, outlines, polygon_area
from dicom_sr.plain_sr import sentences
from dicom_sr.rounding import in_words as said_as
from dicom_sr.source import EncodingError
from dicom_sr.validate import problems
from tests.factories import ct_series, header, us_image
from tests.results import CASES, WHEN, assert_same, ct_findings, encoded, mass, nodule, refs, us_findings
from tests.unit.dicom_sr.test_geometry import SERIES

FORMS = {form.name: form for chain in CHAINS.values() for form in chain if form.name != "Secondary Capture"}
KEY_IMAGES, PAGES = (chain[-1] for chain in CHAINS.values())
RTSTRUCT, GSPS = FORMS["RT Structure Set"], FORMS["Grayscale Softcopy Presentation State"]
ENHANCED, BASIC_TEXT = FORMS["Enhanced SR"], FORMS["Basic Text SR"]

FEW = [name for name in CASES if name != "ct_many"]  # thirty findings take seconds and show nothing new there


def results_of(findings: Findings, images: list[Dataset]) -> tuple[Results, list[Dataset]]:
    headers = [header(image) for image in images]
    return as_results(encode(findings, headers, when=WHEN), headers), headers


def as_results(objects: list[Dataset] | tuple[Dataset, ...], headers: list[Dataset]) -> Results:
    return Results(tuple(objects[:-1]), objects[-1], {str(h.SOPInstanceUID): h for h in headers})


def case_results(name: str) -> Results:
    case, objects = encoded(name)
    return as_results(objects, case.headers)


def grey(ref: ImageRef) -> np.ndarray:
    """Pixels of no colour, so that what is drawn in colour can be told from them."""
    return np.full((32, 40, 3), 90, np.uint8)


def made(form: Form, original: Dataset, results: Results, pixels: Any = grey) -> list[Dataset]:
    return form.make(original, results, pixels)


def original_of(form: Form, results: Results) -> Dataset:
    of_report = form in CHAINS[REPORT.sop_class_uid] or form is KEY_OBJECTS
    return results.report if of_report else results.segmentations[0]


# ------------------------------------------------------------------------------------------------------------ the same


@pytest.mark.parametrize("name", FEW)
def test_made_again_it_is_the_same_to_the_byte(name: str) -> None:
    """And has UIDs of its own, the patient's and study's attributes, and the original's dates."""
    results = case_results(name)
    case, _ = encoded(name)
    shape = case.images[0].Rows, case.images[0].Columns
    originals = [*((each, True) for each in results.segmentations), (results.report, False)]
    uids: set[str] = {str(each.SOPInstanceUID) for each, _ in originals}
    for original, is_seg in originals:
        others = (LABEL_MAP, ALL_FRAMES, FOREMOST_IMAGES) if is_seg else (KEY_OBJECTS,)
        chain = [form for form in CHAINS[original.SOPClassUID] if form not in (SEGMENTATION, REPORT)]
        drawn = any(finding.extent == "mask" for finding in case.findings.findings)
        hydrated = () if is_seg or not drawn or name.startswith("us") else tuple(FOR_OHIF.values())
        for form in (*chain, *others, *hydrated):
            try:
                twice = [
                    made(form, original, results, lambda ref: np.full((*shape, 3), 90, np.uint8)) for _ in range(2)
                ]
            except EncodingError:
                continue
            assert [as_bytes(d, form) for d in twice[0]] == [as_bytes(d, form) for d in twice[1]], form.name
            for dataset in twice[0]:
                assert dataset.SOPClassUID == form.sop_class_uid
                assert dataset.file_meta.MediaStorageSOPClassUID == form.sop_class_uid
                assert dataset.SOPInstanceUID not in uids, "an object of other bytes needs a UID of its own"
                uids.add(str(dataset.SOPInstanceUID))
                for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
                    assert dataset[keyword].value == original[keyword].value
                assert dataset.SeriesInstanceUID != original.SeriesInstanceUID
                assert dataset.InstanceCreationDate == original.InstanceCreationDate
                assert "Research use only" in str(dataset)


def as_bytes(dataset: Dataset, form: Form) -> bytes:
    buffer = BytesIO()
    implicit = form.transfer_syntaxes[0] == "1.2.840.10008.1.2"
    dataset.save_as(buffer, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------------- outlines


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_outlines_enclose_the_mask_and_nothing_else(mask: np.ndarray) -> None:
    loops = [loop for part in outlines(mask) for loop in part]
    np.testing.assert_array_equal(filled(loops, mask.shape, 0.5), mask)
    keyholes = [keyhole(part) for part in outlines(mask)]
    np.testing.assert_array_equal(filled(keyholes, mask.shape, 0.5), mask)
    assert sum(polygon_area(polygon) for polygon in keyholes) == mask.sum()
    assert all((polygon[0] == polygon[-1]).all() for polygon in keyholes)


def filled(polygons: list[np.ndarray], shape: tuple[int, ...], centre: float) -> np.ndarray:
    """bool shape: the pixels inside closed polygons of (column, row), where pixel 0 has its centre at `centre`.

    Looked at in four places of each pixel, which must agree: a shift by half a pixel does not go unseen.
    """
    rows, columns = np.indices(shape) + centre
    looks = [inside(polygons, columns + dx, rows + dy) for dx in (-0.4, 0.4) for dy in (-0.4, 0.4)]
    for other in looks[1:]:
        np.testing.assert_array_equal(other, looks[0])
    return looks[0]


def inside(polygons: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points lie inside closed polygons, by the even-odd rule: edges crossed on the way to the right."""
    crossings = np.zeros(x.shape, int)
    for points in polygons:
        for (x0, y0), (x1, y1) in pairwise(points.tolist()):
            if y0 != y1:
                between = (y0 > y) != (y1 > y)
                crossings += between & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return crossings % 2 == 1


# ------------------------------------------------------------------------------------------------------------ RTSTRUCT


def ring(depth: int = 3) -> np.ndarray:
    """A part with two holes, one of them with an island, and a second part that touches it at a corner."""
    mask = np.zeros((depth, 12, 12), bool)
    mask[:, 1:10, 1:10] = True
    mask[:, 2:4, 2:4] = False
    mask[:, 5:9, 4:9] = False
    mask[:, 7, 6] = True
    mask[:, 10:12, 10:12] = True
    return mask


@pytest.mark.parametrize("series", SERIES)
def test_contours_in_the_patient_enclose_the_very_voxels(series: str) -> None:
    images = ct_series(**SERIES[series])
    findings = ct_findings(images, nodule(1, (2, 4, 5)), nodule(2, (7, 11, 20), ring()))
    results, _ = results_of(findings, images)
    [structures] = made(RTSTRUCT, results.segmentations[0], results)
    structures = pydicom.dcmread(BytesIO(as_bytes(structures, RTSTRUCT)))
    by_uid = {image.SOPInstanceUID: k for k, image in enumerate(images)}
    assert structures.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    for finding, roi in zip(findings.findings, structures.ROIContourSequence, strict=True):
        polygons: dict[int, list[np.ndarray]] = {}
        for contour in roi.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            z = by_uid[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            polygons.setdefault(z, []).append(on_image(points, images[z]))
        volume = np.zeros((len(images), images[0].Rows, images[0].Columns), bool)
        for z, found in polygons.items():
            volume[z] = filled(found, volume.shape[1:], 0.0)
        assert {tuple(v) for v in np.argwhere(volume).tolist()} == {
            tuple(v) for v in (np.argwhere(finding.mask) + finding.offset_zyx).tolist()
        }


def on_image(points_lps_mm: np.ndarray, image: Dataset) -> np.ndarray:
    """Patient positions -> closed polygon of (column, row) indices of pixel centres, by the image's own geometry."""
    cosines = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = (float(v) for v in image.PixelSpacing)
    off = points_lps_mm - np.array(image.ImagePositionPatient, float)
    normal = np.cross(cosines[0], cosines[1])
    assert np.abs(off @ normal).max() < 1e-3, "a contour lies in the plane of its image"
    steps = np.linalg.lstsq((cosines * [[between_columns], [between_rows]]).T, off.T, rcond=None)[0].T
    return np.vstack([steps, steps[:1]])


def test_a_contour_too_long_for_an_explicit_ds_is_written_and_read() -> None:
    """A checkerboard with lines between: one part of thousands of corners; an explicit DS has 64 KiB at most."""
    comb = np.zeros((1, 120, 120), bool)
    comb[:, ::2] = True
    comb[:, :, 0] = True
    comb[:, 1::4, ::2] = True
    images = ct_series(shape=(3, 128, 128))
    results, _ = results_of(ct_findings(images, nodule(1, (1, 2, 3), comb)), images)
    [structures] = made(RTSTRUCT, results.segmentations[0], results)
    back = pydicom.dcmread(BytesIO(as_bytes(structures, RTSTRUCT)))
    [contour] = back.ROIContourSequence[0].ContourSequence
    assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
    assert sum(len(str(value)) + 1 for value in contour.ContourData) > 1 << 16


def test_images_without_a_place_make_no_structure_set() -> None:
    results = case_results("us_one")
    with pytest.raises(EncodingError, match="no place in the patient"):
        made(RTSTRUCT, results.segmentations[0], results)


# --------------------------------------------------------------------------------------------------------- label maps


@pytest.mark.parametrize("name", ["ct_two", "ct_many", "ct_oblique"])
@pytest.mark.parametrize("form", [LABEL_MAP, ALL_FRAMES, LABEL_MAP_ALL_FRAMES], ids=lambda form: form.name)
def test_highdicom_reads_the_same_masks(name: str, form: Form) -> None:
    results = case_results(name)
    case, _ = encoded(name)
    [other] = made(form, results.segmentations[0], results)
    theirs = hd.seg.Segmentation.from_dataset(pydicom.dcmread(BytesIO(as_bytes(other, form))))
    stack = theirs.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in case.images],
        segment_numbers=[finding.number for finding in case.findings.findings],
        assert_missing_frames_are_empty=True,
    )
    for k, finding in enumerate(case.findings.findings):
        z, y, x = finding.offset_zyx
        depth, height, width = finding.mask.shape
        whole = np.zeros(stack.shape[:3], bool)
        whole[z : z + depth, y : y + height, x : x + width] = finding.mask
        np.testing.assert_array_equal(stack[..., k].astype(bool), whole)
    if form is not LABEL_MAP:
        frames = len(case.images) * (1 if form is LABEL_MAP_ALL_FRAMES else len(case.findings.findings))
        assert other.NumberOfFrames == frames


@pytest.mark.parametrize("name", ["ct_two", "us_several", "us_clip"])
def test_a_segmentation_with_empty_frames_passes_our_own_checks(name: str) -> None:
    results = case_results(name)
    case, _ = encoded(name)
    whole = [each for segmentation in results.segmentations for each in made(ALL_FRAMES, segmentation, results)]
    assert sum(each.NumberOfFrames for each in whole) > sum(each.NumberOfFrames for each in results.segmentations)
    for each in whole:
        assert problems(each, case.headers, findings=case.findings, segmentations=whole) == []
    instead = {str(old.SOPInstanceUID): new for old, new in zip(results.segmentations, whole, strict=True)}
    report = retarget(results.report, instead)
    assert problems(report, case.headers, findings=case.findings, segmentations=whole) == []


def test_several_ultrasound_images_keep_their_own_label_maps() -> None:
    results = case_results("us_several")
    for segmentation in results.segmentations:
        other = label_map(segmentation)
        pixels = np.frombuffer(other.PixelData, np.uint8)
        drawn = {s.number: sum(int(m.sum()) for m in s.masks.values()) for s in read.segments(segmentation)}
        cells = other.NumberOfFrames * other.Rows * other.Columns
        assert {n: int((pixels[:cells] == n).sum()) for n in drawn} == drawn


def test_overlapping_findings_make_no_label_map() -> None:
    results = case_results("ct_overlapping")
    with pytest.raises(EncodingError, match="findings overlap"):
        made(LABEL_MAP, results.segmentations[0], results)


def test_a_report_refers_to_the_segmentation_that_was_sent() -> None:
    results = case_results("ct_two")
    old, new = results.segmentations[0], label_map(results.segmentations[0])
    report = retarget(results.report, {str(old.SOPInstanceUID): new})
    assert report.SOPInstanceUID != results.report.SOPInstanceUID
    text = as_bytes(report, REPORT)
    for uid in (old.SOPInstanceUID, old.SeriesInstanceUID, old.SOPClassUID):
        assert uid.encode() + b"\0" not in text
        assert uid.encode() + b"\x08" not in text
    assert {group.segment for group in read.groups(report) if group.segment} == {
        (str(new.SOPInstanceUID), 1),
        (str(new.SOPInstanceUID), 2),
    }
    named = {
        (str(item.ReferencedSOPInstanceUID), str(item.ReferencedSOPClassUID), str(series.SeriesInstanceUID))
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert (str(new.SOPInstanceUID), str(new.SOPClassUID), str(new.SeriesInstanceUID)) in named


def test_the_chain_of_each_profile() -> None:
    """Against a second list, written by hand."""

    def names(sop_class_uid: str, **profile: Any) -> list[str]:
        return [form.name for form in forms_of(sop_class_uid, Profile(**profile))]

    rest = ["RT Structure Set", "Grayscale Softcopy Presentation State", "Secondary Capture"]
    seg = "1.2.840.10008.5.1.4.1.1.66.4"
    assert names(seg) == ["Segmentation", *rest]
    assert names(seg, label_map=True) == ["Label Map Segmentation", "Segmentation", *rest]
    assert names(seg, omit_empty_frames=False) == ["Segmentation with empty frames", "Segmentation", *rest]
    assert names(seg, label_map=True, omit_empty_frames=False) == [
        "Label Map Segmentation with empty frames", "Segmentation with empty frames", "Segmentation", *rest,
    ]  # fmt: skip
    report = "1.2.840.10008.5.1.4.1.1.88.34"
    assert names("1.2.840.10008.5.1.4.1.1.88.33")[0] == "Comprehensive SR", "of an earlier version"
    plain = ["Basic Text SR", "Secondary Capture"]
    assert names(report, label_map=True) == ["Comprehensive 3D SR", "Comprehensive SR", "Enhanced SR", *plain]
    assert names(report, viewer="ohif") == [
        "Comprehensive 3D SR for OHIF", "Comprehensive SR for OHIF", "Enhanced SR for OHIF", *plain,
    ]  # fmt: skip
    assert names("1.2.840.10008.5.1.4.1.1.2") == []


# --------------------------------------------------------------------------------------------------- GSPS and captures


def test_a_presentation_state_draws_on_pixel_edges_of_the_right_images() -> None:
    case, _ = encoded("ct_two")
    results = case_results("ct_two")
    [state] = made(GSPS, results.segmentations[0], results)
    by_uid = {image.SOPInstanceUID: k for k, image in enumerate(case.images)}
    for finding in case.findings.findings:
        drawn: dict[int, list[np.ndarray]] = {}
        open_lines: dict[int, list[list[float]]] = {}
        for annotation in state.GraphicAnnotationSequence:
            for item in annotation.get("GraphicObjectSequence", []):
                if item.TrackingID != finding.label:
                    continue
                assert (item.GraphicType, item.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
                points = np.array(item.GraphicData, float).reshape(-1, 2)
                for reference in annotation.ReferencedImageSequence:
                    z = by_uid[reference.ReferencedSOPInstanceUID]
                    if (points[0] == points[-1]).all():
                        drawn.setdefault(z, []).append(points)
                    else:
                        open_lines.setdefault(z, []).append(points.ravel().tolist())
        shape = int(case.images[0].Rows), int(case.images[0].Columns)
        voxels = {
            (z, int(y), int(x)) for z, polygons in drawn.items() for y, x in np.argwhere(filled(polygons, shape, 0.5))
        }
        assert voxels == {tuple(v) for v in (np.argwhere(finding.mask) + finding.offset_zyx).tolist()}
        axes = [finding.long_axis, finding.short_axis]
        assert open_lines == {finding.key_image: [[*axis.start_xy, *axis.end_xy] for axis in axes if axis]}


def test_headers_that_lack_what_may_be_lacking_make_every_form() -> None:
    without = dict.fromkeys(
        ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyTime", "ReferringPhysicianName",
         "WindowCenter", "WindowWidth", "BodyPartExamined", "PositionReferenceIndicator"),
    )  # fmt: skip
    images = ct_series(**without)
    results, _ = results_of(ct_findings(images, nodule(1, (2, 4, 5))), images)
    for form in (*FORMS.values(), LABEL_MAP, ALL_FRAMES, KEY_IMAGES, PAGES, KEY_OBJECTS):
        assert as_bytes(made(form, original_of(form, results), results)[0], form)


@pytest.mark.parametrize("name", ["ct_two", "us_one", "us_clip"])  # the last is in colour: it gets none
def test_no_form_needs_the_table_of_all_modules(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """75 MB, and a second of the interpreter each time that it is read again."""

    def looked() -> None:
        raise AssertionError("read")

    monkeypatch.setattr(highdicom._standard_utils, "get_module_attribute_map", looked)
    results = case_results(name)
    for form in (*FORMS.values(), LABEL_MAP, ALL_FRAMES, KEY_IMAGES, PAGES, KEY_OBJECTS, *FOR_OHIF.values()):
        with suppress(EncodingError):
            made(form, original_of(form, results), results)


def state_of(images: list[Dataset]) -> Dataset:
    results, _ = results_of(ct_findings(images, nodule(1, (2, 4, 5))), images)
    return made(GSPS, results.segmentations[0], results)[0]


def test_a_presentation_state_says_that_the_least_value_is_white() -> None:
    """As DCMTK's dcmpsmk does; the image's own photometric interpretation no longer counts: PS3.4 N.2."""
    images = ct_series()
    assert state_of(images).PresentationLUTShape == "IDENTITY"
    for image in images:
        image.PhotometricInterpretation = "MONOCHROME1"
    assert state_of(images).PresentationLUTShape == "INVERSE"


@pytest.mark.parametrize(("spacing", "aspect"), [((0.75, 0.75), [1, 1]), ((0.5, 0.8), [5, 8]), ((1.4, 0.7), [2, 1])])
def test_a_presentation_state_shows_pixels_as_high_as_they_are(spacing: tuple[float, float], aspect: list[int]) -> None:
    [area] = state_of(ct_series(spacing_mm=(2.5, *spacing))).DisplayedAreaSelectionSequence
    assert area.PresentationPixelAspectRatio == aspect
    assert area.DisplayedAreaBottomRightHandCorner == [40, 32]


def test_each_image_keeps_its_own_window_in_a_presentation_state() -> None:
    images = ct_series()
    for number, image in enumerate(images):
        image.WindowCenter, image.WindowWidth = (["40", "-600"], ["400", "1500"]) if number % 2 else ("50", "350")
    state = state_of(images)
    named = {
        reference.ReferencedSOPInstanceUID: (window.WindowCenter, window.WindowWidth)
        for window in state.SoftcopyVOILUTSequence
        for reference in window.ReferencedImageSequence
    }
    [series] = state.ReferencedSeriesSequence
    assert named.keys() == {each.ReferencedSOPInstanceUID for each in series.ReferencedImageSequence}
    own = {image.SOPInstanceUID: (image.WindowCenter, image.WindowWidth) for image in images}
    assert named == {uid: own[uid] for uid in named}
    assert len(set(map(str, named.values()))) == 2


def without_intercept(image: Dataset) -> None:
    del image.RescaleIntercept


def with_table(image: Dataset) -> None:
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [2, 0, 16], "US", b"\0\0\1\0"
    image.ModalityLUTSequence = [item]


def of_another_size(image: Dataset) -> None:
    if image.InstanceNumber % 2:
        image.Columns += 1


def without_width(image: Dataset) -> None:
    image.WindowCenter, image.WindowWidth = "40", None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_intercept, "without an intercept"),
        (with_table, "table of their own"),
        (without_width, "without a width"),
    ],
)
def test_what_a_presentation_state_would_show_wrongly_it_does_not_show(
    change: Callable[[Dataset], None], words: str
) -> None:
    images = ct_series()
    results, headers = results_of(ct_findings(images, nodule(1, (2, 4, 5))), images)
    for each in headers:
        change(each)
    with pytest.raises(EncodingError, match=words):
        made(GSPS, results.segmentations[0], results)


def test_a_presentation_state_is_for_one_clip() -> None:
    clips = [us_image(frames=3, number=number) for number in (1, 2)]
    findings = us_findings(clips, mass(1, (1, 5, 6)), mass(2, (4, 5, 6)))
    results, _ = results_of(findings, clips)
    assert len(results.segmentations) == 1
    with pytest.raises(EncodingError, match="many frames"):
        made(GSPS, results.segmentations[0], results)


def test_a_presentation_state_is_for_grey_images() -> None:
    results = case_results("us_clip")
    with pytest.raises(EncodingError, match="in colour"):
        made(GSPS, results.segmentations[0], results)


@pytest.mark.parametrize("name", ["ct_two", "ct_oblique"])
def test_a_key_image_shows_the_outline_on_the_pixel_edges(name: str) -> None:
    """The line's colour lies within a pixel of the edge, everywhere along it; the image is untouched elsewhere."""
    case, _ = encoded(name)
    results = case_results(name)
    captures = made(KEY_IMAGES, results.segmentations[0], results)
    assert len(captures) == len(case.findings.findings)
    for capture, finding in zip(captures, mark_findings(results.segmentations[0], results.report), strict=True):
        [source] = capture.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == finding.key.sop_instance_uid
        pixels = capture.pixel_array[: 32 * scale_of(32, 40)]
        k = scale_of(32, 40)
        mask = np.kron(finding.segment.masks[finding.key], np.ones((k, k), bool))
        coloured = (pixels == finding.colour).all(axis=-1)
        caliper = (pixels == CALIPER).all(axis=-1)
        untouched = (pixels == 90).all(axis=-1)
        assert (coloured | caliper | untouched).all()
        y, x = np.nonzero(coloured)
        near = [mask[max(0, r - 1) : r + 2, max(0, c - 1) : c + 2] for r, c in zip(y, x, strict=True)]
        assert all(patch.any() and not patch.all() for patch in near), "the line runs between inside and outside"
        on_edge = mask & ~(np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1))
        touched = coloured | caliper
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            touched = touched | np.roll(coloured, (dy, dx), (0, 1))
        assert touched[on_edge].mean() == 1, "and leaves no edge out"
        for line in finding.calipers:
            middle = line.points.mean(axis=0) * k
            r, c = int(middle[1]), int(middle[0])
            assert caliper[r - 2 : r + 3, c - 2 : c + 3].any()


def test_the_research_sentence_stands_below_the_image_and_covers_nothing() -> None:
    results = case_results("ct_two")
    capture, *_ = made(KEY_IMAGES, results.segmentations[0], results)
    tall = 32 * scale_of(32, 40)
    assert capture.Rows > tall
    assert (capture.pixel_array[tall:].max(), capture.pixel_array[tall:].min()) == (255, 0)
    assert capture.BurnedInAnnotation == "YES"
    assert capture.ConversionType == "WSD"


def test_the_first_ten_and_it_says_so() -> None:
    results = case_results("ct_many")
    case, _ = encoded("ct_many")
    for form, most in ((KEY_IMAGES, MOST), (FOREMOST_IMAGES, FOREMOST)):
        captures = made(form, results.segmentations[0], results, lambda ref: np.zeros((48, 64, 3), np.uint8))
        assert len(captures) == most
        assert {capture.ImageComments for capture in captures} == {f"The first {most} of 30 findings"}
        keys = [str(case.images[finding.key_image].SOPInstanceUID) for finding in case.findings.findings[:most]]
        assert [capture.SourceImageSequence[0].ReferencedSOPInstanceUID for capture in captures] == keys
    assert (MOST, FOREMOST) == (10, 3)


@pytest.mark.parametrize("name", FEW)
def test_every_capture_carries_the_numbers_of_its_finding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remark that begins with the same name must not take their place."""
    written: list[list[str]] = []

    def with_words(drawn: np.ndarray, words: list[str], key: object) -> np.ndarray:
        written.append([*words, *(text for text, _ in key)])  # type: ignore[attr-defined]
        return drawn

    monkeypatch.setattr(dicom_sr.capture, "with_words", with_words)
    case, _ = encoded(name)
    results = case_results(name)
    shape = case.images[0].Rows, case.images[0].Columns
    for segmentation in results.segmentations:
        made(KEY_IMAGES, segmentation, results, lambda ref: np.zeros((*shape, 3), np.uint8))
    made(BOXES, results.report, results, lambda ref: np.zeros((*shape, 3), np.uint8))
    assert len(written) == sum(finding.extent != "none" for finding in case.findings.findings)
    for words in written:
        [finding] = [f for f in case.findings.findings if words[0].startswith(f"{f.label}: ")]
        for measurement in finding.measurements:
            assert f"{measurement.name.meaning}" in words[0]
            assert said_as(measurement.value, measurement.unit) in words[0]
        boxed = finding.extent == "box"
        assert f"{'box round' if boxed else 'outline of'} {finding.label}" in words
        assert ("long and short axis" in words) == (not boxed)
        assert "image" in words[0] or "frame" in words[0]


@pytest.mark.parametrize("name", ["ct_enhanced", "ct_legacy"])
def test_every_form_is_made_of_frames_as_of_slices(name: str) -> None:
    """The same slices in two wrappings: what is drawn and where it lies is equal."""
    case, _ = encoded(name)
    slices = ct_series(name="enhanced")
    plain, _ = results_of(replace(case.findings, images=refs(slices)), slices)
    framed = case_results(name)
    number = {str(image.SOPInstanceUID): z for z, image in enumerate(slices, start=1)}
    for form in (*FORMS.values(), LABEL_MAP, ALL_FRAMES, KEY_IMAGES, PAGES, KEY_OBJECTS):
        mine, theirs = (made(form, original_of(form, each), each) for each in (framed, plain))
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert sorted(places(one, {}), key=str) == sorted(places(other, number), key=str), form.name
            assert one.get("PatientOrientation") == other.get("PatientOrientation")
            if form is KEY_IMAGES:  # below it stands which image it is
                np.testing.assert_array_equal(*(each.pixel_array[: 32 * scale_of(32, 40)] for each in (one, other)))
            elif form is not PAGES:
                assert one.get("PixelData") == other.get("PixelData"), form.name


def places(dataset: Dataset, number: dict[str, int]) -> list[object]:
    """Everything drawn or placed; and on which frame, or slice of that number, a mask or an outline lies."""
    found: list[object] = []
    for element in dataset.iterall():
        if element.keyword in DRAWN or element.keyword in PLACED:
            found.append((element.keyword, [float(value) for value in np.atleast_1d(element.value)]))
        elif element.keyword in ("SourceImageSequence", "ContourImageSequence"):
            found += [number.get(item.ReferencedSOPInstanceUID) or item.ReferencedFrameNumber for item in element.value]
    return found


DRAWN = ("GraphicData", "ContourData", "ImagePositionPatient")
PLACED = (
    "PixelSpacing",
    "ImageOrientationPatient",
    "SliceThickness",
    "RescaleIntercept",
    "RescaleSlope",
    "WindowCenter",
)


@pytest.mark.parametrize(
    ("orientation", "letters"),
    [("HFS", ["L", "P"]), ("FFS", ["R", "P"]), ("HFP", ["R", "A"]), ("sagittal", ["P", "F"]), ("coronal", ["L", "F"]),
     ("oblique", ["LF", "PHL"])],
)  # fmt: skip
def test_patient_orientation_from_the_direction_cosines(orientation: str, letters: list[str]) -> None:
    images = ct_series(orientation=orientation)
    results, _ = results_of(ct_findings(images, nodule(1, (2, 4, 5))), images)
    [capture] = made(KEY_IMAGES, results.segmentations[0], results)
    assert list(capture.PatientOrientation) == letters


# ------------------------------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize("name", FEW)
def test_the_enhanced_report_reads_back_like_the_original(name: str) -> None:
    results = case_results(name)
    [other] = made(ENHANCED, results.report, results)
    mine, theirs = read.groups(other), read.groups(results.report)
    for a, b in zip(mine, theirs, strict=True):
        undrawn: dict[str, object] = {"lines": (), "axes": {}}
        assert vars(a) | undrawn == vars(b) | undrawn
        assert a.axes.keys() == b.axes.keys()
        assert [(x.image, x.points.tolist()) for x in a.lines] == [(x.image, x.points.tolist()) for x in b.lines]


@pytest.mark.parametrize("name", CASES)
def test_the_basic_text_says_every_number_and_warning(name: str) -> None:
    case, _ = encoded(name)
    results = case_results(name)
    [other] = made(BASIC_TEXT, results.report, results)
    section = other.ContentSequence[-1]
    assert {item.ValueType for item in section.ContentSequence} == {"TEXT"}
    texts = [str(item.TextValue) for item in section.ContentSequence]
    for finding in case.findings.findings:
        about = [text for text in texts if text.startswith(f"{finding.label}: ")]
        [said] = [text for text in about if "outlined on" not in text]  # that is a cine's remark
        for measurement in finding.measurements:
            assert f"{measurement.name.meaning}" in said
            assert said_as(measurement.value, measurement.unit) in said
        for evaluation in finding.evaluations:
            assert f"{evaluation.name.meaning}: {evaluation.value.meaning}" in said
    assert texts[0] == read.summary(results.report)
    for warning in (*case.findings.warnings, "Research use only, not for diagnostic use"):
        assert any(warning in text for text in texts)
    if not case.findings.findings and case.findings.sought is not None:
        assert texts[0].startswith(f"No {case.findings.sought.meaning.lower()} found")


def test_the_pages_have_room_for_everything() -> None:
    results = case_results("ct_many")
    pages = made(PAGES, results.report, results)
    assert len(pages) > 1
    assert [page.InstanceNumber for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        lit = np.argwhere(page.pixel_array.any(axis=-1))
        assert lit[:, 1].max() < page.Columns - 1, "no line runs out of the page"
        assert lit[:, 0].max() < page.Rows - 1


@pytest.mark.parametrize("name", ["ct_two", "ct_compared", "ct_enhanced", "ct_oblique", "ct_many"])
def test_the_report_for_ohif_says_what_the_report_says(name: str) -> None:
    """And passes the gate; each finding has its contour, then its calipers, then the volume."""
    results = case_results(name)
    case, _ = encoded(name)
    for form in FOR_OHIF.values():
        [other] = made(form, results.report, results)
        if form.sop_class_uid != "1.2.840.10008.5.1.4.1.1.88.22":
            assert problems(other, case.headers, findings=case.findings, segmentations=results.segmentations) == []
        assert_same(read.findings(other, results.segmentations, case.findings.images), case.findings)
        texts = [sentence.text for sentence in sentences(other)]
        assert texts == [sentence.text for sentence in sentences(results.report)]
        tools = [
            group.tracking_id.removeprefix("Cornerstone3DTools@^0.1.0:").split(":")[0] for group in read.groups(other)
        ]
        labels = [finding.label for finding in case.findings.findings]
        assert tools == [word for label in labels for word in ("PlanarFreehandROI", "Bidirectional", label)]


@pytest.mark.parametrize("name", ["us_one", "us_clip", "ct_nothing"])
def test_without_a_volume_the_report_for_ohif_is_the_report(name: str) -> None:
    results = case_results(name)
    [other] = made(FOR_OHIF["Comprehensive 3D SR"], results.report, results)
    assert other is results.report


def test_key_objects_are_the_images_with_findings() -> None:
    case, _ = encoded("ct_two")
    results = case_results("ct_two")
    [selection] = made(KEY_OBJECTS, results.report, results)
    named = [item.ReferencedSOPSequence[0] for item in selection.ContentSequence if item.ValueType == "IMAGE"]
    keys = [case.images[finding.key_image].SOPInstanceUID for finding in case.findings.findings]
    assert [item.ReferencedSOPInstanceUID for item in named] == keys
    nothing = case_results("ct_nothing")
    with pytest.raises(EncodingError, match="nothing was found"):
        made(KEY_OBJECTS, nothing.report, nothing)


def test_an_image_that_is_gone_is_named() -> None:
    results = case_results("ct_two")
    gone = replace(results, sources={})
    for form in (RTSTRUCT, GSPS, KEY_IMAGES, ALL_FRAMES):
        with pytest.raises(EncodingError, match=r"image 2\.25\.\d+, which the results speak of, is not stored here"):
            made(form, results.segmentations[0], gone)


def test_the_original_is_left_as_it_is() -> None:
    case, objects = encoded("ct_two")
    before = [as_bytes(each, SEGMENTATION) for each in objects]
    results = case_results("ct_two")
    for form in (*FORMS.values(), LABEL_MAP, ALL_FRAMES, KEY_IMAGES, PAGES, KEY_OBJECTS):
        made(form, original_of(form, results), results)
    assert [as_bytes(each, SEGMENTATION) for each in encoded("ct_two")[1]] == before
    assert case is encoded("ct_two")[0]

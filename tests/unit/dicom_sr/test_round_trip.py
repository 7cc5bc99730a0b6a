"""What goes in comes out again: written to bytes, read, compared."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes, encode, read
from dicom_sr.findings import Findings, Measurement
from dicom_sr.rounding import in_words, rounded
from tests.factories import ct_series, header, us_image
from tests.results import CASES, WHEN, assert_same, ball, ct_findings, encoded, mass, nodule, us_findings


def through_bytes(dataset: Dataset) -> Dataset:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def there_and_back(findings: Findings, headers: list[Dataset]) -> Findings:
    *segmentations, report = [through_bytes(d) for d in encode(findings, headers, when=WHEN)]
    return read.findings(report, segmentations, findings.images)


@pytest.mark.parametrize("name", CASES)
def test_findings_come_back_equal(name: str) -> None:
    case, made = encoded(name)
    *segmentations, report = [through_bytes(dataset) for dataset in made]
    assert_same(read.findings(report, segmentations, case.findings.images), case.findings)


SERIES = ct_series(shape=(4, 7, 9))  # 63 pixels: frames do not end on a byte
BLOCKS = arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9))).filter(np.any)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(BLOCKS, min_size=1, max_size=3))
def test_any_masks_come_back_voxel_by_voxel(masks: list[np.ndarray]) -> None:
    found = []
    for number, mask in enumerate(masks, 1):
        offset = tuple(full - side for full, side in zip((4, 7, 9), mask.shape, strict=True))
        found.append(nodule(number, offset, mask, long_axis=None, short_axis=None))
    findings = ct_findings(SERIES, *found)
    assert_same(there_and_back(findings, [header(image) for image in SERIES]), findings)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from([codes.MM, codes.MM2, codes.MM3, codes.HU, codes.PIXELS]))
def test_any_number_comes_back_as_it_is_said(value: float, unit: Code) -> None:
    image = us_image()
    found = replace(mass(1, (0, 5, 5)), measurements=(Measurement(codes.LONG_AXIS, value, unit),))
    [read_back] = there_and_back(us_findings([image], found), [header(image)]).findings[0].measurements
    assert read_back.value == rounded(value, unit)
    whole = unit == codes.HU or (unit != codes.MM and abs(value) > 9.9)
    assert abs(read_back.value - value) <= (0.5 if whole else 0.05) + 1e-6


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (83.947847343776, codes.MM2, "84 mm2"), (6.87, codes.MM2, "6.9 mm2"), (9.96, codes.MM2, "10 mm2"),
        (1024.4, codes.MM3, "1024 mm3"), (12.25, codes.MM, "12.3 mm"), (7.0, codes.MM, "7 mm"),
        (-33.333333, codes.HU, "-33 HU"), (-0.3, codes.HU, "0 HU"), (87.34, codes.PERCENT, "87 %"),
        (0.44, codes.PERCENT, "0.4 %"), (-12.5, codes.PERCENT, "-13 %"), (223.7, codes.DAYS, "224 d"),
        (3, codes.LESIONS, "3"), (14.04, codes.PIXELS, "14 pixels"), (0.123456, codes.NO_UNITS, "0.1235"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_a_person_would_say_them(value: float, unit: Code, words: str) -> None:
    assert in_words(value, unit) == words


def test_a_whole_number_is_written_without_a_point() -> None:
    for name in CASES:
        for number in encoded(name)[1][-1].iterall():
            assert number.keyword != "FloatingPointValue"
            if number.keyword == "NumericValue":
                assert str(number.value) == f"{float(number.value):.10g}"


def test_every_empty_frame_is_written_when_asked_for() -> None:
    case = CASES["ct_two"]()
    segmentation, report = encode(case.findings, case.headers, when=WHEN, omit_empty_frames=False)
    assert segmentation.NumberOfFrames == 2 * len(case.images)
    assert_same(read.findings(report, [segmentation], case.findings.images), case.findings)


def test_a_segment_number_in_the_shared_groups_is_found() -> None:
    """highdicom writes it there when there is one segment."""
    image = us_image()
    findings = us_findings([image], mass(1, (0, 12, 20)))
    segmentation, report = encode(findings, [header(image)], when=WHEN)
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        identification = groups.SegmentIdentificationSequence
        del groups.SegmentIdentificationSequence
    segmentation.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence = identification
    assert_same(read.findings(report, [segmentation], findings.images), findings)


def test_a_mask_with_a_hole_and_an_island_keeps_both() -> None:
    mask = ball(1, 12, 12)
    mask[0, 5:7, 5:7] = False
    mask[0, 0, 0] = True
    image = us_image()
    findings = us_findings([image], mass(1, (0, 5, 5), mask))
    assert_same(there_and_back(findings, [header(image)]), findings)

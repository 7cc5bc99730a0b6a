"""Growth arithmetic against hand-worked values and its own inverses; its way into a report and back."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import date
from math import pi

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr.coding import Code

from dicom_sr import codes, encode, read
from dicom_sr.changes import Change, Comparison, Lesion, Match, Size, with_comparison
from dicom_sr.findings import ComparedWith, Evaluation, Measurement
from dicom_sr.validate import problems
from tests.factories import ct_series
from tests.results import WHEN, assert_same, ct_findings, ct_two, encoded, nodule

DIAMETERS = st.floats(3, 40)
DAYS = st.integers(1, 1826)


def ball(diameter_mm: float) -> Size:
    return Size(diameter_mm, pi / 6 * diameter_mm**3)


def change(was_mm: float, is_mm: float, days: int = 184, thin: bool = True) -> Change:
    return Change(ball(was_mm), ball(is_mm), days, thin)


@pytest.mark.parametrize(
    ("was_mm", "is_mm", "days", "doubling_days"),
    [
        (6.0, 6.0 * 2 ** (1 / 3), 100, 100.0),  # twice the volume: the time between
        (6.0, 12.0, 300, 100.0),  # eight times: a third of it
        (10.0, 10.8, 90, None),  # + 26 % on thin slices is growth, see below; here only the trend
        (6.0, 6.0, 100, None),
        (8.0, 6.0, 100, None),
    ],
)
def test_doubling_times(was_mm: float, is_mm: float, days: int, doubling_days: float | None) -> None:
    found = change(was_mm, is_mm, days).doubling_days
    if (was_mm, is_mm) == (10.0, 10.8):
        assert found == pytest.approx(270.2, abs=0.1)  # 90 ln 2 / ln 1.259712
    else:
        assert found == (None if doubling_days is None else pytest.approx(doubling_days))


@given(DIAMETERS, DIAMETERS, DAYS)
def test_growing_by_the_doubling_time_gives_the_volume(was_mm: float, is_mm: float, days: int) -> None:
    one = change(was_mm, is_mm, days)
    if one.doubling_days is not None:
        assert one.present.volume_mm3 >= 1.25 * one.earlier.volume_mm3
        again = one.earlier.volume_mm3 * 2 ** (days / one.doubling_days)
        # the time is rounded to a tenth of a day
        slack = 2 ** (days / (one.doubling_days - 0.05)) / 2 ** (days / (one.doubling_days + 0.05))
        assert 1 / slack <= again / one.present.volume_mm3 <= slack


@given(DIAMETERS, DIAMETERS, DAYS, st.booleans())
def test_going_back_is_the_opposite(was_mm: float, is_mm: float, days: int, thin: bool) -> None:
    there, back = change(was_mm, is_mm, days, thin), change(is_mm, was_mm, days, thin)
    assert there.diameter_mm == -back.diameter_mm
    at_the_bound = abs(there.volume_percent - 25) < 0.1 or abs(back.volume_percent - 25) < 0.1
    assert there.by_volume == -back.by_volume or at_the_bound
    if not there.growth_in_12_months and not back.growth_in_12_months and not at_the_bound:
        assert (there.trend is None) == (back.trend is None)


@pytest.mark.parametrize(
    ("was_mm", "is_mm", "days", "flag"),
    [
        (6.0, 7.5, 200, False),  # 1.5 mm is not more than 1.5 mm
        (6.0, 7.6, 200, True),
        (6.8, 8.3, 200, False),  # 8.3 - 6.8 is 1.5000000000000009 in binary
        (6.0, 7.6, 366, True),
        (6.0, 7.6, 367, None),
        (8.0, 6.0, 200, False),
    ],
)
def test_growth_within_12_months_at_its_bounds(was_mm: float, is_mm: float, days: int, flag: bool | None) -> None:
    assert change(was_mm, is_mm, days).growth_in_12_months is flag


@pytest.mark.parametrize(
    ("ratio", "difference_mm", "thin", "trend"),
    [
        (1.25, 0.5, True, 1),
        (1.24, 0.5, True, 0),
        (0.8, -0.5, True, -1),
        (0.81, -0.5, True, 0),
        (2.0, 1.5, False, None),  # thick slices: the diameter must agree
        (2.0, 1.6, False, 1),
        (0.5, -1.5, False, None),
        (1.1, 1.5, False, 0),
        (1.21, 1.6, True, 1),  # the diameter alone is growth within 12 months: never called unchanged
        (0.9, 1.6, True, 1),
        (0.5, -1.6, False, -1),
    ],
)
def test_what_is_more_than_measurement_error(ratio: float, difference_mm: float, thin: bool, trend: int | None) -> None:
    assert Change(Size(8.0, 200.0), Size(8.0 + difference_mm, 200.0 * ratio), 184, thin).trend == trend


def test_growth_by_diameter_alone_is_said_and_has_no_doubling_time() -> None:
    large = Change(Size(24.0, 7238.0), Size(25.6, 8787.0), 300, True)
    assert (large.trend, large.growth_in_12_months, large.doubling_days) == (1, True, None)
    assert large.words().startswith("grew from 24.0 to 25.6 mm in 300 days")
    thick = Change(Size(6.0, 100.0), Size(7.4, 187.6), 184, False)
    assert thick.words().startswith("perhaps changed, slices are too thick to tell")


def test_baseline_categories_do_not_stand_beside_a_comparison() -> None:
    images = ct_series()
    suggested = Evaluation(Code("X", "99PACSNODE", "Suggested Lung-RADS"), Code("Y", "99PACSNODE", "2"))
    sizes = (
        Measurement(codes.MEAN_DIAMETER, 6.0, codes.MM, codes.MEAN),
        Measurement(codes.VOXEL_VOLUME, 113.0, codes.MM3),
    )
    found = [replace(nodule(n, (2 * n, 5, 8)), evaluations=(suggested,), measurements=sizes) for n in (1, 2, 3)]
    earlier = Lesion("Nodule 1", "1.7", Size(5.0, 65.0))
    compared = Comparison(
        ComparedWith("1.2", "1.3", "1.4", "1.5", date(2025, 7, 1), 184, 1.1),
        True,
        (Match(1, earlier, 1.0),),
        (2,),
        (3,),
        (),
    )
    told = with_comparison(ct_findings(images, *found), compared)
    assert [suggested in finding.evaluations for finding in told.findings] == [False, False, True]
    assert any("No category is suggested" in warning for warning in told.warnings)


def test_words() -> None:
    assert change(6.1, 8.3).words() == (
        "grew from 6.1 to 8.3 mm in 184 days (diameter +36 %, volume +152 %, volume doubling time 138 days)"
    )
    assert change(8.3, 6.1).words() == "shrank from 8.3 to 6.1 mm in 184 days (diameter -27 %, volume -60 %)"
    assert change(6.0, 6.1).words() == (
        "unchanged within measurement error: 6.1 mm, 6.0 mm 184 days before (diameter +1.7 %, volume +5.1 %)"
    )


def test_a_report_says_what_became_of_each_and_reads_back() -> None:
    case, (*segs, report) = encoded("ct_compared")
    findings = case.findings
    back = read.findings(report, segs, findings.images)
    assert_same(back, findings)
    assert back.findings[0].predecessor_uid == "1.2.3.6"
    assert back.findings[0].change.startswith("Nodule 3 of the study before grew from 2.0 to 4.1 mm in 181 days")
    assert back.findings[0].change.endswith("uncertain, 1 more could be meant")
    assert Evaluation(codes.QUALITATIVE_DIFFERENCE, codes.NEW_FINDING) in back.findings[1].evaluations
    assert back.compared_with is not None
    assert back.compared_with.no_longer_found == 1
    assert "Nodule 1 of that study (5.5 mm) is no longer found at its place." in back.compared_with.remarks
    own = [group.tracking_uid for group in read.groups(report)]
    assert "1.2.3.6" not in own, "a matched lesion keeps a Tracking UID of its own"


def test_the_earlier_report_is_pertinent_and_not_what_this_one_is_made_of() -> None:
    case, (*segs, made) = encoded("ct_compared")
    report = copy.deepcopy(made)
    [study] = report.PertinentOtherEvidenceSequence
    assert study.StudyInstanceUID == "1.2.3"
    current = [
        instance.ReferencedSOPInstanceUID
        for item in report.CurrentRequestedProcedureEvidenceSequence
        for series in item.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]
    assert "1.2.3.4.5" not in current
    del report.PertinentOtherEvidenceSequence
    assert any("1.2.3.4.5" in problem for problem in problems(report, case.headers, segmentations=segs))


def test_without_a_comparison_nothing_is_added() -> None:
    case = ct_two()
    report = encode(case.findings, case.headers, when=WHEN)[-1]
    assert "PertinentOtherEvidenceSequence" not in report
    assert read.compared_with(report) is None
    assert encode(replace(case.findings, compared_with=None), case.headers, when=WHEN)[-1] == report

"""The order of findings, against lists written by hand; and that numbers, labels and warnings follow it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dicom_sr import codes
from dicom_sr.findings import Evaluation, Finding, Measurement
from dicom_sr.importance import by_importance, renumber
from tests.factories import ct_series, us_image
from tests.results import ct_findings, mass, nodule, us_findings


def sized(number: int, mean_mm: float, *said: Any, certainty: float = 0.5) -> Finding:
    return nodule(
        number,
        (2, 5, 8),
        measurements=(Measurement(codes.MEAN_DIAMETER, mean_mm, codes.MM, codes.MEAN),),
        evaluations=tuple(Evaluation(codes.FINDING, code) for code in said),
        certainty=certainty,
    )


def lesion(number: int, cancer: float | None, long_mm: float, unit: Any = codes.MM) -> Finding:
    measured = [Measurement(codes.LONG_AXIS, long_mm, unit)]
    if cancer is not None:
        measured.append(Measurement(codes.PROBABILITY_OF_CANCER, cancer, codes.PERCENT))
    return replace(mass(number, (0, 5, 5)), measurements=tuple(measured))


@pytest.mark.parametrize(
    ("found", "order"),
    [
        # a mass of 27.9 mm comes first, however uncertain
        ([sized(1, 5.0, certainty=0.99), sized(2, 27.9, certainty=0.51), sized(3, 8.0)], [2, 3, 1]),
        # what grew, then what is new from 4 mm, then by size
        ([sized(1, 27.9), sized(2, 5.0, codes.NEW_FINDING), sized(3, 6.0, codes.INCREASE_IN_SIZE)], [3, 2, 1]),
        ([sized(1, 12.0), sized(2, 3.9, codes.NEW_FINDING), sized(3, 9.0, codes.DECREASE_IN_SIZE)], [1, 3, 2]),
        # of one size in whole millimetres by type, then by certainty
        ([sized(1, 8.2, codes.NON_SOLID), sized(2, 8.0, codes.SOLID), sized(3, 7.8, codes.PART_SOLID)], [3, 2, 1]),
        ([sized(1, 8.2, codes.SOLID, certainty=0.6), sized(2, 8.0, codes.SOLID, certainty=0.9)], [2, 1]),
        # equal ones stay in their order
        ([sized(1, 8.0), sized(2, 8.0)], [1, 2]),
        # breast: the likelier cancer, then the larger; sizes in pixels after those in millimetres
        ([lesion(1, 10, 30), lesion(2, 80, 6), lesion(3, 80, 9)], [3, 2, 1]),
        ([lesion(1, None, 300, codes.PIXELS), lesion(2, None, 6)], [2, 1]),
    ],
)
def test_order(found: list[Finding], order: list[int]) -> None:
    assert [finding.number for finding in by_importance(found)] == order


def test_numbers_labels_and_warnings_follow() -> None:
    images = ct_series()
    found = [sized(n, mm) for n, mm in ((1, 5.0), (2, 27.9), (3, 8.0), (10, 4.0))]
    warnings = ("Nodule 1, Nodule 3: outlined as detected", "slices are thick", "Nodule 10 is small, not Nodule 1")
    findings = renumber(ct_findings(images, *found, warnings=warnings))
    assert [(f.number, f.label) for f in findings.findings] == [
        (1, "Nodule 1"), (2, "Nodule 2"), (3, "Nodule 3"), (4, "Nodule 4"),
    ]  # fmt: skip
    assert [f.measurements[0].value for f in findings.findings] == [27.9, 8.0, 5.0, 4.0]
    assert findings.warnings == (
        "Nodule 3, Nodule 2: outlined as detected", "slices are thick", "Nodule 4 is small, not Nodule 3",
    )  # fmt: skip
    assert renumber(findings).warnings == findings.warnings, "once in order, it stays"
    image = us_image()
    assert renumber(us_findings([image])).findings == ()

"""The report of a series that was not analysed: what it says, and that nobody can take it for "nothing found"."""

from __future__ import annotations

import pytest

from dicom_sr import EncodingError, Written, codes, read
from dicom_sr.findings import Evaluation
from dicom_sr.not_run import not_run_report, not_run_reports
from dicom_sr.validate import problems
from tests.factories import ct_series, header, us_image
from tests.results import WHEN, encoded

BEFORE = Written("1.2.840.10008.5.1.4.1.1.88.33", "1.2.3.4", "1.2.3")


def written(images: list, reason: str = "gantry tilt of 12.0 degrees", **changes: object) -> object:
    arguments = {"version": "0.1.0", "when": WHEN} | changes
    return not_run_report("lung-nodule", "", reason, [header(image) for image in images], **arguments)


@pytest.mark.parametrize("images", [ct_series(), [us_image()], [us_image(frames=4)]], ids=["CT", "US", "clip"])
def test_it_says_why_and_counts_nothing(images: list) -> None:
    report = written(images)
    assert problems(report, [header(image) for image in images]) == []
    assert read.not_analysed(report) == "gantry tilt of 12.0 degrees"
    [group] = read.groups(report)
    assert group.evaluations == (Evaluation(codes.SUMMARY_OF_ANALYSES, codes.NOT_ATTEMPTED),)
    assert [(m.name, m.value) for m in group.measurements] == [(codes.NUMBER_OF_FRAMES, len(images))]
    assert len(group.lines) == 1  # OHIF draws nothing of a report with a group without coordinates
    codes_said = {(item.CodeValue) for element in report.iterall() if element.VR == "SQ" for item in element.value
                  if "CodeValue" in item}  # fmt: skip
    assert codes_said.isdisjoint({codes.ABSENT.value, codes.PRESENT.value, codes.NUMBER_OF_LESIONS.value})


@pytest.mark.parametrize("name", ["ct_two", "ct_nothing", "us_normal"])
def test_an_analysis_is_not_taken_for_it(name: str) -> None:
    assert read.not_analysed(encoded(name)[1][-1]) is None


def test_it_is_another_object_than_the_analysis_and_replaces_only_what_it_is_told() -> None:
    images = ct_series()
    report = written(images, replaces=[BEFORE], revision=2)
    assert report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    assert written(images).SOPInstanceUID != report.SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in written(images)


def test_the_order_of_the_images_is_nobodys_business() -> None:
    images = ct_series()
    assert written(images).to_json() == written(images[::-1]).to_json()


@pytest.mark.parametrize(
    ("number", "keyword", "values"),
    [
        ("", "PatientName", ("Doe^Jane", "Roe^Richard")),
        ("TEST-1", "PatientBirthDate", ("19600101", "19700101")),
        ("TEST-1", "PatientSex", ("F", "M")),
    ],
)
def test_two_people_in_one_series_have_a_report_each(number: str, keyword: str, values: tuple[str, str]) -> None:
    images = [header(image) for image in ct_series()]
    for k, image in enumerate(images):
        image.PatientID = number
        setattr(image, keyword, values[k % 3 == 0])
    reports = not_run_reports("lung-nodule", "", "two patients", images, version="0.1.0", when=WHEN)
    assert [str(report[keyword].value) for report in reports] == list(values)
    assert [problems(report, images) for report in reports] == [[], []]


def test_an_image_that_says_less_of_its_patient_has_no_report_of_its_own() -> None:
    images = [header(image) for image in ct_series()]
    images[2].PatientBirthDate = images[3].PatientSex = ""
    assert len(not_run_reports("lung-nodule", "", "tilted", images, version="0.1.0", when=WHEN)) == 1


def test_without_an_image_there_is_nothing_to_say_it_of() -> None:
    image = us_image()
    del image.Rows
    with pytest.raises(EncodingError, match="no image of the series has rows and columns"):
        written([image])

"""Whose study it is, which earlier one counts, and what is kept of the answer. No network: see tests/interop."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_sr import encode
from dicom_sr.changes import Comparison, Lesion, Match, Size
from dicom_sr.findings import Algorithm, ComparedWith, Findings
from dicom_sr.not_run import not_run_report
from pacs_node.errors import TryAgain
from pacs_node.priors import (
    NoComparison,
    Outcome,
    Patient,
    Peer,
    Study,
    earlier_studies,
    fetch,
    is_ours,
    keep,
    latest,
    load_outcome,
)
from tests.factories import ct_series, header
from tests.results import WHEN, ct_findings

ME = Patient("4711", "HOSPITAL", "19500203", "F")
TODAY = date(2026, 1, 1)
NOWHERE = Peer("pacs", "PACS", "127.0.0.1", 1, "NODE")


def study(uid: str, day: str, **changes: str) -> Dataset:
    answer = Dataset()
    answer.StudyInstanceUID, answer.StudyDate = uid, day
    answer.PatientID, answer.IssuerOfPatientID = ME.patient_id, ME.issuer
    answer.PatientBirthDate, answer.PatientSex = ME.birth_date, ME.sex
    for keyword, value in changes.items():
        setattr(answer, keyword, value)
    return answer


def found(*answers: Dataset, patient: Patient = ME) -> list[str]:
    return [each.study_uid for each in earlier_studies(patient, "1.9", TODAY, answers)]


def test_the_nearest_earlier_study_comes_first() -> None:
    answers = [study("1.1", "20240101"), study("1.2", "20251231"), study("1.3", "20250601")]
    assert found(*answers) == ["1.2", "1.3", "1.1"]


@pytest.mark.parametrize("day", ["20260101", "20260102", "", "2025", "unknown"])
def test_what_is_not_of_a_day_before_does_not_count(day: str) -> None:
    assert found(study("1.1", day)) == []


def test_the_study_itself_does_not_count() -> None:
    assert found(study("1.9", "20250101")) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientID": "4712"},
        {"PatientID": "47110"},
        {"PatientID": ""},
        {"IssuerOfPatientID": "CLINIC"},
    ],
)
def test_another_patient_is_passed_over(changes: dict[str, str]) -> None:
    assert found(study("1.1", "20250101", **changes), study("1.2", "20240101")) == ["1.2"]


@pytest.mark.parametrize("changes", [{"PatientBirthDate": "19500204"}, {"PatientSex": "M"}])
def test_another_birth_date_or_sex_under_the_same_id_stops_everything(changes: dict[str, str]) -> None:
    with pytest.raises(NoComparison) as reason:
        found(study("1.1", "20240101", **changes), study("1.2", "20250101"))
    for value in ("4711", "1950", "HOSPITAL"):
        assert value not in str(reason.value), "no patient values in reasons"


def test_what_a_study_does_not_say_does_not_contradict() -> None:
    assert found(study("1.1", "20240101", PatientBirthDate="", PatientSex="")) == ["1.1"]
    assert found(study("1.1", "20240101"), patient=Patient("4711", "", "", "")) == ["1.1"]


@given(st.text(st.sampled_from("4711*? "), max_size=6))
def test_an_answer_by_wildcard_is_not_believed(other: str) -> None:
    answer = study("1.1", "20240101")
    answer.PatientID = other
    assert found(answer) == (["1.1"] if other.strip() == ME.patient_id else [])


@pytest.mark.parametrize(("keyword", "words"), [("PatientID", "no Patient ID"), ("StudyDate", "no Study Date")])
def test_without_an_id_or_a_date_nothing_is_asked(tmp_path: Path, keyword: str, words: str) -> None:
    header = study("1.9", "20260101")
    setattr(header, keyword, "  " if keyword == "PatientID" else "")
    with pytest.raises(NoComparison, match=words):
        fetch(NOWHERE, header, "lung-nodule", tmp_path, max_age_days=10, timeout_s=5)


def test_a_peer_that_is_down_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NoComparison, match="pacs cannot be reached"):
        fetch(NOWHERE, study("1.9", "20260101"), "lung-nodule", tmp_path, max_age_days=10, timeout_s=5)


# ---------------------------------------------------------------------------------------------------------- revisions


def report(uid: str, revision: int = 1, source: str = "2.1", replaces: str | None = None) -> Dataset:
    def reference(class_uid: str, series_uid: str, instance_uid: str) -> Dataset:
        instance, series, study_ = Dataset(), Dataset(), Dataset()
        instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = class_uid, instance_uid
        series.SeriesInstanceUID, series.ReferencedSOPSequence = series_uid, [instance]
        study_.ReferencedSeriesSequence = [series]
        return study_

    made = Dataset()
    made.SOPInstanceUID, made.InstanceNumber = uid, revision
    made.ContentDate, made.ContentTime = "20250101", "120000"
    made.CurrentRequestedProcedureEvidenceSequence = [reference("1.2.840.10008.5.1.4.1.1.2", source, f"{source}.1")]
    if replaces:
        made.PredecessorDocumentsSequence = [reference("1.2.840.10008.5.1.4.1.1.88.33", "9", replaces)]
    return made


@given(st.permutations([report("1.1"), report("1.2", 2), report("1.10", 3)]))
def test_the_highest_revision_counts(reports: list[Dataset]) -> None:
    assert [each.SOPInstanceUID for each in latest(reports)] == ["1.10"]


@given(st.permutations([report("1.1", 3), report("1.2", 2, replaces="1.1"), report("1.3", 1, replaces="1.2")]))
def test_what_another_replaces_never_counts(reports: list[Dataset]) -> None:
    assert [each.SOPInstanceUID for each in latest(reports)] == ["1.3"]


def test_each_series_has_its_own_latest_report() -> None:
    reports = [report("1.1", 2, "2.1"), report("1.2", 1, "2.1"), report("1.3", 1, "2.2")]
    assert {each.SOPInstanceUID for each in latest(reports)} == {"1.1", "1.3"}


# ------------------------------------------------------------------------------------------------------ what is kept

COMPARISON = Comparison(
    ComparedWith("1.2", "1.3", "1.4", "1.5", date(2025, 7, 1), 184, 1.1, 1, ("in words",)),
    thin=False,
    matches=(Match(1, Lesion("Nodule 2", "1.6", Size(6.1, 119.0)), 1.9, 0),),
    new=(2,),
    not_shown=(3,),
    gone=(Lesion("Nodule 1", "1.7", Size(5.0, 65.0)),),
    warnings=("slices are thick",),
)


@pytest.mark.parametrize(
    "outcome", [Outcome(COMPARISON, of="abc"), Outcome(why_not="pacs cannot be reached", of="abc")]
)
def test_what_is_kept_is_what_came_of_it(tmp_path: Path, outcome: Outcome) -> None:
    path = tmp_path / "job" / "comparison.json"
    assert load_outcome(path, "abc") is None
    assert keep(path, outcome) == outcome
    assert load_outcome(path, "abc") == outcome
    assert load_outcome(path, "of other findings") is None


def test_the_first_outcome_counts(tmp_path: Path) -> None:
    """A worker taken for dead and its successor write the same job: both must say the same."""
    path = tmp_path / "comparison.json"
    keep(path, Outcome(COMPARISON))
    assert keep(path, Outcome(why_not="too late")) == Outcome(COMPARISON)
    assert [each.name for each in tmp_path.iterdir()] == ["comparison.json"]


def test_a_full_or_missing_disk_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TryAgain, match="cannot be written"):
        keep(tmp_path / "file" / "comparison.json", Outcome(why_not="x"))


def test_no_comparison_is_a_warning() -> None:
    findings = Findings("lung-nodule", "volume", (), (), Algorithm("a", "1"), warnings=("before",))
    assert Outcome(why_not="pacs is down").told(findings).warnings == ("before", "no comparison: pacs is down")


def test_studies_of_one_day_come_in_a_fixed_order() -> None:
    answers = [study("1.2", "20240101"), study("1.1", "20240101")]
    assert earlier_studies(ME, "1.9", TODAY, answers) == [
        Study("1.1", date(2024, 1, 1)),
        Study("1.2", date(2024, 1, 1)),
    ]


def test_a_report_that_says_not_run_is_no_earlier_report() -> None:
    """Else "not run" would read as "nothing found", and every nodule as new."""
    images = [header(image) for image in ct_series()]
    [*_, report] = encode(ct_findings(images), images, when=WHEN)
    assert is_ours(report, "lung-nodule")
    assert not is_ours(report, "breast-us")
    assert not is_ours(
        not_run_report("lung-nodule", "", "too few slices", images, when=WHEN, version="1"), "lung-nodule"
    )

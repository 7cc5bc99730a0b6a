"""What fails the gate is kept whole, with the reasons, and never among the results."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_sr import codes
from dicom_sr.findings import Measurement, Picture
from dicom_sr.forms import Profile
from pacs_node.encode import REASONS, ResultForms, encode_results
from pacs_node.errors import GiveUp
from pacs_node.records import Package, Result
from tests.results import CASES, WHEN


def test_a_failing_object_is_kept_and_not_sent(tmp_path: Path) -> None:
    case = CASES["ct_two"]()
    first, *others = case.findings.findings
    wrong = replace(first, measurements=(Measurement(codes.VOXEL_VOLUME, 9999.0, codes.MM3),))
    findings = replace(case.findings, findings=(wrong, *others))
    results, rejected = tmp_path / "results", tmp_path / "rejected" / "j1"
    with pytest.raises(GiveUp) as refusal:
        encode_results(findings, case.headers, results, when=WHEN, revision=1, rejected=rejected)
    for words in ("not sent", "Nodule 1 is reported with 9999 mm3", "[volume as drawn]", str(rejected)):
        assert words in str(refusal.value)
    assert not results.exists()
    assert [pydicom.dcmread(path).Modality for path in sorted(rejected.glob("*.dcm"))] == ["SEG", "SR"]
    assert "volume as drawn" in (rejected / REASONS).read_text()
    assert "Test^Patient" not in str(refusal.value) + (rejected / REASONS).read_text()


def test_a_warning_is_sent_with_its_remark(tmp_path: Path) -> None:
    case = CASES["ct_two"]()
    first, second = case.findings.findings
    findings = replace(case.findings, findings=(first, replace(second, label=first.label)))
    results = encode_results(findings, case.headers, tmp_path / "out", when=WHEN, revision=1)
    assert [len(result.remarks) for result in results] == [1, 0]
    assert "several segments are called Nodule 1" in results[0].remarks[0]
    assert all(result.path.exists() for result in results)


def test_what_is_written_is_what_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object becomes a file once: the one that the geometry was read back from is the one that leaves."""
    case = CASES["ct_two"]()
    save_as, made = pydicom.Dataset.save_as, list[str]()

    def noted(dataset: pydicom.Dataset, *arguments: Any, **named: Any) -> None:
        made.append(dataset.SOPInstanceUID)
        save_as(dataset, *arguments, **named)

    monkeypatch.setattr(pydicom.Dataset, "save_as", noted)
    results = encode_results(case.findings, case.headers, tmp_path / "out", when=WHEN, revision=1)
    assert made == [result.sop_instance_uid for result in results]
    assert [pydicom.dcmread(result.path).SOPInstanceUID for result in results] == made
    assert [hashlib.sha256(result.path.read_bytes()).hexdigest() for result in results] == [r.sha256 for r in results]


def test_the_rejection_note_is_offered_last_and_sent_as_it_is(tmp_path: Path) -> None:
    """What it rejects must have been replaced by then; and a peer that does not take it still takes the results."""
    case = CASES["ct_two"]()
    before = Result("1.2.3.4", "1.2.840.10008.5.1.4.1.1.88.33", Path("x"), "1.2.3")
    results = encode_results(
        case.findings, case.headers, tmp_path / "out", when=WHEN, revision=2, replaces=[before],
        note=True,
    )  # fmt: skip
    package = Package("j1", tuple(result.path for result in results))
    offering = ResultForms(Profile())
    *others, note = offering.offers(package)
    assert [offer.path for offer in others if not offer.optional] == [result.path for result in results[:-1]]
    assert (note.path, note.optional) == (results[-1].path, True)
    assert offering.prepare(package, note, note.forms[0], {}).paths == (note.path,)


def test_pictures_are_offered_as_they_are_and_may_be_refused(tmp_path: Path) -> None:
    """A destination without Secondary Capture still has the result: a picture is no reason for a failure."""
    case = CASES["ct_two"]()
    drawn = Picture(1, "where it looked", np.zeros((8, 9, 3), np.uint8))
    findings = replace(case.findings, pictures=(drawn,))
    results = encode_results(findings, case.headers, tmp_path / "out", when=WHEN, revision=1)
    assert [result.path.name for result in results] == ["01-SEG.dcm", "02-SR.dcm", "03-OT.dcm"]
    package = Package("j1", tuple(result.path for result in results))
    offering = ResultForms(Profile(key_images="none"))
    offers = list(offering.offers(package))
    assert [(offer.path.name, offer.optional) for offer in offers] == [
        ("01-SEG.dcm", False),
        ("02-SR.dcm", False),
        ("03-OT.dcm", True),
    ]
    prepared = offering.prepare(package, offers[2], offers[2].forms[0], {})
    assert (prepared.paths, prepared.note) == ((results[2].path,), "")
    implicit = offering.prepare(package, offers[2], offers[2].forms[1], {})
    assert implicit.note == "", "its title is no limitation"

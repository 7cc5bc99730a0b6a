"""A move or a rename changes no object: all that is made of the test matrix, held against what was made before."""

from __future__ import annotations

import json

import highdicom._standard_utils
import pytest

from tests.digests import KEPT, digest, matrix
from tests.results import CASES, WHEN, encode, encoded


def test_every_object_of_the_matrix_is_what_it_was() -> None:
    """Meant to change it? Say so in the commit and run `python -m tests.digests --write`."""
    kept, made = json.loads(KEPT.read_text(encoding="utf-8")), matrix()
    assert sorted(made) == sorted(kept)
    assert [key for key in kept if made[key] != kept[key]] == []


def test_a_digest_sees_one_letter_and_no_date() -> None:
    _, objects = encoded("ct_two")
    report, item = objects[-1], objects[-1].ContentSequence[-1]
    before, date, name = digest(report), report.ContentDate, item.ConceptNameCodeSequence[0].CodeMeaning
    try:
        report.ContentDate = "19000101"
        assert digest(report) == before
        item.ConceptNameCodeSequence[0].CodeMeaning = name + "s"
        assert digest(report) != before
    finally:
        report.ContentDate, item.ConceptNameCodeSequence[0].CodeMeaning = date, name


def test_no_object_needs_the_table_of_all_modules_of_the_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """highdicom keeps 112 MB once it has looked into it."""

    def looked() -> None:
        raise AssertionError("read")

    monkeypatch.setattr(highdicom._standard_utils, "get_module_attribute_map", looked)
    for make in CASES.values():
        case = make()
        assert encode(case.findings, case.headers, when=WHEN)

"""`check-pipeline`: what is right passes, and what is wrong is found by the check that is there for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.pipeline import Card
from pacs_node.check_pipeline import check_pipeline
from pacs_node.infer import Inference
from pacs_node.new_pipeline import CannotWrite, write
from tests.unit.node.odd_pipelines import RADIOGRAPHS, VOLUMES

HERE = "tests.unit.node.odd_pipelines"


def results(card: Card, declaration: str, folder: Path) -> dict[str, tuple[bool, str]]:
    inference = Inference("cpu", 120, {card.name: f"{HERE}:{declaration}"})
    try:
        return {said.check: (said.passed, said.text) for said in check_pipeline(card.name, {}, card, inference, folder)}
    finally:
        inference.stop()


def test_a_classifier_of_radiographs_passes(tmp_path: Path) -> None:
    said = results(RADIOGRAPHS, "RADIOGRAPHS_DECLARED", tmp_path)
    assert [check for check, (passed, _) in said.items() if not passed] == [], said
    assert said["DX: fine"][1].startswith("done, 1 finding")
    assert "BodyPartExamined is FOOT, radiographs takes CHEST" in said["DX: wrong body part"][1]
    assert "Modality is XA; radiographs takes DX only" in said["DX: other modality"][1]
    assert "GB of memory" in said["DX: time and memory"][1]


def test_what_a_library_warns_of_in_a_pipeline_quotes_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """pydicom quotes the element; its words would stand in the node's log, which the child writes to as well."""
    results(RADIOGRAPHS, "RADIOGRAPHS_DECLARED", tmp_path)
    out, err = capfd.readouterr()
    assert "a library warned" in err
    assert "DOE" not in out + err


@pytest.mark.timeout(600)
def test_every_fault_is_found_by_its_check(tmp_path: Path) -> None:
    said = results(VOLUMES, "VOLUMES_DECLARED", tmp_path)
    failed = {check.removeprefix("MR: "): text for check, (passed, text) in said.items() if not passed}
    assert failed.keys() >= {"twice", "flipped", "prone", "empty"}
    assert "the same images gave other bytes in 02-SR.dcm" in failed["twice"], "its SEG is the same"
    assert "of 1 findings 0 lie where one of the 1 of the plain series lies" in failed["flipped"]
    assert "ZeroDivisionError" in failed["empty"]
    assert said["MR: fine"][0]
    assert said["MR: missing slice"][1].startswith("refused, 1 slice missing")


def test_a_card_that_says_nothing_is_found(tmp_path: Path) -> None:
    bare = Card("bare", frozenset({"OT"}), RADIOGRAPHS.algorithm, "For nothing.")
    said = results(bare, "RADIOGRAPHS_DECLARED", tmp_path)
    assert said["card"] == (False, "its intended use does not end with 'Research use only, not for diagnostic use.'")
    assert said["OT"] == (False, "there is no phantom of this modality")


@pytest.mark.parametrize("name", ["Bones", "bone_finder", "-x", "class", "a b", ""])
def test_names_that_cannot_be_packages(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotWrite, match="is no name for a pipeline"):
        write(name, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = write("bone-finder", tmp_path)
    (folder / "pyproject.toml").write_text("mine")
    with pytest.raises(CannotWrite, match="is there already"):
        write("bone-finder", tmp_path)
    assert (folder / "pyproject.toml").read_text() == "mine"

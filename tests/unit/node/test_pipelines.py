"""What every pipeline of ours promises, on the same phantoms as `pacs-node check-pipeline` tries others on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import PIPELINES, catalogue
from pacs_node.check_pipeline import check_pipeline
from pacs_node.infer import Inference
from tests.bundles import LABELS, threshold_bundle
from tests.unit.models.test_command import PLAIN, READING

BONE = 300.0  # HU, above it
CT_CHECKS = ("prone", "missing slice", "other modality", "empty")  # of volumes; the others take as long each


def bundle(folder: Path) -> dict[str, Any]:
    return {"bundle": str(threshold_bundle(folder / "bundle", threshold=BONE, pixdim=None)), "labels": LABELS}


def command(folder: Path) -> dict[str, Any]:
    program = folder / "program.py"
    program.write_text(READING.replace("hu > 100", f"hu > {BONE}") + PLAIN)
    words = [sys.executable, str(program), "{input}", "{output}"]
    return {"command": words, "name": "Threshold", "version": "1", "labels": LABELS}


OPTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "lung-nodule": lambda _: {"threads": 1, "views": 1},
    "lymph-node": lambda _: {"threads": 1, "experimental": True},
    "breast-us": lambda _: {"threads": 1},
    "monai-bundle": bundle,
    "command": command,
}


def test_all_of_them_are_tried() -> None:
    assert OPTIONS.keys() == PIPELINES.keys()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_pipeline_of_ours_passes_every_check(name: str, tmp_path: Path) -> None:
    """Fine, prone, incomplete, of another kind, empty: right, or refused in words."""
    options = OPTIONS[name](tmp_path)
    inference = Inference("cpu", 600, reads=())  # all of them read nothing but libraries, weights and their images
    (tmp_path / "series").mkdir()
    try:
        card = catalogue().card(name, options)
        only = CT_CHECKS if "CT" in card.modality else None
        said = list(check_pipeline(name, options, card, inference, tmp_path / "series", only))
    finally:
        inference.stop()
    assert [(each.check, each.text) for each in said if not each.passed] == []
    assert len(said) > 5

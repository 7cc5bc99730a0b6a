"""Every checkpoint that is shipped makes of its phantom what is written down: weights, pipelines and figures belong
together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models import weights
from models.training.evaluation.shipped import CASES, FILE, figures

MODELS = Path(weights.__file__).parent
RECORDED: dict[str, Any] = json.loads(FILE.read_text())
# what another processor may round otherwise: shares, certainties; mm and percent, of which one pixel may decide
SHARE, NUMBER = 0.01, 1.2
FAR = 0.03  # of a distance, relative: bfloat16 moves it by 2 %


@pytest.mark.parametrize("name", CASES)
def test_it_makes_of_its_phantom_what_is_written_down(name: str) -> None:
    made, recorded = figures(CASES[name]), RECORDED[name]
    assert made["weights"] == recorded["weights"], "other weights: measure them, then write the file again"
    assert recorded["found"] == recorded["lesions"] > 0, "else it says nothing of the outlines"
    assert [made[key] for key in ("lesions", "found", "other findings")] == [
        recorded[key] for key in ("lesions", "found", "other findings")
    ]
    for key in ("Dice", "certainty"):
        assert made[key] == pytest.approx(recorded[key], abs=SHARE), key
    assert made.get("unfamiliar by", []) == pytest.approx(recorded.get("unfamiliar by", []), rel=FAR)
    for mine, theirs in zip(made["numbers"], recorded["numbers"], strict=True):
        assert mine == pytest.approx(theirs, abs=NUMBER)


def test_no_checkpoint_is_left_out() -> None:
    files = {weights.load(path).sha256 for path in MODELS.rglob("*.safetensors")}
    assert {sha256 for name in CASES for sha256 in RECORDED[name]["weights"].values()} == files

"""What the pipeline does on diseased phantoms: places and counts by hand, and the command on one small chest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from models.phantoms.chest import chest_balls
from models.phantoms.chest_disease import Disease
from models.training.evaluation.provenance import faults
from models.training.lung_nodule.figures import disease as command
from models.training.lung_nodule.figures.disease import AIR, BESIDE, WITHIN, Looked, Nodule, canvas, figures, zone_of

TOLD = ("Beside the left lung at least 300 ml hold no air. It was not looked at.",)


@pytest.mark.parametrize(("beyond_mm", "zone"), [(-25, None), (40, AIR)])
def test_no_nodule_is_counted_in_fluid(beyond_mm: float, zone: str | None) -> None:
    grid, airless, fluid = canvas(Disease("effusion", 0.6, 1))
    x, y, z = np.moveaxis(grid.points(tuple(slice(0, n) for n in grid.shape)), -1, 0)
    side = np.sign(x[fluid].mean())
    line = fluid & (np.abs(x - side * 76) < 1.1) & (np.abs(z + 5) < 1.1)
    front = np.array([side * 76, y[line].min(), -5.0])
    ball = replace(chest_balls(1, 1)[0], centre_mm=front - [0, beyond_mm, 0], half_axes_mm=np.full(3, 4.0))
    assert zone_of(ball, grid, airless, fluid) == zone


@pytest.mark.parametrize("seed", range(6))
def test_a_consolidation_is_no_fluid_however_thin_it_is(seed: int) -> None:
    grid, airless, fluid = canvas(Disease("consolidation", 0.8, seed))
    assert not fluid.any()
    deepest = ndimage.distance_transform_edt(airless)
    index = np.unravel_index(int(deepest.argmax()), airless.shape)
    middle = grid.affine[:3, :3] @ index + grid.affine[:3, 3]
    ball = replace(chest_balls(1, 1)[0], centre_mm=middle, half_axes_mm=np.full(3, 3.0))
    assert zone_of(ball, grid, airless, fluid) == WITHIN


@pytest.mark.parametrize(("beyond_mm", "zone"), [(-12, WITHIN), (8, BESIDE), (30, AIR)])
def test_where_a_nodule_lies_is_told_by_what_is_round_it(beyond_mm: float, zone: str) -> None:
    grid, airless, fluid = canvas(Disease("consolidation", 0.5, 1))
    y = grid.points(tuple(slice(0, n) for n in grid.shape))[..., 1]
    airless = y > 20
    ball = replace(chest_balls(1, 1)[0], centre_mm=np.array([70.0, 20 - beyond_mm, 0]), half_axes_mm=np.full(3, 4.0))
    assert zone_of(ball, grid, airless, fluid) == zone


def test_counts_by_hand() -> None:
    ill = Disease("effusion", 0.5, 1)
    looked = [
        Looked(ill, 1, (), TOLD, (Nodule(AIR, True, 1.0), Nodule(WITHIN, False, None)), 2, 1, 400, 300),
        Looked(ill, 2, (), (), (Nodule(AIR, True, 2.0), Nodule(BESIDE, False, None)), 0, 1, 200, 0),
        Looked(ill, 3, ("no lungs found",)),
    ]
    made = figures(looked)
    assert (made["phantoms"], made["refused"], made["refused in the words"]) == (3, 1, ["no lungs found"])
    assert made["told that something was not looked at"] == 1
    assert made["false marks with nodules"] == {"value": 1, "low": 0, "high": 2}
    assert made["false marks without nodules"]["value"] == 1
    assert made[AIR] == {"nodules": 2, "found": {"value": 1, "low": 1, "high": 1}, "missed without a word": 0}
    assert (made[WITHIN]["missed without a word"], made[BESIDE]["missed without a word"]) == (0, 1)
    assert made["long axis less the true one, mm"]["value"] == 1.5
    assert figures(looked[2:])["refused"] == 1
    text = command.page({"chests": {"effusion": made, "refused": figures(looked[2:])}})
    assert "| effusion | 3 | 1 | 1.0 (0.0 to 2.0) |" in text
    assert "- refused: no lungs found" in text
    assert "| effusion | beside it | 1 | 0.000 (0.000 to 0.000) | 1 |" in text


def test_the_command_measures_a_chest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"slices": 52, "size": 170, "spacing_mm": (5.0, 2.0, 2.0)}
    monkeypatch.setattr(command, "SHAPE", small)
    monkeypatch.setattr(command, "NODULES", 3)
    monkeypatch.setattr(command, "SEVERITIES", (0.7,))
    command.main(["--phantoms", "1", "--kind", "effusion", "--out", str(tmp_path)])
    made = json.loads((tmp_path / "lung_disease.json").read_text())
    assert list(faults(made)) == []
    (one,) = made["chests"].values()
    assert (one["phantoms"], one["refused"], one["told that something was not looked at"]) == (1, 0, 1)
    assert one["lost air, ml"]["value"] > one["said to be lost, ml"]["value"] > 200
    assert "effusion, severity 0.7" in (tmp_path / "lung_disease.md").read_text()

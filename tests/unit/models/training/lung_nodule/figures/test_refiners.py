"""Model 1 and Model 2 side by side: differences by hand, and the command with what ships on crops of its own."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.lung_nodule.pipeline import REFINERS
from models.training.evaluation.provenance import faults
from models.training.lung_nodule.data.slices import stored_split
from models.training.lung_nodule.figures import refiners
from models.training.lung_nodule.figures.refiners import BASE, by_slice, compared
from models.training.lung_nodule.residual_unet.evaluate import Looked
from models.weights import load, packed


def looked(marked: np.ndarray, truth: np.ndarray) -> Looked:
    count = len(truth)
    names = [str(i) for i in range(count)]
    return Looked(marked, truth, np.zeros(truth.shape, np.float32), names, names, np.arange(count))


def slices() -> tuple[np.ndarray, np.ndarray]:
    """Truth of three slices, the last without nodule; and marks that are half of the first and on the last."""
    truth = np.zeros((3, 4, 4), bool)
    truth[0, :2] = truth[1, 2:] = True
    marked = truth.copy()
    marked[0, 1] = False
    marked[2, 0, 0] = True
    return truth, marked


def test_each_figure_is_of_the_slices_that_it_can_be_of() -> None:
    truth, marked = slices()
    values = by_slice(looked(marked, truth))
    np.testing.assert_allclose(values["IoU, all slices"], [0.5, 1, 0])
    np.testing.assert_allclose(values["accuracy"], [1, 1, 0])
    np.testing.assert_allclose(values["Dice, nodule slices"], [2 / 3, 1, np.nan])
    np.testing.assert_allclose(values["left empty"], [np.nan, np.nan, 0])


def test_what_one_has_more_is_of_the_same_slices() -> None:
    truth, marked = slices()
    made = compared({BASE: looked(marked, truth), "other": looked(truth, truth)})
    assert "more than Model 2" not in made[BASE]
    more = made["other"]["more than Model 2"]
    assert more["IoU, all slices"]["value"] == pytest.approx((0.5 + 0 + 1) / 3, abs=1e-3)
    assert more["Dice, nodule slices"]["value"] == pytest.approx(1 / 6, abs=1e-3)
    assert more["left empty"]["value"] == 1


def test_the_command_holds_the_two_that_ship_against_each_other(tmp_path: Path) -> None:
    patient = stored_split()[0]["val"][0]
    y, x = np.mgrid[:128, :128]
    disc = (y - 64) ** 2 + (x - 64) ** 2 <= 64
    pixels = {"": np.where(disc, 200, 30).astype(np.uint8), "_raters": np.where(disc, 15, 0).astype(np.uint8)}
    data = tmp_path / "crops.zip"
    with zipfile.ZipFile(data, "w") as archive:
        index = io.StringIO()
        rows = csv.writer(index)
        rows.writerow(["patient", "nodule", "file"])
        for number in range(4):
            rows.writerow([patient, "nodule-0", f"slice-{number}.png"])
            for ending, image in pixels.items():
                stored = io.BytesIO()
                Image.fromarray(image).save(stored, "png")
                archive.writestr(f"{patient}/nodule-0/slice-{number}{ending}.png", stored.getvalue())
        archive.writestr("index.csv", index.getvalue())
    refiners.main(["--data", str(data), "--split", "val", "--out", str(tmp_path)])
    made = json.loads((tmp_path / "lung_refiners.json").read_text("utf-8"))
    assert not list(faults(made))
    assert {name: one["parameters"] for name, one in made["networks"].items()} == {
        "model-1": 7_192_449,
        "model-2": 4_477_633,
    }
    for name, file in REFINERS.items():
        assert made["provenance"]["weights_sha256"][name] == load(packed("lung_nodule", file)).sha256
        assert made["networks"][name]["ms"] > 0
        assert made["networks"][name]["figures"]["Dice, nodule slices"]["value"] > 0.5  # a disc is no hard nodule
    text = (tmp_path / "lung_refiners.md").read_text("utf-8")
    assert "| parameters | 4 477 633 | 7 192 449 |" in text

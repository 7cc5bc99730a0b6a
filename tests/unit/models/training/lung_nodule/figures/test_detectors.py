"""The command that measures the detectors side by side, with the weights that are shipped, on two small chests."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from models.training.evaluation.provenance import faults
from models.training.lung_nodule.data.scans import Lesion, Scan
from models.training.lung_nodule.data.slices import stored_split
from models.training.lung_nodule.figures import detectors as detector_figures
from models.training.lung_nodule.figures import lungs_first
from models.training.lung_nodule.figures.detectors import in_slices_of
from models.training.lung_nodule.nodulenet.evaluate import Mark
from tests.scan_sets import scan_set


def chest(name: str, radius_mm: float) -> Scan:
    """A ball of soft tissue in the middle of noisy lungs with a wall round them, on voxels of 1 mm."""
    shape, middle = (48, 80, 96), np.array([24, 40, 48])
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - middle, axis=-1)
    lungs = np.zeros(shape, bool)
    lungs[4:-4, 8:-8, 8:-8] = True
    noise = np.random.default_rng(0).normal(0, 15, shape)
    hu = (np.where(lungs, -850, 40) + noise).astype(np.int16)
    hu[distance <= radius_mm] = 40
    return Scan(name, name, hu, lungs, (Lesion.of(distance <= radius_mm),), semi_synthetic=True)


@pytest.fixture
def chests(tmp_path):
    parts = {"phantom-val": ("val", chest("phantom-val", 5.0)), "phantom-test": ("test", chest("phantom-test", 6.0))}
    return scan_set(tmp_path / "set", parts, stored_split()[1])


@pytest.mark.parametrize("slices_mm", [1, 4])
def test_detectors_are_measured_side_by_side(chests, tmp_path, monkeypatch, capsys, slices_mm):
    told = ["--set", chests, "--out", tmp_path, "--slices-mm", slices_mm]
    told += ["--detector", "nodulenet", "--detector", "ccfam-fpn"]
    monkeypatch.setattr(sys, "argv", ["detector_figures", *map(str, told)])
    detector_figures.main()
    made = json.loads((tmp_path / "lung_detectors.json").read_text())
    assert set(made["froc"]) == {"NoduleNet, RPN", "NoduleNet, RCNN", "NoduleNet, mean of both", "CCFAM-FPN"}
    assert made["froc"]["NoduleNet, mean of both"]["CPM"]["value"] == 1.0  # the ball, and nothing else before it
    assert made["froc"]["CCFAM-FPN"]["sensitivity at 8 FP/scan"]["value"] == 1.0
    assert (made["scans"], made["lesions"], made["slices_mm"]) == (1, 1, slices_mm)
    assert (made["drawn"], made["backgrounds"]) == (
        "backgrounds and the patients of the nodules, crossed",
        {"persons": 0, "phantoms": 1},
    )
    said = (tmp_path / "lung_detectors.md").read_text()
    assert "0 persons and 1 phantoms" in said
    assert "1 semi-synthetic scans of the test split" in said
    assert ("as slices of 4 mm show them" in said) == (slices_mm == 4)
    assert said.strip() in capsys.readouterr().out


def test_each_kind_of_background_is_judged_by_itself_and_strictly():
    """A mark on the nodule of each, and one on an opacity that only the real background has."""
    phantom, real = chest("phantom-1", 6.0), chest("person", 6.0)
    own = replace(real.lesions[0], centre_zyx=(24.0, 40.0, 70.0), offset_zyx=(18, 34, 64))
    real = replace(real, irrelevant=(own,))
    nodule = Mark((24, 40, 48), 0.5)
    found = {"any": [[nodule], [nodule, Mark((24, 40, 70), 0.9)]]}
    judged = {what: by["any"] for what, by in detector_figures.variants_of(found, [phantom, real]).items()}
    mistakes = {what: float(one.false_positives.max(initial=0)) for what, one in judged.items()}
    assert mistakes == {
        detector_figures.STRICT: 0.5,
        detector_figures.PHANTOMS: 0,
        detector_figures.REAL: 0,
        detector_figures.REAL_STRICT: 1,
    }
    assert set(detector_figures.variants_of({"any": [[nodule]]}, [phantom])) == {
        detector_figures.STRICT, detector_figures.PHANTOMS,
    }  # fmt: skip


def test_intervals_are_over_backgrounds_and_donors() -> None:
    """Two scans of one person, one found, differ by chance among nodules alone: the one donor's are drawn together."""
    scans = [replace(chest(name, 6.0), patient="person") for name in ("a", "b")]
    found = {"any": [[Mark((24, 40, 48), 0.9)], []]}
    by = [detector_figures.variants_of(found, scans, donors) for donors in (None, [["p"], ["p"]], [["p"], ["q"]])]
    cpm = [one[detector_figures.REAL]["any"].cpm for one in by]
    assert [(one.value, one.low, one.high) for one in cpm] == [(0.5, 0, 1), (0.5, 0.5, 0.5), (0.5, 0, 1)]


def test_lungs_first_is_measured_three_ways(chests, tmp_path, capsys):
    lungs_first.main(["--data", str(chests), "--split", "test", "--out", str(tmp_path)])
    made = json.loads((tmp_path / "lungs_first.json").read_text())
    assert list(made["rows"]) == list(lungs_first.WAYS)
    assert (made["scans"], made["lesions"], made["semi_synthetic"]) == (1, 1, True)
    assert made["rows"]["boxes outside the lungs dropped (served)"]["figures"]["sensitivity at 8 FP/scan"]["value"] == 1
    assert list(faults(made)) == []
    assert (tmp_path / "lungs_first.md").read_text().strip() in capsys.readouterr().out


def test_lungs_first_without_a_scan_is_refused(tmp_path):
    alone = scan_set(tmp_path / "alone", {"a": ("test", chest("a", 5.0))}, stored_split()[1])
    with pytest.raises(SystemExit, match="no scan of val"):
        lungs_first.main(["--data", str(alone), "--out", str(tmp_path)])


def test_thick_slices_are_means_at_the_place_of_what_they_hold():
    slope = np.arange(24, dtype=np.int16)[:, None, None] * 10 + np.zeros((24, 3, 4), np.int16)
    assert in_slices_of(1, slope) is slope
    thick = in_slices_of(4, slope)
    assert (thick.shape, thick.dtype) == (slope.shape, np.int16)
    np.testing.assert_allclose(thick[2:-2], slope[2:-2], atol=1)  # of a slope the mean is its middle
    thin = np.zeros((24, 3, 4), np.int16)
    thin[9] = 100  # in the third slice of 4 mm, voxels 8 to 11
    assert in_slices_of(4, thin).max() <= 25
    assert np.abs(in_slices_of(4, thin)[:, 0, 0] @ np.arange(24) / in_slices_of(4, thin)[:, 0, 0].sum() - 9.5) < 0.2


def test_weights_of_another_split_are_refused(tmp_path, monkeypatch):
    chests = scan_set(tmp_path / "other", {"a": ("test", chest("a", 5.0))})
    monkeypatch.setattr(sys, "argv", ["detector_figures", "--set", str(chests), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="learnt on another split of the patients"):
        detector_figures.main()

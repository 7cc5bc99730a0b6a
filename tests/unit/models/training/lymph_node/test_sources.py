"""Candidates of phantoms and of the collection's layout, and the whole trainer on them, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.patches import SOFT_TISSUE
from models.phantoms.lymph_nodes import lymph_node_ct
from models.read import read_ct
from models.training.evaluation.metrics import auc
from models.training.layouts import UnknownLayout
from models.training.lymph_node import evaluate, make_phantoms
from models.training.lymph_node.evaluate import events_of, figures_of
from models.training.lymph_node.recipe import Config, build
from models.training.lymph_node.sources import INDEX, Place, Set, read_made, read_tcia
from models.training.recurrent_attention.candidates import Candidates
from models.training.train import configured, main

SMALL = {"epochs": "2", "width": "2", "embedding": "6", "hidden": "6", "batch": "4", "lr": "0.01"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    make_phantoms.main(["--region", "mediastinum", "--out", str(folder), "--count", "3"])
    return folder


def test_phantoms_become_candidates_most_of_whose_nodes_are_proposed(made: Path) -> None:
    there = read_made(made)
    assert there.semi_synthetic
    assert sorted(there.nodes) == ["mediastinum-1000", "mediastinum-1001", "mediastinum-1002"]
    hit = {(place.scan, place.node) for place in there.places if place.node is not None}
    assert len(hit) >= 0.8 * sum(there.nodes.values())
    assert there.candidates.labels.sum() >= len(hit)
    assert (there.candidates.labels == 0).sum() > 20
    middle = there.candidates.patches[there.candidates.labels == 1][:, 6, 23:25, 23:25].mean(axis=(1, 2))
    hu = middle * 400 - 160
    assert np.median(hu) == pytest.approx(80, abs=25)  # the HU that the phantoms' nodes have


def test_the_whole_trainer_runs_on_phantoms_and_says_what_came_out(made: Path, tmp_path: Path) -> None:
    """Three folds by phantom, every row of the page, with figures that follow from the scores."""
    asked = ["--data", str(made), "--region", "mediastinum", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    asked += [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    evaluate.main(asked)
    results = json.loads((tmp_path / "lymph_node.json").read_text())["mediastinum"]
    assert results["semi_synthetic"]
    assert list(results["rows"]) == list(evaluate.ROWS)
    for row in results["rows"].values():
        assert 0 <= row["figures"]["AUC over candidates"]["value"] <= 1
        assert (
            row["figures"]["sensitivity at 3 FP/scan"]["value"]
            <= row["figures"]["nodes that a candidate hits"]["value"]
        )
    page = (tmp_path / "lymph_node.md").read_text()
    assert page.splitlines()[2].startswith("**No real image of a lymph node was used")
    assert "| LN-STRA | 0.95 | 0.87 |" in page


def test_the_command_of_every_training_takes_it(made: Path, tmp_path: Path) -> None:
    asked = ["lymph_node", "--data", str(made), "--out", str(tmp_path)]
    main([*asked, *[word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]])
    about = json.loads((tmp_path / "lymph_node_w2.json").read_text())
    assert about["preprocessing"] == SOFT_TISSUE.preprocessing
    assert about["config"]["schedule"] == "step"


def test_the_defaults_are_the_sources() -> None:
    config = Config()
    assert (config.lr, config.epochs, config.batch, config.schedule) == (0.1, 200, 20, "step")
    assert (config.folds, config.converge, config.diverge, config.steps, config.slices) == (3, 1.0, 0.5, 8, 9)


def test_an_epoch_has_as_many_positive_as_negative_candidates(made: Path) -> None:
    recipe = build(made, configured(Config(), SMALL))
    for epoch in range(2):
        labels = recipe.candidates.labels[recipe.drawn(epoch)]
        assert (labels == 1).sum() == (labels == 0).sum() > 0
    batch = next(recipe.batches("train", 0))
    assert batch["patches"].shape == (4, 9, 32, 32)


# ------------------------------------------------------------------------------------------------------------ TCIA


def write_collection(root: Path, name: str = "MED_LYMPH_001") -> Path:
    """A phantom in the collection's layout: its nodes, a positive candidate beside each, and two that hit nothing."""
    images = root / "CT Lymph Nodes" / name
    truth = lymph_node_ct(images, seed=3, slices=40, size=200, spacing_mm=(3, 1.8, 1.8), nodes=2, patient_id=name)
    volume = read_ct(truth.files)
    points = [lesion.centre_lps_mm for lesion in truth.lesions]
    drawn, proposed = (root / f"MED_ABD_LYMPH_{kind}" / name for kind in ("ANNOTATIONS", "CANDIDATES"))
    drawn.mkdir(parents=True)
    proposed.mkdir(parents=True)

    def lines(path: Path, rows: list[list[float]]) -> None:
        path.write_text("".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows))

    lines(drawn / f"{name}_lymphnodes_physicalPoints.txt", [list(point) for point in points if point])
    indices = [volume.index_zyx(point)[::-1] for point in points if point]
    lines(drawn / f"{name}_lymphnodes_indices.txt", [[round(i) for i in index] for index in indices])
    lines(drawn / f"{name}_lymphnodes_sizes.txt", [[lesion.short_axis_mm] for lesion in truth.lesions])
    lines(proposed / f"{name}_posCADe_physicalPoints.txt", [[x + 1, y, z] for x, y, z in points])  # type: ignore[misc]
    lines(proposed / f"{name}_posCADe_grtIDs.txt", [[1], [2]])
    lines(proposed / f"{name}_negCADe_physicalPoints.txt", [[-30, 0, 0], [30, 10, 10]])
    lines(proposed / f"{name}_negCADe_grtIDs.txt", [[-1], [-1]])
    return root


def test_the_collection_is_read_with_its_images(tmp_path: Path) -> None:
    there = read_tcia(write_collection(tmp_path), "mediastinum")
    assert not there.semi_synthetic
    assert there.candidates.labels.tolist() == [1, 1, 0, 0]
    assert there.nodes == {"MED_LYMPH_001": 2}
    hu = there.candidates.patches[:2, 6, 23:25, 23:25].astype(float).mean(axis=(1, 2)) * 400 - 160
    assert (hu > 30).all()  # the middle of a node, found by its position in mm
    assert (hu < 130).all()


def test_a_patient_without_images_is_named(tmp_path: Path) -> None:
    write_collection(tmp_path)
    for file in (tmp_path / "CT Lymph Nodes").rglob("*.dcm"):
        file.unlink()
    with pytest.raises(UnknownLayout, match="no CT images of MED_LYMPH_001"):
        read_tcia(tmp_path, "mediastinum")


def test_candidates_of_an_older_version_are_refused(made: Path, tmp_path: Path) -> None:
    about = json.loads((made / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**about, "version": 0}))
    with pytest.raises(UnknownLayout, match="make them again"):
        read_made(tmp_path)


# --------------------------------------------------------------------------------------------------------- figures


def test_figures_by_hand() -> None:
    """Two scans, three nodes: one found twice, one found once below two false marks, one that nobody proposed."""
    where = (0.0, 0.0, 0.0)
    places = [
        Place("A", "A", where, 0),
        Place("A", "A", where, 0),
        Place("A", "A", where, None),
        Place("B", "B", where, 0),
        Place("B", "B", where, None),
        Place("B", "B", where, None),
    ]
    scores = np.array([0.9, 0.2, 0.1, 0.5, 0.8, 0.7])
    nodes = {"A": 2, "B": 1}
    events, scans = events_of(places, scores, nodes)
    assert scans == ["A", "B"]
    assert events.score.tolist() == [0.9, 0.8, 0.7, 0.5, 0.1]
    assert events.is_hit.tolist() == [True, False, False, True, False]
    assert events.at([0.4, 1.0], np.ones(2)).tolist() == pytest.approx([1 / 3, 2 / 3])
    patches = np.zeros((6, 1, 1, 1), np.float16)
    labels = np.array([place.node is not None for place in places], int)
    there = Set(Candidates(patches, labels, list("AAABBB"), list("uvwxyz"), SOFT_TISSUE), places, nodes, True, "")
    figures = figures_of(there, scores)
    assert figures["AUC over candidates"].value == pytest.approx(auc(scores, labels == 1))
    assert figures["nodes that a candidate hits"].value == pytest.approx(2 / 3)
    assert figures["sensitivity at 3 FP/scan"].value == pytest.approx(2 / 3)

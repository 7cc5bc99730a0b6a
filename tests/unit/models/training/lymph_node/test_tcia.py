"""CT Lymph Nodes as published: every node and candidate is read, and what is missing is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from models.training.layouts import UnknownLayout
from models.training.lymph_node.tcia import ANNOTATIONS, CANDIDATES, Candidate, Node, read_patients

FILES = {
    "MED_LYMPH_001": {
        "lymphnodes_physicalPoints": "1.5 -156.9 -152\n-10.2 -146.2 -179\n",
        "lymphnodes_indices": "256 264 579\n244 275 552\n",
        "lymphnodes_sizes": "29.3\n26.2\n",
        "posCADe_physicalPoints": "1.4 -156.0 -151\r\n",
        "posCADe_grtIDs": "101\n",
        "negCADe_physicalPoints": "40.4 -168.6 -51\r\n18.0 -155.0 -78\r\n",
        "negCADe_grtIDs": "-1\n-1\n",
    },
    "ABD_LYMPH_002": {
        "lymphnodes_physicalPoints": "-17.6 -154.3 -264.8\n",
        "lymphnodes_indices": "233 290 422\n",
        "lymphnodes_sizes": "13.44 17.2\n",
        "posCADe_physicalPoints": "",
        "posCADe_grtIDs": "",
        "negCADe_physicalPoints": "",
        "negCADe_grtIDs": "",
    },
}


def written(folder: Path, changes: dict[tuple[str, str], str | None] | None = None) -> Path:
    for patient, files in FILES.items():
        for name, text in files.items():
            path = (
                folder / (ANNOTATIONS if name.startswith("lymph") else CANDIDATES) / patient / f"{patient}_{name}.txt"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            changed = (changes or {}).get((patient, name), text)
            if changed is not None:
                path.write_text(changed)
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_nodes_and_candidates_are_read(tmp_path: Path, zipped: bool) -> None:
    path = written(tmp_path / "set")
    if zipped:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in sorted(path.rglob("*.txt")):
                archive.write(file, file.relative_to(path))
        path = tmp_path / "set.zip"
    abdomen, mediastinum = read_patients(path)
    assert (abdomen.region, mediastinum.region) == ("abdomen", "mediastinum")
    assert abdomen.nodes == (Node((-17.6, -154.3, -264.8), (233, 290, 422), (13.44, 17.2)),)
    assert abdomen.candidates == ()
    assert [node.sizes_mm for node in mediastinum.nodes] == [(29.3,), (26.2,)]
    assert mediastinum.candidates == (
        Candidate((1.4, -156.0, -151.0), 101),
        Candidate((40.4, -168.6, -51.0), None),
        Candidate((18.0, -155.0, -78.0), None),
    )


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("lymphnodes_sizes", None, r"MED_LYMPH_001_lymphnodes_sizes\.txt is missing"),
        ("lymphnodes_sizes", "29.3\n", "the files of lymphnodes have 2, 2, 1 lines"),
        ("lymphnodes_sizes", "29.3\n26.2 a\n", r"lymphnodes_sizes\.txt, line 2: '26\.2 a' is not what"),
        ("lymphnodes_physicalPoints", "1 2\n3 4\n", r"physicalPoints\.txt, line 1: '1 2' is not what"),
        ("posCADe_grtIDs", "-1\n", "holds -1, the id of no positive candidate"),
        ("negCADe_grtIDs", "-1\n101\n", "holds 101, the id of no negative candidate"),
        ("negCADe_grtIDs", "-1\n", "the files of negCADe have 2, 1 lines"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, file: str, text: str | None, words: str) -> None:
    with pytest.raises(UnknownLayout, match=words):
        read_patients(written(tmp_path, {("MED_LYMPH_001", file): text}))


def test_another_folder_is_no_such_set(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "words").write_text("")
    with pytest.raises(UnknownLayout, match="give the annotations of CT Lymph Nodes"):
        read_patients(tmp_path)


def test_the_published_set_is_read_whole(shared_data: Path) -> None:
    patients = read_patients(shared_data / "tcia_lymph_node_coordinates.zip")
    counts = {}
    for region in ("mediastinum", "abdomen"):
        mine = [patient for patient in patients if patient.region == region]
        hits = [each for patient in mine for each in patient.candidates if each.node_id is not None]
        misses = [each for patient in mine for each in patient.candidates if each.node_id is None]
        counts[region] = (len(mine), sum(len(patient.nodes) for patient in mine), len(hits), len(misses))
    assert counts == {"mediastinum": (90, 388, 573, 3208), "abdomen": (86, 595, 1005, 3484)}


def test_index_and_position_of_the_published_set_are_one_place(shared_data: Path) -> None:
    """One straight line a patient and axis leads from the index to mm: both files mean the same node, in one order."""
    for patient in read_patients(shared_data / "tcia_lymph_node_coordinates.zip"):
        index = np.array([node.index_xyz for node in patient.nodes], float)
        mm = np.array([node.point_lps_mm for node in patient.nodes])
        for axis in range(3):
            if np.ptp(index[:, axis]) >= 10:
                slope, start = np.polyfit(index[:, axis], mm[:, axis], 1)
                assert np.abs(slope * index[:, axis] + start - mm[:, axis]).max() < 1.0, patient.name
                assert 0.4 < abs(slope) < 5.1, patient.name

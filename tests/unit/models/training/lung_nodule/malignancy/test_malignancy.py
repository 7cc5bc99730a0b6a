"""Suspicion from nodule volumes: what is read, what is left out, and five folds that judge what they never saw."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import pytest

from models.lung_nodule.malignancy_patch import nodule_patch
from models.training.evaluation.metrics import auc
from models.training.layouts import UnknownLayout
from models.training.lung_nodule.malignancy import study
from models.training.lung_nodule.malignancy.calibration import fit_logistic, logistic
from models.training.lung_nodule.malignancy.data import COLUMNS, read_nodules, read_ratings
from models.training.recurrent_attention.candidates import NEITHER

Row = tuple[str, int, float, int]


def volume(radius: int, bright: int, spacing_mm: tuple[float, float, float] = (0.7, 0.7, 2.5)) -> tuple[bytes, bytes]:
    """A ball in lung, as NIfTI: image and mask (x, y, z)."""
    x, y, z = np.indices((44, 44, 7)) - np.array([22, 22, 3])[:, None, None, None]
    mask = x**2 + y**2 + (3 * z) ** 2 <= radius**2
    hu = np.where(mask, bright, -850).astype(np.int16)
    affine = np.diag([*spacing_mm, 1.0])
    return tuple(gzip.compress(nibabel.Nifti1Image(each, affine).to_bytes()) for each in (hu, mask.astype(np.uint8)))  # type: ignore[return-value]


def archive(path: Path, rows: Sequence[Row], head: Sequence[str] = COLUMNS) -> Path:
    """As lidc_voi3d.zip: larger and brighter where the rating is higher."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(list(head))
    with zipfile.ZipFile(path, "w") as out:
        for patient, nodule, diameter, rating in rows:
            sheet.append([patient, nodule, diameter, rating])
            image, mask = volume(4 + 2 * rating, -100 + 60 * rating)
            out.writestr(f"image/{patient}_R_{nodule}.nii.gz", image)
            out.writestr(f"nodule_mask/{patient}_R_{nodule}.nii.gz", mask)
        file = io.BytesIO()
        book.save(file)
        out.writestr("metadata.xlsx", file.getvalue())
    return path


def people(count: int) -> list[Row]:
    return [(f"LIDC-IDRI-{number:04d}", 1, 8.0 + number % 5, 1 + number % 5) for number in range(count)]


def test_classes_follow_the_ratings_and_three_is_in_neither(tmp_path: Path) -> None:
    candidates, rated = read_nodules(archive(tmp_path / "v.zip", people(10)))
    assert [row.rating for row in rated] == [1, 2, 3, 4, 5] * 2
    assert candidates.labels.tolist() == [0, 0, NEITHER, 1, 1] * 2
    assert candidates.patients[3] == "LIDC-IDRI-0003"
    assert candidates.patches.shape == (10, 13, 48, 48)
    middle = candidates.patches[:, 6, 23:25, 23:25].mean(axis=(1, 2))
    np.testing.assert_allclose(middle, [(1000 - 100 + 60 * row.rating) / 1400 for row in rated], atol=0.02)


@pytest.mark.parametrize(
    ("head", "rows", "words"),
    [
        (("patient_id", "nodule_id", "diameter_mm"), [], "no column Malignancy_value"),
        (COLUMNS, [("LIDC-IDRI-0001", 1, 8.0, 6)], "line 2: a rating of 6"),
        (COLUMNS, [], "no volume that metadata.xlsx rates"),
    ],
)
def test_a_table_that_lacks_something_is_refused_in_words(
    tmp_path: Path, head: Sequence[str], rows: list[Row], words: str
) -> None:
    with pytest.raises(UnknownLayout, match=words):
        read_nodules(archive(tmp_path / "v.zip", rows, head))


def test_a_zip_without_a_table_is_refused_in_words(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as out:
        out.writestr("image/a.nii.gz", b"")
    with zipfile.ZipFile(tmp_path / "v.zip") as opened, pytest.raises(UnknownLayout, match=r"holds no metadata\.xlsx"):
        read_ratings(opened)


def test_what_lies_beyond_the_nodule_along_z_changes_nothing() -> None:
    """Half of the volumes that are learnt from end with the nodule; the others must look as if they did."""
    random = np.random.default_rng(1)
    hu = random.integers(-900, 100, (20, 60, 60)).astype(np.int16)
    mask = np.zeros((5, 9, 9), bool)
    mask[:, 2:7, 2:7] = True
    seen = nodule_patch(hu, mask, (8, 25, 25), (2.5, 0.7, 0.7))
    changed = hu.copy()
    changed[:8], changed[13:] = 3000, 3000
    np.testing.assert_array_equal(nodule_patch(changed, mask, (8, 25, 25), (2.5, 0.7, 0.7)), seen)
    ends_with_it = nodule_patch(hu[8:13], mask, (0, 25, 25), (2.5, 0.7, 0.7))
    np.testing.assert_array_equal(ends_with_it, seen)


def test_a_logistic_is_found_again() -> None:
    random = np.random.default_rng(3)
    scores = random.normal(3, 2, 4000)
    labels = (random.random(4000) < 1 / (1 + np.exp(-(1.5 * scores - 4)))).astype(int)
    slope, offset = fit_logistic(scores, labels)
    assert slope == pytest.approx(1.5, abs=0.15)
    assert offset == pytest.approx(-4, abs=0.4)
    chance = logistic(scores, (slope, offset))
    assert chance.mean() == pytest.approx(labels.mean(), abs=0.01)
    assert auc(chance, labels == 1) == pytest.approx(auc(scores, labels == 1))


def test_five_folds_and_their_page(tmp_path: Path) -> None:
    """End to end on made volumes: every nodule of a class has a score of each seed, and a second run trains nothing."""
    data = archive(tmp_path / "v.zip", people(60))
    small = {"epochs": "2", "width": "2", "embedding": "6", "hidden": "6", "batch": "8", "amp": "false"}
    rows = ["recurrent attention", "3-D ResNet-18"]
    results = study.study(data, tmp_path / "runs", small, "cpu", rows)
    assert results["counts"] == {"nodules": 60, "patients": 60, "positive": 24, "negative": 24, "neither": 12}
    for row in rows:
        scores = np.array(results["rows"][row]["scores"])
        assert scores.shape == (3, 48)
        assert np.isfinite(scores).all()
    own = results["rows"]["recurrent attention"]
    labels = np.array(results["labels"])
    assert own["auc_of_each_seed"] == [round(auc(np.array(each), labels == 1), 4) for each in own["scores"]]
    gap = results["rows"]["diameter alone"]["figures"]["AUC, recurrent attention less this"]
    assert gap["low"] <= gap["value"] <= gap["high"]
    written = study.page(json.loads(json.dumps(results)))
    assert "not histology" in written
    assert "| diameter alone |" in written
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("scores.json")}
    assert len(times) == 2 * 3 * 5
    again = study.study(data, tmp_path / "runs", small, "cpu", rows)
    assert again["rows"] == results["rows"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(SystemExit, match="another training"):
        study.study(data, tmp_path / "runs", {**small, "hidden": "8"}, "cpu", rows)
    without_the_first = study.study(data, tmp_path / "runs", small, "cpu", rows[1:])
    assert set(without_the_first["rows"]) == {"diameter alone", *rows[1:]}
    assert "nothing is compared" in study.page(without_the_first)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_rows_are_named_as_in_the_table() -> None:
    names = list(study.ROWS)
    assert study.split_names(",".join(names)) == names
    with pytest.raises(SystemExit, match="no row 'what'"):
        study.split_names("what")


def test_the_real_volumes_are_all_read(shared_data: Path) -> None:
    candidates, rated = read_nodules(shared_data / "lidc_voi3d.zip")
    assert len(candidates) == 819
    assert np.bincount(candidates.labels + 1).tolist() == [292, 311, 216]
    assert len({row.patient for row in rated}) == 447

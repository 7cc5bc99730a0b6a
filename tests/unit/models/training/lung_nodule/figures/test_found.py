"""What is found at the served certainty: shares by hand, and the commands with the shipped weights on small scans."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from openpyxl import Workbook

from models.phantoms import chest_ct
from models.read import read_ct
from models.training.evaluation.provenance import faults
from models.training.lung_nodule.data.slices import stored_split
from models.training.lung_nodule.figures import found
from models.training.lung_nodule.figures.found import Sought, outlines, shares, spread
from tests.scan_sets import whole, write_xml


@pytest.mark.parametrize("certainty", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_a_mark_below_the_certainty_finds_nothing(certainty: float) -> None:
    """Whatever the certainty, found is the share of marks that reach it, in every group."""
    levels = np.linspace(0.05, 0.95, 19)
    marks = [Sought(f"p{i}", float(level), hu, "") for i, level in enumerate(levels) for hu in (-700, -400, 0)]
    made = shares(marks, certainty)
    assert {one["nodules"] for name, one in made.items() if name != "all"} == {19}
    for one in made.values():
        assert one["found"]["value"] == pytest.approx((levels >= certainty).mean(), abs=5e-4)


@pytest.mark.parametrize(
    ("hu", "group"), [(-501, "below -500"), (-500, "-500 to -300"), (-301, "-500 to -300"), (-300, "from -300")]
)
def test_density_is_told_by_the_median(hu: float, group: str) -> None:
    assert group in Sought("p", 0.5, hu, "").density


def test_groups_of_texture_are_the_readers_own_and_leave_out_the_unrated() -> None:
    marks = [Sought("a", 0.9, 0, "solid (4, 5)"), Sought("b", 0.1, 0, "non-solid (1, 2)"), Sought("c", 0.9, 0, "")]
    made = shares(marks, 0.5)
    assert [name for name in made if name.startswith("texture")] == [
        "texture, non-solid (1, 2)",
        "texture, solid (4, 5)",
    ]
    assert made["texture, non-solid (1, 2)"]["found"]["value"] == 0
    assert (made["all"]["nodules"], made["all"]["found"]["value"]) == (3, pytest.approx(2 / 3, abs=1e-3))


def test_outlines_are_of_what_is_found_and_of_each_number_of_readers() -> None:
    drawn = [(4, 0.5, 0.6), (4, 0.7, 0.8), (3, 0.6, 0.75), (4, None, None)]
    made = outlines([Sought(str(i), 0.9, 0, "", n, iou, dice) for i, (n, iou, dice) in enumerate(drawn)])
    assert {name: one["nodules"] for name, one in made.items()} == {"all": 3, "3 readers": 1, "4 readers": 2}
    assert made["4 readers"]["IoU"]["value"] == pytest.approx(0.6)
    assert made["4 readers"]["Dice, standard deviation"] == pytest.approx(0.1)
    assert spread(made["4 readers"], "Dice") == "70.00 ± 10.00"


def volumes(path: Path) -> Path:
    """A soft ball of 12 mm in noisy lung, of one patient of val and one of test, rated part-solid."""
    split, book = stored_split()[0], Workbook()
    page = book.active
    assert page is not None
    page.append(["patient_id", "nodule_id", "Texture_value", "len_mal_details"])
    away = np.linalg.norm(np.moveaxis(np.indices((24, 44, 44)), 0, -1) - (12, 22, 22), axis=-1)
    hu = np.where(away <= 6, 30.0, -850) + np.random.default_rng(0).normal(0, 15, away.shape)
    with zipfile.ZipFile(path, "w") as file:
        for patient in (split["val"][0], split["test"][0]):
            page.append([patient, 1, 3, 4])
            for folder, values in (("image", hu), ("nodule_mask", away <= 6)):
                image = nibabel.Nifti1Image(values.transpose(2, 1, 0).astype(np.float32), np.eye(4))
                content = io.BytesIO(image.to_bytes())
                file.writestr(f"{folder}/{patient}_1.nii.gz", gzip.compress(content.getvalue()))
        content = io.BytesIO()
        book.save(content)
        file.writestr("metadata.xlsx", content.getvalue())
    return path


def test_volumes_of_the_split_alone_are_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found.main(["--volumes", str(volumes(tmp_path / "v.zip")), "--split", "val", "--out", str(tmp_path)])
    made = json.loads((tmp_path / "lung_found.json").read_text())
    assert made["certainty"] == 0.5
    assert {name: one["nodules"] for name, one in made["volumes"].items()} == {
        "all": 1,
        "density, median from -300 HU on": 1,
        "texture, part-solid (3)": 1,
    }
    assert made["volumes"]["all"]["found"]["value"] == 1  # the ball
    assert {name: one["nodules"] for name, one in made["outlines"].items()} == {"all": 1, "4 readers": 1}
    assert made["outlines"]["all"]["Dice"]["value"] > 0.8
    assert list(faults(made)) == []
    assert (tmp_path / "lung_found.md").read_text().strip() in capsys.readouterr().out


def test_a_scan_is_held_against_its_readers(tmp_path: Path) -> None:
    """Four readers saw the first nodule; what two saw of the second is neither a nodule nor, marked, a mistake."""
    series = tmp_path / "series"
    truth = chest_ct(series, seed=9, slices=32, size=256, spacing_mm=(2.5, 1.1, 1.1), nodules=2)
    volume = read_ct(truth.files)
    first, second = (whole(lesion, volume.hu.shape) for lesion in truth.lesions)
    write_xml(
        series / "readings.xml",
        volume,
        str(volume.headers[0].SeriesInstanceUID),
        [[first, second], [first, second], [first], [first]],
        sop_uids=True,
    )
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as file:
        for one in sorted(series.iterdir()):
            file.write(one, one.name)
    found.main(["--scan", str(tmp_path / "scan.zip"), "--out", str(tmp_path)])
    made = json.loads((tmp_path / "lung_found.json").read_text())
    (scan,) = made["scans"].values()
    (nodule,) = scan["nodules"]
    assert (nodule["readers"], nodule["found"], scan["found"]) == (4, True, 1)
    assert nodule["Dice"] > 0.6
    assert nodule["certainty"] >= made["certainty"]
    assert scan["outlined by fewer readers"] == 1
    assert scan["findings"] >= 2
    assert scan["findings on nothing that a reader outlined"] == scan["findings"] - 2
    assert list(faults(made)) == []
    assert "1 of 1 nodules" in (tmp_path / "lung_found.md").read_text()


def test_nothing_to_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        found.main(["--out", str(tmp_path)])
    assert "--volumes or --scan" in capsys.readouterr().err

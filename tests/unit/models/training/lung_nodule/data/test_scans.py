"""Whole scans on 1 mm: geometry by hand and against scipy, and what is stored comes back."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.grid import first_voxel, isotropic
from models.phantoms import Truth, chest_ct
from models.read import Volume, read_ct
from models.training.layouts import UnknownLayout
from models.training.lung_nodule.data.scans import Lesion, Scan, Scans, load_scan, store
from models.training.lung_nodule.data.slices import stored_split
from tests.scan_sets import POINT, whole, write_xml

spacings = st.tuples(*[st.sampled_from([0.45, 0.6, 0.7, 1.0, 1.25, 2.5, 5.0])] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
offsets = st.tuples(*[st.integers(0, 7)] * 3)


@settings(deadline=None)
@given(shapes, spacings, offsets, st.integers(0, 99))
def test_one_mm_is_linear_interpolation(shape: tuple, spacing: tuple, offset: tuple, seed: int) -> None:
    """Against scipy's map_coordinates at the same places of the whole volume."""
    values = np.random.default_rng(seed).uniform(-1000, 1000, shape)
    first = first_voxel(offset, spacing)
    last = [int((o + n - 1) * mm + 1e-6) for o, n, mm in zip(offset, shape, spacing, strict=True)]
    places = np.meshgrid(*[np.arange(f, e + 1) for f, e in zip(first, last, strict=True)], indexing="ij")
    there = [p / mm - o for p, mm, o in zip(places, spacing, offset, strict=True)]
    expected = ndimage.map_coordinates(values, there, order=1, mode="nearest")
    found = isotropic(values, spacing, offset)
    assert found.shape == expected.shape
    assert found == pytest.approx(expected, abs=0.01)


def test_the_kinds_of_values() -> None:
    hu = np.array([-1000, 1000], np.int16).reshape(2, 1, 1)
    assert isotropic(hu, (4.0, 1, 1)).ravel().tolist() == [-1000, -500, 0, 500, 1000]
    mask = np.array([False, True]).reshape(2, 1, 1)
    assert isotropic(mask, (4.0, 1, 1)).ravel().tolist() == [False, False, True, True, True]


@settings(deadline=None)
@given(shapes, spacings, offsets, st.integers(0, 99))
def test_a_box_lies_where_the_whole_volume_has_it(shape: tuple, spacing: tuple, offset: tuple, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1000, 1000, np.add(shape, offset) + 2)
    box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    part = isotropic(values[box], spacing, offset)
    there = tuple(slice(f, f + n) for f, n in zip(first_voxel(offset, spacing), part.shape, strict=True))
    assert isotropic(values, spacing)[there] == pytest.approx(part, abs=0.01)


def test_a_lesion_is_its_mask() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[2:5, 3:6, 4:7] = True
    lesion = Lesion.of(mask, (10, 20, 30))
    assert lesion.centre_zyx == (13, 24, 35)
    assert lesion.diameter_mm == pytest.approx((6 * 27 / np.pi) ** (1 / 3))
    assert lesion.offset_zyx == (12, 23, 34)
    assert lesion.mask.shape == (3, 3, 3)
    assert lesion.mask.all()
    with pytest.raises(ValueError, match="empty"):
        Lesion.of(np.zeros((2, 2, 2), bool))


def made_up(name: str = "a") -> Scan:
    rng = np.random.default_rng(3)
    ball = np.indices((5, 5, 5)).sum(axis=0) < 7
    return Scan(
        name=name,
        patient="P",
        hu=rng.normal(-800, 300, (11, 12, 13)).astype(np.int16),
        lungs=rng.random((11, 12, 13)) < 0.5,
        lesions=(Lesion.of(ball, (1, 2, 3)), Lesion.of(ball, (4, 5, 6))),
        semi_synthetic=True,
        donors=("D-1", "D-2"),
        irrelevant=(Lesion.of(ball[:1], (0, 0, 0)),),
        candidates=(((1.0, 2.5, 3.0), True),),
        share=0.5,
    )


def same(one: Scan, other: Scan) -> bool:
    def plain(lesions: tuple[Lesion, ...]) -> list:
        return [(x.centre_zyx, x.diameter_mm, x.offset_zyx, x.mask.tolist()) for x in lesions]

    facts = ("name", "patient", "semi_synthetic", "donors", "candidates", "share")
    return (
        all(getattr(one, name) == getattr(other, name) for name in facts)
        and one.hu.dtype == other.hu.dtype
        and np.array_equal(one.hu, other.hu)
        and np.array_equal(one.lungs, other.lungs)
        and plain(one.lesions) == plain(other.lesions)
        and plain(one.irrelevant) == plain(other.irrelevant)
    )


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    store(tmp_path / "a.npz", made_up())
    store(tmp_path / "b.npz", made_up())
    assert same(load_scan(tmp_path / "a.npz"), made_up())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert [path.name for path in tmp_path.glob("*.new")] == []


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayout, match=r"index\.json"):
        Scans(tmp_path)


# --------------------------------------------------------------------------------------- from the public collections


@dataclass(frozen=True)
class Collection:
    """A phantom as both collections would have it: four readers saw the first nodule, two the second."""

    folder: Path
    truth: Truth
    volume: Volume


@pytest.fixture(scope="module", params=["HFS", "FFS"])
def collections(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp(request.param)
    series = folder / "lidc" / "LIDC-IDRI-0001" / "study" / "series"
    truth = chest_ct(
        series,
        seed=5,
        slices=18,
        size=200,
        spacing_mm=(2.5, 1.8, 1.8),
        nodules=2,
        orientation=request.param,
        order="shuffled",
        patient_id="LIDC-IDRI-0001",
        origin_mm=(-31.0, 12.5, -400.0),
        detail=True,
    )
    volume = read_ct(truth.files)
    first, second = (whole(lesion, volume.hu.shape) for lesion in truth.lesions)
    larger = ndimage.binary_dilation(first, np.ones((1, 3, 3)))  # two readers drew it, two did not: consensus is all
    drawn = [[larger, second], [larger, second], [first], [first]]
    series_uid = str(volume.headers[0].SeriesInstanceUID)
    write_xml(series / "readings.xml", volume, series_uid, drawn, sop_uids=True)

    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetOrigin(volume.affine[:3, 3])
    image.SetDirection((volume.affine[:3, 2::-1] / volume.spacing_mm[::-1]).ravel())
    luna = folder / "luna"
    (luna / "subset0").mkdir(parents=True)
    sitk.WriteImage(image, str(luna / "subset0" / "1.2.3.mhd"))
    write_xml(luna / "tcia-lidc-xml" / "1.xml", volume, "1.2.3", drawn, sop_uids=False)
    x, y, z = truth.lesions[0].centre_lps_mm or (0, 0, 0)
    (luna / "annotations.csv").write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2.3,{x},{y},{z},11.0\n")
    (luna / "candidates.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n1.2.3,{x},{y},{z},1\n1.2.3,0,0,0,0\n")
    return Collection(folder, truth, volume)


def around(hu: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    z, y, x = np.rint(centre).astype(int)
    return hu[max(z - 2, 0) : z + 3, y - 2 : y + 3, x - 2 : x + 3]


@pytest.mark.parametrize("layout", ["lidc", "luna"])
def test_lesions_lie_where_the_readers_saw_them(collections: Collection, layout: str, tmp_path: Path) -> None:
    """In the pixels: HU about the centre are those of the whole volume at the phantom's truth, voxel by voxel."""
    scans = Scans(collections.folder / layout, cache=tmp_path)
    (name,) = scans.files
    scan = scans.load(name)
    first, second = collections.truth.lesions
    (lesion,) = scan.lesions
    larger = ndimage.binary_dilation(first.mask, np.ones((1, 3, 3))) if layout == "lidc" else first.mask
    to_index = np.linalg.inv(collections.volume.affine)
    inside = np.argwhere(whole(first, collections.volume.hu.shape)).mean(axis=0) * collections.volume.spacing_mm
    index = (to_index @ [*(first.centre_lps_mm or ()), 1])[:3] * collections.volume.spacing_mm
    at_1_mm = isotropic(collections.volume.hu, collections.volume.spacing_mm)
    start = np.rint(inside - lesion.centre_zyx) if layout == "lidc" else np.rint(index - lesion.centre_zyx)
    assert np.array(lesion.centre_zyx) + start == pytest.approx(inside if layout == "lidc" else index, abs=0.5)
    there = tuple(slice(int(s), int(s) + n) for s, n in zip(start, scan.hu.shape, strict=True))
    assert np.array_equal(scan.hu, at_1_mm[there])
    assert around(scan.hu, lesion.centre_zyx).mean() > -400
    mm3 = float(np.prod(collections.volume.spacing_mm))
    assert lesion.mask.sum() == pytest.approx(ndimage.binary_dilation(first.mask).sum() * mm3, rel=0.6)
    assert lesion.mask.sum() > 0.8 * larger.sum() * mm3
    assert len(scan.irrelevant) == 2  # two readers' nodule, and a point
    seen = np.argwhere(whole(second, collections.volume.hu.shape)).mean(axis=0) * collections.volume.spacing_mm - start
    assert np.array(scan.irrelevant[0].centre_zyx) == pytest.approx(seen, abs=0.6)
    point = np.array(POINT) * collections.volume.spacing_mm - start
    assert scan.irrelevant[1].centre_zyx == pytest.approx(point, abs=0.6)
    assert scan.lungs[scan.lesions[0].box].mean() > 0.9
    if layout == "luna":
        assert lesion.diameter_mm == 11.0
        assert scan.candidates[0] == (pytest.approx(lesion.centre_zyx, abs=0.01), True)
        assert not scan.candidates[1][1]


def test_scans_are_kept_and_split_by_patient(collections: Collection, tmp_path: Path) -> None:
    scans = Scans(collections.folder / "lidc", cache=tmp_path)
    part = next(name for name, patients in stored_split()[0].items() if "LIDC-IDRI-0001" in patients)
    assert {name for name, names in scans.split.items() if names} == {part}
    assert scans.split_sha256 == stored_split()[1]
    (file,) = tmp_path.rglob("*.npz")
    before = file.stat().st_mtime_ns
    assert Scans(collections.folder / "lidc", cache=tmp_path).split == scans.split
    assert file.stat().st_mtime_ns == before


def test_a_scan_that_cannot_be_read_is_left_out_with_its_reason(collections: Collection, tmp_path: Path) -> None:
    shutil.copytree(collections.folder / "luna", tmp_path / "luna")
    (tmp_path / "luna" / "subset0" / "9.9.mhd").write_text("no image")
    scans = Scans(tmp_path / "luna", cache=tmp_path / "cache")
    assert set(scans.files) == {"1.2.3"}
    (index,) = (tmp_path / "cache").rglob("index.json")
    assert "9.9.mhd" in json.loads(index.read_text())["left_out"]["9.9"]

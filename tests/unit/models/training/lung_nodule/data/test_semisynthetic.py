"""Pasted nodules: the truth is where the pixels changed, nothing else changed, and no donor is in two parts.

Made-up donors and chests, so that what must come out is known; one test with real ones where they are at hand.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.phantoms import chest_ct
from models.phantoms.chest_disease import KINDS, Disease
from models.training.layouts import UnknownLayout
from models.training.lung_nodule.data import semisynthetic
from models.training.lung_nodule.data.nodule_volumes import BEYOND_MM, small_scan, without_compact, write
from models.training.lung_nodule.data.scans import Scan, Scans, ball
from models.training.lung_nodule.data.semisynthetic import (
    RIM_MM,
    Background,
    Chest,
    Donor,
    Plan,
    disease_of,
    donor_names,
    generate,
    graft,
    make,
    noise_of,
    plans,
    read_chest,
    read_donor,
    read_folder,
    turned,
)
from models.training.lung_nodule.data.slices import stored_split
from models.training.lung_nodule.figures.semisynthetic import figures, looks, pairs

LUNG_HU, NODULE_HU, NOISE_HU = -870.0, 25.0, 22.0


def donor(
    *,
    radius_mm: float = 6.0,
    spacing_mm: tuple = (2.0, 0.7, 0.7),
    wall: bool = False,
    seed: int = 0,
    patient: str = "D",
) -> Donor:
    """A ball in lung, its volume cut off above and below as those of LIDC are; with a wall at its right side (+x)."""
    mm = np.array(spacing_mm)
    half = np.ceil([radius_mm, radius_mm + 9, radius_mm + 9] / mm).astype(int)
    z, y, x = (np.arange(-n, n + 1) * s for n, s in zip(half, mm, strict=True))
    away = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    inside = np.clip((radius_mm - away) / 0.8 + 0.5, 0, 1)  # a border as blurred as a scanner's
    if wall:
        inside = np.maximum(inside, np.broadcast_to(x > radius_mm - 1, inside.shape))
    noise = np.random.default_rng(seed).normal(0, NOISE_HU, inside.shape)
    hu = LUNG_HU + (NODULE_HU - LUNG_HU) * inside + noise
    mask = away <= radius_mm
    if wall:
        mask &= np.broadcast_to(x <= radius_mm - 1, mask.shape)
    marked = np.flatnonzero(mask.any(axis=(1, 2)))
    kept = slice(marked[0], marked[-1] + 1)
    return Donor("D_R_1", patient, hu[kept].astype(np.float32), mask[kept], spacing_mm)


def chest(seed: int = 1, shape: tuple = (100, 110, 150)) -> Background:
    """Two lungs with noise in a block of soft tissue."""
    z, y, x = np.indices(shape)
    lungs = np.zeros(shape, bool)
    for middle in (0.27, 0.73):
        away = [(z / shape[0] - 0.5) / 0.46, (y / shape[1] - 0.5) / 0.44, (x / shape[2] - middle) / 0.22]
        lungs |= sum(one**2 for one in away) < 1
    noise = np.random.default_rng(seed).normal(0, 30, shape)
    return Background("made up", "B", np.rint(np.where(lungs, -830, 40) + noise).astype(np.int16), lungs)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As lidc_voi3d.zip: (x, y, z) NIfTI, three donors for each part of the stored split, the third at a wall."""
    path = tmp_path_factory.mktemp("volumes") / "volumes.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for part, patients in stored_split()[0].items():
            for number, patient in enumerate(patients[:3] if part != "unseen" else []):
                one = donor(radius_mm=3.5 + number, wall=number == 2, seed=number)
                affine = np.diag([*one.spacing_mm[::-1], 1.0])
                for folder, values in (("image", one.hu.astype(np.int16)), ("nodule_mask", one.mask.astype(np.uint8))):
                    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine)
                    archive.writestr(f"{folder}/{patient}_R_{number}.nii.gz", gzip.compress(image.to_bytes(), mtime=0))
    return path


@pytest.fixture(scope="module")
def made(volumes: Path) -> tuple[Background, Scan, list[Donor]]:
    """All three training donors in one chest."""
    ground = chest()
    with zipfile.ZipFile(volumes) as archive:
        names = donor_names(archive, stored_split()[0]["train"])
        scan, facts, lacking = make(Plan("train-0000", "train", None, (1, 0, 0), tuple(names)), ground, archive)
        assert lacking == []
        assert len(scan.lesions) == len(facts) == 3
        return ground, scan, [read_donor(archive, name) for name in names]


def painted(scan: Scan) -> np.ndarray:
    """int (z, y, x): number of the lesion from 1, 0 elsewhere."""
    out = np.zeros(scan.hu.shape, int)
    for number, lesion in enumerate(scan.lesions, start=1):
        out[lesion.box][lesion.mask] = number
    return out


def test_only_rims_changed(made: tuple) -> None:
    ground, scan, _ = made
    changed = scan.hu != ground.hu
    away = ndimage.distance_transform_edt(painted(scan) == 0)
    assert changed.any()
    assert away[changed].max() < RIM_MM


def test_the_truth_is_where_hu_rose(made: tuple) -> None:
    """Centre: of the mask, and of the HU that were added; the mask holds what rose by more than half the contrast."""
    ground, scan, donors = made
    truth = painted(scan)
    rise = scan.hu.astype(float) - ground.hu
    for number, lesion in enumerate(scan.lesions, start=1):
        where = np.argwhere(truth == number)
        assert lesion.centre_zyx == pytest.approx(where.mean(axis=0), abs=0.5)
        around = ndimage.distance_transform_edt(truth != number) < RIM_MM
        if donors[number - 1].wall is None:  # at a wall less is added on its side
            weights = np.where(around, np.maximum(rise, 0), 0)
            risen = [
                float((np.arange(n) * weights.sum(axis=tuple({0, 1, 2} - {a}))).sum() / weights.sum())
                for a, n in enumerate(scan.hu.shape)
            ]
            assert lesion.centre_zyx == pytest.approx(risen, abs=0.5)
            half = around & (rise > (NODULE_HU + 830) / 2)
            overlap = 2 * (half & (truth == number)).sum() / (half.sum() + (truth == number).sum())
            assert overlap > 0.85
        mm3 = float(np.prod(donors[number - 1].spacing_mm)) * donors[number - 1].mask.sum()
        assert len(where) == pytest.approx(mm3, rel=0.15)
        assert lesion.diameter_mm == pytest.approx((6 * mm3 / np.pi) ** (1 / 3), rel=0.05)


def test_hu_rise_as_the_donors_contrast_says(made: tuple) -> None:
    """The core gets the donor's own HU, not the sum of both: lung HU differ by 40 between donor and chest."""
    ground, scan, _ = made
    truth = painted(scan)
    for number in (1, 2):
        core = ndimage.distance_transform_edt(truth == number) > 2
        assert scan.hu[core].mean() == pytest.approx(NODULE_HU, abs=12)
        assert ground.hu[core].mean() < -800


def test_noise_is_that_of_the_scan(made: tuple) -> None:
    """In the nodule, and in lung 1 to 3 mm off it, as far away from it: nothing shows where the paste ends."""
    _, scan, _ = made
    away = ndimage.distance_transform_edt(painted(scan) == 0)
    rim = (away > 1.5) & (away < RIM_MM) & scan.lungs
    around = (away > RIM_MM + 2) & (away < 15) & scan.lungs & (scan.hu < -600)
    assert noise_of(scan.hu, rim & (scan.hu < -600)) / noise_of(scan.hu, around) == pytest.approx(1, abs=0.3)
    core = ndimage.distance_transform_edt(painted(scan)) > 2
    assert noise_of(scan.hu, core) / noise_of(scan.hu, around) == pytest.approx(1, abs=0.35)


def test_allowed_places(made: tuple) -> None:
    ground, scan, donors = made
    for lesion, one in zip(scan.lesions, donors, strict=True):
        inside = ground.lungs[lesion.box][lesion.mask]
        to_border = ndimage.distance_transform_edt(ground.lungs)[lesion.box][lesion.mask].min()
        if one.wall is None:
            assert inside.all()
            assert to_border > 1 + 0.1 * lesion.diameter_mm
        else:
            assert inside.mean() >= 0.9
            assert to_border <= 2
    for one, other in combinations(scan.lesions, 2):
        apart = np.linalg.norm(np.subtract(one.centre_zyx, other.centre_zyx))
        assert apart > (one.diameter_mm + other.diameter_mm) / 2 + 2 * RIM_MM


def test_the_wall_of_a_donor_is_seen_and_turns_with_it() -> None:
    assert donor(wall=False).wall is None
    wall = donor(wall=True).wall
    assert wall == pytest.approx([0, 0, 1], abs=0.1)
    assert graft(donor(wall=True), turned(np.pi / 2, (1, 1, 1))).wall == pytest.approx([0, -1, 0], abs=0.1)
    assert graft(donor(wall=True), turned(0, (1, 1, -1))).wall == pytest.approx([0, 0, -1], abs=0.1)


@settings(deadline=None, max_examples=10)
@given(
    st.floats(2.5, 9),
    st.sampled_from([(0.625, 0.6, 0.6), (1.25, 0.7, 0.9), (2.5, 0.8, 0.8)]),
    st.floats(0, 6.28),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
)
def test_a_graft_keeps_size_and_place(radius: float, spacing: tuple, angle: float, flips: tuple) -> None:
    """However turned: the volume in mm3, and the graft's HU about its mask's centroid."""
    one = donor(radius_mm=radius, spacing_mm=spacing)
    made = graft(one, turned(angle, flips))
    mm3 = float(one.mask.sum() * np.prod(spacing))
    assert made.mask.sum() == pytest.approx(mm3, rel=0.2, abs=12)
    weights = made.tissue
    centre = [
        float((np.arange(n) * weights.sum(axis=tuple({0, 1, 2} - {a}))).sum() / weights.sum())
        for a, n in enumerate(weights.shape)
    ]
    assert centre == pytest.approx(np.argwhere(made.mask).mean(axis=0), abs=0.5)
    assert 0.3 * NOISE_HU < made.noise_hu < NOISE_HU  # interpolation takes some; what lies beyond the volume has none


def test_no_room_is_said(volumes: Path) -> None:
    with zipfile.ZipFile(volumes) as archive:
        names = tuple(donor_names(archive, stored_split()[0]["test"]))
        plan = Plan("test-0000", "test", None, (1, 2, 0), names)
        scan, facts, lacking = make(plan, chest(shape=(16, 20, 24)), archive)
    assert (scan.lesions, scan.donors, facts) == ((), (), [])
    assert len(lacking) == 3


def test_parts_of_a_chest_share_nothing() -> None:
    """Every voxel's HU is its own place, so parts with a voxel in common would have a HU in common."""
    ground = chest(shape=(60, 20, 24))
    places = np.arange(ground.hu.size, dtype=np.int32).reshape(ground.hu.shape) - 2**14
    whole = Background("c", "c", places, ground.lungs)
    for left_after in (True, False):
        for upwards in (True, False):
            one = Chest(whole, 12, left_after, upwards)
            for number in (0, 1):
                parts = {name: one.part(name, number) for name in ("train", "test", *(["val"] if number == 0 else []))}
                for a, b in combinations(parts.values(), 2):
                    assert not np.intersect1d(a.hu, b.hu).size
                x = (parts["train"].hu + 2**14) % 24
                assert ((x >= 12) == (left_after == (number == 0))).all()  # even: the left lung is trained on
                if number == 0:
                    z = [float(((parts[name].hu + 2**14) // (24 * 20)).mean()) for name in ("val", "test")]
                    assert (z[0] > z[1]) == upwards


def test_what_a_chest_has_itself_goes_along_and_nothing_is_pasted_on_it(volumes: Path) -> None:
    """Own findings all over one lung but for a corner: they are irrelevant, and nodules are pasted away from them."""
    whole = chest(shape=(100, 110, 150))
    spots = [(z, y, x) for z in range(20, 90, 14) for y in range(25, 90, 14) for x in (30, 44, 100, 120)]
    own = tuple(ball(spot, 6.0, (1, 1, 1)) for spot in spots if spot[0] > 40)
    one = Chest(replace(whole, own=own), 75, True, True).part("train", 0)  # the side of higher x
    assert 0 < len(one.own) < len(own)

    def around(hu: np.ndarray, centre: tuple) -> bytes:
        return hu[tuple(slice(round(c) - 2, round(c) + 3) for c in centre)].tobytes()

    assert {around(one.hu, lesion.centre_zyx) for lesion in one.own} < {around(whole.hu, spot) for spot in spots}
    with zipfile.ZipFile(volumes) as archive:
        names = donor_names(archive, stored_split()[0]["train"])
        scan, _, _ = make(Plan("train-0000", "train", 0, (1, 0, 0), tuple(names)), one, archive)
    assert scan.irrelevant == one.own
    assert scan.lesions
    apart = [np.subtract(a.centre_zyx, b.centre_zyx) for a in scan.lesions for b in one.own]
    assert min(np.linalg.norm(apart, axis=1)) > 8 + 3


def test_the_list_of_excluded_places_is_read_as_luna16_writes_it(tmp_path: Path) -> None:
    """On slices of 5 mm and pixels that are not square: the listed place is the nodule, in the part that shows it."""
    truth = chest_ct(tmp_path / "ct", slices=60, size=256, spacing_mm=(5.0, 1.4, 1.3), nodules=1)
    volume = read_folder(tmp_path / "ct")
    x, y, z = truth.lesions[0].centre_lps_mm
    listed = tmp_path / "annotations_excluded.csv"
    uid = volume.headers[0].SeriesInstanceUID
    listed.write_text(f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{uid},{x},{y},{z},9\nanother,{x},{y},{z},9\n")
    unmeasured = tmp_path / "unmeasured.csv"
    unmeasured.write_text(listed.read_text().replace(",9", ",-1"))
    chests = read_chest(tmp_path / "ct", listed)
    (own,) = chests.whole.own
    assert chests.whole.hu[own.box][own.mask].mean() > -300
    held = [part for part in ("train", "test") for found in [chests.part(part, 1).own] if found]
    left = x > 0
    assert held == (["test"] if left else ["train"])  # odd numbers learn from the right lung
    (ten_mm,) = read_chest(tmp_path / "ct", unmeasured).whole.own  # as LUNA16's script takes those of unknown size
    assert (ten_mm.centre_zyx, ten_mm.diameter_mm) == (own.centre_zyx, 10)
    (tmp_path / "no list.csv").write_text("a,b\n1,2\n")
    for name in ("no list.csv", "nothing there.csv"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as LUNA16's"):
            read_chest(tmp_path / "ct", tmp_path / name)
    assert not read_chest(tmp_path / "ct").whole.own  # in the list beside the code there is no such series


def test_each_nodule_volume_is_a_scan_with_its_nodule_where_it_is(volumes: Path, tmp_path: Path) -> None:
    assert write(volumes, tmp_path) == 9
    scans = Scans(tmp_path)
    assert not scans.semi_synthetic
    assert {part: len(names) for part, names in scans.split.items()} == {"train": 3, "val": 3, "test": 3, "unseen": 0}
    for part in ("train", "val", "test"):
        for name in scans.split[part]:
            scan = scans.load(name)
            assert scan.patient in stored_split()[0][part]
            assert 0 < scan.share < 0.05  # of a chest
            (lesion,) = scan.lesions
            inside = painted(scan) == 1
            assert scan.hu[ndimage.binary_erosion(inside)].min() > -400
            assert np.array(lesion.offset_zyx).min() >= BEYOND_MM - 1  # the volume begins there
            above = scan.hu[lesion.offset_zyx[0] - 3][inside.any(axis=0)]  # beyond the volume: no nodule goes on
            assert np.median(above) == pytest.approx(LUNG_HU, abs=25)
            assert inside[scan.lungs].sum() > 0.5 * inside.sum()  # closed over it


@pytest.mark.parametrize("wall", [False, True])
def test_what_is_beyond_a_nodule_volume_does_not_depend_on_the_mask(wall: bool) -> None:
    """Neither HU nor lungs: who outlines it must not see by the image where the readers did."""
    one = donor(radius_mm=5.0, wall=wall)
    shifted = np.roll(one.mask, 4, axis=2)
    whole = small_scan(one)
    assert whole.lesions
    for mask in (shifted, np.zeros_like(one.mask), ndimage.binary_dilation(one.mask, iterations=3)):
        other = small_scan(replace(one, mask=mask))
        np.testing.assert_array_equal(other.hu, whole.hu)
        np.testing.assert_array_equal(other.lungs, whole.lungs)


def test_lung_and_wall_go_on_beyond_a_slice_nodules_ground_glass_and_vessels_do_not() -> None:
    """Balls of 14 mm, one of them ground glass and one at the wall, and a vessel that leaves the picture."""
    y, x = np.indices((76, 76))
    lung = np.random.default_rng(0).normal(LUNG_HU, NOISE_HU, y.shape)
    wall = x >= 56
    compact = {
        "dense": ((y - 20) ** 2 + (x - 20) ** 2 < 49, NODULE_HU),
        "ground glass": ((y - 50) ** 2 + (x - 20) ** 2 < 49, -600.0),
        "at the wall": ((y - 38) ** 2 + (x - 52) ** 2 < 49, NODULE_HU),
        "vessel": ((abs(y - 64) < 3) & (x < 40), NODULE_HU),
    }
    there = np.where(wall, 40.0, lung)
    for where, hu in compact.values():
        there[where & ~wall] = hu
    beyond = without_compact(there.astype(np.int16), LUNG_HU)
    assert (beyond[wall] == 40).all()
    for where, _ in compact.values():
        apart = where & (x < 53)  # of what is at the wall a bump as flat as this stays
        assert (beyond[apart] == LUNG_HU).mean() > 0.8
    quiet = ~wall & ~np.any([where for where, _ in compact.values()], axis=0)
    assert beyond[quiet].std() == pytest.approx(NOISE_HU, rel=0.1)  # its own, not a flat plane


def small_phantom(seed: int, disease: Disease | None = None) -> Background:
    ground = chest(seed, shape=(72, 84, 112))
    return ground if disease is None else replace(ground, name=disease.kind)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semisynthetic, "phantom", small_phantom)  # the real one takes half a minute


@pytest.mark.usefixtures("small")
def test_same_seed_same_bytes_and_no_donor_in_two_parts(volumes: Path, tmp_path: Path) -> None:
    one, two = (generate(volumes, [], tmp_path / name, 5, seed=3) for name in "ab")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert one["sha256"] == two["sha256"]
    other = generate(volumes, [], tmp_path / "c", 5, seed=4)
    assert other["sha256"] != one["sha256"]
    stored, sha256 = stored_split()
    assert one["split_sha256"] == sha256
    for scan in one["scans"]:
        assert scan["lesions"]
        assert {lesion["patient"] for lesion in scan["lesions"]} <= set(stored[scan["part"]])
    seeds = [semisynthetic.phantom_seed(plan) for plan in plans({p: ["x"] for p in ("train", "val", "test")}, 64, 1, 0)]
    assert len(set(seeds)) == len(seeds)

    scans = Scans(tmp_path / "a")
    assert {part: len(names) for part, names in scans.split.items()} == {"train": 3, "val": 1, "test": 1}
    loaded = scans.load("test-0000")
    (said,) = (entry for entry in one["scans"] if entry["name"] == "test-0000")
    assert [lesion["diameter_mm"] for lesion in said["lesions"]] == [
        pytest.approx(lesion.diameter_mm, abs=0.01) for lesion in loaded.lesions
    ]
    index = tmp_path / "a" / "index.json"
    index.write_text(index.read_text().replace('"test-0000"', '"train-9999"'))
    with pytest.raises(UnknownLayout, match="changed"):
        Scans(tmp_path / "a")


@pytest.mark.usefixtures("small")
def test_a_share_of_the_phantoms_is_diseased_and_the_others_are_as_without(volumes: Path, tmp_path: Path) -> None:
    healthy, some, ill = (generate(volumes, [], tmp_path / str(n), 12, seed=3, diseased=n) for n in (0, 0.5, 1))
    assert "diseased" not in healthy["settings"]
    assert not any("disease" in one for one in healthy["scans"])
    assert some["settings"]["diseased"] == 0.5
    assert all("disease" in one for one in ill["scans"])
    with_any = {one["name"]: one["disease"] for one in some["scans"] if "disease" in one}
    assert 0 < len(with_any) < len(some["scans"])
    for one, other, third in zip(healthy["scans"], some["scans"], ill["scans"], strict=True):
        if one["name"] in with_any:
            assert with_any[one["name"]] == third["disease"]
            assert other["background"] == with_any[one["name"]]["kind"]
        else:
            assert one == other  # to the digest of its file
    drawn = [(one["part"], one["disease"]["seed"]) for one in ill["scans"]]
    train, test = ({seed for part, seed in drawn if part == name} for name in ("train", "test"))
    assert not train & test
    with pytest.raises(ValueError, match="another set"):
        generate(volumes, [], tmp_path / "0.5", 12, seed=3)


@pytest.mark.parametrize("number", range(40))
def test_diseases_are_of_phantoms_alone_and_as_many_as_asked(number: int) -> None:
    made = plans({part: ["x"] for part in ("train", "val", "test")}, 300, number, 2)
    phantoms = [plan for plan in made if plan.real is None]
    assert not any(disease_of(plan, 1.0) for plan in made if plan.real is not None)
    found = [disease_of(plan, 0.4) for plan in phantoms]
    assert 0.2 < sum(one is not None for one in found) / len(found) < 0.6
    assert {one.kind for one in found if one} == set(KINDS)


def test_nodules_are_pasted_into_what_a_disease_leaves_of_the_lung(volumes: Path) -> None:
    ground = semisynthetic.phantom(71, Disease("effusion", 0.6, 71))
    assert ground.name == "phantom-71-effusion"
    assert ground.lungs.sum() < 0.95 * semisynthetic.phantom(71).lungs.sum()
    with zipfile.ZipFile(volumes) as archive:
        names = donor_names(archive, stored_split()[0]["train"])
        scan, _, _ = make(Plan("train-0000", "train", None, (1, 0, 0), tuple(names)), ground, archive)
    assert scan.lesions
    for lesion in scan.lesions:
        assert ground.lungs[lesion.box][lesion.mask].mean() > 0.9


@pytest.mark.parametrize("asked", ["-0.1", "1.1", "half"])
def test_a_share_that_is_none_is_refused(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        semisynthetic.main(["--volumes", "v.zip", "--out", "o", "--diseased", asked])
    assert "--diseased" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_an_interrupted_set_is_gone_on_with(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate(volumes, [], tmp_path / "whole", 4, seed=3)
    real_store, calls = semisynthetic.store, []

    def failing(path: Path, scan: Scan) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real_store(path, scan)

    monkeypatch.setattr(semisynthetic, "store", failing)
    with pytest.raises(KeyboardInterrupt):
        generate(volumes, [], tmp_path / "cut", 4, seed=3)
    assert len(json.loads((tmp_path / "cut" / "index.json").read_text())["scans"]) == 2
    assert generate(volumes, [], tmp_path / "cut", 4, seed=3) == whole
    assert len(calls) == 3 + len(whole["scans"]) - 2
    assert generate(volumes, [], tmp_path / "cut", 4, seed=3) == whole  # nothing left to do
    assert Scans(tmp_path / "cut").files.keys() == {one["name"] for one in whole["scans"]}
    with pytest.raises(ValueError, match="another set"):
        generate(volumes, [], tmp_path / "cut", 4, seed=9)


def test_each_donor_once_before_any_twice() -> None:
    donors = {part: [f"{part}{i}" for i in range(30)] for part in ("train", "val", "test")}
    made = [plan for plan in plans(donors, 64, 1, 2) if plan.part == "train"]
    used = [name for plan in sorted(made, key=lambda plan: plan.name) for name in plan.donors]
    assert sorted(used[:30]) == sorted(donors["train"])
    assert {plan.real for plan in made} == {0, 1, None}
    assert {plan.real for plan in plans(donors, 64, 1, 2) if plan.part == "val"} == {0, None}


def test_real_nodules_in_a_real_chest(shared_data: Path) -> None:
    chest_ct = read_chest(shared_data / "ct_LungFCP-01-0001.zip")
    ground = chest_ct.part("test", 1)
    with zipfile.ZipFile(shared_data / "lidc_voi3d.zip") as archive:
        names = donor_names(archive, stored_split()[0]["test"])[:4]
        scan, facts, lacking = make(Plan("test-0000", "test", 1, (1, 2, 0), tuple(names)), ground, archive)
    assert len(facts) + len(lacking) == 4
    assert len(facts) >= 2
    assert set(scan.donors) <= set(stored_split()[0]["test"])
    away = ndimage.distance_transform_edt(painted(scan) == 0)
    assert away[scan.hu != ground.hu].max() < RIM_MM
    for lesion in scan.lesions:
        assert scan.hu[lesion.box][lesion.mask].mean() > ground.hu[lesion.box][lesion.mask].mean() + 100
    rim = (away >= 2) & (away < RIM_MM) & scan.lungs & (scan.hu < -700)
    around = (away >= 6) & (away < 12) & scan.lungs & (scan.hu < -700)
    assert 0.6 < noise_of(scan.hu, rim) / noise_of(scan.hu, around) < 1.6


def test_the_figures_of_looks_see_a_seam_and_a_wrong_noise() -> None:
    """A nodule as the phantom has it, against the same one in a box of other noise, and with a step round it."""
    ground = chest()
    z, y, x = np.indices(ground.hu.shape)
    away = np.sqrt((z - 50) ** 2 + (y - 55) ** 2 + (x - 40) ** 2)
    mask = away <= 6
    clean = ground.hu + np.clip(6.5 - away, 0, 1) * 850
    rim = (away > 6) & (away < 9)
    noisy = clean + rim * np.random.default_rng(0).normal(0, 60, clean.shape)
    stepped = clean + rim * 150
    box = np.s_[44:57, 37:74, 22:59]
    plain, loud, seamed = (looks(one[box], mask[box]) for one in (clean, noisy, stepped))
    assert 0.8 < plain[0] < 1.5  # more than 1: the nodule's own border is as fine as noise
    assert plain[1] == pytest.approx(1, abs=0.3)
    assert loud[0] > 1.4 * plain[0]
    assert seamed[1] > 1.6


@pytest.mark.usefixtures("small")
def test_pasted_and_original_are_compared_pair_by_pair(volumes: Path, tmp_path: Path) -> None:
    index = generate(volumes, [], tmp_path, 4, seed=3)
    found = list(pairs(tmp_path, volumes))
    assert len(found) == sum(len(scan["lesions"]) for scan in index["scans"])
    patients = [lesion["patient"] for scan in index["scans"] for lesion in scan["lesions"]]
    assert [pair.patient for pair in found] == patients
    said = figures([pair for pair in found if np.isfinite([pair.pasted, pair.original]).all()])
    assert said["noise, pasted"].value == pytest.approx(1, abs=0.4)
    assert said["edge, pasted"].value == pytest.approx(said["edge, original"].value, rel=0.3)

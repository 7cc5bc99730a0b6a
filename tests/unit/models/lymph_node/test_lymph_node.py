"""lymph-node: where it looks, what it proposes and outlines, and what it says of input that it was not made for."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from scipy import ndimage

from config import problems
from dicom_sr import codes
from models import build, catalogue
from models.lymph_node.outline import outline
from models.lymph_node.pipeline import LymphNode, is_same, refuse_unfit, warnings_of
from models.lymph_node.propose import node_likeness, propose
from models.lymph_node.regions import GRID_MM, coarse, find_regions
from models.measure import axial
from models.options import BadOptions
from models.phantoms import Truth, lymph_node_ct, lymph_node_volume
from models.phantoms.chest_anatomy import Ball, Grid, ball_lesion
from models.phantoms.lymph_nodes import Region
from models.pipeline import UnfitInput
from models.read import Volume, read_ct
from tests.results import nodule

QUIET = lambda fraction, words: None  # noqa: E731  a progress that nobody watches


@cache
def phantom(region: Region, seed: int = 6) -> tuple[Volume, Grid, list[Ball]]:
    hu, grid, balls = lymph_node_volume(seed, region, shape=(70, 250, 250), spacing_mm=(2.5, 1.45, 1.45), nodes=5)
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    return Volume(hu, (), (float(spacing[0]), float(spacing[1]), float(spacing[2])), grid.affine, ()), grid, balls


@pytest.fixture(scope="module")
def pipeline() -> LymphNode:
    made = build(catalogue().declared["lymph-node"], "cpu", {"experimental": True, "threads": 1, "attention": True})
    assert isinstance(made, LymphNode)
    return made


@pytest.fixture(scope="module")
def mediastinum(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return lymph_node_ct(tmp_path_factory.mktemp("nodes"), seed=7)


# ---------------------------------------------------------------------------------------------------------- regions


def test_the_grid_keeps_places_and_hu() -> None:
    """A ramp along each axis is the same ramp on the coarse grid, in mm."""
    spacing = (3.0, 0.8, 1.3)
    for axis in range(3):
        line = np.arange((20, 60, 50)[axis]) * spacing[axis]
        hu = np.broadcast_to(line.reshape([-1 if a == axis else 1 for a in range(3)]), (20, 60, 50)).astype(np.int16)
        volume = Volume(hu, (), spacing, np.diag([*spacing, 1.0]), ())
        found = np.moveaxis(coarse(volume), axis, 0)[2:-2, 3, 3]
        expected = GRID_MM * np.arange(2, 2 + len(found))
        np.testing.assert_allclose(found, expected, atol=1.0)


@pytest.mark.parametrize("region", ["mediastinum", "abdomen"])
def test_nodes_lie_where_is_looked(region: Region) -> None:
    volume, _, balls = phantom(region)
    searched = find_regions(volume)
    assert searched.largest == region
    inside = [searched.both[tuple(np.rint(_mm(volume, ball) / GRID_MM).astype(int))] for ball in balls]
    assert sum(inside) >= len(balls) - 1
    lungs = searched.hu < -700
    assert (searched.both & lungs).sum() < 0.1 * searched.both.sum()  # 3 mm of their edge


def _mm(volume: Volume, ball: Ball) -> np.ndarray:
    return np.array(volume.index_zyx(ball.centre_mm)) * volume.spacing_mm


@pytest.mark.parametrize("upside_down", [False, True])
def test_the_abdomen_lies_below_the_lungs_and_the_neck_is_not_looked_at(upside_down: bool) -> None:
    """Lungs on the middle slices alone: only what is towards the feet is the abdomen, however slices are stored."""
    volume, _, _ = phantom("mediastinum")
    hu = volume.hu.copy()
    lungs = hu < -600
    lungs[20:50] = False  # these slices keep theirs
    for outside in (np.s_[:, :40], np.s_[:, 210:], np.s_[:, :, :25], np.s_[:, :, 225:]):
        lungs[outside] = False
    hu[lungs] = -95
    affine = volume.affine.copy()
    if upside_down:
        affine[:3, 3] += affine[:3, 0] * (len(hu) - 1)
        affine[:3, 0] *= -1
        hu = hu[::-1]
    searched = find_regions(replace(volume, values=hu, affine=affine))
    has = np.flatnonzero(searched.abdomen.any(axis=(1, 2)))
    heights = affine[2, 3] + affine[2, 0] / volume.spacing_mm[0] * GRID_MM * has
    chest = np.flatnonzero(searched.mediastinum.any(axis=(1, 2)))
    lowest = (affine[2, 3] + affine[2, 0] / volume.spacing_mm[0] * GRID_MM * chest).min()
    assert len(has) > 10
    assert heights.max() < lowest


def test_gas_in_the_stomach_is_no_lung() -> None:
    """A large pocket of gas on many slices: the abdomen above it is looked at as before."""
    volume, _, _ = phantom("abdomen")
    before = find_regions(volume)
    hu = volume.hu.copy()
    z, y, x = np.indices(hu.shape) - np.array([30, 100, 120])[:, None, None, None]
    gas = (z * 2.5 / 35) ** 2 + (y * 1.45 / 30) ** 2 + (x * 1.45 / 32) ** 2 < 1
    hu[gas] = -1000
    hu[ndimage.binary_dilation(gas) & ~gas] = -480  # partial volume of its border
    after = find_regions(replace(volume, values=hu))
    assert not after.mediastinum.any()
    assert after.abdomen.any(axis=(1, 2)).sum() == before.abdomen.any(axis=(1, 2)).sum()


def test_a_conglomerate_is_one_finding() -> None:
    mask = np.ones((2, 6, 6), bool)
    one, same, half, other = (nodule(1, at, mask) for at in ((3, 5, 5), (3, 5, 5), (3, 8, 5), (3, 9, 5)))
    assert is_same(one, same)
    assert is_same(one, half)
    assert not is_same(one, other)
    assert not is_same(one, nodule(1, (9, 30, 30), mask))


def test_places_are_of_findings_not_of_candidates(mediastinum: Truth) -> None:
    """at_most = 1 is the surest node, even where a surer candidate was too small; and what was left out is said."""
    asked = {"experimental": True, "threads": 1, "at_most": 1, "smallest_mm": 9.0, "certainty": 0.1}
    result = LymphNode("cpu", asked).run(mediastinum.files, QUIET)
    [one] = result.findings
    assert next(m.value for m in one.measurements if m.name == codes.SHORT_AXIS) >= 9.0
    assert any("only 1 are reported" in warning for warning in result.warnings)
    assert any("looked at: mediastinum" in warning for warning in result.warnings)


def test_a_head_is_no_chest_and_no_abdomen() -> None:
    hu = np.full((40, 120, 120), -1000, np.int16)
    _, y, x = np.indices(hu.shape) - np.array([20, 60, 60])[:, None, None, None]
    hu[(y / 55) ** 2 + (x / 45) ** 2 < 1] = 40
    volume = Volume(hu, (), (2.5, 1.7, 1.7), np.diag([2.5, 1.7, 1.7, 1.0]), ())
    with pytest.raises(UnfitInput, match=r"cross-section is 2\d\d cm2"):
        find_regions(volume)
    empty = Volume(np.full((20, 40, 40), -1000, np.int16), (), (2.5, 2.0, 2.0), np.eye(4), ())
    with pytest.raises(UnfitInput, match="cross-section is 0 cm2"):
        find_regions(empty)


# ------------------------------------------------------------------------------------------- candidates and outlines


def test_soft_tissue_is_like_a_node_and_fat_contrast_and_bone_are_not() -> None:
    hu = np.array([-1000, -95, 10, 60, 130, 200, 800], np.int16)
    assert node_likeness(hu).tolist() == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("region", ["mediastinum", "abdomen"])
def test_most_nodes_are_among_the_first_candidates_and_outlined_to_a_millimetre(region: Region) -> None:
    errors, found = [], 0
    volume, grid, balls = phantom(region)
    proposals = propose(find_regions(volume))
    assert len(proposals) <= 60
    assert [one.response for one in proposals] == sorted((one.response for one in proposals), reverse=True)
    for ball in balls:
        places = [volume.position_lps_mm(one.centre_zyx(volume.spacing_mm)) for one in proposals]
        near = [one for one, place in zip(proposals, places, strict=True) if ball.depth_mm(np.array(place)) >= 0]
        if not near:
            continue
        found += 1
        outlined = outline(volume, near[0].centre_zyx(volume.spacing_mm), near[0].radius_mm)
        assert outlined is not None
        truth = ball_lesion(ball, grid)
        here, there = (axial(mask, volume.spacing_mm)[1].short_mm for mask in (outlined[0], truth.mask))
        errors.append(here - there)
    assert found >= len(balls) - 1
    assert abs(np.median(errors)) < 1.5
    assert np.abs(errors).max() < 5


@pytest.mark.parametrize("place", ["first slice", "last slice", "corner"])
def test_a_candidate_at_the_border_has_an_outline_or_none(place: str) -> None:
    """Whatever is outlined lies in the scan."""
    hu = np.full((12, 60, 60), -95, np.int16)
    z, y, x = {"first slice": (0, 30, 30), "last slice": (11, 30, 30), "corner": (0, 0, 0)}[place]
    indices = np.indices(hu.shape) - np.array([z, y, x])[:, None, None, None]
    hu[(indices**2).sum(axis=0) < 36] = 80
    volume = Volume(hu, (), (1.0, 1.0, 1.0), np.eye(4), ())
    outlined = outline(volume, (z, y, x), 6.0)
    assert outlined is not None
    mask, offset = outlined
    assert all(o >= 0 and o + n <= size for o, n, size in zip(offset, mask.shape, hu.shape, strict=True))
    assert mask.sum() == pytest.approx((hu == 80).sum(), rel=0.3)


def test_without_an_edge_there_is_no_outline() -> None:
    volume = Volume(np.full((20, 40, 40), 60, np.int16), (), (1.0, 1.0, 1.0), np.eye(4), ())
    outlined = outline(volume, (10, 20, 20), 3.0)
    assert outlined is None or outlined[0].sum() < 4 / 3 * np.pi * 12**3


# -------------------------------------------------------------------------------------------------------- pipeline


def test_nodes_of_a_phantom_are_found_outlined_and_measured(pipeline: LymphNode, mediastinum: Truth) -> None:
    result = pipeline.run(mediastinum.files, QUIET)
    hit = 0
    for lesion in mediastinum.lesions:
        for one in result.findings:
            box = tuple(slice(o, o + n) for o, n in zip(one.offset_zyx, one.mask.shape, strict=True))
            whole = np.zeros((len(mediastinum.files), 400, 400), bool)
            whole[box] = one.mask
            part = whole[tuple(slice(o, o + n) for o, n in zip(lesion.offset_zyx, lesion.mask.shape, strict=True))]
            if 2 * (part & lesion.mask).sum() / (one.mask.sum() + lesion.mask.sum()) > 0.6:
                hit += 1
                short = next(m.value for m in one.measurements if m.name == codes.SHORT_AXIS)
                assert short == pytest.approx(lesion.short_axis_mm, abs=3.0)
    assert hit >= 4
    assert len(result.findings) <= hit + 6
    for number, one in enumerate(result.findings, start=1):
        assert (one.number, one.label) == (number, f"Lymph node {number}")
        assert (one.type, one.site) == (codes.LYMPH_NODE, codes.MEDIASTINUM)
        assert one.certainty is not None
    assert any("experimental" in warning for warning in result.warnings)
    assert not any("z-resolution" in warning or "contrast" in warning for warning in result.warnings)
    assert result.sought == codes.LYMPH_NODE


def test_every_finding_has_its_own_picture(pipeline: LymphNode, mediastinum: Truth) -> None:
    result = pipeline.run(mediastinum.files, QUIET)
    assert [one.finding for one in result.pictures] == [one.number for one in result.findings]
    for picture in result.pictures:
        assert picture.title == "where the network looked"
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.shape[2] == 3
        assert (picture.pixels[..., 0] > picture.pixels[..., 2].astype(int) + 40).sum() > 50  # orange


def test_the_same_files_give_the_same_findings(pipeline: LymphNode, mediastinum: Truth) -> None:
    first, again = (pipeline.run(files, QUIET) for files in (mediastinum.files, mediastinum.files[::-1]))
    assert [one.certainty for one in first.findings] == [one.certainty for one in again.findings]
    assert [one.offset_zyx for one in first.findings] == [one.offset_zyx for one in again.findings]


def test_a_scan_without_candidates_is_an_answer(pipeline: LymphNode, tmp_path: Path) -> None:
    """A body of fat alone: looked at, nothing found, said so."""
    files = lymph_node_ct(tmp_path, seed=3, slices=20, size=200, spacing_mm=(2.5, 1.8, 1.8), nodes=0).files
    for file in files:
        image = dcmread(file)
        hu = image.pixel_array
        image.PixelData = np.where(hu > -300, -95, hu).astype("<i2").tobytes()
        image.save_as(file)
    result = pipeline.run(files, QUIET)
    assert result.findings == ()
    assert result.facts["candidates"] == 0
    assert result.sought == codes.LYMPH_NODE


def test_thick_slices_and_no_contrast_are_said(mediastinum: Truth) -> None:
    volume = read_ct(mediastinum.files)
    thick = replace(volume, spacing_mm=(4.0, 0.9, 0.9))
    assert warnings_of(volume) == []
    assert "limited z-resolution: slices are 4.0 mm apart" in warnings_of(thick)[0]
    for header in volume.headers:
        header.ContrastBolusAgent = ""
    assert "no contrast agent is stated" in warnings_of(volume)[0]


@pytest.mark.parametrize(
    ("spacing_mm", "words"),
    [((7.0, 0.9, 0.9), "slices are 7.0 mm apart"), ((2.0, 3.0, 3.0), "pixels of 3.00 x 3.00 mm")],
)
def test_what_is_too_coarse_is_refused_in_words(
    mediastinum: Truth, spacing_mm: tuple[float, float, float], words: str
) -> None:
    with pytest.raises(UnfitInput, match=words):
        refuse_unfit(replace(read_ct(mediastinum.files), spacing_mm=spacing_mm))


def test_a_missing_slice_is_refused_in_words(pipeline: LymphNode, mediastinum: Truth) -> None:
    with pytest.raises(UnfitInput, match=r"missing|apart"):
        pipeline.run([file for number, file in enumerate(mediastinum.files) if number != 40], QUIET)


ROUTE = """
[[peer]]
name = "pacs"
folder = "results"
[[route]]
name = "nodes"
match = { Modality = "CT" }
pipeline = "lymph-node"
send_to = ["pacs"]
options = { experimental = true }
"""


def test_a_route_must_say_that_it_is_meant(tmp_path: Path) -> None:
    declared = catalogue().declared["lymph-node"]
    with pytest.raises(BadOptions, match=r"options = \{ experimental = true \}"):
        declared.options.read({})
    assert declared.options.read({"experimental": True})

    def refused(text: str) -> list[str]:
        (tmp_path / "node.toml").write_text(text)
        return [each.text for each in problems(tmp_path / "node.toml", catalogue()) if "route" in each.text]

    assert refused(ROUTE) == []
    [why] = refused(ROUTE.replace("experimental = true", "threads = 1"))
    assert "lymph-node was never tried on a real lymph node" in why


def test_the_real_contrast_ct_runs_through(pipeline: LymphNode, shared_data: Path, tmp_path: Path) -> None:
    """Nothing is claimed about what it finds there: nobody marked lymph nodes in it."""
    import zipfile

    with zipfile.ZipFile(shared_data / "ct_CMB-CRC-MSB-01068.zip") as archive:
        archive.extractall(tmp_path)
    result = pipeline.run(sorted(tmp_path.rglob("*.dcm")), QUIET)
    assert result.facts["candidates"] > 0
    assert len(result.findings) <= 30

"""Detectors in the pipeline: what is marked on voxels of 1 mm lies at its true place in the patient, on any grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dicom_sr import codes
from models import weights
from models.grid import Soft, first_voxel, isotropic, on_source
from models.lung_nodule import detectors
from models.lung_nodule.detections import Candidate, Detection3D, Detections
from models.lung_nodule.detectors import DETECTORS, CCFAMDetector, NoduleNetDetector, candidate, ellipsoid
from models.lung_nodule.lungs import Lungs, find_lungs
from models.lung_nodule.options import Options
from models.lung_nodule.pipeline import LungNodule
from models.lung_nodule.refine import Mix
from models.lung_nodule.sliding_unet import CHECKPOINT
from models.options import BadOptions
from models.phantoms import chest_ct
from models.read import Volume, read_ct
from models.runtime import Runtime
from models.weights import WeightsError


def silent(_fraction: float, _what: str) -> None:
    pass


def balls(shape, spacing_mm, centre_mm, radius_mm) -> np.ndarray:
    lines = np.indices(shape) * np.array(spacing_mm)[:, None, None, None]
    return sum((line - c) ** 2 for line, c in zip(lines, centre_mm, strict=True)) <= radius_mm**2


# ---------------------------------------------------------------------------------------------------- there and back


@settings(max_examples=40, deadline=None)
@example((4.4375, 1.0, 1.0), (0.0, 0.0, 0.0), 3.0)
@example((1.0, 1.0, 1.25), (0.0, 0.0, 0.0), 3.0)
@given(
    st.tuples(st.floats(0.5, 5), st.floats(0.4, 1.3), st.floats(0.4, 1.3)),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.floats(3, 9),
)
def test_a_ball_marked_at_1_mm_lies_at_its_place_on_any_grid(spacing_mm, place, radius_mm):
    """Centre within a third of a voxel and a quarter mm; as large as a ball whose border lies within half a mm of the
    true one; the box is the smallest."""
    shape = tuple(int(60 / mm) + 1 for mm in spacing_mm)
    centre_mm = [15 + 30 * p for p in place]
    at_1_mm = balls((61, 61, 61), (1, 1, 1), centre_mm, radius_mm)
    (box,) = ndimage.find_objects(at_1_mm.astype(np.uint8))
    volume = Volume(np.zeros(shape, np.int16), (), spacing_mm, np.diag([*spacing_mm, 1.0]), ())
    found = Detection3D((0, 0, 0), tuple(s.start for s in box) + tuple(s.stop for s in box), at_1_mm[box], 0.7, 0, 0)
    back = candidate(found, (0, 0, 0), volume)
    assert back.certainty == 0.7
    where = (np.argwhere(back.mask) + back.offset_zyx) * spacing_mm
    np.testing.assert_array_less(np.abs(where.mean(axis=0) - centre_mm), np.array(spacing_mm) / 3 + 0.25)
    if spacing_mm[0] < radius_mm / 2:
        smaller, larger = (balls(shape, spacing_mm, centre_mm, radius_mm + by).sum() for by in (-0.5, 0.5))
        assert smaller <= back.mask.sum() <= larger
    for axis in range(3):
        assert back.mask.any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_way_back_is_linear_interpolation(seed):
    """Against every voxel by hand."""
    rng = np.random.default_rng(seed)
    spacing = rng.uniform(0.4, 2.0, 3)
    shape = rng.integers(8, 24, 3)
    mask = ndimage.binary_dilation(rng.random((6, 7, 5)) < 0.1, iterations=1)
    start = rng.integers(-2, 8, 3)
    wanted = np.zeros(shape, bool)
    padded = np.pad(mask, 1).astype(float)
    for index in np.ndindex(*shape):
        at = np.array(index) * spacing - start + 1
        wanted[index] = ndimage.map_coordinates(padded, at[:, None], order=1, cval=0.0)[0] >= 0.5
    back = on_source(mask, start.tolist(), spacing.tolist(), shape.tolist())
    if back is None or not wanted.any():  # outside; or between slices, see below
        assert not wanted.any()
        return
    got = np.zeros(shape, bool)
    there, corner = back
    got[tuple(slice(c, c + n) for c, n in zip(corner, there.shape, strict=True))] = there
    assert (got != wanted).mean() < 1e-3  # where it is a half but for rounding


def test_what_lies_between_two_slices_goes_to_the_nearer_one():
    mask = balls((5, 5, 5), (1, 1, 1), (2, 2, 2), 2)
    there, corner = on_source(mask, (11, 20, 20), (10.0, 1.0, 1.0), (4, 50, 50))  # its middle is at 13 mm
    where = np.argwhere(there) + corner
    assert set(where[:, 0]) == {1}
    assert where[:, 1:].mean(axis=0).tolist() == [22, 22]
    assert there.sum() == mask[2].sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100), st.integers(1, 6), st.floats(3, 7))
def test_a_mark_thinner_than_the_slices_are_apart_is_never_lost(start, thick, slice_mm):
    """It lies on the slice nearest to its middle, or on those it crosses, unless beyond the scan."""
    there_, corner = on_source(np.ones((thick, 6, 6), bool), (start, 20, 20), (slice_mm, 1.0, 1.0), (40, 60, 60))
    where = (np.argwhere(there_) + corner).mean(axis=0)
    assert abs(where[0] * slice_mm - (start + (thick - 1) / 2)) <= slice_mm / 2 + 0.5
    np.testing.assert_allclose(where[1:], 22.5)


def test_of_a_mask_in_pieces_the_largest_is_the_nodule():
    mask = np.zeros((10, 20, 20), bool)
    mask[2:8, 2:8, 2:8] = True
    mask[0, 18:, 18:] = True
    volume = Volume(np.zeros((40, 40, 40), np.int16), (), (1.0, 1.0, 1.0), np.eye(4), ())
    found = candidate(Detection3D((0, 0, 0), (5, 5, 5, 15, 25, 25), mask, 0.9, 0.9, 0.9), (0, 0, 0), volume)
    assert found.offset_zyx == (7, 7, 7)
    assert found.mask.sum() == 6**3


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(0.5, 5), st.floats(0.4, 1.3), st.floats(0.4, 1.3)),
    st.tuples(*[st.integers(-6, 30)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_what_a_detector_says_of_each_voxel_lies_where_it_said_it(spacing_mm, start, seed):
    """Against interpolation of the whole grid by another hand, 0 beyond the box and beyond the scan."""
    shape = tuple(int(30 / mm) + 1 for mm in spacing_mm)
    values = np.random.default_rng(seed).random((7, 9, 8), np.float32)
    lines = [np.arange(n) * mm - a for n, mm, a in zip(shape, spacing_mm, start, strict=True)]
    wanted = ndimage.map_coordinates(
        values, np.array(np.meshgrid(*lines, indexing="ij")), order=1, mode="grid-constant"
    )
    there = Soft(values, start).on_source(spacing_mm, shape)
    got = np.zeros(shape)
    if there is not None:
        got[tuple(slice(a, a + n) for a, n in zip(there.start_zyx, there.values.shape, strict=True))] = there.values
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("every", [1, 2])  # voxels of 1 mm, and of half a mm: every second one is one of 1 mm
def test_a_marks_probability_and_its_mask_lie_on_each_other(every):
    values = np.zeros((9, 10, 11), np.float32)
    values[2:7, 3:7, 4:9] = 0.9
    values[1, 1, 1] = 0.2
    found = Detection3D(
        (0, 0, 0), (5, 7, 9, 10, 11, 14), values[2:7, 3:7, 4:9] > 0.5, 0.9, 0.9, 0.9, Soft(values, (3, 4, 5))
    )
    spacing = (1.0 / every,) * 3
    volume = Volume(np.zeros((60 * every,) * 3, np.int16), (), spacing, np.diag([*spacing, 1.0]), ())
    one = candidate(found, (10, 20, 30), volume)
    drawn, said = np.zeros(volume.hu.shape, bool), np.zeros(volume.hu.shape, np.float32)
    drawn[one.box] = one.mask
    said[tuple(slice(a, a + n) for a, n in zip(one.soft.start_zyx, one.soft.values.shape, strict=True))] = (
        one.soft.values
    )
    at_1_mm = tuple(slice(None, None, every) for _ in range(3))
    wanted = np.zeros((60, 60, 60), np.float32)
    wanted[13:22, 24:34, 35:46] = values
    np.testing.assert_array_equal(said[at_1_mm], wanted)
    np.testing.assert_array_equal(drawn[at_1_mm], wanted > 0.5)


@pytest.mark.parametrize("mm", [0.5, 0.7, 1.0])
def test_a_mark_does_not_grow_where_the_grids_meet(mm):
    """On pixels of half a millimetre every second one lies midway between two of 1 mm."""
    away = np.linalg.norm(np.indices((21, 21, 21)) - 10.0, axis=0)
    values = (1 / (1 + np.exp((away - 6.2) / 0.3))).astype(np.float32)
    found = Detection3D((10, 10, 10), (0, 0, 0, 21, 21, 21), values > 0.5, 0.9, 0.9, 0.9, Soft(values, (0, 0, 0)))
    shape = tuple(int(60 / side) for side in (1.0, mm, mm))
    volume = Volume(np.zeros(shape, np.int16), (), (1.0, mm, mm), np.diag([1.0, mm, mm, 1.0]), ())
    one = candidate(found, (20, 20, 20), volume)
    area = one.mask.sum(axis=(1, 2)).max() * mm**2
    assert 2 * np.sqrt(area / np.pi) == pytest.approx(12.4, abs=0.2)


def test_views_and_the_detectors_own_outline_are_used_as_the_route_says(monkeypatch):
    seen = []
    monkeypatch.setattr(
        detectors.volumes,
        "detect",
        lambda net, hu, lungs, *, options, progress: (
            seen.append(options.views) or Detections([], remarks=(), window=0, device="")
        ),
    )
    nothing, lungs = np.zeros((16, 16, 16), np.int16), np.ones((16, 16, 16), bool)
    for options in ({}, {"views": 2}):
        LungNodule("cpu", {"threads": 1, **options}).detector.look(lambda: nothing, lungs, silent)
    assert seen == [4, 2]

    told = []
    monkeypatch.setattr(
        "models.lung_nodule.pipeline.refine",
        lambda volume, detections, network, **how: told.append((how["mix"], how["threshold"])) or [],
    )
    for options in ({}, {"threshold": 0.6}, {"detector": "ccfam-fpn"}, {"detector": "sliding-unet", "threshold": 0.6}):
        pipeline = LungNodule("cpu", {"threads": 1, **options})
        assert pipeline.refined(pipeline.refiner, [], None, None) == []
    assert told == [(Mix(0.5, 0.1), 0.5), (Mix(0.5, 0.6), 0.6), (None, 0.5), (None, 0.6)]
    with pytest.raises(BadOptions, match="views is no option of detector ccfam-fpn"):
        LungNodule("cpu", {"detector": "ccfam-fpn", "views": 2})


def test_what_lies_beyond_the_scan_is_cut_off():
    mask = np.ones((4, 4, 4), bool)
    there, corner = on_source(mask, (-2, 0, 8), (1.0, 1.0, 1.0), (10, 10, 10))
    assert corner == (0, 0, 7)  # a voxel of nothing around
    assert (np.argwhere(there) + corner).max(axis=0).tolist() == [1, 3, 9]
    assert on_source(mask, (20, 0, 0), (1.0, 1.0, 1.0), (10, 10, 10)) is None


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(0, 9)] * 3), st.tuples(*[st.floats(0.5, 3.0)] * 3))
def test_a_part_of_a_volume_is_on_the_grid_of_the_whole(offset, spacing_mm):
    """What the detector sees of the box round the lungs is what it would see of the whole scan."""
    hu = np.random.default_rng(0).integers(-1000, 100, (14, 15, 16)).astype(np.int16)
    whole = isotropic(hu, spacing_mm)
    part = isotropic(hu[tuple(slice(o, None) for o in offset)], spacing_mm, offset)
    start = first_voxel(offset, spacing_mm)
    np.testing.assert_array_equal(part, whole[tuple(slice(a, None) for a in start)])


def test_a_box_without_a_mask_becomes_the_ellipsoid_in_it():
    body = ellipsoid((9, 5, 7))
    assert body.shape == (9, 5, 7)
    assert body.sum() == pytest.approx(np.pi / 6 * 9 * 5 * 7, rel=0.05)
    for axis in range(3):
        assert body.any(axis=tuple({0, 1, 2} - {axis})).all()
        np.testing.assert_array_equal(body, np.flip(body, axis))


# ------------------------------------------------------------------------------------------------- what a route says


def test_a_detector_takes_its_own_options_only():
    assert Options.read({}).detector == "nodulenet"
    assert Options.read({"detector": "sliding-unet", "peak": 0.9}).peak == 0.9
    with pytest.raises(BadOptions, match="'window': must be 0 or at least 64"):
        Options.read({"window": 32})
    for given_ in (
        {"peak": 0.9},
        {"detector": "ccfam-fpn", "window": 96},
        {"detector": "sliding-unet", "certainty": 0.4},
    ):
        with pytest.raises(BadOptions, match="is no option of detector"):
            Options.read(given_)
    with pytest.raises(BadOptions, match="'detector'"):
        Options.read({"detector": "yolo"})


def test_each_detector_is_the_one_that_was_asked_for_and_refuses_the_weights_of_another():
    versions = set()
    for name, kind in DETECTORS.items():
        pipeline = LungNodule("cpu", {"threads": 1, "detector": name, "refine": False})
        assert type(pipeline.detector) is kind
        versions.add(pipeline.card.algorithm.version)
        pipeline.warm()
        for other in {NoduleNetDetector.shipped, CCFAMDetector.shipped, CHECKPOINT} - {pipeline.detector.loaded.name}:
            with pytest.raises(WeightsError):
                LungNodule("cpu", {"detector": name, "checkpoint": str(weights.packed("lung_nodule", other))})
    assert len(versions) == len(DETECTORS)  # the report says which it was


@pytest.fixture(scope="module")
def slab(tmp_path_factory):
    """(truth, volume, lungs) of a thin slab with two nodules."""
    truth = chest_ct(
        tmp_path_factory.mktemp("slab"), seed=3, slices=18, size=320, spacing_mm=(2.5, 1.1, 1.1), nodules=2, detail=True
    )
    volume = read_ct(truth.files)
    return truth, volume, find_lungs(volume)


def test_remarks_of_the_detector_stand_in_the_report_and_only_what_is_certain_is_reported(slab, monkeypatch):
    truth, volume, _ = slab
    marks = []
    for lesion, score in zip(truth.lesions, (0.9, 0.3), strict=True):
        start = first_voxel(lesion.offset_zyx, volume.spacing_mm)
        mask = isotropic(np.pad(lesion.mask, 1), volume.spacing_mm, [o - 1 for o in lesion.offset_zyx])
        marks.append((mask, first_voxel([o - 1 for o in lesion.offset_zyx], volume.spacing_mm), score))
        assert all(a <= b for a, b in zip(marks[-1][1], start, strict=True))

    def knowing(self, hu, lungs, progress):
        progress(0.5, "half")
        near = detectors.box_of(find_lungs(volume).mask, int(np.ceil(detectors.AROUND_MM / 1.1)) + 1)
        corner = first_voxel([s.start for s in near], volume.spacing_mm)
        found = []
        for mask, start, score in marks:
            low = [a - b for a, b in zip(start, corner, strict=True)]
            box = (*low, *(a + n for a, n in zip(low, mask.shape, strict=True)))
            found.append(Detection3D((0, 0, 0), box, mask, score, score, score))
        return Detections(found, remarks=["windows of 208 voxels did not fit"], window=160, device="cpu fp32")

    monkeypatch.setattr(NoduleNetDetector, "look", knowing)
    told = []
    found = LungNodule("cpu", {"threads": 1, "certainty": 0.5, "refine": False}).run(
        truth.files, lambda *said: told.append(said)
    )
    assert found.warnings[0] == "windows of 208 voxels did not fit"
    assert {"detector": "nodulenet", "window": 160, "marks": 2}.items() <= found.facts.items()
    (one,) = found.findings
    assert one.certainty == 0.9
    place = volume.position_lps_mm((np.argwhere(one.mask) + one.offset_zyx).mean(axis=0).tolist())
    assert np.linalg.norm(np.subtract(place, truth.lesions[0].centre_lps_mm)) < 1.0
    assert (0.1 + 0.8 * 0.5, "half") in [(pytest.approx(share), what) for share, what in told]
    both = LungNodule("cpu", {"threads": 1, "certainty": 0.2, "refine": False}).run(truth.files, silent)
    assert len(both.findings) == 2


def test_what_is_outside_the_lungs_or_too_small_is_no_finding_whatever_found_it(slab):
    _, volume, _ = slab
    everywhere = Lungs(np.ones(volume.hu.shape, bool), 4000.0, None)
    nowhere = Lungs(np.zeros(volume.hu.shape, bool), 4000.0, None)
    detector = NoduleNetDetector(Options(threads=1), LungNodule("cpu", {"threads": 1}).runtime)
    big = candidate(Detection3D((0, 0, 0), (10, 50, 50, 20, 60, 60), None, 0.9, 0.9, 0.9), (0, 0, 0), volume)
    small = candidate(Detection3D((0, 0, 0), (10, 50, 50, 13, 53, 53), None, 0.9, 0.9, 0.9), (0, 0, 0), volume)
    assert detector.why_not(big, volume, everywhere) is None
    assert "inside the lungs" in detector.why_not(big, volume, nowhere)
    assert "below 4 mm" in detector.why_not(small, volume, everywhere)


@pytest.mark.parametrize("refine", [False, True])
def test_marks_that_are_none_do_not_take_the_places_of_those_that_are(slab, refine):
    """Thirty specks, more certain than the nodule: the nodule is reported, each voxel once, and nothing is untrue."""
    truth, volume, lungs = slab
    pipeline = LungNodule("cpu", {"threads": 1, "refine": refine})
    (nodule, _) = truth.lesions
    specks = [Candidate(np.ones((2, 2, 2), bool), (2, 100 + 3 * i, 60), 0.99) for i in range(40)]
    real = Candidate(nodule.mask, nodule.offset_zyx, 0.6)
    beside = Candidate(nodule.mask, (nodule.offset_zyx[0], nodule.offset_zyx[1] + 1, nodule.offset_zyx[2]), 0.5)
    found, said = pipeline.findings(volume, lungs, [*specks, real, beside])
    assert any(one.certainty == 0.6 for one in found)
    assert not any("candidates were found" in text for text in said)
    drawn = np.zeros(volume.hu.shape, int)
    for one in found:
        drawn[tuple(slice(o, o + n) for o, n in zip(one.offset_zyx, one.mask.shape, strict=True))] += one.mask
    assert drawn.max() == 1


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.floats(0.5, 2.5)] * 3), st.integers(0, 2**32 - 1))
def test_what_a_detector_sees_does_not_depend_on_the_box_that_is_cut(spacing_mm, seed):
    """The lungs with 16 mm around, wherever they lie: as if the whole volume had been brought to 1 mm."""
    rng = np.random.default_rng(seed)
    shape = [int(70 / mm) for mm in spacing_mm]
    lungs = np.zeros(shape, bool)
    low = [int(rng.integers(n // 3, n // 2)) for n in shape]
    lungs[tuple(slice(a, a + int(rng.integers(2, 1 + n // 4))) for a, n in zip(low, shape, strict=True))] = True
    hu = rng.integers(-1000, 100, shape).astype(np.int16)
    whole, inside = isotropic(hu, spacing_mm), isotropic(lungs, spacing_mm)
    wanted = detectors.box_of(inside, detectors.AROUND_MM)
    if wanted is None:
        return
    seen = []

    class Watching(NoduleNetDetector):
        def look(self, hu, lungs, progress):
            seen.append((hu(), lungs))
            return Detections([], remarks=(), window=0, device="")

    detector = Watching(Options(threads=1), Runtime.choose("cpu"))
    detector(Volume(hu, (), spacing_mm, np.diag([*spacing_mm, 1.0]), ()), Lungs(lungs, 1.0, None), silent)
    ((part, there),) = seen
    near = detectors.box_of(there, detectors.AROUND_MM)
    np.testing.assert_array_equal(part[near], whole[wanted])


def test_no_lungs_no_marks():
    hu = np.zeros((8, 40, 40), np.int16)
    volume = Volume(hu, (), (1.0, 1.0, 1.0), np.eye(4), ())
    detector = NoduleNetDetector(Options(threads=1), LungNodule("cpu", {"threads": 1}).runtime)
    assert detector(volume, Lungs(np.zeros(hu.shape, bool), 0.0, None), silent).candidates == []


# -------------------------------------------------------------------------------- the networks, on every kind of grid

GRIDS = {
    "5 mm": {"slices": 24, "spacing_mm": (5.0, 1.1, 1.1)},
    "2.5 mm": {"slices": 36, "spacing_mm": (2.5, 1.1, 1.1)},
    "1 mm": {"slices": 70, "spacing_mm": (1.0, 1.1, 1.1)},
    "0.6 mm": {"slices": 110, "spacing_mm": (0.6, 1.1, 1.1)},
    "pixels not square": {"slices": 36, "spacing_mm": (2.0, 0.95, 1.25)},
    "another origin": {"slices": 36, "spacing_mm": (2.5, 1.1, 1.1), "origin_mm": (-120.3, 55.7, -1013.25)},
    "feet first": {"slices": 36, "spacing_mm": (2.5, 1.1, 1.1), "orientation": "FFS"},
    "prone": {"slices": 36, "spacing_mm": (2.5, 1.1, 1.1), "orientation": "HFP"},
    "tilted gantry": {"slices": 36, "spacing_mm": (2.5, 1.1, 1.1), "gantry_deg": 15.0},
}


@pytest.fixture(scope="module")
def pipelines():
    """One view: where a grid leads does not depend on how many views are averaged, and four take four times as long."""
    options = {"nodulenet": {"views": 1}, "ccfam-fpn": {}}
    return {name: LungNodule("cpu", {"threads": 1, "detector": name, **more}) for name, more in options.items()}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("detector", ["nodulenet", "ccfam-fpn"])
def test_a_nodule_is_found_within_2_mm_of_its_place(pipelines, tmp_path, grid, detector):
    truth = chest_ct(tmp_path, seed=11, size=320, nodules=2, detail=True, order="shuffled", **GRIDS[grid])
    volume = read_ct(truth.files)
    found = pipelines[detector].run(sorted(tmp_path.iterdir()), silent)
    for lesion in truth.lesions:
        places = [
            volume.position_lps_mm((np.argwhere(one.mask) + one.offset_zyx).mean(axis=0).tolist())
            for one in found.findings
        ]
        away = [float(np.linalg.norm(np.subtract(place, lesion.centre_lps_mm))) for place in places]
        assert min(away) < 2.0
        one = found.findings[int(np.argmin(away))]
        side = codes.LEFT if lesion.centre_lps_mm[0] > GRIDS[grid].get("origin_mm", (0, 0, 0))[0] else codes.RIGHT
        assert one.laterality == side


def test_a_gantry_tilted_too_far_is_refused_in_words(tmp_path):
    from models.pipeline import UnfitInput

    truth = chest_ct(tmp_path, seed=11, slices=8, size=128, spacing_mm=(2.5, 2.5, 2.5), nodules=0, gantry_deg=28.0)
    with pytest.raises(UnfitInput, match="not axial"):
        LungNodule("cpu", {"threads": 1}).run(truth.files, silent)


def test_memory_that_does_not_suffice_is_said_in_the_report(slab, monkeypatch):
    """The whole lungs do not fit: windows do, the nodules are the same, and the reader is told."""
    truth, _, _ = slab
    pipeline = LungNodule("cpu", {"threads": 1})
    whole = pipeline.run(truth.files, silent)
    forward, asked = type(pipeline.detector.net).forward, []

    def little(net, image):
        asked.append(image.numel())
        if image.numel() >= asked[0]:
            raise torch.OutOfMemoryError("no")
        return forward(net, image)

    monkeypatch.setattr(type(pipeline.detector.net), "forward", little)
    parts = pipeline.run(truth.files, silent)
    assert any("did not fit into the memory" in said for said in parts.warnings)
    assert len(whole.findings) >= 2
    assert "window" not in whole.facts
    assert parts.facts["window"] in (160, 208)
    assert [one.key_image for one in parts.findings[:2]] == [one.key_image for one in whole.findings[:2]]


def test_an_option_is_still_known_by_its_former_name() -> None:
    assert Options.read({"detector": "sliding-unet", "crowded": 0.2}).surround_soft_tissue == 0.2
    with pytest.raises(BadOptions, match="surround_soft_tissue is no option of detector nodulenet"):
        Options.read({"surround_soft_tissue": 0.2})

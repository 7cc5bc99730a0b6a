"""Two phantom studies of one patient: which nodule is which, and by how much it grew."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from dicom_sr import codes
from dicom_sr.changes import Comparison, with_comparison
from dicom_sr.findings import Evaluation, Finding
from models.lung_nodule.compare import compare, pairing
from models.lung_nodule.lungs import find_lungs
from models.lung_nodule.register import Chest, chest, register
from models.pipeline import Prior, UnfitInput
from models.read import read_ct
from tests.follow_up import AFTER, BALLS, DAYS, GONE, GREW, GROWN, NEW, POSE, Study, after, before, same


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return before(tmp_path_factory.mktemp("before"))


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return after(tmp_path_factory.mktemp("after"))


@pytest.fixture(scope="module")
def prior(earlier: Study, tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return earlier.as_prior(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def comparison(present: Study, prior: Prior) -> Comparison:
    return compare(present.findings, present.files, prior)


@pytest.fixture(scope="module")
def chests(earlier: Study, present: Study) -> tuple[Chest, Chest]:
    volumes = [read_ct(study.files) for study in (present, earlier)]
    here, there = (chest(volume, find_lungs(volume)) for volume in volumes)
    return here, there


def said(comparison: Comparison, present: Study, number: int) -> Finding:
    return same(with_comparison(present.findings, comparison), present.findings.findings[number - 1])


def value(finding: Finding, name: object) -> float:
    return next(m.value for m in finding.measurements if m.name == name)


def test_the_patient_who_lies_otherwise_is_brought_back(chests: tuple[Chest, Chest], present: Study) -> None:
    """Turned by 8 degrees, 39 mm away, feet first on the belly, another grid: the nodules come back to 2 mm."""
    rigid = register(*chests)
    for k, centre_mm in enumerate(present.centres_mm):
        truth = AFTER[k].centre_mm
        assert np.linalg.norm(np.linalg.inv(POSE) @ [*centre_mm, 1] - [*truth, 1]) < 1e-6  # what the phantom promises
        assert np.linalg.norm(rigid.to_earlier(centre_mm) - truth) < 2.0
        np.testing.assert_allclose(rigid.to_present(rigid.to_earlier(centre_mm)), centre_mm, atol=1e-6)
    assert rigid.residual_mm < 2.0
    assert rigid.correlation > 0.8


def test_registration_is_the_same_every_time(chests: tuple[Chest, Chest]) -> None:
    first, second = register(*chests), register(*chests)
    assert first.matrix.tobytes() == second.matrix.tobytes()
    assert first.residual_mm == second.residual_mm


def test_lungs_that_do_not_fit_are_refused(chests: tuple[Chest, Chest]) -> None:
    here, there = chests
    child = Chest(shrunk(there.hu), shrunk(there.lungs), np.ones_like(there.seen), there.origin_mm)
    with pytest.raises(UnfitInput, match="do not fit together"):
        register(here, child)


def shrunk(values: np.ndarray) -> np.ndarray:
    """Everything at 60 % of its size, round the middle."""
    middle = (np.array(values.shape) - 1) / 2
    small = ndimage.affine_transform(values.astype(np.float32), np.full(3, 1 / 0.6), middle - middle / 0.6, order=1)
    return small.astype(values.dtype)


def test_scans_of_different_parts_are_refused(chests: tuple[Chest, Chest]) -> None:
    here, there = chests
    tip = there.seen & (np.arange(len(there.seen))[:, None, None] > 0.85 * len(there.seen))
    with pytest.raises(UnfitInput, match="field of view of both"):
        register(here, replace(there, seen=tip))


def test_each_nodule_finds_itself_again(comparison: Comparison) -> None:
    after_index = [k for k in range(len(BALLS)) if k != GONE]
    before_index = [k for k in range(len(BALLS)) if k != NEW]
    pairs = {after_index[m.number - 1]: before_index[int(m.lesion.label.split()[1]) - 1] for m in comparison.matches}
    assert pairs == {k: k for k in range(len(BALLS)) if k not in (GONE, NEW)}
    assert all(match.distance_mm < 3 and match.rivals == 0 for match in comparison.matches)
    assert [after_index[number - 1] for number in comparison.new] == [NEW]
    assert [before_index[int(lesion.label.split()[1]) - 1] for lesion in comparison.gone] == [GONE]
    assert comparison.not_shown == ()


def test_the_grown_nodule_is_said_to_have_grown(comparison: Comparison, present: Study) -> None:
    finding = said(comparison, present, GROWN + 1)
    diameter_mm = 2 * float(BALLS[GROWN].half_axes_mm.mean())
    assert value(finding, codes.DIFFERENCE_IN_SIZE) == pytest.approx((GREW - 1) * diameter_mm, abs=1.4)  # one pixel
    assert value(finding, codes.VOLUME_CHANGE) == pytest.approx(100 * (GREW**3 - 1), rel=0.15)
    assert value(finding, codes.VOLUME_DOUBLING_TIME) == pytest.approx(DAYS * log(2) / log(GREW**3), rel=0.15)
    assert Evaluation(codes.QUALITATIVE_DIFFERENCE, codes.INCREASE_IN_SIZE) in finding.evaluations
    assert Evaluation(codes.GROWTH_IN_12_MONTHS, codes.PRESENT) in finding.evaluations
    assert f"in {DAYS} days" in finding.change


def test_the_others_are_said_to_be_unchanged(comparison: Comparison, present: Study) -> None:
    for match in comparison.matches:
        if match.number != GROWN + 1:
            finding = said(comparison, present, match.number)
            assert Evaluation(codes.QUALITATIVE_DIFFERENCE, codes.NO_SIGNIFICANT_CHANGE) in finding.evaluations
            assert Evaluation(codes.GROWTH_IN_12_MONTHS, codes.ABSENT) in finding.evaluations
            assert not any(m.name == codes.VOLUME_DOUBLING_TIME for m in finding.measurements)


def test_what_the_scan_does_not_show_is_not_gone(prior: Prior, tmp_path: Path) -> None:
    """Forty slices show the middle of the lungs only: a nodule above or below them is not said to be gone."""
    part = after(tmp_path, balls=[], slices=40)  # 50 mm up and down
    gone = {lesion.label for lesion in compare(part.findings, part.files, prior).gone}
    heights = [abs((POSE @ [*ball.centre_mm, 1])[2]) for k, ball in enumerate(BALLS) if k != NEW]
    shown = {f"Nodule {n}" for n, height in enumerate(heights, 1) if height < 35}
    hidden = {f"Nodule {n}" for n, height in enumerate(heights, 1) if height > 50}
    assert shown, "the phantom must have nodules inside"
    assert hidden, "and outside"
    assert shown <= gone
    assert not hidden & gone


def test_too_many_candidates_are_not_compared(present: Study, prior: Prior) -> None:
    crowd = replace(present.findings, findings=present.findings.findings * 5)
    with pytest.raises(UnfitInput, match="25 candidates"):
        compare(crowd, present.files, prior)


# ------------------------------------------------------------------------------------------------------------ pairing

SIDES = st.integers(0, 6)
POINTS = st.lists(st.tuples(*[st.floats(-50, 50)] * 3), max_size=7)


def distances(a: list, b: list) -> np.ndarray:
    table = np.linalg.norm(np.reshape(a, (-1, 1, 3)) - np.reshape(b, (1, -1, 3)), axis=-1)
    return table.reshape(len(a), len(b))


@given(POINTS, POINTS, st.floats(0.5, 30))
def test_no_pair_is_beyond_its_gate_and_none_is_used_twice(a: list, b: list, gate_mm: float) -> None:
    distance = distances(a, b)
    pairs = pairing(distance, np.full(distance.shape, gate_mm))
    assert all(distance[pair] < gate_mm for pair in pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    free = np.ones(distance.shape, bool)
    free[[i for i, _ in pairs], :] = False
    free[:, [j for _, j in pairs]] = False
    assert not (distance[free] < gate_mm).any()  # what could be paired is


@given(POINTS, POINTS, st.floats(0.5, 30))
def test_pairing_does_not_depend_on_which_study_comes_first(a: list, b: list, gate_mm: float) -> None:
    distance = distances(a, b)
    gates = np.full(distance.shape, gate_mm)
    here, there = pairing(distance, gates), pairing(distance.T, gates.T)
    total = sum(distance[pair] - gate_mm for pair in here)
    assert total == pytest.approx(sum(distance.T[pair] - gate_mm for pair in there))


@given(st.permutations(range(6)), st.floats(0, 5))
def test_moved_less_than_half_their_distance_apart_all_find_themselves(order: list[int], moved_mm: float) -> None:
    here = np.array([[20.0 * k, 0, 0] for k in range(6)])
    there = here[order] + [0, moved_mm, 0]
    assert sorted(pairing(distances(list(here), list(there)), np.full((6, 6), 10.0))) == sorted(
        (k, order.index(k)) for k in range(6)
    )

"""Diseased phantoms: HU, shape and place as the literature has them, and nothing changed but the lungs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from pydicom import dcmread
from scipy import ndimage

from models.phantoms.chest import chest_balls, chest_ct, chest_grid, chest_volume, paint_body
from models.phantoms.chest_anatomy import LUNGS
from models.phantoms.chest_disease import AERATED_BELOW_HU, KINDS, SOLID_ABOVE_HU, Disease, Kind, paint_disease

MM = 2.5
GRID = chest_grid(112, (80, 120), (MM, MM, MM), "HFS")
X, Y, Z = np.moveaxis(GRID.points(tuple(slice(0, n) for n in GRID.shape)), -1, 0)
SEEDS = range(3)


def healthy() -> np.ndarray:
    """Without noise and vessels."""
    hu = np.empty(GRID.shape, np.float32)
    for z in range(GRID.shape[0]):
        paint_body(hu[z], X[z], Y[z], Z[z])
    return hu


BODY_HU = healthy()
RADIUS = np.stack(
    [np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip((X, Y, Z), *lung[:2], strict=True))) for lung in LUNGS]
).min(axis=0)  # 0 in the middle of a lung, 1 at its pleura
IN_LUNG = (RADIUS < 1) & (BODY_HU < AERATED_BELOW_HU)


def diseased(kind: Kind, severity: float, seed: int) -> np.ndarray:
    hu = BODY_HU.copy()
    paint_disease(hu, GRID, Disease(kind, severity, seed))
    return hu


def changed(hu: np.ndarray, by_hu: float = 40) -> np.ndarray:
    return np.abs(hu - BODY_HU) > by_hu


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_but_the_lungs_and_more_with_severity(kind: Kind) -> None:
    for seed in SEEDS:
        taken = []
        for severity in (0.2, 0.6, 1.0):
            hu = diseased(kind, severity, seed)
            assert np.array_equal(hu[~IN_LUNG], BODY_HU[~IN_LUNG])
            assert np.array_equal(hu, diseased(kind, severity, seed))
            taken.append(float(changed(hu)[IN_LUNG].mean()))
        assert all(less < more for less, more in pairwise(taken)), taken
        assert 0.002 < taken[0] < taken[2] < 0.9
    assert not np.array_equal(hu, diseased(kind, 1.0, 99))


@pytest.mark.parametrize("severity", [-0.1, 1.1, np.nan])
def test_a_severity_beyond_all_bounds_is_refused(severity: float) -> None:
    with pytest.raises(ValueError, match="of fibrosis: give a number from 0 to 1"):
        diseased("fibrosis", severity, 1)


def test_the_rest_of_a_diseased_chest_is_the_healthy_one() -> None:
    """The same body, vessels and noise: a disease draws from a generator of its own."""
    shape = {"shape": (30, 100, 140), "spacing_mm": (8.0, 2.4, 2.4)}
    sound, _ = chest_volume(3, **shape)
    for kind in KINDS:
        ill, _ = chest_volume(3, disease=Disease(kind, 0.8, 1), **shape)
        in_front, behind = np.s_[:, :6], np.s_[:, -6:]
        assert np.array_equal(sound[in_front], ill[in_front])
        assert np.array_equal(sound[behind], ill[behind])
        assert (sound != ill).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_emphysema_is_air_in_patches_of_the_upper_lobes_with_bullae_below_the_pleura(seed: int) -> None:
    low = diseased("emphysema", 0.8, seed) < -950  # Gevenois 1996
    upper, lower = (float(low[IN_LUNG & half].mean()) for half in (Z > 35, Z < -45))
    assert upper > 1.5 * lower
    assert 0.05 < low[IN_LUNG].mean() < 0.5
    bare = diseased("emphysema", 0.8, seed) < -980
    assert RADIUS[bare].mean() > 0.75
    assert ndimage.binary_opening(bare, iterations=2).any()  # more than 1 cm wide (Hansell 2008)


@pytest.mark.parametrize("seed", SEEDS)
def test_fibrosis_is_a_net_at_the_base_and_below_the_pleura_with_cysts(seed: int) -> None:
    hu = diseased("fibrosis", 0.7, seed)
    net = changed(hu) & (RADIUS > 0.5)
    assert -700 < hu[net].mean() < -200
    assert Z[net].mean() < Z[IN_LUNG].mean() - 40
    assert RADIUS[net].mean() > RADIUS[IN_LUNG].mean() + 0.05
    assert hu[net].std() > 100  # walls and holes
    assert (hu[net] < -800).mean() > 0.02  # cysts and widened bronchi


@pytest.mark.parametrize("seed", range(8))
def test_consolidation_has_no_air_but_in_its_bronchi_and_is_no_ball(seed: int) -> None:
    hu = diseased("consolidation", 0.7, seed)
    solid = (hu > SOLID_ABOVE_HU) & IN_LUNG
    core = ndimage.binary_erosion(solid, iterations=2)
    assert 0 < np.median(hu[core]) < 50
    whole = ndimage.binary_closing(solid, iterations=3)
    assert (hu[ndimage.binary_erosion(whole, iterations=2)] < -500).any()  # air bronchograms
    labels, count = ndimage.label(solid)
    volumes = ndimage.sum_labels(solid, labels, range(1, count + 1)) * MM**3
    largest = np.argwhere(labels == 1 + int(volumes.argmax())) * MM
    assert volumes.max() > 14_000  # a ball of 3 cm, what may be called a nodule, has that
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(largest.T)))
    assert spread[2] > 1.25 * spread[0]


def test_consolidation_is_a_lower_lobe_or_patches_of_both_lungs() -> None:
    sides = []
    for seed in range(8):
        solid = (diseased("consolidation", 0.6, seed) > SOLID_ABOVE_HU) & IN_LUNG
        right = float(solid[X < 0].sum() / solid.sum())
        sides.append(right)
        if right in (0.0, 1.0):  # a lobe: at the back, and below
            assert Y[solid].mean() > Y[IN_LUNG].mean() + 10
            assert Z[solid].mean() < Z[IN_LUNG].mean() - 10
    assert {0.0, 1.0} & set(sides)
    assert any(0 < right < 1 for right in sides)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_effusion_lies_behind_deeper_at_the_base_and_climbs_at_the_pleura(seed: int) -> None:
    hu = diseased("effusion", 0.4, seed)
    airless = (hu > SOLID_ABOVE_HU) & IN_LUNG
    fluid = airless & (hu < 22) & (hu > -5)
    assert 0 <= np.median(hu[fluid]) <= 20
    assert Y[fluid].mean() > Y[IN_LUNG].mean() + 30
    assert Z[fluid].mean() < Z[IN_LUNG].mean() - 5
    left = X[fluid].mean() > 0
    side = (X > 0) == left
    front_rim = Y[fluid & side & (RADIUS > 0.96)].min()
    front_inside = Y[fluid & side & (RADIUS < 0.8)].min()
    assert front_rim < front_inside - 4  # the meniscus
    collapsed = airless & ~fluid & (hu > 22)
    assert collapsed.any()
    assert Y[collapsed & side].mean() < Y[fluid & side].mean()  # between fluid and lung


def test_known_nodules_can_be_put_in(tmp_path) -> None:
    """Where and how large they are does not depend on the disease; nor is one series the other."""
    shape = {"slices": 30, "size": 128, "spacing_mm": (8.0, 2.8, 2.8)}
    balls = chest_balls(2, 3)
    sound = chest_ct(tmp_path / "sound", seed=2, balls=balls, **shape)
    for kind in KINDS:
        ill = chest_ct(tmp_path / kind, seed=2, balls=balls, disease=Disease(kind, 0.5, 1), **shape)
        assert [one.centre_lps_mm for one in ill.lesions] == [one.centre_lps_mm for one in sound.lesions]
        for one, other in zip(ill.lesions, sound.lesions, strict=True):
            assert np.array_equal(one.mask, other.mask)
        uids = {str(dcmread(truth.files[0]).SeriesInstanceUID) for truth in (sound, ill)}
        assert len(uids) == 2

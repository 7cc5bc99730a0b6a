"""What of a chest was not looked at, held against phantoms whose fluid and consolidation are known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from models.lung_nodule.airless import LEAST_SHARE, ONE_LUNG, Side, between, not_looked_at, sides
from models.lung_nodule.lungs import find_lungs
from models.phantoms.chest import KERNELS, chest_volume
from models.phantoms.chest_disease import AERATED_BELOW_HU, SOLID_ABOVE_HU, Disease
from models.read import Volume

MM = (5.0, 2.0, 2.0)
ILL = [("effusion", 0.4, 1), ("effusion", 0.7, 2), ("consolidation", 0.9, 7)]


@cache
def chest(seed: int, disease: Disease | None = None, kernel: str = "standard") -> Volume:
    hu, affine = chest_volume(seed, shape=(56, 130, 170), spacing_mm=MM, kernel=kernel, disease=disease)
    return Volume(hu, (), MM, affine, ())


def seen(volume: Volume) -> list[Side]:
    return sides(volume, find_lungs(volume))


def lost_ml(seed: int, disease: Disease) -> dict[str, float]:
    """What the disease left without air, by side."""
    ill, sound = chest(seed, disease), chest(seed)
    lost = (ill.hu > SOLID_ABOVE_HU) & (sound.hu < AERATED_BELOW_HU)
    x = sound.affine[0, 2] * np.arange(lost.shape[2]) + sound.affine[0, 3]
    return {"right": lost[..., x < 0].sum() * 0.02, "left": lost[..., x > 0].sum() * 0.02}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_said_of_a_healthy_chest(seed: int, kernel: str) -> None:
    found = seen(chest(seed, None, kernel))
    assert [side.name for side in found] == ["right", "left"]
    assert max(side.share for side in found) < LEAST_SHARE
    assert not_looked_at(found) == []


@pytest.mark.parametrize("what", [Disease("emphysema", 0.8, 1), Disease("fibrosis", 0.6, 1)])
def test_nothing_is_said_of_a_disease_that_leaves_air(what: Disease) -> None:
    assert not_looked_at(seen(chest(1, what))) == []


@pytest.mark.parametrize("what", [Disease(*one) for one in ILL], ids=str)
def test_what_has_lost_its_air_is_told_of_on_its_side(what: Disease) -> None:
    truth = lost_ml(1, what)
    found = {side.name: side for side in seen(chest(1, what))}
    healthy = {side.name: side for side in seen(chest(1))}
    told = " ".join(not_looked_at([*found.values()]))
    for name, side in found.items():
        more = side.airless_ml - healthy[name].airless_ml
        assert more <= truth[name] + 60  # "at least": it is never made larger
        if truth[name] > 500:
            assert f"Beside the {name} lung at least {side.airless_ml:.0f} ml" in told
            assert more > 0.2 * truth[name]
        if truth[name] < 50:
            assert f"Beside the {name} lung" not in told
    assert max(truth.values()) > 500


@pytest.mark.parametrize("flips", [(0,), (2,), (1, 2), (0, 1, 2)])
def test_the_side_is_the_patients_however_the_array_lies(flips: tuple[int, ...]) -> None:
    volume = chest(1, Disease("effusion", 0.5, 3))
    affine = volume.affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (volume.hu.shape[axis] - 1)
        affine[:3, axis] *= -1
    turned = Volume(np.flip(volume.hu, flips).copy(), (), MM, affine, ())
    for one, other in zip(seen(volume), seen(turned), strict=True):
        assert one.name == other.name
        assert one.airless_ml == pytest.approx(other.airless_ml, abs=15)


def test_lines_from_lung_to_rib_by_hand() -> None:
    lung, ribs = np.zeros((2, 1, 5, 12), bool)
    lung[0, :3, 2:4] = True
    lung[0, 1, 4] = True
    ribs[0, :, 9] = ribs[0, 2, 0] = True  # what lies on the other side is no end
    ribs[0, 0, 9] = False  # a line without one
    expected = np.zeros_like(lung)
    expected[0, 1, 6:9] = expected[0, 2, 5:9] = True
    assert np.array_equal(between(lung, ribs, 2, 1.0), expected)
    assert np.array_equal(between(lung.swapaxes(1, 2), ribs.swapaxes(1, 2), 1, 1.0), expected.swapaxes(1, 2))


def test_a_lung_that_is_gone_is_told_of() -> None:
    assert not_looked_at([]) == [ONE_LUNG]
    (said,) = not_looked_at([Side("right", 2000, 1500, 10), Side("left", 900, 700, 10)])
    assert said.startswith("The left lung has 900 ml, the right one 2000 ml")
    assert not_looked_at([Side("right", 2000, 1500, 10), Side("left", 1100, 700, 10)]) == []


def test_one_lung_alone_has_no_sides() -> None:
    volume = chest(1)
    hu = volume.hu.copy()
    x = volume.affine[0, 2] * np.arange(hu.shape[2]) + volume.affine[0, 3]
    hu[..., x > 0] = np.where(hu[..., x > 0] < -300, 30, hu[..., x > 0])
    hu[:, :, -8:] = -1000
    assert seen(Volume(hu, (), MM, volume.affine, ())) == []

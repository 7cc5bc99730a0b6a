"""The classical lung mask on drawn chests."""

import numpy as np
import pytest

from models.lung_nodule.lungs import Lungs, distance_to_pleura, find_lungs
from models.morphology import closed
from models.pipeline import UnfitInput
from models.read import Volume


def chest(lungs=(-1, 1), table=True, hole_mm=0.0, x_sign=1.0):
    """An elliptic body with one or two lungs on 2 mm voxels; `hole_mm` bites a ball out of the left lung's wall."""
    spacing = (4.0, 2.0, 2.0)
    z, y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip((20, 140, 180), spacing, strict=True)), indexing="ij")
    x, y, z = x_sign * (x - 180), y - 130, z - 40
    hu = np.full(z.shape, -1000, np.int16)
    hu[(x / 160) ** 2 + (y / 105) ** 2 < 1] = 40
    for side in lungs:
        hu[((x - side * 72) / 55) ** 2 + (y / 80) ** 2 + (z / 90) ** 2 < 1] = -860
    hu[x**2 + (y - 20) ** 2 < 8**2] = -1000  # trachea: alone it is no lung
    if hole_mm:
        hu[(x - 124) ** 2 + y**2 + z**2 < hole_mm**2] = 30
    if table:
        hu[np.abs(y - 115) < 3] = 300
    affine = np.diag([0.0, 0, 0, 1])
    affine[2, 0], affine[1, 1], affine[0, 2], affine[:3, 3] = 4, 2, 2 * x_sign, (-180 * x_sign, -130, -40)
    return Volume(hu, (), spacing, affine, ()), x, y, z


def test_both_lungs_and_nothing_else():
    volume, *_ = chest()
    found = find_lungs(volume)
    lung = volume.hu == -860
    assert found.mask[lung].mean() > 0.99
    assert (found.mask & ~lung).sum() < 0.03 * lung.sum()
    assert found.volume_ml == pytest.approx(lung.sum() * 16 / 1000, rel=0.03)
    assert found.middle_x_mm == pytest.approx(0, abs=3)


def test_a_nodule_at_the_wall_stays_inside():
    volume, x, y, z = chest(hole_mm=8)
    nodule = ((x - 120) ** 2 + y**2 + z**2 < 6**2) & (x < 124)
    assert find_lungs(volume).mask[nodule].mean() > 0.9


def test_the_middle_follows_the_patient_not_the_image():
    volume, *_ = chest(x_sign=-1.0)
    assert find_lungs(volume).middle_x_mm == pytest.approx(0, abs=3)


def test_one_lung_has_no_middle():
    assert find_lungs(chest(lungs=(1,))[0]).middle_x_mm is None


EMPTY = Volume(np.full((6, 64, 64), -1000, np.int16), (), (3.0, 1.0, 1.0), np.eye(4), ())


@pytest.mark.parametrize("volume", [chest(lungs=())[0], EMPTY])
def test_no_lungs_is_said_in_words(volume):
    with pytest.raises(UnfitInput, match="no lungs found"):
        find_lungs(volume)


def test_closing_fills_what_is_narrower_than_the_disc_and_keeps_the_rest():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    mask[10:20, 28:32] = False  # a notch 4 wide
    mask[30:50, 10:30] = False  # a missing quarter stays missing
    (found,) = closed(mask[None], 5.0)
    assert found[12:20, 28:32].all()
    assert not found[40:50, 10:18].any()
    assert found[mask].all()


def small(centre_mm, x, y, z, radius_mm=5.0):
    """A ball as (mask, offset) on the chest's grid."""
    ball = (x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2 < radius_mm**2
    places = [np.flatnonzero(ball.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(p[0], p[-1] + 1) for p in places)
    return ball[box], tuple(s.start for s in box)


@pytest.mark.parametrize("x_sign", [1.0, -1.0])
@pytest.mark.parametrize("centre_mm", [(72, 0, 0), (100, 0, 0), (90, -40, 5), (-72, 50, -5), (40, 0, 0), (113, 0, 0)])
def test_distance_to_the_pleura_is_that_of_the_drawn_lung(centre_mm, x_sign):
    volume, x, y, z = chest(x_sign=x_sign)
    mask, offset = small(centre_mm, x, y, z)
    side = np.sign(centre_mm[0])
    t, p = np.meshgrid(np.linspace(0, np.pi, 400), np.linspace(0, 2 * np.pi, 800), indexing="ij")
    surface = np.stack(
        [side * 72 + 55 * np.sin(t) * np.cos(p), 80 * np.sin(t) * np.sin(p), 90 * np.cos(t)], -1
    )  # of the lung that chest() draws
    true = np.linalg.norm(surface - centre_mm, axis=-1).min() - 5.0
    found = distance_to_pleura(find_lungs(volume), mask, offset, volume)
    if true > 30:  # the drawn scan is 80 mm high: it ends nearer than the pleura
        assert found is None
    else:
        assert found == pytest.approx(true, abs=2.5)  # voxels of 4 x 2 x 2 mm


def test_a_nodule_at_the_pleura_touches_it():
    volume, x, y, z = chest(hole_mm=8)
    mask, offset = small((121, 0, 0), x, y, z)
    assert distance_to_pleura(find_lungs(volume), mask, offset, volume) == 0


def test_the_distance_is_measured_in_mm_along_every_axis():
    """One voxel of not-lung beside a lung that fills the scan; anisotropic spacing, fine pixels, coarse lung mask."""
    spacing = (1.5, 0.5, 0.6)
    affine = np.diag([*spacing, 1.0])
    volume = Volume(np.zeros((80, 240, 240), np.int16), (), spacing, affine, ())
    for axis, step in ((0, 1), (1, 2), (2, 2)):
        inside = np.ones((80, 240, 240), bool)
        wall = [slice(None)] * 3
        wall[axis] = slice(0, (40, 120, 120)[axis] - 24)
        inside[tuple(wall)] = False
        mask = np.ones((4, 4, 4), bool)
        found = distance_to_pleura(Lungs(inside, 1.0, None, step), mask, (40, 120, 120), volume)
        assert found == pytest.approx(24 * spacing[axis], abs=1e-6) if axis else found is None or found == 36.0


def test_the_distance_is_not_known_on_a_tilted_scan_or_beyond_its_end():
    spacing = (2.0, 1.0, 1.0)
    affine = np.diag([*spacing, 1.0])
    inside = np.ones((40, 100, 100), bool)
    inside[:, :, :20] = False
    volume = Volume(np.zeros(inside.shape, np.int16), (), spacing, affine, ())
    mask = np.ones((3, 4, 4), bool)
    lungs = Lungs(inside, 1.0, None)
    assert distance_to_pleura(lungs, mask, (18, 50, 40), volume) == pytest.approx(20)
    assert distance_to_pleura(lungs, mask, (5, 50, 40), volume) is None  # 10 mm from the first slice
    assert distance_to_pleura(Lungs(np.ones_like(inside), 1.0, None), mask, (18, 50, 40), volume) is None
    affine[1, 0] = 1.0  # 27 degrees
    tilted = Volume(volume.hu, (), spacing, affine, ())
    assert distance_to_pleura(lungs, mask, (18, 50, 40), tilted) is None

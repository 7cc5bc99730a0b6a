"""The classical lung mask on drawn chests."""

import numpy as np
import pytest

from models.lung_nodule.lungs import closing, find_lungs
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
    closed = closing(mask, 5.0)
    assert closed[12:20, 28:32].all()
    assert not closed[40:50, 10:18].any()
    assert closed[mask].all()

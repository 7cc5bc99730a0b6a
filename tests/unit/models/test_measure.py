"""Measured sizes against figures whose size is known from geometry, not from the code."""

import numpy as np
import pytest

from dicom_sr import codes
from models.measure import calipers, measure_lesion, measure_nodule


def ellipse(shape, centre_mm, radii_mm, spacing_mm, angle=0.0):
    y, x = np.indices(shape, dtype=float)
    dy, dx = (y + 0.5) * spacing_mm[0] - centre_mm[0], (x + 0.5) * spacing_mm[1] - centre_mm[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return (along / radii_mm[0]) ** 2 + (across / radii_mm[1]) ** 2 <= 1


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 2, 2.3])
@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7), (0.5, 0.9)])
def test_axes_of_a_turned_ellipse(angle, spacing_mm):
    mask = ellipse((120, 120), (30.0, 30.0), (12.0, 6.0), spacing_mm, angle)
    found = calipers(mask, spacing_mm)
    assert found.long_mm == pytest.approx(24.0, abs=1.1 * max(spacing_mm))
    assert found.short_mm == pytest.approx(12.0, abs=1.5 * max(spacing_mm))
    scale = np.array([spacing_mm[1], spacing_mm[0]])
    for ends, length in ((found.long_xy, found.long_mm), (found.short_xy, found.short_mm)):
        assert np.linalg.norm((np.array(ends[1]) - np.array(ends[0])) * scale) == pytest.approx(length)
    long, short = ((np.array(ends[1]) - np.array(ends[0])) * scale for ends in (found.long_xy, found.short_xy))
    assert long @ short == pytest.approx(0, abs=1e-6)  # the calipers stand at right angles in mm
    assert abs(long @ [np.cos(angle), np.sin(angle)]) / 24 > 0.95  # and the long one along the ellipse


def test_a_pixel_measures_its_own_edges():
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    found = calipers(mask, (2.0, 1.0))
    assert found.long_mm == pytest.approx(5**0.5)
    assert {found.long_xy[0], found.long_xy[1]} <= {(3.0, 2.0), (4.0, 2.0), (3.0, 3.0), (4.0, 3.0)}


def test_a_bar_of_pixels():
    mask = np.zeros((9, 20), bool)
    mask[4, 5:15] = True
    found = calipers(mask, (1.0, 1.0))
    assert found.long_mm == pytest.approx((10**2 + 1) ** 0.5)
    assert {x for x, _ in found.long_xy} == {5.0, 15.0}


def test_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        calipers(np.zeros((3, 3), bool), (1, 1))


def test_nodule_volume_attenuation_and_key_slice():
    spacing, radii, centre = (2.5, 0.8, 0.8), (10.0, 8.0, 8.0), (20.0, 20.0, 24.0)
    z, y, x = np.indices((16, 50, 60), dtype=float)
    inside = (
        sum((((i + 0.5) * s - c) / r) ** 2 for i, s, c, r in zip((z, y, x), spacing, centre, radii, strict=True)) <= 1
    )
    hu = np.full(inside.shape, -850, np.int16)
    hu[inside] = 40
    hu[inside & (x > 30)] = 20
    rows = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    offset = tuple(int(r[0]) for r in rows)
    crop = inside[tuple(slice(r[0], r[-1] + 1) for r in rows)]
    found = measure_nodule(crop, offset, hu, spacing, float(np.prod(spacing)))
    values = {m.name: m for m in found.measurements}
    assert values[codes.VOXEL_VOLUME].value == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.03)
    assert values[codes.LONG_AXIS].value == pytest.approx(16, abs=1.2)
    assert values[codes.MEAN_DIAMETER].value == pytest.approx(16, abs=1.2)
    assert values[codes.MEAN_HU].value == pytest.approx(hu[inside].mean(), abs=0.06)
    assert values[codes.SD_HU].value == pytest.approx(hu[inside].std(), abs=0.06)
    assert found.key_image in (7, 8)  # z = 20 mm
    assert found.long_axis.image == found.key_image
    middle = (np.array(found.long_axis.start_xy) + found.long_axis.end_xy) / 2
    assert middle * 0.8 == pytest.approx([24.0, 20.0], abs=1.0)  # (column, row) of the whole image


def test_lesion_in_mm_and_in_pixels():
    mask = ellipse((100, 100), (6.0, 6.0), (5.0, 3.0), (0.12, 0.12))
    calibrated = {m.name: m for m in measure_lesion(mask, (0, 0), 0, (0.12, 0.12)).measurements}
    assert calibrated[codes.AREA].value == pytest.approx(np.pi * 15, rel=0.03)
    assert calibrated[codes.LONG_AXIS].unit == codes.MM
    bare = {m.name: m for m in measure_lesion(mask, (0, 0), 0, None).measurements}
    assert bare[codes.LONG_AXIS].unit == codes.PIXELS
    assert bare[codes.LONG_AXIS].value == pytest.approx(10 / 0.12, abs=1.5)

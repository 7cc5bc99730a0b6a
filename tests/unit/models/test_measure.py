"""Measured sizes against figures whose size is known from geometry or from IBSI, not from the code."""

import time

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dicom_sr import codes
from dicom_sr.outline import outline
from models.measure import axial, calipers, contour, measure_lesion, measure_nodule, mesh, tenths
from models.read import Volume


def ellipse(centre_mm, half_axes_mm, spacing_mm, angle=0.0, margin=3):
    """bool (rows, columns): pixels whose centre is inside; centre_mm is counted from the middle of the grid."""
    n = int(np.ceil(max(half_axes_mm) / min(spacing_mm))) + margin
    y, x = np.mgrid[-n : n + 1, -n : n + 1].astype(float)
    dy, dx = y * spacing_mm[0] - centre_mm[0], x * spacing_mm[1] - centre_mm[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return (along / half_axes_mm[0]) ** 2 + (across / half_axes_mm[1]) ** 2 <= 1


def ellipsoid(centre, half_axes_mm, spacing_mm, turn):
    """bool (d, h, w): voxels whose centre is inside; centre in voxels from the middle; turn: a Rotation."""
    spacing = np.array(spacing_mm)
    n = np.ceil(max(half_axes_mm) / spacing).astype(int) + 3
    grid = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in n), indexing="ij"), -1)
    points = ((grid - centre) * spacing) @ turn.as_matrix()
    return ((points / half_axes_mm) ** 2).sum(-1) <= 1


def grid(spacing_mm):
    """Affine of an axial stack, (z, y, x) -> LPS."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_mm, 1
    return affine


sizes_mm = st.floats(4, 30)
pixels_mm = st.floats(0.5, 1.0)
offsets = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))

# ---------------------------------------------------------------------------------------------------- axes in the plane


@settings(max_examples=60, deadline=None)
@given(sizes_mm, st.floats(0.5, 1), st.floats(0, np.pi), pixels_mm, pixels_mm, offsets)
def test_each_end_of_an_axis_is_within_half_a_pixel(long_mm, ratio, angle, row_mm, column_mm, offset):
    short_mm = max(4.0, ratio * long_mm)
    long_mm = max(long_mm, short_mm)
    spacing = row_mm, column_mm
    centre = offset[0] * row_mm, offset[1] * column_mm
    found = calipers(ellipse(centre, (long_mm / 2, short_mm / 2), spacing, angle), spacing)
    half_pixel = np.linalg.norm(spacing) / 2  # from its middle to its corner; a pointed end may hide in it
    assert found.long_mm == pytest.approx(long_mm, abs=2 * half_pixel)
    assert found.short_mm == pytest.approx(short_mm, abs=2 * half_pixel)


def test_axes_are_unbiased_and_mostly_right_to_half_a_pixel():
    """The claim of docs/results/sizes.md: a nodule must not grow by the way it is measured."""
    rng = np.random.default_rng(11)
    errors = []
    for _ in range(400):
        spacing = rng.uniform(0.5, 1.0, 2) if rng.random() < 0.3 else np.repeat(rng.uniform(0.5, 1.0), 2)
        long_mm = rng.uniform(4, 30)
        short_mm = min(long_mm, max(4, long_mm * rng.uniform(1 / 3, 1)))
        centre = rng.uniform(-0.5, 0.5, 2) * spacing
        mask = ellipse(centre, (long_mm / 2, short_mm / 2), spacing, rng.uniform(0, np.pi))
        found = calipers(mask, tuple(spacing))
        both = np.array([found.long_mm, found.short_mm]) - (long_mm, short_mm)
        errors.append([*both, both.mean()] / spacing.max())  # in pixels: long, short, mean diameter
    errors = np.array(errors)
    assert np.abs(errors.mean(axis=0)).max() < 0.15
    assert np.sqrt((errors**2).mean(axis=0)).max() < 0.32
    assert (np.abs(errors) < 0.5).mean(axis=0) == pytest.approx([0.93, 0.96, 0.99], abs=0.03)


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7), (0.5, 0.9)])
def test_the_lines_are_what_they_claim(spacing_mm):
    for angle in (0.0, 0.4, np.pi / 2, 2.3):
        mask = ellipse((0, 0), (12.0, 6.0), spacing_mm, angle)
        found = calipers(mask, spacing_mm)
        scale = np.array([spacing_mm[1], spacing_mm[0]])
        for ends, length in ((found.long_xy, found.long_mm), (found.short_xy, found.short_mm)):
            assert np.linalg.norm((np.array(ends[1]) - np.array(ends[0])) * scale) == pytest.approx(length)
        long, short = ((np.array(ends[1]) - np.array(ends[0])) * scale for ends in (found.long_xy, found.short_xy))
        assert long @ short == pytest.approx(0, abs=1e-6)  # at right angles in mm
        assert abs(long @ [np.cos(angle), np.sin(angle)]) / 24 > 0.95  # and the long one along the ellipse


masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any)


@settings(max_examples=80, deadline=None)
@given(masks)
def test_axes_end_at_the_outline_that_is_drawn(mask):
    found = calipers(mask, (0.7, 0.7))
    drawn = outline(mask)
    for point in (*found.long_xy, *found.short_xy):
        assert (
            distance(np.array(point), drawn) < 0.75
        )  # pixels: less than from a pixel's middle to its corner, and a bit


def distance(point, polygon):
    """From a point to a closed polygon's sides."""
    start, side = polygon[:-1], np.diff(polygon, axis=0)
    share = np.clip(((point - start) * side).sum(1) / (side**2).sum(1), 0, 1)
    return np.linalg.norm(start + share[:, None] * side - point, axis=1).min()


@settings(max_examples=60, deadline=None)
@given(masks, st.booleans(), st.booleans(), st.booleans())
def test_turning_and_flipping_the_image_changes_no_size(mask, up, left, swap):
    parts = np.sort(np.bincount(ndimage.label(mask)[0].ravel())[1:])
    assume(len(parts) == 1 or parts[-2] < parts[-1])  # of two equal parts the outline takes the first
    one = calipers(mask, (0.6, 0.8))
    turned, spacing = mask[:: -1 if up else 1, :: -1 if left else 1], (0.6, 0.8)
    if swap:
        turned, spacing = turned.T, (0.8, 0.6)
    other = calipers(turned, spacing)
    assert (other.long_mm, other.short_mm) == pytest.approx((one.long_mm, one.short_mm), abs=1e-5)


def test_the_short_axis_is_a_line_inside_not_the_gap_of_two_jaws():
    """A sheared square's extent across its diagonal is longer than any line across it."""
    mask = np.zeros((60, 60), bool)
    for row in range(40):
        mask[10 + row, row // 2 : row // 2 + 20] = True
    found = calipers(mask, (1.0, 1.0))
    long = np.array([(0.0, 10.0), (39.5, 50.0)])  # from corner to corner
    direction = (long[1] - long[0]) / np.linalg.norm(long[1] - long[0])
    assert found.long_mm == pytest.approx(np.linalg.norm(long[1] - long[0]), abs=1.5)
    extent = np.ptp(contour(mask) @ np.array([-direction[1], direction[0]]))
    assert found.short_mm < extent - 0.5


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


def test_only_the_part_that_is_drawn_is_measured():
    mask = np.zeros((40, 80), bool)
    mask[10:30, 10:30] = True
    mask[5:8, 70:73] = True
    assert calipers(mask, (1.0, 1.0)).long_mm < 30


def test_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        calipers(np.zeros((3, 3), bool), (1, 1))


@pytest.mark.parametrize(
    ("mm", "shown"), [(5.949, 5.9), (5.95, 6.0), (6.04, 6.0), (6.05, 6.1), (0.04, 0.0), (7.999999, 8.0)]
)
def test_lengths_are_shown_to_a_tenth_halves_upwards(mm, shown):
    assert tenths(mm) == shown


# -------------------------------------------------------------------------------------------------- in three dimensions

# The digital phantom of the Image Biomarker Standardisation Initiative, reference manual section 5.1: 2 mm voxels, the
# region of interest without its holes. Reference values there: RNU0 556 mm3, YEKZ 592 mm3, L0JK 13.1 mm.
IBSI_PHANTOM = np.array(
    [
        ["11111", "11111", "11111", "11111"],
        ["11111", "11111", "01111", "11111"],
        ["11100", "11111", "11011", "11111"],
        ["11100", "11111", "11111", "11111"],
    ]
)


def test_mesh_and_voxels_of_the_ibsi_phantom():
    mask = np.array([[[letter == "1" for letter in row] for row in plane] for plane in IBSI_PHANTOM])
    affine = grid((2.0, 2.0, 2.0))
    volume, diameter = mesh(mask, affine)
    assert volume == pytest.approx(556, abs=0.5)
    assert diameter == pytest.approx(13.1, abs=0.05)
    hu = np.zeros((4, 4, 5), np.int16)
    found = values(measure_nodule(mask, (0, 0, 0), Volume(hu, (), (2.0, 2.0, 2.0), affine, ())))
    assert found[codes.VOXEL_VOLUME] == 592
    assert found[codes.MESH_VOLUME] == 556
    assert found[codes.MAX_3D_DIAMETER] == 13.1


def values(sizes):
    return {m.name: m.value for m in sizes.measurements}


@settings(max_examples=40, deadline=None)
@given(sizes_mm, st.floats(0.4, 1), st.floats(0.4, 1), st.floats(0.6, 2.5), pixels_mm, offsets, st.integers(0, 10**6))
def test_ellipsoids_in_any_pose_on_any_grid(longest, b, c, slice_mm, pixel_mm, offset, seed):
    spacing = slice_mm, pixel_mm, pixel_mm
    axes_mm = np.array([longest, max(4, b * longest), max(4, c * longest)])
    mask = ellipsoid(offset, axes_mm / 2, spacing, Rotation.random(random_state=seed))
    hu = np.zeros(mask.shape, np.int16)
    found = values(measure_nodule(mask, (0, 0, 0), Volume(hu, (), spacing, grid(spacing), ())))
    half_voxel = np.linalg.norm(spacing) / 2
    assert found[codes.MAX_3D_DIAMETER] == pytest.approx(axes_mm.max(), abs=2 * half_voxel)  # half a voxel at each end

    def ball_mm3(change):
        return np.pi / 6 * np.prod(axes_mm + 2 * change)

    # were the surface half a voxel further in or out
    assert ball_mm3(-half_voxel) < found[codes.VOXEL_VOLUME] < ball_mm3(half_voxel)
    assert ball_mm3(-half_voxel) < found[codes.MESH_VOLUME] < ball_mm3(half_voxel)


def test_volume_errors_cancel():
    rng = np.random.default_rng(4)
    errors = []
    for _ in range(60):
        spacing = rng.uniform(0.6, 2.5), *np.repeat(rng.uniform(0.5, 1.0), 2)
        axes_mm = rng.uniform(6, 20, 3)
        mask = ellipsoid(
            rng.uniform(-0.5, 0.5, 3), axes_mm / 2, spacing, Rotation.random(random_state=int(rng.integers(1 << 30)))
        )
        errors.append(mask.sum() * np.prod(spacing) / (np.pi / 6 * np.prod(axes_mm)) - 1)
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.04


def test_a_tilted_gantry_shears_the_grid_not_the_sizes():
    """Slices of a ball, each moved along y by half a slice step: the same ball on a sheared grid."""
    affine = grid((1.0, 0.7, 0.7))
    affine[1, 0] = 0.5
    n = np.array([16, 24, 24])
    index = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in n), indexing="ij"), -1)
    mask = np.linalg.norm(index @ affine[:3, :3].T, axis=-1) <= 7
    volume, diameter = mesh(mask, affine)
    assert diameter == pytest.approx(14, abs=1.2)  # half a voxel at each end
    assert volume == pytest.approx(4 / 3 * np.pi * 7**3, rel=0.03)


@settings(max_examples=15, deadline=None)
@example(29374, [0, 1], (True, False, False))  # two slices of equal area
@given(st.integers(0, 10**6), st.permutations([0, 1]), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_the_way_the_patient_lies_changes_nothing(seed, order, flips):
    """The same body on a grid that is flipped along any axis, or turned in the plane: all eight positions, and more."""
    rng = np.random.default_rng(seed)
    spacing = (1.5, 0.6, 0.8)
    mask = ellipsoid(rng.uniform(-0.5, 0.5, 3), rng.uniform(3, 7, 3), spacing, Rotation.random(random_state=seed))
    mask &= rng.random(mask.shape) > 0.02  # not a perfect body
    hu = rng.integers(-900, 100, mask.shape).astype(np.int16)
    affine = grid(spacing)
    one = measure_nodule(mask, (0, 0, 0), Volume(hu, (), spacing, affine, ()))

    for axis, flip in enumerate(flips):
        if flip:
            mask, hu = np.flip(mask, axis), np.flip(hu, axis)
            affine[:3, 3] += affine[:3, axis] * (mask.shape[axis] - 1)
            affine[:3, axis] *= -1
    places = [0, *(k + 1 for k in order)]
    mask, hu, affine = mask.transpose(places), hu.transpose(places), affine[:, [*places, 3]]
    other = measure_nodule(mask, (0, 0, 0), Volume(hu, (), tuple(spacing[k] for k in places), affine, ()))
    assert other.measurements == one.measurements
    assert other.mean_mm == one.mean_mm


def test_nodule_volume_attenuation_and_key_slice():
    spacing, radii, centre = (2.5, 0.8, 0.8), (10.0, 8.0, 8.0), (20.0, 20.0, 24.0)
    z, y, x = np.indices((16, 50, 60), dtype=float)
    inside = (
        sum((((i + 0.5) * s - c) / r) ** 2 for i, s, c, r in zip((z, y, x), spacing, centre, radii, strict=True)) <= 1
    )
    hu = np.full(inside.shape, -850, np.int16)
    hu[inside] = 40
    hu[inside & (x > 30)] = 20
    hu[8, 25, 30], hu[8, 25, 29] = 900, -700
    rows = [np.flatnonzero(inside.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    offset = tuple(int(r[0]) for r in rows)
    crop = inside[tuple(slice(r[0], r[-1] + 1) for r in rows)]
    found = measure_nodule(crop, offset, Volume(hu, (), spacing, grid(spacing), ()))
    measured = values(found)
    assert measured[codes.VOXEL_VOLUME] == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.03)
    assert measured[codes.LONG_AXIS] == pytest.approx(16, abs=0.4)
    assert measured[codes.MEAN_DIAMETER] == pytest.approx(16, abs=0.4)
    assert measured[codes.MEAN_DIAMETER] == tenths((measured[codes.LONG_AXIS] + measured[codes.SHORT_AXIS]) / 2)
    assert measured[codes.MAX_3D_DIAMETER] == pytest.approx(20, abs=2.75)  # half a voxel at each end
    assert measured[codes.MEAN_HU] == pytest.approx(hu[inside].mean(), abs=0.06)
    assert measured[codes.SD_HU] == pytest.approx(hu[inside].std(), abs=0.06)
    assert (measured[codes.MIN_HU], measured[codes.MAX_HU]) == (-700, 900)
    assert found.key_image in (7, 8)  # z = 20 mm
    assert found.long_axis.image == found.key_image
    middle = (np.array(found.long_axis.start_xy) + found.long_axis.end_xy) / 2
    assert middle * 0.8 == pytest.approx([24.0, 20.0], abs=1.0)  # (column, row) of the whole image


def test_the_slice_of_largest_area_is_measured():
    mask = np.zeros((3, 30, 30), bool)
    mask[0, 5:8, 2:28] = True  # longer, but smaller
    mask[1, 5:15, 5:15] = True
    z, lines = axial(mask, (1.0, 1.0, 1.0))
    assert z == 1
    assert lines.long_mm < 15


def test_thirty_nodules_are_measured_in_no_time():
    spacing = (1.0, 0.7, 0.7)
    mask = ellipsoid((0, 0, 0), (10, 9, 8), spacing, Rotation.identity())
    volume = Volume(np.zeros(mask.shape, np.int16), (), spacing, grid(spacing), ())
    measure_nodule(mask, (0, 0, 0), volume)
    start = time.process_time()
    for _ in range(30):
        measure_nodule(mask, (0, 0, 0), volume)
    assert time.process_time() - start < 2


def test_lesion_in_mm_and_in_pixels():
    mask = ellipse((0, 0), (5.0, 3.0), (0.12, 0.12))
    calibrated = {m.name: m for m in measure_lesion(mask, (0, 0), 0, (0.12, 0.12)).measurements}
    assert calibrated[codes.AREA].value == pytest.approx(np.pi * 15, rel=0.03)
    assert calibrated[codes.LONG_AXIS].value == pytest.approx(10, abs=0.15)
    assert calibrated[codes.LONG_AXIS].unit == codes.MM
    bare = {m.name: m for m in measure_lesion(mask, (0, 0), 0, None).measurements}
    assert bare[codes.LONG_AXIS].unit == codes.PIXELS
    assert bare[codes.LONG_AXIS].value == pytest.approx(10 / 0.12, abs=1.0)

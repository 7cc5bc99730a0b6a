"""What is done on packed bits and whole numbers, against scipy.ndimage and skimage, which do it another way."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import convex_hull_image

from models.morphology import closed, convex_hull, eroded, filled, largest, sizes, within_radius, within_steps

CROSS = ndimage.generate_binary_structure(2, 1)


@st.composite
def masks(draw, most=24):
    """Blobs or specks in arrays of any size, the last axis seldom a multiple of eight; now and then nothing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.random([draw(st.integers(1, most)) for _ in range(3)])
    smooth = ndimage.gaussian_filter(noise, draw(st.sampled_from([0.0, 1.0, 2.5])))
    return smooth > np.quantile(smooth, draw(st.floats(0, 1)))


def by_slice(change, mask):
    return np.array([change(one) for one in mask])


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(0, 12))
def test_steps_are_dilations_by_the_six_neighbours(mask, steps):
    dilated = ndimage.binary_dilation(mask, iterations=steps) if steps else mask
    np.testing.assert_array_equal(within_steps(mask, steps), dilated)


@settings(max_examples=60, deadline=None)
@given(masks(), st.floats(0, 9) | st.sampled_from([1.0, 2**0.5, 5.0, 50**0.5]))
def test_a_radius_is_a_distance(mask, radius):
    def near(one):
        return ndimage.distance_transform_edt(~one) <= radius if one.any() else one

    np.testing.assert_array_equal(within_radius(mask, radius), by_slice(near, mask))


@settings(max_examples=60, deadline=None)
@given(masks(), st.floats(0.5, 9))
def test_a_closing_is_one_by_distances_with_holes_filled(mask, radius):
    margin = int(radius) + 2

    def one_closed(one):
        if not one.any():
            return one
        wide = np.pad(one, margin)
        back = ndimage.distance_transform_edt(ndimage.distance_transform_edt(~wide) <= radius) > radius
        return ndimage.binary_fill_holes(back | wide)[margin:-margin, margin:-margin]

    np.testing.assert_array_equal(closed(mask, radius), by_slice(one_closed, mask))


@settings(max_examples=60, deadline=None)
@given(masks())
def test_erosion_holes_and_components(mask):
    np.testing.assert_array_equal(
        eroded(mask), by_slice(lambda one: ndimage.binary_erosion(one, CROSS, border_value=1), mask)
    )
    np.testing.assert_array_equal(filled(mask), by_slice(ndimage.binary_fill_holes, mask))
    labels, count = ndimage.label(mask)
    each = np.bincount(labels.ravel(), minlength=count + 1)
    np.testing.assert_array_equal(sizes(labels, count), each)
    wanted = labels == 1 + each[1:].argmax() if count else mask
    np.testing.assert_array_equal(largest(mask), wanted)


@settings(max_examples=60, deadline=None)
@given(masks(most=60))
def test_a_hull_is_that_of_skimage_to_the_pixel(mask):
    labels, _ = ndimage.label(mask[0])
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        piece = labels[box] == label
        if min(piece.shape) > 2:
            np.testing.assert_array_equal(convex_hull(piece), convex_hull_image(piece))

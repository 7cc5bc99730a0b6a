"""What the network sees of a candidate lies where the candidate lies, in mm, whatever the scan's voxels are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.patches import SIDE, SLICES, SOFT_TISSUE, PatchConfig, patch


def ramp(shape: tuple[int, int, int], axis: int, spacing_mm: float) -> np.ndarray:
    """HU that rises by 2 with each mm along one axis."""
    line = -100 + 2 * spacing_mm * np.arange(shape[axis])
    return np.broadcast_to(line.reshape([-1 if each == axis else 1 for each in range(3)]), shape).astype(np.int16)


def as_hu(values: np.ndarray) -> np.ndarray:
    low, high = SOFT_TISSUE.window_hu
    return values * (high - low) + low


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.5, 0.5), (5.0, 1.0, 0.5)])
def test_a_step_is_one_mm_along_every_axis(axis: int, spacing_mm: tuple[float, float, float]) -> None:
    hu = ramp((60, 120, 120), axis, spacing_mm[axis])
    seen = as_hu(patch(hu, (30.0, 60.0, 60.0), spacing_mm))
    assert seen.shape == (SLICES, SIDE, SIDE)
    inner = np.diff(seen, axis=axis)
    np.testing.assert_allclose(inner, 2.0, atol=0.02)
    middle = [(count - 1) // 2 for count in seen.shape]
    at = -100 + 2 * spacing_mm[axis] * (30, 60, 60)[axis]
    half = 0.0 if axis == 0 else -1.0  # of 32 pixels none is in the middle: the last before it lies half a step before
    assert seen[tuple(middle)] == pytest.approx(at + half, abs=0.05)


def test_native_voxels_are_taken_as_they_are() -> None:
    hu = np.random.default_rng(1).integers(-150, 230, (20, 64, 64)).astype(np.int16)
    seen = as_hu(patch(hu, (10, 31.5, 31.5), (3.0, 0.7, 0.7), replace(SOFT_TISSUE, mode="native")))
    np.testing.assert_allclose(seen, hu[6:15, 16:48, 16:48], atol=0.01)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(1, 40)] * 3),
    st.tuples(*[st.floats(-20, 60)] * 3),
    st.tuples(*[st.sampled_from([0.5, 1.0, 2.5, 6.0])] * 3),
)
def test_beyond_the_scan_its_edge_goes_on(
    shape: tuple[int, int, int], centre: tuple[float, float, float], spacing_mm: tuple[float, float, float]
) -> None:
    """Anywhere, in scans of any size: the same as of a scan that is padded with its edge far beyond."""
    hu = np.random.default_rng(sum(shape)).integers(-300, 400, shape).astype(np.int16)
    far = 60
    seen = patch(hu, centre, spacing_mm)
    assert np.isfinite(seen).all()
    padded = np.pad(hu, far, mode="edge")
    np.testing.assert_allclose(seen, patch(padded, np.add(centre, far), spacing_mm), atol=1e-4)


def test_outside_the_window_it_is_black_or_white() -> None:
    hu = np.full((12, 40, 40), -1000, np.int16)
    hu[:, :, 20:] = 1000
    assert set(np.unique(patch(hu, (6, 20, 19.5), (1, 1, 1)))) == {0.0, 1.0}


def test_a_larger_patch_holds_the_smaller_in_its_middle() -> None:
    hu = np.random.default_rng(2).integers(-300, 400, (30, 80, 80)).astype(np.int16)
    config = PatchConfig((-1000.0, 400.0), (2.0, 1.0, 1.0))
    small = patch(hu, (15, 40, 40), (1.5, 0.8, 0.7), config)
    large = patch(hu, (15, 40, 40), (1.5, 0.8, 0.7), config, (13, 48, 48))
    np.testing.assert_allclose(large[2:-2, 8:-8, 8:-8], small, atol=1e-6)


def test_weights_remember_window_steps_and_mode() -> None:
    names = {
        each.preprocessing
        for each in (
            SOFT_TISSUE,
            replace(SOFT_TISSUE, mode="native"),
            replace(SOFT_TISSUE, step_mm=(2.0, 1.0, 1.0)),
            replace(SOFT_TISSUE, window_hu=(-1000.0, 400.0)),
        )
    }
    assert len(names) == 4

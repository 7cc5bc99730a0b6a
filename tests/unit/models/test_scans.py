"""Whole scans on 1 mm: geometry by hand and against scipy, and what is stored comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from models.layouts import UnknownLayout
from models.lung_nodule.isotropic import first_voxel, isotropic
from models.lung_nodule.scans import Lesion, Scan, Scans, store, stored

spacings = st.tuples(*[st.sampled_from([0.45, 0.6, 0.7, 1.0, 1.25, 2.5, 5.0])] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
offsets = st.tuples(*[st.integers(0, 7)] * 3)


@settings(deadline=None)
@given(shapes, spacings, offsets, st.integers(0, 99))
def test_one_mm_is_linear_interpolation(shape: tuple, spacing: tuple, offset: tuple, seed: int) -> None:
    """Against scipy's map_coordinates at the same places of the whole volume."""
    values = np.random.default_rng(seed).uniform(-1000, 1000, shape)
    first = first_voxel(offset, spacing)
    last = [int((o + n - 1) * mm + 1e-6) for o, n, mm in zip(offset, shape, spacing, strict=True)]
    places = np.meshgrid(*[np.arange(f, e + 1) for f, e in zip(first, last, strict=True)], indexing="ij")
    there = [p / mm - o for p, mm, o in zip(places, spacing, offset, strict=True)]
    expected = ndimage.map_coordinates(values, there, order=1, mode="nearest")
    found = isotropic(values, spacing, offset)
    assert found.shape == expected.shape
    assert found == pytest.approx(expected, abs=0.01)


def test_the_kinds_of_values() -> None:
    hu = np.array([-1000, 1000], np.int16).reshape(2, 1, 1)
    assert isotropic(hu, (4.0, 1, 1)).ravel().tolist() == [-1000, -500, 0, 500, 1000]
    mask = np.array([False, True]).reshape(2, 1, 1)
    assert isotropic(mask, (4.0, 1, 1)).ravel().tolist() == [False, False, True, True, True]


@settings(deadline=None)
@given(shapes, spacings, offsets, st.integers(0, 99))
def test_a_box_lies_where_the_whole_volume_has_it(shape: tuple, spacing: tuple, offset: tuple, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1000, 1000, np.add(shape, offset) + 2)
    box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    part = isotropic(values[box], spacing, offset)
    there = tuple(slice(f, f + n) for f, n in zip(first_voxel(offset, spacing), part.shape, strict=True))
    assert isotropic(values, spacing)[there] == pytest.approx(part, abs=0.01)


def test_a_lesion_is_its_mask() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[2:5, 3:6, 4:7] = True
    lesion = Lesion.of(mask, (10, 20, 30))
    assert lesion.centre_zyx == (13, 24, 35)
    assert lesion.diameter_mm == pytest.approx((6 * 27 / np.pi) ** (1 / 3))
    assert lesion.offset_zyx == (12, 23, 34)
    assert lesion.mask.shape == (3, 3, 3)
    assert lesion.mask.all()
    with pytest.raises(ValueError, match="empty"):
        Lesion.of(np.zeros((2, 2, 2), bool))


def made_up(name: str = "a") -> Scan:
    rng = np.random.default_rng(3)
    ball = np.indices((5, 5, 5)).sum(axis=0) < 7
    return Scan(
        name=name,
        patient="P",
        hu=rng.normal(-800, 300, (11, 12, 13)).astype(np.int16),
        lungs=rng.random((11, 12, 13)) < 0.5,
        lesions=(Lesion.of(ball, (1, 2, 3)), Lesion.of(ball, (4, 5, 6))),
        semi_synthetic=True,
        donors=("D-1", "D-2"),
        irrelevant=(Lesion.of(ball[:1], (0, 0, 0)),),
        candidates=(((1.0, 2.5, 3.0), True),),
        share=0.5,
    )


def same(one: Scan, other: Scan) -> bool:
    def plain(lesions: tuple[Lesion, ...]) -> list:
        return [(x.centre_zyx, x.diameter_mm, x.offset_zyx, x.mask.tolist()) for x in lesions]

    facts = ("name", "patient", "semi_synthetic", "donors", "candidates", "share")
    return (
        all(getattr(one, name) == getattr(other, name) for name in facts)
        and one.hu.dtype == other.hu.dtype
        and np.array_equal(one.hu, other.hu)
        and np.array_equal(one.lungs, other.lungs)
        and plain(one.lesions) == plain(other.lesions)
        and plain(one.irrelevant) == plain(other.irrelevant)
    )


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    store(tmp_path / "a.npz", made_up())
    store(tmp_path / "b.npz", made_up())
    assert same(stored(tmp_path / "a.npz"), made_up())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert [path.name for path in tmp_path.glob("*.new")] == []


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayout, match=r"index\.json"):
        Scans(tmp_path)

"""Millimetres per pixel, region by region: PS3.3 C.8.5.5, each rule on its own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_sr.regions import largest_spacing, regions, spacing_at, tissue_regions

CM, SECONDS = 3, 4
WHOLE = (0, 0, 63, 47)


def item(
    box: tuple[int, int, int, int] = (1, 1, 6, 5),
    delta: tuple[float, float] = (0.012, 0.02),
    units: tuple[int, int] = (CM, CM),
    kind: tuple[int, int] = (1, 1),
    flags: int = 0,
) -> Dataset:
    """kind: Region Spatial Format, Region Data Type."""
    out = Dataset()
    out.RegionSpatialFormat, out.RegionDataType = kind
    out.RegionFlags = flags
    out.PhysicalUnitsXDirection, out.PhysicalUnitsYDirection = units
    out.PhysicalDeltaX, out.PhysicalDeltaY = delta
    out.RegionLocationMinX0, out.RegionLocationMinY0, out.RegionLocationMaxX1, out.RegionLocationMaxY1 = box
    return out


def image(*items: Dataset, pixel_spacing: list[float] | None = None) -> Dataset:
    out = Dataset()
    out.Rows, out.Columns = 48, 64
    if items:
        out.SequenceOfUltrasoundRegions = list(items)
    if pixel_spacing:
        out.PixelSpacing = pixel_spacing
    return out


@pytest.mark.parametrize(
    ("header", "box", "spacing_mm"),
    [
        (image(item()), (1, 1, 6, 5), (0.2, 0.12)),  # cm per pixel; y before x
        (image(item(delta=(-0.012, 0.02))), (1, 1, 6, 5), (0.2, 0.12)),  # x may run to the left
        (image(item(box=(0, 0, 64, 48))), WHOLE, (0.2, 0.12)),  # one pixel too far, as scanners write it
        (image(item(units=(CM, SECONDS))), (1, 1, 6, 5), None),  # seconds are no length
        (image(item(units=(CM, SECONDS)), pixel_spacing=[0.3, 0.4]), (1, 1, 6, 5), (0.3, 0.4)),
        (image(item(), pixel_spacing=[0.3, 0.4]), (1, 1, 6, 5), (0.2, 0.12)),  # the region knows better
        (image(item(delta=(0.012, 0.0))), (1, 1, 6, 5), None),
        (image(item(delta=(0.012, math.nan))), (1, 1, 6, 5), None),
        (image(pixel_spacing=[0.3, 0.4]), WHOLE, (0.3, 0.4)),
        (image(pixel_spacing=[0.0, 0.4]), WHOLE, None),
        (image(), WHOLE, None),
        (image(item(kind=(0, 0))), WHOLE, None),  # says nothing
        (image(item(kind=(0, 0)), item()), (1, 1, 6, 5), (0.2, 0.12)),
        (image(item(), item(kind=(3, 3), box=(30, 0, 63, 47), units=(SECONDS, 7))), (1, 1, 6, 5), (0.2, 0.12)),
        (image(item(), item(box=(70, 0, 90, 20))), (1, 1, 6, 5), (0.2, 0.12)),  # off the image
        (image(item(), item(box=(9, 9, 3, 3))), (1, 1, 6, 5), (0.2, 0.12)),  # inside out
    ],
)
def test_one_region(header: Dataset, box: tuple[int, ...], spacing_mm: tuple[float, float] | None) -> None:
    (region,) = tissue_regions(header)
    assert region.box == box
    assert region.spacing_mm == (pytest.approx(spacing_mm) if spacing_mm else None)
    assert not region.covered


@pytest.mark.parametrize("kind", [(2, 1), (3, 3), (1, 2), (4, 0xA), (1, 4)])
def test_an_image_of_other_things_has_no_tissue(kind: tuple[int, int]) -> None:
    header = image(item(kind=kind), pixel_spacing=[0.3, 0.4])
    assert tissue_regions(header) == ()
    assert largest_spacing(header) is None
    assert len(regions(header)) == 1


def test_two_pictures_beside_each_other_have_their_own_calibrations() -> None:
    left, right = item((0, 0, 30, 47), (0.01, 0.02)), item((33, 0, 63, 40), (0.03, 0.04))
    for header in (image(left, right), image(right, left)):
        assert [region.box for region in tissue_regions(header)] == [(0, 0, 30, 47), (33, 0, 63, 40)]
        assert spacing_at(header, 30, 47) == pytest.approx((0.2, 0.1))
        assert spacing_at(header, 33, 40) == pytest.approx((0.4, 0.3))
        assert spacing_at(header, 31, 10) is None
        assert spacing_at(header, 40, 41) is None
        assert largest_spacing(header) == pytest.approx((0.2, 0.1))


def test_pixel_spacing_is_meant_for_none_of_two_pictures() -> None:
    header = image(item((0, 0, 30, 47), units=(0, 0)), item((33, 0, 63, 47), units=(0, 0)), pixel_spacing=[0.3, 0.4])
    assert [region.spacing_mm for region in tissue_regions(header)] == [None, None]


def test_high_priority_lies_on_top_and_of_equals_the_smaller() -> None:
    """PS3.3 C.8.5.5.1.3: bit 0 set means low priority."""
    large, inset = item((0, 0, 63, 47), (0.01, 0.01)), item((40, 30, 63, 47), (0.05, 0.05))
    for header in (image(large, inset), image(inset, large)):
        whole, small = tissue_regions(header)
        assert whole.covered == ((40, 30, 63, 47),)
        assert small.covered == ()
        assert spacing_at(header, 39, 29) == pytest.approx((0.1, 0.1))
        assert spacing_at(header, 40, 30) == pytest.approx((0.5, 0.5))
    under = item((40, 30, 63, 47), (0.05, 0.05), flags=1)
    header = image(under, large)
    assert spacing_at(header, 40, 30) == pytest.approx((0.1, 0.1))
    trace = item((0, 40, 63, 47), kind=(4, 0xA), units=(SECONDS, 0), delta=(0.01, 0))
    (tissue,) = tissue_regions(image(item((0, 0, 63, 47), flags=1), trace))
    assert tissue.covered == ((0, 40, 63, 47),)
    assert spacing_at(image(item((0, 0, 63, 47), flags=1), trace), 5, 45) is None


def test_colour_flow_lies_over_tissue_without_taking_it_away() -> None:
    header = image(item((0, 0, 63, 47), flags=1), item((10, 10, 30, 30), kind=(1, 2)))
    (tissue,) = tissue_regions(header)
    assert tissue.covered == ()
    assert spacing_at(header, 20, 20) == pytest.approx((0.2, 0.12))


def test_the_same_tissue_told_twice_counts_once() -> None:
    whole, part = item((0, 0, 63, 47)), item((5, 5, 30, 30))
    for header in (image(whole, part), image(part, whole), image(whole, whole), image(whole, whole, part)):
        (region,) = tissue_regions(header)
        assert region.box == WHOLE
        assert region.covered == ()


def test_depth_counted_upwards_is_noticed() -> None:
    assert [r.upwards for r in tissue_regions(image(item(delta=(0.01, -0.02))))] == [True]
    assert [r.upwards for r in tissue_regions(image(item(delta=(-0.01, 0.02))))] == [False]
    assert [r.upwards for r in tissue_regions(image())] == [False]


boxes = st.tuples(st.integers(0, 70), st.integers(0, 50), st.integers(0, 70), st.integers(0, 50))
items = st.builds(
    item,
    boxes,
    delta=st.tuples(st.sampled_from([0.01, -0.02, 0.0]), st.sampled_from([0.01, -0.03])),
    units=st.sampled_from([(CM, CM), (SECONDS, CM), (0, 0)]),
    kind=st.sampled_from([(1, 1), (1, 1), (1, 1), (1, 2), (3, 3), (0, 0)]),
    flags=st.integers(0, 3),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(items, max_size=4), st.integers(0, 63), st.integers(0, 47))
def test_a_pixel_never_has_two_calibrations(told: list[Dataset], x: int, y: int) -> None:
    header = image(*told)
    found = tissue_regions(header)
    corners = [(region.box[i], region.box[j]) for region in found for i in (0, 2) for j in (1, 3)]
    for place in ((x, y), *corners):
        holding = [region for region in found if region.holds(*place)]
        assert len(holding) <= 1
        assert spacing_at(header, *place) == (holding[0].spacing_mm if holding else None)
    for region in found:
        x0, y0, x1, y1 = region.box
        assert 0 <= x0 <= x1 < 64
        assert 0 <= y0 <= y1 < 48

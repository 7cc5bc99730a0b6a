"""Slices of several acquisitions, contrasts and kernels in one series: joined and said, chosen and said, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset

from models import catalogue
from pacs_node.assemble.geometry import judge
from pacs_node.records import Verdict
from tests.factories import ct_series, header

SLICES = 24


def verdict(change: Any, *, duplicate: Any = ()) -> Verdict:
    images = [header(image) for image in ct_series(shape=(SLICES, 4, 6), duplicate_position=duplicate)]
    for number, image in enumerate(images):
        change(number, image)
    return judge(images, catalogue().cards, min_slices=8)


def setting(keyword: str, values: Any) -> Any:
    """values: number of a slice -> the value, None for an empty one."""

    def change(number: int, image: Dataset) -> None:
        setattr(image, keyword, values(number))

    return change


@pytest.mark.parametrize(
    ("keyword", "one", "other"),
    [
        ("AcquisitionNumber", 1, 2),
        ("AcquisitionTime", "120000", "120400"),
        ("AcquisitionTime", "120000.5", "120011.0"),
        ("IrradiationEventUID", "1.2.3", "1.2.4"),
        ("ContrastBolusAgent", "IOMERON", ""),
    ],
)
class TestTwoOf:
    """Two acquisitions, told apart by any one attribute."""

    def test_alternating_is_refused(self, keyword: str, one: Any, other: Any) -> None:
        result = verdict(setting(keyword, lambda k: one if k % 2 else other))
        assert not result.fit
        assert "slices of 2 acquisitions alternate, and nothing says which is meant" in result.reason
        assert keyword in result.reason

    def test_one_after_the_other_is_joined_and_said(self, keyword: str, one: Any, other: Any) -> None:
        result = verdict(setting(keyword, lambda k: one if k < SLICES // 2 else other))
        assert result.fit, result.reason
        assert len(result.use) == SLICES
        (remark,) = result.remarks
        assert remark.startswith(f"2 acquisitions follow each other ({keyword}: ")
        assert remark in result.reason

    def test_the_clearly_larger_one_is_analysed_alone_and_said(self, keyword: str, one: Any, other: Any) -> None:
        """A short second pass, as a repeated apex: every other slice of the last few."""
        few = {SLICES - 2, SLICES, SLICES + 1, SLICES + 2, SLICES + 3}
        images = [header(image) for image in ct_series(shape=(SLICES, 4, 6), duplicate_position=[1, 3, 5, 7])]
        for number, image in enumerate(images):
            setattr(image, keyword, other if number in few else one)
            if number >= SLICES:  # half a step beside its twin
                image.ImagePositionPatient[2] += 1.25
        result = judge([image for k, image in enumerate(images) if k != SLICES - 2], catalogue().cards, min_slices=8)
        assert any("alternate" in remark and keyword in remark for remark in result.remarks), result.reason
        assert set(result.set_aside) == {str(image.SOPInstanceUID) for image in images[SLICES:]}
        assert all(why == f"of another acquisition ({keyword})" for why in result.set_aside.values())


def test_where_two_passes_overlap_one_of_them_is_used_throughout() -> None:
    """Equal positions at the seam: the slices of one pass there, not now of this and now of that."""

    def passes(number: int, image: Dataset) -> None:
        image.AcquisitionNumber = 1 if number < 13 or number >= SLICES else 2  # the twins are of the first pass, too

    result = verdict(passes, duplicate=[13, 14])
    assert result.fit, result.reason
    assert "2 acquisitions follow each other (AcquisitionNumber: 1 (15 slices), 2 (11 slices))" in result.reason
    assert len(result.use) == SLICES


def test_kernels_are_said() -> None:
    result = verdict(setting("ConvolutionKernel", lambda k: "B30f" if k % 2 else "B80f"))
    assert result.fit
    kernels = "ConvolutionKernel: B30f (12 slices), B80f (12 slices)"
    assert result.remarks == (f"slices of 2 reconstruction kernels in one volume ({kernels})",)


@pytest.mark.parametrize("values", [lambda k: k, lambda k: SLICES - k, lambda k: k // 3])
def test_a_scanner_that_counts_every_rotation_is_nothing_to_say(values: Any) -> None:
    result = verdict(setting("AcquisitionNumber", values))
    assert (result.fit, result.remarks) == (True, ())


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "AcquisitionTime", "ContrastBolusAgent", "ConvolutionKernel"])
def test_what_one_slice_does_not_say_tells_nothing_apart(keyword: str) -> None:
    for damage in (None, ""):

        def change(number: int, image: Dataset, damage: Any = damage) -> None:
            setattr(image, keyword, {"AcquisitionNumber": 1, "AcquisitionTime": "120000"}.get(keyword, "A"))
            if number == 12:
                if damage is None:
                    delattr(image, keyword)
                else:
                    setattr(image, keyword, damage)

        result = verdict(change)
        assert (result.fit, result.remarks) == (True, ()), result.reason


def test_two_reconstructions_at_the_same_places_are_told_apart_in_words() -> None:
    def kernels(number: int, image: Dataset) -> None:
        image.ConvolutionKernel = "B30f" if number < SLICES else "B80f"

    result = verdict(kernels, duplicate=range(SLICES))
    assert not result.fit
    assert "several phases or reconstructions in one series (ConvolutionKernel: B30f, B80f)" in result.reason


def test_one_position_in_all_slices_is_called_so() -> None:
    def flat(number: int, image: Dataset) -> None:
        image.SliceLocation, image.ImagePositionPatient = image.ImagePositionPatient[2], [0, 0, 0]

    assert verdict(flat).reason == f"all {SLICES} images state the same position (ImagePositionPatient)"


def test_an_incomplete_concatenation_is_refused() -> None:
    def part(number: int, image: Dataset) -> None:
        image.ConcatenationUID, image.InConcatenationNumber, image.InConcatenationTotalNumber = "1.2.3", number + 1, 30

    assert verdict(part).reason == f"{SLICES} of 30 parts of an image are here (InConcatenationTotalNumber)"

"""Slices of several acquisitions, contrasts and kernels in one series: joined and said, chosen and said, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset

from dicom_sr.frames import MACROS
from models import catalogue
from pacs_node.assemble.geometry import judge
from pacs_node.records import Verdict
from tests.factories import ct_series, enhanced_ct, header

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
        ("KVP", "80", "140"),
        ("TemporalPositionIdentifier", 1, 2),
        ("TemporalPositionIndex", 1, 2),
        ("NominalPercentageOfCardiacPhase", 30.0, 75.0),
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


@pytest.mark.parametrize("numbers", [lambda k: k, lambda k: 1 + (k >= SLICES // 2)])
@pytest.mark.parametrize(
    ("keyword", "values"),
    [("AcquisitionTime", ("120000", "120400")), ("ContrastBolusAgent", ("A", "")), ("KVP", (80, 140))],
)
def test_acquisitions_that_alternate_are_found_behind_numbers_that_follow_each_other(
    numbers: Any, keyword: str, values: tuple[Any, Any]
) -> None:
    """A scanner that counts every rotation, or two stations: what else alternates there alternates still."""

    def change(number: int, image: Dataset) -> None:
        image.AcquisitionNumber = numbers(number)
        setattr(image, keyword, values[number % 2])

    result = verdict(change)
    assert not result.fit
    assert f"alternate, and nothing says which is meant ({keyword}: " in result.reason


def test_one_seam_is_said_once() -> None:
    def change(number: int, image: Dataset) -> None:
        second = number >= SLICES // 2
        image.AcquisitionNumber, image.AcquisitionTime, image.IrradiationEventUID = (
            1 + second, "120400" if second else "120000", "1.2.4" if second else "1.2.3"
        )  # fmt: skip

    result = verdict(change)
    assert result.fit
    assert [remark.split(" (")[0] for remark in result.remarks] == ["2 acquisitions follow each other"]


def test_where_two_passes_overlap_one_of_them_is_used_throughout() -> None:
    """Equal positions at the seam: the slices of one pass there, not now of this and now of that."""

    def passes(number: int, image: Dataset) -> None:
        image.AcquisitionNumber = 1 if number < 13 or number >= SLICES else 2  # the twins are of the first pass, too

    result = verdict(passes, duplicate=[13, 14])
    assert result.fit, result.reason
    assert "2 acquisitions follow each other (AcquisitionNumber: 1 (15 slices), 2 (11 slices))" in result.reason
    assert len(result.use) == SLICES


@pytest.mark.parametrize("keyword", ["AcquisitionDate", "AcquisitionDateTime"])
def test_the_same_hour_of_another_day_is_another_pass(keyword: str) -> None:
    hour = "101500" if keyword == "AcquisitionDateTime" else ""
    result = verdict(setting(keyword, lambda k: f"2026030{1 + k % 2}{hour}"))
    assert not result.fit
    assert "slices of 2 acquisitions alternate" in result.reason


def test_a_scan_over_midnight_is_one_pass() -> None:
    def late(number: int, image: Dataset) -> None:
        image.AcquisitionDate, image.AcquisitionTime = (
            ("20260301", f"2359{48 + number:02}") if number < 12 else ("20260302", f"0000{number - 12:02}")
        )

    assert (verdict(late).fit, verdict(late).remarks) == (True, ())


@pytest.mark.parametrize("values", [("120", "120.0", "1.2E2"), ("120", "", "120"), ("120", None, "120")])
def test_one_voltage_is_one_however_it_is_written(values: tuple[Any, ...]) -> None:
    result = verdict(setting("KVP", lambda k: values[k % 3]))
    assert (result.fit, result.remarks) == (True, ()), result.reason


@pytest.mark.parametrize("keyword", ["TemporalPositionIndex", "NominalPercentageOfCardiacPhase", "KVP"])
def test_phases_in_one_enhanced_image_are_told_apart(keyword: str) -> None:
    macro, kind = MACROS[keyword], int if keyword == "TemporalPositionIndex" else float
    image = enhanced_ct(ct_series(shape=(SLICES, 4, 6)))
    for number, groups in enumerate(image.PerFrameFunctionalGroupsSequence):
        if macro not in groups:
            setattr(groups, macro, [Dataset()])
        setattr(groups[macro].value[0], keyword, kind(1 + number % 2))
    result = judge([header(image)], catalogue().cards, min_slices=8)
    assert not result.fit
    assert f"slices of 2 acquisitions alternate, and nothing says which is meant ({keyword}: " in result.reason


def test_thicknesses_are_said() -> None:
    result = verdict(setting("SliceThickness", lambda k: "5" if k % 2 else "1.25"))
    assert result.fit
    thicknesses = "SliceThickness: 1.25 (12 slices), 5 (12 slices)"
    assert result.remarks == (f"slices of 2 slice thicknesses in one volume ({thicknesses})",)


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

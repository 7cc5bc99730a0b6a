"""Lesions on the frames of a clip: Segmentation and report name the frames they are on, each by its calibration."""

from __future__ import annotations

import copy
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_sr import encode, read
from dicom_sr.findings import Finding
from dicom_sr.seg import plane_mask
from dicom_sr.validate import problems
from tests.results import CASES, WHEN, encoded

CLIPS = ["us_clip", "us_followed", "us_dual"]


def frames_of(finding: Finding) -> list[int]:
    """From 1; the images of these cases are the frames of one clip, in order."""
    return [finding.offset_zyx[0] + k + 1 for k, mask in enumerate(finding.mask) if mask.any()]


@pytest.mark.parametrize("name", CLIPS)
def test_highdicom_reads_the_masks_on_the_right_frames(name: str, tmp_path: Path) -> None:
    """An independent reader: pixels of every segment, frame by frame of the clip."""
    case, (*segmentations, _) = encoded(name)
    drawn = 0
    for number, dataset in enumerate(segmentations):
        path = tmp_path / f"{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        theirs = hd.seg.segread(path)
        for segment in theirs.segment_numbers:
            description = theirs.get_segment_description(segment)
            (finding,) = [f for f in case.findings.findings if f.label == description.segment_label]
            frames = frames_of(finding)
            pixels = theirs.get_pixels_by_source_frame(
                case.images[0].SOPInstanceUID,
                frames,
                segment_numbers=[segment],
                assert_missing_frames_are_empty=True,
            )
            assert pixels.shape[0] == len(frames)
            for frame, shown in zip(frames, pixels, strict=True):
                meant = plane_mask(finding, frame - 1, *shown.shape[:2])
                np.testing.assert_array_equal(shown[..., 0].astype(bool), meant)
                drawn += 1
    assert drawn == sum(len(frames_of(finding)) for finding in case.findings.findings)
    assert sum(int(dataset.NumberOfFrames) for dataset in segmentations) == drawn  # and on no other frame


def test_a_frame_on_which_the_lesion_is_out_of_sight_is_not_in_the_segmentation() -> None:
    _, (segmentation, _) = encoded("us_followed")
    (segment,) = read.segments(segmentation)
    assert sorted(ref.frame or 0 for ref in segment.masks) == [2, 3, 5, 6]


def test_two_calibrations_make_two_segmentations_each_with_its_own() -> None:
    case, (left, right, _) = encoded("us_dual")
    spacings = [
        [float(mm) for mm in s.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing]
        for s in (left, right)
    ]
    assert spacings == [[0.25, 0.25], [0.17, 0.11]]
    assert [s.SegmentSequence[0].SegmentLabel for s in (left, right)] == ["Mass 1", "Mass 2"]
    assert left.SeriesInstanceUID != right.SeriesInstanceUID
    assert {left.Rows, right.Rows} == {case.images[0].Rows}


def test_one_calibration_of_two_regions_makes_one_segmentation() -> None:
    case = CASES["us_dual"]()
    left, right = case.images[0].SequenceOfUltrasoundRegions
    right.PhysicalDeltaX, right.PhysicalDeltaY = left.PhysicalDeltaX, left.PhysicalDeltaY
    *segmentations, _ = encode(case.findings, case.headers, when=WHEN)
    assert [len(s.SegmentSequence) for s in segmentations] == [2]


@pytest.mark.parametrize("name", CLIPS)
def test_the_report_draws_on_the_key_frame_and_names_the_others(name: str) -> None:
    case, (*_, report) = encoded(name)
    told = [group for group in read.groups(report) if group.template == "1410"]
    remarks = read.comments(report)
    for finding, group in zip(case.findings.findings, told, strict=True):
        assert group.lines[0].image.frame == finding.key_image + 1
        frames = frames_of(finding)
        where = f"{len(frames)} frames from {frames[0]} to {frames[-1]}" if len(frames) > 1 else f"frame {frames[0]}"
        assert f"{finding.label}: outlined on {where}, measured on frame {finding.key_image + 1}" in remarks


def test_the_report_of_single_images_says_nothing_of_frames() -> None:
    assert not any("frame" in text for text in read.comments(encoded("us_several")[1][-1]))


def spoilt(spacing: list[str]) -> list[str]:
    case, (left, *_) = encoded("us_dual")
    wrong = copy.deepcopy(left)
    wrong.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = spacing
    return problems(wrong, case.headers)


def test_the_gate_notices_the_calibration_of_the_other_region() -> None:
    assert spoilt(["0.25", "0.25"]) == []
    assert any("pixel spacing" in problem for problem in spoilt(["0.17", "0.11"]))


def test_the_gate_notices_a_mask_on_another_frame() -> None:
    case, (segmentation, _) = encoded("us_followed")
    wrong: Dataset = copy.deepcopy(segmentation)
    source = wrong.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedFrameNumber = 4
    assert any("another mask" in p for p in problems(wrong, case.headers, findings=case.findings))


def test_a_lesion_outside_every_region_is_not_given_a_size_of_one() -> None:
    """Between two pictures nothing is calibrated: its Segmentation must not carry the millimetres of a neighbour."""
    case = CASES["us_dual"]()
    case.images[0].SequenceOfUltrasoundRegions[0].RegionLocationMinX0 = 25
    first, *_ = encode(case.findings, case.headers, when=WHEN)
    measures = first.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(mm) for mm in measures.PixelSpacing] == [1, 1]

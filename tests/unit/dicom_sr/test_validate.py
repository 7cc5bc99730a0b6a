"""The gate before sending: each damage is reported, in words that name it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from pydicom.dataset import Dataset

from dicom_sr.validate import problems
from tests.results import CASES, encoded

CT, (CT_SEG, CT_SR) = encoded("ct_two")
US, (US_SEG, US_SR) = encoded("us_one")


@pytest.mark.parametrize("name", CASES)
def test_what_we_write_passes(name: str) -> None:
    case, made = encoded(name)
    segmentations = [dataset for dataset in made if dataset.Modality == "SEG"]
    for dataset in made:
        assert problems(dataset, case.headers, findings=case.findings, segmentations=segmentations) == []


def _frame(seg: Dataset, k: int = 0) -> Dataset:
    return seg.PerFrameFunctionalGroupsSequence[k]


def _shared(seg: Dataset) -> Dataset:
    return seg.SharedFunctionalGroupsSequence[0]


def _groups(sr: Dataset) -> list[Dataset]:
    return next(i for i in sr.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010").ContentSequence


def _source(seg: Dataset) -> Dataset:
    return _frame(seg).DerivationImageSequence[0].SourceImageSequence[0]


def _swap_slices(seg: Dataset) -> None:
    first, last = _frame(seg), _frame(seg, 2)
    first.PlanePositionSequence, last.PlanePositionSequence = last.PlanePositionSequence, first.PlanePositionSequence


def _transpose(seg: Dataset) -> None:
    item = _shared(seg).PlaneOrientationSequence[0]
    item.ImageOrientationPatient = [*item.ImageOrientationPatient[3:], *item.ImageOrientationPatient[:3]]


def _flip_a_pixel(seg: Dataset) -> None:
    seg.PixelData = bytes([seg.PixelData[0] ^ 1]) + seg.PixelData[1:]


def _lose_a_frame(seg: Dataset) -> None:
    """The last frame of the last segment, consistently."""
    seg.NumberOfFrames -= 1
    seg.PerFrameFunctionalGroupsSequence = seg.PerFrameFunctionalGroupsSequence[:-1]
    seg.PixelData = seg.PixelData[: seg.NumberOfFrames * seg.Rows * seg.Columns // 8]


def _change_a_number(sr: Dataset) -> None:
    volume = _groups(sr)[2]
    number = next(item for item in volume.ContentSequence if item.ValueType == "NUM")
    number.MeasuredValueSequence[0].FloatingPointValue = 99.0


def _volume_first(sr: Dataset) -> None:
    groups = _groups(sr)
    groups.insert(0, groups.pop(2))


def _drop_tracking(sr: Dataset) -> None:
    del _groups(sr)[0].ContentSequence[0]


def _draw_outside(sr: Dataset) -> None:
    number = next(item for item in _groups(sr)[0].ContentSequence if item.ValueType == "NUM")
    number.ContentSequence[0].GraphicData = [500.0, 0.0, 1.0, 1.0]


def _drop_region(sr: Dataset) -> None:
    group = _groups(sr)[0]
    group.ContentSequence = [item for item in group.ContentSequence if item.ValueType != "SCOORD"]


def _point_to_other_segment(sr: Dataset) -> None:
    reference = next(i for i in _groups(sr)[2].ContentSequence if i.ValueType == "IMAGE").ReferencedSOPSequence[0]
    reference.ReferencedSegmentNumber = 2


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


DAMAGE: dict[str, tuple[Dataset, Callable[[Dataset], None], str]] = {
    "wrong patient": (CT_SEG, _set("PatientID", "OTHER"), "PatientID is not the sources'"),
    "wrong study": (CT_SR, _set("StudyInstanceUID", "1.2.3"), "StudyInstanceUID is not the sources'"),
    "missing type 1": (CT_SEG, lambda seg: delattr(seg, "LossyImageCompression"), "LossyImageCompression has no value"),
    "empty type 1": (CT_SR, _set("SoftwareVersions", ""), "SoftwareVersions has no value"),
    "missing in a segment": (
        CT_SEG,
        lambda seg: delattr(seg.SegmentSequence[1], "SegmentAlgorithmType"),
        "segment 2: SegmentAlgorithmType has no value",
    ),
    "bad uid": (CT_SR, _set("SeriesInstanceUID", "2.25.0123"), "SeriesInstanceUID 2.25.0123 is not a UID"),
    "long uid": (CT_SR, _set("SeriesInstanceUID", "2.25." + "1" * 60), "is not a UID"),
    "other character set": (CT_SR, _set("SpecificCharacterSet", "ISO_IR 100"), "not ISO_IR 192"),
    "long description": (CT_SR, _set("SeriesDescription", "x" * 65), "SeriesDescription is longer than 64"),
    "file meta": (
        CT_SR,
        lambda sr: setattr(sr.file_meta, "MediaStorageSOPInstanceUID", "1.2.3"),
        "file meta information names another",
    ),
    "dangling reference": (
        CT_SEG,
        lambda seg: setattr(_source(seg), "ReferencedSOPInstanceUID", "1.2.3"),
        "refers to 1.2.3, which is none of the sources",
    ),
    "wrong class": (
        CT_SEG,
        lambda seg: setattr(_source(seg), "ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.4"),
        "as another SOP Class",
    ),
    "frame that is not there": (
        US_SEG,
        lambda seg: setattr(_source(seg), "ReferencedFrameNumber", 2),
        "refers to frame 2",
    ),
    "slices swapped": (CT_SEG, _swap_slices, "pixel (row 0, column 0) is 5.000 mm away"),
    "rows and columns swapped": (CT_SEG, _transpose, "frame 1 does not lie on its source image: pixel (row 0"),
    "pixels of another size": (
        CT_SEG,
        lambda seg: setattr(_shared(seg).PixelMeasuresSequence[0], "PixelSpacing", ["0.75", "0.8"]),
        "mm away",
    ),
    "other frame of reference": (CT_SEG, _set("FrameOfReferenceUID", "1.2.3"), "another frame of reference"),
    "other ultrasound spacing": (
        US_SEG,
        lambda seg: setattr(_shared(seg).PixelMeasuresSequence[0], "PixelSpacing", ["1", "1"]),
        "pixel spacing ('1', '1'), the image has ('0.25', '0.25')",
    ),
    "no shared measures": (
        US_SEG,
        lambda seg: delattr(_shared(seg), "PixelMeasuresSequence"),
        "OHIF shows a black page",
    ),
    "short pixels": (CT_SEG, lambda seg: setattr(seg, "PixelData", seg.PixelData[:-2]), "Pixel Data has"),
    "one pixel flipped": (CT_SEG, _flip_a_pixel, "segment 1 (Nodule 1) reads back as another mask"),
    "a frame lost": (CT_SEG, _lose_a_frame, "segment 2 (Nodule 2) reads back as another mask"),
    "segments misnumbered": (
        CT_SEG,
        lambda seg: setattr(seg.SegmentSequence[1], "SegmentNumber", 3),
        "segments are numbered [1, 3]",
    ),
    "frame without source": (
        CT_SEG,
        lambda seg: delattr(_frame(seg), "DerivationImageSequence"),
        "frame 1 does not say which image",
    ),
    "number changed": (CT_SR, _change_a_number, "the measurements of Nodule 1 read back otherwise"),
    "volume before contour": (CT_SR, _volume_first, "comes before the contour"),
    "no tracking identifier": (CT_SR, _drop_tracking, "lacks a Tracking Identifier"),
    "drawn outside": (CT_SR, _draw_outside, "draws outside its image"),
    "no coordinates": (US_SR, _drop_region, "has no coordinates; OHIF draws nothing"),
    "other segment": (CT_SR, _point_to_other_segment, "refers to a segment of another"),
    "evidence missing": (
        US_SR,
        lambda sr: setattr(sr.CurrentRequestedProcedureEvidenceSequence[0], "ReferencedSeriesSequence", []),
        "is referred to, but is not in the evidence",
    ),
    "a finding lost": (US_SR, lambda sr: _groups(sr).pop(0), "reads back with 0 findings instead of 1"),
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported(damage: str) -> None:
    sound, spoil, reason = DAMAGE[damage]
    case, segmentation = (CT, CT_SEG) if sound in (CT_SEG, CT_SR) else (US, US_SEG)
    spoilt = copy.deepcopy(sound)
    spoil(spoilt)
    segmentations = [spoilt] if sound.Modality == "SEG" else [segmentation]
    told = problems(spoilt, case.headers, findings=case.findings, segmentations=segmentations)
    assert any(reason in problem for problem in told), told


def test_reasons_tell_no_patient_values() -> None:
    spoilt = copy.deepcopy(CT_SEG)
    spoilt.PatientName = "Secret^Name"
    (problem,) = problems(spoilt, CT.headers)
    assert "Secret" not in problem
    assert "Test" not in problem

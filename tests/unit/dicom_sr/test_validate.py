"""The gate before sending: each damage is reported, in words that name it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_sr import Fault, Rejected, Written, check_objects, codes, encode
from dicom_sr.derived import Results
from dicom_sr.findings import Measurement, Picture
from dicom_sr.hydratable import hydratable
from dicom_sr.revision import rejection_note
from dicom_sr.source import headers_by_uid
from dicom_sr.validate import RULES, Rule, faults, problems
from tests.results import CASES, WHEN, ball, encoded, nodule, refs

CT, (CT_SEG, CT_SR) = encoded("ct_two")
CT_OHIF = hydratable(CT_SR, Results((CT_SEG,), CT_SR, headers_by_uid(CT.headers)))
US, (US_SEG, US_SR) = encoded("us_one")
BEFORE = Written("1.2.840.10008.5.1.4.1.1.88.33", "1.2.3", "1.2.4")
DRAWN = replace(CT.findings, pictures=(Picture(1, "where it looked", np.zeros((8, 9, 3), np.uint8)),))
(CT_SC,) = encode(DRAWN, CT.headers, when=WHEN)[2:]
CT_KO = rejection_note(CT_SR, [BEFORE])


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


def _transpose(seg: Dataset) -> None:
    item = _shared(seg).PlaneOrientationSequence[0]
    item.ImageOrientationPatient = [*item.ImageOrientationPatient[3:], *item.ImageOrientationPatient[:3]]


def _flip_a_pixel(seg: Dataset) -> None:
    seg.PixelData = bytes([seg.PixelData[0] ^ 1]) + seg.PixelData[1:]


def _change_a_number(sr: Dataset) -> None:
    number = next(item for item in _groups(sr)[0].ContentSequence if item.ValueType == "NUM")
    number.MeasuredValueSequence[0].NumericValue = "99"


def _renumber(seg: Dataset) -> None:
    """Segment 2 is called 3, by its frames too."""
    seg.SegmentSequence[1].SegmentNumber = 3
    for groups in seg.PerFrameFunctionalGroupsSequence:
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
            groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 3
            groups.FrameContentSequence[0].DimensionIndexValues[0] = 3


def _measures_per_frame(seg: Dataset) -> None:
    for groups in seg.PerFrameFunctionalGroupsSequence:
        groups.PixelMeasuresSequence = copy.deepcopy(_shared(seg).PixelMeasuresSequence)
    del _shared(seg).PixelMeasuresSequence


def _volume_first(sr: Dataset) -> None:
    groups = _groups(sr)
    groups.insert(0, groups.pop(2))


def _drop_outline(sr: Dataset) -> None:
    """A TID 1411 group with its segment alone."""
    group = _groups(sr)[0]
    group.ContentSequence = [item for item in group.ContentSequence if item.ValueType != "SCOORD"]
    for item in group.ContentSequence:
        if item.ValueType == "NUM" and "ContentSequence" in item:
            item.ContentSequence = [child for child in item.ContentSequence if child.ValueType != "SCOORD"]


def _drop_tracking(sr: Dataset) -> None:
    del _groups(sr)[1].ContentSequence[0]


def _draw_outside(sr: Dataset) -> None:
    outline = next(item for item in _groups(sr)[0].ContentSequence if item.ValueType == "SCOORD")
    outline.GraphicData = [500.0, 0.0, 1.0, 1.0]


def _drop_region(sr: Dataset) -> None:
    _drop_outline(sr)


def _point_to_other_segment(sr: Dataset) -> None:
    reference = next(i for i in _groups(sr)[0].ContentSequence if i.ValueType == "IMAGE").ReferencedSOPSequence[0]
    reference.ReferencedSegmentNumber = 2


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def _tree(sr: Dataset) -> Iterator[Dataset]:
    """Every content item below the root."""
    for item in sr.get("ContentSequence") or ():
        yield item
        yield from _tree(item)


def _first(sr: Dataset, kind: str) -> Dataset:
    return next(item for item in _tree(sr) if item.ValueType == kind)


def _without(*keywords: str) -> Callable[[Dataset], None]:
    def spoil(dataset: Dataset) -> None:
        for keyword in keywords:
            delattr(dataset, keyword)

    return spoil


def _swap_sources(seg: Dataset) -> None:
    """Frames keep their places and name each other's images."""
    first, last = _frame(seg), _frame(seg, 2)
    first.DerivationImageSequence, last.DerivationImageSequence = (
        last.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def _move_everything(seg: Dataset) -> None:
    """Every frame one slice up, its source with it: whole in itself, and in the wrong place."""
    uids = [str(image.SOPInstanceUID) for image in CT.images]
    above = dict(zip(uids, [*uids[1:], uids[0]], strict=True))
    for groups in seg.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID = above[source.ReferencedSOPInstanceUID]
        place = CT.images[uids.index(source.ReferencedSOPInstanceUID)]
        groups.PlanePositionSequence[0].ImagePositionPatient = place.ImagePositionPatient
    for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence:
        item.ReferencedSOPInstanceUID = above[item.ReferencedSOPInstanceUID]


def _share_a_macro(seg: Dataset) -> None:
    _frame(seg).PixelMeasuresSequence = _shared(seg).PixelMeasuresSequence


def _image_inferred(sr: Dataset) -> None:
    """highdicom's trap: an image INFERRED FROM an SCOORD."""
    _first(sr, "SCOORD").ContentSequence[0].RelationshipType = "INFERRED FROM"


def _drop_from_series(seg: Dataset) -> None:
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = seg.ReferencedSeriesSequence[
        0
    ].ReferencedInstanceSequence[1:]


def _other_series_in_evidence(sr: Dataset) -> None:
    sr.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def _split_series(seg: Dataset) -> None:
    """The images of one series under two items."""
    first = seg.ReferencedSeriesSequence[0]
    other = Dataset()
    other.SeriesInstanceUID = first.SeriesInstanceUID
    other.ReferencedInstanceSequence = first.ReferencedInstanceSequence[1:]
    first.ReferencedInstanceSequence = first.ReferencedInstanceSequence[:1]
    seg.ReferencedSeriesSequence = [first, other]


def _ohif_contour(sr: Dataset) -> None:
    """A plain contour group becomes one that OHIF measures again."""
    identifier = next(i for i in _groups(sr)[-1].ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "112039")
    identifier.TextValue = "Cornerstone3DTools@^0.1.0:PlanarFreehandROI:Mass"


def _comment_out(sr: Dataset) -> None:
    sr.ContentSequence = [
        i for i in sr.ContentSequence if i.get("TextValue") != "Research use only, not for diagnostic use."
    ]


def _fractional(seg: Dataset) -> None:
    seg.SegmentationType = "FRACTIONAL"
    seg.SegmentationFractionalType = "PROBABILITY"
    seg.MaximumFractionalValue = 1


def _frames_without_segment(seg: Dataset) -> None:
    """A segment more than there are frames of."""
    extra = copy.deepcopy(seg.SegmentSequence[0])
    extra.SegmentNumber, extra.SegmentLabel = 3, "Nodule 3"
    seg.SegmentSequence.append(extra)


def _code(dataset: Dataset, keyword: str, value: str) -> None:
    setattr(dataset.ConceptNameCodeSequence[0], keyword, value)


# what is done: (to which sound object, how, the rule that must say so, words of the reason)
DAMAGE: dict[str, tuple[Dataset, Callable[[Dataset], None], str, str]] = {
    "other sop class": (CT_SR, _set("SOPClassUID", "1.2.840.10008.5.1.4.1.1.88.22"), "sop class", "none that we write"),
    # one missing attribute for every module of both kinds
    "no sex": (CT_SEG, _without("PatientSex"), "module patient", "PatientSex is missing (type 2)"),
    "no study id": (CT_SR, _without("StudyID"), "module general-study", "StudyID is missing (type 2)"),
    "no modality": (CT_SEG, _without("Modality"), "module general-series", "Modality is missing (type 1)"),
    "no series number": (CT_SEG, _without("SeriesNumber"), "module segmentation-series", "SeriesNumber is missing"),
    "no manufacturer": (CT_SR, _without("Manufacturer"), "module general-equipment", "Manufacturer is missing"),
    "empty software": (CT_SEG, _set("SoftwareVersions", ""), "module enhanced-general-equipment", "has no value"),
    "no instance number": (CT_SEG, _without("InstanceNumber"), "module general-image", "InstanceNumber is missing"),
    "no rows": (CT_SEG, _without("Rows"), "module image-pixel", "Rows is missing"),
    "no lossy flag": (CT_SEG, _without("LossyImageCompression"), "module segmentation-image", "LossyImageCompression"),
    "segment without algorithm type": (
        CT_SEG,
        lambda seg: delattr(seg.SegmentSequence[1], "SegmentAlgorithmType"),
        "module segmentation-image",
        "SegmentSequence[2].SegmentAlgorithmType is missing (type 1)",
    ),
    "no dimension organization": (
        CT_SEG,
        _without("DimensionOrganizationSequence"),
        "module multi-frame-dimension",
        "DimensionOrganizationSequence is missing",
    ),
    "maker without purpose": (
        CT_SEG,
        lambda seg: delattr(seg.ContributingEquipmentSequence[0], "PurposeOfReferenceCodeSequence"),
        "module sop-common",
        "ContributingEquipmentSequence[1].PurposeOfReferenceCodeSequence is missing",
    ),
    "no performed step": (
        CT_SR,
        _without("ReferencedPerformedProcedureStepSequence"),
        "module sr-document-series",
        "ReferencedPerformedProcedureStepSequence is missing (type 2)",
    ),
    "no performed procedure": (
        CT_SR,
        _without("PerformedProcedureCodeSequence"),
        "module sr-document-general",
        "PerformedProcedureCodeSequence is missing (type 2)",
    ),
    "no reason": (
        CT_KO,
        _without("ConceptNameCodeSequence"),
        "content items",
        "content item 1 (CONTAINER) has no concept name",
    ),
    "nothing named": (
        CT_KO,
        _without("CurrentRequestedProcedureEvidenceSequence"),
        "module key-object-document",
        "CurrentRequestedProcedureEvidenceSequence is missing (type 1)",
    ),
    "note without modality": (
        CT_KO,
        _without("Modality"),
        "module key-object-document-series",
        "Modality is missing (type 1)",
    ),
    "no completion flag": (
        CT_SR,
        _without("CompletionFlag"),
        "module sr-document-general",
        "CompletionFlag is missing",
    ),
    "evidence of nothing": (
        US_SR,
        lambda sr: setattr(sr.CurrentRequestedProcedureEvidenceSequence[0], "ReferencedSeriesSequence", []),
        "module sr-document-general",
        "ReferencedSeriesSequence has no value (type 1)",
    ),
    "no position reference": (
        CT_SEG,
        _without("PositionReferenceIndicator"),
        "module frame-of-reference",
        "PositionReferenceIndicator is missing (type 2)",
    ),
    # the other rules
    "wrong patient": (CT_SEG, _set("PatientID", "OTHER"), "same patient and study", "PatientID is not the sources'"),
    "wrong study": (CT_SR, _set("StudyDate", "19990101"), "same patient and study", "StudyDate is not the sources'"),
    "bad uid": (CT_SR, _set("SeriesInstanceUID", "2.25.0123"), "uids", "SeriesInstanceUID 2.25.0123 is not a UID"),
    "long uid": (CT_SR, _set("SeriesInstanceUID", "2.25." + "1" * 60), "uids", "is not a UID"),
    "long description": (
        CT_SR,
        _set("SeriesDescription", "x" * 65),
        "values",
        "SeriesDescription is no value of VR LO",
    ),
    "code without meaning": (
        CT_SR,
        lambda sr: delattr(_first(sr, "CODE").ConceptCodeSequence[0], "CodeMeaning"),
        "codes",
        "has no CodeMeaning",
    ),
    "retired code": (
        CT_SR,
        lambda sr: setattr(_groups(sr)[0].ContentSequence[2].ConceptCodeSequence[0], "CodingSchemeDesignator", "SRT"),
        "codes",
        "retired scheme SRT",
    ),
    "other character set": (CT_SR, _set("SpecificCharacterSet", "ISO_IR 100"), "character set", "not ISO_IR 192"),
    "file meta": (
        CT_SR,
        lambda sr: setattr(sr.file_meta, "MediaStorageSOPInstanceUID", "1.2.3"),
        "file meta information",
        "names another SOP Instance UID",
    ),
    "frame without place": (
        CT_SEG,
        lambda seg: delattr(_frame(seg), "PlanePositionSequence"),
        "functional groups",
        "frame 1: PlanePositionSequence has no ImagePositionPatient",
    ),
    "macro twice": (CT_SEG, _share_a_macro, "functional groups", "PixelMeasuresSequence of frame 1 is both shared"),
    "number without unit": (
        CT_SR,
        lambda sr: delattr(_first(sr, "NUM").MeasuredValueSequence[0], "MeasurementUnitsCodeSequence"),
        "content items",
        "has no number, or no unit",
    ),
    "attribute of another object": (CT_SR, _set("KVP", "120"), "attributes of the object", "KVP belongs to no module"),
    "dangling reference": (
        CT_SR,
        lambda sr: setattr(_first(sr, "IMAGE").ReferencedSOPSequence[0], "ReferencedSOPInstanceUID", "1.2.3"),
        "references",
        "refers to 1.2.3, which is none of the sources",
    ),
    "wrong class": (
        CT_SEG,
        lambda seg: setattr(_source(seg), "ReferencedSOPClassUID", "1.2.840.10008.5.1.4.1.1.4"),
        "references",
        "as another SOP Class",
    ),
    "frame that is not there": (
        US_SEG,
        lambda seg: setattr(_source(seg), "ReferencedFrameNumber", 2),
        "references",
        "refers to frame 2",
    ),
    "segments misnumbered": (CT_SEG, _renumber, "segment numbers", "segments are numbered [1, 3]"),
    "segment without tracking": (
        CT_SEG,
        lambda seg: delattr(seg.SegmentSequence[0], "TrackingID"),
        "segments are tracked",
        "segment 1: TrackingID has no value",
    ),
    "long pixels": (
        CT_SEG,
        lambda seg: setattr(seg, "PixelData", seg.PixelData + bytes(2)),
        "pixel data",
        "Pixel Data has",
    ),
    "segment without frames": (CT_SEG, _frames_without_segment, "frames are of segments", "segment 3 has no frame"),
    "same index twice": (
        CT_SEG,
        lambda seg: setattr(_frame(seg, 1).FrameContentSequence[0], "DimensionIndexValues", [1, 1]),
        "dimensions",
        "frame 2 has the Dimension Index Values (1, 1)",
    ),
    "wrong relationship": (CT_SR, _image_inferred, "relationships", "SCOORD INFERRED FROM IMAGE is not allowed"),
    "verified by nobody": (CT_SR, _set("VerificationFlag", "VERIFIED"), "flags", "nobody has verified"),
    "no disclaimer": (CT_SR, _comment_out, "research use only", "does not say"),
    "predecessor not named": (CT_SR, lambda sr: None, "predecessors", "it replaces 1.2.3, but does not name it"),
    "no evidence": (
        CT_SR,
        _without("CurrentRequestedProcedureEvidenceSequence"),
        "evidence",
        "is referred to, but is not in the evidence",
    ),
    "frame without source": (
        US_SEG,
        lambda seg: delattr(_frame(seg), "DerivationImageSequence"),
        "weasis: derivation of every frame",
        "frame 1 does not say which image",
    ),
    "no shared measures": (US_SEG, _measures_per_frame, "ohif: shared planes", "OHIF shows a black page"),
    "fractional": (CT_SEG, _fractional, "ohif, slicer: binary", "OHIF and Slicer read BINARY"),
    "in the series of the images": (
        CT_SEG,
        lambda seg: setattr(seg, "SeriesInstanceUID", CT.images[0].SeriesInstanceUID),
        "ohif: a series of its own",
        "shares its series",
    ),
    "other title": (CT_SR, lambda sr: _code(sr, "CodeValue", "126001"), "ohif: title", "OHIF reads 126000 only"),
    "image not among the referenced": (
        CT_SEG,
        _drop_from_series,
        "common instance reference",
        "is not in the Referenced",
    ),
    "two referenced series": (CT_SEG, _split_series, "ohif: one referenced series", "it refers to 2 series"),
    "sources swapped": (CT_SEG, _swap_sources, "ohif: on its image", "pixel (row 0, column 0) is 5.000 mm away"),
    "rows and columns swapped": (CT_SEG, _transpose, "ohif: on its image", "frame 1 does not lie on its source image"),
    "other frame of reference": (
        CT_SEG,
        _set("FrameOfReferenceUID", "1.2.3"),
        "ohif: on its image",
        "another frame of reference",
    ),
    "other ultrasound spacing": (
        US_SEG,
        lambda seg: setattr(_shared(seg).PixelMeasuresSequence[0], "PixelSpacing", ["1", "1"]),
        "ohif: on its image",
        "pixel spacing ('1', '1'), the image has ('0.25', '0.25')",
    ),
    "evidence in another series": (CT_SR, _other_series_in_evidence, "evidence", "is not in the evidence sequence"),
    "no tracking identifier": (CT_SR, _drop_tracking, "ohif: tracking", "lacks a Tracking Identifier"),
    "volume before contour": (CT_OHIF, _volume_first, "ohif: contour first", "nor has a group before it"),
    "volume without outline": (CT_SR, _drop_outline, "ohif: contour first", "has no outline"),
    "no coordinates": (US_SR, _drop_region, "ohif: coordinates", "has no coordinates; OHIF draws nothing"),
    "hydratable contour on ultrasound": (US_SR, _ohif_contour, "ohif: no area on ultrasound", "measure again, wrongly"),
    "drawn outside": (CT_SR, _draw_outside, "inside the image", "draws outside its image"),
    "other segment": (CT_SR, _point_to_other_segment, "tied to segments", "refers to a segment of another"),
    "two of one name": (
        CT_SEG,
        lambda seg: setattr(seg.SegmentSequence[1], "SegmentLabel", "Nodule 1"),
        "slicer: segment names",
        "several segments are called Nodule 1",
    ),
    "one pixel flipped": (
        CT_SEG,
        _flip_a_pixel,
        "geometry round trip",
        "segment 1 (Nodule 1) reads back as another mask",
    ),
    "one slice up": (CT_SEG, _move_everything, "geometry round trip", "its centroid 2.50 mm away"),
    "number changed": (CT_SR, _change_a_number, "says the same", "the measurements of Nodule 1 read back otherwise"),
    "how a picture was made": (CT_SC, _without("ConversionType"), "module sc-equipment", "ConversionType is missing"),
    "a picture without a scale": (CT_SC, _set("PixelSpacing", None), "module sc-image", "PixelSpacing has no value"),
    "a finding lost": (
        US_SR,
        lambda sr: _groups(sr).pop(0),
        "says the same",
        "reads back with 0 findings instead of 1",
    ),
}


def told(damage: str, rules: Sequence[Rule] = RULES) -> list[Fault]:
    sound, spoil, _, _ = DAMAGE[damage]
    case, segmentation = (US, US_SEG) if sound in (US_SEG, US_SR) else (CT, CT_SEG)
    spoilt = copy.deepcopy(sound)
    spoil(spoilt)
    return faults(
        spoilt,
        [_with(source, EMPTY_IN_SOURCE.get(damage)) for source in case.headers],
        findings=case.findings,
        segmentations=[spoilt] if sound.Modality == "SEG" else [segmentation],
        replaces=[BEFORE] if damage == "predecessor not named" or sound is CT_KO else [],
        rules=rules,
    )


# so that the object without it still agrees with its source
EMPTY_IN_SOURCE = {"no sex": "PatientSex", "no study id": "StudyID"}


def _with(source: Dataset, empty: str | None) -> Dataset:
    if empty is not None:
        setattr(source, empty, None)
    return source


IGNORE = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length", "ignore:Value length")


@IGNORE
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported(damage: str) -> None:
    _, _, rule, reason = DAMAGE[damage]
    found = told(damage)
    assert any(fault.rule == rule and reason in fault.text for fault in found), found


@IGNORE
@pytest.mark.parametrize("rule", sorted({rule for _, _, rule, _ in DAMAGE.values()}))
def test_no_other_rule_would_have_seen_it(rule: str) -> None:
    """The gate without this rule lets some damage through: each is needed. Modules overlap: they count as one."""
    family = rule.startswith("module ")
    rest = [each for each in RULES if each.name != rule and not (family and each.name.startswith("module "))]
    assert any(_is_missed(damage, rest) for damage, (_, _, by, _) in DAMAGE.items() if by == rule)


def _is_missed(damage: str, rules: Sequence[Rule]) -> bool:
    try:
        return told(damage, rules) == []
    except (AttributeError, KeyError, TypeError):  # a rule stumbles over what is gone: it does not name it
        return True


def test_every_rule_has_a_damage_that_it_catches() -> None:
    elsewhere = {"slicer: even planes", "volume as drawn", "uids of the images"}  # faults of findings or images; below
    assert {rule.name for rule in RULES} - {rule for _, _, rule, _ in DAMAGE.values()} == elsewhere


def test_uneven_slices_are_a_warning() -> None:
    case = CASES["ct_two"]()
    for image in case.images[5:]:
        image.ImagePositionPatient = [*image.ImagePositionPatient[:2], float(image.ImagePositionPatient[2]) + 1.0]
    finding = nodule(1, (3, 5, 8), ball(5, 6, 5), measurements=())
    _, found = check_objects(replace(case.findings, findings=(finding,)), case.headers, when=WHEN)
    assert [(fault.rule, fault.severity) for fault in found] == [("slicer: even planes", "warning")]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"])
def test_uids_of_the_images_that_break_the_rules_are_a_warning(keyword: str) -> None:
    """A reference must equal what it refers to; the same UID would be an error if it were ours."""
    case = CASES["ct_two"]()
    for number, image in enumerate(case.images):
        own = keyword == "SOPInstanceUID"
        setattr(image, keyword, f"1.2.826.0.1.007.{number:03d}" if own else "1.2.826.0.1.007")
    findings = replace(case.findings, images=refs(case.images))
    objects, found = check_objects(findings, case.headers, when=WHEN)
    assert {(fault.rule, fault.severity) for fault in found} == {("uids of the images", "warning")}
    spoilt = copy.deepcopy(objects[-1])
    spoilt.SOPInstanceUID = spoilt.file_meta.MediaStorageSOPInstanceUID = "1.2.007"
    assert any("1.2.007 is not a UID" in problem for problem in problems(spoilt, case.headers))


def test_a_volume_that_is_not_the_drawn_one_stops_the_report() -> None:
    case = CASES["ct_two"]()
    first, *others = case.findings.findings
    wrong = replace(first, measurements=(Measurement(codes.VOXEL_VOLUME, 10 * 85.0, codes.MM3),))
    with pytest.raises(Rejected) as refusal:
        encode(replace(case.findings, findings=(wrong, *others)), case.headers, when=WHEN)
    assert [fault.rule for fault in refusal.value.faults] == ["volume as drawn"]
    assert [dataset.Modality for dataset in refusal.value.objects] == ["SEG", "SR"]  # kept for inspection


def test_reasons_tell_no_patient_values() -> None:
    spoilt = copy.deepcopy(CT_SEG)
    spoilt.PatientName = "Secret^Name"
    (problem,) = problems(spoilt, CT.headers)
    assert "Secret" not in problem
    assert "Test" not in problem

"""Rules match any DICOM keyword, say the first reason of a non-match, and never start on our own results."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedSRStorage, ImplicitVRLittleEndian, SegmentationStorage

from config.schema import bad_condition
from pacs_node.route import ROUTINE, STAT, Rule, not_ours, priority_of, route
from tests.factories import ct_series, enhanced_ct, header, us_image


def rule(match: dict[str, Any], name: str = "chest") -> Rule:
    return Rule(name, match, "lung-nodule", ("pacs",))


CT = header(
    ct_series(
        shape=(1, 4, 4),
        SliceThickness="2.50",
        SeriesDescription=" Chest 1.0 B31f ",
        PatientAge="045Y",
        ContrastBolusAgent="",
    )[0]
)
US = header(us_image(shape=(8, 8)))
second = Dataset()
second.PhysicalUnitsXDirection, second.RegionDataType = 4, 3
US.SequenceOfUltrasoundRegions.append(second)


@pytest.mark.parametrize(
    "match",
    [
        {},
        {"Modality": "CT"},
        {"Modality": "ct "},
        {"Modality": ["PT", "CT"]},
        {"Modality": "CT", "BodyPartExamined": "chest"},
        {"SeriesDescription": "chest 1.0 b31F"},
        {"SeriesDescription": {"regex": "^chest"}},
        {"SeriesDescription": {"regex": "B31F$"}},
        {"ImageType": "AXIAL"},
        {"ImageType": ["LOCALIZER", "PRIMARY"]},
        {"ImageType": {"regex": "^PRIM"}},
        {"SliceThickness": 2.5},
        {"SliceThickness": "2.5"},
        {"SliceThickness": [1, 2.5]},
        {"SliceThickness": {"min": 2.5}},
        {"SliceThickness": {"max": 2.5}},
        {"SliceThickness": {"min": 2, "max": 3}},
        {"Rows": 4},
        {"Rows": "4"},
        {"PixelSpacing": {"max": 0.8}},
        {"ManufacturerModelName": {"present": True}},
        {"ContrastBolusAgent": {"absent": True}},
        {"ProtocolName": {"absent": True}},
        {"SOPClassUID": str(CTImageStorage)},
        {"PatientAge": {"min": 18}},
        {"PatientName": "test^patient"},
    ],
)
def test_what_matches(match: dict[str, Any]) -> None:
    assert rule(match).why_not(CT) is None


@pytest.mark.parametrize(
    "match",
    [
        {"SequenceOfUltrasoundRegions.PhysicalUnitsXDirection": 4},
        {"SequenceOfUltrasoundRegions.PhysicalUnitsXDirection": [1, 3]},
        {"SequenceOfUltrasoundRegions.RegionDataType": {"min": 2}},
        {"SequenceOfUltrasoundRegions": {"present": True}},
        {"SequenceOfUltrasoundRegions.TransducerFrequency": {"absent": True}},
        {"FrameOfReferenceUID": {"absent": True}},
    ],
)
def test_sequences_are_matched_by_a_dotted_path(match: dict[str, Any]) -> None:
    assert rule(match).why_not(US) is None


@pytest.mark.parametrize(
    ("match", "reason"),
    [
        ({"Modality": "MR"}, "Modality is CT, rule wants MR"),
        ({"Modality": ["MR", "PT"]}, "Modality is CT, rule wants MR or PT"),
        ({"ProtocolName": "lung"}, "ProtocolName is missing, rule wants lung"),
        ({"ContrastBolusAgent": {"present": True}}, "ContrastBolusAgent is missing, rule wants any value"),
        ({"ImageType": "LOCALIZER"}, "ImageType is ORIGINAL, PRIMARY, AXIAL, rule wants LOCALIZER"),
        ({"SeriesDescription": {"regex": "^1.0"}}, "SeriesDescription is Chest 1.0 B31f, rule wants /^1.0/"),
        ({"SliceThickness": {"max": 2}}, "SliceThickness is 2.50, rule wants at most 2"),
        ({"SliceThickness": {"min": 3}}, "SliceThickness is 2.50, rule wants at least 3"),
        ({"SliceThickness": {"min": 3, "max": 4}}, "SliceThickness is 2.50, rule wants 3 to 4"),
        ({"SeriesDescription": {"min": 3}}, "SeriesDescription is Chest 1.0 B31f, rule wants at least 3"),
        ({"SliceThickness": 3}, "SliceThickness is 2.50, rule wants 3"),
        ({"Modality": {"absent": True}}, "Modality is present, rule wants it absent"),
        ({"Modality": "CT", "Rows": 5, "Columns": 5}, "Rows is 4, rule wants 5"),
        (
            {"SequenceOfUltrasoundRegions.RegionDataType": 1},
            "SequenceOfUltrasoundRegions.RegionDataType is missing, rule wants 1",
        ),
        ({"PatientName": "Nobody^At^All"}, "PatientName differs from what the rule wants"),
        ({"PatientID": {"regex": "^X"}}, "PatientID differs from what the rule wants"),
        ({"PatientAge": {"max": 17}}, "PatientAge differs from what the rule wants"),
        ({"AccessionNumber": "Q"}, "AccessionNumber differs from what the rule wants"),
        ({"ReferringPhysicianName": "Q"}, "ReferringPhysicianName differs from what the rule wants"),
        ({"OtherPatientNames": "Q"}, "OtherPatientNames is missing, rule wants any value"),
    ],
)
def test_the_first_reason_of_a_non_match(match: dict[str, Any], reason: str) -> None:
    assert rule(match).why_not(CT) == reason


def enhanced(*, legacy: bool, shared: bool) -> Dataset:
    """The image of `CT` as an enhanced one of three frames, the kernel and kV in the groups of a scanner."""
    image = enhanced_ct(ct_series(shape=(3, 4, 4), SliceThickness="2.50"), legacy=legacy, shared=shared)
    if not legacy:
        groups = image.SharedFunctionalGroupsSequence if shared else image.PerFrameFunctionalGroupsSequence
        for number, group in enumerate(groups):
            reconstruction, rays = Dataset(), Dataset()
            reconstruction.ConvolutionKernel, rays.KVP = "B30f" if number == 0 else "B80f", "120"
            group.CTReconstructionSequence, group.CTXRayDetailsSequence = [reconstruction], [rays]
    return header(image)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "match",
    [
        {"SliceThickness": {"max": 3}},
        {"SliceThickness": 2.5},
        {"PixelSpacing": {"max": 0.8}},
        {"ConvolutionKernel": "b30f"},
        {"ConvolutionKernel": {"regex": "^B"}},
        {"ConvolutionKernel": ["B20f", "B30f"]},
        {"KVP": {"min": 80, "max": 140}},
        {"RescaleType": "HU"},
        {"WindowCenter": {"present": True}},
        {"ImagePositionPatient": {"present": True}},
        {"ContrastBolusAgent": {"absent": True}},
        {"Modality": "CT", "Rows": 4},
    ],
)
def test_an_enhanced_image_is_matched_by_what_its_frames_say(match: dict[str, Any], legacy: bool, shared: bool) -> None:
    """Nothing of a frame stands at the top of an enhanced image, PS3.3 C.7.6.16: no route would take it."""
    assert rule(match).why_not(enhanced(legacy=legacy, shared=shared)) is None


@pytest.mark.parametrize(
    ("match", "reason"),
    [
        ({"SliceThickness": {"max": 2}}, "SliceThickness is 2.50, rule wants at most 2"),
        ({"SliceThickness": {"absent": True}}, "SliceThickness is present, rule wants it absent"),
        ({"ConvolutionKernel": "B60f"}, "ConvolutionKernel is B30f, B80f, rule wants B60f"),
        ({"SpacingBetweenSlices": {"max": 2}}, "SpacingBetweenSlices is missing, rule wants at most 2"),
    ],
)
def test_and_not_by_what_they_do_not_say(match: dict[str, Any], reason: str) -> None:
    assert rule(match).why_not(enhanced(legacy=False, shared=False)) == reason
    of_one = enhanced(legacy=False, shared=True)
    of_one.SpacingBetweenSlices = "1.5"  # at the top of an enhanced image it is of another object
    assert rule(match).why_not(of_one) == reason.replace("B30f, B80f", "B30f")


def test_a_value_that_cannot_be_read_is_a_reason() -> None:
    broken = header(CT)
    tag = broken["Rows"].tag
    broken[tag] = RawDataElement(tag, "US", 3, b"\1\2\3", 0, False, True)
    assert rule({"Rows": {"max": 3}}).why_not(broken) == "Rows cannot be read"


def test_every_rule_answers_in_order() -> None:
    rules = [rule({"Modality": "US"}, "breast"), rule({"Modality": "CT"}, "chest")]
    assert route(rules, CT) == [(rules[0], "Modality is CT, rule wants US"), (rules[1], None)]


def ours(**attributes: Any) -> Dataset:
    image = header(CT)
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def made_by(maker: str) -> Dataset:
    item = Dataset()
    item.Manufacturer = maker
    return item


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (ours(Manufacturer="pacs-node"), "made by pacs-node itself"),
        (ours(Manufacturer="PACS-Node "), "made by pacs-node itself"),
        (ours(ContributingEquipmentSequence=[made_by("Vendor"), made_by("pacs-node")]), "made by pacs-node itself"),
        (ours(Modality="SEG"), "Modality is SEG"),
        (ours(Modality="SR"), "Modality is SR"),
        (ours(Modality="KO"), "Modality is KO"),
        (ours(Modality="PR"), "Modality is PR"),
        (ours(Modality="OT", SOPClassUID=SegmentationStorage), "is a segmentation or registration"),
        (ours(Modality="OT", SOPClassUID=EnhancedSRStorage), "is a structured report or key object"),
    ],
)
def test_results_never_start_a_pipeline_whatever_the_rules_say(result: Dataset, reason: str) -> None:
    assert not_ours(result) == f"{reason}; results never start a pipeline"
    assert route([rule({})], result)[0][1] == f"{reason}; results never start a pipeline"


def test_source_images_pass_the_loop_guard() -> None:
    assert not_ours(CT) is None
    assert not_ours(US) is None
    assert not_ours(ours(ContributingEquipmentSequence=[made_by("Vendor")])) is None
    assert not_ours(Dataset()) is None


# Properties --------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(max_codepoint=126, min_codepoint=32, exclude_characters="\\"), max_size=12)
numbers = st.integers(-1000, 1000) | st.floats(-1000, 1000)
conditions = st.one_of(
    texts,
    numbers,
    st.lists(texts | numbers, min_size=1, max_size=3),
    st.fixed_dictionaries({}, optional={"min": st.integers(-9, 0), "max": st.integers(0, 9)}).filter(bool),
    st.sampled_from([{"absent": True}, {"present": True}, {"regex": "^a.*z$"}]),
)
TEXTS = ["SeriesDescription", "PatientName", "PatientID"]


@given(st.sampled_from(TEXTS), texts, conditions)
def test_every_condition_the_settings_accept_gets_an_answer(keyword: str, value: str, condition: Any) -> None:
    assert bad_condition(keyword, condition) is None
    image = Dataset()
    image.add_new(keyword, dictionary_VR(keyword), value)
    answer = rule({keyword: condition}).why_not(image)
    assert answer is None or answer.startswith(f"{keyword} ")


secrets = st.text("ABCDEFGHJKLMNPQR^", min_size=4, max_size=12).filter(lambda s: s.strip("^"))


@given(st.sampled_from(["PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "OtherPatientIDs"]), secrets)
def test_no_reason_shows_a_patient_value(keyword: str, secret: str) -> None:
    image = Dataset()
    image.add_new(keyword, "LO", secret)
    for condition in ("other", ["a", "b"], {"regex": "^nothing$"}, {"min": 1}, {"absent": True}):
        reason = rule({keyword: condition}).why_not(image)
        assert reason is not None
        assert secret not in reason
    absent = rule({keyword: secret}).why_not(Dataset())
    assert absent is not None
    assert secret not in absent


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.sampled_from(["SliceThickness", "KVP"]))
def test_numbers_match_themselves_however_they_are_written(number: float, keyword: str) -> None:
    image = Dataset()
    image.add_new(keyword, "DS", f"{number:.6f}"[:16])
    written = float(image[keyword].value)
    for condition in (written, str(written), [written], {"min": written}, {"max": written}):
        assert rule({keyword: condition}).why_not(image) is None
    assert rule({keyword: {"min": written + 1}}).why_not(image)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "^(a|a?)+$", "(.*a){25}$", "^([a-z]+)*$"])
def test_an_expression_takes_no_longer_than_its_text_is_long(pattern: str) -> None:
    """Each of these holds a backtracking engine for years; a sender chooses the text, an administrator the pattern."""
    header = Dataset()
    header.add_new("SeriesDescription", "UT", "a" * 63 + "!" + "a" * 60_000)
    assert rule({"SeriesDescription": {"regex": pattern}}).why_not(header)


@pytest.mark.parametrize("text", ["Größe", "GRÖSSE größe", "\udce4 größe", "größe\x00"])
def test_any_text_can_be_searched(text: str) -> None:
    header = Dataset()
    header.add_new("SeriesDescription", "UT", text)
    assert rule({"SeriesDescription": {"regex": "GRÖßE"}}).why_not(header) is None


MOST = {"SeriesDescription": 64, "StationName": 16, "ImageComments": 10240}


@pytest.mark.parametrize(("keyword", "most"), MOST.items())
def test_an_expression_sees_no_more_of_a_text_than_its_vr_allows(keyword: str, most: int) -> None:
    image = Dataset()
    setattr(image, keyword, " " + "a" * most + "b" * 60_000)
    assert rule({keyword: {"regex": f"^a{{{min(most, 900)}}}"}}).why_not(image) is None
    said = rule({keyword: {"regex": "b"}}).why_not(image)
    assert said is not None
    assert len(said) < 200


@pytest.mark.parametrize("condition", ["x", ["x", "y"], {"regex": "x"}, {"min": 3}, 3])
def test_a_text_of_many_values_is_looked_through_and_not_all_told(condition: Any) -> None:
    image = Dataset()
    image.ImageType = ["b"] * 30_000
    said = rule({"ImageType": condition}).why_not(image)
    assert said is not None
    assert said.startswith("ImageType is b, b, b, b, b, b, b, b and 29992 more, rule wants")
    text = "\\".join(["b"] * 300_000)
    image["ImageType"] = DataElement(0x00080008, "CS", text, already_converted=True)  # pydicom would look at each value
    image = pydicom.dcmread(in_a_file(image))
    assert rule({"ImageType": condition}).why_not(image) == "ImageType has 600000 bytes; at most 524288 are read"


def in_a_file(image: Dataset) -> BytesIO:
    image.SOPClassUID, image.SOPInstanceUID, image.file_meta = CTImageStorage, "1.2", FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = BytesIO()
    image.save_as(file, enforce_file_format=True)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("said", "requested", "priority"),
    [
        ("", (), 5),
        ("STAT", (), 1),
        ("stat ", (), 1),
        ("HIGH", (), 3),
        ("MEDIUM", (), 5),
        ("LOW", (), 7),
        ("SOON", (), 5),
        ("", ("LOW", "HIGH"), 3),
        ("LOW", ("STAT",), 1),
    ],
)
def test_the_images_say_what_was_requested_where_the_rule_says_routine(
    said: str, requested: tuple[str, ...], priority: int
) -> None:
    """PS3.3 C.4.11: the words of Requested Procedure Priority."""
    image = Dataset()
    image.RequestedProcedurePriority = said
    requests = [Dataset() for _ in requested]
    for item, words in zip(requests, requested, strict=True):
        item.RequestedProcedurePriority = words
    image.RequestAttributesSequence = requests
    assert priority_of(rule({}), image) == priority
    assert priority_of(Rule("r", {}, "p", (), priority=STAT), image) == STAT
    assert priority_of(rule({}), Dataset()) == ROUTINE

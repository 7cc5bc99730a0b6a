"""Whose the objects are, what they are called, and what cannot be written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage

from dicom_sr import EncodingError, codes, encode
from dicom_sr.findings import Algorithm, Evaluation, ImageRef, Picture
from dicom_sr.header import series_description
from dicom_sr.importance import renumber
from dicom_sr.seg import segmentations
from dicom_sr.uids import device_uid, result_uid
from dicom_sr.validate import problems
from tests.factories import ct_series, header, us_image
from tests.results import CASES, WHEN, Case, ct_findings, encoded, mass, nodule, us_findings


def written(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def objects(case: Case, **arguments: object) -> list[Dataset]:
    return encode(case.findings, case.headers, **{"when": WHEN, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_equal_arguments_give_equal_bytes(name: str) -> None:
    first = [written(dataset) for dataset in encoded(name)[1]]
    again = CASES[name]()
    again.images.reverse()  # the order of the sources is nobody's business
    assert [written(dataset) for dataset in objects(again)] == first


def test_segmentations_come_before_the_report() -> None:
    assert [dataset.Modality for dataset in objects(CASES["us_several"]())] == ["SEG", "SEG", "SR"]
    assert [dataset.Modality for dataset in objects(CASES["ct_nothing"]())] == ["SR"]


def test_each_object_has_a_series_of_its_own_in_the_study_of_the_source() -> None:
    case = CASES["us_several"]()
    made = objects(case)
    assert len({dataset.SeriesInstanceUID for dataset in made} | {case.images[0].SeriesInstanceUID}) == 4
    assert {dataset.StudyInstanceUID for dataset in made} == {case.images[0].StudyInstanceUID}
    assert [dataset.SeriesNumber for dataset in made] == [9100, 9101, 9200]


def test_another_revision_version_or_pipeline_has_other_uids() -> None:
    case = CASES["ct_two"]()
    newer = replace(case.findings, algorithm=Algorithm("pacs-node lung-nodule", "0.2.0+99999999"))
    other = replace(case.findings, pipeline="lymph-node")
    made = [
        *objects(case),
        *objects(case, revision=2),
        *objects(Case(newer, case.images)),
        *objects(Case(other, case.images)),
    ]
    assert len({dataset.SOPInstanceUID for dataset in made}) == 8
    assert len({dataset.SeriesInstanceUID for dataset in made}) == 8
    assert {s.TrackingUID for d in made if d.Modality == "SEG" for s in d.SegmentSequence}.__len__() == 8


def test_one_tracking_uid_ties_segment_and_measurements() -> None:
    segmentation, report = objects(CASES["ct_two"]())
    in_report = {element.value for element in report.iterall() if element.keyword == "UID"}
    for segment in segmentation.SegmentSequence:
        assert segment.TrackingUID in in_report


def test_uids_are_valid_and_derived() -> None:
    uid = result_uid("1.2.3", "lung-nodule", "0.1.0", 1, "seg")
    assert uid == result_uid("1.2.3", "lung-nodule", "0.1.0", 1, "seg")
    assert UID(uid).is_valid
    assert uid.startswith("2.25.")
    others = {
        result_uid("1.2.4", "lung-nodule", "0.1.0", 1, "seg"),
        result_uid("1.2.3", "lung-nodul", "e0.1.0", 1, "seg"),
        result_uid("1.2.3", "lung-nodule", "0.1.0", 2, "seg"),
        result_uid("1.2.3", "lung-nodule", "0.1.0", 1, "sr"),
        result_uid("1.2.3", "lung-nodule", "0.1.0", 1, "seg", 1),
        device_uid("1.2.3", "lung-nodule", "0.1.0"),
    }
    assert len(others - {uid}) == 6


# The name as the scanner stored it: character set, bytes of the name, what a reader must see.
NAMES = {
    "ISO_IR 6": (None, b"Smith^John", "Smith^John"),
    "Latin-1": ("ISO_IR 100", "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen"),
    "Cyrillic": ("ISO_IR 144", "Люкceмбypг^Пётр".encode("iso8859_5"), "Люкceмбypг^Пётр"),
    "Greek": ("ISO_IR 126", "Διονυσιος".encode("iso8859_7"), "Διονυσιος"),
    "Japanese": (  # PS3.5 H.3.1
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\033$B;3ED\033(B^\033$BB@O:\033(B=\033$B$d$^$@\033(B^\033$B$?$m$&\033(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "Korean": ("\\ISO 2022 IR 149", b"Hong^Gildong=\033$)C\373\363^\033$)C\321\316\324\327", "Hong^Gildong=洪^吉洞"),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小东".encode(), "Wang^XiaoDong=王^小东"),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
}


def image_with_raw_name(character_set: str | None, name: bytes) -> Dataset:
    """A file whose PatientName holds these bytes, read back from the bytes of the file."""
    placeholder = "#" * len(name)
    image = us_image(SpecificCharacterSet=character_set, PatientName=placeholder, StudyDescription=placeholder)
    raw = written(image).replace(placeholder.encode(), name)
    return pydicom.dcmread(BytesIO(raw), stop_before_pixels=True)


@pytest.mark.filterwarnings("ignore:Value length")
@pytest.mark.parametrize("language", NAMES)
def test_names_survive_in_every_character_set(language: str) -> None:
    character_set, name, meant = NAMES[language]
    image = image_with_raw_name(character_set, name)
    for dataset in encode(us_findings([image], mass(1, (0, 12, 20))), [image], when=WHEN):
        raw = written(dataset)
        assert meant.encode("utf-8") in raw
        back = pydicom.dcmread(BytesIO(raw))
        assert back.SpecificCharacterSet == "ISO_IR 192"
        assert str(back.PatientName) == meant


def test_nested_texts_survive_too() -> None:
    issuer, other = Dataset(), Dataset()
    other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID = "77", "Größe", "TEXT"
    issuer.UniversalEntityID, issuer.UniversalEntityIDType = "1.2.3", "ISO"
    image = us_image(OtherPatientIDsSequence=[other], IssuerOfPatientIDQualifiersSequence=[issuer])
    image = pydicom.dcmread(BytesIO(written(image)), stop_before_pixels=True)
    (dataset,) = segmentations(us_findings([image], mass(1, (0, 12, 20))), [image], when=WHEN)  # before any check
    back = pydicom.dcmread(BytesIO(written(dataset)))
    assert back.OtherPatientIDsSequence[0].IssuerOfPatientID == "Größe"


def test_study_and_patient_are_copied_and_empty_where_the_source_has_none() -> None:
    case = CASES["ct_two"]()
    for image in case.images:
        del image.PatientID, image.AccessionNumber
        image.PatientAge = "066Y"
    for dataset in objects(case):
        assert dataset.PatientName == "Test^Patient"
        assert dataset.PatientAge == "066Y"
        assert (dataset.StudyDate, dataset.StudyTime, dataset.StudyID) == ("20260301", "101500", "S1")
        for keyword in ("PatientID", "AccessionNumber"):
            assert keyword in dataset
            assert not dataset[keyword].value


def test_dates_come_from_when_on_the_clock_of_the_source() -> None:
    case = CASES["us_one"]()
    case.images[0].TimezoneOffsetFromUTC = "+0530"
    utc = datetime(2026, 3, 1, 23, 0, 0, tzinfo=UTC)
    for dataset in objects(case, when=utc):
        assert (dataset.ContentDate, dataset.ContentTime) == ("20260302", "043000")
        assert dataset.TimezoneOffsetFromUTC == "+0530"
    later = objects(case, when=utc + timedelta(days=1))
    assert {dataset.SeriesDate for dataset in later} == {"20260303"}


def test_the_maker_is_named_where_readers_look() -> None:
    for dataset in objects(CASES["ct_two"]()):
        (contribution,) = dataset.ContributingEquipmentSequence
        assert contribution.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert "Processing Algorithm" in contribution.ContributionDescription
        for item in (dataset, contribution):
            assert item.ManufacturerModelName == "pacs-node lung-nodule"
            assert item.SoftwareVersions == item.DeviceSerialNumber == "0.1.0+1a2b3c4d"
        assert contribution.DeviceUID == device_uid("pacs-node", "pacs-node lung-nodule", "0.1.0+1a2b3c4d")
        assert b"Research use only, not for diagnostic use" in written(dataset)


def test_series_descriptions_begin_with_what_it_is() -> None:
    """A list of series shows some 25 characters; versions and hashes are in Software Versions."""
    assert series_description("pacs-node lung-nodule", "SEG", 1) == "AI lung nodules SEG"
    assert series_description("pacs-node breast-us", "SR", 2) == "AI breast lesions SR rev 2"
    assert series_description("somebody's model", "SR", 1) == "AI somebody's model SR"
    long = series_description("a very long name of an algorithm indeed " * 3, "SR", 12)
    assert len(long) == 64
    assert long.startswith("AI a very")
    assert long.endswith(" SR rev 12")
    for dataset in objects(CASES["ct_two"]()):
        assert str(dataset.SeriesDescription)[:15] == "AI lung nodules"
        assert dataset.SoftwareVersions == "0.1.0+1a2b3c4d"


def test_lossy_sources_make_lossy_segmentations() -> None:
    image = us_image(
        LossyImageCompression="01", LossyImageCompressionRatio="12", LossyImageCompressionMethod="ISO_10918_1"
    )
    segmentation, _ = encode(us_findings([image], mass(1, (0, 12, 20))), [header(image)], when=WHEN)
    assert segmentation.LossyImageCompression == "01"
    assert segmentation.LossyImageCompressionRatio == 12


def test_what_cannot_be_written_is_refused_in_words() -> None:
    images = ct_series()
    headers = [header(image) for image in images]
    fine = nodule(1, (2, 5, 8))

    def reason(findings: object, sources: list[Dataset] = headers) -> str:
        with pytest.raises(EncodingError) as refusal:
            encode(findings, sources, when=WHEN)  # type: ignore[arg-type]
        return str(refusal.value)

    assert "have no header among the sources" in reason(ct_findings(images, fine), headers[1:])
    assert "name no images" in reason(ct_findings([]))
    empty = replace(fine, mask=np.zeros((1, 2, 2), dtype=bool))
    assert reason(ct_findings(images, empty)) == "finding 1 (Nodule 1) has an empty mask"
    outside = replace(fine, offset_zyx=(2, 30, 8))
    assert reason(ct_findings(images, outside)) == "finding 1 (Nodule 1) reaches over row 30..35; image 2 has 32"
    beyond = replace(fine, offset_zyx=(10, 5, 8))
    assert reason(ct_findings(images, beyond)) == "finding 1 (Nodule 1) reaches over images 10..12; there are 12"
    headers[3].StudyInstanceUID = "1.2.3"
    assert "2 different values of StudyInstanceUID" in reason(ct_findings(images, fine))


def test_a_clip_without_named_frames_is_one_image() -> None:
    """An ImageRef without a frame number is the whole instance; its first plane is not guessed."""
    image = us_image()
    findings = replace(
        us_findings([image], mass(1, (0, 12, 20))),
        images=(ImageRef(str(image.SOPClassUID), str(image.SOPInstanceUID)),),
    )
    segmentation, _ = encode(findings, [header(image)], when=WHEN)
    source = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert "ReferencedFrameNumber" not in source


def pictured() -> Case:
    case = CASES["ct_two"]()
    drawn = np.random.default_rng(1).integers(0, 255, (31, 47, 3)).astype(np.uint8)
    pictures = tuple(Picture(one.number, "where it looked", drawn) for one in case.findings.findings)
    return Case(replace(case.findings, pictures=pictures), case.images)


def test_what_a_pipeline_draws_comes_after_the_report_as_it_was_drawn() -> None:
    case = pictured()
    *others, first, second = objects(case)
    assert [each.Modality for each in others] == ["SEG", "SR"]
    assert [written(each) for each in others] == [written(each) for each in encoded("ct_two")[1]], (
        "nothing else changes"
    )
    for capture, finding, picture in zip((first, second), case.findings.findings, case.findings.pictures, strict=True):
        assert capture.SOPClassUID == SecondaryCaptureImageStorage
        assert capture.StudyInstanceUID == case.images[0].StudyInstanceUID
        assert (capture.PatientID, capture.PatientName) == (case.images[0].PatientID, case.images[0].PatientName)
        assert capture.ImageComments == f"{finding.label}: where it looked"
        np.testing.assert_array_equal(capture.pixel_array[: len(picture.pixels)], picture.pixels)  # words are below
        key = case.findings.images[finding.key_image]
        assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == key.sop_instance_uid
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert len({each.SOPInstanceUID for each in (*others, first, second)}) == 4
    assert [written(each) for each in objects(pictured())] == [written(each) for each in (*others, first, second)]


def test_pictures_follow_their_findings_when_those_are_numbered_anew() -> None:
    """As a comparison with an earlier study does: what grew comes first."""
    case = pictured()
    first, second = case.findings.findings
    drawn = {one.number: np.full((9, 9, 3), 50 * one.number, np.uint8) for one in (first, second)}
    pictures = tuple(Picture(number, "where it looked", pixels) for number, pixels in drawn.items())
    grew = replace(second, evaluations=(Evaluation(codes.QUALITATIVE_DIFFERENCE, codes.INCREASE_IN_SIZE),))
    result = renumber(replace(case.findings, findings=(first, grew), pictures=pictures))
    assert [one.offset_zyx for one in result.findings] == [second.offset_zyx, first.offset_zyx]
    assert [one.finding for one in result.pictures] == [1, 2]
    assert [int(one.pixels[0, 0, 0]) for one in result.pictures] == [100, 50]


def test_a_picture_of_lossy_images_says_so() -> None:
    case = pictured()
    for image in case.images:
        image.LossyImageCompression, image.LossyImageCompressionRatio = "01", "8.5"
        image.LossyImageCompressionMethod = "ISO_10918_1"
    *_, capture = objects(case)
    assert capture.LossyImageCompression == "01"


def test_a_picture_of_another_patient_would_not_leave() -> None:
    case = pictured()
    *_, capture = objects(case)
    assert problems(capture, case.headers) == []
    capture.PatientID = "another"
    assert any("PatientID" in each for each in problems(capture, case.headers))

"""What a result copies of its source: equal where it must be, else mended or left out, and said. No letter is lost."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_sr import check_objects
from dicom_sr.copies import ITEMS, MUST_BE_EQUAL, copied, describe_copied, remarks
from tests.copies import ODD, item, say
from tests.factories import us_image
from tests.results import WHEN, mass, us_findings

# keyword, VR, bytes as a writer has them, what the result says ("": left out, or empty), is it said
BAD = [
    ("PatientAge", "AS", b"66", "", True),
    ("PatientAge", "AS", b"unknown ", "", True),
    ("PatientSex", "CS", b"Female", "Female", True),
    ("PatientBirthDate", "DA", b"1960-01-01", "1960-01-01", True),
    ("StudyDate", "DA", b"2026.01.01", "2026.01.01", True),
    ("StudyTime", "TM", b"12:00:00", "12:00:00", True),
    ("AccessionNumber", "SH", b"ACC-2026-0101-0000-0000-1 ", "ACC-2026-0101-0000-0000-1", True),
    ("PatientWeight", "DS", b"70 kg ", "", True),
    ("PatientSize", "DS", b"1,75", "", True),
    ("PatientSize", "DS", b"1.75", "1.75", False),
    ("PatientID", "LO", b"BUG\\10", "BUG\\10", True),
    ("TimezoneOffsetFromUTC", "SH", b"+0100 ", "+0100", False),
    ("StudyDescription", "LO", b"Chest\rroutine", "Chest routine", True),
    ("StudyDescription", "LO", b"x" * 70, "x" * 64, True),
    ("DeidentificationMethod", "LO", b"by hand ", "by hand", False),
    ("IssuerOfPatientID", "LO", b"y" * 70, "y" * 70, True),
    ("PatientWeight", "FD", b"\0\0\0\0\0\x80Q@", "70.0", False),
    ("PatientWeight", "SQ", b"garbage!", "", True),
]


def source(keyword: str, vr: str, data: bytes, charset: str | None = "ISO_IR 100") -> Dataset:
    image = us_image()
    if charset is None:
        del image.SpecificCharacterSet
    else:
        image.SpecificCharacterSet = charset.split("\\")
    tag = Tag(keyword)
    image.pop(tag, None)
    image._dict[tag] = RawDataElement(tag, vr, len(data), data, 0, False, True)
    return image


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("keyword", "vr", "data", "meant", "told"), BAD)
def test_a_bad_copy_holds_no_result_back(keyword: str, vr: str, data: bytes, meant: str, told: bool) -> None:
    image = source(keyword, vr, data)
    findings = us_findings([image], mass(1, (0, 10, 10)))
    objects, found = check_objects(findings, [image], when=WHEN)
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        back = pydicom.dcmread(BytesIO(buffer.getvalue()))
        assert describe_copied(back, keyword) == meant
    assert any(keyword in fault.text for fault in found) == told
    assert all(fault.severity == "warning" for fault in found)
    assert not any(data.decode("latin-1").strip() in fault.text for fault in found if len(data) > 4)


NAMES = [  # Specific Character Set, bytes, the name; is it said
    ("ISO IR 192", "Müller^Jürgen".encode(), "Müller^Jürgen", False),
    ("ISO 2022 IR 100", "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen", False),
    ("GB18030", "誠^誠誤".encode("gb18030"), "誠^誠誤", False),
    (None, "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen", True),
    (None, b"Mueller^Juergen ", "Mueller^Juergen", False),
    ("ISO_IR 6", "Müller".encode(), "Müller", True),
    ("ISO 2022 IR 6\\IS", "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen", True),
    ("ISO_IR 100", "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen", False),
    ("ISO_IR 192", "Müller^Jürgen".encode("latin-1"), "Müller^Jürgen", True),
    (
        "ISO_IR 192",
        "Łukasz".encode("iso8859_2"),
        "£ukasz",
        True,
    ),  # wrong letters, but none is lost: they can be read again
    ("GB18030", b"Mueller^\xff\xfe", "Mueller^\xff\xfe", True),
    ("ISO_IR 100", b"Mueller\\Anna", "Mueller\\Anna", None),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("charset", "data", "name", "told"), NAMES)
def test_no_letter_of_a_name_is_lost(charset: str | None, data: bytes, name: str, told: bool | None) -> None:
    image = source("PatientName", "PN", data + b" " * (len(data) % 2), charset)
    objects, found = check_objects(us_findings([image], mass(1, (0, 10, 10))), [image], when=WHEN)
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        back = pydicom.dcmread(BytesIO(buffer.getvalue()))
        assert back.SpecificCharacterSet == "ISO_IR 192"
        assert describe_copied(back, "PatientName") == name
    if told is not None:
        assert any("PatientName" in fault.text and "character set" in fault.text for fault in found) == told


@pytest.mark.parametrize("name", ODD)
def test_what_breaks_its_module_holds_no_result_back_and_is_not_written(name: str) -> None:
    image = us_image()
    say([image], name)
    objects, found = check_objects(us_findings([image], mass(1, (0, 10, 10))), [image], when=WHEN)
    said, meant, told = ODD[name]
    for dataset in objects:
        for keyword in said:
            assert (keyword in dataset) == (keyword in meant), keyword
            assert keyword not in dataset or meant[keyword] == dataset[keyword].VM or len(dataset[keyword].value) > 1
    assert bool(found) == told, found
    assert all(fault.severity == "warning" for fault in found)


@pytest.mark.parametrize("keyword", ITEMS)
@pytest.mark.parametrize("data", [b"-1", b"n/a ", b"\1\2\3", b"a\x07b\r\n", b"\xfe\xff\x00\xe0\xff\x00\x00\x00"])
def test_a_sequence_that_is_cut_off_holds_no_result_back(keyword: str, data: bytes) -> None:
    image = source(keyword, "SQ", data)
    objects, found = check_objects(us_findings([image], mass(1, (0, 10, 10))), [image], when=WHEN)
    assert not any(keyword in dataset for dataset in objects)
    assert [fault.text for fault in found if keyword in fault.text]


@pytest.mark.parametrize(("charset", "data", "name", "told"), NAMES)
@pytest.mark.parametrize("own", [False, True])
def test_no_letter_of_an_item_is_lost(charset: str, data: bytes, name: str, told: bool | None, own: bool) -> None:
    """own: the item has a Specific Character Set of its own, PS3.5 7.5.3"""
    image, meant = source("PatientName", "PN", b"A ", "ISO_IR 6" if own else charset), item(CodeValue="1")
    meant.CodingSchemeDesignator, tag = "99A", Tag("CodeMeaning")
    meant._dict[tag] = RawDataElement(tag, "LO", len(data), data, 0, False, True)
    if own and charset is not None:
        meant.SpecificCharacterSet = charset.split("\\")
    image.ProcedureCodeSequence = [meant]
    objects, found = check_objects(us_findings([image], mass(1, (0, 10, 10))), [image], when=WHEN)
    for dataset in objects:
        buffer = BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        (back,) = pydicom.dcmread(BytesIO(buffer.getvalue())).ProcedureCodeSequence
        assert describe_copied(back, "CodeMeaning") == name
    if told is not None:
        assert any("CodeMeaning" in fault.text and "character set" in fault.text for fault in found) == told


def test_what_is_sound_is_nothing_to_say() -> None:
    assert remarks(us_image()) == []
    element, remark = copied(us_image(), "PatientID")
    assert element is not None
    assert (element.value, remark) == ("TEST-1", None)


@pytest.mark.parametrize("keyword", MUST_BE_EQUAL)
def test_what_must_be_equal_is_written_even_if_the_source_has_none(keyword: str) -> None:
    image = us_image()
    if keyword == "StudyInstanceUID":
        return  # without one nothing is received
    if keyword in image:
        delattr(image, keyword)
    element, remark = copied(image, keyword)
    assert remark is None
    assert (element is None) == (keyword == "IssuerOfPatientID")
    assert not describe_copied(image, keyword)


def test_the_ratio_of_a_lossy_image_is_copied_as_a_number_or_not_at_all() -> None:
    for written, meant, told in ((b"10", "10", False), (b"10:1", None, True), (b"8\\2.5 ", ["8", "2.5"], False)):
        image = source("LossyImageCompressionRatio", "DS", written)
        image.LossyImageCompression, image.LossyImageCompressionMethod = "01", "ISO_10918_1"
        findings = replace(us_findings([image], mass(1, (0, 10, 10))))
        (segmentation, *_), found = check_objects(findings, [image], when=WHEN)
        assert segmentation.LossyImageCompression == "01"
        ratio = segmentation.get("LossyImageCompressionRatio")
        several = list(map(str, ratio)) if isinstance(meant, list) else None if ratio is None else str(ratio)
        assert several == meant
        assert any("LossyImageCompressionRatio" in fault.text for fault in found) == told

"""The header walk, against pydicom's reader and against every way a data set can be cut."""

from __future__ import annotations

import contextlib
import copy
import struct
import warnings
import zlib

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pacs_node.errors import NotReadable
from pacs_node.receive.header import Identity, elements, identify
from tests.factories import ct_series, us_image
from tests.unit.receive.conftest import encoded

EXPLICIT, IMPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in (".1", "", ".2", ".1.99"))
RLE = "1.2.840.10008.1.2.5"


def identity(image: Dataset) -> Identity:
    return Identity(image.SOPClassUID, image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID)


def deflate(data: bytes) -> bytes:
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return squeeze.compress(data) + squeeze.flush()


@pytest.fixture(scope="module")
def nested() -> Dataset:
    """An image with sequences of every kind: defined and undefined lengths, private, UN, nested."""
    image = ct_series(shape=(2, 8, 8))[0]
    item, inner = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-28000", "Lung"
    item.PurposeOfReferenceCodeSequence = Sequence([inner, inner])
    item.ReferencedSOPInstanceUID = "9.9.9"
    image.ReferencedImageSequence = Sequence([item, Dataset(), item])
    for sequence in (image["ReferencedImageSequence"], item["PurposeOfReferenceCodeSequence"]):
        sequence.is_undefined_length = True
    item.is_undefined_length_sequence_item = True
    image.SourceImageSequence = Sequence([inner])
    block = image.private_block(0x0009, "PACS NODE TEST", create=True)
    block.add_new(0x01, "UN", b"private")
    return image


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
def test_identity_in_every_encoding(nested: Dataset, syntax: str) -> None:
    data = encoded(nested, implicit=syntax == IMPLICIT, little=syntax != BIG)
    assert identify(deflate(data) if syntax == DEFLATED else data, syntax) == identity(nested)


def test_the_walk_sees_the_elements_pydicom_sees(nested: Dataset) -> None:
    for implicit, little in ((False, True), (True, True), (False, False)):
        data = encoded(nested, implicit, little)
        walked = list(elements(data, implicit=implicit, big_endian=not little))
        assert [tag for tag, _, _ in walked] == [element.tag for element in nested]
        assert walked[-1][1] + walked[-1][2] == len(data)


def test_encapsulated_frames_are_walked_over() -> None:
    image = us_image(frames=3, transfer_syntax=RLE)
    data = encoded(image)
    assert identify(data, RLE) == identity(image)
    with pytest.raises(NotReadable, match=r"cut off"):
        identify(data[:-4], RLE)  # half the sequence delimiter
    with pytest.raises(NotReadable, match=r"cut off"):
        identify(data[:-300], RLE)


def test_un_of_undefined_length_holds_implicit_elements(image: Dataset) -> None:
    """PS3.5 6.2.2: as a sender writes it that did not know the sequence."""
    inside = struct.pack("<HHL", 0x0008, 0x0104, 4) + b"Lung"
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + inside + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    unknown = struct.pack("<HH2sHL", 0x0019, 0x1001, b"UN", 0, 0xFFFFFFFF) + item
    unknown += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data = encoded(image)
    at = next(start for tag, start, _ in elements(data, implicit=False, big_endian=False) if tag > 0x00190000) - 8
    assert identify(data[:at] + unknown + data[at:], EXPLICIT) == identity(image)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_a_data_set_cut_off_anywhere_inside_an_element_is_refused(nested: Dataset, syntax: str) -> None:
    data = encoded(nested, implicit=syntax == IMPLICIT, little=syntax != BIG)
    walked = list(elements(data, implicit=syntax == IMPLICIT, big_endian=syntax == BIG))
    between = {start + length for _, start, length in walked}
    for length in range(1, len(data)):
        tail = min(length - end for end in between | {0} if end <= length)
        if tail < 8:  # between two elements, or in less than a header: it cannot be told from padding
            continue
        with pytest.raises(NotReadable):
            identify(data[:length], syntax)


def test_pixel_data_cut_off_names_the_element_and_the_bytes(image: Dataset) -> None:
    with pytest.raises(NotReadable, match=r"\(7FE0,0010\) at byte \d+ needs 512 bytes, 412 are there"):
        identify(encoded(image)[:-100], EXPLICIT)


def test_padding_after_the_pixels_is_let_go(image: Dataset) -> None:
    assert identify(encoded(image) + bytes(3), EXPLICIT) == identity(image)
    assert identify(encoded(image) + b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0", EXPLICIT) == identity(image)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello, this is not DICOM at all, sorry", "no value representation|cut off"),
        (bytes(128) + b"DICM", "no value representation"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "no value representation|cut off"),
        (bytes(7), "no SOP Class UID and no SOP Instance UID"),
    ],
)
def test_not_dicom(data: bytes, words: str) -> None:
    with pytest.raises(NotReadable, match=words):
        identify(data, EXPLICIT)


def test_not_deflated() -> None:
    with pytest.raises(NotReadable, match="inflated"):
        identify(b"\xff" * 100, DEFLATED)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_each_uid_is_needed(image: Dataset, keyword: str) -> None:
    name = pydicom.datadict.dictionary_description(keyword)
    lacking = copy.deepcopy(image)
    del lacking[keyword]
    with pytest.raises(NotReadable, match=f"no {name}"):
        identify(encoded(lacking), EXPLICIT)


@pytest.mark.parametrize("value", ["", "not.a.uid", "1.2.3/../../etc", "1" * 65, "1.2\\1.3"])
def test_what_is_no_uid(image: Dataset, value: str) -> None:
    spoilt = copy.deepcopy(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoilt.SeriesInstanceUID = value
        with pytest.raises(NotReadable, match="Series Instance UID is not a UID"):
            identify(encoded(spoilt), EXPLICIT)


def test_endless_nesting_is_refused(image: Dataset) -> None:
    deep = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    deep += (struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + deep) * 5000
    with pytest.raises(NotReadable, match="nested deeper than 64"):
        identify(deep, EXPLICIT)


@given(st.binary(max_size=400), st.sampled_from([EXPLICIT, IMPLICIT, BIG, DEFLATED, RLE]))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_else(data: bytes, syntax: str) -> None:
    with pytest.raises(NotReadable):
        identify(data, syntax)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_flipped_byte_raises_anything_else(data_set: bytes, data: st.DataObject) -> None:
    spoilt = bytearray(data_set)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NotReadable):
        identify(bytes(spoilt), EXPLICIT)

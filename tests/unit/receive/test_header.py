"""The header walk, against pydicom's reader and against every way a data set can be cut."""

from __future__ import annotations

import contextlib
import copy
import struct
import warnings
import zlib
from io import BytesIO

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_sr import reading
from pacs_node.errors import NotReadable
from pacs_node.receive import header
from pacs_node.receive.header import Identity, elements, identify
from tests.factories import nested_image, us_image
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
    return nested_image()


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
    with pytest.raises(NotReadable, match=r"\(7FE0,0010\) PixelData at byte \d+ needs 512 bytes, 412 are there"):
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
        (bytes(7), "no SOPClassUID and no SOPInstanceUID"),
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
    lacking = copy.deepcopy(image)
    del lacking[keyword]
    with pytest.raises(NotReadable, match=f"no {keyword}"):
        identify(encoded(lacking), EXPLICIT)


@pytest.mark.parametrize("value", ["", "not.a.uid", "1.2.3/../../etc", "1" * 65, "1.2\\1.3"])
def test_what_is_no_uid(image: Dataset, value: str) -> None:
    spoilt = copy.deepcopy(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoilt.SeriesInstanceUID = value
        with pytest.raises(NotReadable, match="SeriesInstanceUID is not a UID"):
            identify(encoded(spoilt), EXPLICIT)


def test_endless_nesting_is_refused(image: Dataset) -> None:
    deep = struct.pack("<HH2sHL", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF)
    deep += (struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + deep) * 5000
    with pytest.raises(NotReadable, match="nested deeper than 64"):
        identify(deep, EXPLICIT)


# ---------------------------------------------------------------- what the Standard does not know and pydicom reads


def element(tag: int, vr: bytes, value: bytes, little: bool = True) -> bytes:
    """Explicit VR, with a length of four bytes where the Standard has one."""
    order = "<" if little else ">"
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF"):
        return head + struct.pack(order + "HL", 0, len(value)) + value
    return head + struct.pack(order + "H", len(value)) + value


def bare(tag: int, value: bytes, length: int | None = None, little: bool = True) -> bytes:
    """Implicit VR."""
    size = len(value) if length is None else length
    return struct.pack(("<" if little else ">") + "HHL", tag >> 16, tag & 0xFFFF, size) + value


def private_sequence(content: bytes, off: int = 0, item_off: int = 0, vr: bytes = b"SQ", defined: bool = True) -> bytes:
    """A private sequence of one item, its lengths wrong by `off` and `item_off`; undefined: closed by delimiters."""
    if not defined:
        inside = bare(0xFFFEE000, content, 0xFFFFFFFF) + bare(0xFFFEE00D, b"") + bare(0xFFFEE0DD, b"")
        return struct.pack("<HH2sHL", 0x0029, 0x1010, vr, 0, 0xFFFFFFFF) + inside
    inside = bare(0xFFFEE000, content, len(content) + item_off)
    return struct.pack("<HH2sHL", 0x0029, 0x1010, vr, 0, len(inside) + off) + inside


TEXT = b"some text "
OWNER = element(0x00290010, b"LO", b"PRIVATE ")
VRS = (b"\0\0", b"??", b"  ", b"un", b"Un", b"UN", b"OB", b"ZZ", b"O\0", b"--", b"LO", b"US", b"12")
ODDITIES: dict[str, bytes] = {
    "an implicit element": bare(0x00291011, TEXT),
    "an implicit element of odd length": bare(0x00291011, b"odd"),
    "an empty implicit element": bare(0x00291011, b""),
    "an implicit sequence": bare(0x00291010, bare(0xFFFEE000, bare(0x00291001, TEXT))),
    "an implicit sequence with delimiters": bare(
        0x00291010,
        bare(0xFFFEE000, bare(0x00291001, TEXT), 0xFFFFFFFF)[:8]
        + bare(0x00291001, TEXT)
        + bare(0xFFFEE00D, b"")
        + bare(0xFFFEE0DD, b""),
        0xFFFFFFFF,
    ),
    "implicit elements in an explicit sequence": private_sequence(bare(0x00291001, TEXT), defined=False),
    "implicit elements in a sequence of known length": private_sequence(bare(0x00291001, TEXT)),
    "UN of undefined length": private_sequence(bare(0x00291001, TEXT), vr=b"UN", defined=False),
    "UN of undefined length, explicit inside": private_sequence(
        element(0x00291001, b"LO", TEXT), vr=b"UN", defined=False
    ),
    "an item closed by the delimiter of the sequence": struct.pack("<HH2sHL", 0x0029, 0x1010, b"SQ", 0, 0xFFFFFFFF)
    + bare(0xFFFEE000, element(0x00291001, b"LO", TEXT), 0xFFFFFFFF)
    + bare(0xFFFEE0DD, b""),
    "a delimiter with a length": private_sequence(element(0x00291001, b"LO", TEXT), defined=False)[:-4] + b"\xff" * 4,
    "an odd length": element(0x00291013, b"LO", b"odd"),
    "a group length that lies": element(0x00290000, b"UL", struct.pack("<L", 12345678)),
    "an element twice": element(0x00080060, b"CS", b"CT") * 2,
    "nulls behind a text": element(0x00180015, b"CS", b"CHEST\0\0\0"),
    "padding inside": element(0xFFFCFFFC, b"OB", bytes(8)),
    "nulls inside": bytes(16),
    **{f"VR {vr!r}, long": struct.pack("<HH2sHL", 0x0029, 0x1012, vr, 0, len(TEXT)) + TEXT for vr in VRS},
    **{f"VR {vr!r}, short": struct.pack("<HH2sH", 0x0029, 0x1012, vr, len(TEXT)) + TEXT for vr in VRS},
    **{
        f"a sequence {off:+d}, its item {item:+d}, {vr!r}": private_sequence(
            element(0x00291001, b"LO", TEXT), off, item, vr
        )
        for off in (-2, -1, 1, 2, 8)
        for item in (-2, 0, 2)
        for vr in (b"SQ", b"UN")
    },
}


def read_by_pydicom(data: bytes, syntax: str) -> tuple[Identity | None, bool]:
    """(the UIDs that dcmread finds, whether the pixels are there whole)"""
    meta = bytes(128) + b"DICM" + element(0x00020010, b"UI", syntax.encode() + b"\0" * (len(syntax) % 2))
    try:
        image = pydicom.dcmread(BytesIO(meta + data))
        pixels = image.get("PixelData") or b""
        return identity(image), len(pixels) >= image.Rows * image.Columns * 2
    except Exception:  # noqa: BLE001  # the oracle may die of anything: then nothing is promised
        return None, False


def before_pixels(data: bytes) -> int:
    return next(start for tag, start, _ in elements(data, implicit=False, big_endian=False) if tag == 0x7FE00010) - 12


def nesting(odd: bytes, depth: int) -> bytes:
    for _ in range(depth):
        odd = private_sequence(element(0x00291001, b"LO", TEXT) + odd, defined=False)
    return odd


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODDITIES)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_what_pydicom_reads_is_taken_in(image: Dataset, data_set: bytes, odd: str, depth: int) -> None:
    """And what it does not is refused, or taken in under its true UIDs: never under others."""
    short = (b"UI", b"CS", b"US", b"DS", b"LO", b"DA")
    begins = [start - 8 for _, start, _ in elements(data_set, implicit=False, big_endian=False)]
    for at in [*(at for at in begins if data_set[at + 4 : at + 6] in short), before_pixels(data_set), len(data_set)]:
        spoilt = data_set[:at] + nesting(OWNER + ODDITIES[odd], depth) + data_set[at:]
        theirs, whole = read_by_pydicom(spoilt, EXPLICIT)
        if theirs == identity(image) and whole:
            assert identify(spoilt, EXPLICIT) == theirs, at
        else:
            with contextlib.suppress(NotReadable):
                assert identify(spoilt, EXPLICIT) == identity(image), at


@pytest.mark.parametrize(
    "odd",
    [
        "an implicit element",
        "an implicit sequence",
        "implicit elements in an explicit sequence",
        "UN of undefined length",
        "an odd length",
        "a group length that lies",
        "an element twice",
    ],
)
def test_the_oracle_does_read_these(image: Dataset, data_set: bytes, odd: str) -> None:
    at = before_pixels(data_set)
    spoilt = data_set[:at] + OWNER + ODDITIES[odd] + data_set[at:]
    assert read_by_pydicom(spoilt, EXPLICIT) == (identity(image), True)
    assert identify(spoilt, EXPLICIT) == identity(image)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_really_implicit_or_explicit_whatever_was_declared(nested: Dataset, syntax: str) -> None:
    data = encoded(nested, implicit=syntax == EXPLICIT)
    assert identify(data, syntax) == identity(nested)
    with pytest.raises(NotReadable):
        identify(data[:-20], syntax)


def test_an_oddly_encoded_data_set_that_is_cut_off_is_refused(data_set: bytes) -> None:
    at = before_pixels(data_set)
    for odd in ("an implicit element", "implicit elements in an explicit sequence"):
        spoilt = data_set[:at] + nesting(OWNER + ODDITIES[odd], 1) + data_set[at:]
        identify(spoilt, EXPLICIT)
        end = at + len(spoilt) - len(data_set)
        for length in [*range(at + 9, end, 3), *range(end + 9, len(spoilt), 3)]:  # not between two elements
            with pytest.raises(NotReadable):
                identify(spoilt[:length], EXPLICIT)


def test_compressed_frames_that_hold_the_bytes_of_a_delimiter(image: Dataset, data_set: bytes) -> None:
    """FE FF DD E0 inside a fragment: pydicom would take it for the end of Pixel Data."""
    at = before_pixels(data_set)
    frame = b"\xff\xd8" + b"\xfe\xff\xdd\xe0\0\0\0\0" * 3 + b"\xff\xd9"
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + bare(0xFFFEE000, b"")
    pixels += bare(0xFFFEE000, frame)
    for odd in (b"", OWNER + ODDITIES["an implicit element"]):
        data = data_set[:at] + odd + pixels + bare(0xFFFEE0DD, b"")
        assert identify(data, RLE) == identity(image)
        for cut in (1, 8, 9, 20, len(frame)):
            with pytest.raises(NotReadable):
                identify(data[:-cut], RLE)


def test_of_a_uid_that_stands_twice_the_later_one_counts(image: Dataset, data_set: bytes) -> None:
    spoilt = element(0x0020000E, b"UI", b"1.2.3\0") + data_set
    assert identify(spoilt, EXPLICIT) == identity(image)
    assert read_by_pydicom(spoilt, EXPLICIT)[0] == identity(image)


def test_uids_behind_the_pixels_are_found(image: Dataset, data_set: bytes) -> None:
    start, length = next(
        (start, length)
        for tag, start, length in elements(data_set, implicit=False, big_endian=False)
        if tag == 0x0020000E
    )
    moved = data_set[: start - 8] + data_set[start + length :] + data_set[start - 8 : start + length]
    assert identify(moved, EXPLICIT) == identity(image)


def test_a_deflated_data_set_is_inflated_to_its_end_and_no_further(
    image: Dataset, data_set: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = deflate(data_set)
    assert identify(whole + b"\0", DEFLATED) == identity(image)  # padded to an even length
    with pytest.raises(NotReadable, match="cut off"):
        identify(whole[:-20], DEFLATED)
    with pytest.raises(NotReadable, match=r"7FE0,0010.* cut off|cut off: \(7FE0,0010\)"):
        identify(deflate(data_set[:-100]), DEFLATED)
    at = before_pixels(data_set)
    odd = data_set[:at] + ODDITIES["an implicit element"] + data_set[at:]
    assert identify(deflate(odd), DEFLATED) == identity(image)
    monkeypatch.setattr(header, "HEAD_OF_DEFLATED", at + 20)  # what is behind it is only counted
    monkeypatch.setattr(reading, "CHUNK", 1 << 8)
    assert identify(whole, DEFLATED) == identity(image)
    monkeypatch.setattr(header, "MOST_INFLATED", 1 << 20)
    with pytest.raises(NotReadable, match="inflates to more than 1 MiB"):
        identify(deflate(data_set + bytes(4 << 20)), DEFLATED)


# ----------------------------------------------------------------------------------------------------------- noise


@given(st.binary(max_size=400), st.sampled_from([EXPLICIT, IMPLICIT, BIG, DEFLATED, RLE]))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_else(data: bytes, syntax: str) -> None:
    with pytest.raises(NotReadable):
        identify(data, syntax)


@pytest.mark.filterwarnings("ignore")
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_flipped_byte_raises_anything_else(data_set: bytes, data: st.DataObject) -> None:
    spoilt = bytearray(data_set)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NotReadable):
        identify(bytes(spoilt), EXPLICIT)

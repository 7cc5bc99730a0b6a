"""The reader of headers: it reads what pydicom reads, and what would make millions of objects it refuses unread."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import dcmwrite

from dicom_sr import attributes, reading
from dicom_sr.attributes import BadAttribute
from dicom_sr.reading import CutOff, TooMuch, inflate, pixels_at, read_header
from pacs_node.errors import NotReadable
from pacs_node.receive import header
from pacs_node.receive.header import identify
from tests.factories import ct_series, enhanced_ct, nested_image, us_image

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
PIXEL_DATA = struct.pack("<HH", 0x7FE0, 0x0010)


def written(image: Dataset, path: Path, syntax: str = EXPLICIT) -> Path:
    image.file_meta.TransferSyntaxUID = syntax
    form = {"implicit_vr": syntax == IMPLICIT, "little_endian": syntax != BIG}
    dcmwrite(path, image, enforce_file_format=True, **form)
    return path


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
@pytest.mark.parametrize(
    "make",
    [nested_image, lambda: us_image(frames=3), lambda: enhanced_ct(ct_series(shape=(3, 8, 8)))],
    ids=["nested", "frames", "enhanced"],
)
def test_it_reads_what_pydicom_reads(tmp_path: Path, make: Callable[[], Dataset], syntax: str) -> None:
    path = written(make(), tmp_path / "a.dcm", syntax)
    ours, theirs = read_header(path), pydicom.dcmread(path, stop_before_pixels=True)
    assert ours == theirs
    assert ours.file_meta == theirs.file_meta
    assert (ours.filename, ours.original_encoding) == (str(path), theirs.original_encoding)


def counted(content: bytes, at: int, syntax: str) -> int:
    counter = reading._Count(content, syntax == BIG)
    counter.header(at, len(content), syntax == IMPLICIT)
    return counter.elements


def parsed(header: Dataset) -> int:
    """Elements and items that pydicom makes objects of, all sequences opened."""
    found = 0
    for element in header:
        found += 1
        if element.VR == "SQ":
            found += sum(1 + parsed(item) for item in element.value)
    return found


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_every_element_and_item_counts(tmp_path: Path, syntax: str) -> None:
    path = written(nested_image(), tmp_path / "a.dcm", syntax)
    _, at = reading._beginning(path)
    delimiters = 1  # of the one item of undefined length is counted too; the one that ends a header is Pixel Data
    found = counted(path.read_bytes(), at, syntax) - parsed(pydicom.dcmread(path, stop_before_pixels=True))
    assert 0 <= found <= 2 + 2 * delimiters


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(100))
def test_whatever_pydicom_makes_of_damaged_bytes_it_was_counted(tmp_path: Path, seed: int) -> None:
    """The count follows lengths that lie and VRs that change as pydicom does, or counts more: never less."""
    jitter = random.Random(seed)
    path = written(nested_image(), tmp_path / "a.dcm", jitter.choice([EXPLICIT, IMPLICIT]))
    content = bytearray(path.read_bytes())
    syntax, at = reading._beginning(path)
    for _ in range(jitter.randrange(1, 5)):
        content[jitter.randrange(at, len(content) - 512)] = jitter.randrange(256)
    path.write_bytes(content)
    with contextlib.suppress(*attributes.UNREADABLE, OSError, pydicom.errors.InvalidDicomError):
        assert parsed(pydicom.dcmread(path, stop_before_pixels=True)) <= counted(bytes(content), at, syntax)


# ---------------------------------------------------------------------------------------- more than is read


def deflated(content: bytes) -> bytes:
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(content) + squeeze.flush()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, DEFLATED])
def test_a_header_that_ends_anywhere_is_no_fault_of_the_disk(tmp_path: Path, syntax: str) -> None:
    """pydicom has OSError for it, which says elsewhere that the file is gone or the disk is full."""
    content = written(nested_image(), tmp_path / "whole.dcm", syntax).read_bytes()
    begins = 144 + int.from_bytes(content[140:144], "little")
    meta, body, told = content[:begins], content[begins:], set()
    body = bytes(inflate(body)) if syntax == DEFLATED else body
    for end in range(0, len(body), 3):
        (tmp_path / "cut.dcm").write_bytes(meta + (deflated(body[:end]) if syntax == DEFLATED else body[:end]))
        try:
            read_header(tmp_path / "cut.dcm")
        except (*attributes.UNREADABLE, InvalidDicomError) as error:
            told.add(type(error))
    assert CutOff in told


def element(tag: int, vr: bytes, value: bytes = b"", length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    long = vr in reading.LONG_LENGTH
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<HL", 0, size) if long else struct.pack("<H", size)) + value


def item(value: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value) if length is None else length) + value


END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
REGIONS, PRIVATE, UNDEFINED = 0x00186011, 0x00211001, 0xFFFFFFFF
SMALL = element(0x00100020, b"LO")
MANY = 6_000


def sequence(items: bytes, *, defined: bool, vr: bytes = b"SQ") -> bytes:
    return element(REGIONS, vr, items) if defined else element(REGIONS, vr, items + END, UNDEFINED)


TOO_MUCH = {
    "elements": (SMALL * MANY, "more than 5000 elements"),
    "items, length defined": (sequence(item() * MANY, defined=True), "Regions has more than 700 items"),
    "items, length undefined": (sequence(item() * MANY, defined=False), "Regions has more than 700 items"),
    "items of UN": (sequence(item() * MANY, defined=True, vr=b"UN"), "Regions has more than 700 items"),
    "elements of an item": (sequence(item(SMALL * MANY), defined=True), "more than 5000 elements"),
    "elements of many items": (sequence(item(SMALL * 20) * 400, defined=False), "more than 5000 elements"),
    "items that make no sense": (sequence(b"\1" * 8 * MANY, defined=True), "more than 5000 elements"),
    "nesting": (element(REGIONS, b"SQ", item(length=UNDEFINED), UNDEFINED) * 200, "nested deeper than 64"),
    "one long value": (element(PRIVATE, b"OB", bytes((1 << 20) + 2)), "more than 1 MiB before Pixel Data"),
}


LESS = {"MOST_ELEMENTS": 5000, "MOST_ITEMS": 700, "MOST_HEADER": 1 << 20, "SMALL_HEADER": 8 * 700}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(ct_series(shape=(1, 8, 8))[0], tmp_path_factory.mktemp("image") / "a.dcm").read_bytes()


@pytest.mark.parametrize("deflated", [False, True], ids=["as it is", "deflated"])
@pytest.mark.parametrize("kind", TOO_MUCH)
def test_what_is_more_than_is_read_is_refused_in_words_before_memory_is_taken(
    tmp_path: Path, image: bytes, kind: str, deflated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, less in LESS.items():
        monkeypatch.setattr(reading, limit, less, raising=False)
        monkeypatch.setattr(header, limit, less, raising=False)
    more, words = TOO_MUCH[kind]
    syntax, at = EXPLICIT, struct.unpack_from("<L", image, 140)[0] + 144
    pixels = image.index(PIXEL_DATA)
    head, data_set = image[:at], image[at:pixels] + more + image[pixels:]
    if deflated:
        squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        syntax, data_set = DEFLATED, squeeze.compress(data_set) + squeeze.flush()
        head = head.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
        head = head.replace(b"UI\x14\x001.2.840.10008.1.2.1.99", b"UI\x16\x001.2.840.10008.1.2.1.99")
        head = head[:140] + struct.pack("<L", len(head) - 144) + head[144:]
    path = tmp_path / "a.dcm"
    path.write_bytes(head + data_set)
    tracemalloc.start()
    try:
        with pytest.raises(TooMuch, match=words):
            read_header(path)
        # at most the part of it that is inflated, by a megabyte at a time
        assert tracemalloc.get_traced_memory()[1] < (6 * reading.MOST_HEADER if deflated else 1 << 20)
    finally:
        tracemalloc.stop()
    with pytest.raises(NotReadable, match=r"nested deeper than 64|more than (5000|700|1 MiB)"):
        identify(data_set, syntax)


def test_a_stream_that_inflates_to_more_than_it_may_is_refused_while_it_is_inflated() -> None:
    """A bomb of 3 MB, of which a few MB are ever held; black images of a few hundred KB are none."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    black = bytes(1 << 22)
    bomb = b"".join([squeeze.compress(black) for _ in range(100)]) + squeeze.flush()
    with pytest.raises(TooMuch, match=r"inflates to more than 100 times its size \(\d+ bytes\)"):
        assert max(map(len, reading.inflated_chunks(bomb))) <= reading.CHUNK
    with pytest.raises(TooMuch, match="inflates to more than 8 MiB"):
        inflate(bomb, 8 << 20)
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    assert inflate(squeeze.compress(black) + squeeze.flush()) == black


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageType", "Modality", "Rows", "FrameTimeVector"])
def test_a_value_that_would_become_a_million_is_not_decoded(tmp_path: Path, keyword: str) -> None:
    made = ct_series(shape=(1, 8, 8))[0]
    number = [1] * 300_000
    setattr(made, keyword, number if keyword == "Rows" else [str(each) for each in number])
    read = read_header(written(made, tmp_path / "a.dcm", IMPLICIT))
    tracemalloc.start()
    try:
        with pytest.raises(BadAttribute, match=f"{keyword} has \\d+ bytes; at most 524288 are read"):
            attributes.values(read, keyword)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_pixels_begin_where_pydicom_finds_them(image: bytes) -> None:
    assert pixels_at(image, struct.unpack_from("<L", image, 140)[0] + 144, implicit=False, big_endian=False) == (
        image.index(PIXEL_DATA)
    )


def test_a_million_elements_are_refused_under_the_limits_as_they_are(tmp_path: Path, image: bytes) -> None:
    at, pixels = struct.unpack_from("<L", image, 140)[0] + 144, image.index(PIXEL_DATA)
    path = tmp_path / "a.dcm"
    path.write_bytes(image[:pixels] + SMALL * 1_000_000 + image[pixels:])
    with pytest.raises(TooMuch, match="the header has more than 500000 elements"):
        read_header(path)
    with pytest.raises(NotReadable, match="the data set has more than 500000 elements"):
        identify(path.read_bytes()[at:], EXPLICIT)

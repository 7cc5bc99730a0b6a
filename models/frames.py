"""Where the frames of an image lie in its file. Found by parsing, as pydicom does; the bytes stay on disk."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag

from dicom_sr.frames import MOST_FRAMES
from dicom_sr.reading import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, MOST_HEADER, MOST_INFLATED, NoEnd, TooMuch
from dicom_sr.reading import inflate as inflated
from models.codestream import begins_j2k, begins_jpeg
from models.image_pixel import (
    JPEG,
    JPEG_2000,
    JPEG_LS,
    RLE_LOSSLESS,
    Unusable,
)

PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64, "PixelData": 0}
ITEM, SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD  # PS3.5 Table 7.5-1
UNDEFINED = 0xFFFFFFFF  # PS3.5 7.1.1
OFFSETS = ["ExtendedOffsetTable", "ExtendedOffsetTableLengths"]  # PS3.3 C.7.6.3.1.8
OFFSET_TAGS: list[BaseTag | int] = [Tag(keyword) for keyword in OFFSETS]
MOST_TABLE = 4 * MOST_FRAMES  # bytes of a Basic Offset Table; a longer one tells of no frames that can be
MOST_FRAGMENTS = 4 * MOST_FRAMES  # of one image; each takes memory of its own


@dataclass(frozen=True, eq=False)
class Located:
    """The pixels of a file: the bytes of PixelData, FloatPixelData or DoubleFloatPixelData."""

    keyword: str
    vr: str  # "" in implicit VR
    data: memoryview  # from the first byte of the value to the end of the file, where its length is undefined
    encapsulated: bool
    extended_offsets: tuple[bytes, bytes] | None  # the values of OFFSETS


def locate(path: Path, syntax: str) -> Located:
    """Raises Unusable when there are no pixels, or the file ends before they do."""
    found: list[tuple[int, str, int, int]] = []

    def at_pixels(stream: BinaryIO) -> Callable[[int, str | None, int], bool]:
        def stop(tag: int, vr: str | None, length: int) -> bool:
            if tag in PIXELS:
                found.append((tag, vr or "", length, stream.tell()))
            return tag in PIXELS

        return stop

    if syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        content = memoryview(_inflated(path))
        stream: BinaryIO = BytesIO(content[:MOST_HEADER])
        offsets: Any = read_dataset(stream, False, True, stop_when=at_pixels(stream), specific_tags=OFFSET_TAGS)
    else:
        with path.open("rb") as stream:
            offsets = read_partial(stream, at_pixels(stream), specific_tags=OFFSET_TAGS)
            content = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    if not found:
        raise Unusable("PixelData is missing")
    tag, vr, length, at = found[0]
    keyword = PIXELS[tag]
    if length != UNDEFINED and at + length > len(content):
        raise Unusable(f"{keyword} is cut off: it needs {length} bytes, {len(content) - at} are there")
    if length == 0:
        raise Unusable(f"{keyword} is empty")
    data = content[at:] if length == UNDEFINED else content[at : at + length]
    encapsulated = length == UNDEFINED or bytes(data[:4]) == b"\xfe\xff\x00\xe0"
    table, lengths = offsets.get(OFFSETS[0]), offsets.get(OFFSETS[1])
    extended = (table, lengths) if isinstance(table, bytes) and isinstance(lengths, bytes) else None
    return Located(keyword, vr, data, encapsulated, extended)


def _inflated(path: Path) -> bytearray:
    """The data set of a file in Deflated Explicit VR Little Endian: PS3.5 A.5, a raw RFC 1951 stream."""
    content = path.read_bytes()
    at = 132
    while at + 8 <= len(content) and content[at : at + 2] == b"\2\0":  # the file meta information: PS3.10 7.1
        long = content[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"SQ", b"UT")
        length, head = (struct.unpack_from("<L", content, at + 8)[0], 12) if long else (
            struct.unpack_from("<H", content, at + 6)[0], 8
        )  # fmt: skip
        at += head + length
    return inflate(content[at:], MOST_INFLATED)


def inflate(data: bytes | memoryview, most: int) -> bytearray:
    """Inflate a raw RFC 1951 stream. Raises Unusable when it has no end, or would become longer than `most` bytes."""
    try:
        return inflated(data, most)
    except (TooMuch, NoEnd) as error:
        raise Unusable(f"PixelData {error}") from error


# ------------------------------------------------------------------------------------------------ encapsulated frames


def frames_of(located: Located, syntax: str, count: int) -> list[list[memoryview]]:
    """The fragments of each of `count` frames (PS3.5 A.4). Raises Unusable when they are more or fewer.

    The offset tables are believed only where they agree with the fragments and with NumberOfFrames: many do not.
    """
    if not located.encapsulated:
        raise Unusable(f"TransferSyntaxUID is {syntax}, and PixelData is not encapsulated")
    offsets, fragments = _fragments(located.data)
    if not fragments:
        raise Unusable("PixelData has no fragments")
    starts = {offset: index for index, (offset, _) in enumerate(fragments)}
    tables = [] if syntax == RLE_LOSSLESS else [_extended(located.extended_offsets), offsets]  # one fragment a frame
    for table in tables:
        if len(table) == count and table[0] == 0 and _ascending(table) and all(offset in starts for offset in table):
            first = [starts[offset] for offset in table]
            return _grouped(fragments, first)
    if len(fragments) == count:
        return [[data] for _, data in fragments]
    begins = _begins(syntax)
    first = [index for index, (_, data) in enumerate(fragments) if begins is None or begins(data)]
    if len(first) == count and first[0] == 0:
        return _grouped(fragments, first)
    has = len(first) if begins is not None and first else len(fragments)
    raise Unusable(f"NumberOfFrames is {count}, PixelData holds {has} frames in {len(fragments)} fragments")


def _fragments(data: memoryview) -> tuple[list[int], list[tuple[int, memoryview]]]:
    """(the Basic Offset Table, each fragment with its offset): PS3.5 Table A.4-1. Empty fragments are left out."""
    table: list[int] = []
    fragments: list[tuple[int, memoryview]] = []
    at, begin, count = 0, None, 0
    while at + 8 <= len(data):
        count += 1
        if count > MOST_FRAGMENTS:
            raise Unusable(f"PixelData has more than {MOST_FRAGMENTS} fragments")
        group, element, length = struct.unpack_from("<HHL", data, at)
        tag = group << 16 | element
        if tag == SEQUENCE_END:
            return table, fragments
        if tag != ITEM:
            if fragments and not any(data[at:]):  # nulls in place of the delimiter
                return table, fragments
            raise Unusable(f"PixelData (7FE0,0010): byte {at} should begin a fragment and does not")
        value = data[at + 8 : at + 8 + length]
        if len(value) < length:
            raise Unusable(f"PixelData is cut off: fragment {len(fragments) + 1} has {len(value)} of {length} bytes")
        at += 8 + length
        if begin is None:
            begin = at
            table = list(struct.unpack(f"<{length // 4}L", value[: length // 4 * 4])) if length <= MOST_TABLE else []
        elif length:
            fragments.append((at - 8 - length - begin, value))
    if any(data[at:]):
        raise Unusable("PixelData (7FE0,0010): its last fragment does not end where the delimiter begins")
    return table, fragments


def _extended(tables: tuple[bytes, bytes] | None) -> list[int]:
    if tables is None or len(tables[0]) > 2 * MOST_TABLE:
        return []
    return list(struct.unpack(f"<{len(tables[0]) // 8}Q", tables[0][: len(tables[0]) // 8 * 8]))


def _ascending(table: list[int]) -> bool:
    return all(one < other for one, other in pairwise(table))


def _grouped(fragments: list[tuple[int, memoryview]], first: list[int]) -> list[list[memoryview]]:
    bounds = [*first, len(fragments)]
    return [[data for _, data in fragments[one:other]] for one, other in pairwise(bounds)]


def _begins(syntax: str) -> Callable[[memoryview], bool] | None:
    """Whether a fragment begins a frame; None where that cannot be seen: every fragment is a frame then."""
    if syntax in JPEG | JPEG_LS:
        return begins_jpeg
    return begins_j2k if syntax in JPEG_2000 else None


def joined(fragments: list[memoryview]) -> bytes | memoryview:
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)

"""The header of a file, read within limits: what is in it is counted before pydicom makes objects of it.

A few megabytes can hold a million elements, or inflate to gigabytes; each element becomes an object of some hundred
bytes, in the process that serves everyone. Whatever comes from outside is read through here.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.sequence import Sequence
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

Buffer = bytes | bytearray | memoryview | mmap.mmap

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"  # PS3.5 A.1
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"  # PS3.5 A.5
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"  # PS3.5 A.3, retired

MOST_HEADER = 1 << 26  # bytes before Pixel Data: an Enhanced CT of 4000 slices takes 12 MB
MOST_ELEMENTS = 500_000  # of one header, those of all items and the items themselves included
MOST_ITEMS = 1 << 16  # of one sequence: as many as an image may have frames
DEEPEST = 64  # nested sequences; a real report stays below 20, and a reader that recurses dies of thousands
MOST_INFLATED = 1 << 30  # bytes: an Enhanced CT of 2000 slices of 512 x 512
FREELY_INFLATED = 1 << 26  # bytes; beyond, a data set may be only MOST_RATIO times its deflated size
MOST_RATIO = 100  # images deflate to a half or a third, black ones to a thousandth
CHUNK = 1 << 20  # bytes inflated at a time

MOST_TOGETHER = 1 << 31  # bytes in memory of all headers of one series; those of a CT of 4000 slices take a tenth
ELEMENT = 400  # bytes in memory of an element, beside its value

PREAMBLE = 128  # PS3.10 7.1
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 Table 7.5-1
UNDEFINED = 0xFFFFFFFF  # PS3.5 7.1.1
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # Float, Double Float, Pixel Data: PS3.3 C.7.6.3, C.7.6.24
LONG_LENGTH = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)  # as pydicom reads them
SEQUENCES = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")


class TooMuch(ValueError):
    """A header beyond what is read; the message says which limit, and what is there."""


class CutOff(ValueError):
    """A header that ends within an item of a sequence; the message is pydicom's, which has OSError for it, as if the
    disk were at fault."""


class NoEnd(ValueError):
    """A deflated stream that is damaged or cut off."""


class Room:
    """What the headers that are held together may take in memory."""

    def __init__(self, left: int = MOST_TOGETHER) -> None:
        self.left = left

    def take(self, size: int) -> None:
        """Raises TooMuch, and leaves the rest to smaller ones."""
        if size > self.left:
            raise TooMuch(f"the headers of its series take more than {size_words(MOST_TOGETHER)} of memory")
        self.left -= size


def read_header(path: Path, room: Room | None = None) -> FileDataset:
    """The data set of a file without its pixels, as `pydicom.dcmread` reads it. Raises TooMuch before memory is taken;
    CutOff; OSError where the system does not give the file; for what is no DICOM what pydicom raises."""
    room = room or Room()
    syntax, at = _beginning(path)
    try:
        if syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            return _deflated(path, at, room)
        if at:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                implicit, big_endian = syntax == IMPLICIT_VR_LITTLE_ENDIAN, syntax == EXPLICIT_VR_BIG_ENDIAN
                counted = _Count(content, big_endian)
                end = counted.header(at, len(content), implicit)
            room.take(end - at + ELEMENT * counted.elements)
        return pydicom.dcmread(path, stop_before_pixels=True)
    except RecursionError as error:
        raise TooMuch(f"the header holds sequences nested deeper than {DEEPEST}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise CutOff(str(error)) from error


def weight(header: Dataset) -> int:
    """About how many bytes a header takes in memory."""
    found = ELEMENT
    for element in header.values():  # as they are: raw, unless they were asked for
        found += ELEMENT
        if isinstance(element.value, Sequence):
            found += sum(map(weight, element.value))
        elif isinstance(element.value, bytes | str):
            found += len(element.value)
    return found


def _beginning(path: Path) -> tuple[str, int]:
    """(Transfer Syntax UID, first byte of the data set); "" and 0 of a file that pydicom will not read."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head[PREAMBLE : PREAMBLE + 4] != b"DICM":
        return "", 0
    syntax, at = "", PREAMBLE + 4
    while head[at : at + 2] == b"\2\0" and at + 12 <= len(head):  # the file meta information: PS3.10 7.1
        long = head[at + 4 : at + 6] in LONG_LENGTH
        value = at + (12 if long else 8)
        length: int = struct.unpack_from("<L" if long else "<H", head, value - (4 if long else 2))[0]
        if head[at + 2 : at + 4] == b"\x10\0":
            syntax = head[value : value + length].strip(b"\0 ").decode("ascii", "replace")
        at = value + length
    if at + 12 > len(head) == 1 << 16:
        raise TooMuch(f"the file meta information takes more than {len(head)} bytes")
    return syntax, at


def _deflated(path: Path, at: int, room: Room) -> FileDataset:
    with path.open("rb") as file:
        file.seek(at)
        head = b"".join(_inflated_chunks(file.read(), MOST_HEADER))[:MOST_HEADER]
    counted = _Count(head, big_endian=False)
    end = counted.header(0, len(head), implicit=False)
    if end == MOST_HEADER:
        raise TooMuch(f"the header has more than {size_words(MOST_HEADER)} before Pixel Data")
    room.take(end + ELEMENT * counted.elements)
    dataset = read_dataset(BytesIO(head[:end]), False, True)
    header = FileDataset(str(path), dataset, b"\0" * PREAMBLE, read_file_meta_info(path), False, True)
    header.set_original_encoding(False, True, dataset.original_character_set)
    return header


def inflate(data: Buffer, most: int = MOST_INFLATED) -> bytearray:
    """A raw RFC 1951 stream, inflated. Raises TooMuch where it would become longer than `most`, NoEnd for one that is
    damaged or cut off."""
    out = bytearray()
    for chunk in inflated_chunks(data, most):
        out += chunk
    return out


def inflated_chunks(data: Buffer, most: int = MOST_INFLATED) -> Iterator[bytes]:
    """As `inflate`, a part at a time, so that nobody has to hold the whole."""
    size, allowed = 0, min(most, max(FREELY_INFLATED, MOST_RATIO * len(data)))
    for chunk in _inflated_chunks(data, allowed + 1):
        size += len(chunk)
        if size > allowed:
            why = size_words(most) if allowed == most else f"{MOST_RATIO} times its size ({size_words(len(data))})"
            raise TooMuch(f"inflates to more than {why}")
        yield chunk


def _inflated_chunks(data: Buffer, enough: int) -> Iterator[bytes]:
    """Until the stream ends, or `enough` bytes are out."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    left: Buffer = data
    size = 0
    try:
        while not stream.eof and len(left) and size < enough:
            chunk = stream.decompress(left, CHUNK)
            left = stream.unconsumed_tail
            size += len(chunk)
            yield chunk
    except zlib.error as error:
        raise NoEnd(f"cannot be inflated: {error}") from error
    if not stream.eof and size < enough:
        raise NoEnd("is cut off: its deflated stream has no end")


# ------------------------------------------------------------------------------------------------------ counted


def pixels_at(data: Buffer, start: int, *, implicit: bool, big_endian: bool, end: int | None = None) -> int:
    """Where Pixel Data begins in a data set, or where the data set ends. Raises TooMuch for a header beyond the limits.

    It follows the bytes as pydicom does, switches of VR included; where it loses them, the rest counts as if it
    were elements of no length.
    """
    return _Count(data, big_endian).header(start, len(data) if end is None else end, implicit)


class _Lost(Exception):
    """The bytes make no sense, or end: what is left is for pydicom to judge."""


class _Count:
    def __init__(self, data: Buffer, big_endian: bool) -> None:
        order = ">" if big_endian else "<"
        self.data = data
        self.explicit_header = struct.Struct(f"{order}HH2sH").unpack_from
        self.implicit_header = struct.Struct(f"{order}HHL").unpack_from
        self.long_length = struct.Struct(f"{order}L").unpack_from
        self.elements = 0

    def header(self, at: int, end: int, implicit: bool) -> int:
        if end - at >= 8:  # pydicom judges by the first element, too, whatever was declared
            implicit = not _is_vr(bytes(self.data[at + 4 : at + 6]))
        most_end = at + MOST_HEADER
        try:
            while at + 8 <= end:
                tag, vr, length, value = self.element(at, implicit)
                if tag in PIXELS:
                    break
                at = self.after(tag, vr, length, value, end, implicit, 0)
                if min(at, end) > most_end:
                    raise TooMuch(f"the header has more than {size_words(MOST_HEADER)} before Pixel Data")
        except (_Lost, struct.error):
            if end > most_end:
                raise TooMuch(f"the header has more than {size_words(MOST_HEADER)}, and no order in them") from None
            self.more((end - at) // 8)
            return end
        return min(at, end)

    def element(self, at: int, implicit: bool) -> tuple[int, bytes, int, int]:
        """(tag, VR, length, first byte of the value)"""
        self.elements += 1
        if self.elements > MOST_ELEMENTS:
            self.more(0)
        if not implicit:
            group, number, vr, length = self.explicit_header(self.data, at)
            if vr in LONG_LENGTH:
                return group << 16 | number, vr, self.long_length(self.data, at + 8)[0], at + 12
            if b"AA" <= vr <= b"ZZ":
                return group << 16 | number, vr, length, at + 8
        group, number, length = self.implicit_header(self.data, at)
        return group << 16 | number, b"", length, at + 8

    def after(self, tag: int, vr: bytes, length: int, value: int, end: int, implicit: bool, depth: int) -> int:
        """The byte after an element, whose items are counted."""
        if length == UNDEFINED:
            within = implicit or vr in (b"UN", b"")  # UN of undefined length is implicit VR: PS3.5 6.2.2
            return self.items(tag, value, end, None, within, depth, fragments=vr[:1] == b"O")
        is_sequence = vr == b"SQ" or (vr in (b"UN", b"") and tag in SEQUENCES)
        if is_sequence and length:
            stop = value + length
            try:
                self.items(tag, value, min(stop, end), stop, implicit or vr in (b"UN", b""), depth)
            except (_Lost, struct.error):
                self.more((min(stop, end) - value) // 8)
        return value + length

    def items(
        self, tag: int, at: int, end: int, stop: int | None, implicit: bool, depth: int, *, fragments: bool = False
    ) -> int:
        if depth >= DEEPEST:
            raise TooMuch(f"{_named(tag)} holds sequences nested deeper than {DEEPEST}")
        count = 0
        while at + 8 <= end:
            group, number, length = self.implicit_header(self.data, at)
            kind = group << 16 | number
            at += 8
            if kind == SEQUENCE_END:
                return at
            if kind != ITEM:
                raise _Lost
            count += 1
            self.elements += 1
            if count > MOST_ITEMS:
                raise TooMuch(f"{_named(tag)} has more than {MOST_ITEMS} items")
            at = at + length if fragments else self.item(at, end, length, implicit, depth)
        if stop is None:
            raise _Lost
        return stop

    def item(self, at: int, end: int, length: int, implicit: bool, depth: int) -> int:
        stop = end if length == UNDEFINED else at + length
        if stop > end:
            raise _Lost
        if not implicit and stop - at >= 8:  # writers switch within sequences
            implicit = not _is_vr(bytes(self.data[at + 4 : at + 6])) and self.data[at : at + 2] != b"\xfe\xff"
        while at + 8 <= stop:
            tag, vr, size, value = self.element(at, implicit)
            if tag == ITEM_END:
                return at + 8
            at = self.after(tag, vr, size, value, stop, implicit, depth + 1)
        if length == UNDEFINED:
            raise _Lost
        return stop

    def more(self, elements: int) -> None:
        self.elements += elements
        if self.elements > MOST_ELEMENTS:
            raise TooMuch(f"the header has more than {MOST_ELEMENTS} elements")


def _is_vr(two: bytes) -> bool:
    return two.isalpha() and two.isupper()


def size_words(size: int) -> str:
    return f"{size} bytes" if size % (1 << 20) else f"{size >> 20} MiB"


def _named(tag: int) -> str:
    entry = DicomDictionary.get(tag)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {entry[4] if entry else ''}".rstrip()

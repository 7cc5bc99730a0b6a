"""Who is this data set? Its four UIDs, found by walking element lengths; no value is decoded, no pixel copied.

The walk goes on to the end of Pixel Data, because a data set that stops in the middle of an element was cut off on its
way, and the sender is told so instead of the radiologist finding out. Where the walk stumbles over an encoding that the
Standard does not know (implicit elements in an explicit data set, lengths of items that lie), pydicom is the judge:
what the node's own reader reads whole, its receiver takes in.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_SET, UnsupportedOperation
from typing import BinaryIO, cast

from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import data_element_generator

from dicom_sr.reading import (
    DEEPEST,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    ITEM,
    ITEM_END,
    MOST_ELEMENTS,
    MOST_INFLATED,
    MOST_ITEMS,
    SEQUENCE_END,
    UNDEFINED,
    NoEnd,
    TooMuch,
    inflated_chunks,
    pixels_at,
)
from dicom_sr.reading import PIXELS as PIXEL_DATA
from pacs_node.errors import NotReadable

Buffer = bytes | bytearray | memoryview

# VRs whose explicit length takes two bytes; all others, future ones included, take four after two reserved: PS3.5 7.1.2
SHORT_LENGTH = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

HEAD_OF_DEFLATED = 1 << 24  # bytes of an inflated data set that are kept to find the UIDs; the rest is only counted
SMALL_HEADER = 8 * MOST_ITEMS  # bytes; what is shorter cannot hold more items or elements than are allowed
SEEN_ONLY = 4096  # bytes; longer values need not be held to know where they end

SERIES_INSTANCE_UID = 0x0020000E

WANTED = {
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x0020000D: "StudyInstanceUID",
    SERIES_INSTANCE_UID: "SeriesInstanceUID",
}
LONGEST_UID = 80  # bytes looked at: 64 of a UID, and the padding of careless writers
UID = re.compile(rb"[0-9.]{1,64}")  # PS3.5 9.1, except that leading zeros are let through: senders do write them


@dataclass(frozen=True)
class Identity:
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


@dataclass(frozen=True)
class Start:
    """What the first bytes of a data set tell of it, before the rest has come."""

    found: Mapping[int, bytes]  # values of WANTED
    pixels_end: int | None  # the byte at which Pixel Data of a known length ends

    @classmethod
    def of(cls, first_bytes: Buffer, transfer_syntax_uid: str) -> Start:
        if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
            return cls({}, None)
        found: dict[int, bytes] = {}
        implicit = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
        big_endian = transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN
        with suppress(NotReadable):  # where it stumbles, or where these bytes end
            for tag, start, length in elements(first_bytes, implicit=implicit, big_endian=big_endian, end=sys.maxsize):
                if tag in WANTED and start + length <= len(first_bytes):
                    found[tag] = bytes(first_bytes[start : start + min(length, LONGEST_UID)])
                elif tag in PIXEL_DATA:
                    return cls(found, start + length if start <= len(first_bytes) else None)
        return cls(found, None)

    @property
    def series_uid(self) -> str | None:
        value = self.found.get(SERIES_INSTANCE_UID, b"").strip(b"\0 ")
        return value.decode("ascii") if UID.fullmatch(value) else None

    def identity(self, size: int) -> Identity | None:
        """What `identify` says of the whole data set of `size` bytes; None where it has to look itself."""
        if self.pixels_end is None or self.pixels_end > size or len(self.found) < len(WANTED):
            return None
        try:
            return _identity(dict(self.found))
        except NotReadable:
            return None


def identify(data_set: Buffer, transfer_syntax_uid: str) -> Identity:
    """The UIDs of a data set that is whole. Raises NotReadable with the element and the byte where it goes wrong.

    Of an element that stands twice the later one counts, as for pydicom.
    """
    if not len(data_set):
        raise NotReadable("the data set is empty")
    size = len(data_set)
    if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        data_set, size = _inflated(data_set)
    implicit = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    big_endian = transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN
    try:
        return _identity(_walked(data_set, size, implicit, big_endian))
    except Beyond:
        raise
    except NotReadable as stumble:
        found = _as_pydicom_reads(data_set, size, big_endian)
        if not found:
            raise
        try:
            return _identity(found)
        except NotReadable as error:
            raise error from stumble


class Beyond(NotReadable):
    """Beyond the limits of dicom_sr/reading.py: no reader is asked a second time."""


def _walked(data_set: Buffer, size: int, implicit: bool, big_endian: bool) -> dict[int, bytes]:
    """The values of WANTED. Raises NotReadable."""
    found: dict[int, bytes] = {}
    headed = 0  # bytes that are no pixels
    try:
        for tag, start, length in elements(data_set, implicit=implicit, big_endian=big_endian, end=size):
            if tag in WANTED:
                found[tag] = bytes(data_set[start : start + min(length, LONGEST_UID)])
            if tag not in PIXEL_DATA:
                headed = start + length
            elif len(found) == len(WANTED):
                break  # what follows is padding, or nothing that a receiver needs
        if headed > SMALL_HEADER:
            _counted(data_set, implicit, big_endian)
    except NotReadable as error:
        series = found.get(SERIES_INSTANCE_UID, b"").strip(b"\0 ")
        error.series_uid = series.decode("ascii") if UID.fullmatch(series) else ""
        raise
    return found


def _counted(data_set: Buffer, implicit: bool, big_endian: bool) -> None:
    """Raises Beyond for a header with more in it than is read."""
    try:
        pixels_at(data_set, 0, implicit=implicit, big_endian=big_endian)
    except TooMuch as error:
        raise Beyond(str(error)) from error


def _as_pydicom_reads(data_set: Buffer, size: int, big_endian: bool) -> dict[int, bytes]:
    """The values of WANTED as pydicom finds them in a data set that it reads to the end of Pixel Data, or to its own
    end where it has none; nothing when it does not."""
    if size > len(data_set):
        return {}  # a deflated one of which only the head is here
    implicit = _looks_implicit(data_set)
    _counted(data_set, implicit, big_endian)
    stream = _Stream(data_set)
    found: dict[int, bytes] = {}
    pixels: list[tuple[int, int, int, bytes]] = []
    whole = False

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in PIXEL_DATA:
            pixels.append((tag, length, stream.tell(), (vr or "").encode()))
        return tag in PIXEL_DATA

    try:
        for element in _as_pydicom(stream, implicit, not big_endian, at_pixels):
            if _overruns(element, size):
                return {}
            if element.tag in WANTED:
                found[element.tag] = _bytes(element)
        if not pixels:
            return found
        tag, length, at, vr = pixels[0]
        # not pydicom's own end of them: it takes the bytes of a delimiter inside a compressed frame for one
        walk = _Walk(data_set, implicit, big_endian)
        after = walk.skip_undefined(tag, at, vr) if length == UNDEFINED else at + length
        whole = after <= size
        if not whole:
            return {}
        stream.seek(after)
        for element in _as_pydicom(stream, implicit, not big_endian):
            if element.tag in WANTED and element.tag not in found:
                found[element.tag] = _bytes(element)
    # where lengths that lie lead it; EOFError and OSError: it was cut off inside a value of undefined length
    except (NotReadable, EOFError, OSError, struct.error, NotImplementedError, LookupError, ValueError, RecursionError):
        return found if whole else {}
    return found


def _as_pydicom(
    stream: _Stream,
    implicit: bool,
    little_endian: bool,
    stop_when: Callable[[int, str | None, int], bool] | None = None,
) -> Iterator[RawDataElement | DataElement]:
    return data_element_generator(cast(BinaryIO, stream), implicit, little_endian, stop_when, defer_size=SEEN_ONLY)


class _Stream:
    """A data set as a file that pydicom reads: the bytes as they lie, not another copy of them all."""

    def __init__(self, data: Buffer) -> None:
        self._data, self._at = data, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        if whence not in (SEEK_SET, SEEK_CUR):
            raise UnsupportedOperation("from the beginning, or from here")
        at = offset if whence == SEEK_SET else self._at + offset
        if at < 0:
            raise ValueError("before the beginning")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size < 0 else self._at + size
        some = bytes(self._data[self._at : end])
        self._at += len(some)
        return some


def _overruns(element: RawDataElement | DataElement, size: int) -> bool:
    if not isinstance(element, RawDataElement) or element.length == UNDEFINED:
        return False
    return element.value_tell + element.length > size


def _looks_implicit(data_set: Buffer) -> bool:
    """Whether the elements have no VR, whatever was declared: pydicom judges by the first one, too."""
    vr = bytes(data_set[4:6])
    return not (vr.isalpha() and vr.isupper())


def _bytes(element: RawDataElement | DataElement) -> bytes:
    return element.value if isinstance(element.value, bytes) else b""


def _identity(found: dict[int, bytes]) -> Identity:
    missing = [name for tag, name in WANTED.items() if tag not in found]
    if missing:
        raise NotReadable(f"the data set has no {' and no '.join(missing)}")
    return Identity(*(_uid(found[tag], name) for tag, name in WANTED.items()))


def elements(
    data: Buffer, *, implicit: bool, big_endian: bool, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """(tag, first byte of the value, length of the value) of each element at the top level, in the order sent.

    end: where the data set ends, if only its beginning is here. Raises NotReadable where a value would run past it.
    Up to seven bytes that no element can begin in are let go: some writers pad the end.
    """
    walk = _Walk(data, implicit, big_endian)
    at, end, count = start, len(data) if end is None else end, 0
    while at + 8 <= end:
        count += 1
        if count > MOST_ELEMENTS:
            raise Beyond(f"the data set has more than {MOST_ELEMENTS} elements")
        tag, length, value, vr = walk.header(at, implicit)
        at = walk.skip_undefined(tag, value, vr) if length == UNDEFINED else value + length
        if at > end:
            raise NotReadable(
                f"the data set is cut off: {_named(tag)} at byte {value} needs {length} bytes, {end - value} are there"
            )
        yield tag, value, at - value


class _Walk:
    """Reads element headers of one data set."""

    def __init__(self, data: Buffer, implicit: bool, big_endian: bool) -> None:
        order = ">" if big_endian else "<"
        self._data = data
        self._implicit = implicit
        self._implicit_header = struct.Struct(order + "HHL").unpack_from
        self._explicit_header = struct.Struct(order + "HH2sH").unpack_from
        self._long_length = struct.Struct(order + "L").unpack_from

    def header(self, at: int, implicit: bool) -> tuple[int, int, int, bytes]:
        """(tag, length, first byte of the value, VR) of the element at byte `at`."""
        try:
            if implicit:
                group, element, length = self._implicit_header(self._data, at)
                return group << 16 | element, length, at + 8, b""
            group, element, vr, length = self._explicit_header(self._data, at)
            tag = group << 16 | element
            if group == 0xFFFE:  # items and delimiters have no VR: PS3.5 7.5
                return tag, *self._long_length(self._data, at + 4), at + 8, b""
            if vr in SHORT_LENGTH:
                return tag, length, at + 8, vr
            if not (vr.isalpha() and vr.isupper()):
                raise NotReadable(f"{_named(tag)} at byte {at} has no value representation")
            return tag, *self._long_length(self._data, at + 8), at + 12, vr
        except struct.error as error:
            raise NotReadable(f"the data set is cut off in the element that begins at byte {at}") from error

    def skip_undefined(self, tag: int, at: int, vr: bytes) -> int:
        """The byte after a value of undefined length: a sequence, or encapsulated frames. PS3.5 7.5 and A.4."""
        outer = tag
        # innermost last: (True inside a sequence, False inside an item; are its elements implicit VR)
        inside = [(True, self._implicit or vr == b"UN")]  # UN of undefined length is implicit VR: PS3.5 6.2.2
        count = 0
        while inside:
            count += 1
            if count > MOST_ELEMENTS:
                raise Beyond(f"{_named(outer)} holds more than {MOST_ELEMENTS} items and elements")
            in_sequence, implicit = inside[-1]
            tag, length, value, vr = self.header(at, implicit)
            at = value
            if tag == (SEQUENCE_END if in_sequence else ITEM_END):
                inside.pop()
            elif in_sequence and tag != ITEM:
                raise NotReadable(f"{_named(outer)}: byte {at - 8} should begin an item and does not")
            elif length == UNDEFINED:
                inside.append((not in_sequence, implicit or vr == b"UN"))
                if len(inside) > 2 * DEEPEST:
                    raise Beyond(f"{_named(outer)} holds sequences nested deeper than {DEEPEST}")
            elif (at := value + length) > len(self._data):
                raise NotReadable(f"the data set is cut off inside {_named(outer)}")
        return at


def _inflated(data_set: Buffer) -> tuple[Buffer, int]:
    """The first bytes of a deflated data set, and how many all are. PS3.5 A.5: a raw RFC 1951 stream.

    Raises NotReadable for one that is cut off, or that inflates to more than is allowed.
    """
    head, size = bytearray(), 0
    try:
        for inflated in inflated_chunks(data_set, MOST_INFLATED):
            size += len(inflated)
            if len(head) < HEAD_OF_DEFLATED:
                head += inflated
    except TooMuch as error:
        raise Beyond(f"the data set {error}; send it uncompressed") from error
    except NoEnd as error:
        raise NotReadable(f"the data set {error}") from error
    return bytes(head), size


def _uid(value: bytes, name: str) -> str:
    value = value.strip(b"\0 ")
    if not UID.fullmatch(value):
        raise NotReadable(f"{name} is not a UID: it must be 1 to 64 digits and dots")
    return value.decode("ascii")


def _named(tag: int) -> str:
    """ "(0010,0020) PatientID", or the number alone of a private or unknown element."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword_for_tag(tag)}".rstrip()

"""Who is this data set? Its four UIDs, found by walking element lengths; no value is decoded, no pixel copied.

The walk goes on to the end of Pixel Data, because a data set that stops in the middle of an element was cut off on its
way, and the sender is told so instead of the radiologist finding out.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pacs_node.errors import NotReadable

Buffer = bytes | memoryview

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"  # PS3.5 A.1
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"  # PS3.5 A.5
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"  # PS3.5 A.3, retired

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD  # PS3.5 Table 7.5-1
UNDEFINED = 0xFFFFFFFF  # PS3.5 7.1.1
PIXEL_DATA = 0x7FE00010

# VRs whose explicit length takes two bytes; all others, future ones included, take four after two reserved: PS3.5 7.1.2
SHORT_LENGTH = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

DEEPEST = 64  # nested sequences; a real report stays below 20, and a reader that recurses dies of thousands
HEAD_OF_DEFLATED = 1 << 24  # bytes inflated to find the UIDs; the rest of a deflated data set stays as it is

WANTED = {
    0x00080016: "SOP Class UID",
    0x00080018: "SOP Instance UID",
    0x0020000D: "Study Instance UID",
    0x0020000E: "Series Instance UID",
}
UID = re.compile(rb"[0-9.]{1,64}")  # PS3.5 9.1, except that leading zeros are let through: senders do write them


@dataclass(frozen=True)
class Identity:
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


def identify(data_set: Buffer, transfer_syntax_uid: str) -> Identity:
    """The UIDs of a data set that is whole. Raises NotReadable with the element and the byte where it goes wrong."""
    if not len(data_set):
        raise NotReadable("the data set is empty")
    deflated = transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
    if deflated:
        data_set = _inflated_head(data_set)
    found: dict[int, str] = {}
    for tag, start, length in elements(
        data_set,
        implicit=transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN,
        big_endian=transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN,
    ):
        if tag in WANTED and tag not in found:
            found[tag] = _uid(bytes(data_set[start : start + min(length, 65)]), WANTED[tag])
        if tag >= PIXEL_DATA or (deflated and len(found) == len(WANTED)):
            break
    missing = [name for tag, name in WANTED.items() if tag not in found]
    if missing:
        raise NotReadable(f"the data set has no {' and no '.join(missing)}")
    return Identity(*(found[tag] for tag in WANTED))


def elements(data: Buffer, *, implicit: bool, big_endian: bool, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """(tag, first byte of the value, length of the value) of each element at the top level, in the order sent.

    Raises NotReadable where a value would run past the end. Up to seven bytes that no element can begin in are let go:
    some writers pad the end.
    """
    walk = _Walk(data, implicit, big_endian)
    at, end = start, len(data)
    while at + 8 <= end:
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
        while inside:
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
                    raise NotReadable(f"{_named(outer)} holds sequences nested deeper than {DEEPEST}")
            elif (at := value + length) > len(self._data):
                raise NotReadable(f"the data set is cut off inside {_named(outer)}")
        return at


def _inflated_head(data_set: Buffer) -> bytes:
    """The first bytes of a deflated data set. PS3.5 A.5: a raw RFC 1951 stream."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data_set, HEAD_OF_DEFLATED)
    except zlib.error as error:
        raise NotReadable(f"the data set cannot be inflated: {error}") from error


def _uid(value: bytes, name: str) -> str:
    value = value.rstrip(b"\0 ")
    if not UID.fullmatch(value):
        raise NotReadable(f"{name} is not a UID: it must be 1 to 64 digits and dots")
    return value.decode("ascii")


def _named(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"

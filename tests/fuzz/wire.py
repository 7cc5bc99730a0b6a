"""DICOM as bytes that may be wrong: an encoder that writes whatever it is told, and random choices that hurt."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED})

LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5 7.1.2
VRS = b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
ODD_VRS = (b"??", b"\0\0", b"ZZ", b"us", b"OX", b"  ")
UNDEFINED = 0xFFFFFFFF
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 1 << 24)
LARGE_NUMBERS = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


@dataclass
class Item:
    elements: list[Element]
    length: int | None = None  # as claimed; None: as it is; UNDEFINED: delimited
    tag: int = 0xFFFEE000
    delimited: bool = True  # where the length is undefined


@dataclass
class Element:
    tag: int
    vr: bytes
    value: bytes | list[Item]  # fragments, too, are items: of one element with an empty VR
    length: int | None = None
    delimited: bool = True
    raw: bytes = field(default=b"")  # in the place of all else


@dataclass(frozen=True)
class Encoding:
    implicit: bool = False
    big_endian: bool = False

    @property
    def order(self) -> str:
        return ">" if self.big_endian else "<"

    def data_set(self, elements: Sequence[Element]) -> bytes:
        return b"".join(map(self.element, elements))

    def element(self, each: Element) -> bytes:
        if each.raw:
            return each.raw
        if isinstance(each.value, bytes):
            value = each.value + (b"\0" if each.vr in (b"UI", b"OB", b"UN") else b" ") * (len(each.value) % 2)
        else:
            value = b"".join(map(self.item, each.value))
        length = len(value) if each.length is None else each.length
        if length == UNDEFINED and each.delimited:
            value += self.head(0xFFFEE0DD, 0)
        tag = struct.pack(self.order + "HH", each.tag >> 16, each.tag & 0xFFFF)
        if self.implicit or not each.vr:
            return tag + struct.pack(self.order + "L", length) + value
        if each.vr in LONG_VRS:
            return tag + each.vr + struct.pack(self.order + "2xL", length) + value
        return tag + each.vr + struct.pack(self.order + "H", length & 0xFFFF) + value

    def item(self, each: Item) -> bytes:
        body = self.data_set(each.elements)
        length = len(body) if each.length is None else each.length
        end = self.head(0xFFFEE00D, 0) if length == UNDEFINED and each.delimited else b""
        return self.head(each.tag, length) + body + end

    def head(self, tag: int, length: int) -> bytes:
        return struct.pack(self.order + "HHL", tag >> 16, tag & 0xFFFF, length)

    def number(self, form: str, *values: float) -> bytes:
        return struct.pack(f"{self.order}{len(values)}{form}", *values)


def fragment(content: bytes) -> Item:
    """A fragment of encapsulated Pixel Data: PS3.5 A.4."""
    return Item([Element(0, b"", b"", raw=content)] if content else [])


def any_bytes(rng: random.Random, most: int = 64) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 3, 4, 7, 16, most)))


def flipped(rng: random.Random, text: bytes, number: int | None = None) -> bytes:
    changed = bytearray(text)
    for _ in range(number or rng.choice((1, 1, 2, 4, 16))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def relengthed(rng: random.Random, text: bytes) -> bytes:
    """Some number that may be a length is another one."""
    form = rng.choice(("<H", ">H", "<L", ">L"))
    size = struct.calcsize(form)
    if len(text) < size:
        return text
    at = rng.randrange(len(text) - size + 1)
    number = rng.choice((*NUMBERS, *LARGE_NUMBERS, len(text), len(text) - at)) & ((1 << 8 * size) - 1)
    return text[:at] + struct.pack(form, number) + text[at + size :]


def spliced(rng: random.Random, text: bytes) -> bytes:
    """A piece is left out, said twice, or put somewhere else."""
    first, last = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    piece, rest = text[first:last][:4096], text[:first] + text[last:]
    at = rng.randrange(len(rest) + 1)
    return rng.choice((rest, text[:last] + piece + text[last:], rest[:at] + piece + rest[at:]))


def garbled(rng: random.Random, text: bytes) -> bytes:
    """Bytes changed without regard for what they mean."""
    how = rng.choice((flipped, relengthed, relengthed, spliced, lambda r, t: t[: r.randrange(len(t) + 1)]))
    return how(rng, text)

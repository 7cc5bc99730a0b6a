"""What a compressed frame says of itself, read from its first markers: nothing is decoded.

JPEG (ISO/IEC 10918-1), JPEG-LS (ISO/IEC 14495-1), JPEG 2000 and HTJ2K (ISO/IEC 15444-1, with or without the boxes of a
JP2 file), RLE (PS3.5 Annex G).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

Buffer = bytes | memoryview

SOI, SOS, APP0, APP14, SOF55 = 0xD8, 0xDA, 0xE0, 0xEE, 0xF7
# ISO/IEC 10918-1 Table B.1: every start of frame, and those of which the transform is a cosine transform
STARTS_OF_FRAME = frozenset({*range(0xC0, 0xD0), SOF55} - {0xC4, 0xC8, 0xCC})
COSINE = frozenset({0xC0, 0xC1, 0xC2, 0xC5, 0xC6, 0xC9, 0xCA, 0xCD, 0xCE})
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RSTn, SOI
EOI = b"\xff\xd9"
PADDED = 1024  # bytes at the end of a frame among which its end must be, unless nulls follow it
J2K_BEGINS = b"\xff\x4f\xff\x51"  # SOC, SIZ
JP2_BEGINS = b"\0\0\0\x0cjP  "
RLE_SEGMENTS = 15  # at most: PS3.5 G.5


@dataclass(frozen=True)
class Codestream:
    """rows is None where the codestream tells it only at its end (DNL).

    ycbcr: whether the components of a colour JPEG are YCbCr, by libjpeg's rule; None where that has nothing to say.
    """

    rows: int | None
    columns: int
    samples: int
    precision: int  # bits of a component
    signed: bool = False
    ycbcr: bool | None = None


def begins_jpeg(data: Buffer) -> bool:
    return bytes(data[:3]) == b"\xff\xd8\xff"


def begins_j2k(data: Buffer) -> bool:
    return bytes(data[:4]) == J2K_BEGINS or bytes(data[:8]) == JP2_BEGINS


def jpeg(data: Buffer) -> Codestream:
    """What a JPEG or JPEG-LS stream says of itself.

    Raises ValueError when it is none, or has no end: decoders fill up what is missing.
    """
    if not begins_jpeg(data):
        raise ValueError("it does not begin as JPEG does (FF D8 FF)")
    if EOI not in bytes(data[-PADDED:]) and not bytes(data).rstrip(b"\0").endswith(EOI):
        raise ValueError("it is cut off, its end (FF D9) is missing")
    jfif, adobe = False, None
    for marker, body in _segments(data):
        if marker == APP0 and bytes(body[:5]) == b"JFIF\0":
            jfif = True
        elif marker == APP14 and bytes(body[:5]) == b"Adobe" and len(body) >= 12:
            adobe = body[11]
        elif marker in STARTS_OF_FRAME:
            precision, rows, columns, samples = struct.unpack(">BHHB", bytes(body[:6]))
            ids = tuple(body[6 : 6 + 3 * samples : 3])
            colour = _ycbcr(jfif, adobe, ids) if samples == 3 and marker in COSINE else None
            return Codestream(rows or None, columns, samples, precision, ycbcr=colour)
        elif marker == SOS:
            break
    raise ValueError("it has no frame header")


def _segments(data: Buffer) -> Iterator[tuple[int, Buffer]]:
    """(marker, what follows its length) of each marker segment of the header."""
    at, end = 2, len(data)
    while at + 4 <= end:
        if data[at] != 0xFF:
            raise ValueError(f"byte {at} should begin a marker and does not")
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte: ISO/IEC 10918-1 B.1.1.2
            at += 1
            continue
        if marker in WITHOUT_LENGTH:
            at += 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if length < 2 or at + 2 + length > end:
            raise ValueError(f"the marker segment at byte {at} runs past the end")
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length
    raise ValueError("it ends before its frame header")


def _ycbcr(jfif: bool, adobe: int | None, ids: tuple[int, ...]) -> bool:
    """libjpeg's default_decompress_parms: JFIF is YCbCr; then Adobe's transform; then the names of the components."""
    if jfif:
        return True
    if adobe is not None:
        return adobe != 0
    return bytes(ids).upper() != b"RGB"


def j2k(data: Buffer) -> Codestream:
    """What a JPEG 2000 or HTJ2K stream says of itself.

    Raises ValueError when it is none, or its components differ in size or depth.
    """
    at = _jp2c(data) if bytes(data[:8]) == JP2_BEGINS else 0
    if bytes(data[at : at + 4]) != J2K_BEGINS:
        raise ValueError("it does not begin as JPEG 2000 does (FF 4F FF 51)")
    try:  # ISO/IEC 15444-1 A.5.1
        right, bottom, left, top = struct.unpack(">4L", bytes(data[at + 8 : at + 24]))
        (samples,) = struct.unpack(">H", bytes(data[at + 40 : at + 42]))
        components = [tuple(data[at + 42 + 3 * i : at + 45 + 3 * i]) for i in range(min(samples, 4))]
        if any(len(component) != 3 for component in components) or not components:
            raise ValueError("it ends before its components are named")
    except struct.error as error:
        raise ValueError("it ends before its size is named") from error
    if len(set(components)) > 1 or components[0][1:] != (1, 1):
        raise ValueError("its components differ in size or depth")
    depth = components[0][0]
    return Codestream(bottom - top, right - left, samples, (depth & 0x7F) + 1, signed=bool(depth & 0x80))


def _jp2c(data: Buffer) -> int:
    """Where the codestream begins in a JP2 file: ISO/IEC 15444-1 Annex I."""
    at = 0
    while at + 8 <= len(data):
        (length,) = struct.unpack(">L", bytes(data[at : at + 4]))
        head = 8
        if length == 1:
            (length,) = struct.unpack(">Q", bytes(data[at + 8 : at + 16]).rjust(8, b"\0"))
            head = 16
        if bytes(data[at + 4 : at + 8]) == b"jp2c":
            return at + head
        if length < head:
            break
        at += length
    raise ValueError("its JP2 file has no codestream")


def rle(data: Buffer) -> list[Buffer]:
    """The segments of an RLE frame, the most significant byte of the first sample first. Raises ValueError."""
    if len(data) < 64:
        raise ValueError("it is shorter than an RLE header of 64 bytes")
    count, *offsets = struct.unpack("<16L", bytes(data[:64]))
    if not 1 <= count <= RLE_SEGMENTS:
        raise ValueError(f"its RLE header names {count} segments")
    bounds = [*offsets[:count], len(data)]
    if bounds[0] < 64 or any(end < begin for begin, end in pairwise(bounds)):
        raise ValueError("the offsets of its RLE header lie outside it")
    return [data[begin:end] for begin, end in pairwise(bounds)]


def unpacked(segment: Buffer, enough: int) -> int:
    """The bytes that an RLE segment becomes, counted no further than `enough`: two of it can become 128."""
    at = size = 0
    while at < len(segment) and size < enough:
        control = segment[at]
        at += control + 2 if control < 128 else 1 if control == 128 else 2
        size += control + 1 if control < 128 else 0 if control == 128 else 257 - control
    return size

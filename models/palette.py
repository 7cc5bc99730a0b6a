"""Palette colour (PS3.3 C.7.6.3.1.5, segmented ones C.7.9.2) as one table of RGB, in the byte order it was sent in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicom_sr import attributes
from dicom_sr.attributes import BadAttribute
from models.image_pixel import UNREADABLE, Unusable

COLOURS = ("Red", "Green", "Blue")
DISCRETE, LINEAR, INDIRECT = 0, 1, 2  # PS3.3 C.7.9.2
MOST_ENTRIES = 1 << 16
MOST_BYTES = 8 * MOST_ENTRIES  # of one colour, segments included


@dataclass(frozen=True, eq=False)
class Palette:
    first: int  # the stored value that the first entry is for
    rgb: np.ndarray  # uint8 (entries, 3)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Stored values (y, x) -> uint8 (y, x, 3); those outside the table have the colour of its nearer end."""
        index = np.clip(values.astype(np.int64) - self.first, 0, len(self.rgb) - 1)
        return np.asarray(self.rgb[index])


def palette(header: Dataset, *, signed: bool, big_endian: bool) -> Palette:
    """Raises Unusable, naming the descriptor or the data."""
    described = [_descriptor(header, colour, signed) for colour in COLOURS]
    if len({(entries, first) for entries, first, _ in described}) > 1:
        raise Unusable("the three PaletteColorLookupTableDescriptor differ in their entries")
    tables = [
        _table(header, colour, entries, bits, big_endian)
        for colour, (entries, _, bits) in zip(COLOURS, described, strict=True)
    ]
    largest = max(int(table.max()) for table, _ in tables)
    channels = []
    for (table, wide), (_, _, bits) in zip(tables, described, strict=True):
        # entries of 8 bits, each in a word of 16, unless they do use it: senders write both
        scale = 257 if wide and (bits == 16 or largest > 255) else 1
        channels.append((table / scale + 0.5).astype(np.uint8) if scale > 1 else table.astype(np.uint8))
    return Palette(described[0][1], np.stack(channels, axis=-1))


def _descriptor(header: Dataset, colour: str, signed: bool) -> tuple[int, int, int]:
    """(entries, first stored value mapped, bits of an entry)"""
    keyword = f"{colour}PaletteColorLookupTableDescriptor"
    try:
        element = attributes.element(header, keyword)
        numbers = [int(one) for one in element.value] if element is not None and element.value is not None else []
    except BadAttribute as bad:
        raise Unusable(str(bad)) from bad
    except UNREADABLE as error:
        raise Unusable(f"{keyword} cannot be read") from error
    if len(numbers) != 3:
        raise Unusable(f"{keyword} has {len(numbers)} values, 3 are needed")
    entries, first, bits = numbers[0] & 0xFFFF or MOST_ENTRIES, numbers[1] & 0xFFFF, numbers[2]
    if bits not in (8, 16):
        raise Unusable(f"{keyword} says entries of {bits} bits, they must have 8 or 16")
    return entries, first - (1 << 16) if signed and first >= 1 << 15 else first, bits


def _table(header: Dataset, colour: str, entries: int, bits: int, big_endian: bool) -> tuple[np.ndarray, bool]:
    """(the entries, whether each takes a word of 16 bits). Raises Unusable."""
    plain, segmented = f"{colour}PaletteColorLookupTableData", f"Segmented{colour}PaletteColorLookupTableData"
    keyword = plain if plain in header or segmented not in header else segmented
    try:
        element = attributes.element(header, keyword)
    except BadAttribute as bad:
        raise Unusable(str(bad)) from bad
    data = element.value if element is not None else None
    if isinstance(data, bytes) and len(data) > MOST_BYTES:
        raise Unusable(f"{keyword} has {len(data)} bytes; at most {MOST_BYTES} are read")
    if data is None or (isinstance(data, bytes | str) and not data):
        raise Unusable(f"{keyword} is {'empty' if keyword in header else 'missing'}")
    if isinstance(data, bytes):
        wide = bits == 16 or (keyword == plain and len(data) >= 2 * entries)
        if wide:
            words = np.frombuffer(data[: len(data) // 2 * 2], ">u2" if big_endian else "<u2").astype(np.int64)
        else:
            words = np.frombuffer(_in_order(data, header[keyword].VR, big_endian), np.uint8).astype(np.int64)
    else:
        try:
            words, wide = np.atleast_1d(np.array(data, np.int64)), True
        except UNREADABLE as error:
            raise Unusable(f"{keyword} holds no numbers") from error
    if keyword == segmented:
        words = np.array(_expanded(words.tolist(), keyword, wide), np.int64)
    if len(words) < entries:
        descriptor = f"{colour}PaletteColorLookupTableDescriptor"
        raise Unusable(f"{keyword} has {len(words)} entries, {descriptor} says {entries}")
    return words[:entries], wide


def _in_order(data: bytes, vr: str, big_endian: bool) -> bytes:
    """Bytes in words of a big endian data set stand the other way round: PS3.5 7.3."""
    return (
        np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes() if big_endian and vr == "OW" else data
    )


def _expanded(words: list[int], keyword: str, wide: bool) -> list[int]:
    """Raises Unusable for a segment that is cut off, unknown, or leads to more than MOST_ENTRIES."""
    out: list[int] = []
    bits, per_offset = (16, 2) if wide else (8, 4)  # of an entry; entries that the offset of an indirect segment takes

    def run(at: int, segments: int | None) -> None:
        done = 0
        while at + 1 < len(words) and (segments is None or done < segments):
            kind, length = words[at], words[at + 1]
            at, done = at + 2, done + 1
            if kind == DISCRETE:
                out.extend(words[at : at + length])
                at += length
            elif kind == LINEAR and out and at < len(words):
                step = (words[at] - out[-1]) / length if length else 0
                out.extend(np.rint(out[-1] + step * np.arange(1, length + 1)).astype(int).tolist())
                at += 1
            elif kind == INDIRECT and segments is None and at + per_offset <= len(words):
                # its offset is in bytes, the less significant half first
                offset = sum(part << (bits * i) for i, part in enumerate(words[at : at + per_offset]))
                run(offset // (bits // 8), length)
                at += per_offset
            else:
                raise Unusable(f"{keyword} has a segment that cannot be read")
            if len(out) > MOST_ENTRIES:
                raise Unusable(f"{keyword} leads to more than {MOST_ENTRIES} entries")

    run(0, None)
    return out

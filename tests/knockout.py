"""Every attribute of an image in turn, damaged in every way: the inputs of the knock-out test.

A file is taken apart into elements as they lie in it, one of them is damaged, and it is put together again: so that a
value can have a VR, a length or bytes that no library would write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag

LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})  # PS3.5 7.1.2
WORDS = {"US": "<H", "SS": "<h", "UL": "<L", "SL": "<l", "FL": "<f", "FD": "<d"}
TEXTS = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH"}) | {
    "ST",
    "TM",
    "UC",
    "UI",
    "UR",
    "UT",
}


@dataclass(frozen=True)
class Element:
    """One element: its bytes, or the items of a sequence."""

    tag: int
    vr: str
    value: bytes
    items: tuple[tuple[Element, ...], ...] | None = None

    @property
    def keyword(self) -> str:
        return keyword_for_tag(self.tag)


Place = tuple[int, ...]  # index of an element, then of an item and of an element in it, and so on


def taken_apart(dataset: Dataset) -> tuple[Element, ...]:
    """The elements of a data set, sequences with their items, as Explicit VR Little Endian."""
    found = []
    for element in dataset:
        if element.VR == "SQ":
            items = tuple(taken_apart(item) for item in element.value)
            found.append(Element(int(element.tag), "SQ", b"", items))
            continue
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, element)
        data = buffer.getvalue()
        found.append(Element(int(element.tag), element.VR, data[12 if element.VR in LONG else 8 :]))
    return tuple(found)


def put_together(elements: tuple[Element, ...]) -> bytes:
    return b"".join(_bytes_of(element) for element in elements)


def _bytes_of(element: Element) -> bytes:
    value = element.value
    if element.items is not None:
        parts = (put_together(item) for item in element.items)
        value = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in parts)
    head = struct.pack("<HH2s", element.tag >> 16, element.tag & 0xFFFF, element.vr.encode())
    if element.vr in LONG or (element.vr not in TEXTS and element.vr not in WORDS and element.vr != "AT"):
        return head + struct.pack("<HL", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def places(elements: tuple[Element, ...], most_items: int = 2) -> Iterator[Place]:
    """Where every element lies, at every depth; of the items of a sequence the first few and the last."""
    for index, element in enumerate(elements):
        yield (index,)
        chosen = range(len(element.items or ()))
        for number in sorted({*chosen[: most_items - 1], *chosen[-1:]}):
            yield from ((index, number, *inner) for inner in places((element.items or ())[number], most_items))


def at(elements: tuple[Element, ...], place: Place) -> Element:
    element = elements[place[0]]
    return element if len(place) == 1 else at((element.items or ())[place[1]], place[2:])


def changed(elements: tuple[Element, ...], place: Place, instead: Element | None) -> tuple[Element, ...]:
    """The elements with another one at that place, or none."""
    index, element = place[0], elements[place[0]]
    if len(place) == 1:
        return (*elements[:index], *([instead] if instead is not None else []), *elements[index + 1 :])
    items = list(element.items or ())
    items[place[1]] = changed(items[place[1]], place[2:], instead)
    return (*elements[:index], replace(element, items=tuple(items)), *elements[index + 1 :])


def path_of(elements: tuple[Element, ...], place: Place) -> list[str]:
    """The keywords on the way to an element, its own last."""
    element = elements[place[0]]
    if len(place) == 1:
        return [element.keyword]
    return [element.keyword, *path_of((element.items or ())[place[1]], place[2:])]


def damages(element: Element) -> Iterator[tuple[str, Element | None]]:
    """What can be wrong with an element: a name for it, and the element instead."""
    yield "removed", None
    if element.items is not None:
        yield "emptied", replace(element, items=())
        yield "an empty item", replace(element, items=((),))
        yield "garbage", Element(element.tag, "SQ", b"garbage!")
        yield "text", Element(element.tag, "LO", b"garbage!")
        if element.items:
            yield "two of the first", replace(element, items=(element.items[0], *element.items))
        return
    yield "emptied", replace(element, value=b"")
    if element.tag == 0x7FE00010:
        yield "short", replace(element, value=element.value[: len(element.value) // 2 & ~1])
        yield "a frame too many", replace(element, value=element.value * 2)
        return
    text = element.vr in TEXTS
    yield "two values", replace(element, value=_even(element.value.rstrip() + b"\\" + element.value) if text
                                else element.value * 2)  # fmt: skip
    yield "garbage", replace(element, value=_even(b"g@rb4ge! ") if text else b"\xfa" * len(element.value or b"12"))
    yield "letters", replace(element, value=_even(b"abc"))
    for vr in ("LO", "US", "FD", "UN", "SQ", "??"):
        if vr != element.vr:
            yield f"VR {vr}", replace(element, vr=vr)
    if element.vr in ("DS", "IS"):
        yield "NaN", replace(element, value=b"NaN ")
        yield "infinite", replace(element, value=_even(b"inf"))
        yield "a comma", replace(element, value=element.value.replace(b".", b",") if b"." in element.value
                                 else _even(element.value.rstrip() + b",5"))  # fmt: skip
        yield "one value", replace(element, value=_even(element.value.split(b"\\")[0].rstrip()))
        if element.keyword in ("PixelSpacing", "SliceThickness"):  # elsewhere 0 is a number like any other
            yield "zero", replace(element, value=b"0\\0 " if element.keyword == "PixelSpacing" else b"0 ")
        yield "long", replace(element, value=_even(b"\\".join(_long(part) for part in element.value.split(b"\\"))))
    if element.vr in ("FD", "FL"):
        for name, number in (("NaN", float("nan")), ("infinite", float("inf")), ("zero", 0.0), ("huge", 1e300)):
            if element.vr == "FD":
                yield name, replace(element, value=struct.pack("<d", number))
    if element.vr in ("US", "UL", "SS", "SL"):
        size = struct.calcsize(WORDS[element.vr])
        zero_is_one = element.keyword in ("PixelRepresentation", "PlanarConfiguration")  # as good a value as 1
        if not zero_is_one and not element.keyword.startswith("RegionLocation"):
            yield "zero", replace(element, value=b"\0" * size)
        yield "largest", replace(element, value=b"\xff" * size)
        yield "odd length", replace(element, value=element.value + b"\0")
    if element.vr in ("LO", "SH", "PN", "CS", "ST", "LT"):
        yield "other letters", replace(element, value=_even("Mülller^吴".encode()))
        yield "too long", replace(element, value=b"x" * 400)


def _long(number: bytes) -> bytes:
    """The same number in more characters than a DS may have."""
    sign, digits = (number[:1], number[1:]) if number[:1] == b"-" else (b"", number)
    return sign + b"0" * 30 + digits.strip()


def _even(value: bytes) -> bytes:
    return value + b" " * (len(value) % 2)


def tag(place: BaseTag | int) -> str:
    return f"({int(place) >> 16:04X},{int(place) & 0xFFFF:04X})"

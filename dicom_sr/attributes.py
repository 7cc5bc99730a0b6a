"""One attribute of a header: its value, or in words what is wrong with it. What is needed of a header comes from here.

Headers come from many hands: attributes are missing, empty, have too many values, a VR that is not theirs, a comma for
a point. pydicom answers that with a dozen kinds of exceptions, some of them later than one expects. Here it is one
exception that names the attribute.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from dicom_sr import representation  # noqa: F401 - an element under a VR that is not its own is decoded by its bytes

# What pydicom raises for bytes that do not fit their VR, for a VR that is none, and for values that it cannot take.
UNREADABLE = (
    *(ValueError, TypeError, AttributeError, LookupError, NotImplementedError),
    *(OverflowError, EOFError, struct.error, BytesLengthException),
)

# PS3.5 Table 6.2-1, DS; float() takes more. No two parts of it can match the same digit: it takes no longer than a text
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
tag_of = lru_cache(maxsize=4096)(Tag)  # pydicom tries each keyword as a number first: half of the time of an attribute
LONGEST_SHOWN = 40  # characters of a value in a sentence
LONGEST_VALUE = 1 << 19  # bytes of an attribute that is decoded: numbers of 65536 frames take 7 each
LONGEST_TEXT = 10240  # characters: those of the longest VR that people fill in, LT, PS3.5 Table 6.2-1
WHOLE = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"} | {"SQ"})  # VRs that stay bytes; and items, counted before


class BadAttribute(Exception):
    """An attribute that is missing, or that says nothing one can use. The message names it by its keyword."""

    def __init__(self, keyword: str, what: str) -> None:
        super().__init__(f"{keyword} {what}")
        self.keyword = keyword


def values(item: Dataset, keyword: str) -> list[Any]:
    """Every value of an attribute; none if it is missing or empty. Raises BadAttribute for bytes that are none."""
    found = element(item, keyword)
    if found is None:
        return []
    value = found.value
    if value is None or (isinstance(value, str | bytes) and not value.strip()):
        return []
    if isinstance(value, bytes):
        raise BadAttribute(keyword, "cannot be read")
    return list(value) if isinstance(value, MultiValue | Sequence | list | tuple) else [value]


def element(item: Dataset, keyword: str) -> DataElement | None:
    """The element, decoded; None if it is missing. Raises BadAttribute for bytes that are none, and for too many."""
    tag = tag_of(keyword)
    try:
        found: DataElement | RawDataElement | None = item.get_item(tag)
        if not isinstance(found, RawDataElement):
            return found  # missing, or decoded before
        if len(found.value or b"") > LONGEST_VALUE and _becomes_many(found):
            raise BadAttribute(keyword, f"has {len(found.value or b'')} bytes; at most {LONGEST_VALUE} are read")
        return item[tag]
    except (*UNREADABLE, OSError) as error:  # OSError: pydicom's, of items that are cut off; no file is read here
        raise BadAttribute(keyword, "cannot be read") from error


def elements(dataset: Dataset) -> Iterator[DataElement]:
    """Those that can be decoded, in their order. Iterating over a data set of others ends at the first that cannot."""
    for tag in sorted(dataset.keys()):
        try:
            yield dataset[tag]
        except (*UNREADABLE, OSError):  # as in `element`
            continue


def _becomes_many(raw: RawDataElement) -> bool:
    """Whether each few bytes of it become a value of its own: texts and numbers, under UN those that have a keyword."""
    vr = raw.VR if raw.VR not in (None, "UN") else dictionary_VR(raw.tag) if dictionary_has_tag(raw.tag) else "UN"
    return vr not in WHOLE


def items(item: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none if it is missing, empty or no sequence."""
    try:
        return [each for each in values(item, keyword) if isinstance(each, Dataset)]
    except BadAttribute:
        return []


def has(item: Dataset, keyword: str) -> bool:
    """Whether the attribute is there with something in it, readable or not."""
    try:
        return bool(values(item, keyword))
    except BadAttribute:
        return True


def text(item: Dataset, keyword: str) -> str:
    """The first value as text, without the spaces round it; empty if there is none, or none that can be read."""
    return next(iter(texts(item, keyword)), "")


def texts(item: Dataset, keyword: str) -> list[str]:
    """Every value as text, without the spaces round it; none if there is none, or none that can be read."""
    try:
        return [str(value).strip(" \0")[:LONGEST_TEXT] for value in values(item, keyword)]
    except BadAttribute:
        return []


def decimals(item: Dataset, keyword: str, count: int) -> tuple[str, ...]:
    """That many finite numbers, as they are written. Raises BadAttribute."""
    found = values(item, keyword)
    if not found:
        raise BadAttribute(keyword, "is missing" if keyword not in item else "is empty")
    written = [str(value).strip(" \0") for value in found]
    wanted = "a number is" if count == 1 else f"{count} numbers are"
    if len(written) != count or not all(NUMBER.fullmatch(each) and math.isfinite(float(each)) for each in written):
        raise BadAttribute(keyword, f"is {shown(written)}; {wanted} needed")
    return tuple(written)


def numbers(item: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """That many finite numbers. Raises BadAttribute."""
    return tuple(float(each) for each in decimals(item, keyword, count))


def number(item: Dataset, keyword: str) -> float:
    """One finite number. Raises BadAttribute."""
    return numbers(item, keyword, 1)[0]


def whole(item: Dataset, keyword: str, least: int | None = None) -> int:
    """One whole number, at least `least`. Raises BadAttribute."""
    value = number(item, keyword)
    if not value.is_integer():
        raise BadAttribute(keyword, f"is {value:g}; a whole number is needed")
    if least is not None and value < least:
        raise BadAttribute(keyword, f"is {value:g}; it must be at least {least}")
    return int(value)


def whole_or(item: Dataset, keyword: str, instead: int) -> int:
    """One whole number; `instead` where there is none that can be read. For what only sorts or is only shown."""
    try:
        return whole(item, keyword)
    except BadAttribute:
        return instead


def uid(item: Dataset, keyword: str) -> str:
    """One UID as the writer has it. Raises BadAttribute for several, and for anything but digits and dots.

    Components that begin with 0 break PS3.5 9.1, and still name one thing: what refers to it must say the same.
    """
    found = texts(item, keyword)
    if not found:
        raise BadAttribute(keyword, "is missing" if keyword not in item else "is empty or cannot be read")
    if len(found) != 1 or not re.fullmatch(r"[0-9.]{1,64}", found[0]):
        raise BadAttribute(keyword, "is not a UID: 1 to 64 digits and dots are needed")
    return found[0]


def shown(written: SequenceOf[str]) -> str:
    """Values in a sentence, cut to a length that one reads."""
    together = "\\".join(written)
    together = "".join(letter if letter.isprintable() else "?" for letter in together)
    return f"'{together if len(together) <= LONGEST_SHOWN else f'{together[:LONGEST_SHOWN]}...'}'"

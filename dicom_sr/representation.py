"""Elements under a value representation that is not their own: decoded by what their bytes are, in the whole process.

Writers put Pixel Spacing under LO, or a delta in cm as text under the VR of a double. pydicom believes the VR, and
eight digits under FD become a number that nobody wrote. PS3.6 says which VR an attribute has, and bytes tell what they
are: digits are text, whatever they are called. pydicom asks here whenever it decodes an element that it has read.
"""

from __future__ import annotations

import re
import struct
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.hooks import hooks, raw_element_vr

TEXT_OF_NUMBERS = re.compile(rb"[0-9+\-.,eE\\ \0]{2,}")
BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}  # PS3.5 Table 6.2-1
TEXTS = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
FLOATS = ("FL", "FD")


def vr_of(raw: RawDataElement, declared: str) -> str:
    """The VR to decode an element by: as declared, unless it is another attribute's and the bytes speak against it."""
    try:
        own = dictionary_VR(raw.tag)
    except KeyError:
        return declared  # private, or unknown
    data = raw.value
    if not data or declared == own or not isinstance(data, bytes):
        return declared
    if own in TEXTS:
        is_number = declared in BINARY and not _printable(data)
        return declared if is_number else own
    if own not in BINARY:
        return declared  # a sequence, bytes, or one of two
    if declared not in BINARY:
        return "DS" if TEXT_OF_NUMBERS.fullmatch(data) else own
    same_kind = (declared in FLOATS) == (own in FLOATS)
    fits = len(data) % struct.calcsize("<" + BINARY[declared]) == 0
    unsigned = declared in FLOATS or declared.startswith("U")  # a size under SS is no negative number
    return declared if same_kind and fits and unsigned else own


def _printable(data: bytes) -> bool:
    return all(32 <= byte < 127 for byte in data.rstrip(b"\0"))


def _decided(raw: RawDataElement, data: dict[str, Any], **context: Any) -> None:
    raw_element_vr(raw, data, **context)
    data["VR"] = vr_of(raw, data["VR"])


hooks.register_callback("raw_element_vr", _decided)

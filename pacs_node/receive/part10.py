"""The head of a DICOM file (PS3.10 7.1): preamble and file meta information in front of a data set left as it came."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dicom_sr.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.errors import NotReadable
from pacs_node.receive.header import Buffer, elements

PREAMBLE = bytes(128) + b"DICM"

GROUP_LENGTH = 0x00020000  # PS3.10 Table 7.1-1, this and the following
VERSION = 0x00020001
MEDIA_STORAGE_SOP_CLASS_UID = 0x00020002
MEDIA_STORAGE_SOP_INSTANCE_UID = 0x00020003
TRANSFER_SYNTAX_UID = 0x00020010
IMPLEMENTATION_CLASS = 0x00020012
IMPLEMENTATION_VERSION = 0x00020013
SOURCE_AE_TITLE = 0x00020016


@dataclass(frozen=True)
class Head:
    """What the head of a file says, and where its data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    source_ae: str
    size: int  # bytes before the data set


def encode(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str) -> bytes:
    """Preamble and file meta information, Explicit VR Little Endian."""
    meta = (
        struct.pack("<HH2sHL2s", 0x0002, 0x0001, b"OB", 0, 2, b"\0\1")
        + _element(MEDIA_STORAGE_SOP_CLASS_UID, b"UI", sop_class_uid)
        + _element(MEDIA_STORAGE_SOP_INSTANCE_UID, b"UI", sop_instance_uid)
        + _element(TRANSFER_SYNTAX_UID, b"UI", transfer_syntax_uid)
        + _element(IMPLEMENTATION_CLASS, b"UI", IMPLEMENTATION_CLASS_UID)
        + _element(IMPLEMENTATION_VERSION, b"SH", IMPLEMENTATION_VERSION_NAME)
        + _element(SOURCE_AE_TITLE, b"AE", source_ae)
    )
    return PREAMBLE + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(meta)) + meta


def decode(start_of_file: Buffer) -> Head:
    """The head of a file that `encode` wrote, or any other Part 10 file. Raises NotReadable."""
    if bytes(start_of_file[128:132]) != b"DICM":
        raise NotReadable("not a DICOM file: no DICM after 128 bytes")
    values: dict[int, str] = {}
    after = len(PREAMBLE)
    for tag, start, length in elements(start_of_file, implicit=False, big_endian=False, start=len(PREAMBLE)):
        if tag >> 16 != 0x0002:
            break
        if tag == GROUP_LENGTH:
            (meta_length,) = struct.unpack("<L", start_of_file[start : start + 4])
            after = start + 4 + meta_length
        values[tag] = bytes(start_of_file[start : start + length]).rstrip(b"\0 ").decode("ascii", "replace")
        if start + length >= after:
            break
    missing = {MEDIA_STORAGE_SOP_CLASS_UID, MEDIA_STORAGE_SOP_INSTANCE_UID, TRANSFER_SYNTAX_UID} - values.keys()
    if missing:
        raise NotReadable("the file meta information lacks a UID")
    return Head(
        values[MEDIA_STORAGE_SOP_CLASS_UID],
        values[MEDIA_STORAGE_SOP_INSTANCE_UID],
        values[TRANSFER_SYNTAX_UID],
        values.get(SOURCE_AE_TITLE, ""),
        after,
    )


def _element(tag: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "  # PS3.5 6.2
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value

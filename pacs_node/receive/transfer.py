"""C-STORE over an open association, in one thread: from the connection to where it is kept, and the answer back.

pynetdicom hands every message, whole and in memory, from the thread that reads to the thread that serves. Here the
thread that reads P-DATA-TF (PS3.8 9.3.5) serves C-STORE as well, fragment by fragment. Any other message goes on to
pynetdicom.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pynetdicom.pdu_primitives import P_DATA

from pacs_node.receive.header import Buffer

COMMAND, LAST = 1, 2  # message control header: PS3.8 E.2
LONGEST_COMMAND = 1 << 16  # bytes; a C-STORE-RQ has about 150
LONGEST_OTHER = 1 << 25  # bytes of another message: a storage commitment of 200 000 instances

# Elements of group 0000, in Implicit VR Little Endian: PS3.7 6.3.1, E.1
AFFECTED_SOP_CLASS_UID = 0x0002
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
COMMAND_DATA_SET_TYPE = 0x0800
STATUS = 0x0900
ERROR_COMMENT = 0x0902
AFFECTED_SOP_INSTANCE_UID = 0x1000

C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
NO_DATA_SET = 0x0101
LONGEST_COMMENT = 64  # Error Comment is LO: PS3.7 C.4.2


class ProtocolError(Exception):
    """What came breaks PS3.7 or PS3.8: the association is aborted."""


@dataclass(frozen=True)
class StoreRequest:
    """A C-STORE-RQ and the presentation context that it came in: PS3.7 9.3.1.1."""

    context_id: int
    message_id: int
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Answer:
    status: int
    comment: str = ""


class Incoming(Protocol):
    """Where the data set of one C-STORE goes, fragment by fragment."""

    def write(self, fragment: memoryview) -> None:
        """The fragment is only there during the call. Nothing may be raised but what ends the association."""

    def end(self) -> Answer:
        """The data set is whole."""

    def drop(self) -> None:
        """It will never be whole: the association is over."""


class Connection(Protocol):
    """What is read from and written to."""

    def take(self, count: int) -> Buffer:
        """The next `count` bytes, there until the next call. Raises OSError when they do not come."""

    def some(self, most: int) -> memoryview:
        """At least one and at most `most` of the next bytes, as they come, there until the next call."""

    def send(self, encoded: bytes) -> None: ...


class DataTransfer:
    """The P-DATA-TF of one association.

    begin: called with each C-STORE-RQ; what it returns is given the data set. other: given every fragment of any other
    message, as pynetdicom wants it.
    """

    def __init__(
        self, connection: Connection, begin: Callable[[StoreRequest], Incoming], other: Callable[[P_DATA], None]
    ) -> None:
        self.stores = 0  # C-STOREs that have begun
        self._connection, self._begin, self._other = connection, begin, other
        self._command = bytearray()
        self._context_id = 0
        self._request: StoreRequest | None = None
        self._incoming: Incoming | None = None
        self._others_data_set = False  # the data set that comes belongs to another message
        self._others_size = 0

    def receive(self, length: int) -> None:
        """Read the body of one P-DATA-TF of `length` bytes, and serve what it completes.

        Raises ProtocolError, and OSError when the connection fails.
        """
        left = length
        while left:
            if left < 6:
                raise ProtocolError(f"{left} bytes are left of a P-DATA-TF, too few for a presentation data value")
            size, context_id, control = struct.unpack(">LBB", self._connection.take(6))  # PS3.8 Table 9-23, E.2
            size -= 2
            left -= 6 + size
            if size < 0 or left < 0:
                raise ProtocolError(f"a presentation data value of {size + 2} bytes does not fit its P-DATA-TF")
            if control & COMMAND:
                self._command_fragment(context_id, size, bool(control & LAST))
            else:
                self._data_fragment(context_id, size, bool(control & LAST))

    def close(self) -> None:
        """The association is over."""
        if self._incoming is not None:
            self._incoming.drop()
            self._incoming = None

    def _command_fragment(self, context_id: int, size: int, last: bool) -> None:
        if self._incoming is not None or self._others_data_set:
            raise ProtocolError("a command begins before the data set of the one before it has ended")
        if len(self._command) + size > LONGEST_COMMAND:
            raise ProtocolError(f"a command set of more than {LONGEST_COMMAND} bytes")
        if self._command and context_id != self._context_id:
            raise ProtocolError("a command set changes its presentation context")
        self._context_id = context_id
        self._command += self._connection.take(size) if size else b""
        if not last:
            return
        encoded = bytes(self._command)
        self._command.clear()
        elements = command_elements(encoded)
        if _number(elements, COMMAND_FIELD) == C_STORE_RQ:
            self.stores += 1
            self._request = _store_request(elements, context_id)
            self._incoming = self._begin(self._request)
            if _number(elements, COMMAND_DATA_SET_TYPE) == NO_DATA_SET:
                self._answer()  # what it thinks of an empty one
        else:
            self._others_data_set = _number(elements, COMMAND_DATA_SET_TYPE) != NO_DATA_SET
            self._others_size = 0
            self._hand_over(context_id, COMMAND | LAST, encoded)

    def _data_fragment(self, context_id: int, size: int, last: bool) -> None:
        if context_id != self._context_id or not (self._incoming is not None or self._others_data_set):
            raise ProtocolError("a fragment of a data set that no command has announced")
        if self._incoming is None:
            self._others_size += size
            if self._others_size > LONGEST_OTHER:
                raise ProtocolError(f"a message of more than {LONGEST_OTHER >> 20} MiB that is no C-STORE")
            self._others_data_set = not last
            self._hand_over(context_id, LAST if last else 0, self._connection.take(size) if size else b"")
            return
        while size:
            some = self._connection.some(size)
            self._incoming.write(some)
            size -= len(some)
        if last:
            self._answer()

    def _answer(self) -> None:
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        assert self._request is not None
        self._connection.send(store_response(self._request, incoming.end()))

    def _hand_over(self, context_id: int, control: int, fragment: Buffer) -> None:
        primitive = P_DATA()
        values: Any = [[context_id, bytes([control]) + fragment]]  # a list of lists, whatever its type says
        primitive.presentation_data_value_list = values
        self._other(primitive)


def command_elements(encoded: bytes) -> dict[int, bytes]:
    """The elements of a command set by element number, without padding. Raises ProtocolError."""
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + 8 > len(encoded):
            raise ProtocolError("a command set ends inside an element")
        group, element, length = struct.unpack_from("<HHL", encoded, at)
        at += 8
        if group != 0x0000 or at + length > len(encoded):
            raise ProtocolError(f"a command set holds ({group:04X},{element:04X}) of {length} bytes")
        elements[element] = encoded[at : at + length]
        at += length
    return elements


def _store_request(elements: Mapping[int, bytes], context_id: int) -> StoreRequest:
    return StoreRequest(
        context_id,
        _number(elements, MESSAGE_ID),
        _uid(elements, AFFECTED_SOP_CLASS_UID),
        _uid(elements, AFFECTED_SOP_INSTANCE_UID),
    )


def _number(elements: Mapping[int, bytes], element: int) -> int:
    try:
        (value,) = struct.unpack("<H", elements[element])
    except (KeyError, struct.error) as error:
        raise ProtocolError(f"a command set without a usable (0000,{element:04X})") from error
    return int(value)


def _uid(elements: Mapping[int, bytes], element: int) -> str:
    try:
        return elements[element].rstrip(b"\0 ").decode("ascii")
    except (KeyError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a command set without a usable (0000,{element:04X})") from error


def store_response(request: StoreRequest, answer: Answer) -> bytes:
    """A P-DATA-TF with the C-STORE-RSP: PS3.7 9.3.1.2."""
    comment = answer.comment[:LONGEST_COMMENT]
    elements = (
        _element(AFFECTED_SOP_CLASS_UID, _text(request.sop_class_uid, b"\0"))
        + _element(COMMAND_FIELD, struct.pack("<H", C_STORE_RSP))
        + _element(MESSAGE_ID_BEING_RESPONDED_TO, struct.pack("<H", request.message_id))
        + _element(COMMAND_DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET))
        + _element(STATUS, struct.pack("<H", answer.status))
        + (_element(ERROR_COMMENT, _text(comment, b" ")) if comment else b"")
        + _element(AFFECTED_SOP_INSTANCE_UID, _text(request.sop_instance_uid, b"\0"))
    )
    command = _element(0x0000, struct.pack("<L", len(elements))) + elements
    return (
        struct.pack(">BBLLBB", 0x04, 0, len(command) + 6, len(command) + 2, request.context_id, COMMAND | LAST)
        + command
    )


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0x0000, element, len(value)) + value


def _text(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding if len(value) % 2 else value  # PS3.5 6.2

"""A DICOM sender that says exactly what it is told, right or wrong, byte by byte: for what no library would send."""

from __future__ import annotations

import socket
import ssl
import struct
from types import TracebackType
from typing import Self

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"  # PS3.7 A.2.1

ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RP, ABORT = 2, 3, 4, 6, 7  # PDU types, PS3.8 9.3.1
COMMAND, DATA, LAST = 1, 0, 2  # message control header, PS3.8 E.2


class Parrot:
    """One TCP connection. `with Parrot(port) as parrot: parrot.associate(...)`."""

    def __init__(
        self, port: int, timeout_s: float = 10, tls: ssl.SSLContext | None = None, at: str = "127.0.0.1"
    ) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=timeout_s, source_address=(at, 0))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.connection = tls.wrap_socket(self.connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def say(self, some_bytes: bytes) -> None:
        self.connection.sendall(some_bytes)

    def hear(self) -> tuple[int, bytes]:
        """The next PDU: its type and its body. (0, b"") when the peer hung up."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0, b""
        kind, _, length = struct.unpack(">BBL", head)
        return kind, self._exactly(length)

    def associate(
        self, calling: str = "ME", called: str = "NODE", sop_class: str = CT, syntaxes: tuple[str, ...] = (EXPLICIT_LE,)
    ) -> tuple[int, bytes]:
        """Ask for an association with one presentation context, number 1; the answer."""
        self.say(associate_rq(calling, called, sop_class, syntaxes))
        return self.hear()

    def store(self, sop_instance_uid: str, data_set: bytes, sop_class: str = CT) -> int:
        """One C-STORE; the status answered. The data set goes in fragments of 16 KiB."""
        self.say(pdata(1, COMMAND | LAST, c_store_rq(sop_class, sop_instance_uid)))
        step = 16 * 1024
        for start in range(0, max(1, len(data_set)), step):
            last = LAST if start + step >= len(data_set) else 0
            self.say(pdata(1, DATA | last, data_set[start : start + step]))
        return self.status()

    def status(self) -> int:
        """The Status of the response that comes next."""
        kind, body = self.hear()
        assert kind == P_DATA, f"PDU type {kind} instead of a response: {body!r}"
        (status,) = struct.unpack("<H", elements(body[6:])[0x0900])
        return int(status)

    def release(self) -> int:
        """A-RELEASE-RQ; the type of the PDU answered."""
        self.say(pdu(5, bytes(4)))
        return self.hear()[0]

    def _exactly(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            try:
                part = self.connection.recv(length - len(received))
            except ConnectionResetError:
                part = b""
            if not part:
                break
            received += part
        return received


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def pdata(context: int, control: int, fragment: bytes) -> bytes:
    """P-DATA-TF with one presentation data value: PS3.8 9.3.5."""
    return pdu(P_DATA, struct.pack(">LBB", len(fragment) + 2, context, control) + fragment)


def associate_rq(
    calling: str, called: str, sop_class: str, syntaxes: tuple[str, ...], *more: tuple[str, tuple[str, ...]]
) -> bytes:
    """PS3.8 9.3.2. more: further contexts."""
    contexts = b""
    for number, (each, its) in enumerate([(sop_class, syntaxes), *more]):
        context = bytes([2 * number + 1, 0, 0, 0]) + _item(0x30, each.encode())
        contexts += _item(0x20, context + b"".join(_item(0x40, syntax.encode()) for syntax in its))
    user = _item(0x51, struct.pack(">L", 1 << 16)) + _item(0x52, b"1.2.3.4")
    body = struct.pack(">H2x16s16s32x", 1, called.ljust(16).encode(), calling.ljust(16).encode())
    body += _item(0x10, APPLICATION_CONTEXT.encode()) + contexts + _item(0x50, user)
    return pdu(1, body)


def c_store_rq(sop_class: str, sop_instance_uid: str, data_set: bool = True) -> bytes:
    """PS3.7 9.3.1.1."""
    return command(
        (0x0002, _uid(sop_class)),
        (0x0100, struct.pack("<H", 0x0001)),
        (0x0110, struct.pack("<H", 1)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 0x0001 if data_set else 0x0101)),
        (0x1000, _uid(sop_instance_uid)),
    )


def command(*fields: tuple[int, bytes]) -> bytes:
    """A command set, Implicit VR Little Endian, with its group length: PS3.7 6.3.1."""
    encoded = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in fields)
    return struct.pack("<HHLL", 0, 0, 4, len(encoded)) + encoded


def elements(encoded: bytes) -> dict[int, bytes]:
    """The elements of a command set."""
    found, at = {}, 0
    while at < len(encoded):
        _, element, length = struct.unpack_from("<HHL", encoded, at)
        found[element] = encoded[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def _uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)

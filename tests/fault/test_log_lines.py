"""Whatever a stranger sends, what the node says of it is one JSON object a line: no raw traceback on standard error."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.harness import NodeProcess
from tests.parrot import ASSOCIATE_AC, CT, EXPLICIT_LE, Parrot, associate_rq, c_store_rq, command, pdata, pdu

SETTINGS = """
[receive]
keep_free_gb = 0.0
max_associations = 1000
network_timeout_s = 2.0
acse_timeout_s = 2.0
dimse_timeout_s = 2.0
[[peer]]
name = "me"
ae_title = "ME"
may_send = true
"""
PUSH_MODEL, VERIFICATION = "1.2.840.10008.1.20.1", "1.2.840.10008.1.1"
NUMBERS = (0, 1, 2, 3, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
COMMANDS = (1, 0x10, 0x20, 0x21, 0x30, 0x100, 0x110, 0x120, 0x130, 0x140, 0x150, 0x0FFF, 0x8001, 0xFFFF)

ROUNDS = 15
WAIT_S = 0.2  # for an answer, which some of this has none of

Conversation = list[bytes]


def request(sop_class: str = CT) -> bytes:
    return associate_rq("ME", "PACSNODE", sop_class, (EXPLICIT_LE,))


def bytes_changed(rng: random.Random, text: bytes, number: int) -> bytes:
    changed = bytearray(text)
    for _ in range(number):
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def lengths_changed(rng: random.Random, text: bytes) -> bytes:
    form = rng.choice(("<H", ">H", "<L", ">L"))
    size = struct.calcsize(form)
    at = rng.randrange(len(text) - size)
    return text[:at] + struct.pack(form, rng.choice(NUMBERS) & ((1 << 8 * size) - 1)) + text[at + size :]


def odd_command(rng: random.Random) -> bytes:
    fields = [
        (0x0002, rng.choice((b"1.2", b"", b"\xff\xfe", b"x" * 5000))),
        (0x0100, struct.pack("<H", rng.choice(COMMANDS))),
        (0x0110, struct.pack("<H", rng.randrange(65536))),
        (0x0120, b"\1"),
        (0x0800, rng.choice((b"\1\0", b"\1\1", b"", b"\0"))),
        (0x1000, rng.choice((b"1.5", b"", b"\0", b"\xff" * 70))),
        (0x1008, rng.choice((b"\1\0", b"\xff\xff", b"1"))),
        (rng.randrange(65536), rng.randbytes(rng.choice((0, 1, 4, 64)))),
    ]
    rng.shuffle(fields)
    return command(*fields[: rng.randrange(1, len(fields))])


def conversations(rng: random.Random) -> Iterator[tuple[str, Conversation]]:
    """One of each kind of garbage: (kind, what is said piece by piece)."""
    sop_class = rng.choice((CT, VERIFICATION, PUSH_MODEL))
    rq, store = request(sop_class), pdata(1, 3, c_store_rq(CT, "1.5"))
    data = pdata(1, 2, rng.randbytes(200))
    yield "request, bytes", [bytes_changed(rng, rq, rng.choice((1, 3, 20)))]
    yield "request, lengths", [lengths_changed(rng, rq)]
    yield "request, titles", [rq[:10] + rng.randbytes(32) + rq[42:]]
    yield "request, items", [pdu(1, rq[6:74] + bytes_changed(rng, rq[74:], 10))]
    yield "request cut off", [rq[: rng.randrange(len(rq))]]
    yield "no request", [pdu(rng.randrange(10), rng.randbytes(rng.choice((0, 4, 68, 200))))]
    yield "no DICOM", [rng.choice((b"GET / HTTP/1.1\r\n\r\n", b"\x16\3\1\0\5\1", b"\0", rng.randbytes(30)))]
    yield "a PDU in the wrong place", [rq, pdu(rng.randrange(256), rng.randbytes(rng.choice((0, 3, 4, 70))))]
    yield "PDU length", [rq, store[:2] + struct.pack(">L", rng.choice(NUMBERS)) + store[6:]]
    yield "PDV", [rq, pdata(rng.randrange(256), rng.randrange(256), rng.randbytes(rng.choice((0, 1, 30))))]
    yield "PDV length", [rq, store[:6] + struct.pack(">L", rng.choice(NUMBERS)) + store[10:]]
    yield "command, bytes", [rq, pdata(1, 3, bytes_changed(rng, c_store_rq(CT, "1.5"), 5)), data]
    yield "command, lengths", [rq, pdata(1, 3, lengths_changed(rng, c_store_rq(CT, "1.5"))), data]
    yield "command, odd", [rq, pdata(1, 3, odd_command(rng)), data]
    yield "command, random", [rq, pdata(1, 3, rng.randbytes(rng.choice((0, 1, 8, 100))))]
    yield "data set", [rq, store, data]
    yield "data set before its command", [rq, data, store]
    yield "two commands", [rq, store, store]
    yield "everything flipped", [rq, bytes_changed(rng, store + data + pdu(5, bytes(4)), 8)]


def have(port: int, said: Conversation, *, patient: bool) -> None:
    """Say it all, with or without waiting for what the node says, hang up, and wait until the node has, too."""
    with Parrot(port, timeout_s=30) as parrot, suppress(ConnectionError):  # the node may hang up first
        for piece in said:
            parrot.say(piece)
            if patient:
                parrot.connection.settimeout(WAIT_S)
                with suppress(TimeoutError):
                    parrot.connection.recv(65536)
        parrot.connection.settimeout(30)
        with suppress(OSError):  # it is closed already
            parrot.connection.shutdown(socket.SHUT_WR)
        while parrot.connection.recv(65536):
            pass


def test_hostile_conversations_leave_one_json_object_a_line(tmp_path: Path) -> None:
    rng = random.Random(20261129)
    garbage = [(said, bool(number % 3)) for number in range(ROUNDS) for _, said in conversations(rng)]
    with NodeProcess(tmp_path, SETTINGS) as node:
        node.start("--no-work")
        with ThreadPoolExecutor(16) as callers:
            list(callers.map(lambda each: have(node.dicom_port, each[0], patient=each[1]), garbage))
        with Parrot(node.dicom_port, timeout_s=30) as honest:
            assert honest.associate("ME", "PACSNODE", VERIFICATION)[0] == ASSOCIATE_AC
            honest.release()
        assert node.terminate() == 0
    events = [json.loads(line) for line in (tmp_path / "node.log").read_text().splitlines()]
    assert all(isinstance(event, dict) and isinstance(event["event"], str) for event in events)
    said = {event.get("audit_event") or event["event"] for event in events}
    assert {"association-rejected", "instance-refused", "a library warned", "node stopped"} <= said

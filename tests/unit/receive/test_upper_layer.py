"""PS3.8 Table 9-10 from outside: each PDU in each state; and that one thread does not keep the peer waiting for itself,
nor lets it pile up what it does not wait for."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

import pytest
from pydicom.dataset import Dataset

from pacs_node.receive import connection as connection_module
from pacs_node.receive import upper_layer
from pacs_node.receive.connection import Connection
from pacs_node.receive.scp import VERIFICATION
from pacs_node.receive.upper_layer import Server
from tests.parrot import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    CT,
    EXPLICIT_LE,
    LAST,
    RELEASE_RP,
    Parrot,
    associate_rq,
    command,
    pdata,
    pdu,
)
from tests.unit.receive.conftest import Node

Start = Callable[..., Node]

REQUEST, RELEASE_RQ, UNKNOWN = 1, 5, 9
BODIES = {
    REQUEST: associate_rq("ME", "NODE", CT, (EXPLICIT_LE,))[6:],
    ASSOCIATE_AC: associate_rq("ME", "NODE", CT, (EXPLICIT_LE,))[6:],
    ASSOCIATE_RJ: b"\0\1\1\1",
    4: b"",
    RELEASE_RQ: bytes(4),
    RELEASE_RP: bytes(4),
    ABORT: bytes(4),
    UNKNOWN: bytes(4),
}
UNRECOGNIZED, UNEXPECTED = 1, 2  # reasons of an A-ABORT of the service provider: PS3.8 Table 9-26

# what is answered: the type of a PDU, and the reason in an A-ABORT; (0, None): the connection is closed
BEFORE = {
    REQUEST: (ASSOCIATE_AC, None),
    **dict.fromkeys((ASSOCIATE_AC, ASSOCIATE_RJ, 4, RELEASE_RQ, RELEASE_RP), (ABORT, UNEXPECTED)),
    ABORT: (0, None),
    UNKNOWN: (ABORT, UNRECOGNIZED),
}
WITHIN = {
    **dict.fromkeys((REQUEST, ASSOCIATE_AC, ASSOCIATE_RJ, RELEASE_RP), (ABORT, UNEXPECTED)),
    RELEASE_RQ: (RELEASE_RP, None),
    ABORT: (0, None),
    UNKNOWN: (ABORT, UNRECOGNIZED),
}


def test_many_who_call_at_one_moment_are_all_taken(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system drops who finds no room to wait in, and he tries again after 1, 3, 7 seconds."""
    go_on = threading.Event()
    take = Server.get_request
    monkeypatch.setattr(Server, "get_request", lambda server: (go_on.wait(30), take(server))[1])
    callers = []
    try:
        for _ in range(100):
            callers.append(socket.create_connection(("127.0.0.1", node.port), timeout=0.9))
    finally:
        go_on.set()
        for caller in callers:
            caller.close()


@pytest.mark.parametrize("kind", BODIES)
def test_what_is_answered_before_there_is_an_association(node: Node, kind: int) -> None:
    with Parrot(node.port) as parrot:
        parrot.say(pdu(kind, BODIES[kind]))
        assert answered(parrot) == BEFORE[kind]


@pytest.mark.parametrize("syntaxes", [(), ("",), ("nonsense",), (" ",)])
@pytest.mark.parametrize("sop_class", [CT, "1.2.3.4"])
def test_a_context_without_a_transfer_syntax_is_not_accepted_and_the_others_are(
    node: Node, sop_class: str, syntaxes: tuple[str, ...]
) -> None:
    """PS3.8 9.3.2.2 wants one at least. Whoever forgets it in one context loses that one."""
    wrong = (sop_class, syntaxes)
    for number, contexts in enumerate((((CT, (EXPLICIT_LE,)), wrong), (wrong, (CT, (EXPLICIT_LE,))))):
        with Parrot(node.port) as parrot:
            parrot.say(associate_rq("ME", "NODE", *contexts[0], contexts[1]))
            kind, body = parrot.hear()
            assert kind == ASSOCIATE_AC
            results = dict(accepted(body))
            assert results[2 * number + 1] == 0
            assert results[3 - 2 * number] in (3, 4), "abstract syntax or transfer syntaxes not supported"
            parrot.release()


EVERY_SYNTAX = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 140))
FULL = associate_rq("ME", "NODE", CT, EVERY_SYNTAX, *[(CT, EVERY_SYNTAX)] * 127)
MANY = associate_rq("ME", "NODE", CT, (EXPLICIT_LE,), *[(CT, (EXPLICIT_LE,))] * 127)
REQUESTS = {  # what comes behind the titles, and what a peer hears of it
    "a small one": (associate_rq("ME", "NODE", CT, (EXPLICIT_LE,))[74:], ASSOCIATE_AC),
    "all contexts with all syntaxes": (FULL[74:], ASSOCIATE_AC),
    "more contexts than there are numbers": (MANY[74:] * 2, ABORT),
    "nothing": (b"", ASSOCIATE_AC),
    "no items": (b"\xff" * 5000, ABORT),
    "an item that is cut off": (FULL[74:-5], ABORT),
}


@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize(
    ("version", "calling", "called", "codes"),
    [
        (1, "STRANGER", "NODE", (1, 1, 3)),
        (1, "ME", "NOBODY", (1, 1, 7)),
        (1, "", "", (1, 1, 7)),
        (1, "\udcff\udcfe", "NODE", (1, 1, 3)),
        (2, "ME", "NODE", (1, 2, 2)),
    ],
)
def test_of_a_stranger_the_titles_alone_are_looked_at(
    node: Node, what: str, version: int, calling: str, called: str, codes: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A request may have 128 contexts, which take a sixth of a second: whoever is no peer has none of it."""
    decoded: list[bytes] = []
    monkeypatch.setattr(upper_layer.A_ASSOCIATE_RQ, "decode", lambda request, some: decoded.append(some))
    titles = (title.encode("ascii", "surrogateescape").ljust(16) for title in (called, calling))
    with Parrot(node.port) as parrot:
        parrot.say(pdu(1, struct.pack(">H2x16s16s32x", version, *titles) + REQUESTS[what][0]))
        kind, body = parrot.hear()
        assert (kind, tuple(body[1:])) == (ASSOCIATE_RJ, codes)
    assert decoded == []


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_of_a_peer_is_read_whole(node: Node, what: str) -> None:
    rest, answer = REQUESTS[what]
    assert len(FULL) < upper_layer.LONGEST_REQUEST * 0.6
    with Parrot(node.port) as parrot:
        parrot.say(pdu(1, struct.pack(">H2x16s16s32x", 1, b"NODE".ljust(16), b"ME".ljust(16)) + rest))
        assert parrot.hear()[0] == answer


def accepted(body: bytes) -> list[tuple[int, int]]:
    """(context, result) of an A-ASSOCIATE-AC without its first six bytes: PS3.8 9.3.3.2."""
    found, at = [], 68
    while at < len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        if kind == 0x21:
            found.append((body[at + 4], body[at + 6]))
        at += 4 + length
    return found


@pytest.mark.parametrize("kind", WITHIN)
def test_what_is_answered_within_an_association(node: Node, kind: int) -> None:
    with Parrot(node.port) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC
        parrot.say(pdu(kind, BODIES[kind]))
        assert answered(parrot) == WITHIN[kind]
    deadline = time.monotonic() + 10
    while not node.ends:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [end.released for end in node.ends] == [kind == RELEASE_RQ]


def answered(parrot: Parrot) -> tuple[int, int | None]:
    kind, body = parrot.hear()
    return kind, body[3] if kind == ABORT else None


def test_after_an_abort_the_peer_hears_it_though_it_goes_on_sending(node: Node) -> None:
    """Closing at once would take the A-ABORT away with it: what is unread makes the system reset the connection."""
    with Parrot(node.port) as parrot:
        parrot.associate()
        parrot.say(pdu(UNKNOWN, bytes(4)) + bytes(1 << 19))
        assert answered(parrot) == (ABORT, UNRECOGNIZED)


@pytest.mark.skipif(sys.platform != "linux", reason="how a connection stands is asked of Linux")
@pytest.mark.parametrize("stopped", [False, True], ids=["read on", "reading stopped"])
@pytest.mark.parametrize("peer", ["sends without end", "says no more", "closes"])
def test_nobody_waits_for_a_node_that_has_gone(peer: str, stopped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears the last word, and the end. One that sends without listening is not left before a shut window."""
    monkeypatch.setattr(connection_module, "LINGER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as theirs:
        theirs.settimeout(20)
        ours, _ = door.accept()
        ends: list[str] = []

        def floods() -> None:
            try:
                while True:
                    theirs.sendall(bytes(1 << 20))
            except OSError as error:
                ends.append(type(error).__name__)

        flood = threading.Thread(target=floods)
        with ours:
            connection = Connection(ours)
            if peer == "sends without end":
                flood.start()
                connection.allow(10)
                connection.peek(100)
            if stopped:
                time.sleep(0.3)  # until its window is shut
                connection.stop_reading()
            connection.send(b"the last word")
            if peer == "closes":
                theirs.shutdown(socket.SHUT_WR)
            connection.see_off()
        if flood.ident is not None:
            flood.join(15)
            assert not flood.is_alive(), "it still sends to nobody"
            assert ends == ["ConnectionResetError"] or ends == ["BrokenPipeError"]
        assert theirs.recv(100) == b"the last word"
        assert theirs.recv(100) == b""
        if peer != "closes":
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                theirs.send(b"more")


def test_messages_that_nobody_waits_for_are_answered_one_by_one(node: Node) -> None:
    """A thousand C-ECHO before the first answer is read: as many answers, and no more in memory than one PDU holds."""
    echoes = [pdata(1, 1 | LAST, echo(number)) for number in range(1000)]
    with Parrot(node.port) as parrot:
        parrot.associate(sop_class=VERIFICATION, syntaxes=("1.2.840.10008.1.2",))
        parrot.say(b"".join(echoes))
        assert [parrot.status() for _ in echoes] == [0x0000] * 1000
        together = b"".join(each[6:] for each in echoes[:100])
        parrot.say(pdu(4, together))
        assert [parrot.status() for _ in range(100)] == [0x0000] * 100
        assert parrot.release() == RELEASE_RP


def echo(number: int) -> bytes:
    uid = VERIFICATION.encode() + b"\0" * (len(VERIFICATION) % 2)
    us = struct.Struct("<H").pack
    return command((0x0002, uid), (0x0100, us(0x0030)), (0x0110, us(number)), (0x0800, us(0x0101)))


def test_a_disk_that_is_slower_than_any_timeout_cuts_nobody_off(
    start: Start, image: Dataset, data_set: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start(network_timeout_s=0.4)
    sync = os.fdatasync

    def slow(file: int) -> None:
        time.sleep(0.8)
        sync(file)

    monkeypatch.setattr(os, "fdatasync", slow)
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        assert parrot.release() == RELEASE_RP


def test_who_does_not_read_the_answers_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()):
        ours, _ = door.accept()
        with ours:
            connection = Connection(ours)
            connection.patience(0.2)
            with pytest.raises(TimeoutError, match="does not read"):
                connection.send(bytes(1 << 26))


@pytest.mark.parametrize("step", [1, 1000, 100_000])
def test_bytes_come_out_as_they_went_in(step: int) -> None:
    """However they were cut on the way, and whichever way they are taken."""
    sent = os.urandom(5000 if step == 1 else 700_001)
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as theirs:
        ours, _ = door.accept()

        def send() -> None:
            for start in range(0, len(sent), step):
                theirs.sendall(sent[start : start + step])
            theirs.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        connection, taken = Connection(ours), b""
        connection.allow(20)
        with ours:
            for count in (1, 6, 1000, 300_000, 17):
                if len(taken) + count < len(sent):
                    ahead = min(count, 200_000)
                    assert bytes(connection.peek(ahead)) == sent[len(taken) : len(taken) + ahead]
                    taken += bytes(connection.take(count))
            taken += rest(connection)
        sender.join()
    assert taken == sent


def rest(connection: Connection) -> bytes:
    taken = bytearray()
    try:
        while True:
            taken += connection.some(4096)
    except ConnectionResetError:
        return bytes(taken)

"""P-DATA-TF and C-STORE byte by byte: however it is cut, and whatever of it is broken."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RSP as C_STORE_RSP_MESSAGE
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import build_context

from pacs_node.receive import transfer
from pacs_node.receive.transfer import Answer, DataTransfer, ProtocolError, StoreRequest, command_elements
from tests.harness import wait_for
from tests.parrot import (
    ASSOCIATE_AC,
    COMMAND,
    CT,
    DATA,
    LAST,
    RELEASE_RP,
    Parrot,
    associate_rq,
    c_store_rq,
    command,
    pdata,
)
from tests.unit.receive.conftest import Node, data_set_of

ECHO = command(*{0x0002: b"1.2.840.10008.1.1\0", 0x0100: b"\x30\0", 0x0110: b"\7\0", 0x0800: b"\x01\x01"}.items())


class Bytes:
    """A connection that has it all, and hands it out in pieces of random lengths."""

    def __init__(self, said: bytes, seed: int = 0) -> None:
        self.left, self.answered = said, b""
        self.random = random.Random(seed)

    def take(self, count: int) -> memoryview:
        if count > len(self.left):
            raise ConnectionResetError
        taken, self.left = self.left[:count], self.left[count:]
        return memoryview(taken)

    def some(self, most: int) -> memoryview:
        return self.take(min(self.random.randint(1, max(1, most)), most))

    def send(self, encoded: bytes) -> None:
        self.answered += encoded


@dataclass
class Taken:
    request: StoreRequest
    data_set: bytes = b""
    dropped: bool = False

    def write(self, fragment: memoryview) -> None:
        self.data_set += fragment

    def end(self) -> Answer:
        return Answer(0xB000, "a comment")

    def drop(self) -> None:
        self.dropped = True


@dataclass
class Peer:
    said: bytes
    seed: int = 0
    taken: list[Taken] = field(default_factory=list)
    others: list[P_DATA] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = Bytes(self.said, self.seed)
        self.transfer = DataTransfer(self.connection, self.begin, self.others.append)

    def begin(self, request: StoreRequest) -> Taken:
        self.taken.append(Taken(request))
        return self.taken[-1]

    def serve(self) -> Peer:
        while self.connection.left:
            kind, length = struct.unpack(">BxL", self.connection.take(6))
            assert kind == 4
            self.transfer.receive(length)
        return self


def value(context_id: int, control: int, fragment: bytes) -> bytes:
    """A presentation data value."""
    return struct.pack(">LBB", len(fragment) + 2, context_id, control) + fragment


def cut(message: bytes, kind: int, context_id: int, generator: random.Random) -> list[bytes]:
    values = []
    while True:
        size = generator.choice([0, 1, 2, 7, 100, 5000])
        last = size >= len(message)
        values.append(value(context_id, kind | (LAST if last else 0), message[:size]))
        message = message[size:]
        if last:
            return values


def in_pdus(values: list[bytes], generator: random.Random) -> bytes:
    said = b""
    while values:
        some = generator.randint(1, 4)
        body = b"".join(values[:some])
        said, values = said + struct.pack(">BxL", 4, len(body)) + body, values[some:]
    return said


@pytest.mark.parametrize("seed", range(40))
def test_however_messages_are_cut_they_arrive(seed: int) -> None:
    """Into fragments, values of a PDU, and pieces of TCP; with other messages between them."""
    generator = random.Random(seed)
    values, sent = [], []
    for number in range(4):
        if generator.random() < 0.4:
            values += cut(ECHO, COMMAND, 3, generator)
        data_set = generator.randbytes(generator.choice([0, 1, 9000]))
        values += cut(c_store_rq(CT, f"1.2.{number}"), COMMAND, 1, generator) + cut(data_set, DATA, 1, generator)
        sent.append((f"1.2.{number}", data_set))
    peer = Peer(in_pdus(values, generator), seed).serve()
    assert [(each.request.sop_instance_uid, each.data_set) for each in peer.taken] == sent
    assert peer.transfer.stores == 4
    assert not any(each.dropped for each in peer.taken)
    handed = b"".join(data[1:] for each in peer.others for _, data in each.presentation_data_value_list)
    assert handed == ECHO * (len(handed) // len(ECHO))


def test_the_answer_reads_as_pynetdicom_reads_it() -> None:
    peer = Peer(pdata(5, COMMAND | LAST, c_store_rq(CT, "1.2.3")) + pdata(5, LAST, b"abc")).serve()
    pdu = P_DATA_TF()
    pdu.decode(peer.connection.answered)
    message = C_STORE_RSP_MESSAGE()
    assert message.decode_msg(pdu.to_primitive())
    answer = message.message_to_primitive()
    assert message.context_id == 5
    assert (answer.Status, answer.ErrorComment) == (0xB000, "a comment")
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert answer.MessageIDBeingRespondedTo == command_elements(c_store_rq(CT, "1.2.3"))[0x0110][0]
    assert command_elements(peer.connection.answered[12:])[0] == struct.pack("<L", len(peer.connection.answered) - 24)


STORE = value(1, COMMAND | LAST, c_store_rq(CT, "1.2.3"))
BROKEN = {
    "too short for a value": b"\0\0\0",
    "a value longer than its PDU": struct.pack(">LBB", 500, 1, 3) + b"x",
    "a value shorter than its own head": struct.pack(">LBB", 1, 1, 3),
    "data that nobody announced": value(1, DATA | LAST, b"x"),
    "data in another context": STORE + value(3, DATA | LAST, b"x"),
    "a command inside a data set": STORE + value(1, DATA, b"x") + STORE,
    "a command that changes its context": value(1, COMMAND, b"abc") + value(3, COMMAND | LAST, b"def"),
    "a command that ends inside an element": value(1, COMMAND | LAST, b"\0\0\0\1\2\0"),
    "a command of another group": value(1, COMMAND | LAST, struct.pack("<HHL", 8, 0x100, 0)),
    "a length beyond the command": value(1, COMMAND | LAST, struct.pack("<HHL", 0, 0x100, 0xFFFFFFFF)),
    "no command field": value(1, COMMAND | LAST, command(*{0x0002: b"1.2 "}.items())),
    "a C-STORE without a message id": value(
        1, COMMAND | LAST, command(*{0x0002: b"1.2 ", 0x0100: b"\1\0", 0x0800: b"\0\0", 0x1000: b"1.2 "}.items())
    ),
    "a C-STORE with a UID that is no text": value(
        1,
        COMMAND | LAST,
        command(*{0x0002: b"\xff\xfe", 0x0100: b"\1\0", 0x0110: b"\1\0", 0x0800: b"\0\0", 0x1000: b"1.2 "}.items()),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_ends_the_association(what: str) -> None:
    peer = Peer(struct.pack(">BxL", 4, len(BROKEN[what])) + BROKEN[what])
    with pytest.raises(ProtocolError):
        peer.serve()
    peer.transfer.close()
    assert peer.connection.answered == b""
    assert all(each.dropped for each in peer.taken)


def test_a_command_without_end_is_not_collected_for_ever() -> None:
    peer = Peer(pdata(1, COMMAND, bytes(1000)) * 100)
    with pytest.raises(ProtocolError, match="more than 65536 bytes"):
        peer.serve()


def test_another_message_without_end_is_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LONGEST_OTHER", 1 << 21)
    action = command(*{0x0100: b"\x30\1", 0x0110: b"\1\0", 0x0800: b"\0\0"}.items())
    peer = Peer(pdata(1, COMMAND | LAST, action) + pdata(1, DATA, bytes(60000)) * 40)
    with pytest.raises(ProtocolError, match="more than 2 MiB"):
        peer.serve()


@pytest.mark.parametrize("what", BROKEN)
def test_the_listener_outlives_it(node: Node, image: Dataset, data_set: bytes, what: str) -> None:
    with Parrot(node.port) as broken, Parrot(node.port) as honest:
        assert broken.associate()[0] == honest.associate()[0] == ASSOCIATE_AC
        broken.say(struct.pack(">BxL", 4, len(BROKEN[what])) + BROKEN[what])
        assert broken.hear()[0] == 7  # A-ABORT
        assert honest.store(image.SOPInstanceUID, data_set) == 0x0000
        assert honest.release() == RELEASE_RP
    assert [data_set_of(each) for each in node.stored] == [data_set]


def test_a_context_that_was_not_accepted(node: Node) -> None:
    with Parrot(node.port) as parrot:
        parrot.associate()
        parrot.say(pdata(9, COMMAND | LAST, c_store_rq(CT, "1.2.3")))
        assert parrot.hear()[0] == 7


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.1.1", "1.2.840.10008.1.20.1"])
def test_a_store_in_a_context_for_something_else(node: Node, data_set: bytes, sop_class: str) -> None:
    with Parrot(node.port) as parrot:
        parrot.associate(sop_class=sop_class)
        parrot.say(pdata(1, COMMAND | LAST, c_store_rq(sop_class, "1.2.3")) + pdata(1, LAST, data_set))
        assert parrot.hear()[0] == 7
    assert node.stored == []
    assert not list((node.spool.root / "unreadable").iterdir())


def test_a_stop_ends_those_that_wait_for_a_silent_peer(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.receive.scp.AFTER_ABORT_S", 1.0)
    with Parrot(node.port) as parrot:
        parrot.associate()
        parrot.say(pdata(1, COMMAND | LAST, c_store_rq(CT, "1.2.3")))
        parrot.say(pdata(1, DATA, bytes(1000))[:500])
        wait_for(lambda: node.listener.open_associations, 10, "the association")
        node.listener.stop(drain_s=0)
    assert node.listener.open_associations == frozenset()
    assert [end.released for end in node.ends] == [False]


def test_a_data_set_without_end(start: Callable[..., Node], image: Dataset, data_set: bytes) -> None:
    """Refused once it is longer than allowed; a sender that goes on for as long again is aborted."""
    node = start(largest=1 << 20)
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store("1.2.3", data_set + bytes(1 << 20)) == 0xC001
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        parrot.say(pdata(1, COMMAND | LAST, c_store_rq(CT, "1.2.4")))
        for _ in range(33):
            parrot.say(pdata(1, DATA, bytes(1 << 16)))
        assert parrot.hear()[0] == 7
    assert [refusal.kind for refusal in node.refused] == ["too large"]
    packs = [path for path in node.spool.root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in packs) == node.stored[0].offset + node.stored[0].size


@pytest.mark.parametrize(
    ("contexts", "syntaxes", "accepted"),
    [(1, 1, True), (128, 1, True), (128, 35, True), (129, 1, False), (16_000, 1, False), (128, 400, False)],
)
def test_a_request_has_at_most_128_contexts_and_a_length(
    node: Node, contexts: int, syntaxes: int, accepted: bool
) -> None:
    """Whoever asks is not known yet: what is too much is not looked at."""
    one = associate_rq("ME", "NODE", CT, ("1.2.840.10008.1.2.1",) * syntaxes)
    at = one.index(b"\x20\0", 74)
    length = 4 + int.from_bytes(one[at + 2 : at + 4], "big")
    context = one[at : at + length]
    many = b"".join(context[:4] + bytes([(2 * n + 1) % 256]) + context[5:] for n in range(contexts))
    body = one[6:at] + many + one[at + length :]
    with Parrot(node.port) as parrot:
        parrot.say(struct.pack(">BxL", 1, len(body)) + body)
        kind, _ = parrot.hear()
        assert kind == ASSOCIATE_AC if accepted else kind in (0, 7)
    with Parrot(node.port) as honest:
        assert honest.associate()[0] == ASSOCIATE_AC


def test_one_association_may_store_and_echo_in_turn(node: Node, image: Dataset, data_set: bytes) -> None:
    ae = AE("ME")
    contexts = [build_context(CT, ["1.2.840.10008.1.2.1"]), build_context("1.2.840.10008.1.1")]
    association = ae.associate("127.0.0.1", node.port, contexts=contexts, ae_title="NODE")
    for _ in range(3):
        assert association.send_c_echo().Status == 0x0000
        assert association.send_c_store(image).Status == 0x0000
    association.release()
    assert association.is_released

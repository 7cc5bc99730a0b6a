"""The listener on a real socket: by pynetdicom, and by a parrot that sends what no library would."""

from __future__ import annotations

import contextlib
import copy
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.presentation import build_context
from structlog.testing import capture_logs

from pacs_node.errors import NodeError
from pacs_node.receive import upper_layer
from pacs_node.receive.accept import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from pacs_node.receive.spool import Spool
from pacs_node.receive.upper_layer import MOST_WAITING_OF_ONE
from tests.factories import ct_series
from tests.parrot import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    COMMAND,
    CT,
    DATA,
    EXPLICIT_LE,
    LAST,
    RELEASE_RP,
    Parrot,
    associate_rq,
    c_store_rq,
    command,
    pdata,
    pdu,
)
from tests.unit.receive.conftest import NOON, Node, data_set_of, encoded

Start = Callable[..., Node]
VERIFICATION = "1.2.840.10008.1.1"


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_echo(node: Node) -> None:
    ae = AE("ME")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", node.port, ae_title="NODE")
    assert association.send_c_echo().Status == 0x0000
    association.release()


def test_store(node: Node, image: Dataset, data_set: bytes) -> None:
    with Parrot(node.port) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        (instance,) = node.stored
        assert node.listener.open_associations == {instance.association}
        assert parrot.release() == RELEASE_RP
    assert data_set_of(instance) == data_set
    assert (instance.calling_ae, instance.received_at) == ("ME", NOON)
    until(lambda: node.ends)
    (end,) = node.ends
    assert (end.association, end.calling_ae, end.released, end.at) == (instance.association, "ME", True, NOON)
    assert node.listener.open_associations == frozenset()


def test_several_series_in_one_association_and_one_series_in_several(node: Node) -> None:
    images = ct_series(shape=(3, 8, 8)) + ct_series(shape=(2, 8, 8), name="other")
    for some in (images[::2], images[1::2]):
        ae = AE("YOU")
        association = ae.associate("127.0.0.1", node.port, contexts=[build_context(CT, [EXPLICIT_LE])], ae_title="NODE")
        assert [association.send_c_store(image).Status for image in some] == [0] * len(some)
        association.release()
    until(lambda: len(node.ends) == 2)
    assert {instance.sop_instance_uid for instance in node.stored} == {image.SOPInstanceUID for image in images}
    assert {end.association for end in node.ends} == {instance.association for instance in node.stored}


def test_success_only_after_the_node_was_told(start: Start, image: Dataset, data_set: bytes) -> None:
    may_commit = threading.Event()
    answered: list[int] = []
    node = start(on_stored=lambda instance: may_commit.wait(5) and None)
    with Parrot(node.port) as parrot:
        parrot.associate()
        sender = threading.Thread(target=lambda: answered.append(parrot.store(image.SOPInstanceUID, data_set)))
        sender.start()
        until(lambda: list((node.spool.root / "instances").rglob("*.pack")))
        time.sleep(0.05)
        assert answered == []
        may_commit.set()
        sender.join(5)
    assert answered == [0x0000]


def test_no_success_without_the_row(start: Start, image: Dataset, data_set: bytes) -> None:
    """The ledger is down: the sender is asked to keep the instance; when it sends again, all is well."""
    down = [True]

    def commit(instance: Any) -> None:
        if down:
            raise NodeError("the ledger is locked")

    node = start(on_stored=commit)
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, data_set) == 0xA700
        assert node.audit == [
            (
                "instance-refused",
                {"calling_ae": "ME", "status": "0xA700", "words": "cannot store now: the ledger is locked"},
            )
        ]
        down.clear()
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
    assert len(node.stored) == 1


def test_any_other_fault_of_ours_is_no_success_either(start: Start, image: Dataset, data_set: bytes) -> None:
    def commit(instance: Any) -> None:
        raise ZeroDivisionError

    with Parrot(start(on_stored=commit).port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, data_set) >> 12 == 0xC


def test_disk_full(start: Start, image: Dataset, data_set: bytes) -> None:
    node = start(keep_free_gb=1e9)
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, data_set) == 0xA700
        assert parrot.release() == RELEASE_RP
    assert node.stored == []
    assert "free some space" in node.audit[0][1]["words"]


def test_the_same_and_another_under_one_uid(node: Node, image: Dataset, data_set: bytes) -> None:
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        assert node.audit == []
        assert parrot.store(image.SOPInstanceUID, data_set[:-1] + b"\7") == 0xB000
    assert [event for event, _ in node.audit] == ["instance-kept-aside"]
    assert len({instance.stored for instance in node.stored}) == 1


@pytest.mark.parametrize(
    ("calling", "called", "codes"),
    [("STRANGER", "NODE", (1, 1, 3)), ("ME", "NOBODY", (1, 1, 7)), ("STRANGER", "NOBODY", (1, 1, 7))],
)
def test_rejections_on_the_wire(node: Node, calling: str, called: str, codes: tuple[int, int, int]) -> None:
    with Parrot(node.port) as parrot:
        kind, body = parrot.associate(calling, called)
        assert (kind, tuple(body[1:])) == (ASSOCIATE_RJ, codes)  # PS3.8 Table 9-21
        assert parrot.hear() == (0, b"")
    until(lambda: node.audit)
    ((event, facts),) = node.audit
    assert event == "association-rejected"
    assert (facts["result"], facts["source"], facts["reason"]) == codes
    assert (facts["calling_ae"], facts["called_ae"], facts["from"]) == (calling, called, "127.0.0.1")
    assert node.ends == []


def test_too_many_associations(start: Start) -> None:
    node = start(max_associations=2)
    with Parrot(node.port) as first, Parrot(node.port) as second, Parrot(node.port) as third:
        assert first.associate()[0] == second.associate()[0] == ASSOCIATE_AC
        kind, body = third.associate()
        assert (kind, tuple(body[1:])) == (ASSOCIATE_RJ, (2, 3, 2))
        assert first.release() == RELEASE_RP
        until(lambda: len(node.listener.open_associations) == 1)
        with Parrot(node.port) as fourth:
            assert fourth.associate()[0] == ASSOCIATE_AC


def test_one_peer_leaves_room_for_another(start: Start) -> None:
    """By its AE title, wherever it calls from, and by its address, whatever it says to be; what ends makes room."""
    node = start(max_associations=4, most_per_peer=3)
    hers = [Parrot(node.port, at=f"127.0.0.{number}") for number in (2, 2, 3)]
    for parrot in hers:
        assert parrot.associate("ME")[0] == ASSOCIATE_AC
    with Parrot(node.port, at="127.0.0.4") as under_her_title:
        kind, body = under_her_title.associate("ME")
        assert (kind, tuple(body[1:])) == (ASSOCIATE_RJ, (2, 3, 2))
    with Parrot(node.port, at="127.0.0.5") as another:
        assert another.associate("YOU")[0] == ASSOCIATE_AC
    until(lambda: len(node.listener.open_associations) == 3)
    assert hers[2].release() == RELEASE_RP
    until(lambda: len(node.listener.open_associations) == 2)
    with Parrot(node.port, at="127.0.0.2") as third, Parrot(node.port, at="127.0.0.2") as fourth:
        assert third.associate("YOU")[0] == ASSOCIATE_AC
        assert fourth.associate("YOU")[0] == ASSOCIATE_RJ
    until(lambda: len(node.refused) == 2)
    assert [each.reason for each in node.refused] == [
        "3 associations of 'ME' are open, 3 are allowed",
        "3 associations from 127.0.0.2 are open, 3 are allowed",
    ]
    for parrot in hers:
        parrot.connection.close()


def test_what_is_offered_is_what_is_accepted(node: Node) -> None:
    """Each SOP class in each syntax, one to a context; and nothing else."""
    for uid in STORAGE_SOP_CLASSES:
        contexts = [build_context(uid, [syntax]) for syntax in TRANSFER_SYNTAXES]
        contexts.append(build_context(uid, ["1.2.840.10008.1.2.4.94"]))  # JPIP
        contexts.append(build_context("1.2.840.10008.5.1.4.1.1.481.5", [EXPLICIT_LE]))  # RT Plan
        association = AE("ME").associate("127.0.0.1", node.port, contexts=contexts, ae_title="NODE")
        accepted = [(each.abstract_syntax, each.transfer_syntax[0]) for each in association.accepted_contexts]
        assert accepted == [(uid, syntax) for syntax in TRANSFER_SYNTAXES]
        association.release()


def test_of_several_syntaxes_the_senders_first_lossless_one_is_chosen(node: Node) -> None:
    rle, jpeg = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"
    contexts = [
        build_context(CT, [jpeg, rle, EXPLICIT_LE]),
        build_context(CT, [EXPLICIT_LE]),
        build_context(CT, [jpeg]),
    ]
    association = AE("ME").associate("127.0.0.1", node.port, contexts=contexts, ae_title="NODE")
    assert [each.transfer_syntax[0] for each in association.accepted_contexts] == [rle, EXPLICIT_LE, jpeg]
    association.release()


def test_why_a_context_is_not_accepted(node: Node) -> None:
    """PS3.8 Table 9-18: 3 for the abstract syntax, 4 for the transfer syntax."""
    contexts = [
        build_context("1.2.840.10008.5.1.4.1.1.481.5", [EXPLICIT_LE]),
        build_context(CT, ["1.2.840.10008.1.2.4.94"]),
    ]
    contexts.append(build_context(CT, [EXPLICIT_LE]))
    association = AE("ME").associate("127.0.0.1", node.port, contexts=contexts, ae_title="NODE")
    assert [each.result for each in association.rejected_contexts] == [3, 4]
    association.release()


def test_retired_ultrasound_is_stored(node: Node, image: Dataset) -> None:
    retired = copy.deepcopy(image)
    retired.SOPClassUID = retired.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6"
    with Parrot(node.port) as parrot:
        parrot.associate(sop_class=retired.SOPClassUID)
        assert parrot.store(retired.SOPInstanceUID, encoded(retired), sop_class=retired.SOPClassUID) == 0x0000


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda data: b"", 0xC000),
        (lambda data: b"this is no DICOM at all, but it is long enough", 0xC000),
        (lambda data: data[:-20], 0xC000),
        (lambda data: bytes(128) + b"DICM" + data, 0xC000),
        (lambda data: data.replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.5.1.4.1.1.4\0"), 0xA900),
    ],
    ids=["empty", "text", "cut off", "a file instead of a data set", "another SOP class"],
)
def test_broken_data_sets_are_refused_and_the_association_goes_on(
    node: Node, image: Dataset, data_set: bytes, spoil: Callable[[bytes], bytes], status: int
) -> None:
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, spoil(data_set)) == status
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        assert parrot.release() == RELEASE_RP
    assert [event for event, _ in node.audit] == ["instance-refused"]
    assert len(list((node.spool.root / "unreadable").glob("*.dcm"))) == 1


def test_a_command_without_data_set(node: Node) -> None:
    with Parrot(node.port) as parrot:
        parrot.associate()
        parrot.say(pdata(1, COMMAND | LAST, c_store_rq(CT, "1.2.3", data_set=False)))
        assert parrot.status() == 0xC000
    assert node.stored == []


def test_a_command_for_another_sop_class_than_the_context(node: Node, image: Dataset) -> None:
    capture = copy.deepcopy(image)
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    with Parrot(node.port) as parrot:
        parrot.associate()  # for CT
        assert parrot.store(capture.SOPInstanceUID, encoded(capture), sop_class=capture.SOPClassUID) == 0xA900
    assert node.stored == []


BROKEN = {
    "nothing": b"",
    "half a PDU": pdata(1, COMMAND | LAST, c_store_rq(CT, "1.2.3"))[:30],
    "half a data set": pdata(1, COMMAND | LAST, c_store_rq(CT, "1.2.3")) + pdata(1, DATA, bytes(1000)),
    "no PDU at all": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "a PDU of 4 GB": struct.pack(">BBL", 4, 0, 0xFFFFFFFF) + bytes(100),
    "a context that was not negotiated": pdata(9, COMMAND | LAST, c_store_rq(CT, "1.2.3", data_set=False)),
    "a command that is none": pdata(1, COMMAND | LAST, b"\xff" * 40),
    "an unknown command": pdata(1, COMMAND | LAST, command((0x0100, b"\x77\x77"), (0x0800, b"\1\1"))),
    "a PDV longer than its PDU": pdu(4, struct.pack(">LBB", 5000, 1, 3) + bytes(20)),
    "an empty PDU": pdu(4, b""),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # pynetdicom's own thread may die
@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_senders_do_no_harm(node: Node, image: Dataset, data_set: bytes, name: str) -> None:
    """Whatever one sender does, its association ends as not released, and the next sender is served."""
    with Parrot(node.port) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC
        with contextlib.suppress(OSError):  # the listener may hang up first
            parrot.say(BROKEN[name])
            parrot.connection.shutdown(socket.SHUT_WR)
        until(lambda: node.ends)
    (end,) = node.ends
    assert not end.released
    assert node.listener.open_associations == frozenset()
    assert node.stored == []
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000


def test_garbage_instead_of_a_request(node: Node) -> None:
    for garbage in (b"\0" * 100, b"\x01\0\0\0\0\x05hello", b"\x01\0\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"):
        with Parrot(node.port) as parrot:
            parrot.say(garbage)
            assert parrot.hear()[0] in (0, ABORT)
    assert node.ends == []


def test_an_abort_is_no_release(node: Node, image: Dataset, data_set: bytes) -> None:
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        parrot.say(pdu(ABORT, bytes(4)))
        until(lambda: node.ends)
    assert not node.ends[0].released


def test_silence_ends_an_association(start: Start) -> None:
    node = start(network_timeout_s=0.5)
    with Parrot(node.port) as parrot:
        parrot.associate()
        assert parrot.hear()[0] == ABORT
        until(lambda: node.ends)
    assert not node.ends[0].released


def test_half_a_pdu_does_not_hold_an_association_for_ever(start: Start) -> None:
    node = start(network_timeout_s=0.5)
    with Parrot(node.port) as parrot:
        parrot.associate()
        parrot.say(pdata(1, COMMAND | LAST, c_store_rq(CT, "1.2.3"))[:30])
        until(lambda: node.ends)
    assert not node.ends[0].released


def test_a_connection_that_asks_for_nothing_is_closed(start: Start) -> None:
    node = start(acse_timeout_s=0.5)
    with Parrot(node.port) as parrot:
        assert parrot.hear()[0] in (0, ABORT)


def test_stopping_lets_open_associations_finish(start: Start, image: Dataset, data_set: bytes) -> None:
    node = start()
    with Parrot(node.port) as parrot:
        port = node.port
        parrot.associate()
        stopping = threading.Thread(target=node.listener.stop, args=(10,))
        stopping.start()
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            Parrot(port)
        assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
        assert parrot.release() == RELEASE_RP
        stopping.join(5)
        assert not stopping.is_alive()
    assert node.ends[0].released


def test_stopping_aborts_who_does_not_finish(start: Start) -> None:
    node = start()
    with Parrot(node.port) as parrot:
        parrot.associate()
        began = time.monotonic()
        node.listener.stop(drain_s=0.2)
        assert time.monotonic() - began < 3
        assert parrot.hear()[0] == ABORT
    assert not node.ends[0].released


def test_four_senders_at_once(node: Node) -> None:
    """Interleaving one series."""
    images = ct_series(shape=(24, 16, 16))
    statuses: list[int] = []

    def send(some: list[Dataset]) -> None:
        with Parrot(node.port) as parrot:
            parrot.associate()
            statuses.extend(parrot.store(image.SOPInstanceUID, encoded(image)) for image in some)
            parrot.release()

    senders = [threading.Thread(target=send, args=(images[number::4],)) for number in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [0x0000] * 24
    until(lambda: len(node.ends) == 4)
    assert {each.stored for each in Spool(node.spool.root, 0).scan()} == {each.stored for each in node.stored}
    assert len(node.stored) == 24


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nothing_is_left_of_many_connections(start: Start) -> None:
    """Threads and file descriptors, whether the sender was well behaved or not."""
    node = start(acse_timeout_s=0.5)

    def in_use() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    before = in_use()
    for number in range(30):
        with Parrot(node.port) as parrot:
            if number % 5 == 0:
                parrot.say(b"junk")
            else:
                parrot.associate("STRANGER" if number % 5 == 1 else "ME")
            if number % 5 == 2:
                parrot.say(pdu(4, b""))
            elif number % 5 == 3:
                parrot.release()
    until(lambda: all(now <= then for now, then in zip(in_use(), before, strict=True)))


def test_without_a_limit_one_pdu_may_hold_a_whole_large_image(start: Start) -> None:
    """max_pdu = 0 announces that any length will do; a sender that takes it at its word is not cut off."""
    node = start(max_pdu=0)
    large = copy.deepcopy(ct_series(shape=(1, 16, 16))[0])
    large.Rows, large.Columns = 1200, 1300
    large.PixelData = bytes(2 * 1200 * 1300)
    data_set = encoded(large)
    assert len(data_set) > 3_000_000
    with Parrot(node.port) as parrot:
        assert parrot.associate()[0] == ASSOCIATE_AC
        parrot.say(pdata(1, COMMAND | LAST, c_store_rq(CT, large.SOPInstanceUID)))
        parrot.say(pdata(1, DATA | LAST, data_set))
        assert parrot.status() == 0x0000
    assert data_set_of(node.stored[0]) == data_set


def test_without_a_limit_a_request_for_an_association_still_has_one(start: Start) -> None:
    node = start(max_pdu=0)
    with Parrot(node.port) as parrot:
        parrot.say(pdu(1, b"", length=1 << 26))
        assert parrot.hear()[0] in (ABORT, 0)


def half_open(node: Node, address: str) -> socket.socket:
    """A connection that says nothing."""
    return socket.create_connection(("127.0.0.1", node.port), timeout=10, source_address=(address, 0))


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(5)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_a_stranger_who_says_nothing_takes_no_room_from_others(start: Start, image: Dataset, data_set: bytes) -> None:
    """Sixteen silent connections of one address wait, the next is closed; another address is served meanwhile."""
    node = start(max_associations=2)
    silent = [half_open(node, "127.0.0.2") for _ in range(MOST_WAITING_OF_ONE)]
    try:
        until(lambda: len(node.listener._server._connected) == MOST_WAITING_OF_ONE)
        assert is_closed(half_open(node, "127.0.0.2"))
        with Parrot(node.port) as parrot:
            assert parrot.associate()[0] == ASSOCIATE_AC
            assert parrot.store(image.SOPInstanceUID, data_set) == 0x0000
            assert parrot.release() == RELEASE_RP
        silent.pop().close()
        until(lambda: len(node.listener._server._connected) < MOST_WAITING_OF_ONE)
        again = half_open(node, "127.0.0.2")
        silent.append(again)
        again.settimeout(0.5)
        with pytest.raises(TimeoutError):
            again.recv(1)  # it waits, as the others do
    finally:
        for each in silent:
            each.close()


def test_associations_do_not_count_among_those_that_wait(start: Start) -> None:
    node, open_ones = start(max_associations=MOST_WAITING_OF_ONE + 2), []
    try:
        for _ in range(MOST_WAITING_OF_ONE + 2):
            parrot = Parrot(node.port)
            open_ones.append(parrot)
            assert parrot.associate()[0] == ASSOCIATE_AC
    finally:
        for parrot in open_ones:
            parrot.connection.close()


def test_all_strangers_together_have_a_limit_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper_layer, "MOST_WAITING", 6)
    node = start(max_associations=2)
    silent = [half_open(node, f"127.0.0.{number}") for number in range(2, 8)]
    try:
        until(lambda: len(node.listener._server._connected) == 6)
        assert is_closed(half_open(node, "127.0.0.9"))
    finally:
        for each in silent:
            each.close()


def test_our_own_time_is_no_silence_of_the_sender(start: Start, image: Dataset, data_set: bytes) -> None:
    """The disk takes three times as long as a sender may be silent: to write what comes in the middle of a PDU, and to
    sync it. The sender has done nothing wrong, and goes on."""
    node = start(network_timeout_s=0.3, on_stored=lambda instance: time.sleep(0.9))
    begin = node.spool.begin

    def slow_disk(announced: Any) -> Any:
        incoming = begin(announced)
        write = incoming.write
        incoming.write = lambda fragment: (time.sleep(0.5), write(fragment))[1]  # type: ignore[method-assign]
        return incoming

    node.spool.begin = slow_disk  # type: ignore[method-assign]
    half = len(data_set) // 2
    two_values = b"".join(
        struct.pack(">LBB", len(part) + 2, 1, control) + part
        for part, control in ((data_set[:half], DATA), (data_set[half:], DATA | LAST))
    )
    with Parrot(node.port) as parrot:
        parrot.associate()
        for _ in range(2):
            parrot.say(pdata(1, COMMAND | LAST, c_store_rq(CT, image.SOPInstanceUID)) + pdu(4, two_values))
            assert parrot.status() == 0x0000
        assert parrot.release() == RELEASE_RP
    until(lambda: node.ends)
    assert node.ends[0].released


@pytest.mark.parametrize(
    ("longest", "answer"), [(0, ASSOCIATE_AC), (1, ABORT), (7, ABORT), (1023, ABORT), (1024, ASSOCIATE_AC)]
)
def test_answers_go_in_pdus_of_some_size(node: Node, longest: int, answer: int) -> None:
    """In PDUs of a few bytes a report would be a million objects before the first of them is sent."""
    request = associate_rq("ME", "NODE", CT, (EXPLICIT_LE,))
    item = b"\x51\0\0\4" + struct.pack(">L", 1 << 16)
    assert item in request
    with Parrot(node.port) as parrot:
        parrot.say(request.replace(item, item[:4] + struct.pack(">L", longest)))
        assert parrot.hear()[0] == answer


@pytest.mark.parametrize(
    ("error", "level"), [(OSError(22, "Invalid argument"), "warning"), (KeyError("Doe^Jane"), "error")]
)
def test_a_connection_that_fails_is_told_in_words(
    node: Node, error: Exception, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone before anybody looks is a peer's doing; another error is ours, told without its values."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(upper_layer, "Connection", fail)
    with capture_logs() as events:
        Parrot(node.port).connection.close()
        until(lambda: [each for each in events if each["event"] == "listener.connection-failed"])
    (event,) = [each for each in events if each["event"] == "listener.connection-failed"]
    assert event["log_level"] == level
    assert type(error).__name__ in event["error"] or "Invalid argument" in event["error"]
    assert "Doe" not in event["error"]

"""Storage commitment at a real listener: asked by pynetdicom peers, and told by them."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification

from pacs_node.association import Peer
from pacs_node.commitment import PUSH_MODEL_INSTANCE, action_information, event_information, judge_request, read_report
from pacs_node.errors import LedgerUnavailable, TryAgain
from pacs_node.receive import commitment
from pacs_node.receive.commitment import CommitmentService, bring_report
from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import Spool
from pacs_node.records import CommitmentReport, CommitmentRequest
from tests.parrot import ABORT, ASSOCIATE_RJ, P_DATA, Parrot, command, elements, pdata

CT = str(CTImageStorage)
HELD = {"1.5": CT}
WANTED = ((CT, "1.5"), (CT, "1.6"))
REPORT = CommitmentReport("1.2.3", ((CT, "1.5"),), ((CT, "1.6", 0x0112),))


@dataclass
class Door:
    """A listener that keeps HELD, and what it was asked and told."""

    listener: Listener
    asked: list[CommitmentRequest] = field(default_factory=list)
    answered: list[CommitmentRequest] = field(default_factory=list)
    told: list[tuple[CommitmentReport, str, str]] = field(default_factory=list)
    error: Exception | None = None

    def ask(self, request: CommitmentRequest) -> None:
        if self.error:
            raise self.error
        self.asked.append(request)

    def tell(self, report: CommitmentReport, calling_ae: str, address: str) -> bool:
        if self.error:
            raise self.error
        self.told.append((report, calling_ae, address))
        return report.transaction_uid == REPORT.transaction_uid


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(None)  # type: ignore[arg-type]
    service = CommitmentService(
        on_request=door.ask,
        judge=lambda request: judge_request(request.transaction_uid, request.wanted, HELD),
        on_reported=door.answered.append,
        on_report=door.tell,
        audit=lambda event, facts: None,
    )
    settings = ListenerSettings(
        "NODE",
        "127.0.0.1",
        0,
        frozenset({"CT1"}),
        frozenset({"PACS"}),
        max_associations=20,
        max_pdu=1 << 20,
        network_timeout_s=60,
        acse_timeout_s=30,
        dimse_timeout_s=30,
    )
    door.listener = Listener(
        settings, Spool(tmp_path / "spool", 0), lambda instance: None, lambda end: None, lambda *_: None,
        lambda: datetime.now(UTC), service,
    )  # fmt: skip
    door.listener.start()
    yield door
    door.listener.stop(0)


@dataclass
class Sender:
    """A modality that asks for storage commitment, and what it is told."""

    association: Association
    told: list[Dataset] = field(default_factory=list)
    heard: threading.Event = field(default_factory=threading.Event)

    def ask(self, asked: Dataset, action: int = 1, instance: str = PUSH_MODEL_INSTANCE) -> int:
        answer, _ = self.association.send_n_action(asked, action, StorageCommitmentPushModel, instance)
        return answer.Status


@pytest.fixture
def sender(door: Door) -> Iterator[Callable[..., Sender]]:
    opened: list[Sender] = []

    def call(calling: str = "CT1", status: int = 0x0000, thinks_s: float = 0) -> Sender:
        def reported(event: evt.Event) -> tuple[int, None]:
            time.sleep(thinks_s)
            us.told.append(event.event_information)
            us.heard.set()
            return status, None

        ae = AE(calling)
        ae.add_requested_context(StorageCommitmentPushModel)
        ae.add_requested_context(CTImageStorage)
        association = ae.associate(
            "127.0.0.1", door.listener.port, ae_title="NODE", evt_handlers=[(evt.EVT_N_EVENT_REPORT, reported)]
        )
        assert association.is_established
        us = Sender(association)
        opened.append(us)
        return us

    yield call
    for each in opened:
        each.association.release()


def soon(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sender_that_waits_is_told_on_its_own_association(door: Door, sender: Callable[..., Sender]) -> None:
    us = sender()
    assert us.ask(action_information("1.2.3", WANTED)) == 0x0000
    assert door.asked == [CommitmentRequest("1.2.3", "CT1", WANTED)]
    assert us.heard.wait(15)
    assert read_report(us.told[0]) == REPORT
    soon(lambda: door.answered == door.asked)
    assert us.ask(action_information("1.2.4", WANTED[:1])) == 0x0000  # the association is as good as before
    soon(lambda: len(us.told) == 2)


def test_a_sender_may_think_before_it_answers_the_report(door: Door, sender: Callable[..., Sender]) -> None:
    us = sender(thinks_s=0.5)
    us.ask(action_information("1.2.3", WANTED))
    soon(lambda: door.answered == door.asked)


def test_a_sender_that_leaves_is_not_talked_to(
    door: Door, sender: Callable[..., Sender], monkeypatch: pytest.MonkeyPatch
) -> None:
    talked: list[CommitmentReport] = []
    monkeypatch.setattr(commitment, "_report_on", lambda association, report: talked.append(report))
    us = sender()
    assert us.ask(action_information("1.2.3", WANTED)) == 0x0000
    us.association.release()
    soon(lambda: not door.listener.open_associations)
    assert (len(door.asked), door.answered, talked) == (1, [], [])


def test_a_sender_that_refuses_the_report_is_not_taken_for_told(door: Door, sender: Callable[..., Sender]) -> None:
    us = sender(status=0x0110)
    us.ask(action_information("1.2.3", WANTED))
    assert us.heard.wait(15)
    us.association.release()
    soon(lambda: not door.listener.open_associations)
    assert door.answered == []


def test_a_request_that_cannot_be_kept_is_not_promised(door: Door, sender: Callable[..., Sender]) -> None:
    door.error = LedgerUnavailable("the database does not answer")
    us = sender()
    assert us.ask(action_information("1.2.3", WANTED)) == 0x0213
    assert not us.heard.wait(1)


@pytest.mark.parametrize(
    ("asked", "action", "instance", "status"),
    [
        (Dataset(), 1, PUSH_MODEL_INSTANCE, 0x0115),
        (action_information("1.2.3", ()), 1, PUSH_MODEL_INSTANCE, 0x0115),
        (action_information("1.2.3", WANTED), 2, PUSH_MODEL_INSTANCE, 0x0123),
        (action_information("1.2.3", WANTED), 1, "1.2.3.4", 0x0112),
    ],
)
def test_what_is_no_request_is_refused(
    door: Door, sender: Callable[..., Sender], asked: Dataset, action: int, instance: str, status: int
) -> None:
    asked.PatientID = asked.get("PatientID", "")  # an empty data set would not be sent at all
    us = sender()
    assert us.ask(asked, action, instance) == status
    assert door.asked == []


class Pacs:
    """A sender that listens, and takes reports as SCU by role selection."""

    def __init__(self, status: int = 0x0000) -> None:
        self.told: list[CommitmentReport] = []

        def reported(event: evt.Event) -> tuple[int, None]:
            self.told.append(read_report(event.event_information))
            return status, None

        ae = AE("CT1")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        self.server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, reported)])
        self.port = self.server.server_address[1]


def bring(port: int) -> None:
    bring_report(REPORT, Peer("ct1", "CT1", "127.0.0.1", port, "NODE", 5))


def test_a_report_is_brought_on_a_new_association() -> None:
    pacs = Pacs()
    bring(pacs.port)
    assert pacs.told == [REPORT]
    pacs.server.shutdown()
    with pytest.raises(TryAgain, match="cannot be reached"):
        bring(pacs.port)


def test_a_report_that_is_refused_is_brought_again_later() -> None:
    pacs = Pacs(status=0x0213)
    with pytest.raises(TryAgain, match="0x0213"):
        bring(pacs.port)
    pacs.server.shutdown()


def as_scp(port: int, calling: str, report: CommitmentReport, *, roles: bool = True) -> int:
    """A destination opens an association and reports to us; the status of our answer."""
    ae = AE(calling)
    ae.add_requested_context(StorageCommitmentPushModel)
    ae.add_requested_context(CTImageStorage)
    association = ae.associate(
        "127.0.0.1", port, ae_title="NODE",
        ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)] if roles else None,
    )  # fmt: skip
    assert association.is_established
    assert association.accepted_contexts[0].as_scp is roles  # peers that are strict would not report without
    kind, told = event_information(report)
    answer, _ = association.send_n_event_report(told, kind, StorageCommitmentPushModel, PUSH_MODEL_INSTANCE)
    association.release()
    return answer.Status


@pytest.mark.parametrize("roles", [True, False])
def test_a_destination_reports_on_an_association_of_its_own(door: Door, roles: bool) -> None:
    assert as_scp(door.listener.port, "PACS", REPORT, roles=roles) == 0x0000
    assert door.told == [(REPORT, "PACS", "127.0.0.1")]


def test_a_report_on_what_was_not_asked_is_refused(door: Door) -> None:
    assert as_scp(door.listener.port, "PACS", CommitmentReport("9.9", WANTED)) == 0x0115


def test_a_report_that_cannot_be_kept_is_to_be_told_again(door: Door) -> None:
    door.error = LedgerUnavailable("the database does not answer")
    assert as_scp(door.listener.port, "PACS", REPORT) == 0x0213


def test_who_may_only_report_may_not_send_images(door: Door) -> None:
    ae = AE("PACS")
    ae.requested_contexts = []
    for sop_class in (Verification, StorageCommitmentPushModel, CTImageStorage):
        ae.add_requested_context(sop_class)
    association = ae.associate("127.0.0.1", door.listener.port, ae_title="NODE")
    assert {c.abstract_syntax for c in association.accepted_contexts} == {Verification, StorageCommitmentPushModel}
    association.release()
    with Parrot(
        door.listener.port
    ) as parrot:  # pynetdicom takes a quick rejection for a failed connection now and then
        assert parrot.associate("PACS", "NODE", CTImageStorage)[0] == ASSOCIATE_RJ


@pytest.mark.parametrize("kind", [0x0130, 0x0100], ids=["N-ACTION", "N-EVENT-REPORT"])
def test_who_sends_on_without_waiting_is_held_up(door: Door, kind: int) -> None:
    """Requests are served one by one. While one waits its turn nothing more is read: neither memory nor threads grow
    with what a sender says, and all of it is served in the end."""
    gate, most, threads = threading.Semaphore(0), 0, threading.active_count()
    ask, tell = door.ask, door.tell

    def slowly(*told: object) -> object:
        nonlocal most
        (association,) = door.listener._open
        most = max(most, len(association.upper_layer._whole), threading.active_count() - threads)
        assert gate.acquire(timeout=20)
        return ask(*told) if len(told) == 1 else tell(*told)  # type: ignore[arg-type]

    service = door.listener.commitment
    object.__setattr__(service, "on_request", slowly)
    object.__setattr__(service, "on_report", slowly)
    report = kind == 0x0100
    _, told = event_information(REPORT)
    data = _implicit(told if report else action_information("1.2.3", WANTED * 400))
    uids = (0x0002, 0x1000, 0x1002) if report else (0x0003, 0x1001, 0x1008)
    request = command(
        (uids[0], StorageCommitmentPushModel.encode() + b"\0"),
        (0x0100, struct.pack("<H", kind)),
        (0x0110, b"\1\0"),
        (0x0800, b"\1\0"),
        (uids[1], PUSH_MODEL_INSTANCE.encode()),
        (uids[2], b"\1\0"),
    )
    number = 20
    one = pdata(1, 3, request) + b"".join(
        pdata(1, 2 if at + 16_000 >= len(data) else 0, data[at : at + 16_000]) for at in range(0, len(data), 16_000)
    )
    with Parrot(door.listener.port, timeout_s=30) as parrot:
        parrot.associate("CT1", "NODE", StorageCommitmentPushModel, ("1.2.840.10008.1.2",))
        saying = threading.Thread(target=parrot.say, args=(one * number,))
        saying.start()
        statuses = []
        for _ in range(number):
            gate.release()
            statuses.append(parrot.status())
        saying.join()
    assert statuses == [0] * number
    assert len(door.told if report else door.asked) == number
    assert most <= 4  # one that is served, one or two that wait; the threads of the association and of this test


def test_a_peer_that_owes_an_answer_may_not_ask_without_end(door: Door) -> None:
    """The report of its commitment waits for its answer; what it asks meanwhile is kept for later, to a limit."""
    request = command(
        (0x0003, StorageCommitmentPushModel.encode() + b"\0"),
        (0x0100, b"\x30\1"),
        (0x0110, b"\1\0"),
        (0x0800, b"\1\0"),
        (0x1001, PUSH_MODEL_INSTANCE.encode()),
        (0x1008, b"\1\0"),
    )
    one = pdata(1, 3, request) + pdata(1, 2, _implicit(action_information("1.2.3", WANTED)))
    with Parrot(door.listener.port, timeout_s=30) as parrot:
        parrot.associate("CT1", "NODE", StorageCommitmentPushModel, ("1.2.840.10008.1.2",))
        parrot.say(one)
        assert parrot.status() == 0
        kind, body = parrot.hear()  # the report
        assert (kind, elements(body[6:])[0x0100]) == (P_DATA, b"\0\1")
        parrot.say(one * 20)
        while kind == P_DATA:
            kind, _ = parrot.hear()
        assert kind == ABORT


def _implicit(dataset: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = True, True
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())

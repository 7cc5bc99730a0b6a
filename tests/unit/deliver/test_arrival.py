"""A PACS is asked whether it has our results: pynetdicom peers that commit, report, refuse, keep silent and search."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)

from pacs_node import association
from pacs_node.commitment import PUSH_MODEL_INSTANCE, event_information, read_request
from pacs_node.deliver import arrival
from pacs_node.deliver.arrival import DimseArrivalCheck, sent_objects
from pacs_node.deliver.destination import Deferred
from pacs_node.deliver.dimse import Peer
from pacs_node.errors import NotOffered
from pacs_node.records import CommitmentReport, Sent
from tests.factories import ct_series, us_image
from tests.harness import wait_for

CT = str(CTImageStorage)
SENT = [Sent(CT, f"1.5.{n}", "1.8", f"1.9.{n}") for n in range(3)]
PAIRS = tuple((each.sop_class_uid, each.sop_instance_uid) for each in SENT)


@pytest.fixture(autouse=True)
def _short_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "HOLD_S", 1.0)


@pytest.fixture
def pacs() -> Iterator[Callable[..., DimseArrivalCheck]]:
    """pacs(handlers, classes) -> an arrival check that asks a real peer with these."""
    servers = []

    def start(handlers: list[Any], *classes: str) -> DimseArrivalCheck:
        ae = AE("PACS")
        for sop_class in classes or (StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind):
            ae.add_supported_context(sop_class)
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        servers.append(server)
        return DimseArrivalCheck(Peer("pacs", "PACS", "127.0.0.1", server.server_address[1], "NODE", 5))

    yield start
    for server in servers:
        threading.Thread(target=server.shutdown).start()


def committing(*reports: Callable[[str, tuple], CommitmentReport], status: int = 0) -> list[Any]:
    """Handlers of a peer that answers N-ACTION with `status`, then reports on the same association."""

    def asked(event: evt.Event) -> tuple[int, None]:
        transaction_uid, wanted = read_request(event.action_information)

        def tell() -> None:
            for report in reports:
                kind, told = event_information(report(transaction_uid, wanted))
                event.assoc.send_n_event_report(told, kind, StorageCommitmentPushModel, PUSH_MODEL_INSTANCE)

        if reports:
            threading.Timer(0.1, tell).start()
        return status, None

    return [(evt.EVT_N_ACTION, asked)]


def test_a_report_on_the_same_association(pacs: Callable[..., DimseArrivalCheck]) -> None:
    report = pacs(committing(CommitmentReport)).ask_commitment("1.2", SENT)
    assert report == CommitmentReport("1.2", PAIRS)


def test_a_report_is_answered_before_we_leave(
    pacs: Callable[..., DimseArrivalCheck], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the answer takes: it is sent by another thread than that which leaves."""
    send_msg = association._Messages.send_msg

    def slowly(messages: association._Messages, primitive: Any, context_id: int) -> None:
        if isinstance(primitive, N_EVENT_REPORT):
            time.sleep(0.3)
        send_msg(messages, primitive, context_id)

    monkeypatch.setattr(association._Messages, "send_msg", slowly)
    answers: list[Dataset] = []
    send_report = Association.send_n_event_report
    monkeypatch.setattr(
        Association,
        "send_n_event_report",
        lambda *said: answers.append(send_report(*said)[0]),  # the peer's, in this process
    )
    assert pacs(committing(CommitmentReport)).ask_commitment("1.2", SENT) == CommitmentReport("1.2", PAIRS)
    wait_for(lambda: answers, 20, "the peer to have its answer")
    assert [answer.get("Status") for answer in answers] == [0x0000]


def test_what_serves_a_report_says_nothing_of_the_reactor(
    pacs: Callable[..., DimseArrivalCheck], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while the reactor stands where it was told to: whoever leaves then waited for it without end."""
    ends = threading.Event()
    serve = Association._serve_request

    def late(asked: Association, message: Any, context_id: int) -> None:
        serve(asked, message, context_id)
        if isinstance(message, N_EVENT_REPORT):
            asked._reactor_checkpoint.clear()
            wait_for(lambda: asked._is_paused, 20, "the reactor to pause")
            asked._is_paused = False  # as its last act, now that it matters
            assert asked._is_paused
            asked._reactor_checkpoint.set()
            ends.set()

    monkeypatch.setattr(Association, "_serve_request", late)
    assert pacs(committing(CommitmentReport)).ask_commitment("1.2", SENT) == CommitmentReport("1.2", PAIRS)
    assert ends.is_set()


def test_failures_keep_their_reasons(pacs: Callable[..., DimseArrivalCheck]) -> None:
    def some(transaction_uid: str, wanted: tuple) -> CommitmentReport:
        return CommitmentReport(transaction_uid, wanted[:1], tuple((*each, 0x0112) for each in wanted[1:]))

    report = pacs(committing(some)).ask_commitment("1.2", SENT)
    assert report is not None
    assert report.failed == tuple((*each, 0x0112) for each in PAIRS[1:])


def test_a_report_on_something_else_is_not_ours(pacs: Callable[..., DimseArrivalCheck]) -> None:
    other = committing(lambda _, wanted: CommitmentReport("9.9", wanted), CommitmentReport)
    assert pacs(other).ask_commitment("1.2", SENT) == CommitmentReport("1.2", PAIRS)


def test_silence_means_later(pacs: Callable[..., DimseArrivalCheck]) -> None:
    assert pacs(committing()).ask_commitment("1.2", SENT) is None
    assert pacs(committing(status=0x0131)).ask_commitment("1.2", SENT) is None  # it has this request already


@pytest.mark.parametrize(("status", "error"), [(0x0110, Deferred), (0x0213, Deferred), (0x0122, NotOffered),
                                               (0x0124, NotOffered), (0x0211, NotOffered)])  # fmt: skip
def test_a_refused_request(pacs: Callable[..., DimseArrivalCheck], status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"0x{status:04X}"):
        pacs(committing(status=status)).ask_commitment("1.2", SENT)


def test_a_peer_that_offers_neither(pacs: Callable[..., DimseArrivalCheck]) -> None:
    arrival_check = pacs([], CTImageStorage)
    with pytest.raises(NotOffered, match="Storage Commitment Push Model"):
        arrival_check.ask_commitment("1.2", SENT)
    with pytest.raises(NotOffered, match="Study Root"):
        arrival_check.find(SENT)


def test_a_peer_that_is_down() -> None:
    arrival_check = DimseArrivalCheck(Peer("pacs", "PACS", "127.0.0.1", 9, "NODE", 2))
    with pytest.raises(Deferred, match="cannot be reached"):
        arrival_check.ask_commitment("1.2", SENT)
    with pytest.raises(Deferred, match="cannot be reached"):
        arrival_check.find(SENT)


def finding(held: dict[str, list[str]], last: int = 0x0000) -> list[Any]:
    """Handlers of a peer that holds `held`: Series Instance UID -> SOP Instance UIDs."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        assert (wanted.QueryRetrieveLevel, wanted.StudyInstanceUID) == ("IMAGE", "1.8")
        for uid in held.get(wanted.SeriesInstanceUID, []):
            match = Dataset()
            match.SOPInstanceUID = uid
            yield 0xFF00, match
        yield last, None

    return [(evt.EVT_C_FIND, find)]


def test_c_find_names_what_is_there(pacs: Callable[..., DimseArrivalCheck]) -> None:
    held = {"1.9.0": ["1.5.0", "7.7"], "1.9.2": ["7.8"]}  # others' objects in the same series do not count as ours
    assert pacs(finding(held)).find(SENT) == {"1.5.0"}


def test_one_more_or_less_makes_the_difference(pacs: Callable[..., DimseArrivalCheck]) -> None:
    held = {each.series_uid: [each.sop_instance_uid] for each in SENT}
    assert pacs(finding(held)).find(SENT) == {each.sop_instance_uid for each in SENT}
    del held["1.9.1"]
    assert pacs(finding(held)).find(SENT) == {"1.5.0", "1.5.2"}


@pytest.mark.parametrize(("status", "error"), [(0xA700, Deferred), (0xA900, NotOffered), (0xC000, NotOffered)])
def test_a_search_that_fails_finds_nothing_out(
    pacs: Callable[..., DimseArrivalCheck], status: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"0x{status:04X}"):
        pacs(finding({}, last=status)).find(SENT)


def test_what_was_sent_is_read_from_the_files(tmp_path: Path) -> None:
    series = ct_series(tmp_path / "ct", shape=(2, 16, 16))
    other = us_image(tmp_path / "us")
    (tmp_path / "text.dcm").write_text("no DICOM")
    files = [*tmp_path.rglob("*.dcm"), tmp_path / "gone.dcm"]
    stored = frozenset(str(image.SOPInstanceUID) for image in series)
    sent = sent_objects([*files, *files], stored)
    assert {each.sop_instance_uid for each in sent} == stored
    assert len(sent) == 2
    assert {(e.sop_class_uid, e.series_uid, e.study_uid) for e in sent} == {
        (series[0].SOPClassUID, series[0].SeriesInstanceUID, series[0].StudyInstanceUID)
    }
    assert str(other.SOPInstanceUID) not in {each.sop_instance_uid for each in sent}

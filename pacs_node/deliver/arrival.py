"""Did a result arrive? A PACS is asked: by storage commitment (PS3.4 Annex J), by C-FIND at IMAGE level (PS3.4 C.6)."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import evt

from dicom_sr import attributes
from pacs_node.association import PENDING, SUCCESS, Peer, matches
from pacs_node.commitment import (
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST,
    TRANSFER_SYNTAXES,
    Malformed,
    action_information,
    read_report,
)
from pacs_node.deliver.destination import Deferred, Undeliverable
from pacs_node.deliver.dimse import _association
from pacs_node.errors import NotOffered
from pacs_node.records import CommitmentReport, Sent

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # PS3.4 Table C.6.2-1
INVALID_ARGUMENT = 0x0115  # PS3.7 C.5.8
HOLD_S = 2.0  # how long the association stays open for a report on it: those who use it report at once
NEEDED = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]

# What an N-ACTION status means for the request, PS3.7 Annex C; every other failure: the peer does not commit.
ON_ITS_WAY = frozenset({SUCCESS, 0x0131})  # Duplicate transaction UID: it has our request from before a restart
NOT_NOW = frozenset({0x0110, 0x0210, 0x0213})  # Processing failure, Duplicate invocation, Resource limitation


class DimseArrivalCheck:
    """A PACS that is asked over DIMSE whether it has our results. The promises are those of confirm.Witness."""

    def __init__(self, peer: Peer, *, commits: bool = True, queries: bool = True) -> None:
        self.peer, self.commits = peer, commits
        self.query = "C-FIND" if queries else None

    def ask_commitment(self, transaction_uid: str, sent: Sequence[Sent]) -> CommitmentReport | None:
        """The report, when it comes on the same association; None: it will come on another one."""
        reports: queue.Queue[CommitmentReport] = queue.Queue()

        def reported(event: evt.Event) -> tuple[int, None]:
            try:
                report = read_report(event.event_information)
            except (Malformed, *attributes.UNREADABLE, OSError):
                return INVALID_ARGUMENT, None
            if report.transaction_uid != transaction_uid:
                return INVALID_ARGUMENT, None
            reports.put(report)
            return SUCCESS, None

        asked = action_information(transaction_uid, [(each.sop_class_uid, each.sop_instance_uid) for each in sent])
        contexts = {(PUSH_MODEL, syntax) for syntax in TRANSFER_SYNTAXES}
        try:
            with _association(self.peer, contexts, [(evt.EVT_N_EVENT_REPORT, reported)]) as association:
                answer, _ = association.send_n_action(asked, REQUEST, PUSH_MODEL, PUSH_MODEL_INSTANCE)
                self._judge_action(answer)
                try:
                    return reports.get(timeout=HOLD_S)
                except queue.Empty:
                    return None
        except Undeliverable as refusal:
            raise NotOffered(str(refusal)) from refusal

    def _judge_action(self, answer: Dataset) -> None:
        """Raises NotOffered or Deferred unless the report is on its way."""
        if "Status" not in answer:
            raise Deferred(f"{self.peer} did not answer N-ACTION within {self.peer.timeout_s:g} s")
        words = f"{self.peer} answered N-ACTION with 0x{answer.Status:04X}"
        if answer.Status in NOT_NOW:
            raise Deferred(words)
        if answer.Status not in ON_ITS_WAY:
            raise NotOffered(words)

    def find(self, sent: Sequence[Sent]) -> set[str]:
        """One C-FIND per series that names none of our instances: some PACS match no list of UIDs."""
        ours = {each.sop_instance_uid for each in sent}
        found: set[str] = set()
        contexts = {(STUDY_ROOT_FIND, syntax) for syntax in TRANSFER_SYNTAXES}
        try:
            with _association(self.peer, contexts) as association:
                for study_uid, series_uid in sorted({(each.study_uid, each.series_uid) for each in sent}):
                    if not association.is_established:
                        raise Deferred(f"{self.peer} broke off between two C-FIND")
                    wanted = _image_level(study_uid, series_uid)
                    for status, match in matches(association, wanted, STUDY_ROOT_FIND, self.peer):
                        self._judge_find(status)
                        if match is not None:
                            found |= ours & {attributes.text(match, "SOPInstanceUID")}
        except Undeliverable as refusal:
            raise NotOffered(str(refusal)) from refusal
        return found

    def _judge_find(self, status: Dataset) -> None:
        if "Status" not in status:
            raise Deferred(f"{self.peer} broke off, or did not answer C-FIND within {self.peer.timeout_s:g} s")
        if status.Status == 0xA700:  # Refused: Out of Resources, PS3.4 Table C.4-1
            raise Deferred(f"{self.peer} answered C-FIND with 0xA700 Out of Resources")
        if status.Status != SUCCESS and status.Status not in PENDING:
            raise NotOffered(f"{self.peer} answered C-FIND with 0x{status.Status:04X}")


def sent_objects(paths: Iterable[Path], stored: frozenset[str]) -> list[Sent]:
    """Those of the files that hold an instance in `stored`, each once, in order. What is no DICOM is passed over."""
    found: dict[str, Sent] = {}
    for path in paths:
        header = _header(path)
        if header is not None and header.SOPInstanceUID in stored:
            uids = str(header.SOPClassUID), str(header.SOPInstanceUID), str(header.StudyInstanceUID)
            found.setdefault(uids[1], Sent(*uids, str(header.SeriesInstanceUID)))
    return list(found.values())


def _header(path: Path) -> Dataset | None:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=NEEDED)
    except (InvalidDicomError, OSError, EOFError):
        return None
    return header if all(keyword in header for keyword in NEEDED) else None


def _image_level(study_uid: str, series_uid: str) -> Dataset:
    wanted = Dataset()
    wanted.QueryRetrieveLevel = "IMAGE"
    wanted.StudyInstanceUID, wanted.SeriesInstanceUID = study_uid, series_uid
    wanted.SOPInstanceUID = None  # universal matching, PS3.4 C.2.2.2.3
    return wanted

"""Storage commitment as data sets: what is asked for and what is answered. PS3.4 Annex J; no network here.

Both rooms that talk to peers need it: `deliver` asks for the commitment of results, `receive` answers senders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydicom.dataset import Dataset

from dicom_sr import attributes
from pacs_node.records import CommitmentReport

PUSH_MODEL = "1.2.840.10008.1.20.1"  # Storage Commitment Push Model SOP Class: PS3.4 J.3
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"  # its well-known SOP Instance: PS3.4 J.3.5
TRANSFER_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit first: the one everybody must know
REQUEST = 1  # Action Type ID: PS3.4 Table J.3.2-1
ALL_COMMITTED, FAILURES_EXIST = 1, 2  # Event Type ID: PS3.4 Table J.3.3-1

# Failure Reason (0008,1197): PS3.3 C.14.1.1
NO_SUCH_INSTANCE = 0x0112
CLASS_CONFLICT = 0x0119
FAILURE_REASONS = {
    0x0110: "Processing failure",
    NO_SUCH_INSTANCE: "No such object instance",
    0x0213: "Resource limitation",
    0x0122: "Referenced SOP Class not supported",
    CLASS_CONFLICT: "Class/Instance conflict",
    0x0131: "Duplicate transaction UID",
}


class Malformed(ValueError):
    """The data set is no storage commitment request or report; the message says what is wrong."""


def reason_words(reason: int) -> str:
    return f"0x{reason:04X} {FAILURE_REASONS.get(reason, 'a reason that PS3.3 does not list')}"


def action_information(transaction_uid: str, wanted: Iterable[tuple[str, str]]) -> Dataset:
    """The data set of an N-ACTION: PS3.4 Table J.3.2-1. `wanted`: (SOP Class UID, SOP Instance UID)."""
    asked = Dataset()
    asked.TransactionUID = transaction_uid
    asked.ReferencedSOPSequence = [_reference(*each) for each in wanted]
    return asked


def event_information(report: CommitmentReport) -> tuple[int, Dataset]:
    """(Event Type ID, data set) of an N-EVENT-REPORT: PS3.4 Table J.3.3-1."""
    told = Dataset()
    told.TransactionUID = report.transaction_uid
    if report.committed:
        told.ReferencedSOPSequence = [_reference(*each) for each in report.committed]
    if not report.failed:
        return ALL_COMMITTED, told
    told.FailedSOPSequence = []
    for sop_class_uid, sop_instance_uid, reason in report.failed:
        item = _reference(sop_class_uid, sop_instance_uid)
        item.FailureReason = reason
        told.FailedSOPSequence.append(item)
    return FAILURES_EXIST, told


def read_request(asked: Dataset) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(Transaction UID, what is wanted) of an N-ACTION. Raises Malformed."""
    wanted = _references(asked, "ReferencedSOPSequence")
    if not wanted:
        raise Malformed("ReferencedSOPSequence (0008,1199) is missing or empty")
    return _transaction(asked), wanted


def read_report(told: Dataset) -> CommitmentReport:
    """What an N-EVENT-REPORT says. Raises Malformed."""
    failed = tuple(
        (*reference, attributes.whole_or(item, "FailureReason", 0x0110) & 0xFFFF)
        for item, reference in zip(
            _items(told, "FailedSOPSequence"), _references(told, "FailedSOPSequence"), strict=True
        )
    )
    return CommitmentReport(_transaction(told), _references(told, "ReferencedSOPSequence"), failed)


def judge_request(transaction_uid: str, wanted: Iterable[tuple[str, str]], held: Mapping[str, str]) -> CommitmentReport:
    """The answer to a request. `held`: SOP Instance UID -> SOP Class UID of what is durable here."""
    committed, failed = [], []
    for sop_class_uid, sop_instance_uid in wanted:
        ours = held.get(sop_instance_uid)
        if ours == sop_class_uid:
            committed.append((sop_class_uid, sop_instance_uid))
        else:
            reason = NO_SUCH_INSTANCE if ours is None else CLASS_CONFLICT
            failed.append((sop_class_uid, sop_instance_uid, reason))
    return CommitmentReport(transaction_uid, tuple(committed), tuple(failed))


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item


def _transaction(dataset: Dataset) -> str:
    return _uid(dataset, "TransactionUID")


def _references(dataset: Dataset, keyword: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))
        for item in _items(dataset, keyword)
    )


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    try:
        found = attributes.values(dataset, keyword)
    except attributes.BadAttribute as bad:
        raise Malformed(str(bad)) from bad
    if not all(isinstance(each, Dataset) for each in found):
        raise Malformed(f"{keyword} is no sequence")
    return found


def _uid(dataset: Dataset, keyword: str) -> str:
    try:
        return attributes.uid(dataset, keyword)
    except attributes.BadAttribute as bad:
        raise Malformed(str(bad)) from bad

"""Storage commitment at our door: senders ask what we keep, and destinations report on results. PS3.4 Annex J."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydicom.dataset import Dataset
from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_ACTION
from pynetdicom.presentation import build_context

from dicom_sr import attributes
from dicom_sr.reading import IMPLICIT_VR_LITTLE_ENDIAN, TooMuch, pixels_at
from pacs_node.association import SUCCESS, NoneAccepted, Peer, Rejected, association
from pacs_node.commitment import (
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST,
    TRANSFER_SYNTAXES,
    Malformed,
    event_information,
    read_report,
    read_request,
)
from pacs_node.errors import NodeError, TryAgain
from pacs_node.receive.upper_layer import AcceptedAssociation
from pacs_node.records import CommitmentReport, CommitmentRequest

# PS3.7 Annex C
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213

LONGEST_COMMENT = 64  # Error Comment is LO: PS3.7 C.4.2
BEFORE_REPORT_S = 0.5  # a sender that will not wait for the report has released by then

Answer = tuple[int | Dataset, None]


@dataclass(frozen=True)
class CommitmentService:
    """Answers N-ACTION and N-EVENT-REPORT. What it is told is durable before it answers success.

    on_request: keep the request; it is reported on, be it after a restart. judge: what of it we keep, as of now.
    on_reported: the sender has the report. on_report: keep the report of a destination (its AE title, its address);
    False when that one was not asked for it.
    """

    on_request: Callable[[CommitmentRequest], None]
    judge: Callable[[CommitmentRequest], CommitmentReport]
    on_reported: Callable[[CommitmentRequest], None]
    on_report: Callable[[CommitmentReport, str, str], bool]
    audit: Callable[[str, Mapping[str, Any]], None]

    def on_action(self, event: evt.Event) -> Answer:
        """Answer one N-ACTION. 0x0000 is a promise: a report will follow."""
        if cast(N_ACTION, event.request).RequestedSOPInstanceUID != PUSH_MODEL_INSTANCE:
            return _failure(NO_SUCH_INSTANCE, f"the one instance of this class is {PUSH_MODEL_INSTANCE}")
        if event.action_type != REQUEST:
            return _failure(NO_SUCH_ACTION, f"the one action of this class is {REQUEST}")
        calling_ae = _calling_ae(event.assoc)
        try:
            transaction_uid, wanted = read_request(_counted(event, "ActionInformation", "action_information"))
            request = CommitmentRequest(transaction_uid, calling_ae, wanted)
            self.on_request(request)
        except Malformed as error:
            return _failure(INVALID_ARGUMENT, str(error))
        except NodeError as error:
            return _failure(RESOURCE_LIMITATION, str(error))
        caller = cast(AcceptedAssociation, event.assoc)
        caller.then = lambda: self._answer_here(caller, request)
        self.audit("commitment-asked", {"calling_ae": calling_ae, "instances": len(wanted)})
        return SUCCESS, None

    def on_event_report(self, event: evt.Event) -> Answer:
        """Answer one N-EVENT-REPORT. 0x0000 is a promise: we shall not ask for this again."""
        calling_ae, address = _calling_ae(event.assoc), str(event.assoc.requestor.address)
        try:
            report = read_report(_counted(event, "EventInformation", "event_information"))
            known = self.on_report(report, calling_ae, address)
        except Malformed as error:
            return _failure(INVALID_ARGUMENT, str(error))
        except NodeError as error:
            return _failure(RESOURCE_LIMITATION, str(error))
        facts = {
            "calling_ae": calling_ae,
            "from": address,
            "transaction_uid": report.transaction_uid,
            "known": known,
        }
        self.audit("commitment-reported", facts)
        return (SUCCESS, None) if known else _failure(INVALID_ARGUMENT, "this Transaction UID is not one of ours")

    def _answer_here(self, caller: AcceptedAssociation, request: CommitmentRequest) -> None:
        """Report on the sender's own association while it is open and silent.

        Otherwise, or when the sender does not answer, the report is brought on a new association: see bring_report.
        """
        if caller.upper_layer.quiet(BEFORE_REPORT_S) and _report_on(caller, self.judge(request)) == SUCCESS:
            self.on_reported(request)


def bring_report(report: CommitmentReport, peer: Peer) -> None:
    """Report to a sender on an association of our own, as SCP by role selection: PS3.4 J.3.3. Raises TryAgain."""
    contexts = [build_context(PUSH_MODEL, list(TRANSFER_SYNTAXES))]
    try:
        with association(peer, contexts, ext_neg=[build_role(PUSH_MODEL, scp_role=True)]) as opened:
            status = _report_on(opened, report)
    except (Rejected, NoneAccepted) as refusal:
        raise TryAgain(f"{refusal}; it does not let us report a storage commitment") from refusal
    if status != SUCCESS:
        said = "did not answer" if status is None else f"answered 0x{status:04X} to"
        raise TryAgain(f"{peer} {said} the report of its storage commitment")


def _report_on(opened: Association, report: CommitmentReport) -> int | None:
    """The status answered; None without an answer."""
    event_type, told = event_information(report)
    status, _ = opened.send_n_event_report(told, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    return status.get("Status")


def _counted(event: evt.Event, parameter: str, decoded: str) -> Dataset:
    """The data set that comes with a request. Raises Malformed before memory is taken for more elements than are read,
    and for bytes that are no data set."""
    encoded = getattr(event.request, parameter)
    if encoded is None:
        raise Malformed("it has no data set")
    implicit = event.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    try:
        pixels_at(encoded.getbuffer(), 0, implicit=implicit, big_endian=False)
        return cast(Dataset, getattr(event, decoded))
    except (*attributes.UNREADABLE, OSError, RecursionError) as error:  # TooMuch is a ValueError
        why = str(error) if isinstance(error, TooMuch) else "its data set cannot be read"
        raise Malformed(why) from error


def _calling_ae(caller: Association) -> str:
    return str(caller.requestor.ae_title).strip()


def _failure(status: int, comment: str) -> Answer:
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment[:LONGEST_COMMENT]
    return answer, None

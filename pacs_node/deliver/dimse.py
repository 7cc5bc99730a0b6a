"""C-STORE to a DICOM peer: propose only what is sent, read what was accepted, record every status."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import cast

import structlog
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import build_context
from pynetdicom.transport import AssociationSocket

from pacs_node.deliver.destination import Deferred, Now, Outcome, Undeliverable, outcome_of
from pacs_node.errors import GiveUp
from pacs_node.records import Package, Receipt

log = structlog.get_logger(__name__)

_config.STORE_SEND_CHUNKED_DATASET = True  # the file's bytes as they are; pynetdicom would decode and re-encode them

VERIFICATION = "1.2.840.10008.1.1"  # PS3.4 A.4
MOST_CONTEXTS = 128  # context ids are the odd numbers 1 to 255: PS3.8 9.3.2.2
MAX_PDU = 1 << 20  # bytes we offer to receive; responses are small
PERMANENT = 1  # result of an A-ASSOCIATE-RJ: PS3.8 Table 9-21

# (source, reason) of an A-ASSOCIATE-RJ: PS3.8 Table 9-21
REJECTIONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "it does not know our AE title",
    (1, 7): "it does not call itself so",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "its limit of associations is reached",
}
# why a presentation context was not accepted: PS3.8 Table 9-18
CONTEXT_RESULTS = {
    1: "refused by its user",
    2: "refused without a reason",
    3: "the SOP class is not supported",
    4: "the transfer syntax is not supported",
}


@dataclass(frozen=True)
class Peer:
    """A DICOM application entity to talk to, and as whom."""

    name: str
    ae_title: str
    host: str
    port: int
    calling_ae: str
    timeout_s: float = 30  # for the connection, and for each answer

    def __str__(self) -> str:
        return f"{self.name} ({self.ae_title} at {self.host}:{self.port})"


@dataclass(frozen=True)
class Outgoing:
    """A file to send, by what its file meta information says."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @property
    def context(self) -> tuple[str, str]:
        return self.sop_class_uid, self.transfer_syntax_uid

    @classmethod
    def read(cls, path: Path) -> Outgoing:
        """Raises Undeliverable when it is no DICOM file."""
        try:
            meta = read_file_meta_info(path)
            return cls(path, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID)
        except (InvalidDicomError, AttributeError, EOFError, FileNotFoundError) as error:
            raise Undeliverable(f"{path.name} is no DICOM file: {error}") from error


class DimseDestination:
    """A PACS that takes results by C-STORE. One association per package."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.name = peer.name

    def deliver(self, package: Package, now: Now) -> list[Receipt]:
        """See Destination."""
        outgoing = [Outgoing.read(path) for path in package.paths]
        receipts: list[Receipt] = []
        outcomes: set[Outcome] = set()
        for receipt, outcome in _store_all(outgoing, self.peer, now):
            receipts.append(receipt)
            outcomes.add(outcome)
        refusals = "; ".join(receipt.text for receipt in receipts if not receipt.stored)
        if Outcome.AGAIN in outcomes:
            raise Deferred(f"{self.peer}: {refusals}", receipts)
        if Outcome.NEVER in outcomes:
            raise Undeliverable(f"{self.peer}: {refusals}", receipts)
        return receipts


def send(
    paths: Iterable[Path],
    host: str,
    port: int,
    calling_ae: str,
    called_ae: str,
    now: Now,
    progress: Callable[[Receipt, int, int], None] | None = None,
) -> list[Receipt]:
    """Send files, and all files below folders, in as few associations as their presentation contexts allow.

    progress: told each receipt, how many are done, and of how many. Files that are not DICOM are passed over with a
    warning. Raises Deferred or Undeliverable when no association comes about or one breaks; they carry the receipts.
    """
    peer = Peer(called_ae, called_ae, host, port, calling_ae)
    outgoing = list(_readable(paths))
    receipts: list[Receipt] = []
    for batch in _batches(outgoing):
        try:
            for receipt, _ in _store_all(batch, peer, now):
                receipts.append(receipt)
                if progress:
                    progress(receipt, len(receipts), len(outgoing))
        except (Deferred, Undeliverable) as error:
            raise type(error)(str(error), receipts) from error
    return receipts


def echo(peer: Peer) -> str:
    """C-ECHO: "answered in 3 ms". Raises Deferred or Undeliverable with the reason why not."""
    with _association(peer, {(VERIFICATION, "1.2.840.10008.1.2")}) as association:
        began = time.monotonic()
        status = association.send_c_echo()
        if "Status" not in status:
            raise Deferred(f"{peer} did not answer C-ECHO within {peer.timeout_s:g} s")
        if status.Status != 0x0000:
            raise Undeliverable(f"{peer} answered C-ECHO with 0x{status.Status:04X}")
        return f"answered in {(time.monotonic() - began) * 1000:.0f} ms"


def _store_all(outgoing: Sequence[Outgoing], peer: Peer, now: Now) -> Iterator[tuple[Receipt, Outcome]]:
    """Send each object over one association. Raises Deferred, with the receipts, when the association breaks."""
    receipts: list[Receipt] = []
    with _association(peer, {each.context for each in outgoing}) as association:
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in association.accepted_contexts
        }
        why_not = _why_not_accepted(association)
        for number, each in enumerate(outgoing, start=1):
            if each.context not in accepted:
                why = why_not.get(each.context, "no answer to this one")
                receipt, outcome = _not_accepted(each, why, now), Outcome.NEVER
            else:
                status = (
                    association.send_c_store(each.path, msg_id=number % 0xFFFF)
                    if association.is_established
                    else Dataset()
                )
                if "Status" not in status:
                    raise Deferred(
                        f"{peer} broke off after {len(receipts)} of {len(outgoing)} objects, or did not answer within "
                        f"{peer.timeout_s:g} s",
                        receipts,
                    )
                receipt, outcome = _receipt(each, status.Status, status.get("ErrorComment", ""), now)
            receipts.append(receipt)
            yield receipt, outcome


def _receipt(each: Outgoing, status: int, comment: str, now: Now) -> tuple[Receipt, Outcome]:
    outcome, meaning = outcome_of(status)
    words = {Outcome.CHANGED: f"stored with a change: {meaning}"}.get(outcome, meaning)
    text = f"0x{status:04X} {words}" + (f" ({comment})" if comment else "")
    stored = outcome in (Outcome.STORED, Outcome.CHANGED)
    return Receipt(each.sop_instance_uid, stored, status, text, now()), outcome


def _not_accepted(each: Outgoing, why: str, now: Now) -> Receipt:
    return Receipt(each.sop_instance_uid, False, None, f"{_named(*each.context)} not accepted: {why}", now())


def _why_not_accepted(association: Association) -> dict[tuple[str, str], str]:
    """(SOP class, transfer syntax) of each context that was proposed and not accepted -> the reason.

    By context id: what else a peer writes into a refused context is not significant, PS3.8 9.3.3.2.
    """
    proposed = {context.context_id: context for context in association.requestor.requested_contexts}
    return {
        (str(ours.abstract_syntax), str(ours.transfer_syntax[0])): CONTEXT_RESULTS.get(
            context.result or 0, f"result {context.result}"
        )
        for context in association.rejected_contexts
        if (ours := proposed.get(context.context_id)) is not None
    }


def _named(sop_class_uid: str, transfer_syntax_uid: str) -> str:
    return f"{UID(sop_class_uid).name} in {UID(transfer_syntax_uid).name}"


@contextmanager
def _association(
    peer: Peer, contexts: set[tuple[str, str]], handlers: Sequence[evt.EventHandlerType] = ()
) -> Iterator[Association]:
    """An association with the presentation contexts (SOP class, transfer syntax), released at the end.

    Raises Deferred or Undeliverable when it does not come about.
    """
    ae = AE(peer.calling_ae)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = peer.timeout_s
    connected = Event()

    def on_connection(event: evt.Event) -> None:
        connected.set()
        transport = cast(AssociationSocket, event.assoc.dul.socket)
        cast(socket.socket, transport.socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    association = ae.associate(
        peer.host,
        peer.port,
        contexts=[build_context(sop_class, [syntax]) for sop_class, syntax in sorted(contexts)],
        ae_title=peer.ae_title,
        max_pdu=MAX_PDU,
        evt_handlers=[(evt.EVT_CONN_OPEN, on_connection), *handlers],
    )
    if not association.is_established:
        if not connected.is_set():
            raise Deferred(f"{peer} cannot be reached")
        raise _why_no_association(association, peer)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _why_no_association(association: Association, peer: Peer) -> Deferred | Undeliverable:
    answer = cast(A_ASSOCIATE | None, association.acceptor.primitive)
    if association.is_rejected and answer is not None:
        why = REJECTIONS.get((answer.result_source or 0, answer.diagnostic or 0), "for an unknown reason")
        words = f"{peer} rejected {peer.calling_ae!r}: {why}"
        return Undeliverable(words) if answer.result == PERMANENT else Deferred(words)
    refused = _why_not_accepted(association)
    if refused:
        names = ", ".join(sorted(_named(*context) for context in refused))
        return Undeliverable(f"{peer} accepts none of what is to be sent: {names}")
    return Deferred(f"{peer} aborted the association request, or did not answer it within {peer.timeout_s:g} s")


def _readable(paths: Iterable[Path]) -> Iterator[Outgoing]:
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            try:
                yield Outgoing.read(file)
            except GiveUp as error:
                log.warning("send.passed-over", file=str(file), reason=str(error))


def _batches(outgoing: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """In order, cut where one association would need more than 128 presentation contexts."""
    batch: list[Outgoing] = []
    contexts: set[tuple[str, str]] = set()
    for each in outgoing:
        if each.context not in contexts and len(contexts) == MOST_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        batch.append(each)
        contexts.add(each.context)
    if batch:
        yield batch

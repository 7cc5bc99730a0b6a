"""The one way to a peer: an association is opened here, whoever needs it, and what goes wrong with it is said here.

Nobody there, a name that does not resolve, a connection refused, reset or silent, an answer that is no DICOM: each is
one kind of error, Unreachable, "try again later", in the same words whoever asked. A refusal is an answer, not an error
of the network: Rejected, NoneAccepted.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_sr.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.errors import GiveUp, NotOffered, Unreachable

MAX_PDU = 1 << 20  # bytes we offer to receive
SUCCESS = 0x0000  # of every DIMSE service: PS3.7 C.1
PENDING = frozenset({0xFF00, 0xFF01})  # of queries and retrievals, more to come: PS3.4 Table C.4-1, C.4-3
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

Context = tuple[str, str]  # SOP class, transfer syntax


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


class Rejected(GiveUp):
    """The peer will not talk to us, now or later: an A-ASSOCIATE-RJ that is permanent."""


class NoneAccepted(GiveUp):
    """Not one of the proposed presentation contexts was accepted; `why` of each."""

    def __init__(self, message: str, why: Mapping[Context, str]) -> None:
        super().__init__(message)
        self.why = why


@contextmanager
def association(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    *,
    handlers: Sequence[evt.EventHandlerType] = (),
    ext_neg: Sequence[Any] = (),
    connect_s: float | None = None,
) -> Iterator[Association]:
    """An association, released at the end, and after an answer that is a refusal; aborted when it fails otherwise.

    connect_s   for the connection and the answer to it, if less than the peer's `timeout_s`

    Raises Unreachable, Rejected or NoneAccepted; Unreachable also when it breaks while it is used.
    """
    opened = _opened(peer, contexts, handlers, ext_neg, connect_s)
    done = False
    try:
        yield opened
        done = True
    except (GiveUp, NotOffered):
        done = True
        raise
    except (RuntimeError, ValueError) as error:
        # how pynetdicom says that there is no association any more; of one that stands it is not about the network
        if opened.is_established:
            raise
        raise Unreachable(f"{peer} broke off") from error
    except OSError as error:
        if not isinstance(error, ConnectionError | TimeoutError | socket.gaierror | ssl.SSLError):
            raise  # a file of ours
        raise Unreachable(f"{peer} broke off: {why_unreachable(error, peer.timeout_s)}") from error
    finally:
        if opened.is_established:
            if done:
                opened.release()
            else:
                opened.abort()


def _opened(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    handlers: Sequence[evt.EventHandlerType],
    ext_neg: Sequence[Any],
    connect_s: float | None,
) -> Association:
    wait_s = min(peer.timeout_s, connect_s or peer.timeout_s)
    connected = threading.Event()

    def on_connection(event: evt.Event) -> None:
        connected.set()
        transport = cast(AssociationSocket, event.assoc.dul.socket)
        cast(socket.socket, transport.socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    if not 0 < peer.port < 1 << 16:
        raise Unreachable(f"{peer} cannot be reached: {peer.port} is no port")
    try:
        ae = _Entity(peer.calling_ae)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.connection_timeout = ae.acse_timeout = wait_s
        ae.dimse_timeout = ae.network_timeout = peer.timeout_s
        opened = ae.associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            max_pdu=MAX_PDU,
            ext_neg=list(ext_neg),
            evt_handlers=[(evt.EVT_CONN_OPEN, on_connection), *handlers],
        )
    except (OSError, UnicodeError) as error:  # the host cannot even be tried
        raise Unreachable(f"{peer} cannot be reached: {why_unreachable(error, wait_s)}") from error
    except (ValueError, TypeError, RuntimeError) as error:  # how pynetdicom says no to an AE title; it quotes settings
        raise Unreachable(f"{peer} cannot be reached: {error}") from error
    if opened.is_established:
        return opened
    if not connected.is_set():
        why = why_unreachable(ae.failure, wait_s) if ae.failure else "no connection"
        raise Unreachable(f"{peer} cannot be reached: {why}")
    raise _why_none(opened, peer, wait_s)


def why_unreachable(error: BaseException, timeout_s: float) -> str:
    """Why there is no connection, in the words used for every peer and protocol.

    The error of the operating system counts, wherever in the chain of causes it is.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, socket.gaierror | socket.herror):
            return f"its host name cannot be resolved ({found.strerror or found})"
        if isinstance(found, UnicodeError):
            return "its host is no name that can be resolved"
        if isinstance(found, ssl.SSLError):
            return f"TLS failed: {_tls_words(found)}"
        if isinstance(found, TimeoutError):
            return f"no answer within {timeout_s:g} s"
        if isinstance(found, OSError):
            return found.strerror.lower() if found.strerror else "the connection failed"
        found = found.__cause__ or found.__context__
    return str(error) or "the connection failed"


def _tls_words(error: ssl.SSLError) -> str:
    """ "certificate verify failed: self-signed certificate"."""
    reason = (error.reason or str(error)).replace("_", " ").lower()
    verified = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
    return f"{reason}: {verified}" if verified else reason


def why_not_accepted(association: Association) -> dict[Context, str]:
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


def contexts_of(contexts: set[Context]) -> list[PresentationContext]:
    """Each SOP class and transfer syntax in a presentation context of its own."""
    return [build_context(sop_class, [syntax]) for sop_class, syntax in sorted(contexts)]


def named(sop_class_uid: str, transfer_syntax_uid: str) -> str:
    return f"{UID(sop_class_uid).name} in {UID(transfer_syntax_uid).name}"


def _why_none(opened: Association, peer: Peer, wait_s: float) -> Unreachable | Rejected | NoneAccepted:
    answer = opened.acceptor.primitive
    if opened.is_rejected and answer is not None:
        why = REJECTIONS.get((answer.result_source or 0, answer.diagnostic or 0), "for an unknown reason")
        words = f"{peer} rejected {peer.calling_ae!r}: {why}"
        return Rejected(words) if answer.result == PERMANENT else Unreachable(words)
    refused = why_not_accepted(opened)
    if refused:
        names = ", ".join(sorted(named(*context) for context in refused))
        return NoneAccepted(f"{peer} accepts none of what is to be sent: {names}", refused)
    return Unreachable(
        f"{peer} cannot be reached: it aborted the association request, or did not answer it within {wait_s:g} s"
    )


class Messages(DIMSEServiceProvider):
    """pynetdicom's queue of messages, in which an answer is left to whoever waits for it.

    The reactor of an association is told to pause before a request of ours goes out, but may be about to look into the
    queue once more just then; the answer that it took would be missed until the DIMSE timeout.
    """

    def get_msg(self, block: bool = False) -> Any:
        """(presentation context id, message), or (None, None) when nothing has come."""
        try:
            message = self.msg_queue.get(block, self.dimse_timeout if block else None)
        except queue.Empty:
            return None, None
        if block or self.assoc._reactor_checkpoint.is_set():  # noqa: SLF001  of pynetdicom 3.0.4, pinned
            return message
        self.msg_queue.put(message)
        return None, None


class _Entity(AE):
    """pynetdicom's AE, which tells why it could not connect: it keeps that to its log."""

    failure: OSError | None = None

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        transport = super()._create_socket(assoc, address, tls_args)
        plain = cast(socket.socket, transport.socket)
        telling = _Telling(plain.family, plain.type, plain.proto, plain.detach())
        telling.entity = self
        telling.settimeout(assoc.network_timeout)
        transport.socket = telling
        assoc.dimse = Messages(assoc)
        return transport


class _Telling(socket.socket):
    """A socket that tells its entity why it could not connect."""

    entity: _Entity

    def connect(self, address: Any) -> None:
        try:
            super().connect(address)
        except OSError as error:
            self.entity.failure = error
            raise

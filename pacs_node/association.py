"""The one way to a peer: an association is opened here, whoever needs it, and what goes wrong with it is said here.

Nobody there, a name that does not resolve, a connection refused, reset or silent, an answer that is no DICOM: each is
one kind of error, Unreachable, "try again later", in the same words whoever asked. A refusal is an answer, not an error
of the network: Rejected, NoneAccepted.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_GET, C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_sr.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.errors import GiveUp, NotOffered, TakenOver, Told, Unreachable
from pacs_node.tls import Called, NotTheirs, in_words, part

log = structlog.get_logger(__name__)

MAX_PDU = 1 << 20  # bytes we offer to receive
LEAST_PDU = 1 << 10  # bytes a peer must take: in smaller ones a result would be a million of them, each an object
LONGEST_ANSWER = 1 << 20  # bytes of a message that answers us; one match of a query takes about 500
MOST_MATCHES = 65536  # of one query
MOST_TIMEOUTS = 4  # of one answer, that all matches may take together
LONGEST_FETCHED = 1 << 30  # bytes of an object that a peer sends because we asked for it
P_DATA_TF = 0x04  # PDU type: PS3.8 9.3.5
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
NOT_PROPOSED = 256  # what is wrong with an acceptance; no result of a peer is larger than 255
# why a presentation context was not accepted: PS3.8 Table 9-18
CONTEXT_RESULTS = {
    1: "refused by its user",
    2: "refused without a reason",
    3: "the SOP class is not supported",
    4: "the transfer syntax is not supported",
    NOT_PROPOSED: "accepted in a transfer syntax that was not proposed",
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
    tls: Called | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.ae_title} at {self.host}:{self.port}{' with TLS' if self.tls else ''})"


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
    except (GiveUp, NotOffered, TakenOver):
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
        connection = cast(socket.socket, cast(AssociationSocket, event.assoc.dul.socket).socket)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(peer.timeout_s)  # pynetdicom would let it wait for ever

    if not 0 < peer.port < 1 << 16:
        raise Unreachable(f"{peer} cannot be reached: {peer.port} is no port")
    try:
        ae = _Entity(peer.calling_ae)
        ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        ae.tls = peer.tls
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
        cast(Asking, opened).leave_out_what_was_not_proposed()
        if not opened.accepted_contexts:
            opened.abort()
            raise Unreachable(f"{peer} cannot be reached: it accepted transfer syntaxes that were not proposed")
        longest = opened.acceptor.maximum_length or LEAST_PDU  # 0: any
        if longest >= LEAST_PDU:
            return opened
        opened.abort()
        raise Unreachable(
            f"{peer} cannot be reached: it takes PDUs of only {longest} bytes, at least {LEAST_PDU} are needed"
        )
    if not connected.is_set() or isinstance(ae.failure, ssl.SSLError):  # with TLS 1.3 our certificate is judged late
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
        if isinstance(found, NotTheirs):
            return str(found)
        if isinstance(found, ssl.SSLError):
            return f"TLS failed: {in_words(found)}"
        if isinstance(found, TimeoutError):
            return f"no answer within {timeout_s:g} s"
        if isinstance(found, OSError):
            return found.strerror.lower() if found.strerror else "the connection failed"
        found = found.__cause__ or found.__context__
    return str(error) or "the connection failed"


def matches(opened: Association, query: Dataset, model: str, peer: Peer) -> Iterator[tuple[Dataset, Dataset | None]]:
    """What a peer answers to C-FIND: (status, match). A match may hold anything: read it by `dicom_sr.attributes`.

    Raises Unreachable for answers without end.
    """
    until = time.monotonic() + MOST_TIMEOUTS * peer.timeout_s
    for count, answer in enumerate(opened.send_c_find(query, model)):
        if count > MOST_MATCHES or time.monotonic() > until:
            raise Unreachable(f"{peer} does not come to an end of answering C-FIND")
        yield answer


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


class Asking(Association):
    """An association that we ask over. What the peer reports meanwhile pynetdicom serves in a thread of its own: here
    it says nothing of the reactor, which alone knows whether it has paused, and has answered before we release.

    It said that the reactor had paused, and then that it had not: a release went out before the answer, or waited for
    the reactor without end. pynetdicom makes an Association; `_Entity` makes it one of these.
    """

    served: threading.Lock  # held while a report is

    def leave_out_what_was_not_proposed(self) -> None:
        """A peer accepts a context in one of the transfer syntaxes that were proposed for it (PS3.8 9.3.3.2). In
        another one, or in what is none, we could not speak."""
        proposed = {context.context_id: context.transfer_syntax for context in self.requestor.requested_contexts}
        for context_id, context in list(self._accepted_cx.items()):
            if not context.transfer_syntax or context.transfer_syntax[0] not in proposed.get(context_id, ()):
                context.result = NOT_PROPOSED
                self._rejected_cx.append(self._accepted_cx.pop(context_id))

    @property
    def _is_paused(self) -> bool:
        return bool(self.__dict__.get("paused"))

    @_is_paused.setter
    def _is_paused(self, paused: bool) -> None:
        if self._kill or threading.current_thread() is self:
            self.__dict__["paused"] = paused

    def _serve_request(self, msg: Any, context_id: int) -> None:
        with nullcontext() if threading.current_thread() is self else self.served:
            super()._serve_request(msg, context_id)

    def release(self) -> None:
        with self.served:
            super().release()


class _UpperLayer(DULServiceProvider):
    """pynetdicom's upper layer, in which an error that the bytes of a peer led it to ends the association, and not
    its thread alone: both sides would wait for each other."""

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001  pynetdicom raises whatever it is led to
            log.warning("association.broken", kind=type(error).__name__, error=Told.of(error).words)
            self._break()

    def _break(self) -> None:
        """As pynetdicom does after an error in reading."""
        abort = A_ABORT_RQ()
        abort.source, abort.reason_diagnostic = 0x02, 0x00  # the provider, without a reason: PS3.8 Table 9-26
        if self.socket is not None:
            self.socket.send(abort.encode())
            self.socket.close()
        self.assoc.is_aborted, self.assoc.is_established = True, False
        self.assoc._kill = self._kill_thread = True  # noqa: SLF001  of pynetdicom 3.0.4, pinned


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


class _Messages(Messages):
    """What a peer answers, bounded: it is held in memory until it is whole. And what answers something else is none."""

    _size = 0  # bytes of the message that comes
    _asked: type | None = None  # the kind of request that waits for its answer

    def send_msg(self, primitive: Any, context_id: int) -> None:
        if primitive.MessageIDBeingRespondedTo is None:
            self._asked = type(primitive)
        super().send_msg(primitive, context_id)

    def get_msg(self, block: bool = False) -> Any:
        context_id, message = super().get_msg(block)
        fetched = self._asked is C_GET and isinstance(message, C_STORE) and message.MessageIDBeingRespondedTo is None
        if block and message is not None and not fetched and type(message) is not self._asked:
            return None, None
        return context_id, message

    def receive_primitive(self, primitive: P_DATA) -> None:
        values = primitive.presentation_data_value_list
        if self.message is None:
            self._size = 0
        self._size += sum(len(value) for _, value in values)
        if self._size > (LONGEST_FETCHED if isinstance(self.message, C_STORE_RQ) else LONGEST_ANSWER):
            raise ValueError(f"an answer of more than {self._size - 1} bytes")  # ends the association
        super().receive_primitive(primitive)


class _Transport(AssociationSocket):
    """pynetdicom's connection to a peer, which waits for a PDU, and for one to be taken, no longer than for silence;
    and reads no further while an answer waits to be looked at."""

    _first = b""  # what was read to see whether anything has come

    @property
    def ready(self) -> bool:
        if self.socket is None or not self._is_connected or not self.assoc.dimse.msg_queue.empty():
            return False
        if self._first:
            return True
        try:
            waiting = select.poll()  # not select, which knows no file descriptor beyond 1023
            waiting.register(self.socket, select.POLLIN)
            if isinstance(self.socket, ssl.SSLSocket):
                return (self.socket.pending() > 0 or bool(waiting.poll(0))) and self._has_come(self.socket)
            return bool(waiting.poll(0))
        except (OSError, ValueError) as error:
            if isinstance(error, ssl.SSLError):
                cast(_Entity, self.assoc.ae).failure = error
            self.event_queue.put("Evt17")  # transport connection closed: PS3.8 Table 9-10
            return False

    def _has_come(self, secured: ssl.SSLSocket) -> bool:
        """Something for us, or the end: what comes may be about TLS alone, and who waits for more would not send."""
        patience_s = secured.gettimeout()
        secured.settimeout(0)
        try:
            self._first = secured.recv(1)
        except ssl.SSLWantReadError:
            return False
        finally:
            secured.settimeout(patience_s)
        return True

    def recv(self, nr_bytes: int) -> bytearray:
        """`nr_bytes`, or fewer when the peer is gone. Raises OSError for a PDU longer than was agreed, TimeoutError for
        one that trickles."""
        if nr_bytes > MAX_PDU:
            raise OSError(f"a PDU of {nr_bytes} bytes is longer than agreed")
        received, at, until = bytearray(nr_bytes), len(self._first), self._until()
        received[:at], self._first = self._first, b""
        with memoryview(received) as view:
            while at < nr_bytes:
                count = cast(socket.socket, self.socket).recv_into(view[at:])
                if not count:
                    break
                at += count
                _in_time(until)
        return received[:at]

    def send(self, bytestream: bytes) -> None:
        if bytestream[0] == P_DATA_TF and self.assoc._sent_abort:  # noqa: SLF001  of pynetdicom 3.0.4, pinned
            return  # what still waited to go out when the association was given up
        at, until = 0, self._until()
        try:
            with memoryview(bytestream) as view:
                while at < len(view):
                    at += cast(socket.socket, self.socket).send(view[at:])
                    _in_time(until)
        except (OSError, AttributeError):  # AttributeError: it is closed, and None
            self.event_queue.put("Evt17")

    def close(self) -> None:
        if isinstance(self.socket, ssl.SSLSocket):
            part(self.socket)
        super().close()

    def _until(self) -> float:
        return time.monotonic() + (self.assoc.network_timeout or float("inf"))


def _in_time(until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError("a PDU did not become whole in time")


class _Entity(AE):
    """pynetdicom's AE, which tells why it could not connect: it keeps that to its log."""

    failure: OSError | None = None
    tls: Called | None = None

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        transport = _Transport(assoc, address=address)
        transport.tls_args = tls_args
        plain = cast(socket.socket, transport.socket)
        telling = _Telling(plain.family, plain.type, plain.proto, plain.detach())
        telling.entity, telling.transport = self, transport
        telling.settimeout(assoc.network_timeout)
        transport.socket = telling
        assoc.__class__ = Asking
        cast(Asking, assoc).served = threading.Lock()
        assoc.dul, assoc.dimse = _UpperLayer(assoc), _Messages(assoc)
        assoc.acse_timeout, assoc.network_timeout = assoc.acse_timeout, assoc.network_timeout  # its timers
        return transport


class _Telling(socket.socket):
    """A socket that tells its entity why it could not connect, and is replaced by one with TLS once it has."""

    entity: _Entity
    transport: _Transport

    def connect(self, address: Any) -> None:
        try:
            super().connect(address)
            if self.entity.tls is not None:
                self.transport.socket = self.entity.tls.secure(self)
        except OSError as error:
            self.entity.failure = error
            raise

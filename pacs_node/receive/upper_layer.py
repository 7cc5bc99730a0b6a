"""The upper layer (PS3.8) of a listener: an association is served from its request to its end in the thread that reads.

pynetdicom encodes, decodes and negotiates, and serves every message that is no C-STORE. Its own upper layer, with two
threads for each association that look every few milliseconds if there is anything to do, is not started.
"""

from __future__ import annotations

import math
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from socketserver import BaseServer
from typing import Any, cast

import structlog
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ, P_DATA_TF, PDU
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.transport import AddressInformation, RequestHandler, ThreadedAssociationServer

from pacs_node.association import LEAST_PDU
from pacs_node.errors import Told
from pacs_node.receive.connection import Connection, SecuredConnection
from pacs_node.receive.transfer import DataTransfer, Incoming, ProtocolError, StoreRequest
from pacs_node.tls import NotSecured, Renewed

log = structlog.get_logger(__name__)

# bytes of an A-ASSOCIATE-RQ: 128 contexts, each with all 40 syntaxes of PS3.6, have 150 KB; what is more is nobody's
LONGEST_REQUEST = 1 << 18
MOST_CONTEXTS = 128  # in one: their numbers are odd and go up to 255, PS3.8 9.3.2.2

LONGEST_UNLIMITED = 1 << 28  # bytes of a PDU where none was agreed (max_pdu = 0): it is held in memory while it comes

# Connections that are no association yet cost a thread and a descriptor each, and nobody knows whose they are.
MOST_WAITING, MOST_WAITING_OF_ONE = 64, 16  # in all, from one address, or as many as the settings let in
LISTEN_BACKLOG = 128  # connections that wait to be taken; the next one is dropped, and comes again after 1, 3, 7 s
MOST_UNSERVED = 4  # requests of a peer while it owes us an answer: one, unless a window was agreed (PS3.7 D.3.3.3)

TELL_EVERY_S = 10.0  # that some were closed: a stranger must not fill the log either
TAKE_AGAIN_S = 0.1  # after a connection could not be taken: it waits on, and nothing else would slow us down
TAKING_FAILS_S = 1.0  # after that, for /health

# PDU types: PS3.8 9.3
REQUEST, ACCEPT, REJECT, DATA, RELEASE, RELEASED, ABORT = 1, 2, 3, 4, 5, 6, 7
KINDS = range(REQUEST, ABORT + 1)
TLS_HANDSHAKE = 22  # what a record of TLS begins with: RFC 8446 5.1
NO_SYNTAX = UID("2.25.0")  # nobody's
RELEASE_RP = struct.pack(">BxLxxxx", RELEASED, 4)  # PS3.8 9.3.7
CONTEXT_ITEM, BEFORE_ITEMS = 0x20, 74  # an item of the request, and the byte where its items begin
CALLED, CALLING = slice(10 - 6, 26 - 6), slice(26 - 6, 42 - 6)  # the titles, without the six bytes before: Table 9-11

# source and reason of an A-ABORT: PS3.8 Table 9-26
USER, PROVIDER = 0, 2
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU, INVALID_VALUE = 0, 1, 2, 6
NOT_OUR_VERSION = (1, 2, 2)  # result, source, reason of an A-ASSOCIATE-RJ: PS3.8 Table 9-21


class Aborted(Exception):
    """The peer has ended the association."""


class Misplaced(ProtocolError):
    """A PDU that is none, or that may not come now; `reason` is what the A-ABORT says."""

    def __init__(self, words: str, reason: int) -> None:
        super().__init__(words)
        self.reason = reason


class Server(ThreadedAssociationServer):
    """pynetdicom's server: a thread for each connection, and no more connections than there is room for."""

    daemon_threads = True  # `_Handler.handle` lasts as long as its association
    request_queue_size = LISTEN_BACKLOG  # socketserver's own is 5

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        handlers: Sequence[tuple[evt.EventType, Callable[[evt.Event], Any]]],
        on_called: Callable[[AcceptedAssociation, str, str], bool],
        on_store: Callable[[AcceptedAssociation, StoreRequest], Incoming],
        on_end: Callable[[AcceptedAssociation], None],
        max_associations: int,
        door: socket.socket | None = None,
        tls: Renewed | None = None,
        on_not_secured: Callable[[str, str], None] = lambda address, words: None,
    ) -> None:
        """on_called: called with the AE titles of a request, calling and called, before the rest of it is decoded;
        False: it has rejected the association. on_store: called with each C-STORE-RQ, in the thread that reads, and by
        one message at a time. on_end: called when an association is over, however it ended. door: where other processes
        listen as well. tls: nobody is served without. on_not_secured: called with the address of one with whom it did
        not come about, and why. Raises OSError when the port is taken."""
        self._make_room(max_associations)
        self.handlers, self.on_called, self.on_store, self.on_end = handlers, on_called, on_store, on_end
        self._connected: dict[int, tuple[str, Association | None]] = {}  # id of the socket -> address, association
        self._lock = threading.Lock()
        self._closed, self._told = 0, -TELL_EVERY_S
        self._door, self._tls = door, tls
        self.on_not_secured = on_not_secured
        self._ended = False  # an association, since garbage was last collected
        self._not_taken = ("", -math.inf)  # why a connection could not be taken, and when
        super().__init__(ae, address, ae.ae_title, ae.supported_contexts, request_handler=_Handler)

    def _make_room(self, max_associations: int) -> None:
        self.most_of_one = max(MOST_WAITING_OF_ONE, max_associations)  # a sender may open all of its own at once
        self.most = max(MOST_WAITING, 2 * max_associations)

    def take_up(self, ae: AE, max_associations: int, tls: Renewed | None) -> None:
        """From the next connection on. A server without TLS stays one."""
        self.ae = ae
        self._make_room(max_associations)
        if self._tls is not None and tls is not None:
            self._tls = tls

    def server_bind(self) -> None:
        if self._door is None:
            return super().server_bind()
        self.socket, self.server_address = self._door, self._door.getsockname()[:2]
        return None

    def server_activate(self) -> None:
        if self._door is None:
            super().server_activate()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The handshake is for the thread of the connection."""
        try:
            connected, address = super().get_request()
        except (BlockingIOError, ConnectionError):  # another process was quicker; the peer was gone
            raise
        except OSError as error:
            self._not_taken = error.strerror or "", time.monotonic()
            time.sleep(TAKE_AGAIN_S)
            raise
        if self._tls is not None:
            context = self._tls.context()
            connected = context.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
        return connected, address

    @property
    def trouble(self) -> str | None:
        """None, or why no connection can be taken now."""
        why, at = self._not_taken
        return f"no connection can be taken ({why})" if time.monotonic() - at < TAKING_FAILS_S else None

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Is there room for a connection that has not said yet whose it is?"""
        address = str(client_address[0])
        with self._lock:
            held = list(self._connected.values())
            waiting = [where for where, association in held if association is None or not association.is_established]
            if len(waiting) < self.most and waiting.count(address) < self.most_of_one:
                self._connected[id(request)] = address, None
                return True
            self._closed += 1
            if time.monotonic() - self._told >= TELL_EVERY_S:
                log.warning("listener.connections-closed", address=address, closed=self._closed, waiting=len(waiting))
                self._closed, self._told = 0, time.monotonic()
        return False

    def is_of(self, request: Any, association: Association) -> None:
        """The association that a connection may become."""
        with self._lock:
            address, _ = self._connected[id(request)]
            self._connected[id(request)] = address, association

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connected.pop(id(request), None)
            self._ended = True
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """The base collects garbage every sixty rounds: of associations, so not where nobody calls."""
        if self._ended:
            super().service_actions()
            self._ended = self._gc[0] != 0

    def shutdown(self) -> None:
        """Stop listening; open associations go on."""
        BaseServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        told = Told.of(error) if (error := sys.exception()) is not None else Told("", "")
        if isinstance(error, OSError):  # the peer was gone before we looked
            log.warning("listener.connection-failed", address=str(client_address[0]), error=told.words)
        else:
            log.error("listener.connection-failed", address=str(client_address[0]), error=told.words, trace=told.trace)


class _Handler(RequestHandler):
    """One connection, in a thread of its own, until its association is over."""

    server: Server

    def handle(self) -> None:
        connected = time.monotonic()
        association = AcceptedAssociation(self.server, self.request, self.local, self.remote)
        self.server.is_of(self.request, association)
        try:
            association.upper_layer.serve(connected)
            if association.upper_layer.not_secured:
                address = str(association.requestor.address)
                self.server.on_not_secured(address, association.upper_layer.not_secured)
        finally:
            try:
                self.server.on_end(association)  # before the peer hears that there is room for its next one
                association.upper_layer.take_leave()
            finally:
                self.server.shutdown_request(self.request)  # pynetdicom's server leaves that to the association


class AcceptedAssociation(Association):
    """pynetdicom's association of an acceptor: who calls, what is agreed, and how it ended. Its thread never starts."""

    then: Callable[[], None] | None = None  # done once the request in hand is answered

    def __init__(
        self, server: Server, request: socket.socket, ours: AddressInformation, theirs: AddressInformation
    ) -> None:
        ae = server.ae
        super().__init__(ae, MODE_ACCEPTOR)
        self._server = server
        connection = SecuredConnection(request) if isinstance(request, ssl.SSLSocket) else Connection(request)
        self.upper_layer = UpperLayer(
            self,
            connection,
            lambda calling, called: server.on_called(self, calling, called),
            lambda store: server.on_store(self, store),
            ae.network_timeout or float("inf"),
        )
        self.dul = cast(Any, self.upper_layer)
        self.dimse = _Messages(self)
        acceptor = self.acceptor
        acceptor.ae_title, acceptor.maximum_length = ae.ae_title, ae.maximum_pdu_size
        acceptor.address_info, self.requestor.address_info = ours, theirs
        acceptor.implementation_class_uid = ae.implementation_class_uid
        acceptor.implementation_version_name = ae.implementation_version_name
        acceptor.supported_contexts = server.contexts
        for event, handler in server.handlers:
            self.bind(event, handler)

    def _abort_blocking(self, block: bool = True) -> None:
        """Its thread says so to the peer, as soon as it may."""
        self.upper_layer.end_it()

    def kill(self) -> None:
        self._kill = True
        self.is_established = False


class _Messages(DIMSEServiceProvider):
    """pynetdicom's side of DIMSE; what comes is read when it is wanted."""

    def get_msg(self, block: bool = False) -> Any:
        """(presentation context id, response) to what was just sent; (None, None) without one."""
        upper_layer = cast(AcceptedAssociation, self.assoc).upper_layer
        return upper_layer.response(self.dimse_timeout or float("inf")) if block else (None, None)


class UpperLayer:
    """PS3.8 9.2 for an acceptor. What pynetdicom gives it to send is sent when `send_pdu` returns; a rejection, in the
    end.

    silence_s: how long the peer may say nothing, or take over one PDU.
    """

    def __init__(
        self,
        association: AcceptedAssociation,
        connection: Connection,
        on_called: Callable[[str, str], bool],
        on_store: Callable[[StoreRequest], Incoming],
        silence_s: float,
    ) -> None:
        self.association, self.connection = association, connection
        self._on_called, self._silence_s = on_called, silence_s
        self._longest = association.ae.maximum_pdu_size or LONGEST_UNLIMITED
        self._transfer = DataTransfer(connection, on_store, self._other)
        self._coming: DIMSEMessage | None = None  # a message that is no C-STORE, not yet whole
        self._whole: deque[tuple[int, Any]] = deque()  # such messages, in the order in which they came
        self._end_it = self._begun = False
        self.not_secured = ""  # why TLS did not come about
        self._last_word = b""  # said when the association is over; then the peer is to hang up

    # ---- what pynetdicom calls

    def send_pdu(self, primitive: A_ASSOCIATE | P_DATA) -> None:
        """Raises OSError."""
        if isinstance(primitive, A_ASSOCIATE):
            if primitive.result:
                self._last_word = A_ASSOCIATE_RJ(primitive).encode()
                return
            pdu: PDU = A_ASSOCIATE_AC(primitive)
        else:
            pdu = P_DATA_TF(primitive)
        self.connection.send(pdu.encode())

    def peek_next_pdu(self) -> None:
        """What ends an association is seen here, and by nobody else."""
        return

    # ---- from the request to the end

    def serve(self, connected: float) -> None:
        """Returns when the association is over. connected: when the connection was made, by the monotonic clock."""
        association = self.association
        try:
            self._negotiate(connected)
            while association.is_established:
                self._serve_next()
        except Aborted:
            association.is_aborted = True
        except ProtocolError as error:
            self._log("listener.protocol-error", error)
            reason = error.reason if isinstance(error, Misplaced) else INVALID_VALUE
            self._abort(PROVIDER, reason)
        except NotSecured as error:
            self._log("listener.tls-failed", error)
            self.not_secured = str(error)
        except TimeoutError as error:  # where nothing was agreed yet, hanging up says it: PS3.8 Table 9-10, Evt18
            if self._begun:  # a stranger who says nothing at all is not worth a line either
                self._log("listener.peer-silent", error)
            if association.is_established:
                self._abort(USER, NOT_SPECIFIED)
        except OSError as error:
            if self._end_it:
                self._abort(USER, NOT_SPECIFIED)
            elif association.is_established or self._begun:
                self._log("listener.connection-lost", error)
                association.is_aborted = True
        finally:
            association.is_established = False
            self._transfer.close()

    def take_leave(self) -> None:
        """Say how it ended, once, and wait a little for the peer to close."""
        if self.not_secured:
            self.connection.see_off()  # or the peer would not hear why
        if not self._last_word:
            return
        try:
            self.connection.send(self._last_word)
        except OSError as error:
            self._log("listener.connection-lost", error)
        else:
            self.connection.see_off()

    def end_it(self) -> None:
        """Abort: from another thread, or from what is being served here."""
        self._end_it = True
        self.connection.stop_reading()

    def quiet(self, seconds: float) -> bool:
        """The peer says nothing for so long, and is there."""
        return not self.connection.waits(seconds)

    def response(self, within_s: float) -> tuple[int, Any] | tuple[None, None]:
        """What the peer answers to what it was just sent. Its own requests meanwhile are served afterwards, its images
        at once. Raises ProtocolError for more requests than one waits with."""
        until = time.monotonic() + within_s
        requests: list[tuple[int, Any]] = []
        try:
            while self.association.is_established and (left_s := until - time.monotonic()) > 0:
                while self._whole:
                    context_id, message = self._whole.popleft()
                    if message.MessageIDBeingRespondedTo is not None:
                        return context_id, message
                    requests.append((context_id, message))
                    if len(requests) > MOST_UNSERVED:
                        raise ProtocolError("requests without end, and no answer to ours")
                if self.connection.waits(left_s):
                    self._read()
            return None, None
        finally:
            self._whole.extendleft(reversed(requests))

    def _negotiate(self, connected: float) -> None:
        association = self.association
        body = self._request(connected)
        self.connection.patience(self._silence_s)
        if not self._is_welcome(body):
            return
        association.requestor.primitive = self._decoded(body)
        evt.trigger(association, evt.EVT_REQUESTED, {})
        if not association.is_rejected:
            association.acse.negotiate_association()

    def _request(self, connected: float) -> bytes:
        """The A-ASSOCIATE-RQ, without its first six bytes. The ARTIM timer of PS3.8 9.1.5 runs until it is whole."""
        artim_s = self.association.acse_timeout or float("inf")
        self.connection.patience(artim_s)
        self.connection.allow(max(0.0, connected + artim_s - time.monotonic()))
        self.connection.greet()
        self.connection.peek(1)  # who only looks if the port is open is not worth a word
        self._begun = True
        kind, length = self._head()
        body = bytes(self.connection.take(length))
        if kind == ABORT:
            raise Aborted
        if kind != REQUEST:
            raise Misplaced(f"a PDU of type {kind} before an association was asked for", UNEXPECTED_PDU)
        if length < BEFORE_ITEMS - 6:
            raise ProtocolError(f"an association request of {length} bytes")
        return body

    def _is_welcome(self, body: bytes) -> bool:
        """By its first bytes, before pynetdicom takes a sixth of a second for 128 contexts; if not, it is rejected."""
        if not struct.unpack_from(">H", body)[0] & 1:  # other versions are other bits: PS3.8 Table 9-11
            self.association.acse.send_reject(*NOT_OUR_VERSION)
            return False
        calling, called = (body[title].decode("ascii", "replace").strip() for title in (CALLING, CALLED))
        return self._on_called(calling, called)

    def _decoded(self, body: bytes) -> A_ASSOCIATE:
        contexts = sum(1 for item in items(body) if item == CONTEXT_ITEM)
        if contexts > MOST_CONTEXTS:  # each costs pynetdicom a tenth of a millisecond
            raise ProtocolError(f"an association request with {contexts} presentation contexts")
        request = A_ASSOCIATE_RQ()
        try:
            request.decode(struct.pack(">BxL", REQUEST, len(body)) + body)
            primitive = request.to_primitive()
            longest = primitive.maximum_length_received or LEAST_PDU  # 0: any
        except Exception as error:
            raise ProtocolError(f"an association request that cannot be read: {Told.of(error).words}") from error
        if longest < LEAST_PDU:
            raise ProtocolError(f"a peer that takes PDUs of only {longest} bytes; at least {LEAST_PDU} are needed")
        for context in primitive.presentation_context_definition_list:
            if not context.transfer_syntax:  # none, or none that is a UID: it alone is not accepted, PS3.8 9.3.3.2
                context.transfer_syntax = [NO_SYNTAX]
        return primitive

    def _serve_next(self) -> None:
        """One PDU, and what it completes."""
        if self._end_it:
            self._abort(USER, NOT_SPECIFIED)
            return
        self._read()
        while self._whole and self.association.is_established and not self._end_it:
            self._serve_message(*self._whole.popleft())

    def _read(self) -> None:
        """One PDU of an open association: PS3.8 Table 9-10, Sta6."""
        self.connection.allow(self._silence_s)
        kind, length = self._head()
        if kind == DATA:
            self._transfer.receive(length)
            return
        self.connection.take(length)
        if kind == ABORT:
            raise Aborted
        if kind != RELEASE:
            raise Misplaced(f"a PDU of type {kind} within an association", UNEXPECTED_PDU)
        self.association.is_released = True
        self.association.is_established = False
        self._last_word = RELEASE_RP

    def _head(self) -> tuple[int, int]:
        """Type and length of the PDU that begins."""
        kind, length = struct.unpack(">BxL", self.connection.take(6))
        if kind == TLS_HANDSHAKE:
            raise Misplaced("TLS, at a port without it", UNRECOGNIZED_PDU)
        if kind not in KINDS:
            raise Misplaced(f"a PDU of the unknown type {kind}", UNRECOGNIZED_PDU)
        if length > (self._longest if kind == DATA else LONGEST_REQUEST):  # what was agreed is about data: PS3.8 D.1
            raise ProtocolError(f"a PDU of {length} bytes is longer than agreed")
        return kind, length

    def _other(self, fragment: P_DATA) -> None:
        """A part of a message that is no C-STORE. Raises ProtocolError."""
        try:
            self._coming = self._coming or DIMSEMessage()
            if not self._coming.decode_msg(fragment, self.association):
                return
            message, context_id = self._coming.message_to_primitive(), self._coming.context_id
        except Exception as error:
            raise ProtocolError(f"a message that cannot be read: {Told.of(error).words}") from error
        self._coming = None
        if not isinstance(message, C_CANCEL):  # nothing here takes long enough to be cancelled
            self._whole.append((cast(int, context_id), message))

    def _serve_message(self, context_id: int, message: Any) -> None:
        association = self.association
        try:
            association._serve_request(message, context_id)  # noqa: SLF001  of pynetdicom 3.0.4, pinned
            then, association.then = association.then, None
            if then is not None and association.is_established and not self._end_it:
                association._is_paused = True  # noqa: SLF001  no thread of its own stands in the way of what is sent
                then()
        except (ProtocolError, OSError, Aborted):
            raise
        except Exception as error:  # noqa: BLE001  the edge of a room: the peer hears that it was not served
            told = Told.of(error)
            log.error("listener.message-not-served", error=told.words, trace=told.trace)
            self._end_it = True

    def _abort(self, source: int, reason: int) -> None:
        self.association.is_aborted = True
        self.association.is_established = False
        self._last_word = struct.pack(">BxLxxBB", ABORT, 4, source, reason)

    def _log(self, event: str, error: Exception) -> None:
        log.warning(event, address=str(self.association.requestor.address), error=str(error))


def items(body: bytes) -> Iterator[int]:
    """The type of each item of an A-ASSOCIATE-RQ, without its first six bytes: PS3.8 9.3.2."""
    at = BEFORE_ITEMS - 6
    while at + 4 <= len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        yield kind
        at += 4 + length

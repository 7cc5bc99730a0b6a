"""pynetdicom's upper layer (PS3.8) for a listener: no polling, and no message longer than memory allows."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from socketserver import BaseServer
from typing import Any, cast

import structlog
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from pacs_node.association import Messages
from pacs_node.receive.commitment import CommittingAssociation
from pacs_node.receive.transfer import DataTransfer, Incoming, ProtocolError, StoreRequest

log = structlog.get_logger(__name__)

LONGEST_REQUEST = 1 << 18  # bytes of an A-ASSOCIATE-RQ: 128 contexts of 40 syntaxes stay below it
MOST_CONTEXTS = 128  # in one: their numbers are odd and go up to 255, PS3.8 9.3.2.2

LONGEST_UNLIMITED = 1 << 28  # bytes of a PDU where none was agreed (max_pdu = 0): it is held in memory while it comes

# Connections that are no association yet cost a thread and a descriptor each, and nobody knows whose they are.
MOST_WAITING, MOST_WAITING_OF_ONE = 64, 16  # in all, from one address, or as many as the settings let in
TELL_EVERY_S = 10.0  # that some were closed: a stranger must not fill the log either

LOOK_ROUND_S = 0.02  # how long pynetdicom's loops may rest before they look at their timers again

A_ASSOCIATE_RQ, P_DATA_TF = 0x01, 0x04  # PDU types: PS3.8 9.3.2, 9.3.5
CONTEXT_ITEM, BEFORE_ITEMS = 0x20, 74  # an item of the former, and the byte where its items begin
REQUEST_AWAITED, DATA_TRANSFER = ("Sta1", "Sta2", "Sta3"), "Sta6"  # PS3.8 Tables 9-1, 9-2, 9-4

READ_AHEAD = 1 << 18  # bytes read at once from an association that sends


class Server(ThreadedAssociationServer):
    """pynetdicom's server, with sockets that neither stall nor wait for ever."""

    daemon_threads = True  # `_Handler.handle` lasts as long as its association

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        handlers: Sequence[tuple[evt.EventType, Callable[[evt.Event], Any]]],
        on_store: Callable[[Association, StoreRequest], Incoming],
        on_end: Callable[[Association], None],
        max_associations: int,
    ) -> None:
        """on_store: called with each C-STORE-RQ, in the thread that reads, and by one message at a time. on_end: called
        when an association is over, however it ended. Raises OSError when the port is taken."""
        self.most_of_one = max(MOST_WAITING_OF_ONE, max_associations)  # a sender may open all of its own at once
        self.most = max(MOST_WAITING, 2 * max_associations)
        self.handlers, self.on_store, self.on_end = handlers, on_store, on_end
        self._connected: dict[int, tuple[str, Association | None]] = {}  # id of the socket -> address, association
        self._lock = threading.Lock()
        self._closed, self._told = 0, -TELL_EVERY_S
        super().__init__(ae, address, ae.ae_title, ae.supported_contexts, request_handler=_Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = super().get_request()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # responses are small: do not hold them back
        client.settimeout(self.ae.acse_timeout)  # else half a request holds a thread for ever
        return client, address

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

    def is_over(self, request: Any) -> None:
        with self._lock:
            self._connected.pop(id(request), None)

    def shutdown_request(self, request: Any) -> None:
        self.is_over(request)
        super().shutdown_request(request)

    def shutdown(self) -> None:
        """Stop listening; open associations go on."""
        BaseServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("listener.connection-failed", address=client_address)  # noqa: LOG004  called while it is handled


class _Handler(RequestHandler):
    """One connection, in a thread of its own, until its association is over."""

    server: Server

    def handle(self) -> None:
        association = self._create_association()
        self.server.is_of(self.request, association)
        try:
            association.start()
            association.join()
        finally:
            try:
                cast(_UpperLayer, association.dul).close()
            finally:
                self.server.is_over(self.request)
                self.server.on_end(association)

    def _create_association(self) -> Association:
        """As the base does, but with our upper layer."""
        ae = self.server.ae
        association = CommittingAssociation(ae, MODE_ACCEPTOR)
        association.dul = _UpperLayer(association, lambda request: self.server.on_store(association, request))
        association.dimse = _Messages(association)
        association.acse_timeout, association.network_timeout = ae.acse_timeout, ae.network_timeout  # its timers
        association._server = self.server  # noqa: SLF001  as pynetdicom does
        association.set_socket(_Socket(association, client_socket=cast(socket.socket, self.request)))
        acceptor = association.acceptor
        acceptor.ae_title, acceptor.address_info, acceptor.maximum_length = ae.ae_title, self.local, ae.maximum_pdu_size
        acceptor.implementation_class_uid = ae.implementation_class_uid
        acceptor.implementation_version_name = ae.implementation_version_name
        acceptor.supported_contexts = self.server.contexts
        association.requestor.address_info = self.remote
        for event, handler in self.server.handlers:
            association.bind(event, handler)
        return association


def hang_up(association: Association) -> None:
    """Whoever reads from the connection hears its end."""
    connection = association.dul.socket.socket if association.dul.socket is not None else None
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class _Bell:
    """Ends another thread's wait in select."""

    def __init__(self) -> None:
        self._ring, self._hear = socket.socketpair()
        self._ring.setblocking(False)
        self._hear.setblocking(False)

    def fileno(self) -> int:
        return self._hear.fileno()

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; closed: nobody waits
            self._ring.send(b"!")

    def silence(self) -> None:
        self._hear.recv(4096)

    def close(self) -> None:
        self._ring.close()
        self._hear.close()


class _Timer(Timer):
    """pynetdicom's, by a clock that nobody sets."""

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return self.timeout
        return self.timeout - ((self._end_time or time.monotonic()) - self._start_time)

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()


class _UpperLayer(DULServiceProvider):
    """pynetdicom's upper layer, woken by what happens instead of looking every millisecond, and serving C-STORE in the
    thread that reads."""

    def __init__(self, association: CommittingAssociation, on_store: Callable[[StoreRequest], Incoming]) -> None:
        super().__init__(association)
        self._run_loop_delay = 0.0001  # seconds; the waiting is done in _Socket.ready
        self._idle_timer, self.artim_timer = _Timer(60), _Timer(30)  # their timeouts are set by the association
        self.bell = _Bell()
        self._on_store = on_store
        self._transfer: DataTransfer | None = None  # once data has come

    def send_pdu(self, primitive: Any) -> None:
        super().send_pdu(primitive)
        self.bell.ring()

    def close(self) -> None:
        """The association is over, and its thread with it: at the latest when the peer has been silent for too long."""
        self.kill_dul()  # pynetdicom's own thread may have ended by an error, and told nobody
        self.bell.ring()
        if self.ident is not None:
            self.join()
        try:
            if self._transfer is not None:
                self._transfer.close()
        finally:
            self.bell.close()

    def _decode_pdu(self, bytestream: bytearray) -> tuple[Any, str]:
        """(PDU, event of PS3.8 Table 9-10). An error raised here aborts the association."""
        if bytestream[0] == A_ASSOCIATE_RQ:  # each context costs pynetdicom a tenth of a millisecond
            contexts = sum(1 for kind in items(bytestream) if kind == CONTEXT_ITEM)
            if contexts > MOST_CONTEXTS:
                raise ValueError(f"an association request with {contexts} presentation contexts")
        return super()._decode_pdu(bytestream)

    def _read_pdu_data(self) -> None:
        """As pynetdicom's, but P-DATA-TF is read by DataTransfer, one after the other for as long as they come."""
        connection = cast(_Socket, self.socket)
        if self.state_machine.current_state != DATA_TRANSFER:
            return super()._read_pdu_data()
        if self._transfer is None:
            association = cast(CommittingAssociation, self.assoc)
            self._transfer = DataTransfer(connection, self._on_store, association.dimse.receive_primitive)
            association.transfer = self._transfer
            if connection.socket is not None:
                connection.socket.settimeout(association.network_timeout)
        try:
            while True:
                connection.begin_pdu(0)
                kind, length = struct.unpack(">BxL", connection.peek(6))
                if kind != P_DATA_TF:
                    return super()._read_pdu_data()
                connection.take(6)
                connection.begin_pdu(length)
                self._transfer.receive(length)
                self._idle_timer.restart()
                if self._kill_thread or self.to_provider_queue.queue or not self.event_queue.empty():
                    return None
                if not connection.ready:
                    return None
        except ProtocolError as error:
            self._log("listener.protocol-error", error)
            self.event_queue.put("Evt19")  # unrecognized or invalid PDU: PS3.8 Table 9-10
        except OSError as error:
            self._log("listener.connection-lost", error)
            self.event_queue.put("Evt17")  # transport connection closed
        return None

    def _log(self, event: str, error: Exception) -> None:
        log.warning(event, address=str(self.assoc.requestor.address), error=str(error))


def items(request: bytes | bytearray) -> Iterator[int]:
    """The type of each item of an A-ASSOCIATE-RQ: PS3.8 9.3.2."""
    at = BEFORE_ITEMS
    while at + 4 <= len(request):
        kind, length = struct.unpack_from(">BxH", request, at)
        yield kind
        at += 4 + length


class _Messages(Messages):
    """The same queue, waited for instead of looked into."""

    look_s = LOOK_ROUND_S


class _Socket(AssociationSocket):
    """Waits for data or for something to send, and reads with as few calls as it takes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._buffer = memoryview(b"")  # made when data comes
        self._begin, self._end = 0, 0  # what is read and not yet taken
        self._deadline = float("inf")
        self._connected_at = time.monotonic()

    @property
    def ready(self) -> bool:
        """Is there anything to read? Waits a little when there is nothing else to do."""
        if self._begin < self._end:
            return True
        connection, bell = self.socket, cast(_UpperLayer, self.assoc.dul).bell
        if connection is None or not self._is_connected:
            return False
        wait_ms = LOOK_ROUND_S * 1000 if self.event_queue.empty() else 0
        try:
            waiting = select.poll()  # not select, which knows no file descriptor beyond 1023
            waiting.register(connection, select.POLLIN)
            waiting.register(bell, select.POLLIN)
            stirred = [descriptor for descriptor, _ in waiting.poll(wait_ms)]
            if bell.fileno() in stirred:
                bell.silence()
            return connection.fileno() in stirred
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # transport connection closed: PS3.8 Table 9-10
            return False

    @property
    def _silence_s(self) -> float:
        return self.assoc.ae.network_timeout or float("inf")

    def begin_pdu(self, length: int) -> None:
        """Raises OSError for a PDU longer than was agreed; from now on for one that trickles."""
        ae = self.assoc.ae
        if self.assoc.dul.state_machine.current_state in REQUEST_AWAITED:
            longest = LONGEST_REQUEST  # whose it is, is not known yet; ARTIM runs over the whole of it: PS3.8 9.1.5
            self._deadline = self._connected_at + (ae.acse_timeout or float("inf"))
        else:
            longest = ae.maximum_pdu_size or LONGEST_UNLIMITED
            self._deadline = time.monotonic() + self._silence_s
        if length > longest:
            raise OSError(f"a PDU of {length} bytes is longer than agreed")

    def peek(self, count: int) -> memoryview:
        """The next `count` bytes, which stay. Raises OSError when they do not come in time."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(READ_AHEAD))
        if self._end - self._begin < count:
            if self._begin + count > len(self._buffer):
                self._buffer[: self._end - self._begin] = self._buffer[self._begin : self._end]
                self._begin, self._end = 0, self._end - self._begin
            while self._end - self._begin < count:
                self._fill()
        return self._buffer[self._begin : self._begin + count]

    def take(self, count: int) -> memoryview | bytes:
        """The next `count` bytes, there until the next call."""
        if count > READ_AHEAD:
            return b"".join(bytes(some) for some in self._parts(count))
        taken = self.peek(count)
        self._begin += count
        return taken

    def some(self, most: int) -> memoryview:
        """The next bytes as they come, at most so many, there until the next call."""
        if self._begin == self._end:
            self._begin = self._end = 0
            self._fill()
        some = self._buffer[self._begin : min(self._end, self._begin + most)]
        self._begin += len(some)
        return some

    def recv(self, nr_bytes: int) -> bytearray:
        """`nr_bytes`, or fewer when the peer is gone. Raises OSError for a PDU longer than was agreed, TimeoutError for
        one that trickles."""
        self.begin_pdu(nr_bytes)
        received, at = bytearray(nr_bytes), min(nr_bytes, self._end - self._begin)
        received[:at] = self._buffer[self._begin : self._begin + at]
        self._begin += at
        view = memoryview(received)
        while at < nr_bytes:
            count = cast(socket.socket, self.socket).recv_into(view[at:])
            if not count:
                return received[:at]
            at += count
            self._in_time()
        return received

    def _parts(self, count: int) -> Iterator[memoryview]:
        while count:
            some = self.some(count)
            count -= len(some)
            yield some

    def _fill(self) -> None:
        """Read more behind what is there."""
        connection = self.socket
        count = connection.recv_into(self._buffer[self._end :]) if connection is not None else 0
        if not count:
            raise ConnectionResetError("the peer hung up")
        self._end += count
        self._in_time()

    def _in_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError("a PDU did not become whole in time")

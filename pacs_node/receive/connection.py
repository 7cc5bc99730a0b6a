"""A connection that is read with as few calls as it takes, and waited for no longer than agreed; the same with TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator

from pacs_node.tls import NotSecured, Shown, in_words, part, shown

READ_AHEAD = 1 << 18  # bytes read at once from an association that sends
LINGER_S = 2.0  # for the peer to close first: what we said last would be lost if we hung up on what it still sends
NOT_CLOSED_BY_PEER = (1, 4, 5)  # linux/tcp_states.h: ESTABLISHED, FIN_WAIT1, FIN_WAIT2


class Connection:
    """One thread reads and writes; any may `hang_up`. Every failure is an OSError.

    Only the time that is spent waiting for the peer counts: what is done with its bytes may take as long as it takes.
    """

    shown: Shown | None = None  # the peer's certificate

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = memoryview(b"")  # made when data comes
        self._begin, self._end = 0, 0  # what is read and not yet taken
        self._left_s = self._wait_s = 0.0
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # responses are small: do not hold them back
        connected.settimeout(None)  # the system waits, in the one call that reads

    def greet(self) -> None:
        """What comes before the first byte of DICOM, in the time that is allowed: nothing."""

    def allow(self, seconds: float) -> None:
        """From now on the peer may keep us waiting for so long, all waits together."""
        self._left_s = seconds
        if seconds != self._wait_s:
            self._wait_at_most(seconds)

    def patience(self, seconds: float) -> None:
        """How long it may take the peer to read what we send."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))

    def waits(self, seconds: float) -> bool:
        """Is there something to read, within so many seconds? True, too, when the peer has hung up."""
        if self._begin < self._end:
            return True
        self.allow(seconds)
        try:
            self.peek(1)
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def peek(self, count: int) -> memoryview:
        """The next `count` bytes, which stay."""
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

    def send(self, encoded: bytes) -> None:
        try:
            self._socket.sendall(encoded)
        except BlockingIOError as error:
            raise TimeoutError("the peer does not read what it is answered") from error

    def stop_reading(self) -> None:
        """Whoever waits for bytes hears that there are no more."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RD)  # an SSLSocket's own would have it go on in clear

    def hang_up(self) -> None:
        """Whoever reads or writes hears the end."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def see_off(self) -> None:
        """Nothing more will be said: what the peer still says is passed over until it closes, for a little while.

        One that has not closed by then is reset when we close: a sender whose window is shut would otherwise wait for
        as long as the system remembers the connection, a minute with Linux, and longer with others.
        """
        until = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)
            self.allow(LINGER_S)
            while time.monotonic() < until:
                self.some(READ_AHEAD)
        with contextlib.suppress(OSError):
            while self._is_there() and time.monotonic() < until:  # who was stopped from reading would not hear the end
                time.sleep(LINGER_S / 100)
            if self._is_there():
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))

    def _is_there(self) -> bool:
        """The peer has not said that it closes, as the system knows it."""
        if sys.platform != "linux":
            return False
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in NOT_CLOSED_BY_PEER

    def _parts(self, count: int) -> Iterator[memoryview]:
        while count:
            some = self.some(count)
            count -= len(some)
            yield some

    def _fill(self) -> None:
        """Read more behind what is there."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(READ_AHEAD))
        if self._left_s < self._wait_s / 2:
            self._wait_at_most(self._left_s)
        began = time.monotonic()
        count = self._receive(self._buffer[self._end :])
        self._left_s -= time.monotonic() - began
        if not count:
            raise ConnectionResetError("the peer hung up")
        self._end += count
        if self._left_s < 0:
            raise TimeoutError("a PDU did not become whole in time")

    def _receive(self, into: memoryview) -> int:
        try:
            return self._socket.recv_into(into)
        except BlockingIOError as error:  # SO_RCVTIMEO
            raise TimeoutError("nothing came in time") from error

    def _wait_at_most(self, seconds: float) -> None:
        self._wait_s = seconds
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


class SecuredConnection(Connection):
    """Over TLS. What was said of one thread holds for TLS, too: only its own shuts it, any may `hang_up`.

    An SSLSocket goes on waiting whatever SO_RCVTIMEO says, so it gets the time limit of each call as its own.
    """

    def __init__(self, connected: ssl.SSLSocket) -> None:
        super().__init__(connected)
        self._secured = connected
        self._patience_s = float("inf")
        self._limit_s: float | None = None
        self._over = False  # what comes now is passed over

    def greet(self) -> None:
        """The handshake. Raises NotSecured when it fails, TimeoutError, or OSError when the peer is gone."""
        began = time.monotonic()
        self._limit(self._left_s)
        try:
            self._secured.do_handshake()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise ConnectionResetError("the peer hung up") from error
        except ssl.SSLError as error:
            raise NotSecured(in_words(error)) from error
        self._left_s -= time.monotonic() - began
        self.shown = shown(self._secured)

    def patience(self, seconds: float) -> None:
        self._patience_s = seconds

    def send(self, encoded: bytes) -> None:
        self._limit(self._patience_s)
        try:
            self._secured.sendall(encoded)
        except TimeoutError as error:
            raise TimeoutError("the peer does not read what it is answered") from error

    def see_off(self) -> None:
        part(self._secured)
        self._over, self._limit_s = True, -1.0
        super().see_off()

    def _receive(self, into: memoryview) -> int:
        self._limit(self._wait_s)
        try:
            return socket.socket.recv_into(self._socket, into) if self._over else self._secured.recv_into(into)
        except TimeoutError as error:
            raise TimeoutError("nothing came in time") from error

    def _wait_at_most(self, seconds: float) -> None:
        self._wait_s = seconds

    def _limit(self, seconds: float) -> None:
        limit_s = None if seconds == float("inf") else max(seconds, 1e-6)  # zero would mean not at all
        if limit_s != self._limit_s:
            self._limit_s = limit_s
            self._secured.settimeout(limit_s)


def _timeval(seconds: float) -> bytes:
    """struct timeval: zero would mean for ever, and so does what is beyond all patience."""
    if seconds == float("inf"):
        return struct.pack("@ll", 0, 0)
    microseconds = max(1, int(seconds * 1e6))
    return struct.pack("@ll", microseconds // 1_000_000, microseconds % 1_000_000)

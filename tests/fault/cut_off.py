"""A way to a PostgreSQL server on which a connection is lost at the n-th statement: before the server has it, or before
its answer is heard."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

STATEMENTS = frozenset((b"Q", b"E"))  # Query, Execute: PostgreSQL 17, 53.7
LENGTH = struct.Struct(">I")  # of a message, itself included


class CutOff:
    """Listens at `port`, and counts the statements of all connections."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        self.counted = 0
        self.lost = False
        self._at: tuple[int, bool] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()

    def arm(self, n: int = 0, *, answered: bool = False) -> None:
        """Lose the connection of the n-th statement from now on. answered: once the server has done what it says."""
        with self._lock:
            self.counted, self.lost, self._at = 0, False, (n, answered)

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return  # it is over
            server = socket.create_connection(("127.0.0.1", self.server_port))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            unheard = threading.Event()
            threading.Thread(target=self._ask, args=(client, server, unheard), daemon=True).start()
            threading.Thread(target=self._answer, args=(client, server, unheard), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket, unheard: threading.Event) -> None:
        with suppress(OSError):
            for kind, message in _messages(client):
                lost = self._is_lost(kind)
                if lost is False:
                    break
                if lost:
                    unheard.set()
                server.sendall(message)
        _end(client, server)

    def _answer(self, client: socket.socket, server: socket.socket, unheard: threading.Event) -> None:
        with suppress(OSError):
            while (some := server.recv(1 << 16)) and not unheard.is_set():
                client.sendall(some)
        _end(client, server)

    def _is_lost(self, kind: bytes) -> bool | None:
        """None: it goes on; else whether the server still hears of it."""
        if kind not in STATEMENTS:
            return None
        with self._lock:
            self.counted += 1
            if self._at is None or self.counted != self._at[0]:
                return None
            self.lost = True
            return self._at[1]


def _messages(client: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """(type, whole message); the first has none."""
    with client.makefile("rb") as stream:
        kind = b""
        while len(length := stream.read(LENGTH.size)) == LENGTH.size:
            yield kind, kind + length + stream.read(LENGTH.unpack(length)[0] - LENGTH.size)
            kind = stream.read(1)


def _end(*both: socket.socket) -> None:
    for end in both:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()

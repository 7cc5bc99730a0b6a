"""One connection to the pages: uvicorn's, which neither waits for ever nor breaks on what breaks HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LONGEST_REQUEST_S = 30.0  # from its first byte to its last
LONGEST_UNREAD_S = 20.0  # that a client takes nothing of its answer
MOST_CONNECTIONS = 256  # each takes a descriptor, which the listener needs, too

WHOLE = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)  # states of a client that has said all of its request


class Connection(H11Protocol):
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._late = self.loop.call_later(LONGEST_REQUEST_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._late is None:
            self._late = self.loop.call_later(LONGEST_REQUEST_S, self.transport.abort)
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # it breaks HTTP while an answer is on its way: there is no other to give
            self.transport.abort()
        if self.conn.their_state in WHOLE:
            self._in_time()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._unread = self.loop.call_later(LONGEST_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._has_read()
        super().resume_writing()

    def _has_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self._has_read()
        super().connection_lost(exc)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

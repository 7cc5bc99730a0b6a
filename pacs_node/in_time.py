"""An answer over HTTP that comes whole in time, or the connection is closed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self


class InTime:
    """Hangs up on a server whose answer has not come whole in time, however steadily it trickles.

    httpx tells it what happens on the connection, as the extension "trace" of a request; its own timeouts are those of
    one piece. The connection is to be one of its own.
    """

    def __init__(self, longest_s: float) -> None:
        self.over = False
        self._timer = threading.Timer(longest_s, self.hang_up)
        self._timer.daemon = True
        self._stream: Any = None

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]
        elif event == "http11.receive_response_headers.started" and not self._timer.is_alive():
            self._timer.start()

    def hang_up(self) -> None:
        self.over = True
        if self._stream is not None:
            connection = self._stream.get_extra_info("socket")
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

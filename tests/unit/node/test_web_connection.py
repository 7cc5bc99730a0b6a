"""Whoever speaks to the web pages, half a request or none, takes no descriptor for long and no place from others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pacs_node.web import connection
from pacs_node.web.app import create_app
from pacs_node.web.connection import Connection
from tests.harness import wait_for

PATIENT = "Doe^Jane"


class Facts:
    """A node of which nothing is known but its health."""

    def health(self) -> dict[str, object]:
        return {"status": "ok", "reasons": []}

    def routes(self) -> list[str]:
        raise KeyError(PATIENT)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connection, "LONGEST_REQUEST_S", 0.5)
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 8)
    app = create_app(Facts(), CollectorRegistry())  # type: ignore[arg-type]
    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, timeout_keep_alive=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
    thread.start()
    wait_for(lambda: server.started, 20, "the pages")
    yield int(door.getsockname()[1])
    server.should_exit = True
    thread.join(20)


def healthy(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 200
    return False


HALVES = {
    "nothing": b"",
    "half a line": b"GET /hea",
    "half its headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
    "half its body": b"POST /api/rerun HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nroute=",
    "half of a second one": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /h",
}


@pytest.mark.parametrize("said", HALVES.values(), ids=HALVES)
def test_half_a_request_is_not_waited_for(port: int, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as half:
        half.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while half.recv(4096):
                pass
    assert healthy(port)


def test_connections_have_a_limit(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LONGEST_REQUEST_S", 60)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(9)]
        with contextlib.suppress(ConnectionResetError):
            assert silent[-1].recv(1) == b""
        assert not healthy(port)
    wait_for(lambda: healthy(port), 20, "room again")


def test_who_does_not_read_his_answers_is_hung_up_on(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would get in: connections have a limit."""
    monkeypatch.setattr(connection, "LONGEST_UNREAD_S", 0.5)
    asked = b"GET /static/vendor/niivue.js HTTP/1.1\r\nHost: localhost\r\n\r\n"  # 2 MB
    with contextlib.ExitStack() as stack:
        for _ in range(9):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            with contextlib.suppress(OSError):
                deaf.sendall(asked * 3)
        wait_for(lambda: healthy(port), 20, "room, though they are all there still")


BROKEN = {
    "more than it said": b"POST /api/rerun HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nab" + b"\0" * 50,
    "a chunk that is none": b"POST /api/rerun HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "no HTTP behind one": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n\x16\3\1\0\0",
}


@pytest.mark.parametrize("said", BROKEN.values(), ids=BROKEN)
def test_what_breaks_http_is_no_error_of_ours(port: int, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):  # an answer may be on its way, or not yet
        with socket.create_connection(("127.0.0.1", port), timeout=20) as broken, contextlib.suppress(OSError):
            broken.sendall(said)
            while broken.recv(4096):
                pass
    assert healthy(port)
    assert not [record for record in caplog.records if record.levelname == "ERROR" and record.name == "asyncio"]


def test_an_error_of_ours_is_told_without_its_values(port: int) -> None:
    with capture_logs() as events:
        answer = httpx.get(f"http://127.0.0.1:{port}/rerun")
    assert answer.status_code == 500
    assert PATIENT not in answer.text
    (event,) = [each for each in events if each["event"] == "page failed"]
    assert PATIENT not in str(event)
    assert "KeyError" in event["error"]

"""Whatever a network or a server can do wrong is one kind of error for everybody who talks to a peer: try again later.

A table of servers, each wrong in its own way, and of callers; every caller meets every server.
"""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from structlog.testing import capture_logs
from typer.testing import CliRunner

from pacs_node import priors
from pacs_node.assemble.evidence import expected_count
from pacs_node.association import MAX_PDU, Peer
from pacs_node.cli import app
from pacs_node.deliver.arrival import DimseArrivalCheck
from pacs_node.deliver.destination import Deferred
from pacs_node.deliver.dimse import DimseDestination, echo, send
from pacs_node.deliver.stow import QidoArrivalCheck, StowDestination, WebPeer
from pacs_node.errors import GiveUp, NodeError, NotOffered, TryAgain
from pacs_node.receive.commitment import bring_report
from pacs_node.records import CommitmentReport, Package, Sent
from tests.factories import us_image
from tests.harness import free_port
from tests.parrot import command, pdata, pdu
from tests.unit.deliver.conftest import now

SENT = [Sent("1.2.840.10008.5.1.4.1.1.66.4", "1.5", "1.8", "1.9")]
TIMEOUT_S = 1.0
IMPATIENT_S = 0.2  # with servers that never hang up


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    calling: str = "NODE"
    called: str = "PACS"


# ------------------------------------------------------------------------------------------------------ servers


def hear(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
    connection.close()


def accept(connection: socket.socket, longest: int = 1 << 20, syntax: bytes | None = None) -> None:
    """A-ASSOCIATE-AC for whatever is proposed, each context in its first transfer syntax. longest: bytes of a PDU.
    syntax: in this one."""
    request = hear(connection)
    if request[:1] != b"\1":
        return
    body, at, items = request[6:], 68, b""
    while at + 4 <= len(body):
        kind, length = body[at], struct.unpack(">H", body[at + 2 : at + 4])[0]
        content = body[at + 4 : at + 4 + length]
        if kind == 0x20:
            inner, first = content[4:], None
            while first is None:
                size = struct.unpack(">H", inner[2:4])[0]
                first = inner[: 4 + size] if inner[0] == 0x40 else None
                inner = inner[4 + size :]
            first = first if syntax is None else struct.pack(">BBH", 0x40, 0, len(syntax)) + syntax
            accepted = content[:1] + b"\0\0\0" + first
            items += struct.pack(">BBH", 0x21, 0, len(accepted)) + accepted
        elif kind in (0x10, 0x50):
            ours, theirs = (b"\x51\0\0\4" + struct.pack(">L", size) for size in (MAX_PDU, longest))
            items += body[at : at + 4 + length].replace(ours, theirs)
        at += 4 + length
    connection.sendall(pdu(2, body[:68] + items))


SERVERS: dict[str, Callable[[socket.socket], None]] = {
    "closes": lambda c: None,
    "closes after the request": lambda c: (hear(c), None)[1],
    "says garbage": lambda c: (hear(c), c.sendall(b"\x16\x03\xff garbage " * 20))[1],
    "says half a PDU": lambda c: (hear(c), c.sendall(b"\x02\x00\x00\x00\x10\x00abc"))[1],
    "says HTTP garbage": lambda c: (hear(c), c.sendall(b"HTTP/9.9 abc\r\n\r\n"))[1],
    "is silent": lambda c: (hear(c), threading.Event().wait(TIMEOUT_S * 3))[1] and None,
    "resets": reset,
    "resets after the request": lambda c: (hear(c), reset(c))[1],
    "aborts": lambda c: (hear(c), c.sendall(pdu(7, b"\0\0\2\0")))[1],
    "rejects for now": lambda c: (hear(c), c.sendall(pdu(3, b"\0\2\3\2")))[1],
    "accepts PDUs of seven bytes": lambda c: (accept(c, 7), stay(c))[1],
    "accepts in what is no transfer syntax": lambda c: (accept(c, syntax=b"1.2.3"), stay(c))[1],
    "accepts in what is no UID": lambda c: (accept(c, syntax=b"nonsense"), stay(c))[1],
    "accepts in nothing": lambda c: (accept(c, syntax=b""), stay(c))[1],
    "accepts in a syntax that was not proposed": lambda c: (accept(c, syntax=b"1.2.840.10008.1.2.4.203"), stay(c))[1],
    "accepts and closes": lambda c: (accept(c), None)[1],
    "accepts and resets": lambda c: (accept(c), hear(c), reset(c))[2],
    "accepts and aborts": lambda c: (accept(c), hear(c), c.sendall(pdu(7, b"\0\0\0\0")))[2],
    "accepts and says garbage": lambda c: (accept(c), hear(c), c.sendall(b"\x04\x00\x00\x00\x00\x08\xff\xff\xff\xff"))[
        2
    ],
    "accepts and is silent": lambda c: (accept(c), threading.Event().wait(TIMEOUT_S * 3))[1] and None,
}


def stay(connection: socket.socket, said: bytes = b"") -> None:
    """Say something, and hold the line until the caller hangs up."""
    connection.sendall(said)
    while hear(connection):
        pass


def trickle(connection: socket.socket, said: bytes) -> None:
    """A byte now and then, sooner than anybody's patience ends; and no end."""
    for at in itertools.count():
        connection.sendall(said[at : at + 1] or b"a")
        time.sleep(IMPATIENT_S / 4)


def flood(connection: socket.socket, said: bytes, again: bytes) -> None:
    connection.sendall(said)
    while True:
        connection.sendall(again * 100)


PENDING = pdata(1, 3, command((0x0100, b"\x20\x80"), (0x0120, b"\1\0"), (0x0800, b"\1\1"), (0x0900, b"\0\xff")))
HOLD: dict[str, Callable[[socket.socket], Any]] = {  # they never hang up: the caller must
    "is silent": stay,
    "says half a PDU and stays": lambda c: (hear(c), stay(c, b"\2\0\0\0\1\0abc"))[1],
    "trickles a PDU": lambda c: (hear(c), trickle(c, b"\2\0\0\1\0\0"))[1],
    "accepts and stays": lambda c: (accept(c), stay(c))[1],
    "accepts, says half a PDU and stays": lambda c: (accept(c), hear(c), stay(c, b"\4\0\0\0\1\0abc"))[2],
    "accepts and trickles": lambda c: (accept(c), hear(c), trickle(c, b"\4\0\0\1\0\0"))[2],
    "accepts and answers without end": lambda c: (accept(c), hear(c), flood(c, b"", PENDING))[2],
    "accepts and sends a PDU without end": lambda c: (
        accept(c),
        hear(c),
        flood(c, b"\4\0\xff\xff\xff\xff", b"a" * 999),
    )[2],
    "accepts and sends a message without end": lambda c: (accept(c), hear(c), flood(c, b"", pdata(1, 0, b"a" * 999)))[
        2
    ],
}
HOLD_HTTP: dict[str, Callable[[socket.socket], Any]] = {
    "is silent": stay,
    "says half a status line and stays": lambda c: (hear(c), stay(c, b"HTTP/1.1 2"))[1],
    "trickles": lambda c: (hear(c), trickle(c, b"HTTP/1.1 200 OK\r\nX: "))[1],
    "trickles its body": lambda c: (hear(c), trickle(c, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n["))[1],
    "answers without end": lambda c: (hear(c), flood(c, b"HTTP/1.1 200 OK\r\n\r\n", b"[" * 999))[1],
    "will answer, it says, without end": lambda c: (hear(c), flood(c, b"", b"HTTP/1.1 102 Wait\r\n\r\n"))[1],
}


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Address]:
    """A server that does one thing to every connection."""
    door = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with closing(connection), suppress(OSError):  # the caller has hung up
            (SERVERS | HOLD | HOLD_HTTP)[request.param](connection)

    def serve() -> None:
        while True:
            try:
                connection, _ = door.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield Address("127.0.0.1", door.getsockname()[1])
    door.close()


ADDRESSES: dict[str, tuple[Callable[[], Address], str]] = {
    "a closed port": (lambda: Address("127.0.0.1", free_port()), "connection refused"),
    "no such host": (lambda: Address("no-such-host.invalid", 104), "its host name cannot be resolved"),
    "no name": (lambda: Address("no such host", 104), "its host name cannot be resolved"),
    "too long a name": (lambda: Address("h" * 80, 104), "its host is no name that can be resolved"),
    "dots": (lambda: Address("a..b", 104), "its host is no name that can be resolved"),
}
ODD: dict[str, Address] = {  # of DIMSE alone
    "no port": Address("127.0.0.1", 123456),
    "a long calling title": Address("127.0.0.1", 104, calling="A_TITLE_OF_MORE_THAN_16"),
    "a long called title": Address("127.0.0.1", 104, called="A_TITLE_OF_MORE_THAN_16"),
    "an empty title": Address("127.0.0.1", 104, called=""),
    "a title of blanks": Address("127.0.0.1", 104, called="   "),
    "a title with a backslash": Address("127.0.0.1", 104, called="A\\B"),
    "a title that is not ASCII": Address("127.0.0.1", 104, called="KÖLN"),
}


# ------------------------------------------------------------------------------------------------------ callers


def peer(where: Address) -> Peer:
    return Peer("pacs", where.called, where.host, where.port, where.calling, TIMEOUT_S)


def web(where: Address) -> WebPeer:
    return WebPeer("pacs", f"http://{where.host}:{where.port}/dicom-web", TIMEOUT_S)


def ask_count(where: Address, folder: Path) -> None:
    """It answers None, and says why in the log."""
    with capture_logs() as events:
        count = expected_count(peer(where), "1.8", "1.9")
    assert count is None
    raise TryAgain(events[-1]["reason"])


def compare(where: Address, folder: Path) -> None:
    header = Dataset()
    header.PatientID, header.StudyDate, header.StudyInstanceUID = "1", "20260102", "1.8"
    try:
        priors.fetch(peer(where), header, "lung-nodule", folder, max_age_days=9, timeout_s=TIMEOUT_S)
    except priors.NoComparison as why_not:
        raise TryAgain(str(why_not)) from why_not


def image(folder: Path) -> Path:
    path = folder / "us.dcm"
    us_image().save_as(path, enforce_file_format=True)
    return path


def report(where: Address, folder: Path) -> None:
    said = CommitmentReport("2.25.1", (("1.2", "1.3"),))
    bring_report(said, peer(where))


DIMSE: dict[str, Callable[[Address, Path], Any]] = {
    "echo": lambda where, folder: echo(peer(where)),
    "send": lambda where, folder: send_impatiently(where, folder),
    "deliver": lambda where, folder: DimseDestination(peer(where)).deliver(Package("j", (image(folder),)), now),
    "commitment": lambda where, folder: DimseArrivalCheck(peer(where)).ask_commitment("2.25.1", SENT),
    "C-FIND": lambda where, folder: DimseArrivalCheck(peer(where)).find(SENT),
    "count": ask_count,
    "priors": compare,
    "report": report,
}
WEB: dict[str, Callable[[Address, Path], Any]] = {
    "STOW": lambda where, folder: StowDestination(web(where)).deliver(Package("j", (image(folder),)), now),
    "QIDO": lambda where, folder: QidoArrivalCheck(web(where)).find(SENT),
}


def send_impatiently(where: Address, folder: Path) -> Any:
    """`send` has the default patience; the servers of this table answer at once or never."""
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr("pacs_node.deliver.dimse.Peer", lambda *args: Peer(*args, TIMEOUT_S))
        return send([image(folder)], where.host, where.port, where.calling, where.called, now)


def met(caller: Callable[[Address, Path], Any], where: Address, folder: Path) -> str:
    """What a caller says. Anything but TryAgain fails the test: another error, an answer, a refusal for good."""
    with pytest.raises(TryAgain) as told:
        caller(where, folder)
    assert not isinstance(told.value, GiveUp | NotOffered)
    text = str(told.value)
    assert "Errno" not in text
    assert "Error" not in text, text
    return text


@pytest.mark.parametrize("caller", [*DIMSE, *WEB])
@pytest.mark.parametrize("name", ADDRESSES)
def test_nobody_there_is_said_in_the_same_words_by_all(caller: str, name: str, tmp_path: Path) -> None:
    address, words = ADDRESSES[name]
    text = met((DIMSE | WEB)[caller], address(), tmp_path)
    assert f" cannot be reached: {words}" in text
    assert text.startswith("pacs") or caller in ("send", "count", "report")


@pytest.mark.parametrize("caller", DIMSE)
@pytest.mark.parametrize("name", ODD)
def test_an_address_that_cannot_be_dialled_is_no_crash(caller: str, name: str, tmp_path: Path) -> None:
    met(DIMSE[caller], ODD[name], tmp_path)


@pytest.mark.parametrize("caller", DIMSE)
@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_every_caller_survives_every_server(caller: str, server: Address, tmp_path: Path) -> None:
    text = met(DIMSE[caller], server, tmp_path)
    assert any(
        words in text for words in ("cannot be reached", "broke off", "did not answer", "rejected", "took too long")
    ), text


@pytest.mark.parametrize("caller", WEB)
@pytest.mark.parametrize("server", [name for name in SERVERS if "accepts" not in name], indirect=True)
def test_every_web_caller_survives_every_server(caller: str, server: Address, tmp_path: Path) -> None:
    assert " cannot be reached: " in met(WEB[caller], server, tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("server", "caller"),
    [*itertools.product(HOLD, DIMSE), *itertools.product(HOLD_HTTP, WEB)],
    indirect=["server"],
)
def test_no_server_holds_a_caller(
    server: Address, caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits for one destination for ever keeps a place that others need. What it takes for an answer is
    another question; an error nobody foresaw it is not."""
    monkeypatch.setattr(sys.modules[__name__], "TIMEOUT_S", IMPATIENT_S)
    with suppress(NodeError):
        (DIMSE | WEB)[caller](server, tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("caller", ["send", "deliver"])
def test_who_never_takes_what_is_sent_holds_nobody(
    caller: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the buffers between the two hold."""
    monkeypatch.setattr(sys.modules[__name__], "TIMEOUT_S", IMPATIENT_S)
    large = us_image(shape=(4000, 4000))
    monkeypatch.setattr(sys.modules[__name__], "us_image", lambda: large)
    enough = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def serve() -> None:
            connection, _ = door.accept()
            with connection:
                accept(connection)
                enough.wait()

        threading.Thread(target=serve, daemon=True).start()
        try:
            met(DIMSE[caller], Address("127.0.0.1", door.getsockname()[1]), tmp_path)
        finally:
            enough.set()


@pytest.mark.parametrize("server", ["says garbage"], indirect=True)
def test_a_server_without_tls_is_told_so(server: Address) -> None:
    peer = WebPeer("pacs", f"https://{server.host}:{server.port}/dicom-web", TIMEOUT_S)
    with pytest.raises(Deferred, match="cannot be reached: TLS failed: "):
        QidoArrivalCheck(peer).find(SENT)


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("command", ["echo", "send"])
def test_the_command_line_says_one_sentence(command: str, name: str, tmp_path: Path) -> None:
    address, words = ADDRESSES[name]
    where = f"PACS@{address().host}:{address().port}"
    arguments = [where] if command == "echo" else [str(image(tmp_path)), "--to", where]
    done = CliRunner().invoke(app, [command, *arguments])
    assert done.exit_code == 1
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert f"cannot be reached: {words}" in done.output
    assert "Traceback" not in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_deferred_is_what_jobs_wait_for() -> None:
    assert issubclass(Deferred, TryAgain)

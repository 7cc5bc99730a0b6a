"""The audit trail at a syslog server: RFC 5424 over TLS (RFC 5425) and UDP (RFC 5426), and while the server is away."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pacs_node.audit import Audit, Source, Trail
from pacs_node.errors import CannotStart
from pacs_node.syslog import Forwarder, Server, framed
from tests.harness import free_port, need, wait_for

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
SOURCE = Source("PACSNODE", "node.example", "4711")
# RFC 5424 6: PRI, VERSION, TIMESTAMP, HOSTNAME, APP-NAME, PROCID, MSGID, STRUCTURED-DATA, and a text marked as UTF-8
RFC5424 = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}\+00:00) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) "
    rb"([!-~]{1,32}) - \xef\xbb\xbf(<AuditMessage>.*</AuditMessage>)",
    re.DOTALL,
)


def user_of(message: bytes) -> str:
    found = RFC5424.fullmatch(message)
    assert found, message
    assert (found[1], found[3], found[4], found[5], found[6]) == (
        b"85",  # security/authorization, notice: PS3.15 A.6
        b"node.example",
        b"pacs-node",
        b"4711",
        b"DICOM+RFC3881",
    )
    name = re.search(r'UserName="(\w+)"', found[7].decode())
    assert name
    return name[1]


class Keys:
    """Certificates of a site, made by openssl: an authority, one for localhost signed by it, and one of a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run("req", "-x509", *self._new("ca"), "-subj", "/CN=site", "-days", "2")
        for name in ("server", "client"):
            self._run("req", *self._new(name, request=True), "-subj", f"/CN={name}")
            (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
            self._run(
                *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
                *("-days", "2", "-extfile", "names", "-out", f"{name}.pem"),
            )

    def _new(self, name: str, *, request: bool = False) -> tuple[str, ...]:
        out = f"{name}.csr" if request else f"{name}.pem"
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key", "-out", out)

    def _run(self, *words: str) -> None:
        subprocess.run([need("openssl"), *words], cwd=self.folder, check=True, capture_output=True)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


class Repository:
    """A syslog server over TLS, which keeps what it is sent, message by message as their lengths say."""

    def __init__(self, keys: Keys, port: int, *, asks: bool = False) -> None:
        self.got: list[bytes] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(keys / "server.pem", keys / "server.key")
        if asks:
            self._context.load_verify_locations(keys / "ca.pem")
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._door = socket.create_server(("127.0.0.1", port))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._door.accept()
            except OSError:
                return
            with suppress(OSError):
                secure = self._context.wrap_socket(plain, server_side=True)
                self._open.append(secure)
                threading.Thread(target=self._read, args=(secure,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with suppress(OSError), connection.makefile("rb") as file:
            while length := b"".join(iter(lambda: file.read(1).strip(b" "), b"")):
                self.got.append(file.read(int(length)))

    def users(self) -> list[str]:
        return [user_of(message) for message in list(self.got)]

    def close(self) -> None:
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # also for the thread that waits at it
        self._door.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class Site:
    """A trail with what sends it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.trail = Trail(folder / "audit", 2000, lambda: NOON)
        self.audit = Audit(SOURCE, self.trail, lambda: NOON)
        self.audit.log = lambda event, facts: None
        self.forwarder = Forwarder(self.trail, server, SOURCE)
        self.audit.on_written = self.forwarder.loop.wake

    def start(self) -> None:
        self.forwarder.start()
        self.audit.loop.start()

    def say(self, *users: str) -> None:
        for user in users:
            self.audit("login", {"user": user})

    def stop(self) -> None:
        self.audit.stop()
        self.forwarder.stop()


@pytest.fixture
def port() -> int:
    return free_port()


def tls(keys: Keys, port: int, **more: Path) -> Server:
    return Server("localhost", port, "tls", keys / "ca.pem", **more)


def test_over_tls_each_message_comes_once_in_its_order(tmp_path: Path, keys: Keys, port: int) -> None:
    repository = Repository(keys, port)
    site = Site(tmp_path, tls(keys, port))
    site.start()
    users = [f"u{number}" for number in range(30)]
    site.say(*users)
    wait_for(lambda: len(repository.got) == 30, 30, "30 messages")
    site.say("late")
    wait_for(lambda: len(repository.got) == 31, 30, "one more, over the same connection")
    assert repository.users() == [*users, "late"]
    assert len(repository._open) == 1
    assert (site.forwarder.trouble, site.forwarder.unsent) == (None, 0)
    site.stop()
    repository.close()


def test_a_server_that_is_away_holds_up_nobody_and_gets_all_when_it_is_back(
    tmp_path: Path, keys: Keys, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.syslog.AGAIN_AFTER_S", 0.2)
    site = Site(tmp_path, tls(keys, port))
    site.start()
    site.say("a", "b")
    wait_for(lambda: site.forwarder.trouble, 30, "trouble")
    assert "connection refused" in str(site.forwarder.trouble)
    assert f"localhost:{port}" in str(site.forwarder.trouble)
    assert site.forwarder.unsent > 0
    site.say("c")
    repository = Repository(keys, port)
    wait_for(lambda: len(repository.got) == 3, 30, "what had waited")
    repository.close()
    with suppress(OSError):
        site.say("d")  # some of these the broken connection may swallow, as RFC 5425 has no answer
    wait_for(lambda: site.forwarder.unsent == 0 or site.forwarder.trouble, 30, "it is tried")
    site.stop()
    again = Repository(keys, port)
    site = Site(tmp_path, tls(keys, port))  # the node is started again
    site.start()
    site.say("e")
    wait_for(lambda: "e" in again.users(), 30, "what came after the start")
    assert repository.users() == ["a", "b", "c"]
    assert again.users() in (["e"], ["d", "e"]), "nothing twice"
    assert site.forwarder.trouble is None
    site.stop()
    again.close()


def test_a_server_that_is_not_who_it_says_gets_nothing(tmp_path: Path, keys: Keys, port: int) -> None:
    repository = Repository(keys, port)
    site = Site(tmp_path, Server("localhost", port, "tls"))  # whom the machine trusts: not this one
    site.start()
    site.say("a")
    wait_for(lambda: site.forwarder.trouble, 30, "trouble")
    assert "its certificate:" in str(site.forwarder.trouble)
    site.stop()
    assert repository.got == []
    repository.close()


@pytest.mark.parametrize("shows", [True, False])
def test_a_server_that_asks_for_our_certificate(tmp_path: Path, keys: Keys, port: int, shows: bool) -> None:
    repository = Repository(keys, port, asks=True)
    ours = {"certificate": keys / "client.pem", "key": keys / "client.key"} if shows else {}
    site = Site(tmp_path, tls(keys, port, **ours))
    site.start()
    site.say("a")
    if shows:
        wait_for(lambda: repository.users() == ["a"], 30, "the message")
    site.stop()
    assert repository.users() == (["a"] if shows else [])
    repository.close()


def test_over_udp_each_message_is_a_datagram(tmp_path: Path, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        door.bind(("127.0.0.1", port))
        door.settimeout(30)
        site = Site(tmp_path, Server("127.0.0.1", port, "udp"))
        site.start()
        site.say("a", "b")
        assert [user_of(door.recv(65536)) for _ in range(2)] == ["a", "b"]
        site.stop()


def test_what_is_written_by_another_process_is_sent_too(tmp_path: Path, keys: Keys, port: int) -> None:
    """A command, or a process that receives; and one process alone sends."""
    repository = Repository(keys, port)
    first, second = Site(tmp_path, tls(keys, port)), Site(tmp_path, tls(keys, port))
    first.start()
    second.start()
    second.say("b")
    wait_for(lambda: repository.users() == ["b"], 30, "the message of the other")
    second.stop()
    first.stop()
    assert repository.users() == ["b"]
    repository.close()


def test_certificates_that_cannot_be_used_are_said_at_start(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("none")
    for server in (
        Server("localhost", 6514, "tls", tmp_path / "none.pem"),
        Server("localhost", 6514, "tls", None, tmp_path / "none.pem", tmp_path / "none.pem"),
    ):
        with pytest.raises(CannotStart, match=r"certificates of syslog in \[audit\] cannot be used"):
            Forwarder(Trail(tmp_path, 1, lambda: NOON), server, SOURCE)


@pytest.mark.parametrize(("host", "said"), [("node", "node"), ("kräk node\n", "krknode"), ("", "-"), ("\0", "-")])
def test_the_head_holds_what_it_may(host: str, said: str) -> None:
    text = framed('<AuditMessage><a EventDateTime="x"/></AuditMessage>', Source("A", host, "1"))
    assert text.startswith(f"<85>1 x {said} pacs-node 1 DICOM+RFC3881 - ".encode())


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())  # of nodes that other tests did not let start
    yield
    left = [
        thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith(("syslog", "audit"))
    ]
    assert left == []

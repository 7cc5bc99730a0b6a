"""The audit trail brought to a syslog server: RFC 5424, over UDP (RFC 5426) or TLS (RFC 5425); PS3.15 A.6 and A.7.

What is sent is read from the files of the trail, so a server that is away holds up nobody and loses nothing: its
messages wait in the files, and how far they were sent stands beside them.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import structlog

from pacs_node.audit import START, Audit, Position, Source, Trail
from pacs_node.durable import write_whole
from pacs_node.errors import CannotStart
from pacs_node.loop import Loop

if TYPE_CHECKING:
    from config import Config

log = structlog.get_logger()

PRIORITY = 10 * 8 + 5  # security/authorization, normal but significant: PS3.15 A.6
MSGID = "DICOM+RFC3881"  # the same
LOOK_EVERY_S = 2.0  # for what other processes of the node have written
AGAIN_AFTER_S = 5.0
PATIENCE_S = 10.0  # with a server that takes nothing
AT_ONCE = 200  # messages; then it is written down how far they were sent
LONGEST_DATAGRAM = 65_000  # bytes; RFC 5426 3.2 asks receivers for 2048


@dataclass(frozen=True)
class Server:
    """transport: "tls" or "udp". ca: certificates that may have signed its own. certificate, key: ours, if it asks."""

    host: str
    port: int
    transport: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def framed(line: str, source: Source) -> bytes:
    """A message as RFC 5424 has it; its time is the event's, and the text is marked as UTF-8."""
    at = line.partition('EventDateTime="')[2].partition('"')[0]
    head = f"<{PRIORITY}>1 {at} {_name(source.host, 255)} pacs-node {_name(source.process, 128)} {MSGID} - "
    return head.encode() + b"\xef\xbb\xbf" + line.encode()


def _name(text: str, longest: int) -> str:
    """As a field of the head: printable ASCII without spaces, or - for none (RFC 5424 6)."""
    return "".join(c for c in text if "!" <= c <= "~")[:longest] or "-"


class Forwarder:
    """Sends what the trail holds, in its order, from where it left off. The first time: from now on.

    Raises CannotStart for certificates that cannot be used.
    """

    def __init__(self, trail: Trail, server: Server, source: Source) -> None:
        self.trail, self.server, self.source = trail, server, source
        self.trouble: str | None = None
        self.lost = 0  # messages that no datagram has room for
        self.loop = Loop("syslog", self._look, LOOK_EVERY_S)
        self._context = _context(server) if server.transport == "tls" else None
        self._socket: socket.socket | None = None
        self._lock: IO[Any] | None = None
        self._sent_to: Position = START

    @property
    def unsent(self) -> int:
        """Bytes of the trail that the server has not got."""
        return self.trail.bytes_after(self._sent_to)

    def start(self) -> None:
        if self._held():
            self._sent_to = self._kept() or self.trail.end()
            self._keep()
        self.loop.start()

    def stop(self) -> None:
        """What is on the disk is tried once more."""
        self.loop.stop()
        self._look()
        self._hang_up()
        if self._lock is not None:
            self._lock.close()

    def _look(self) -> float | None:
        if not self._held():
            return None  # another process of the node sends what stands in this folder
        try:
            while some := list(self.trail.after(self._sent_to, AT_ONCE)):
                self._send([line for line, _ in some])
                self._sent_to = some[-1][1]
                self._keep()
        except (OSError, ssl.SSLError) as error:
            self._hang_up()
            why = _words(error)
            if self.trouble is None:
                log.warning("syslog server away", server=str(self.server), error=why)
            self.trouble = (
                f"the syslog server {self.server} does not take the audit trail ({why}): {self.unsent} bytes wait, "
                "and stay in the files"
            )
            return AGAIN_AFTER_S
        if self.trouble is not None:
            log.info("syslog server is back", server=str(self.server))
            self.trouble = None
        return None

    def _send(self, lines: list[str]) -> None:
        if self._context is None:
            self._send_datagrams(lines)
            return
        if self._socket is None or _has_hung_up(self._socket):
            self._hang_up()
            plain = socket.create_connection((self.server.host, self.server.port), PATIENCE_S)
            try:
                self._socket = self._context.wrap_socket(plain, server_hostname=self.server.host)
            except BaseException:
                plain.close()
                raise
        for line in lines:
            said = framed(line, self.source)
            self._socket.sendall(b"%d %b" % (len(said), said))  # octet counting: RFC 5425 4.3

    def _send_datagrams(self, lines: list[str]) -> None:
        family, kind, _, _, address = socket.getaddrinfo(self.server.host, self.server.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as door:
            for line in lines:
                said = framed(line, self.source)
                if len(said) > LONGEST_DATAGRAM:
                    self.lost += 1
                    log.error("audit message is too long for a datagram", bytes=len(said))
                    continue
                door.sendto(said, address)

    def _hang_up(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None

    def _held(self) -> bool:
        """One process alone sends what stands in a folder."""
        if self._lock is None:
            self.trail.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.trail.folder / "syslog.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                return False
            self._lock = lock
            self._sent_to = self._kept() or self._sent_to
        return True

    def _kept(self) -> Position | None:
        with suppress(OSError, ValueError, TypeError):
            server, name, offset = json.loads((self.trail.folder / "syslog.json").read_bytes())
            return (str(name), int(offset)) if server == str(self.server) else None
        return None

    def _keep(self) -> None:
        said = json.dumps([str(self.server), *self._sent_to]).encode()
        write_whole(self.trail.folder / "syslog.json", lambda file: file.write(said), mode=0o600)


def _context(server: Server) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=server.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if server.certificate is not None:
            context.load_cert_chain(server.certificate, server.key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise CannotStart(f"the certificates of syslog in [audit] cannot be used: {_words(error)}") from error
    return context


def _has_hung_up(connection: socket.socket) -> bool:
    """A server of syslog says nothing, so that all that can be read is the end; tickets of TLS are read on the way."""
    connection.settimeout(0)
    try:
        return not connection.recv(1)
    except ssl.SSLWantReadError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(PATIENCE_S)


def _words(error: OSError | ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return (error.strerror or str(error)).lower()


def audit_of(config: Config, now: Callable[[], datetime]) -> tuple[Audit, Forwarder | None]:
    """The audit trail of a data folder, and what brings it to a syslog server."""
    settings = config.audit
    source = Source(config.node.ae_title, socket.gethostname(), str(os.getpid()))
    trail = Trail(config.node.data_dir / "audit", settings.file_mb << 20, now)
    audit = Audit(source, trail, now)
    if not settings.syslog_host:
        return audit, None
    server = Server(
        settings.syslog_host,
        settings.syslog_port,
        settings.syslog_transport,
        settings.syslog_ca,
        settings.syslog_certificate,
        settings.syslog_key,
    )
    forwarder = Forwarder(trail, server, source)
    audit.on_written = forwarder.loop.wake
    return audit, forwarder

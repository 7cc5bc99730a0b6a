"""TLS of DICOM connections: PS3.15 B.12, which is BCP 195 (RFC 9325). What we show, whose certificates we take, and who
shows what. The files may be renewed at any time: the next connection takes them up.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog

from pacs_node.errors import CannotStart

log = structlog.get_logger(__name__)

SUITES = {  # of TLS 1.2, by RFC 9325 4.2 -> as OpenSSL calls them; those of TLS 1.3 are all of this kind
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
}
LEVEL = "@SECLEVEL=2"  # no RSA below 2048 bits, no SHA-1

# what OpenSSL calls it -> what it means between two DICOM systems
WORDS = {
    "WRONG_VERSION_NUMBER": "what came is no TLS",
    "HTTP_REQUEST": "what came is HTTP",
    "UNEXPECTED_EOF_WHILE_READING": "the other side hung up during the handshake",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other side shows no certificate",
    "UNSUPPORTED_PROTOCOL": "the other side knows no TLS 1.2 or later",
    "NO_SHARED_CIPHER": "the other side offers no cipher suite of RFC 9325",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other side wants to see a certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "the other side does not trust who signed the certificate it is shown",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other side says that the certificate it is shown has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other side does not take the certificate it is shown",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the other side does not take the certificate it is shown",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the other side does not take the certificate it is shown",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the other side has no cipher suite of ours, or wants to see a certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other side does not speak this version of TLS",
}


class NotSecured(OSError):
    """No TLS came about with somebody who called; in words."""


class NotTheirs(ConnectionError):
    """The certificate that a peer shows is not the one that the settings name."""


@dataclass(frozen=True)
class Shown:
    """The certificate that the other side has shown in the handshake."""

    fingerprint: str  # SHA-256 of it as DER, in small hexadecimal digits
    subject: str  # "CN=pacs"
    names: frozenset[str]  # DNS names and addresses that it carries, else its Common Name

    def carries(self, name: str) -> bool:
        """RFC 9525 6.3: a * stands for the whole first label, and for nothing else."""
        wanted = _canonical(name)
        _, _, parent = wanted.partition(".")
        return wanted in self.names or (bool(parent) and f"*.{parent}" in self.names)


@dataclass(frozen=True)
class Certified:
    """What a peer that calls must show: one of these certificates, or one with this name; or any that is trusted."""

    fingerprints: frozenset[str] = frozenset()
    name: str | None = None

    def why_not(self, shown: Shown | None) -> str | None:
        """None, or what is wrong with what it shows; shown: None without TLS."""
        if shown is None:
            return "without TLS, which its settings ask for"
        if self.fingerprints:
            if shown.fingerprint in self.fingerprints:
                return None
            return f"with the certificate {shown.fingerprint} of {shown.subject}, none of its tls_fingerprints"
        if self.name is not None and not shown.carries(self.name):
            return f"with the certificate of {shown.subject}, which does not carry {self.name!r} (tls_name)"
        return None


@dataclass(frozen=True)
class Files:
    """PEM files. trusted: who may have signed the other side's certificate, or that itself; None: whom the machine
    trusts."""

    certificate: Path | None = None
    key: Path | None = None
    trusted: Path | None = None

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """Another one after a file was renewed. Raises OSError."""
        return tuple(state_of(path) for path in (self.certificate, self.key, self.trusted) if path is not None)

    def for_callers(self) -> ssl.SSLContext:
        """They must show a certificate, too. Raises OSError."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        context.num_tickets = 0  # whoever comes again shows its certificate again
        # DICOM says itself when it is over; and to whom we listen no more we still say A-ABORT
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
        return context

    def for_called(self, *, by_fingerprint: bool) -> ssl.SSLContext:
        """by_fingerprint: who signed the certificate, which name and which dates it carries does not count, because the
        settings name this very one (RFC 7671 5.1 has the same rule). Raises OSError."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        if by_fingerprint:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _context(self, side: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
        context.set_ciphers(":".join([*SUITES.values(), LEVEL]))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what is trusted need not be a CA
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        if self.trusted is not None:
            context.load_verify_locations(self.trusted)
        else:
            context.load_default_certs()
        return context


class Renewed:
    """The context of these files as they are now. Those that cannot be used are told once, and the ones before stay."""

    def __init__(self, files: Files, *, calls: bool, by_fingerprint: bool = False) -> None:
        """calls: for those we call, not for those who call us. Raises CannotStart when the files cannot be used."""
        self.files, self._calls, self._by_fingerprint = files, calls, by_fingerprint
        self._one_at_a_time = threading.Lock()
        self._told = ""
        try:
            self._seen = files.state()
            self._context = self._made()
        except OSError as error:
            raise CannotStart(f"the certificates in [tls] cannot be used: {in_words(error)}") from error

    def context(self) -> ssl.SSLContext:
        with self._one_at_a_time:
            try:
                state = self.files.state()
                if state != self._seen:
                    self._seen = state  # not tried again until they are written again
                    self._context = self._made()
                    self._told = ""
                    log.info("tls.certificates-renewed")
            except OSError as error:  # perhaps one of the two is renewed, and the other is about to be
                if self._told != (words := in_words(error)):
                    log.warning("tls.certificates-not-taken", error=words)
                self._told = words
            return self._context

    def _made(self) -> ssl.SSLContext:
        return self.files.for_called(by_fingerprint=self._by_fingerprint) if self._calls else self.files.for_callers()


class Called:
    """How one peer is called over TLS. name: what its certificate must carry, unless it is one of the fingerprints."""

    def __init__(self, files: Files, name: str, fingerprints: frozenset[str] = frozenset()) -> None:
        """Raises CannotStart when the files cannot be used."""
        self.name, self.fingerprints = name, fingerprints
        self.renewed = Renewed(files, calls=True, by_fingerprint=bool(fingerprints))

    def secure(self, connected: socket.socket) -> ssl.SSLSocket:
        """A connection to it after the handshake, within the time limit of the socket. Raises OSError."""
        secured = self.renewed.context().wrap_socket(connected, server_hostname=self.name)
        theirs = shown(secured)
        if self.fingerprints and theirs.fingerprint not in self.fingerprints:
            part(secured)
            secured.close()
            raise NotTheirs(f"its certificate is {theirs.fingerprint}, none of its tls_fingerprints")
        return secured


def shown(secured: ssl.SSLSocket) -> Shown:
    """After the handshake. Names only of a certificate that was verified."""
    encoded = secured.getpeercert(binary_form=True)
    facts: dict[str, Any] = secured.getpeercert() or {}
    subject = [(str(key), str(value)) for part in facts.get("subject", ()) for key, value in part]
    also = [(str(kind), str(value)) for kind, value in facts.get("subjectAltName", ())]
    names = [value for kind, value in also if kind in ("DNS", "IP Address")]
    names = names or [value for key, value in subject if key == "commonName"]
    told = ", ".join(f"{'CN' if key == 'commonName' else key}={value}" for key, value in subject)
    return Shown(hashlib.sha256(encoded or b"").hexdigest(), told or "nobody", frozenset(map(_canonical, names)))


def part(secured: ssl.SSLSocket) -> None:
    """Say that nothing more will come, RFC 8446 6.1; the other side's word is not waited for."""
    with suppress(OSError, ValueError):  # it cannot be said now, or it is said
        secured.settimeout(0)
        secured.unwrap()


def in_words(error: OSError) -> str:
    """ "certificate verify failed: self-signed certificate"."""
    if not isinstance(error, ssl.SSLError):
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{(error.strerror or str(error)).lower()}"
    name = str(getattr(error, "reason", None) or error)
    verified = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
    reason = WORDS.get(name, name.replace("_", " ").lower())
    return f"{reason}: {verified}" if verified else reason


def _canonical(name: str) -> str:
    """Names in small letters without a dot at the end, addresses as they are mostly written."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower().removesuffix(".")


def state_of(path: Path) -> tuple[int, int, int]:
    """Another one after the file was renewed. Raises OSError."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size

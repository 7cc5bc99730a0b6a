"""Certificates for the tests: of an authority, of whomever, good or bad."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).hexdigest()

    def caller(self, trusted: Path | None, **settings: Any) -> ssl.SSLContext:
        """For whoever calls with it, and believes any certificate where trusted is None."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE if trusted is None else ssl.CERT_REQUIRED
        if trusted is not None:
            context.load_verify_locations(trusted)
        context.load_cert_chain(self.certificate, self.key)
        for name, value in settings.items():
            setattr(context, name, value)
        return context


@cache
def _key(number: object, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Made once: a key takes a fifth of a second."""
    return rsa.generate_private_key(65537, bits)


class Authority:
    """It signs certificates, and its own. Of those it issues each has another key than the one before."""

    def __init__(self, folder: Path, name: str = "hospital") -> None:
        self.folder, self.name = folder, name
        self._key, self._issued = _key(name), 0
        self._subject = _named(name)
        self.certificate = folder / f"{name}-ca.pem"
        made = self._sign(self._subject, self._key, (-1, 30), [], ca=True)
        self.certificate.write_bytes(made.public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        names: Sequence[str] = ("127.0.0.1",),
        days: tuple[float, float] = (-1, 90),
        bits: int = 2048,
        password: bytes | None = None,
    ) -> Identity:
        """names: DNS names and addresses. days: from now, when it begins and ends."""
        self._issued += 1
        key = _key(self._issued % 2, bits)
        made = self._sign(_named(name), key, days, names, ca=False)
        identity = Identity(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        identity.certificate.write_bytes(made.public_bytes(Encoding.PEM))
        locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
        identity.key.chmod(0o600)
        return identity

    def _sign(
        self,
        subject: x509.Name,
        key: rsa.RSAPrivateKey,
        days: tuple[float, float],
        names: Sequence[str],
        *,
        ca: bool,
    ) -> x509.Certificate:
        begins, ends = (datetime.now(UTC) + timedelta(days=each) for each in days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
        return builder.sign(self._key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)

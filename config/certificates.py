"""What certificates in PEM files say of themselves, and what is wrong with them.

What reads them takes 9 MB: it is loaded for the first that is read, and by nodes without any not at all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509


class Unusable(ValueError):
    """Why a file cannot be used, with its name."""


@dataclass(frozen=True)
class Certificate:
    subject: str  # RFC 4514: "CN=pacs,O=Hospital"
    fingerprint: str  # SHA-256 of it as DER, in small hexadecimal digits
    begins: datetime  # UTC
    ends: datetime  # UTC
    public_key: bytes  # DER

    def why_not_valid(self, now: datetime) -> str | None:
        """None, or "has expired on 2026-01-31"."""
        if now > self.ends:
            return f"has expired on {self.ends:%Y-%m-%d}: renew it"
        if now < self.begins:
            return f"is not valid before {self.begins:%Y-%m-%d %H:%M} UTC: is the clock right?"
        return None

    def why_renew(self, now: datetime, before: timedelta) -> str | None:
        """None, or "ends on 2026-01-31: renew it", if that is so soon."""
        return f"ends on {self.ends:%Y-%m-%d}: renew it" if self.ends < now + before else None


def certificates(file: Path) -> list[Certificate]:
    """At least one, in the order of the file. Raises Unusable."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    content = _content(file)
    try:
        return [_read(each) for each in x509.load_pem_x509_certificates(content)]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Unusable(f"{file} holds no certificate in PEM that can be read") from error


def certificate_of(der: bytes) -> Certificate:
    """One that was shown on a connection. Raises ValueError."""
    from cryptography import x509

    return _read(x509.load_der_x509_certificate(der))


def _read(certificate: x509.Certificate) -> Certificate:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Certificate(
        certificate.subject.rfc4514_string() or "nobody",
        hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    )


def why_key_does_not_fit(file: Path, certificate: Certificate) -> str | None:
    """None, or what is wrong with the file of a certificate's key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        key = load_pem_private_key(_content(file), password=None)
    except Unusable as error:
        return str(error)
    except TypeError:
        return f"{file} has a password, which nobody could type in at a start: openssl pkey -in {file} removes it"
    except (ValueError, UnsupportedAlgorithm):
        return f"{file} holds no private key in PEM that can be read"
    if key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != certificate.public_key:
        return f"{file} is not the key of the certificate of {certificate.subject}"
    return None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unusable(f"{file} cannot be read: {error.strerror}") from error

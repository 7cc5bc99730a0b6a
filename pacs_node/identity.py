"""Whose a series is, as keyed hashes: found again by who knows the name or number, read by nobody.

The ledger holds no name and no number. It holds HMAC-SHA-256 of them (RFC 2104, its left half) under a key that lies in
the data folder, beside the images that name the patient anyway: who has the ledger alone can try no names.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import unicodedata
from pathlib import Path

from pydicom import Dataset

from dicom_sr.attributes import text
from pacs_node.durable import write_whole
from pacs_node.errors import CannotStart

KEY_FILE = "identity.key"  # below data_dir
KEY_BYTES = 32
HASH_CHARACTERS = 32  # hexadecimal: 128 bits
MOST_WORDS = 8  # of a name that is sought
LONGEST_WORDS = 64  # characters of what is sought
WILDCARDS = ("*", "?")  # PS3.4 C.2.2.2.4
SHOWN = {  # keyword of what a reader is shown -> its field
    "PatientName": "name",
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer",
    "PatientBirthDate": "birth_date",
    "AccessionNumber": "accession_number",
}
BETWEEN_WORDS = re.compile(r"[\s^=,;.'\u2019`-]+")  # of a Person Name: components and groups, PS3.5 6.2.1
PLAIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})


class NotSought(ValueError):
    """What nobody can be found by, in words that do not say it again."""


class Identity:
    """Hashes under the key of one data folder."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, data_dir: Path) -> Identity:
        """The key is made at the first start. Raises OSError, CannotStart."""
        path = data_dir / KEY_FILE
        if not path.exists():
            made = secrets.token_hex(KEY_BYTES).encode()
            write_whole(path, lambda file: file.write(made), replace=False, mode=0o600)
        key = path.read_bytes().strip()
        if len(key) != 2 * KEY_BYTES:
            raise CannotStart(f"{path} is not whole: take it from a backup, or delete it; then all is hashed anew")
        return cls(key)

    @property
    def name(self) -> str:
        """Of the key, and says nothing of it: hashes under another one find nobody."""
        return self._hash("key", "")

    def of_header(self, header: Dataset) -> frozenset[str]:
        """What a series is found by: its Patient ID, alone and with the issuer, its accession number, and each word of
        the names. Nothing that cannot be read."""
        number, issuer = _folded(text(header, "PatientID")), _folded(text(header, "IssuerOfPatientID"))
        found = [("id", number), ("id", _issued(number, issuer) if issuer else "")]
        found += [("accession", _folded(text(header, "AccessionNumber")))]
        found += [("name", word) for word in words_of(text(header, "PatientName"))]
        return frozenset(self._hash(kind, value) for kind, value in found if value)

    def sought(self, said: str) -> str:
        """What to look for: the hash as a Patient ID, as an accession number, and those of the words of a name. Raises
        NotSought."""
        if any(each in said for each in WILDCARDS):
            raise NotSought("a patient is found by whole words and numbers: no * and no ?")
        words = words_of(said)
        if not words or len(said) > LONGEST_WORDS or not said.isprintable():
            raise NotSought(f"say a name, a Patient ID or an accession number, in at most {LONGEST_WORDS} characters")
        if len(words) > MOST_WORDS:
            raise NotSought(f"at most {MOST_WORDS} words of a name")
        number, _, issuer = said.partition("^^^")  # as HL7 writes it: CX of PID-3
        whole = _issued(_folded(number), _folded(issuer)) if issuer else _folded(said)
        kinds = [("id", whole), ("accession", _folded(said)), *(("name", word) for word in words)]
        return "-".join(self._hash(kind, value) for kind, value in kinds)

    def _hash(self, kind: str, value: str) -> str:
        return hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256).hexdigest()[:HASH_CHARACTERS]


def words_of(name: str) -> list[str]:
    """Of a Person Name in any of its groups, or of what somebody says: "Müller^Anna Lena" -> muller, anna, lena."""
    return list(dict.fromkeys(word for word in BETWEEN_WORDS.split(_folded(name)) if word))


def shown(header: Dataset) -> dict[str, str]:
    """Who the patient is, for a reader who asks."""
    return {field: text(header, keyword) for keyword, field in SHOWN.items()}


def _folded(value: str) -> str:
    """Without case, marks of Latin, Greek and Cyrillic letters, and blanks around it. Marks of other writings are
    letters."""
    apart = unicodedata.normalize("NFKD", value.strip()).casefold()
    without = "".join(each for each in apart if not "\u0300" <= each <= "\u036f")
    return unicodedata.normalize("NFC", without).translate(PLAIN).strip()


def _issued(number: str, issuer: str) -> str:
    return f"{number}^^^{issuer}"

"""STOW-RS to a DICOMweb server (PS3.18 10.5), and QIDO-RS to ask whether it arrived (PS3.18 10.6)."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from pacs_node.association import why_unreachable
from pacs_node.commitment import reason_words
from pacs_node.deliver.destination import (
    Choice,
    Deferred,
    Forms,
    Now,
    Outcome,
    Undeliverable,
    Verbatim,
    first_possible,
    must_be_ours,
    outcome_of,
)
from pacs_node.deliver.dimse import Outgoing
from pacs_node.errors import NotOffered
from pacs_node.in_time import InTime
from pacs_node.records import CommitmentReport, Package, Receipt, Sent

JSON = "application/dicom+json"
PIECE = 1 << 20  # bytes read from a file at a time
MOST_ANSWER = 1 << 22  # bytes of an answer; what it says of one object takes about 500
MOST_TIMEOUTS = 4  # of one piece, that the whole answer may take

# attributes of the Store Instances Response Module, PS3.18 Table I.2-1, as the JSON model names them
REFERENCED, FAILED = "00081199", "00081198"
SOP_INSTANCE_UID, REFERENCED_SOP_INSTANCE_UID = "00080018", "00081155"
WARNING_REASON, FAILURE_REASON = "00081196", "00081197"

# first status, last status, outcome, what it means or what to do: PS3.18 Table 10.5.3-1 and 8.5.
# Of the statuses in BY_INSTANCE the answer says it for each instance; the outcome here is for those it does not name.
STATUSES: tuple[tuple[int, int, Outcome, str], ...] = (
    (200, 200, Outcome.STORED, "stored"),
    (202, 202, Outcome.AGAIN, "the answer does not name it"),
    (201, 299, Outcome.STORED, "stored, by a status that PS3.18 does not list"),
    (300, 399, Outcome.NEVER, "it is elsewhere: correct dicomweb_url"),
    (401, 401, Outcome.NEVER, "not authenticated: check dicomweb_token, or dicomweb_user and dicomweb_password"),
    (403, 403, Outcome.NEVER, "not authorised: ask its administrator"),
    (404, 404, Outcome.NEVER, "no such service: correct dicomweb_url"),
    (408, 408, Outcome.AGAIN, "it waited too long for us"),
    (409, 409, Outcome.NEVER, "refused"),
    (415, 415, Outcome.NEVER, "it does not take application/dicom"),
    (425, 425, Outcome.AGAIN, "too early"),
    (429, 429, Outcome.AGAIN, "too many requests"),
    (400, 499, Outcome.NEVER, "refused"),
    (500, 599, Outcome.AGAIN, "it failed or is busy"),
)
BY_INSTANCE = frozenset({200, 202, 400, 409})  # Orthanc answers 400 when one of several is refused


@dataclass(frozen=True)
class WebPeer:
    """A DICOMweb server, and as whom we talk to it. The secrets are in no representation of it."""

    name: str
    url: str  # of its services: <url>/studies
    timeout_s: float = 30  # for the connection, and for each piece of the answer
    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    verify: bool = True  # its TLS certificate
    ca_file: Path | None = None  # by whom it may be signed; None: whom the machine trusts

    def __str__(self) -> str:
        return f"{self.name} ({self.url})"


class StowDestination:
    """A DICOMweb server that takes results by STOW-RS, one request per package, the files byte for byte.

    Raises OSError when `ca_file` cannot be read. transport: where a test listens in.
    """

    def __init__(self, peer: WebPeer, forms: Forms | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.peer = peer
        self.name = peer.name
        self.forms: Forms = forms or Verbatim()
        self._web = _Web(peer, transport)

    def deliver(self, package: Package, now: Now) -> list[Receipt]:
        """See Destination."""
        sent: dict[Path, tuple[Path, ...]] = {}
        instead: dict[str, str] = {}  # SOP Instance UID -> why not in a better form
        outgoing: list[Outgoing] = []
        optional: set[str] = set()  # SOP Instance UIDs of what may be left out
        for offer in self.forms.offers(package):
            sent[offer.path], why = first_possible(self.forms, package, Choice(offer), sent)
            read = [Outgoing.load(path) for path in sent[offer.path]]
            if offer.optional:
                read = [each for each in read if each not in outgoing]
                optional |= {each.sop_instance_uid for each in read}
            outgoing += read
            instead |= {each.sop_instance_uid: why for each in read if why}
        must_be_ours(package, ())
        boundary = hashlib.sha256("|".join(each.sop_instance_uid for each in outgoing).encode()).hexdigest()
        head = _part_head(boundary)
        tail = f"\r\n--{boundary}--\r\n".encode()
        length = len(head) * len(outgoing) + sum(each.path.stat().st_size for each in outgoing) + len(tail)
        answer = self._web.ask(
            "POST",
            "/studies",
            headers={
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Content-Length": str(length),
            },
            content=_body(head, outgoing, tail),
        )
        said = json_of(answer)
        judged = [
            _judge(each, answer.status_code, said, instead.get(each.sop_instance_uid, ""), now) for each in outgoing
        ]
        receipts = [receipt for receipt, _ in judged]
        outcomes = {outcome for receipt, outcome in judged if receipt.sop_instance_uid not in optional}
        refusals = "; ".join(dict.fromkeys(receipt.text for receipt in receipts if not receipt.stored))
        if Outcome.AGAIN in outcomes:
            raise Deferred(f"{self.peer}: {refusals}", receipts)
        if Outcome.NEVER in outcomes:
            raise Undeliverable(f"{self.peer}: {refusals}", receipts)
        return receipts


class NotFound(NotOffered):
    pass


class QidoArrivalCheck:
    """A DICOMweb server that is asked by QIDO-RS whether it has our results. Promises as of confirm.Witness."""

    commits = False
    query: str | None = "QIDO-RS"

    def __init__(self, peer: WebPeer, transport: httpx.BaseTransport | None = None) -> None:
        self.peer = peer
        self._web = _Web(peer, transport)

    def ask_commitment(self, transaction_uid: str, sent: Sequence[Sent]) -> CommitmentReport | None:
        """Never offered."""
        raise NotOffered(f"{self.peer} is a DICOMweb server, and storage commitment a DIMSE service")

    def find(self, sent: Sequence[Sent]) -> set[str]:
        """One search for the instances of each series, PS3.18 Table 10.6.1-1."""
        found: set[str] = set()
        for study_uid, series_uid in sorted({(each.study_uid, each.series_uid) for each in sent}):
            try:
                items = self._search(f"/studies/{study_uid}/series/{series_uid}/instances")
            except NotFound:
                self._search("/studies?limit=1")  # no such series, or no such service?
                continue
            found |= {str(_value(item, SOP_INSTANCE_UID)) for item in items}
        return found & {each.sop_instance_uid for each in sent}

    def _search(self, path: str) -> list[object]:
        """Raises NotOffered (NotFound for HTTP 404), or Deferred."""
        answer = self._web.ask("GET", path)
        outcome, meaning = meaning_of(answer.status_code)
        words = f"{self.peer} answered QIDO-RS with HTTP {answer.status_code}"
        if outcome is Outcome.AGAIN:
            raise Deferred(f"{words}: {meaning}")
        if answer.status_code == 404:
            raise NotFound(f"{words}: {meaning}")
        items = [] if answer.status_code == 204 else json_of(answer)
        if outcome is not Outcome.STORED or not isinstance(items, list):
            raise NotOffered(f"{words} and no list of what it found")
        return items


@dataclass(frozen=True)
class Answer:
    status_code: int
    body: bytes
    date: str = ""  # when it was given, by the clock over there: RFC 9110 6.6.1


class _Web:
    """The connection to a DICOMweb server."""

    def __init__(self, peer: WebPeer, transport: httpx.BaseTransport | None) -> None:
        self.peer = peer
        headers = {"Accept": JSON, "Accept-Encoding": "identity"} | (
            {"Authorization": f"Bearer {peer.token}"} if peer.token else {}
        )
        self._client = httpx.Client(
            headers=headers,
            auth=(peer.user, peer.password or "") if peer.user else None,
            verify=ssl.create_default_context(cafile=peer.ca_file) if peer.verify else False,
            timeout=peer.timeout_s,
            limits=httpx.Limits(max_keepalive_connections=0),  # each request knows the connection it is on
            trust_env=False,  # proxies and .netrc would be settings that no settings file shows
            transport=transport,
        )

    def ask(self, method: str, path: str, **request: Any) -> Answer:
        """Raises Deferred when no answer comes, none that ends in time, or one that is longer than any should be."""
        url = f"{self.peer.url.rstrip('/')}{path}"
        try:
            with (
                InTime(MOST_TIMEOUTS * self.peer.timeout_s) as in_time,
                self._client.stream(method, url, extensions={"trace": in_time}, **request) as answer,
            ):
                body = bytearray()
                for piece in answer.iter_raw():  # nothing was asked for compressed: what is, is no answer
                    body += piece
                    if len(body) > MOST_ANSWER:
                        raise Deferred(f"{self.peer} answered more than {MOST_ANSWER >> 20} MiB; it is not read")
                return Answer(answer.status_code, bytes(body), answer.headers.get("Date", ""))
        except httpx.TimeoutException as error:
            raise Deferred(f"{self.peer} cannot be reached: no answer within {self.peer.timeout_s:g} s") from error
        except httpx.RemoteProtocolError as error:
            why = "no answer that ends" if in_time.over else f"it broke off, or speaks no HTTP ({error})"
            raise Deferred(f"{self.peer} cannot be reached: {why}") from error
        except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:
            why = why_unreachable(error, self.peer.timeout_s)
            raise Deferred(f"{self.peer} cannot be reached: {why}") from error


def ask(peer: WebPeer, method: str, path: str, **request: Any) -> Answer:
    """One request by itself. Raises Deferred; OSError when `ca_file` cannot be read."""
    return _Web(peer, None).ask(method, path, **request)


def _part_head(boundary: str) -> bytes:
    """The head of one part of multipart/related, PS3.18 8.6.1.2. Without a transfer syntax, which is in the file:
    Orthanc drops a part that has one here and answers 200."""
    return f"\r\n--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()


def _body(head: bytes, outgoing: Sequence[Outgoing], tail: bytes) -> Iterator[bytes]:
    for each in outgoing:
        yield head
        with each.path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
    yield tail


def meaning_of(status: int) -> tuple[Outcome, str]:
    """What an HTTP status says of the whole request."""
    for first, last, outcome, meaning in STATUSES:
        if first <= status <= last:
            return outcome, meaning
    return Outcome.AGAIN, "a status that HTTP does not list"


def _judge(each: Outgoing, status: int, body: object, instead: str, now: Now) -> tuple[Receipt, Outcome]:
    """What the answer means for one instance."""
    outcome, meaning = meaning_of(status)
    if status in BY_INSTANCE:
        failure = _reason(body, FAILED, each.sop_instance_uid, FAILURE_REASON)
        warning = _reason(body, REFERENCED, each.sop_instance_uid, WARNING_REASON)
        if failure is not None:
            outcome, meaning = _failed(failure)
        elif warning == 0:
            outcome, meaning = Outcome.STORED, "stored"
        elif warning is None and isinstance(body, Mapping) and status < 300:  # 200, and yet dropped: seen at Orthanc
            outcome = Outcome.AGAIN if status == 202 else Outcome.NEVER
            meaning = "the answer does not name it"
        elif warning is not None:
            outcome, meaning = Outcome.CHANGED, f"0x{warning:04X} stored with a change: {outcome_of(warning)[1]}"
    stored = outcome in (Outcome.STORED, Outcome.CHANGED)
    text = f"HTTP {status} {meaning}{instead}"
    return Receipt(each.sop_instance_uid, stored, status, text, now(), each.sop_class_uid), outcome


def _failed(reason: int) -> tuple[Outcome, str]:
    """A Failure Reason (0008,1197) of PS3.18 Table I.2-2: the same numbers mean the same as in C-STORE."""
    if reason == 0x0000:
        return Outcome.NEVER, "refused without a reason"
    outcome, meaning = outcome_of(reason)
    if outcome in (Outcome.STORED, Outcome.CHANGED):  # in the list of failures: not stored, whatever the number
        return Outcome.NEVER, f"refused: {reason_words(reason)}"
    return outcome, f"{'not now' if outcome is Outcome.AGAIN else 'refused'}: 0x{reason:04X} {meaning}"


def _reason(body: object, sequence: str, sop_instance_uid: str, tag: str) -> int | None:
    """The reason given for an instance in one sequence of the answer; 0 without one; None when it is not named."""
    for item in _values(body, sequence):
        if _value(item, REFERENCED_SOP_INSTANCE_UID) == sop_instance_uid:
            reason = _value(item, tag)
            return reason if isinstance(reason, int) else 0
    return None


def json_of(answer: Answer) -> object:
    """The JSON of an answer; None when it is none: a server may answer in another form, or not at all."""
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):  # RecursionError: of lists within lists, without end
        return None


def _values(item: object, tag: str) -> list[Any]:
    """The values of one element in the DICOM JSON model, PS3.18 F.2; empty for whatever is not of that form."""
    element = item.get(tag) if isinstance(item, Mapping) else None
    values = element.get("Value") if isinstance(element, Mapping) else None
    return values if isinstance(values, list) else []


def _value(item: object, tag: str) -> Any:
    return next(iter(_values(item, tag)), None)

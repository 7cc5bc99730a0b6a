"""Destinations that lie: what they answer to the node is malformed, untrue, late, endless or cut off.

Each answer has a number, and is made from the seed and that number alone, and from what was asked.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.fuzz.conversations import (
    GET,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    fragments,
    item,
    number,
    odd_command,
    odd_reference,
    padded,
)
from tests.fuzz.data_sets import TEXTS, UIDS, data_set
from tests.fuzz.wire import LARGE_NUMBERS, Element, Encoding, any_bytes, garbled
from tests.parrot import command, elements, pdu

UID = re.compile(rb"[0-9][0-9.]{8,63}")
TRICKLE_S = 0.3
STATUSES = (
    0,
    0,
    0,
    0,
    0xFF00,
    0xFF01,
    0xA700,
    0xA900,
    0xB000,
    0xB007,
    0xC000,
    0x0110,
    0x0111,
    0x0122,
    0x0124,
    0x0213,
    0xFFFF,
    0xFE00,
)
HTTP_STATUSES = (
    200,
    200,
    200,
    202,
    204,
    201,
    206,
    300,
    301,
    302,
    304,
    400,
    401,
    404,
    407,
    409,
    415,
    429,
    500,
    503,
    599,
    600,
    999,
    100,
    101,
    0,
)


class Liar:
    """A server on a free port. truthful: the share of answers that are as they should be."""

    def __init__(self, seed: object, patience_s: float, truthful: float = 0.1) -> None:
        self.seed, self.patience_s, self.truthful = seed, patience_s, truthful
        self.numbers, self.said = itertools.count(), Counter[str]()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                connection.settimeout(self.patience_s)
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, struct.error, LookupError):
            self.answer(connection)

    def answer(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def next(self, kind: str) -> random.Random:
        self.said[kind] += 1
        return random.Random(f"{self.seed}/{type(self).__name__}/{next(self.numbers)}")

    def stop(self) -> None:
        self.server.close()


def slowly(connection: socket.socket, content: bytes, rng: random.Random, patience_s: float) -> None:
    """Whole, a byte now and then, cut off, or nothing at all and no end either."""
    how = rng.random()
    if how < 0.004:
        end = time.monotonic() + patience_s
        for at in range(len(content)):
            if time.monotonic() > end:
                return
            connection.sendall(content[at : at + 1])
            time.sleep(TRICKLE_S)
    elif how < 0.008:
        connection.sendall(content[: rng.randrange(len(content) + 1)])
        with suppress(TimeoutError):
            while connection.recv(65536):
                pass
    elif how < 0.06:
        connection.sendall(content[: rng.randrange(len(content) + 1)])
        connection.shutdown(socket.SHUT_RDWR)
    else:
        connection.sendall(content)


# ---------------------------------------------------------------------------------------------------- DICOMweb


class WebLiar(Liar):
    """A DICOMweb server: STOW-RS and QIDO-RS."""

    def answer(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        line = file.readline(10_000)
        length = 0
        while header := file.readline(10_000).strip():
            if header.lower().startswith(b"content-length:"):
                length = int(header.split(b":")[1])
        body = file.read(length)
        uids = [each.decode() for each in dict.fromkeys(UID.findall(line + body[:200_000]))][:40]
        rng = self.next("STOW-RS" if line.startswith(b"POST") else "QIDO-RS")
        slowly(
            connection,
            http_answer(rng, uids, stow=line.startswith(b"POST"), truth=rng.random() < self.truthful),
            rng,
            self.patience_s,
        )


def http_answer(rng: random.Random, uids: list[str], *, stow: bool, truth: bool) -> bytes:
    document: Any = stored(uids) if stow else [named(each) for each in uids]
    if truth:
        return _http(200, json.dumps(document).encode(), {"Content-Type": "application/dicom+json"})
    body = _document(rng, document, uids)
    headers = {
        "Content-Type": rng.choice(
            (
                "application/dicom+json",
                "application/json",
                "application/dicom+xml",
                "text/html; charset=bogus",
                "multipart/related; boundary=x",
                "\xff",
            )
        )
    }
    if rng.random() < 0.1:
        headers["Location"] = rng.choice(("/", "http://evil.example/", "\xff", "http://[", "x" * 9000))
    how = rng.random()
    if how < 0.05:
        headers["Content-Encoding"], body = "gzip", gzip.compress(body)[: rng.choice((5, 10_000_000))]
    elif how < 0.08:
        headers["Content-Encoding"] = rng.choice(("gzip", "deflate", "br", "zstd", "bogus"))
    elif how < 0.09:  # a bomb
        headers["Content-Encoding"], body = "gzip", gzip.compress(bytes(rng.choice((1 << 22, 1 << 26))))
    answer = _http(rng.choice(HTTP_STATUSES), body, headers, rng)
    return garbled(rng, answer) if rng.random() < 0.15 else answer


def named(uid: str) -> dict[str, Any]:
    return {
        "00080018": {"vr": "UI", "Value": [uid]},
        "00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.66.4"]},
    }


def stored(uids: list[str]) -> dict[str, Any]:
    """The Store Instances Response Module: PS3.18 Table I.2-1."""
    return {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids]}}


VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "x",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    [None],
    "9" * 5000,
    272,
    0xA700,
    43264,
)


def _mutated(rng: random.Random, node: Any) -> Any:
    """Somewhere in a document a value, a key or a list is another one."""
    if rng.random() < 0.25 or not isinstance(node, dict | list) or not node:
        return rng.choice((*VALUES, *UIDS, {"vr": "SQ", "Value": [{}]}, {"vr": "UI", "Value": rng.choice(VALUES)}))
    if isinstance(node, list):
        at = rng.randrange(len(node))
        return rng.choice(
            ([*node[:at], _mutated(rng, node[at]), *node[at + 1 :]], node * rng.choice((0, 2, 50)), node[:at])
        )
    key = rng.choice(list(node))
    keys = (key, "00081198", "00081199", "00081196", "00081197", "00081155", "Value", "BulkDataURI", "")
    return {**node, rng.choice(keys): _mutated(rng, node[key])}


def _document(rng: random.Random, document: Any, uids: list[str]) -> bytes:
    how = rng.random()
    if how < 0.55:
        for _ in range(rng.choice((1, 1, 2, 5))):
            document = _mutated(rng, document)
        return json.dumps(document).encode()
    if how < 0.65:
        reason = rng.choice((0xA700, 0xA900, 0xC000, 0x0110, -5, 1 << 70, "0110", None, 0))
        failed = [{"00081155": {"Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}} for uid in uids]
        return json.dumps({rng.choice(("00081198", "00081199")): {"vr": "SQ", "Value": failed}}).encode()
    deep = rng.choice((50, 900, 5000, 200_000))
    return rng.choice(
        (
            b"[" * deep, b'{"00081199":' * deep, b"[" * deep + b"]" * deep, b"", b"null", b"\xef\xbb\xbf[]", b"[]x",
            b"\xff\xfe[\0]\0",
            b"<?xml version='1.0'?><NativeDicomModel>" + b"<a>" * 50,
            b"--x\r\nContent-Type: application/dicom+json\r\n\r\n{}\r\n--x--",
            b"--x\r\n" * 500, b"[" + b"{}," * rng.choice((10, 100_000)) + b"{}]", any_bytes(rng, 3000),
            b'["' + b"a" * 3_000_000 + b'"]',
            b'{"a":' + b"9" * 10_000 + b"}",
        )
    )  # fmt: skip


def _http(status: int, body: bytes, headers: dict[str, str], rng: random.Random | None = None) -> bytes:
    length = str(len(body))
    if rng is not None and rng.random() < 0.15:
        length = rng.choice(("0", "-1", str(len(body) + 5), str(max(0, len(body) - 5)), "99999999999999", "x", "1, 2"))
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
    how = rng.random() if rng is not None else 0
    if how > 0.9:
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if how > 0.95 else b"zz\r\n" + body
    elif how < 0.85:
        lines.append(f"Content-Length: {length}")
    if how > 0.8 and rng is not None and rng.random() < 0.3:
        lines += [f"X-{k}: " + "y" * rng.choice((1, 200)) for k in range(rng.choice((20, 500)))]
    return "\r\n".join([*lines, "Connection: close"]).encode("latin-1") + b"\r\n\r\n" + body


# ------------------------------------------------------------------------------------------------------- DIMSE


class PeerLiar(Liar):
    """A PACS: C-STORE, C-FIND, C-GET, storage commitment."""

    def answer(self, connection: socket.socket) -> None:
        kind, body = _pdu(connection)
        if kind != 1:
            return
        contexts = _contexts(body)
        rng = self.next("A-ASSOCIATE")
        told = _accept(rng, body, contexts, truth=rng.random() < max(self.truthful, 0.8))
        slowly(connection, told, rng, self.patience_s)
        message, asked = bytearray(), dict[int, bytes]()
        while True:
            kind, body = _pdu(connection)
            if kind == 5:
                connection.sendall(pdu(6, bytes(4)))
            if kind != 4:
                return
            at = 0
            while at + 6 <= len(body):
                size, context, control = struct.unpack_from(">LBB", body, at)
                piece = body[at + 6 : at + 4 + size]
                at += 4 + size
                if control & 1:
                    message += piece
                if control & 2:
                    if control & 1:
                        asked, message = elements(bytes(message)), bytearray()
                        if asked.get(0x800) != b"\1\1":
                            continue  # its data set comes
                    self._respond(connection, context, asked, piece, contexts)

    def _respond(
        self, connection: socket.socket, context: int, asked: dict[int, bytes], data: bytes, contexts: dict[int, str]
    ) -> None:
        field = struct.unpack("<H", asked[0x100])[0]
        if field & 0x8000:
            return
        name = {1: "C-STORE", 0x20: "C-FIND", 0x10: "C-GET", 0x30: "C-ECHO", 0x130: "N-ACTION"}.get(field, "other")
        rng = self.next(name)
        truth = rng.random() < self.truthful
        for piece in ANSWERS.get(name, _status_only)(rng, context, asked, data, truth, contexts):
            if not truth and rng.random() < 0.06:
                piece = rng.choice(
                    (
                        garbled(rng, piece),
                        pdu(7, bytes(4)),
                        pdu(5, bytes(4)),
                        pdu(4, b""),
                        pdu(2, b"x" * 80),
                        any_bytes(rng),
                    )
                )
            slowly(connection, piece, rng, self.patience_s)


def _pdu(connection: socket.socket) -> tuple[int, bytes]:
    head = _exactly(connection, 6)
    kind, length = struct.unpack(">BxL", head)
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        piece = connection.recv(min(65536, count - len(got)))
        if not piece:
            raise ConnectionResetError
        got += piece
    return bytes(got)


def _contexts(request: bytes) -> dict[int, str]:
    """Number -> its first transfer syntax and SOP class, of an A-ASSOCIATE-RQ."""
    found, at = {}, 68
    while at + 4 <= len(request):
        kind, length = struct.unpack_from(">BxH", request, at)
        if kind == 0x20:
            inner, texts = at + 8, []
            while inner + 4 <= at + 4 + length:
                (size,) = struct.unpack_from(">H", request, inner + 2)
                texts.append(request[inner + 4 : inner + 4 + size].decode("ascii", "replace"))
                inner += 4 + size
            found[request[at + 4]] = "|".join(texts[:2])
        at += 4 + length
    return found


def _accept(rng: random.Random, request: bytes, contexts: dict[int, str], *, truth: bool) -> bytes:
    answers = b""
    for context, names in contexts.items():
        syntax = names.split("|")[-1].encode()
        result, where = 0, context
        if not truth and rng.random() < 0.5:
            result = rng.choice((0, 1, 2, 3, 4, 9, 255))
            syntax = rng.choice((syntax, b"", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.4.50", b"x" * 70, b"\xff"))
            where = rng.choice((context, context, 0, 2, 255))
        answers += item(0x21, struct.pack("BBBB", where, 0, result, 0) + item(0x40, syntax))
    length = 1 << 16 if truth else rng.choice((0, 1, 7, 16, 4096, 1 << 16, *LARGE_NUMBERS))
    user = item(0x51, struct.pack(">L", length)) + item(0x52, b"1.2.3.4")
    for names in contexts.values():
        if names.startswith("1.2.840.10008.5.1.4.1.1.") and GET in "".join(contexts.values()):
            sop_class = names.split("|")[0].encode()
            role = struct.pack(">H", len(sop_class)) + sop_class + (b"\0\1" if truth else any_bytes(rng, 2))
            user += item(0x54, role)
    told = pdu(2, request[:68] + item(0x10, b"1.2.840.10008.3.1.1.1") + answers + item(0x50, user))
    if truth:
        return told
    how = rng.random()
    if how < 0.2:
        return pdu(3, bytes([0, rng.choice((0, 1, 2, 9)), rng.randrange(5), rng.randrange(12)]))
    if how < 0.3:
        return rng.choice(
            (
                pdu(7, bytes(4)),
                pdu(6, bytes(4)),
                pdu(2, b""),
                pdu(rng.randrange(256), any_bytes(rng)),
                b"HTTP/1.1 400 X\r\n\r\n",
            )
        )
    return garbled(rng, told) if how < 0.6 else told


def _response(
    rng: random.Random, context: int, asked: dict[int, bytes], status: int, *, truth: bool, data: bytes | None = None,
    more: tuple[tuple[int, bytes], ...] = (),
) -> list[bytes]:  # fmt: skip
    given = [(e, asked[e]) for e in (0x0002, 0x0003) if e in asked][:1]
    given = [(0x0002, value) for _, value in given]
    given += [(0x0100, number(struct.unpack("<H", asked[0x100])[0] | 0x8000)), (0x0120, asked.get(0x110, number(1)))]
    given += [(0x0800, number(0x101 if data is None else 1)), (0x0900, number(status)), *more]
    if 0x1000 in asked:
        given.append((0x1000, asked[0x1000]))
    if truth:
        encoded = command(*given)
    else:
        if rng.random() < 0.2:
            given.append((0x0902, rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:9000]))
        encoded = odd_command(rng, given) if rng.random() < 0.3 else command(*given)
    pieces = fragments(rng, context, 1, encoded)
    return pieces if data is None else [*pieces, *fragments(rng, context, 0, data)]


def _status_only(
    rng: random.Random, context: int, asked: dict[int, bytes], data: bytes, truth: bool, contexts: dict[int, str]
) -> list[bytes]:
    return _response(rng, context, asked, 0 if truth else rng.choice(STATUSES), truth=truth)


def _matches(rng: random.Random, uids: list[str]) -> bytes:
    """The identifier of a C-FIND-RSP."""
    texts = ("20250101", "SECRET", "F", "19700101", "SR", "CT", "1", "", *UIDS, *TEXTS)
    tags = (0x00080005, 0x00080018, 0x00080020, 0x00080052, 0x00080060, 0x00100020, 0x00100021, 0x00100030, 0x00100040)
    given = [
        Element(tag, b"LO", rng.choice((*texts, *uids)).encode("utf-8", "surrogatepass")[:9000])
        for tag in (*tags, 0x0020000D, 0x0020000E, 0x00201209)
        if rng.random() < 0.8
    ]
    plain = Encoding(implicit=rng.random() < 0.9).data_set(given)
    return garbled(rng, plain) if rng.random() < 0.3 else plain


def _find(
    rng: random.Random, context: int, asked: dict[int, bytes], data: bytes, truth: bool, contexts: dict[int, str]
) -> list[bytes]:
    uids = [each.decode() for each in UID.findall(data)]
    out = []
    for _ in range(0 if truth else rng.choice((0, 1, 1, 3, 30, 3000 if rng.random() < 0.05 else 2))):
        out += _response(rng, context, asked, 0xFF00, truth=rng.random() < 0.9, data=_matches(rng, uids))
    return [*out, *_response(rng, context, asked, 0 if truth else rng.choice(STATUSES), truth=truth)]


def _get(
    rng: random.Random, context: int, asked: dict[int, bytes], data: bytes, truth: bool, contexts: dict[int, str]
) -> list[bytes]:
    out = []
    stores = [(where, names) for where, names in contexts.items() if not names.startswith(GET)] or [(1, "1.2|1.2")]
    for k in range(0 if truth else rng.choice((0, 1, 2, 5))):
        where, names = rng.choice(stores)
        sent = data_set(rng, k, rng.random())
        given = [
            (0x0002, padded(names.split("|")[0])),
            (0x0100, number(1)),
            (0x0110, number(k + 1)),
            (0x0700, number(0)),
        ]
        given += [(0x0800, number(1)), (0x1000, padded(rng.choice((sent.instance_uid, *UIDS))))]
        encoded = odd_command(rng, given) if rng.random() < 0.2 else command(*given)
        out += [*fragments(rng, where, 1, encoded), *fragments(rng, where, 0, sent.content)]
        if rng.random() < 0.5:
            counts = tuple((e, number(rng.choice((0, 1, 65535)))) for e in (0x1020, 0x1021, 0x1022, 0x1023))
            out += _response(rng, context, asked, 0xFF00, truth=False, more=counts)
    return [*out, *_response(rng, context, asked, 0 if truth else rng.choice(STATUSES), truth=truth)]


def _action(
    rng: random.Random, context: int, asked: dict[int, bytes], data: bytes, truth: bool, contexts: dict[int, str]
) -> list[bytes]:
    """The answer to a request for storage commitment, and a report on the same association."""
    out = _response(rng, context, asked, 0 if truth else rng.choice(STATUSES), truth=truth)
    if truth or rng.random() < 0.5:
        return out
    given = [(0x0002, padded(PUSH_MODEL)), (0x0100, number(0x100)), (0x0110, number(1)), (0x0800, number(1))]
    given += [(0x1000, padded(PUSH_MODEL_INSTANCE)), (0x1002, number(rng.choice((1, 2, 0, 9))))]
    encoded = odd_command(rng, given) if rng.random() < 0.3 else command(*given)
    told = rng.choice((data, data, garbled(rng, data), Encoding(implicit=True).data_set(odd_reference(rng, 0))))
    return out + [*fragments(rng, context, 1, encoded), *fragments(rng, context, 0, told)] * rng.choice((1, 1, 5))


ANSWERS: dict[str, Callable[..., list[bytes]]] = {"C-FIND": _find, "C-GET": _get, "N-ACTION": _action}

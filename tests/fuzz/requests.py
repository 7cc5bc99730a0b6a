"""HTTP as nobody should speak it, to every address of the pages and the API."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from pacs_node.web.access import NEEDS
from tests.fuzz.data_sets import TEXTS, UIDS
from tests.fuzz.wire import any_bytes, garbled

ROUTES = (*NEEDS, "/static/{file}")
METHODS = (
    "GET",
    "GET",
    "GET",
    "POST",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PATCH",
    "get",
    "X" * 30,
)
KEYS = ("limit", "before", "since", "route", "", "Limit", "limit[]", "a" * 300, "\0")
VALUES = (
    "1", "0", "-1", "1001", "9" * 5000, "1e3", "NaN", "2026-03-01", "2026-03-01T12:00:00+00:00",
    "0001-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59-23:59", "2026-02-30", "2026-03-01T12:00:00+99:99", "look", "%00", "%zz", "%ff%fe", "",
    "a&b=c", "\u0661",
    "2026-W10-1", "20260301T120000Z",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    kind: str
    content: bytes  # all that is said on the connection


@dataclass(frozen=True)
class Known:
    """What is there to be asked for."""

    series: Sequence[str] = ()
    jobs: Sequence[str] = ()


def _segment(rng: random.Random, known: Sequence[str]) -> str:
    if known and rng.random() < 0.5:
        return rng.choice(known)
    text = rng.choice((*UIDS, *TEXTS, "..", "%2e%2e%2f", "%00", "%", "a" * 129, "node.css", "favicon.svg", "x" * 9000))
    return text if rng.random() < 0.3 else quote(text.encode("utf-8", "surrogatepass"), safe=rng.choice(("", "/")))


def _path(rng: random.Random, known: Known) -> str:
    path = rng.choice(ROUTES)
    for name, there in (("{uid}", known.series), ("{id}", known.jobs), ("{name}", ()), ("{file}", ())):
        path = path.replace(name, _segment(rng, there)) if name in path else path
    how = rng.random()
    if how < 0.05:
        path = rng.choice(
            (path + "/", "/" + path, path.upper(), path + "%2f..", "//" + path, path + ";x=1", "*", "http://x" + path)
        )
    if rng.random() < 0.4:
        pairs = [f"{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.choice((1, 1, 2, 50)))]
        path += "?" + rng.choice(("&", "&", ";")).join(pairs)
    if rng.random() < 0.05:
        path += "#" + rng.choice(VALUES)
    return path


HEADERS = (
    ("Host",
    ("localhost", "127.0.0.1", "evil.example", "", "127.0.0.1:99999", "[::1", "a@b", "\xff", "localhost, evil")),
    ("Origin", ("null", "http://localhost", "http://evil.example", "http://[", "x" * 5000)),
    ("Referer",
    ("http://localhost/series/1", "http://evil/", "//evil/x", "javascript:alert(1)", "http://localhost//evil/x",
    "\xff")),
    ("Sec-Fetch-Site", ("same-origin", "cross-site", "none", "?")),
    ("Accept", ("text/html", "*/*", "application/json", "", "text/html;q=" + "9" * 400, "\xff")),
    ("Content-Type",
    ("application/x-www-form-urlencoded", "application/json", "multipart/form-data",
    "multipart/form-data; boundary=" + "b" * 500, "text/xml; charset=utf-7", "\xff")),
    ("Cookie", ("a=b", "=" * 2000)),
    ("Range", ("bytes=0-1", "bytes=1-0", "bytes=" + "0-1," * 500, "bytes=-99999999999999999999")),
    ("If-None-Match", ('"x"', "*")),
    ("If-Modified-Since", ("Mon, 30 Nov 2026 00:00:00 GMT", "yesterday", "9" * 300)),
    ("X-Forwarded-For", ("1.2.3.4", "x")),
    ("X-Forwarded-Proto", ("https", "\xff")),
    ("Accept-Encoding", ("gzip", "*;q=0")),
    ("Transfer-Encoding", ("chunked", "gzip, chunked", "identity", "chunked, chunked")),
    ("Content-Length", ("0", "1", "-1", "5, 6", "99999999999999999999", "1e3", "x", "1000")),
    ("Expect", ("100-continue", "?")),
    ("Upgrade", ("websocket", "h2c")),
    ("Connection", ("close", "upgrade", "keep-alive", "x")),
)  # fmt: skip


def _body(rng: random.Random) -> bytes:
    deep = rng.choice((10, 2000, 30_000))
    document = rng.choice(({}, [], {"route": ["x"] * 5}, {"since": None}, "x", 1e308))
    pairs = "&".join(f"{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.choice((1, 2, 300))))
    multipart = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{rng.choice(KEYS)}"\r\n\r\n{rng.choice(VALUES)}\r\n'
        for _ in range(3)
    )
    return rng.choice(
        (
            b"", pairs.encode(), json.dumps(document).encode(), b"[" * deep, b'{"a":' * deep,
            multipart.encode() + b"--b--\r\n",
            multipart.encode(), b"<!DOCTYPE a [<!ENTITY b 'c'><!ENTITY d '&b;&b;'>]><a>&d;</a>", b"<a>" * deep,
            any_bytes(rng, 300),
            b"=" * 9000, b"%" * 8192, bytes(rng.choice((8191, 8192, 8193, 200_000))),
        )
    )  # fmt: skip


def _chunked(rng: random.Random, body: bytes) -> bytes:
    step = rng.choice((1, 7, 100, 5000))
    body = body[: 60 * step]
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    sizes = [rng.choice((f"{len(piece):x}",) * 9 + ("-1", "ffffffffffffffffff", "zz", "")) for piece in pieces]
    said = b"".join(size.encode() + b"\r\n" + piece + b"\r\n" for size, piece in zip(sizes, pieces, strict=True))
    return said + rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"", b"0\r\nX: y\r\n\r\n"))


def asked(rng: random.Random, port: int, known: Known) -> Asked:
    method, path = rng.choice(METHODS), _path(rng, known)
    headers = {"Host": f"127.0.0.1:{port}", "Connection": "close"}
    for _ in range(rng.choice((0, 1, 2, 4))):
        name, values = rng.choice(HEADERS)
        headers[name] = rng.choice(values)
    if rng.random() < 0.05:
        headers |= {f"X-{number}": "y" * rng.choice((1, 100)) for number in range(rng.choice((50, 900)))}
    body = _body(rng) if rng.random() < 0.5 else b""
    if headers.get("Transfer-Encoding", "").endswith("chunked"):
        body = _chunked(rng, body)
    elif body and "Content-Length" not in headers and rng.random() < 0.9:
        headers["Content-Length"] = str(len(body) + rng.choice((0, 0, 0, 0, 1, -1)))
    # a request line ends at the first space and CRLF: what would break it is another kind, below
    line = f"{method} {path.replace(chr(13), '%0d').replace(chr(10), '%0a').replace(' ', '%20')} HTTP/1.1\r\n"
    head = line + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    content = head.encode("utf-8", "surrogatepass") + b"\r\n" + body
    how = rng.random()
    if how < 0.08:
        return Asked("garbled", garbled(rng, content))
    if how < 0.10:
        return Asked("pipelined", content * rng.choice((2, 20)))
    if how < 0.12:
        odd = (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\3\1\2\0\1",
            b"GET /\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"\r\n" * 9,
            b"\0" * 99,
        )
        return Asked("no request", rng.choice((*odd, any_bytes(rng, 300), b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000)))
    return Asked(f"{method} {line.split(' ')[1].split('?')[0].strip('/').split('/')[0][:12]}", content)

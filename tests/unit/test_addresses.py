"""Every address of the application, asked by every method with every kind of value that nobody would mean: an answer in
words, and never an error of ours."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from tests.unit.test_documented import Told

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW")
NAMES = {"uid", "id", "name", "path"}  # what stands in braces
VALUES = [  # as they stand in an address
    "%00", "a%00b", "%FF%FE", "%ED%A0%80", "%ED%BF%BF", "%C0%80", "%F0%9F%92%A9", "%E2%80%AE", "%EF%BF%BF", "%C2%85",
    "%0D%0AX:%20y", "%25%25", "%", "%zz", "%2e%2e%2f%2e%2e", "%5C", "%20", "+", "-1", "0", "1e999", "nan", "inf",
    "9" * 5000, "a" * 70000, "%D9%A3", "%C2%B2", "1.2.3%00", "'%22--", "{uid}", "0001-01-01T00:00:00%2B14:00",
    "9999-12-31T23:59:59-14:00", "2026-03-01T12:00:00%2B99:00",
]  # fmt: skip
HEADERS = ("host", "origin", "referer", "accept", "sec-fetch-site", "content-type", "cookie", "content-length")
HEADER_VALUES = [
    b"", b" ", b"\xff\xfe", b"\x85", b"http://[::1", b"http://testserver:99999999/", b"http://testserver/\xff?\xfe",
    b"http://testserver/" + b"a" * 9000, b"//", b"[", b":", b"null", b"text/html", b"\xe2\x80\xae", b"-1", b"a" * 9000,
]  # fmt: skip
WITHOUT_WORDS = ("HEAD", "OPTIONS")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """A whole node with its database, to which everything has happened once."""
    told = Told(tmp_path_factory.mktemp("told"))
    yield told
    told.node.stop()


def routes(told: Told) -> list[str]:
    """The paths of the application as it stands, each {name} still in its braces."""
    found = [route.path + ("/{path}" if not hasattr(route, "methods") else "") for route in told.app.routes]
    assert {name for path in found for name in re.findall(r"{(\w+)}", path)} == NAMES
    assert len(found) > 15
    return found


def there(told: Told) -> list[str]:
    """The same with names of what there is."""
    filled = {"uid": told.uid, "id": told.failed.id, "name": "01-SEG.dcm", "path": "style.css"}
    return [re.sub(r"{(\w+)}", lambda name: filled[name[1]], path) for path in routes(told)]


def ask(told: Told, asked: list[tuple[str, str, dict[bytes, bytes], bytes | None]]) -> Iterator[tuple[Any, int, bytes]]:
    """Each (method, target, headers, body) as uvicorn hands it over; (what was asked, status, body). A body of None:
    its sender leaves before it comes."""

    async def one(method: str, target: str, headers: dict[bytes, bytes], body: bytes | None) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": list({b"host": b"testserver", **headers}.items()), "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8080),
        }  # fmt: skip
        sent: list[Any] = []
        bodies = [{"type": "http.request", "body": body, "more_body": False}] if body is not None else []

        async def receive() -> Any:
            if body is None:
                return {"type": "http.disconnect"}
            return bodies.pop() if bodies else await asyncio.Event().wait()  # it stays connected

        async def send(message: Any) -> None:
            sent.append(message)

        await told.app(scope, receive, send)  # an error that is ours is raised here
        return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:])

    async def all_of_them() -> list[tuple[int, bytes]]:
        return [await one(*each) for each in asked]

    for each, (status, body) in zip(asked, asyncio.run(all_of_them()), strict=True):
        yield each, status, body


def in_words(body: bytes) -> bool:
    text = re.sub(r"<[^>]*>", " ", body.decode())
    return bool(re.search(r"[A-Za-z]{2,} [a-z]{2,}|Not Found|Method Not Allowed|Misdirected|Forbidden", text))


def test_bad_names_in_every_path(told: Told) -> None:
    asked = [
        (method, re.sub(r"{\w+}", lambda _, value=value: value, path), {}, b"")
        for path in routes(told)
        if "{" in path
        for value, method in itertools.product(VALUES, METHODS)
    ]
    for (method, target, *_), status, body in ask(told, asked):
        none_held_back = (status, target[-9:], body) in ((200, "/rejected", b"[]"), (200, "/rejected", b""))
        too_often = status == 429 and target.endswith("/patient")  # who tries names is slowed down
        assert none_held_back or too_often or status in (400, 404, 405, 409), (method, target[:90], status)
        if "\0" in unquote(target) and "/static/" not in target:  # PostgreSQL would not take it
            assert status in (400, 405), (method, target)
        assert none_held_back or method in WITHOUT_WORDS or in_words(body), (method, target[:90], body[:200])


def test_bad_values_of_every_key_at_every_address(told: Told) -> None:
    keys = ("limit", "before", "since", "route")
    asked = [
        (method, f"{path}?{query}", {}, b"")
        for path in there(told)
        for query in [*(f"{key}={value}" for key in keys for value in VALUES), *(f"{value}=1" for value in VALUES)]
        for method in ("GET", "POST")
    ]
    statuses = set()
    for (method, target, *_), status, body in ask(told, asked):
        statuses.add(status)
        assert status in (200, 400, 404, 405), (method, target[:90], status)
        assert status == 200 or in_words(body), (method, target[:90], body[:200])
        assert status != 200 or "/static/" in target or "limit=" in target or "before=" in target, target[:90]
    assert statuses == {200, 400, 405}


# of a node that has never been started, as this one: it is not ready, and no settings of it can be changed
NOT_STARTED = ("/ready", "/peers", "/routes", "/notices", "/settings")


@pytest.mark.parametrize("header", HEADERS)
def test_bad_headers_at_every_address(told: Told, header: str) -> None:
    asked = [
        (method, path, {b"accept": b"text/html", header.encode(): value}, b"")
        for path in there(told)
        for value, method in itertools.product(HEADER_VALUES, ("GET", "POST"))
    ]
    for (method, target, headers, _), status, _ in ask(told, asked):
        assert status < 500 or (status == 503 and target.startswith(NOT_STARTED)), (method, target, headers, status)


def test_whoever_asks_may_leave(told: Told) -> None:
    posts = [(method, path, {}, None) for path in there(told) for method in ("GET", "POST")]
    for asked, status, _ in ask(told, posts):
        assert status < 500 or (status == 503 and asked[1].startswith(NOT_STARTED)), asked


def test_bad_forms(told: Told) -> None:
    bodies = [b"route=" + value.encode() for value in VALUES] + [b"since=" + value.encode() for value in VALUES]
    bodies += [b"\xff\xfe", b"&&&", b"=", b"route=a&route=b", b"\x00", b"since=2026-03-01&nosuch=1"]
    for (_, _, _, body), status, said in ask(told, [("POST", "/api/rerun", {}, body) for body in bodies]):
        assert status in (400, 413), body[:90]
        assert in_words(said)
        assert (status == 413) is (len(body) > 8192)

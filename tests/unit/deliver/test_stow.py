"""STOW-RS and QIDO-RS against a web server that answers what each test wants; tests/interop has a real Orthanc."""

from __future__ import annotations

import email
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest

from pacs_node.deliver.destination import Deferred, Undeliverable, Verbatim
from pacs_node.deliver.stow import Answer, QidoArrivalCheck, StowDestination, WebPeer, json_of
from pacs_node.errors import NotOffered
from pacs_node.records import Offer, Package, Sent
from tests.harness import need
from tests.unit.deliver.conftest import now


@dataclass
class Web:
    """A DICOMweb server of the test's making."""

    answers: list[tuple[int, object]]  # status and JSON of one request after the other; the last one for all further
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def peer(self) -> WebPeer:
        return WebPeer("web", f"http://127.0.0.1:{self.port}/dicom-web/", 5)


@pytest.fixture
def web() -> Iterator[Callable[..., Web]]:
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: tuple[int, object], tls: ssl.SSLContext | None = None) -> Web:
        us = Web(list(answers))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                us.requests.append((self.command, self.path, dict(self.headers), body))
                status, said = us.answers.pop(0) if len(us.answers) > 1 else us.answers[0]
                content = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.headers["Content-Length"] = "0"
                self.do_POST()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        us.port = server.server_address[1]
        return us

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"00081199":' * 100_000, b'{"a":' + b"9" * 10_000 + b"}", b"\xff\xfe", b""]
)
def test_an_answer_that_is_no_json_is_none(body: bytes) -> None:
    assert json_of(Answer(200, body)) is None


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def item(path: Path, **reasons: int) -> dict[str, Any]:
    tags = {"failure": "00081197", "warning": "00081196"}
    return {
        "00081155": {"vr": "UI", "Value": [uid_of(path)]},
        **{tags[name]: {"vr": "US", "Value": [reason]} for name, reason in reasons.items()},
    }


def answer(stored: list[dict], failed: list[dict]) -> dict[str, Any]:
    return {"00081199": {"vr": "SQ", "Value": stored}, "00081198": {"vr": "SQ", "Value": failed}}


def deliver(web: Web, images: list[Path]) -> Any:
    return StowDestination(web.peer).deliver(Package("j", tuple(images)), now)


def test_the_files_travel_byte_for_byte(web: Callable[..., Web], images: list[Path]) -> None:
    server = web((200, answer([item(path) for path in images], [])))
    receipts = deliver(server, images)
    assert [(r.sop_instance_uid, r.stored, r.text) for r in receipts] == [
        (uid_of(path), True, "HTTP 200 stored") for path in images
    ]
    [(method, path, headers, body)] = server.requests
    assert (method, path) == ("POST", "/dicom-web/studies")
    message = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom"
    boundary = str(message.get_param("boundary")).encode()
    parts = body.split(b"\r\n--" + boundary)[1:]
    assert parts[-1] == b"--\r\n"
    assert [part.partition(b"\r\n\r\n")[2] for part in parts[:-1]] == [path.read_bytes() for path in images]
    assert {part.partition(b"\r\n\r\n")[0] for part in parts[:-1]} == {b"\r\nContent-Type: application/dicom"}


@pytest.mark.parametrize("status", [202, 400, 409])
def test_each_instance_has_its_own_answer(web: Callable[..., Web], images: list[Path], status: int) -> None:
    first, second, third = images
    said = answer([item(first), item(second, warning=0xB000)], [item(third, failure=0x0122)])
    with pytest.raises(Undeliverable, match="0x0122 Refused: SOP Class not supported") as caught:
        deliver(web((status, said)), images)
    assert [(r.stored, r.text) for r in caught.value.receipts] == [
        (True, f"HTTP {status} stored"),
        (True, f"HTTP {status} 0xB000 stored with a change: Coercion of Data Elements"),
        (False, f"HTTP {status} refused: 0x0122 Refused: SOP Class not supported"),
    ]


class WithOptional(Verbatim):
    """The last file is offered as something that may be left out."""

    def offers(self, package: Package) -> Iterator[Offer]:
        *needed, last = super().offers(package)
        yield from needed
        yield replace(last, optional=True)


def test_what_is_not_needed_does_not_fail_the_rest(web: Callable[..., Web], images: list[Path]) -> None:
    said = answer([item(images[0]), item(images[1])], [item(images[2], failure=0x0122)])
    receipts = StowDestination(web((202, said)).peer, WithOptional()).deliver(Package("j", tuple(images)), now)
    assert [receipt.stored for receipt in receipts] == [True, True, False]


def test_out_of_resources_is_tried_again(web: Callable[..., Web], images: list[Path]) -> None:
    said = answer([item(images[0]), item(images[1])], [item(images[2], failure=0xA700)])
    with pytest.raises(Deferred, match="not now: 0xA700"):
        deliver(web((202, said)), images)


@pytest.mark.parametrize("reason", [0x0000, 0xB000, 0x0111])
def test_what_is_in_the_list_of_failures_is_not_stored(
    web: Callable[..., Web], images: list[Path], reason: int
) -> None:
    said = answer([], [item(path, failure=reason) for path in images])
    with pytest.raises(Undeliverable) as caught:
        deliver(web((200, said)), images)
    assert not any(receipt.stored for receipt in caught.value.receipts)


def test_200_that_does_not_name_an_instance_is_no_promise_for_it(web: Callable[..., Web], images: list[Path]) -> None:
    with pytest.raises(Undeliverable, match="the answer does not name it") as caught:
        deliver(web((200, answer([item(images[0])], []))), images)
    assert [receipt.stored for receipt in caught.value.receipts] == [True, False, False]


def test_200_in_a_form_we_do_not_read_is_a_promise_for_all(web: Callable[..., Web], images: list[Path]) -> None:
    assert all(receipt.stored for receipt in deliver(web((200, b"<NativeDicomModel/>")), images))


# PS3.18 8.5 and RFC 9110, read by hand
BY_HAND = {
    301: Undeliverable, 307: Undeliverable, 400: Undeliverable, 401: Undeliverable, 403: Undeliverable,
    404: Undeliverable, 405: Undeliverable, 408: Deferred, 409: Undeliverable, 413: Undeliverable,
    415: Undeliverable, 425: Deferred, 429: Deferred, 500: Deferred, 502: Deferred, 503: Deferred, 504: Deferred,
}  # fmt: skip


@pytest.mark.parametrize("status", BY_HAND)
def test_each_status_of_the_whole_request(web: Callable[..., Web], images: list[Path], status: int) -> None:
    with pytest.raises(BY_HAND[status], match=f"HTTP {status} ") as caught:
        deliver(web((status, {})), images)
    assert [receipt.status for receipt in caught.value.receipts] == [status] * 3
    assert not any(receipt.stored for receipt in caught.value.receipts)


@pytest.mark.parametrize(
    "said", [[], 3, None, {"00081199": 3}, {"00081199": {"Value": [3]}}, {"00081198": {"Value": {}}}, b"\xff\xfe"]
)
def test_nonsense_in_the_answer_is_no_crash(web: Callable[..., Web], images: list[Path], said: object) -> None:
    with pytest.raises(Deferred):
        deliver(web((202, said)), images)


def test_a_server_that_is_down(images: list[Path]) -> None:
    with pytest.raises(Deferred, match="cannot be reached: connection refused"):
        StowDestination(WebPeer("web", "http://127.0.0.1:9/", 2)).deliver(Package("j", tuple(images)), now)


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        ({}, None),
        ({"token": "s3cret"}, "Bearer s3cret"),
        ({"user": "node", "password": "s3cret"}, "Basic bm9kZTpzM2NyZXQ="),
    ],
)
def test_who_we_are_is_told_and_never_written(
    web: Callable[..., Web], images: list[Path], settings: dict[str, str], header: str | None
) -> None:
    server = web((200, answer([item(path) for path in images], [])), (401, {}))
    peer = replace(server.peer, **settings)
    destination = StowDestination(peer)
    destination.deliver(Package("j", tuple(images)), now)
    assert server.requests[0][2].get("Authorization") == header
    with pytest.raises(Undeliverable) as caught:
        destination.deliver(Package("j", tuple(images)), now)
    for text in (str(peer), repr(peer), str(caught.value), *(r.text for r in caught.value.receipts)):
        assert "s3cret" not in text


def test_whom_tls_trusts(web: Callable[..., Web], images: list[Path], tmp_path: Path) -> None:
    """A certificate signed by nobody: refused, trusted by `ca_file`, or not looked at."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
         "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = web((200, answer([item(path) for path in images], [])), tls=tls)
    peer = replace(server.peer, url=server.peer.url.replace("http:", "https:"))
    package = Package("j", tuple(images))
    with pytest.raises(Deferred, match="certificate verify failed"):
        StowDestination(peer).deliver(package, now)
    assert StowDestination(replace(peer, ca_file=certificate)).deliver(package, now)
    assert StowDestination(replace(peer, verify=False)).deliver(package, now)
    with pytest.raises(OSError, match="No such file"):
        StowDestination(replace(peer, ca_file=tmp_path / "none.pem"))


SENT = [Sent("1.1", f"1.5.{n}", "1.8", f"1.9.{n}") for n in range(2)]


def instance(uid: str) -> dict[str, Any]:
    return {"00080018": {"vr": "UI", "Value": [uid]}}


def test_qido_names_what_is_there(web: Callable[..., Web]) -> None:
    server = web((200, [instance("1.5.0"), instance("7.7")]), (204, b""))
    assert QidoArrivalCheck(server.peer).find(SENT) == {"1.5.0"}
    assert [request[1] for request in server.requests] == [
        f"/dicom-web/studies/1.8/series/1.9.{n}/instances" for n in range(2)
    ]


def test_an_unknown_series_is_not_there(web: Callable[..., Web]) -> None:
    """404 for the series, while the service answers."""
    server = web((404, {}), (200, []), (200, [instance("1.5.1")]))
    assert QidoArrivalCheck(server.peer).find(SENT) == {"1.5.1"}


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [(404, {}, NotOffered), (405, {}, NotOffered), (400, {}, NotOffered), (200, b"<xml/>", NotOffered),
     (503, {}, Deferred), (429, {}, Deferred)],
)  # fmt: skip
def test_a_search_that_fails_finds_nothing_out(
    web: Callable[..., Web], status: int, said: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"HTTP {status}"):
        QidoArrivalCheck(web((status, said)).peer).find(SENT)

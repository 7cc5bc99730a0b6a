"""The pages as a started node serves them: over TLS with a certificate that is renewed, and behind a proxy."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from config import load
from models import catalogue
from pacs_node.accounts import FAILURES_OF_ONE
from pacs_node.node import Node
from pacs_node.web import certificate
from tests.certificates import Authority
from tests.harness import free_port, wait_for

PROXY, OTHER = "127.0.0.2", "127.0.0.1"  # where it is asked from: two addresses of this machine


@contextmanager
def started(folder: Path, web: str) -> Iterator[Node]:
    (folder / "node.toml").write_text(
        f'[node]\ndata_dir = "data"\nweb_port = {free_port()}\n[web]\n{web}\n'
        '[[peer]]\nname = "results"\nfolder = "results"\n'
        '[[route]]\nname = "breast"\nmatch = { Modality = "US" }\npipeline = "breast-us"\nsend_to = ["results"]\n'
    )
    node = Node(load(folder / "node.toml", catalogue()))
    try:
        node.start(listen=False, work=False)
        yield node
    finally:
        node.stop()


def test_pages_over_tls_take_a_renewed_certificate_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "LOOK_EVERY_S", 0.05)
    hospital = Authority(tmp_path)
    trusting = ssl.create_default_context(cafile=hospital.certificate)
    files = tmp_path / "web.pem", tmp_path / "web.key"

    def put(name: str) -> str:
        """The number of the certificate that stands in the files of the settings now."""
        made = hospital.issue(name)
        shutil.copyfile(made.key, files[1])
        shutil.copyfile(made.certificate, files[0])
        return ssl_number(made.certificate)

    def asked() -> tuple[int, str, str]:
        web = http.client.HTTPSConnection(OTHER, node.config.node.web_port, timeout=20, context=trusting)
        web.connect()
        number = str(web.sock.getpeercert()["serialNumber"])  # type: ignore[attr-defined]
        web.request("GET", "/health")
        answer = web.getresponse()
        web.close()
        return answer.status, number, answer.headers["strict-transport-security"]

    first = put("first")
    with started(tmp_path, 'certificate = "web.pem"\nkey = "web.key"') as node:
        assert asked() == (200, first, "max-age=2592000")
        second = put("second")
        assert second != first
        wait_for(lambda: asked()[1] == second, 60, "the renewed certificate")
        plain = http.client.HTTPConnection(OTHER, node.config.node.web_port, timeout=20)
        plain.request("GET", "/health")
        with pytest.raises((http.client.HTTPException, OSError)):  # nobody is served without
            plain.getresponse()


def ssl_number(file: Path) -> str:
    return str(ssl._ssl._test_decode_cert(str(file))["serialNumber"])  # type: ignore[attr-defined]


def test_a_proxy_is_believed_who_asks_and_nobody_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """X-Forwarded-For of the proxy alone counts: else one browser shuts out all, or a stranger is never shut out."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # of uvicorn: the settings alone say it
    heard: list[tuple[str, Any]] = []

    def asked(source: str, forwarded: str) -> int:
        door = socket.create_connection((OTHER, node.config.node.web_port), 20, (source, 0))
        web = http.client.HTTPConnection(OTHER, node.config.node.web_port)
        web.sock = door
        headers = {"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https", "Authorization": "Bearer pn_wrong"}
        web.request("GET", "/api/series", headers=headers)
        answer = web.getresponse()
        said = json.loads(answer.read())
        web.close()
        assert "error" in said
        return answer.status

    with started(tmp_path, f'behind_proxy = true\nproxies = ["{PROXY}/32"]') as node:
        node.audit.log = lambda *said: heard.append(said)
        for number in range(FAILURES_OF_ONE):  # a browser that has no right token, and says each time to be another
            assert asked(PROXY, f"10.9.9.{number}, 10.0.0.1") == 401
        assert asked(PROXY, "10.9.9.99, 10.0.0.1") == 429
        assert asked(PROXY, "10.0.0.1, 10.0.0.2") == 401, "another browser is not shut out with it"
        for number in range(FAILURES_OF_ONE):
            assert asked(OTHER, f"10.0.1.{number}") == 401
        assert asked(OTHER, "10.0.2.1") == 429, "who is no proxy does not say himself who he is"
        assert asked(PROXY, "10.0.0.3") == 401
    refused = [facts["from"] for event, facts in heard if event == "token-refused"]
    assert set(refused) == {"10.0.0.1", "10.0.0.2", "10.0.0.3", OTHER}

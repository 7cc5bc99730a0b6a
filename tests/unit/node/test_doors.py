"""What every connection of a node has in common, whichever door it came in by."""

from __future__ import annotations

import gc
import socket
from pathlib import Path

import pytest

from config import load
from models import catalogue
from pacs_node.node import Node
from tests.harness import free_port, wait_for

TOML = """
[node]
data_dir = "data"
dicom_host = "127.0.0.1"
dicom_port = {dicom}
web_port = {web}
[receive]
keep_free_gb = 0.1
[infer]
tune = false
"""


@pytest.mark.parametrize("door", ["dicom", "web"])
def test_nothing_that_is_said_waits_for_what_comes_after_it(door: str, tmp_path: Path) -> None:
    """TCP_NODELAY (RFC 896, RFC 1122 4.2.3.4): an answer in two pieces would take 40 ms."""
    ports = {"dicom": free_port(), "web": free_port()}
    (tmp_path / "node.toml").write_text(TOML.format(**ports))
    node = Node(load(tmp_path / "node.toml", catalogue()))
    node.start(work=False)
    try:
        with socket.create_connection(("127.0.0.1", ports[door])) as caller:
            if door == "web":
                caller.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert caller.recv(12) == b"HTTP/1.1 200"
            there = wait_for(lambda: other_end(caller), 30, "accepted")
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    finally:
        node.stop()


def other_end(caller: socket.socket) -> socket.socket | None:
    for each in gc.get_objects():
        if isinstance(each, socket.socket) and each.fileno() >= 0 and each.family == socket.AF_INET:
            try:
                if each.getpeername() == caller.getsockname():
                    return each
            except OSError:  # it listens
                continue
    return None

"""What pynetdicom's reactor may not take from whoever waits for an answer, and what it may not wait for."""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pynetdicom.dimse import DIMSEServiceProvider

from pacs_node.association import Messages, _Transport
from tests.certificates import Authority
from tests.harness import wait_for

ANSWER = 1, object()


@pytest.mark.parametrize("queue", [Messages])
def test_a_reactor_that_is_told_to_pause_leaves_the_answer_to_the_one_who_asked(queue: type[Messages]) -> None:
    checkpoint = threading.Event()  # cleared: a request of ours is about to go out
    messages = made(queue, checkpoint)
    messages.msg_queue.put(ANSWER)
    assert messages.get_msg(block=False) == (None, None), "the reactor, late, looks once more"
    assert messages.get_msg(block=True) == ANSWER
    checkpoint.set()
    messages.msg_queue.put(ANSWER)
    assert messages.get_msg(block=False) == ANSWER, "nobody waits: the reactor serves what comes"
    assert messages.get_msg(block=False) == (None, None)


def made(queue: type[DIMSEServiceProvider], checkpoint: threading.Event) -> Any:
    return queue(SimpleNamespace(dimse_timeout=0.5, _reactor_checkpoint=checkpoint))


def test_what_is_about_tls_alone_is_nothing_that_has_come(tmp_path: Path) -> None:
    """A reactor that waited for a PDU behind it would send nothing meanwhile."""
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity = authority.issue("pacs")
    context.load_cert_chain(identity.certificate, identity.key)
    ours, theirs = socket.socketpair()
    said: queue.Queue[bytes] = queue.Queue()

    def serve() -> None:
        with context.wrap_socket(theirs, server_side=True) as secured:  # two session tickets follow the handshake
            while some := said.get():
                secured.sendall(some)

    server = threading.Thread(target=serve)
    server.start()
    with authority.issue("node").caller(authority.certificate).wrap_socket(ours) as secured:
        secured.settimeout(10)
        transport = _Transport.__new__(_Transport)
        dul = SimpleNamespace(event_queue=queue.Queue())
        dimse = SimpleNamespace(msg_queue=queue.Queue())
        transport._assoc = SimpleNamespace(dul=dul, dimse=dimse, network_timeout=10, ae=SimpleNamespace())  # type: ignore[assignment]
        transport.socket, transport._is_connected = secured, True
        assert select.select([secured], [], [], 10)[0], "something is there to be read ..."
        assert not transport.ready, "... which is no PDU"
        said.put(b"seven bytes and more"[:7])
        wait_for(lambda: transport.ready, 10, "what came behind the tickets")
        assert transport.ready, "asked again"
        assert bytes(transport.recv(6)) == b"seven "
        assert transport.ready, "what OpenSSL holds has come"
        assert bytes(transport.recv(1)) == b"b"
        assert not transport.ready
        said.put(b"")
        server.join()
        wait_for(lambda: transport.ready, 10, "the end, which is something that has come, too")
        assert transport.recv(6) == b""
        assert dul.event_queue.empty()

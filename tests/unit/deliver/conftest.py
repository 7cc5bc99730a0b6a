"""A PACS on a real socket that accepts and answers as each test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from pacs_node.deliver.dimse import Peer
from tests.factories import ct_series, us_image

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)
CT, US = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.6.1"
EXPLICIT_LE, IMPLICIT_LE, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"


def now() -> datetime:
    return NOON


@dataclass
class Pacs:
    """What came in, and what was proposed."""

    peer: Peer
    received: dict[str, bytes] = field(default_factory=dict)  # SOP Instance UID -> data set
    proposed: list[list[tuple[str, tuple[str, ...]]]] = field(default_factory=list)  # per association
    released: int = 0
    server: Any = None
    done: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def pacs() -> Iterator[Callable[..., Pacs]]:
    """pacs(accepts={SOP class: [syntax]}, answer=lambda number: status, ...) -> Pacs."""
    servers = []

    def start(
        accepts: dict[str, list[str]] | None = None,
        answer: Callable[[int], int | Dataset] = lambda number: 0x0000,
        limit: int = 10,
        knows: str = "",
        timeout_s: float = 30,
    ) -> Pacs:
        us = Pacs(Peer("pacs", "PACS", "127.0.0.1", 0, "NODE", timeout_s))

        def store(event: evt.Event) -> int | Dataset:
            status = answer(len(us.received) + 1)
            us.received[event.request.AffectedSOPInstanceUID] = event.encoded_dataset(include_meta=False)
            return status

        def requested(event: evt.Event) -> None:
            contexts = event.assoc.requestor.primitive.presentation_context_definition_list
            us.proposed.append(
                [(str(each.abstract_syntax), tuple(map(str, each.transfer_syntax))) for each in contexts]
            )

        def released(event: evt.Event) -> None:
            us.released += 1
            us.done.set()

        ae = AE("PACS")
        ae.maximum_associations = limit
        ae.require_called_aet = True
        ae.require_calling_aet = [knows] if knows else []
        ae.add_supported_context("1.2.840.10008.1.1")
        for sop_class, syntaxes in (accepts or {CT: [EXPLICIT_LE, RLE], US: [EXPLICIT_LE]}).items():
            ae.add_supported_context(sop_class, syntaxes)
        handlers = [(evt.EVT_C_STORE, store), (evt.EVT_REQUESTED, requested), (evt.EVT_RELEASED, released)]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        servers.append(server)
        us.server = server
        us.peer = replace(us.peer, port=server.server_address[1])
        return us

    yield start
    for server in servers:
        if server in server.ae._servers:
            threading.Thread(target=server.shutdown).start()  # takes half a second: do not wait for it


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two CT images and one of ultrasound, as files."""
    series = ct_series(tmp_path / "ct", shape=(2, 16, 16))
    return [Path(image.filename) for image in [*series, us_image(tmp_path / "us")]]

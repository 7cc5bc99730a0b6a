"""A real listener on a free port, and data sets as they travel: bytes without preamble and file meta information."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import ReceivedInstance, Spool
from pacs_node.records import AssociationEnd, Instance
from tests.factories import ct_series
from tests.parrot import EXPLICIT_LE

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


@dataclass
class Node:
    """The listener and everything it told the outside."""

    listener: Listener
    spool: Spool
    stored: list[Instance] = field(default_factory=list)
    ends: list[AssociationEnd] = field(default_factory=list)
    audit: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.port


SETTINGS = ListenerSettings(
    "NODE",
    "127.0.0.1",
    0,
    frozenset({"ME", "YOU"}),
    network_timeout_s=20,
    acse_timeout_s=10,
    max_associations=20,
    max_pdu=1 << 20,
    dimse_timeout_s=30,
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """start(on_stored=..., keep_free_gb=..., any ListenerSettings field=...) -> Node; stopped at the end."""
    nodes: list[Node] = []

    def start(on_stored: Callable[[Instance], None] | None = None, keep_free_gb: float = 0, **settings: Any) -> Node:
        spool = Spool(tmp_path / "spool", keep_free_gb)
        node = Node(None, spool)  # type: ignore[arg-type]

        def stored(instance: Instance) -> None:
            if on_stored:
                on_stored(instance)
            node.stored.append(instance)

        node.listener = Listener(
            replace(SETTINGS, **settings),
            spool,
            stored,
            node.ends.append,
            lambda event, facts: node.audit.append((event, facts)),
            lambda: NOON,
        )
        node.listener.start()
        nodes.append(node)
        return node

    yield start
    for node in nodes:
        node.listener.stop(drain_s=0)


@pytest.fixture
def node(start: Callable[..., Node]) -> Node:
    return start()


@pytest.fixture(scope="session")
def image() -> Dataset:
    """A small CT image."""
    return ct_series(shape=(2, 16, 16))[0]


@pytest.fixture(scope="session")
def data_set(image: Dataset) -> bytes:
    return encoded(image)


def encoded(image: Dataset, implicit: bool = False, little: bool = True) -> bytes:
    """The data set alone, as a C-STORE carries it."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    write_dataset(buffer, image)
    return bytes(buffer.getvalue())


def arrival(image: Dataset, data_set: bytes, **changes: Any) -> ReceivedInstance:
    return replace(
        ReceivedInstance(image.SOPClassUID, image.SOPInstanceUID, EXPLICIT_LE, data_set, "a-1", "ME", NOON), **changes
    )

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

from pacs_node import pack
from pacs_node.receive.part10 import decode
from pacs_node.receive.scp import Listener, ListenerSettings
from pacs_node.receive.spool import Announced, Kept, Spool
from pacs_node.records import AssociationEnd, Instance, Refusal
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
    opened: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def tls_port(self) -> int:
        return self.listener.tls_port


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

    def start(
        on_stored: Callable[[Instance], None] | None = None,
        keep_free_gb: float = 0,
        largest: int = 1 << 30,
        **settings: Any,
    ) -> Node:
        spool = Spool(tmp_path / "spool", keep_free_gb, largest=largest)
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
            lambda event, facts: (node.opened if event == "association-opened" else node.audit).append((event, facts)),
            lambda: NOON,
            on_refused=node.refused.append,
        )
        node.listener.start()
        nodes.append(node)
        if "tls" in settings:
            node.listener.start_tls()
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


@dataclass(frozen=True)
class Arrival:
    """A data set as a sender brings it."""

    announced: Announced
    data_set: bytes

    def brought_to(self, spool: Spool, fragment: int = 1 << 14) -> Kept:
        incoming = spool.begin(self.announced)
        for start in range(0, len(self.data_set), fragment):
            incoming.write(memoryview(self.data_set)[start : start + fragment])
        return incoming.keep(lambda: NOON)


def arrival(image: Dataset, data_set: bytes, **changes: Any) -> Arrival:
    announced = Announced(image.SOPClassUID, image.SOPInstanceUID, EXPLICIT_LE, "a-1", "ME")
    return Arrival(replace(announced, **changes), data_set)


def data_set_of(instance: Instance) -> bytes:
    """What was sent, of what is stored."""
    stored = pack.content(instance.stored)
    return stored[decode(stored[:4096]).size :]

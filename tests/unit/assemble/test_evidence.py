"""Asking a PACS on a real socket how many instances a series has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from pacs_node.assemble.evidence import STUDY_ROOT_FIND, expected_count
from pacs_node.association import Peer

Answer = Callable[[Dataset], Iterator[tuple[int, Dataset | None]]]


@pytest.fixture
def ask() -> Iterator[Callable[[Answer], int | None]]:
    """ask(what the PACS answers to the identifier) -> what expected_count makes of it."""
    servers: list[Any] = []

    def ask(answer: Answer, supports: str = STUDY_ROOT_FIND, timeout_s: float = 5) -> int | None:
        ae = AE("PACS")
        ae.add_supported_context(supports)
        handlers = [(evt.EVT_C_FIND, lambda event: answer(event.identifier))]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        servers.append(server)
        port = server.server_address[1]
        return expected_count(Peer("pacs", "PACS", "127.0.0.1", port, "NODE", timeout_s), "1.2", "1.2.3")

    yield ask
    for server in servers:
        threading.Thread(target=server.shutdown).start()  # takes half a second: do not wait for it


def match(count: Any, series_uid: str = "1.2.3") -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel = "SERIES"
    found.StudyInstanceUID, found.SeriesInstanceUID = "1.2", series_uid
    if count is not None:
        found.NumberOfSeriesRelatedInstances = count
    return found


def test_the_count_as_the_peer_tells_it(ask: Callable[[Answer], int | None]) -> None:
    asked: list[Dataset] = []

    def answer(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(identifier)
        yield 0xFF00, match(85)

    assert ask(answer) == 85
    (identifier,) = asked
    assert (identifier.QueryRetrieveLevel, identifier.StudyInstanceUID, identifier.SeriesInstanceUID) == (
        "SERIES",
        "1.2",
        "1.2.3",
    )
    assert identifier["NumberOfSeriesRelatedInstances"].is_empty


def test_other_series_do_not_count(ask: Callable[[Answer], int | None]) -> None:
    """Some peers ignore the key and tell all series of the study."""

    def answer(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        for series_uid, count in (("1.2.2", 7), ("1.2.3", 12), ("1.2.4", 99)):
            yield 0xFF00, match(count, series_uid)

    assert ask(answer) == 12


@pytest.mark.parametrize(
    "answers", [[], [(0xFF00, None)], [(0xFF00, "")], [(0xFF00, 0)], [(0xA700, None)], [(0xC001, 3)]]
)
def test_a_peer_that_does_not_tell(ask: Callable[[Answer], int | None], answers: list[tuple[int, Any]]) -> None:
    def answer(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        for status, count in answers:
            yield status, match(count) if status == 0xFF00 else None

    assert ask(answer) is None


def test_a_peer_that_answers_garbage(ask: Callable[[Answer], int | None]) -> None:
    def answer(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        found = match(None)
        found.add_new("NumberOfSeriesRelatedInstances", "LO", "many")
        yield 0xFF00, found

    assert ask(answer) is None


def test_a_peer_without_find(ask: Callable[..., int | None]) -> None:
    assert ask(lambda identifier: iter(()), supports="1.2.840.10008.1.1") is None


def test_a_peer_that_is_too_slow(ask: Callable[..., int | None]) -> None:
    def answer(identifier: Dataset) -> Iterator[tuple[int, Dataset | None]]:
        time.sleep(1)
        yield 0xFF00, match(85)

    assert ask(answer, timeout_s=0.3) is None


def test_nobody_there() -> None:
    assert expected_count(Peer("pacs", "PACS", "127.0.0.1", 1, "NODE", 1), "1.2", "1.2.3") is None

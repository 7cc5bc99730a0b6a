"""Whatever a destination or an archive answers, there is an error that a job knows, or an answer; never another one.

The lies are those of `make fuzz`, told to whoever asks; tests/fault/test_fuzz.py has the whole node ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pacs_node.errors import NodeError
from tests.fuzz.liars import PeerLiar, WebLiar
from tests.unit.deliver import test_network
from tests.unit.deliver.test_network import DIMSE, WEB, Address

LIES = 40  # told to each


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_network, "TIMEOUT_S", 0.3)


@pytest.fixture
def liar(request: pytest.FixtureRequest) -> Iterator[PeerLiar | WebLiar]:
    of_the_web = request.node.callspec.params["caller"] in WEB
    liar = (WebLiar if of_the_web else PeerLiar)("lies", patience_s=1)
    yield liar
    liar.stop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("caller", [*DIMSE, *WEB])
def test_no_lie_is_an_error_that_nobody_foresaw(caller: str, liar: PeerLiar | WebLiar, tmp_path: Path) -> None:
    for number in range(LIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        # AssertionError: the caller of the table that counts insists on a refusal, and was told a number
        with suppress(NodeError, *([AssertionError] if caller == "count" else [])):
            (DIMSE | WEB)[caller](Address("127.0.0.1", liar.port), folder)
    assert liar.said.total() >= LIES / 2

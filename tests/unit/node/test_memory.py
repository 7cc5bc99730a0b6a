"""What a destination refused is remembered in the ledger, for a while, under the settings it was asked with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config import Peer
from pacs_node.ledger import Ledger
from pacs_node.peers import LedgerMemory
from pacs_node.records import Answer

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SEG, EXPLICIT_LE, IMPLICIT_LE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
PACS = Peer(name="pacs", ae_title="ORTHANC", host="10.0.0.5", port=4242, ask_again_h=2.0)


def test_a_refusal_holds_for_a_while(ledger: Ledger) -> None:
    memory = LedgerMemory(ledger, PACS, "NODE")
    memory.remember([Answer(SEG, EXPLICIT_LE, "not supported", T0), Answer(SEG, IMPLICIT_LE, None, T0)])
    again = LedgerMemory(ledger, PACS, "NODE")
    known = {(SEG, EXPLICIT_LE): "not supported (asked 2026-01-02 03:04 UTC)"}
    assert again.refusals(T0 + timedelta(hours=1, minutes=59)) == known
    assert again.refusals(T0 + timedelta(hours=2)) == {}
    assert again.refusals(T0 - timedelta(hours=5)) == {}, "the clock was set back: nobody knows how old it is"


@pytest.mark.parametrize(
    "changed", [{"host": "10.0.0.6"}, {"ae_title": "NEW"}, {"port": 104}, {"segmentation": "LABELMAP"}], ids=str
)
def test_other_settings_ask_anew(ledger: Ledger, changed: dict[str, object]) -> None:
    LedgerMemory(ledger, PACS, "NODE").remember([Answer(SEG, EXPLICIT_LE, "not supported", T0)])
    assert LedgerMemory(ledger, PACS.model_copy(update=changed), "NODE").refusals(T0) == {}
    assert LedgerMemory(ledger, PACS, "ANOTHER").refusals(T0) == {}
    assert LedgerMemory(ledger, PACS, "NODE").refusals(T0) != {}


def test_a_ledger_that_does_not_answer_stops_no_send(tmp_path: Path) -> None:
    nowhere = Ledger(f"sqlite:///{tmp_path}/missing/node.sqlite", tmp_path)
    LedgerMemory(nowhere, PACS, "NODE").remember([Answer(SEG, EXPLICIT_LE, None, T0)])
